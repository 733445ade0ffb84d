"""Tasks during pretraining change nothing but the hours, and public sets are read in the forms they come in."""

import json
import shutil
from pathlib import Path

import pytest
from after_model import model_of

from pipeline.evaluation.benchmarks import check_sets, score_sets
from pipeline.evaluation.during_training import SAMPLES
from pipeline.evaluation.language_model import load_model
from pipeline.run_stage import run_stage
from pipeline.stages import pretrain_step
from pipeline.storage.run_files import METRICS
from pipeline.storage.steps import read_manifest
from pipeline.system import signals
from pipeline.system.errors import UserError

ITEMS = [
    {"prompt": "import", "options": [" json", " qqqq"], "right": 0},
    {"ctx": "def f(x):", "endings": ["zzzz", "\n    return x"], "label": "1"},
    {"question": "1 + 1?", "choices": {"text": ["2", "77"], "label": ["A", "B"]}, "answerKey": "A"},
    {"goal": "sort a list", "sol1": "sorted(items)", "sol2": "%%%%", "label": 0},
]
SHORTER = ("budget.max_tokens=12_288", "seed=4")


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "public.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    return path


def _trained(config) -> tuple[Path, dict]:
    from making import build

    for step in pretrain_step(config).inputs.values():
        build(step, experiment="small")
    run_stage("pretrain", config, "small.yaml")
    signals.defer(False)
    folder = pretrain_step(config).path
    return folder, read_manifest(folder)


def _rows(folder: Path) -> dict[int, dict]:
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row for row in rows}


def test_tasks_sets_and_samples_come_every_so_many_tokens_and_the_model_is_the_same_to_the_bit(pretrained, public):
    words = ("evaluate.every_tokens=4_096", "evaluate.during=[cloze, arithmetic]", "evaluate.during_items=3",
             f"evaluate.sets.mine={public}")  # fmt: skip
    folder, watched = _trained(pretrained(*SHORTER, *words))
    rows = {step: row for step, row in _rows(folder).items() if any(name.startswith("tasks/") for name in row)}
    assert sorted(rows) == [4, 8]  # 1,024 tokens a step; the last step has the evaluate stage for that
    assert {"tasks/sets/mine", "tasks/arithmetic/1-digit sums/choice"} < set(rows[4])
    assert all(0 <= value <= 1 for row in rows.values() for name, value in row.items() if name.startswith("tasks/"))
    samples = [json.loads(line) for line in (folder / SAMPLES).read_text(encoding="utf-8").splitlines()]
    assert [(s["step"], s["prompt"]) for s in samples] == [(4, "def "), (8, "def ")]

    shutil.rmtree(folder)
    _, alone = _trained(pretrained(*SHORTER))
    assert watched["content_hash"] == alone["content_hash"]
    assert watched["tokens_sha256"] == alone["tokens_sha256"]


def test_a_round_ends_in_time_with_what_it_has(pretrained, monkeypatch):
    from pipeline.evaluation import during_training

    monkeypatch.setattr(during_training, "LONGEST_SECONDS", 0.0)
    folder, manifest = _trained(pretrained(*SHORTER, "evaluate.every_tokens=4_096"))
    assert manifest["steps"] == 12
    assert not any(name.startswith("tasks/") for row in _rows(folder).values() for name in row)
    assert not (folder / SAMPLES).exists()


def test_every_form_is_read_and_scored(pretrained, public):
    config = pretrained()
    model = load_model(config, model_of(config))
    check_sets({"mine": str(public)})
    found = score_sets({"mine": str(public)}, model, 10, seed=1)["sets/mine"]
    assert found["items"] == 4
    assert found["chance"] == 0.5
    assert found["score"] >= 0.5  # the wrong ones are no text at all

    import pyarrow
    from pyarrow import parquet

    table = public.with_suffix(".parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ITEMS[:1]), table)
    assert score_sets({"mine": str(table)}, model, 10, seed=1)["sets/mine"]["items"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "expected a .jsonl or .parquet file"),
        ("{no json", "line 1 is not JSON"),
        ('{"prompt": "a", "options": ["b"]}', "line 1 has prompt, options; expected"),
        ('{"prompt": "a", "options": ["b", "c"], "right": 7}', "line 1 .* expected"),
        ("[1, 2]", "line 1 has list; expected"),
    ],
)
def test_a_set_that_is_none_is_named(tmp_path, text, expected):
    path = tmp_path / "set.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"evaluate\.sets\.mine.*{expected}"):
        check_sets({"mine": str(path)})
