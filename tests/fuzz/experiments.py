"""Cases of configs, conditions and studies, and of what hornbook keeps: manifests, ledgers, decisions, checkpoints.

One small experiment is really made before the first case (data, init, pretrain: seconds), and each case damages a file
of a copy of it. Whatever reads the file reports it in one message, makes it again or skips the line, and what stands
beside it still counts. A config that is accepted can be printed, read again, and gives the same; verbs are asked what
they would do.
"""

import contextlib
import json
import operator
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import schema
from tests.fuzz import texts as text_kinds
from tests.fuzz.damage import dumped, mutate, mutate_value, odd
from tests.fuzz.judging import Wrong, command, equal, run, texts, write

PREPARED = Path()
OTHER = "other"  # an experiment beside the damaged one
CONFIG = """
name: fuzz
seed: 1
data:
  sources: {{web: {{type: jsonl, path: {texts}, group_key: domain, license: MIT}}}}
  filters: {{length: {{min_characters: 50}}}}
  scorer: null
  tasks: 2
  workers: 1
  validation: {{share: 0.1}}
model: {{vocab_size: 400, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 64}}
train: {{sequence_length: 32, global_batch_tokens: 256, warmup_steps: 2, device: cpu, precision: 32-true,
        log_every_steps: 2, checkpoint_every_seconds: 0.05, keep_checkpoints: 3}}
budget: {{max_tokens: 8000}}
tracking: {{to: none}}
sample: {{prompts: []}}
"""


def prepare(folder: Path) -> None:
    """`folder/root` with two experiments, and their configs."""
    draw = random.Random(0)
    lines = [dumped({"text": t, "domain": f"site{i % 12}.org"}) for i, t in enumerate(texts(draw, 80, 8))]
    path = write(folder / "in/texts.jsonl", b"\n".join(lines))
    for name in ("fuzz", OTHER):
        write(folder / f"{name}.yaml", CONFIG.format(texts=path).replace("name: fuzz", f"name: {name}").encode())
    os.environ["HORNBOOK_ROOT"] = str(folder / "root")
    for verb in schema.PRETRAINING:
        command(verb, str(folder / "fuzz.yaml")).must_succeed(verb)
    command("data", str(folder / f"{OTHER}.yaml"), "seed=2").must_succeed("data")


def model_folder() -> Path:
    return (PREPARED / "root/runs/fuzz/pretrain").resolve() / "model"


def copy_root(root: Path) -> Path:
    return Path(shutil.copytree(PREPARED / "root", root, symlinks=True))


def _ready() -> Path:
    return copy_root(Path(os.environ["HORNBOOK_ROOT"]))


def _fuzz(verb: str, *words: str) -> Any:
    flags = [w for w in words if w.startswith("-") or "=" not in w]
    return command(verb, str(PREPARED / "fuzz.yaml"), *(w for w in words if w not in flags), *flags)


def _others_are_shown(what: str) -> None:
    """Whatever became of one experiment, `runs` shows the other."""
    shown = command("runs")
    shown.must_succeed(f"runs, beside {what}")
    if OTHER not in shown.said:
        raise Wrong(f"lost: the experiment beside {what}")


LOOKS: list[Callable[[], Any]] = [
    lambda: command("runs"),
    lambda: command("runs", "--json"),
    lambda: _fuzz("report"),
    lambda: command("compare", "fuzz", OTHER),
    lambda: command("compare", "fuzz", "fuzz", "--json"),
    lambda: command("clean"),
    lambda: command("clean", "fuzz", "--yes"),
    lambda: command("batch", "fuzz", "--step", "2"),
    lambda: command("sync", "fuzz", "--to", "tensorboard"),
]
STAGES: list[Callable[[], Any]] = [
    lambda: _fuzz("data"),
    lambda: _fuzz("init"),
    lambda: _fuzz("pretrain", "--dry-run"),
    lambda: _fuzz("evaluate", "--dry-run"),
    lambda: _fuzz("export"),
    lambda: _fuzz("sample", "--prompt", "The", "--max-new-tokens", "2"),
    lambda: _fuzz("where", "pretrain"),
]
LONG: list[Callable[[], Any]] = [  # a second or two each
    lambda: _fuzz("pretrain"),
    lambda: _fuzz("pretrain", "budget.max_tokens=10000"),
    lambda: _fuzz("pretrain", "--branch", "4K"),
]


def _look(draw: random.Random, long_share: float = 0.06) -> None:
    way = draw.random()
    draw.choice(LONG if way < long_share else STAGES if way < 0.4 else LOOKS)()


def manifest(draw: random.Random, folder: Path) -> None:
    root = _ready()
    which = sorted(root.glob("artifacts/*/*/manifest.json")) + sorted(root.glob("artifacts/data/*/data.report.json"))
    last = [path for path in which if path.parents[1].name in schema.PRETRAINING]
    path = draw.choice(which if draw.random() < 0.4 else last)
    _damage_json(path, draw)
    _look(draw)
    _others_are_shown("a damaged manifest")


def ledger(draw: random.Random, folder: Path) -> None:
    from pipeline.storage.ledger import spent_hours

    root = _ready()
    path = draw.choice((root / "runs/fuzz/ledger.jsonl", next(root.glob("artifacts/pretrain/*/ledger.jsonl"))))
    sound = path.read_bytes().splitlines()
    _damage_lines(path, draw)
    left = [json.loads(line) for line in path.read_bytes().split(b"\n") if line in sound]
    hours = run(lambda: spent_hours(path)).must_succeed("a ledger with a damaged line")
    for stage in {line["stage"] for line in left}:
        least = max(line["seconds"] for line in left if line["stage"] == stage) / 3600
        if hours.get(stage, 0.0) < least * 0.999:
            raise Wrong("lost: hours of a sound line of a ledger", f"{hours}, at least {least} of {stage}")
    _look(draw, 0.1)
    _others_are_shown("a damaged ledger")


def decisions(draw: random.Random, folder: Path) -> None:
    root = _ready()
    path = next(root.glob("artifacts/pretrain/*/decisions.jsonl"))
    if draw.random() < 0.25:
        copy = write(folder / "replayed.jsonl", path.read_bytes())
        _damage_lines(copy, draw)
        _fuzz("pretrain", "seed=5", "--replay", str(copy), "budget.max_tokens=2000", *draw.choice(((), ("--dry-run",))))
        return
    _damage_lines(path, draw)
    _look(draw, 0.25)
    _others_are_shown("damaged decisions")


def metrics(draw: random.Random, folder: Path) -> None:
    root = _ready()
    path = draw.choice((
        next(root.glob("artifacts/pretrain/*/metrics.jsonl")), root / "artifacts/.input-hashes.json",
        root / "runs/fuzz/config.yaml", next(root.glob("artifacts/pretrain/*/.lock")),
    ))  # fmt: skip
    if path.suffix == ".jsonl":
        _damage_lines(path, draw)
    else:
        path.write_bytes(mutate(path.read_bytes(), draw))
    _look(draw, 0.1)
    if path.name == ".input-hashes.json":
        _fuzz("data", "--dry-run").must_succeed("a damaged cache of hashes")
    if path.name != "config.yaml":
        _others_are_shown(f"a damaged {path.name}")


def checkpoint(draw: random.Random, folder: Path) -> None:
    """The newest whole checkpoint is taken, whatever became of the others."""
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.decisions import Decisions

    root = _ready()
    pretrain = next(root.glob("artifacts/pretrain/*/checkpoints")).parent
    kept = Checkpoints(pretrain / "checkpoints", 3, Decisions(pretrain / "decisions.jsonl"))
    steps = kept.steps()
    damaged = {draw.choice(steps) for _ in range(draw.choice((1, 1, 2)))}
    for step in damaged:
        path = draw.choice([p for p in kept.path(step).iterdir() if p.is_file()])
        before = path.read_bytes()
        _damage_json(path, draw) if path.suffix == ".json" else path.write_bytes(mutate(before, draw))
        if _same(path.read_bytes(), before):
            return
    if draw.random() < 0.2:
        (pretrain / "manifest.json").unlink()
        _fuzz("pretrain", *draw.choice(((), ("budget.max_tokens=10000",)))).must_succeed("a damaged checkpoint")
        return
    state = run(lambda: kept.load()).must_succeed("a damaged checkpoint")
    expected = max((step for step in steps if step not in damaged), default=None)
    equal(state.step if state else None, expected, "not the newest whole checkpoint")


def _same(data: bytes, before: bytes) -> bool:
    """Whether the damage left the bytes, or the value of JSON, as they were."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data) == json.loads(before)
    return data == before


def data(draw: random.Random, folder: Path) -> None:
    """The whole stage on a good source and damaged ones: its account sums to zero in every unit, at every step."""
    from pipeline.storage.steps import read_manifest

    good = texts(draw, 40, 8)
    lines = [dumped({"text": t, "domain": f"site{i % 9}.org"}) for i, t in enumerate(good)]
    write(folder / "good/a.jsonl", b"\n".join(lines))
    kind = draw.choice(("jsonl", "parquet", "warc", "html", "text", "pdf", "word", "packed"))
    type_ = {"packed": "jsonl", "jsonl": "jsonl", "parquet": "parquet", "warc": "warc"}
    getattr(text_kinds, kind)(draw, folder / "odd")
    if draw.random() < 0.3:  # a file that is not looked at has a row too
        write(folder / "odd/in/notes.bin", bytes(draw.randrange(2_000)))
    sources = {
        "good": {"type": "jsonl", "path": str(folder / "good/a.jsonl"), "group_key": "domain", "license": "MIT"},
        "odd": {"type": type_.get(kind, "text"), "path": str(folder / "odd/in"), "license": "own"},
    }
    filters = {name: {} for name in draw.sample(("length", "letters", "long_lines"), 2)}
    more = [
        f"data.tasks={draw.choice((1, 3))}",
        f"data.max_unreadable={draw.choice((1.0, 1.0, 0.1))}",
        "data.workers=1",
    ]
    config = {"name": "stage", "model": {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32,
              "num_hidden_layers": 1, "num_attention_heads": 2}, "data": {"sources": sources, "filters": filters,
              "scorer": draw.choice(({"type": "shipped"}, None))}}  # fmt: skip
    path = write(folder / "stage.yaml", dumped(config))
    made = command("data", str(path), *more)
    if made.code == 0:
        final = (Path(os.environ["HORNBOOK_ROOT"]) / "runs/stage/data").resolve()
        account = json.loads((final / "data.report.json").read_text())
        _sums_to_zero(read_manifest(final), account, len(good))
        sizes = [path.stat().st_size for path in (folder / "odd/in").rglob("*") if path.is_file()]
        files = account["sources"]["odd"]["files"]
        equal((files["found"], files["bytes"]["found"]), (len(sizes), sum(sizes)), "not every file is in the account")
    elif "max_unreadable" not in made.said:
        raise Wrong("stopped: a data stage with good documents beside damage", made.said[-1500:])


def _sums_to_zero(manifest: dict[str, Any], account: dict[str, Any], good: int) -> None:
    documents = manifest["documents"]
    parts = documents["kept"] + sum(documents["dropped"].values()) + documents["unreadable"]
    equal(parts, documents["read"], "the account of the manifest does not sum to zero")
    if documents["read"] < good + 1:
        raise Wrong("a damaged source is in no account", str(documents))
    funnel = account["funnel"]
    left = funnel["read"]
    for step in funnel["steps"]:
        left = {unit: left[unit] - sum(drop[unit] for drop in step["drops"]) for unit in left}
        equal({unit: step["left"][unit] for unit in left}, left, f"the funnel does not sum up at {step['step']}")
    equal(funnel["kept"], left, "the funnel does not sum to zero")


def _damage_json(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(dumped(mutate_value(json.loads(data), draw)) if draw.random() < 0.7 else mutate(data, draw))


def _damage_lines(path: Path, draw: random.Random) -> None:
    """One line of another type or of other values, the bytes, or lines that are repeated or in another order."""
    data = path.read_bytes()
    lines, way = data.splitlines(), draw.random()
    if way < 0.45 and lines:
        at = draw.randrange(len(lines))
        lines[at] = dumped(mutate_value(json.loads(lines[at]), draw) if draw.random() < 0.8 else odd(draw))
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif way < 0.6:
        path.write_bytes(b"\n".join(draw.choices(lines, k=len(lines))) + b"\n")
    else:
        path.write_bytes(mutate(data, draw))


WORDS = (
    "1:30", "12:00:00", "010", "0x10", "1_000", "no", "on", "~", "null", "", "1e3", "1e999", ".inf", "-.inf", ".nan",
    "-1", "0", "0.5", "[]", "{}", "[1,2]", "{a: 1}", "a,b", "${name}", "${oc.env:HOME}", "!!python/name:os.system",
    "&a 1", "*a", "'", '"', "[", "{", ": ", "- ", "#", "true", "True", "yes", "2026-01-02", "9" * 400, "x" * 5_000,
    "\u2028", "../..", "a/b", "/", ".", "..", "ü", "6h", "500M", "a b", "tiny", "none", "lora", "exact", "muon",
)  # fmt: skip


def config(draw: random.Random, folder: Path) -> None:
    """A YAML file: values of other types, or the text damaged."""
    text = draw.choice(_examples())
    if draw.random() < 0.65:
        data = _as_yaml(mutate_value(yaml.safe_load(text), draw))
    else:
        data = mutate(text.encode(), draw)
    path = write(folder / "config.yaml", data)
    _asked(str(path), [], draw)


def overrides(draw: random.Random, folder: Path) -> None:
    """One to three words of the command line, on any key that there is or that there might be."""
    from pipeline.config import key_kinds

    keys = [*key_kinds(), "data.sources.web.path", "data.sources.web.where", "data.sources.web.limit_documents",
            "data.filters.length.min_characters", "data.filters.quality.min_score", "data.sources.new.type",
            "data.sources.web.license", "data.sources.web.weight", "data.sources.web.metadata_keys"]  # fmt: skip
    words = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        key, way = draw.choice(keys), draw.random()
        if way < 0.08:
            key = mutate(key.encode(), draw).decode("utf-8", "replace").replace("\0", "")[:300]
        value = draw.choice((draw.choice(WORDS), str(odd(draw))[:2_000])).replace("\0", "")
        words.append(f"{key}={value}".encode("utf-8", "replace").decode())
    _asked(str(PREPARED / "fuzz.yaml"), [word for word in words if not word.startswith("-")], draw)


def _as_yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")
    except RecursionError:  # of PyYAML, on what is too deep for it
        return dumped(value)


def study(draw: random.Random, folder: Path) -> None:
    text = draw.choice([path.read_text() for path in sorted((_root() / "configs/studies").glob("*.yaml"))])
    text = text.replace("base: ../", f"base: {_root() / 'configs'}/")
    if draw.random() < 0.65:
        data = _as_yaml(mutate_value(yaml.safe_load(text), draw))
    else:
        data = mutate(text.encode(), draw)
    command("study", str(write(folder / "study.yaml", data)), "--dry-run", *draw.choice(((), ("--json",))))


def _asked(path: str, words: list[str], draw: random.Random) -> None:
    way = draw.random()
    if way < 0.5:
        _is_read_again(path, words)
    elif way < 0.85:
        command(draw.choice(schema.STAGES), path, *words, "--dry-run", *draw.choice(((), ("--json",))))
    else:
        ways: list[Callable[[], Any]] = [
            lambda: command("where", draw.choice(schema.STAGES), path, *words),
            lambda: command("submit", path, *words, "--dry-run"),
            lambda: command("report", path, *words),
            lambda: command("data", path, *words, "--limit", draw.choice(("1", "0", "-1", "x", "1.5"))),
        ]
        draw.choice(ways)()


def _is_read_again(path: str, words: list[str]) -> None:
    """A resolved config, printed, is the same config."""
    from pipeline import config as configs

    def twice() -> tuple[Any, Any]:
        first = configs.load(path, words)
        again = Path("again.yaml")
        again.write_text(configs.to_yaml(first), encoding="utf-8")
        return configs.to_values(first), configs.to_values(configs.load(again))

    made = run(twice)
    if made.code == 0:
        equal(repr(made.value[0]), repr(made.value[1]), "a printed config is read as another one")
    elif "again.yaml" in made.said:
        raise Wrong("a printed config is refused", made.said[-1500:])


def _examples() -> list[str]:
    files = sorted((_root() / "configs").glob("*.yaml"))
    texts = [path.read_text() for path in files if path.name not in ("gpus.yaml",) and "base:" not in path.read_text()]
    own = (PREPARED / "fuzz.yaml").read_text()
    return [own] * len(texts) + texts


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


# Conditions: drawn with what they mean, and judged by both

Judge = Callable[[dict[str, Any]], bool | None]  # None: unknown, as in SQL
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def where(draw: random.Random, folder: Path) -> None:
    """A condition on records: what it means is what is read; a damaged one is refused with its place, or counted."""
    from pipeline.corpus.steps import make_source
    from pipeline.corpus.text.documents import SetAside

    values: list[Any] = [None, 0, 1, 2.5, -3, "en", "de", "it's", "", True, False, "3", [1], {"a": 1}]
    drawn = ((f"text {i}", *draw.choices(values, k=3)) for i in range(12))
    records = [{"text": text, "score": score, "lang": lang, "meta": {"n": n}} for text, score, lang, n in drawn]
    path = write(folder / "in/a.jsonl", b"\n".join(map(dumped, records)))
    text, judge = _condition(draw, draw.choice((0, 1, 2, 4)))
    sound = draw.random() < 0.6
    if not sound:
        text = mutate(text.encode(), draw).decode("utf-8", "replace").replace("\0", " ")
    options = {"type": "jsonl", "path": str(path), "where": text}
    made = run(lambda: list(make_source(options, "data.sources.web").documents(0, 1)))
    if made.code == 0:
        equal(len(made.value), len(records), "records outside of a condition are not counted")
        if sound:
            found = [item.text for item in made.value if not isinstance(item, SetAside)]
            equal(found, [r["text"] for r in records if judge(r)], f"the condition {text}")
    elif sound or "where" not in made.said:
        raise Wrong("a condition is refused" if sound else "a refusal that does not say where", f"{text}\n{made.said}")


def _condition(draw: random.Random, depth: int) -> tuple[str, Judge]:
    if depth == 0:
        return _test(draw)
    parts = [_condition(draw, depth - 1) for _ in range(draw.choice((1, 2, 2, 3)))]
    word = draw.choice(("and", "or", "AND", "Or"))
    text = f" {word} ".join(f"({part})" for part, _ in parts)
    every = word.lower() == "and"

    def judge(record: dict[str, Any]) -> bool | None:
        found = [part(record) for _, part in parts]
        if (not every) in found:  # one true decides an or, one false an and
            return not every
        return None if None in found else every

    if draw.random() < 0.3:
        return f"not ({text})", lambda record: None if (found := judge(record)) is None else not found
    return text, judge


def _test(draw: random.Random) -> tuple[str, Judge]:
    field = draw.choice(("score", "lang", "meta.n"))

    def value_of(record: dict[str, Any]) -> Any:
        return record["meta"]["n"] if field == "meta.n" else record[field]

    if draw.random() < 0.2:
        negated = draw.random() < 0.5
        return f"{field} is {'not ' * negated}null", lambda record: (value_of(record) is None) != negated
    wanted = draw.choice((0, 1, 2.5, -3, "en", "it's", "", True, False))
    kinds = bool if isinstance(wanted, bool) else str if isinstance(wanted, str) else int | float
    written = str(wanted).lower() if isinstance(wanted, bool) else f'"{wanted}"' if kinds is str else f"{wanted}"
    sign = draw.choice(("==", "!=") if kinds is bool else tuple(_COMPARED))

    def judge(record: dict[str, Any]) -> bool | None:
        found = value_of(record)
        if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(wanted, bool):
            return None
        return _COMPARED[sign](found, wanted)

    return f"{field} {sign} {written}", judge
