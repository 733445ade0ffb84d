"""A run whose steps grow: its token record, what a resumed one reads, its branches, its end by tokens."""

import shutil
from itertools import pairwise

import pytest
from test_pretrain import Small, small, small_inputs  # noqa: F401 - fixtures
from test_pretrain_branches import run_branch

from pipeline.training.mixing import StepSizes

# Steps of 1, 2, ... 8 windows of 64 tokens over the first 4,096 tokens.
GROWING = ("train.batch_start_tokens=64", "train.batch_warmup_tokens=4_096", "train.precision=32-true")
TOKENS = 10_240


@pytest.fixture
def growing(small: Small) -> Small:  # noqa: F811
    small.mix = GROWING
    return small


def test_tokens_are_recorded_as_read_and_a_resumed_run_equals_the_unbroken_one(growing: Small) -> None:
    often = ("train.checkpoint_every_seconds=0.001", "train.keep_checkpoints=50")
    first = growing.run_here(f"budget.max_tokens={TOKENS}", *GROWING, *often)
    sizes = StepSizes(growing.config(*GROWING).train)
    assert first["annealed"]
    assert first["steps"] == sizes.whole_steps(TOKENS // 64) > TOKENS // 512
    assert first["tokens_seen"] == sizes.tokens(first["steps"])
    assert TOKENS - 512 < first["tokens_seen"] <= TOKENS
    rows = growing.rows()
    assert [row["budget/tokens"] for row in rows] == [sizes.tokens(row["step"]) for row in rows]
    windows = [(b["budget/tokens"] - a["budget/tokens"]) // 64 for a, b in pairwise(rows)]
    assert (windows[0], windows[-1]) == (1, 8)
    assert windows == sorted(windows)
    read = growing.batches(*GROWING).epochs(sizes.first_sequence(first["steps"]))
    assert first["epochs"] == {name: round(value, 4) for name, value in read.items()}

    (growing.folder / "manifest.json").unlink()
    for path in (growing.folder / "checkpoints").glob("step-*"):
        if int(path.name.split("-")[1]) > 14:  # in the middle of the warm-up
            shutil.rmtree(path)
    assert windows[14] < 8
    second = growing.run_here(f"budget.max_tokens={TOKENS}", *GROWING, *often)
    assert second["lives"] == 2
    assert second["content_hash"] == first["content_hash"]
    assert [row["train/loss"] for row in growing.rows()[1:]] == [row["train/loss"] for row in rows[1:]]


def test_a_branch_of_a_growing_trunk_has_the_text_and_the_end_of_its_own_budget(growing: Small) -> None:
    growing.run_here("budget.max_tokens=10_240", "budget.branches=[5.12K]", *GROWING)
    sizes = StepSizes(growing.config(*GROWING).train)
    steps = sizes.whole_steps(5_120 // 64)
    shorter, rows = run_branch(growing, "5.12K", *GROWING)
    assert (shorter["steps"], shorter["annealed"], shorter["stopped_by"]) == (steps, True, "tokens")
    assert shorter["tokens_seen"] == rows[-1]["budget/tokens"] == sizes.tokens(steps)
    assert shorter["trunk"]["steps"] == steps - round(0.3 * steps)
