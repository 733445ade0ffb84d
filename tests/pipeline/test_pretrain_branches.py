"""Branches: annealed models for other budgets out of one trunk, with its data position and its seconds."""

import shutil
from pathlib import Path

import pytest
from test_pretrain import Small, cap_seconds, driver, hours, small, small_inputs  # noqa: F401 - fixtures

from pipeline import config as configs
from pipeline.config import Config
from pipeline.run_stage import run_stage
from pipeline.stages import pretrain_step
from pipeline.storage.files import read_json_lines
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError
from pipeline.training.branching import branch, planned
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.decisions import Decisions

EXACT = "train.precision=32-true"


def branched(trunk: Small, budget: str, *overrides: str) -> Config:
    config = trunk.config(*overrides)
    return branch(config, budget, lambda: pretrain_step(config).fingerprint)


def run_branch(trunk: Small, budget: str, *overrides: str) -> tuple[dict, list[dict]]:
    config = branched(trunk, budget, *overrides)
    run_stage("pretrain", config, str(trunk.path))
    folder = pretrain_step(config).path
    return read_manifest(folder), read_json_lines(folder / "metrics.jsonl")


def test_a_branch_in_tokens_equals_the_run_that_had_this_limit_from_the_start(small: Small, tmp_path, monkeypatch):  # noqa: F811
    trunk = small.run_here("budget.max_tokens=40_960", "budget.branches=[20.48K, 30.72K]", EXACT)
    before = {p: p.stat().st_mtime_ns for p in small.folder.rglob("*") if p.is_file()}
    names = {p.name for p in (small.folder / "checkpoints").iterdir()}
    assert {"step-00000028", "step-00000042", "step-00000056"} <= names  # for the branches, and before its own decay
    shorter, rows = run_branch(small, "20.48K", EXACT)
    assert (shorter["steps"], shorter["annealed"], shorter["stopped_by"]) == (40, True, "tokens")
    assert shorter["trunk"]["fingerprint"] == small.folder.name
    assert shorter["trunk"]["steps"] == 28
    assert shorter["trunk"]["gpu_hours"] < shorter["gpu_hours_total"]
    assert [row["step"] for row in rows] == list(range(41))
    assert {p: p.stat().st_mtime_ns for p in small.folder.rglob("*") if p.is_file()} == before
    assert read_manifest(small.folder) == trunk
    longer, _ = run_branch(small, "30.72K", EXACT)
    assert longer["trunk"]["steps"] == 42
    assert (small.root / "runs/small/branch-20.48K/pretrain/model/config.json").is_file()

    root = tmp_path / "direct"
    root.mkdir()
    monkeypatch.setenv("HORNBOOK_ROOT", str(root))
    direct = Small(root)
    expected = direct.run_here("budget.max_tokens=20_480", EXACT)
    assert [r["train/loss"] for r in direct.rows()[1:]] == [r["train/loss"] for r in rows[1:]]
    assert expected["content_hash"] == shorter["content_hash"]


def test_a_branch_in_time_ends_annealed_inside_its_cap_which_counts_the_trunks_seconds(
    small: Small,  # noqa: F811
    cap_seconds: float,  # noqa: F811
):
    # A process' start is counted: beside other tests it takes seconds.
    branch_seconds = round(2 * cap_seconds + 3)
    budget, trunk = f"{branch_seconds}s", hours(1.5 * branch_seconds)
    code, output, _ = small.command(trunk, f"budget.branches=[{budget}]", "train.checkpoint_every_seconds=1000")
    assert code == 0, output
    point = Decisions(small.folder / "decisions.jsonl").of_kind("branch_point")
    assert [p["branch"] for p in point] == [budget]
    code, output, _ = small.command("--branch", budget)
    assert code == 0, output
    manifest = read_manifest(pretrain_step(branched(small, budget)).path)
    assert manifest["annealed"]
    assert manifest["trunk"]["steps"] == point[0]["step"]
    assert manifest["trunk"]["gpu_hours"] < manifest["gpu_hours_total"] <= branch_seconds / 3600
    assert "of them the trunk's" in output
    code, output, _ = small.command("--branch", budget)
    assert (code, "up to date" in output) == (0, True), output


@pytest.mark.slow
def test_a_running_trunk_can_be_branched_and_does_not_notice(small: Small):  # noqa: F811
    process = small.start("budget.max_tokens=4_000_000", "budget.branches=[20.48K]", EXACT)
    try:
        small.wait_for_step(60, process)
        manifest, rows = run_branch(small, "20.48K", EXACT)
        assert process.poll() is None, process.communicate()[0]
    finally:
        process.kill()
        process.communicate()
    assert (manifest["steps"], manifest["annealed"], manifest["trunk"]["steps"]) == (40, True, 28)
    assert [row["step"] for row in rows] == list(range(41))


def test_a_checkpoint_that_a_running_trunk_prunes_meanwhile_is_replaced_by_the_next(
    small: Small,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    often = ("train.checkpoint_every_seconds=0.001", "train.keep_checkpoints=50", EXACT)
    small.run_here("budget.max_tokens=20_480", *often)
    plain, pruned = Checkpoints.adopt, []

    def adopt(self: Checkpoints, path: Path) -> None:
        if not pruned:
            pruned.append(path)
            shutil.rmtree(path)
        plain(self, path)

    monkeypatch.setattr(Checkpoints, "adopt", adopt)
    manifest, _ = run_branch(small, "15.36K", EXACT)
    assert int(pruned[0].name.split("-")[1]) == manifest["trunk"]["steps"] + 1
    assert (manifest["steps"], manifest["annealed"]) == (30, True)


def test_a_branch_that_cannot_be_cut_says_what_can(small: Small):  # noqa: F811
    with pytest.raises(UserError, match=r"no checkpoint to branch from.*without --branch first"):
        run_branch(small, "20K")
    small.run_here("budget.max_tokens=20_480", EXACT)
    with pytest.raises(UserError, match=r"too late.*14,336 tokens.*budget.branches"):
        run_branch(small, "10K", EXACT)
    for wrong in ("6", "h", "-1h", "0h", "6 days", "../6h", "1e9"):
        with pytest.raises(UserError, match=r"expected time"):
            branched(small, wrong, EXACT)
    with pytest.raises(UserError, match=r"budget.branches: '6d'"):
        planned(small.config("budget.branches=[6d]"))


def test_a_wrong_budget_is_refused_before_the_trunk_is_looked_for():
    """Else the answer to a typing error is that the source experiment is not trained yet."""

    def fingerprint() -> str:
        raise AssertionError("the trunk was looked for")

    config = configs.load(Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml")
    with pytest.raises(UserError, match="'hi' is no budget"):
        branch(config, "hi", fingerprint)
