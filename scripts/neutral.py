"""Shows that a change of the code changes nothing that it computes: for whoever moves or rewrites modules.

    scripts/with_env.sh scripts/neutral.py record FOLDER     before the change, or with --code CHECKOUT of it
    scripts/with_env.sh scripts/neutral.py compare FOLDER    after it; exit code 1 and a list where something differs

Two parts (`--only fingerprints`, seconds; `--only run`, minutes). Fingerprints: of every stage and step that a shipped
config is known to need before training. Run: a small configs/tiny.yaml in an empty HORNBOOK_ROOT, from data to export.
`record` runs it twice, the second time with `--replay` of the first one's decisions, and keeps what both agree in:
manifests with their hashes, metrics, report.json. `compare` replays the same decisions on the same machine.
Only the `hornbook` command is used, so that every commit can be compared with every other.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parents[1]
UNGROWN = ("init.method=random", "init.source=null")  # an untrained source leaves init's and pretrain's folder unknown
SOME_TEXT = ("data.sources.exercises={type: exercises, count: 100}",)
SEAL = "manifest.sha256"  # over all other keys of a manifest
ABOUT_RUN = re.compile(r".*\.(commit|dirty|started|finished|seconds|gpu_hours)$")  # of the checkout, and of the clock
MUST_AGREE = re.compile(r"(data|init|pretrain|export).*content_hash$")  # the other stages measure seconds

SMALL = {
    "data": {
        "sources": {
            "python_library": {"distributions": ["attrs", "click", "networkx", "pydantic"], "limit_documents": 400},
            "exercises": {"count": 800},
        },
        "validation": {"max_bytes": 24_000},
        "tokenizer_train_bytes": 2_000_000,
        "tasks": 4,
    },
    "model": {"vocab_size": 1024},
    "train": {"precision": "32-true", "warmup_steps": 5},
    "tracking": {"to": "none"},
}
CAPS = {"max_tokens": 40_000, "max_gpu_hours": 0.2}  # 20 steps; the hours are room for a busy machine
AFTER = {
    "finetune": {"budget": {"max_tokens": 20_000}, "train": {"precision": "32-true"}, "measure_memory": False},
    "evaluate": {"items": 20},
    "quantize": {"kinds": ["int8", "gguf-q8_0"], "items": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("folder", type=Path, help="where the baseline lies")
    parser.add_argument("--only", choices=("fingerprints", "run"))
    parser.add_argument("--code", type=Path, default=HERE, help="the checkout to run; default: this one")
    arguments = parser.parse_args()
    action = record if arguments.action == "record" else compare
    parts = [arguments.only] if arguments.only else ["fingerprints", "run"]
    sys.exit(max(action(part, arguments.folder.resolve(), arguments.code.resolve()) for part in parts))


def record(part: str, folder: Path, code: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if part == "fingerprints":
        facts = fingerprints(code)
    else:
        first, root = folder / "first", folder / "root"
        for old in (first, root):
            shutil.rmtree(old, ignore_errors=True)
        by_clock = run(code, first)
        replayed = run(code, root, decisions=folder)
        facts = {key: value for key, value in replayed.items() if key in by_clock and by_clock[key] == value}
        unstable = [key for key in replayed if MUST_AGREE.match(key) and key not in facts]
        if unstable:
            print("the same code gave two results, so that nothing can be compared:", *unstable, sep="\n  ")
            return 1
        shutil.rmtree(first)
        write(folder / "varies.json", sorted(set(by_clock) ^ set(facts) | set(replayed) - set(facts)))
    write(folder / f"{part}.json", facts)
    print(f"{part}: {len(facts):,} facts of {code} in {folder}")
    return 0


def compare(part: str, folder: Path, code: Path) -> int:
    expected = json.loads((folder / f"{part}.json").read_text())
    if part == "fingerprints":
        found, varies, where = fingerprints(code), set(), ""
    else:
        root = Path(tempfile.mkdtemp(prefix="hornbook-neutral-"))
        found, varies = run(code, root, decisions=folder), set(json.loads((folder / "varies.json").read_text()))
        where = f"; {root} against {folder / 'root'}"
    varies |= {f"{key.removesuffix('.sha256')}.bytes" for key in varies if key.endswith(".sha256")}
    differences = [
        f"{key}: {show(expected.get(key))} -> {show(found.get(key))}"
        for key in sorted(expected.keys() | found.keys())
        if key not in varies and not ABOUT_RUN.match(key) and expected.get(key) != found.get(key)
    ]
    print(f"{part}: {len(differences):,} of {len(expected):,} facts differ{where if differences else ''}")
    for line in differences[:200]:
        print(f"  {line}")
    if part == "run" and not differences:
        shutil.rmtree(root)
    return int(bool(differences))


def show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)[:100]


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def hornbook(code: Path, root: Path, *words: str) -> str:
    """Runs the command of a checkout; its standard output. Leaves the process where it fails."""
    environment = os.environ | {"HORNBOOK_ROOT": str(root), "PYTHONPATH": str(code), "WANDB_MODE": "offline"}
    command = [sys.executable, "-P", "-m", "pipeline", *words]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"hornbook {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def fingerprints(code: Path) -> dict[str, Any]:
    """What `--dry-run` knows of each shipped config, once as it is and once without growth."""
    configs = sorted(path for path in (code / "configs").glob("*.yaml") if path.name != "gpus.yaml")
    wanted: dict[str, tuple[str, ...]] = {}
    for path in configs:
        name, values = str(path.relative_to(code)), yaml.safe_load(path.read_text())
        has_text = "data" in values  # a source takes its text from the experiment that grows it
        if has_text and not str(values.get("init", {}).get("source")).startswith("downloads/"):  # which is not here
            wanted[name] = (name,)
        wanted[f"{name} ungrown"] = (name, *UNGROWN, *(() if has_text else SOME_TEXT))
    for path in sorted((code / "configs" / "studies").glob("*.yaml")):
        base = (path.parent / yaml.safe_load(path.read_text())["base"]).resolve().relative_to(code)
        changes = [f"{key}={json.dumps(value)}" for key, value in flat(yaml.safe_load(path.read_text())["set"])]
        wanted[f"base of {path.relative_to(code)}"] = (str(base), *changes)
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(2) as pool:
        for folder in ("documents", "docs"):  # which shipped configs read
            Path(root, folder).mkdir()
            Path(root, folder, "a.txt").write_text("Text for configs that read a folder.\n")
        for name, words in wanted.items():
            words = (str(code / words[0]), *words[1:])
            facts[name] = pool.submit(hornbook, code, Path(root), "pretrain", *words, "--dry-run", "--json")
        return {
            f"{name}/{key}": value
            for name, done in facts.items()
            for key, value in flat(json.loads(done.result().replace(f"{code}/", "")))
            if not key.endswith((".folder", ".why")) and "tensors" not in key
        }


def run(code: Path, root: Path, decisions: Path | None = None) -> dict[str, Any]:
    """Runs the stages in an empty `root`; what they left behind, flat. Decisions of the clock come from those that an
    earlier run left in the folder `decisions`, or go there (beside `root`)."""
    root.mkdir(parents=True, exist_ok=True)
    grown, source = (str(path) for path in write_configs(code, root))
    hornbook(code, root, "data", grown)
    for name, config in (("source", source), ("grown", grown)):
        hornbook(code, root, "init", config)
        kept = (decisions or root.parent) / f"{name}-decisions.jsonl"
        hornbook(code, root, "pretrain", config, *(["--replay", str(kept)] if decisions else []))
        if not decisions:
            shutil.copyfile(Path(hornbook(code, root, "where", "pretrain", config).strip()) / "decisions.jsonl", kept)
    for verb in ("evaluate", "export", "quantize"):
        hornbook(code, root, verb, grown)
    tuned = Path(hornbook(code, root, "where", "finetune", grown).strip())
    return {"finetune": tuned.name, **collect(root)}


def collect(root: Path) -> dict[str, Any]:
    """What the finished stages say of themselves: manifests, metrics, report.json."""
    facts: dict[str, Any] = {}
    for manifest in sorted(root.glob("artifacts/*/*/manifest.json")):
        folder = manifest.parent
        key = str(folder.relative_to(root / "artifacts"))
        files = {"manifest": json.loads(manifest.read_text())}
        if (folder / "metrics.jsonl").is_file():
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            files["metrics"] = {f"step {row['step']}": row for row in rows}
        if (folder / "report.json").is_file():
            files["report"] = json.loads((folder / "report.json").read_text())
        facts.update({f"{key}/{name}": value for name, value in flat(files) if name != SEAL})
    return facts


def write_configs(code: Path, root: Path) -> tuple[Path, Path]:
    """The small tiny.yaml, and its source as an experiment of its own, so that its decisions can be replayed too."""
    tiny = merge(yaml.safe_load((code / "configs/tiny.yaml").read_text()), SMALL)
    source = merge(yaml.safe_load((code / "configs/tiny-source.yaml").read_text()), {**SMALL, "data": tiny["data"]})
    folder = root / "configs"
    folder.mkdir()
    values = {**source, "seed": tiny["seed"], "budget": CAPS}
    (folder / "tiny-source.yaml").write_text(yaml.safe_dump(values))
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**merge(tiny, AFTER), "budget": CAPS}))
    return folder / "tiny.yaml", folder / "tiny-source.yaml"


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    both = {**low, **high}
    nested = [key for key in high if isinstance(low.get(key), dict) and isinstance(high[key], dict)]
    return {**both, **{key: merge(low[key], high[key]) for key in nested}}


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists, by dotted names."""
    if isinstance(value, dict) and value:
        for key in value:
            yield from flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for number, one in enumerate(value):
            yield from flat(one, f"{prefix}.{number}")
    else:
        yield prefix, value


if __name__ == "__main__":
    main()
