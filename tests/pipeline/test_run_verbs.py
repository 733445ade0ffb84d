"""The verbs that look at what has been made: runs, clean, compare, batch, doctor."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from test_pretrain import Small, small_inputs  # noqa: F401 - fixtures

from pipeline import __main__ as command
from pipeline import clean, compare, doctor, retrack, runs, show_batch
from pipeline.config import from_values
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.remote import place
from pipeline.run_stage import run_stage
from pipeline.stages import pretrain_step
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import write_json
from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import read_manifest
from pipeline.system import signals
from pipeline.system.errors import WRONG_INPUT, UserError
from pipeline.training.batches import TokenBatches

SHAPE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 2}  # fmt: skip
SHORT = ("budget.max_tokens=10_240", "train.precision=32-true")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A root with one finished run of 20 steps."""
    return tmp_path_factory.mktemp("template")


@pytest.fixture
def trained(template: Path, tmp_path: Path, monkeypatch) -> Small:
    """A copy of it, to change at will."""
    if not any(template.iterdir()):
        monkeypatch.setenv("HORNBOOK_ROOT", str(template))
        Small(template).run_here(*SHORT, "budget.gpu_hour_price=2")
    root = tmp_path / "root"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.setenv("HORNBOOK_ROOT", str(root))
    return Small(root)


def test_runs_says_what_there_is(root):
    assert "no experiments" in runs.show([])
    with pytest.raises(UserError, match=r"no experiment 'smal'.*none yet"):
        runs.load("smal")


def test_runs_shows_states_hours_and_loss(trained: Small):
    [row] = [runs.facts(name) for name in runs.names()]
    manifest = read_manifest(trained.folder)
    assert row["name"] == "small"
    assert row["stages"]["pretrain"]["state"] == "done"
    assert row["tokens_seen"] == 10_240
    assert row["bits_per_byte"] == manifest["val_bits_per_byte"]
    assert row["gpu_hours"] == pytest.approx(manifest["gpu_hours"], rel=0.5)
    assert row["bytes"] > 100_000
    assert f"{row['bits_per_byte']:.4f}" in runs.show([row])
    (trained.folder / "manifest.json").unlink()
    assert runs.facts("small")["stages"]["pretrain"]["state"] in ("running", "stopped")  # this process wrote its lock
    with pytest.raises(UserError, match="did you mean 'small'"):
        runs.load("smal")
    assert runs.load("small").model == trained.config().model


def test_clean_removes_what_no_experiment_needs_and_nothing_else(trained: Small, monkeypatch):
    monkeypatch.delenv("HORNBOOK_REMOTE", raising=False)
    orphan = trained.root / "artifacts" / "pretrain" / "0123456789ab"
    orphan.mkdir()
    (orphan / "weights").write_bytes(b"x" * 1000)
    planned = clean.plan()
    assert [row["path"] for row in planned["folders"]] == [str(orphan)]
    assert planned["bytes"] == 1000
    assert "--yes" in clean.show(planned, removed=False)
    assert "copies" not in clean.show(planned, removed=False)
    monkeypatch.setenv("HORNBOOK_REMOTE", "s3://me:secret@bucket/folder")
    assert "copies at s3://bucket/folder stay" in clean.show(planned, removed=True)
    assert orphan.is_dir()
    with FolderLock(orphan, wait=False):
        assert len(clean.remove(planned)) == 1  # in use
        assert orphan.is_dir()
    assert clean.remove(planned) == []
    assert not orphan.exists()
    assert clean.plan()["folders"] == []
    assert (trained.folder / "manifest.json").is_file()


def test_clean_forgets_an_experiment_but_keeps_what_another_descends_from(trained: Small):
    branch_folder = trained.root / "runs" / "small" / "branch-9K"
    values = trained.config("budget.max_tokens=9000")
    values.name, values.budget.branch_of = "small/branch-9K", f"{trained.folder.name}@9K"
    branch_folder.mkdir(parents=True)
    from pipeline import config as configs

    (branch_folder / "config.yaml").write_text(configs.to_yaml(values))
    trunk = str(trained.folder)
    assert trunk not in [row["path"] for row in clean.plan(["small"])["folders"]]  # the branch goes on from it
    clean.remove({"folders": [], "experiments": [str(trained.root / "runs" / "small")]})
    assert runs.names() == ["small/branch-9K"]
    gone = clean.plan(["small/branch-9K"])
    assert trunk in [row["path"] for row in gone["folders"]]
    clean.remove(gone)
    assert not trained.folder.exists()
    assert runs.names() == []
    with pytest.raises(UserError, match="no experiment 'other'"):
        clean.plan(["other"])


def test_compare_shows_differences_figures_and_curves(trained: Small):
    other = trained.config(*SHORT, "name=other", "train.learning_rate=1e-4", "budget.gpu_hour_price=2")

    run_stage("pretrain", other, "other")
    facts = compare.compare("small", "other")
    assert facts["differences"] == {"train.learning_rate": [2e-3, 1e-4]}
    assert facts["figures"]["tokens"] == [10_240, 10_240]
    better = facts["equal_loss"]
    assert better["better"] == 0  # 1e-4 is far too low for 20 steps
    assert 0 < better["tokens"] < 1
    page = compare.write_page(facts)
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "http" not in text
    assert "learning_rate" in compare.show(facts, page)
    figures = {"95% interval": [[0.91234, 1.25], None], "  web": [0.0, 1.5]}  # of runs with enough held-out documents
    shown = compare.show({**facts, "figures": figures}, page)
    assert "0.9123 to 1.2500" in shown
    assert compare.write_page({**facts, "figures": figures}).read_text().count("0.9123 to 1.2500") == 1
    (trained.root / "runs" / "fresh").mkdir()
    (trained.root / "runs" / "fresh" / "config.yaml").write_text((trained.root / "runs/small/config.yaml").read_text())
    with pytest.raises(UserError, match=r"no experiment 'fesh'.*'fresh'"):
        compare.compare("small", "fesh")


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_batch_shows_the_tokens_that_the_step_trains_on(trained: Small, packing):
    config = trained.config(*SHORT, f"train.packing={packing}")
    facts = show_batch.pieces(config, 7)
    shards = TokenShards.open(pretrain_step(config).inputs["data"].path)  # type: ignore[union-attr]
    inputs = TokenBatches(shards.train, config).batch(6).input_ids_BT
    tokenizer = load_tokenizer(shards.tokenizer_path)
    for sequence in {piece["sequence"] for piece in facts["pieces"]}:
        own = [piece for piece in facts["pieces"] if piece["sequence"] == sequence]
        row = inputs[sequence - 6 * 8][: sum(piece["tokens"] for piece in own)]
        shown = "".join(piece["text"] for piece in own)
        assert shown.startswith(tokenizer.decode(row[:40].tolist(), skip_special_tokens=False)[:60])
    assert {piece["source"] for piece in facts["pieces"]} <= {"code", "more"}
    assert all(piece["score"] == 0.5 for piece in facts["pieces"])
    documents = {(p["source"], p["document"]) for p in facts["pieces"]}
    assert all(0 <= d < shards.train[s].n_documents for s, d in documents)
    assert re.search(r"step 7, (before|in) the decay", show_batch.show(facts))


def test_batch_with_a_step_that_is_none_says_so(trained: Small):
    with pytest.raises(UserError, match="first step is 1"):
        show_batch.pieces(trained.config(), 0)
    with pytest.raises(UserError, match=r"max_epochs ends the text after step"):
        show_batch.pieces(trained.config("train.max_epochs=1"), 10**6)


def test_places_of_a_selection_lie_in_the_whole(trained: Small):
    config = trained.config(*SHORT, "train.decay_min_score=0.4")
    shards = TokenShards.open(pretrain_step(config).inputs["data"].path)  # type: ignore[union-attr]
    batches = TokenBatches(shards.train, config)
    for name, stream in batches.streams.items():
        tokens = shards.train[name.partition(" (best)")[0]]
        ids, _ = stream.windows(np.array([0]))
        assert np.array_equal(tokens.tokens[stream.places(0)][: ids.shape[1]], ids[0][: len(stream.places(0))])


def test_doctor_says_what_is_used_and_what_is_missing(root, monkeypatch):
    findings = doctor.examine()
    names = [f.name for f in findings]
    assert {"python", "torch", "will use", "memory", "disk", "sandbox", "slurm", "wandb"} <= set(names)
    assert all(f.fix for f in findings if f.state == doctor.MISSING)
    assert json.loads(json.dumps(doctor.as_json(findings)))["findings"]
    monkeypatch.setitem(doctor.EXTRAS, "none", (("no_such_module",), "nothing"))
    extra = next(f for f in doctor._extras() if f.name == "extra none")
    assert (extra.state, "no_such_module" in extra.found, "[none]" in extra.fix) == (doctor.MISSING, True, True)


def test_doctor_says_whether_the_remote_answers(root, tmp_path, monkeypatch):
    monkeypatch.delenv("HORNBOOK_REMOTE", raising=False)
    assert (doctor._remote().state, "not set" in doctor._remote().found) == (doctor.NOTE, True)
    (tmp_path / "there" / "runs" / "small").mkdir(parents=True)
    monkeypatch.setenv("HORNBOOK_REMOTE", f"file://{tmp_path}/there")
    found = doctor._remote()
    assert (found.state, "1 experiments there" in found.found) == (doctor.OK, True)
    monkeypatch.setenv("HORNBOOK_REMOTE", "nosuch://me:secret@host/x")
    found = doctor._remote()
    assert (found.state, "nosuch" in found.found, "secret" in found.found) == (doctor.MISSING, True, False)
    hanging = threading.Event()
    monkeypatch.setattr(place.Place, "names", lambda *_: [str(hanging.wait(5))])
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.1)
    assert "no answer" in doctor._remote().found
    hanging.set()


@pytest.mark.parametrize("to", ["wandb", "tensorboard"])
def test_sync_writes_the_mirror_anew_from_the_record(trained: Small, to):
    before = (trained.folder / "metrics.jsonl").read_bytes()
    config = trained.config(*SHORT, f"tracking.to={to}")
    said = retrack.run(config)
    assert re.search(r"sync: \d+ rows of small", said)
    if to == "wandb":
        [upload] = re.findall(r"wandb sync (\S+)\)", said)
        assert list(Path("/").glob(upload[1:])), "the folder that it names is there"
    assert any((trained.root / "runs" / "small" / to).iterdir())
    assert (trained.folder / "metrics.jsonl").read_bytes() == before
    config.tracking.to = "none"
    with pytest.raises(UserError, match="nothing to write"):
        retrack.run(config)


def test_batch_refuses_a_step_that_the_run_does_not_have(trained: Small):
    run = trained.config(*SHORT)
    last = read_manifest(pretrain_step(run).path)["steps"]
    assert show_batch.pieces(run, last)["pieces"]
    for step in (last + 1, 99_999, 10**30):
        with pytest.raises(UserError, match=rf"expected 1 to {last:,} \(the run 'small' ended then\)"):
            show_batch.pieces(run, step)
    with pytest.raises(UserError, match=r"expected 1 to 30 \(budget\.max_tokens ends the run then\)"):
        show_batch.pieces(trained.config("budget.max_tokens=15_360"), 31)
    with pytest.raises(UserError, match="no run is longer"):
        show_batch.pieces(trained.config("budget.max_tokens=null", "budget.max_gpu_hours=1"), 10**30)


NUMBERS = [
    ["sample", "small", "--max-new-tokens=0"],
    ["sample", "small", "--max-new-tokens=-5"],
    ["sample", "small", "--temperature=-1"],
    ["sample", "small", "--temperature=nan"],
    ["batch", "small", "--step=-3"],
    ["batch", "small", "--step=99999"],
    ["pretrain", "small", "--branch=0h"],
    ["pretrain", "small", "--branch=-5h"],
    ["pretrain", "small", "--branch=0.00001K"],
    ["pretrain", "small", f"--branch={'9' * 400}h"],
    ["data", "small", "--limit=0"],
    ["data", "small", "--limit=-1"],
    ["label", "small", "--documents=0"],
    ["label", "small", "--concurrency=-1"],
    ["label", "small", "--max-dollars=-1", "--price-in=1"],
    ["label", "small", "--max-dollars=nan", "--price-in=1"],
    ["label", "small", "--price-in=-1"],
    ["submit", "small", "--cpus-per-task=0", "--dry-run"],
    ["submit", "small", "--notice=-1", "--dry-run"],
    ["study", "small", "--slurm", "--at-once=0"],
]


@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_a_number_out_of_range_is_refused(trained: Small, words, capsys, monkeypatch):
    monkeypatch.setattr(signals, "install", lambda: None)
    assert command.run_guarded(command.parse(words)) == WRONG_INPUT
    error = capsys.readouterr().err
    assert error.startswith("hornbook: ")
    assert error.count("\n") == 1
    assert len(error) < 1000


@pytest.mark.parametrize(
    "words",
    [["report"], ["sample", "--max-new-tokens=2"], ["batch", "--step=1"], ["where", "pretrain"], ["pretrain"],
     ["sync", "--to=tensorboard"]],
    ids=" ".join,
)  # fmt: skip
def test_every_verb_takes_the_name_of_a_run(trained: Small, words, capsys, monkeypatch):
    monkeypatch.setattr(signals, "install", lambda: None)
    verb, *more = words
    line = [verb, *more, "small"] if verb == "where" else [verb, "small", *more]
    code = command.run_guarded(command.parse(line))
    assert code == 0, capsys.readouterr().err


def test_a_name_that_no_run_has_names_those_there_are(trained: Small):
    with pytest.raises(UserError, match=r"no experiment 'smal'.*did you mean 'small'"):
        runs.load("smal")


def test_a_link_leads_where_it_led_until_something_is_saved(root):
    experiment = Experiment(from_values({"name": "x", "model": SHAPE}, "test"))
    done, begun = root / "artifacts" / "finetune" / "done", root / "artifacts" / "finetune" / "begun"
    for folder in (done, begun):
        folder.mkdir(parents=True)
    write_json(done / "manifest.json", {"name": "x", "inputs": {}, "outputs": {}, "config": {}, "finished": "2026"})
    with pytest.raises(UserError, match="bad input"), experiment.linked("finetune", begun):
        raise UserError("bad input")
    assert experiment.stage_folder("finetune") is None  # it led nowhere before
    experiment.link("finetune", done)
    with pytest.raises(UserError, match="bad input"), experiment.linked("finetune", begun):
        raise UserError("bad input")
    assert experiment.stage_folder("finetune") == done.resolve()
    (begun / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), experiment.linked("finetune", begun):
        raise KeyboardInterrupt
    assert experiment.stage_folder("finetune") == begun.resolve()
    experiment.record()
    assert clean.plan()["folders"] == []  # neither what was begun nor what was whole before it
