"""The main job from end to end, as a user types it, on a slice of the corpus: one chain of commands.

Slow (about two minutes on two cores): whole processes, real caps. CI runs the full `configs/tiny.yaml` besides.
"""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from processes import fork_seconds, hornbook

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "configs" / "tiny.yaml")
SLICE = (
    "data.sources.python_library.distributions=[mpmath,tqdm,omegaconf,packaging]",
    "data.sources.exercises.count=200",
    "data.tasks=4",
    "tracking.to=wandb",
    "train.learning_rate=1.0e-3",  # at 3e-3 a grown model needs more steps than a busy machine has time for
)


class Shell:
    """Runs `hornbook` in one root, with tiny and the slice of it. `init` starts the source's stages as processes that
    import everything, so the source's cap is so many starts and its time to train."""

    def __init__(self, root: Path, start_seconds: float, fork_seconds: float):
        self.root, self.cap = root, f"budget.max_gpu_hours={(36 + 10 * fork_seconds) / 3600:.5f}"
        source_cap = f"init.source_overrides.budget.max_gpu_hours={(8 + 5 * start_seconds) / 3600:.5f}"
        self.slice = (*SLICE, source_cap)
        self.said = ""

    def __call__(self, verb: str, *words: str, code: int = 0) -> str:
        done = hornbook(verb, TINY, *self.slice, *words, root=self.root, cwd=ROOT)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def manifest(self, stage: str) -> dict:
        return json.loads((self.root / "runs" / "tiny" / stage / "manifest.json").read_text())


@pytest.fixture(scope="module")
def shell(tmp_path_factory, start_seconds: float) -> Shell:
    """After `data`, `init` (which trains its source) and `pretrain`."""
    shell = Shell(tmp_path_factory.mktemp("root"), start_seconds, fork_seconds())
    for stage in ("data", "init", "pretrain"):
        said = shell(stage, shell.cap)
        assert f"{stage}: done" in said
        shell.said += said
    return shell


def test_every_document_is_accounted_for(shell):
    facts = shell.manifest("data")["documents"]
    assert facts["read"] == facts["kept"] + sum(facts["dropped"].values()) + facts["unreadable"]
    assert facts["kept"] > 500


def test_growth_kept_what_the_source_knew(shell):
    init, source = shell.manifest("init"), json.loads(
        (shell.root / "runs" / "tiny-source" / "pretrain" / "manifest.json").read_text()
    )  # fmt: skip
    assert init["function_preserving"]
    assert init["max_rel_logit_diff"] <= 1e-5
    assert init["grown_bits_per_byte"] == pytest.approx(init["source_bits_per_byte"], abs=1e-3)
    assert source["annealed"]
    assert source["inputs"]["data"]["fingerprint"] == shell.manifest("data")["fingerprint"]


def test_pretraining_ends_annealed_inside_its_cap_and_better_than_it_began(shell):
    facts = shell.manifest("pretrain")
    assert facts["annealed"]
    assert facts["gpu_hours_total"] <= facts["max_gpu_hours"]
    assert facts["val_bits_per_byte"] < facts["initial_val_bits_per_byte"]
    ledger = [json.loads(line) for line in (shell.root / "runs" / "tiny" / "ledger.jsonl").read_text().splitlines()]
    seconds = max(line["seconds"] for line in ledger if line["stage"] == "pretrain")
    assert seconds <= 3600 * facts["max_gpu_hours"]
    assert {line["stage"] for line in ledger} == {"data", "init", "pretrain"}


def test_metrics_have_their_names_and_wandb_ran_without_a_key(shell):
    folder = shell.root / "runs" / "tiny"
    rows = [json.loads(line) for line in (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    names = set().union(*rows)
    assert {"train/loss", "train/lr", "train/grad_norm", "val/bits_per_byte", "val/textbook/bits_per_byte"} <= names
    assert {"perf/tokens_per_second", "perf/mfu", "perf/peak_memory_bytes"} <= names
    assert {"budget/gpu_hours", "budget/tokens", "budget/fraction"} <= names
    assert list((folder / "wandb").glob("offline-run-*"))


def test_the_model_loads_in_transformers_with_our_logits_and_writes_text(shell):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.hf import load_network

    folder = shell.root / "runs" / "tiny" / "pretrain" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = tokenizer("def add(a, b):\n    return a", return_tensors="pt").input_ids
    with torch.no_grad():
        ours, expected = load_network(folder)(ids), theirs(ids).logits
    assert torch.allclose(ours, expected, atol=1e-4)
    assert theirs.generate(ids, max_new_tokens=8, do_sample=False).shape[1] > ids.shape[1]


def test_a_second_run_finds_everything_done_quickly(shell):
    started = time.monotonic()
    for stage in ("data", "init", "pretrain"):
        assert f"{stage}: up to date" in shell(stage, shell.cap)
    assert time.monotonic() - started < 30  # under 10 s on an idle machine


def test_what_the_readme_prints_is_what_the_stages_print(shell):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```\n(.*?)```", readme, flags=re.S) if "pretrain: done" in b)
    printed = {_shape(line) for line in shell.said.splitlines()}
    assert [line for line in block.splitlines() if _shape(line) not in printed] == []


def _shape(line: str) -> str:
    """The line without its figures: times and numbers become signs, runs of blanks one blank."""
    line = re.sub(r"(\d+ h )?(\d+ min )?[\d.]+ s\b", "TIME", line)
    line = re.sub(r"\d[\d.,]*(e[+-]\d+)?", "#", line)
    return " ".join(line.split())


class Tags(HTMLParser):
    """Every element of a page: its name and the names of its attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, set[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name for name, _ in attrs}))


def test_a_sample_is_streamed_and_the_report_is_written(shell):
    assert "import" in shell("sample", shell.cap, "--prompt", "import os", "--max-new-tokens", "8")
    page = (shell.root / "runs" / "tiny" / "report.html").read_text()
    for word in ("<svg", "Pretraining", "Initialization", "Why documents were dropped", "Hours"):
        assert word in page
    names, attributes = zip(*Tags(page).found, strict=True)
    assert not {"link", "img", "iframe"} & set(names)  # it opens without a network
    assert "src" not in set().union(*attributes)


def test_a_changed_late_setting_keeps_the_early_steps(shell):
    facts = json.loads(shell("data", shell.cap, "data.filters.quality.min_score=0.6", "--dry-run", "--json"))
    done = {s["step"]: s["done"] for s in facts["stages"][0]["steps"]}
    assert not done["data-cut"]
    assert not done["data"]
    assert all(state for name, state in done.items() if name not in ("data-cut", "data"))


def test_a_raised_cap_goes_on_from_before_the_decay(shell):
    before = shell.manifest("pretrain")
    raised = 2.2 * before["max_gpu_hours"]
    said = shell("pretrain", f"budget.max_gpu_hours={raised}")
    after = shell.manifest("pretrain")
    assert "before the decay" in said
    assert after["fingerprint"] == before["fingerprint"]
    assert after["tokens_seen"] > before["tokens_seen"]
    assert after["annealed"]
    assert after["gpu_hours_total"] <= raised
    assert "up to date" in shell("pretrain", shell.cap)  # a smaller cap does nothing to a finished run
