"""What a config can ask of the data stage: rules per source, weights, previews, decontamination, limits on loss."""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_corpus import fingerprints, made, make_config, prose, write_corpus

from pipeline import config as configs
from pipeline import score, stages
from pipeline.corpus.steps import make_source
from pipeline.corpus.text.documents import Table, read_decisions
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["networkx", "mpmath", "rich", "typer", "omegaconf", "tqdm", "pydantic", "fsspec", "aiohttp", "attrs"]


def two_sources(folder: Path, **second):
    a, b = write_corpus(folder / "a"), folder / "b" / "texts.jsonl"
    b.parent.mkdir(exist_ok=True)
    b.write_text("".join(json.dumps({"text": prose(i), "domain": f"d{i % 6}"}) + "\n" for i in range(500, 530)))
    shared = {"type": "jsonl", "group_key": "domain", "license": "MIT"}
    return {"web": {**shared, "path": str(a)}, "other": {**shared, "path": str(b), **second}}


def test_a_source_has_rules_of_its_own_laid_over_the_common_ones(root):
    own = {"length": {"min_characters": 100_000}, "gopher_quality": None, "licence": None}
    manifest = made(make_config(root, data__sources=two_sources(root, license="Secret-1", filters=own)))
    assert manifest["sources"]["other"]["documents"] == 0
    assert manifest["documents"]["dropped"]["length"] >= 30
    assert manifest["sources"]["web"]["documents"] > 40
    assert "licence" not in manifest["documents"]["dropped"]


def test_a_source_can_be_cut_elsewhere_or_not_at_all(root):
    config = make_config(root, data__sources=two_sources(root, filters={"quality": None}))
    step = stages.data_step(config).inputs["cut"]
    assert step.config["sources"] == ["web"]


def test_weights_and_rules_do_not_redo_the_reading(root):
    plain = fingerprints(make_config(root, data__sources=two_sources(root)))
    weighted = fingerprints(make_config(root, data__sources=two_sources(root, weight=2.5)))
    ruled = fingerprints(make_config(root, data__sources=two_sources(root, filters={"length": None})))
    assert weighted == plain
    kept = {"data-read/web", "data-read/other", "data-repair/"}
    assert {name for name in plain if plain[name] == ruled[name]} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, r"sources.other.weight is -1; expected a number of at least 0"),
        ({"weight": "much"}, r"sources.other.weight is 'much'"),
        ({"filters": ["length"]}, r"sources.other.filters is \['length'\]; expected a section"),
        ({"filters": {"lenght": {}}}, r"sources.other.filters.lenght: there is no 'lenght' \(did you mean 'length'"),
        ({"filters": {"length": {"min_chars": 2}}}, r"sources.other.filters.length: unknown option 'min_chars'"),
        ({"filters": {"personal_data": {}}}, r"data.mask_personal_data=false"),
    ],
)
def test_a_mistake_in_a_source_is_said_with_its_key(root, options, message):
    with pytest.raises(UserError, match=message):
        stages.data_step(make_config(root, data__sources=two_sources(root, **options)))


def test_masking_can_be_turned_off_and_is_counted_otherwise(root):
    path = root / "mail.jsonl"
    lines = [{"text": prose(i) + f"\nWrite to person{i}@company.com now.", "domain": f"d{i % 9}"} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"web": {"type": "jsonl", "path": str(path), "group_key": "domain", "license": "MIT"}}
    masked = made(make_config(root, data__sources=source))
    kept = made(make_config(root, data__sources=source, data__mask_personal_data=False))
    assert masked["masked"] == {"email": 40}
    assert kept["masked"] == {}
    assert masked["content_hash"] != kept["content_hash"]


def test_more_unreadable_than_allowed_stops_and_the_same_command_with_a_higher_limit_goes_on(root):
    corpus = write_corpus(root / "in")
    with pytest.raises(UserError, match=r"sources.web: 5.9% of it could not be read .*data.max_unreadable=0.07"):
        made(make_config(corpus, data__max_unreadable=0.05))
    assert made(make_config(corpus, data__max_unreadable=0.07))["documents"]["unreadable"] == 4


def test_a_text_with_an_evaluation_item_in_it_is_dropped_with_the_span(root):
    corpus = write_corpus(root / "in")
    question = "How many sheets of paper does a printer need for ninety books of forty pages each?"
    with open(corpus, "a", encoding="utf-8") as file:
        for i in range(8):
            text = prose(900 + i) + f"\nQ:  {question.upper()}\n" + prose(950 + i, 3)
            file.write(json.dumps({"text": text, "domain": f"leak{i}"}) + "\n")
    items = root / "items.jsonl"
    items.write_text(json.dumps({"question": question, "answer": "1800"}) + '\n{"question": "too short"}\n')
    config = make_config(corpus, data__decontamination={"files": [str(items)], "keys": ["question"]})
    manifest = made(config)
    held_out = read_manifest(stages.data_step(config).inputs["split"].path)["validation_groups"]["web"]
    leaks = 8 - sum(name.startswith("leak") for name in held_out)
    assert manifest["contamination"] == {"n": leaks, "items": 2, "items_too_short": 1, "ngram_words": 13}
    assert manifest["documents"]["dropped"]["contamination"] == leaks
    _, record = next(read_decisions(stages.data_step(config).inputs["contamination"].path, 3))
    assert record["detail"].startswith("items.jsonl:1: how many sheets of paper")
    assert (record["value"], record["threshold"]) == (16, 13)
    documents = manifest["documents"]
    assert documents["read"] == documents["kept"] + sum(documents["dropped"].values()) + documents["unreadable"]


def test_changed_items_redo_what_follows_and_missing_ones_are_an_error(root):
    corpus, items = write_corpus(root / "in"), root / "items.txt"
    items.write_text("one two three four five six seven eight nine ten\n\nanother item of at least eight words here\n")
    before = fingerprints(make_config(corpus, data__decontamination={"files": [str(items)]}))
    items.write_text("one two three four five six seven eight nine ten eleven\n")
    after = fingerprints(make_config(corpus, data__decontamination={"files": [str(items)]}))
    assert before["data-near-dedup/"] == after["data-near-dedup/"]
    assert before["data-contamination/"] != after["data-contamination/"]
    with pytest.raises(UserError, match=r"decontamination.files: nothing matches no\*.json"):
        stages.data_step(make_config(corpus, data__decontamination={"files": ["no*.json"]}))
    (root / "bad.jsonl").write_text("{broken")
    with pytest.raises(UserError, match=r"bad.jsonl, line 1 is not JSON"):
        made(make_config(corpus, data__decontamination={"files": [str(root / "bad.jsonl")]}))


def test_a_preview_is_an_experiment_of_its_own(root, capsys):
    config = make_config(write_corpus(root / "in"))
    run_stage("data", configs.preview(config, 20), "test.yaml")
    said = capsys.readouterr().out
    assert "next: hornbook data test.yaml" in said
    assert not (root / "runs" / "test" / "data").exists()
    facts = read_manifest((root / "runs" / "test" / "preview" / "data").resolve())
    assert facts["sources"]["web"]["read"] <= 20 + facts["documents"]["unreadable"]
    assert facts["sources"]["exercises"]["read"] <= 20
    with pytest.raises(UserError, match="--limit is 0"):
        configs.preview(config, 0)


def test_a_preview_takes_its_texts_from_all_files_and_folders_and_prints_the_share(root, capsys):
    for part in ("a", "b", "c"):
        (root / "docs" / part).mkdir(parents=True)
        for i in range(20):
            (root / "docs" / part / f"{i:02d}.md").write_text(prose(ord(part) * 100 + i))
    dumps = root / "dumps"
    dumps.mkdir()
    for number, lines in enumerate((5, 300)):
        records = [json.dumps({"text": prose(1000 * number + i), "n": i}) for i in range(lines)]
        (dumps / f"{number}.jsonl").write_text("\n".join(records) + "\n")
    sources = {
        "docs": {"type": "text", "path": str(root / "docs"), "license": "MIT"},
        "dumps": {"type": "jsonl", "path": str(dumps), "license": "MIT"},
        "exercises": {"type": "exercises", "count": 24},
    }
    config = configs.preview(make_config(root, data__sources=sources, data__filters={}), 12)
    run_stage("data", config, "test.yaml")
    said = capsys.readouterr().out
    assert "docs: 12 documents from 12 of 60 files (20.0% of the files)" in said
    assert "dumps: 11 of 305 documents (3.6%), from all 2 files" in said  # one file holds five
    step = stages.data_step(config)
    paths = [n.path for _, n in Table.load(step.input("repair").path).each_names(np.ones(12 + 11 + 12, dtype=bool))]
    assert {path[0] for path in paths if path[1:2] == "/"} == {"a", "b", "c"}
    lines = sorted(int(path.partition(":")[2]) for path in paths if path.startswith("1.jsonl"))
    assert len(lines) == 6
    assert lines[-1] > 200  # not the first ones
    assert np.diff(lines).max() < 100
    source = make_source(config.data.sources["dumps"], "dumps")
    drawn = [{item.id for task in range(n) for item in source.documents(task, n)} for n in (3, 7)]
    assert drawn[0] == drawn[1]  # whatever the shards


def test_scores_of_ones_own_texts_are_those_of_the_stage(tmp_path, monkeypatch, capfd):
    """On library text, which the shipped scorer is for; a file and a folder, and what cannot be read."""
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    library = {"type": "python_library", "distributions": PACKAGES, "standard_library": False}
    sources = {"lib": library}
    config = make_config(tmp_path, data__sources=sources, data__filters={"length": {}, "quality": {}})
    made_step = stages.data_step(config)
    run_stage("data", config, "test.yaml")
    capfd.readouterr()
    package = Path(__import__("networkx").__file__).parent / "generators"
    folder = tmp_path / "mine" / "networkx"
    shutil.copytree(package, folder)
    (folder / "bad.py").write_bytes(b"\xff\xfe x = 1")
    score.run(
        config, "test.yaml", [str(tmp_path / "mine"), str(folder / "atlas.py")], out=None, text_key=None, kind=None
    )
    out, said = capfd.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    scores = {r["path"]: r.get("score") for r in records}
    assert [r for r in records if "unreadable" in r] == [{"path": "networkx/bad.py", "unreadable": "not_utf8"}]
    assert scores["atlas.py"] == scores["networkx/atlas.py"]
    assert "1 unreadable" in said
    table = {n.path: i for i, n in enumerate(_names(made_step)) if n.path.startswith("site/networkx/generators/")}
    stage = _stage_scores(made_step)
    same = [
        p for p in table if f"networkx/{p.rsplit('/', 1)[1]}" in scores and stage[table[p]] > 0 and "/tests/" not in p
    ]
    assert len(same) > 15
    for path in same:
        assert scores[f"networkx/{path.rsplit('/', 1)[1]}"] == pytest.approx(stage[table[path]], abs=1.1e-4)


def _names(step):
    from pipeline.corpus.text.documents import Table

    table = Table.load(step.inputs["repair"].path)
    return [names for _, names in table.each_names(np.ones(len(table), dtype=bool))]


def _stage_scores(step):
    from pipeline.corpus.publishing import corpus_scores
    from pipeline.corpus.text.documents import Table
    from pipeline.storage.steps import Folder

    inputs = {name: s.path for name, s in step.inputs.items()}
    return corpus_scores(Folder(step.path, inputs), Table.load(inputs["repair"]))


def test_scoring_without_a_stage_or_a_scorer_says_what_to_run(finished, root):
    config = make_config(write_corpus(root / "in"))
    with pytest.raises(UserError, match=r"no finished data stage of 'test'.*hornbook data test.yaml"):
        score.run(config, "test.yaml", ["README.md"], out=None, text_key=None, kind=None)
    config = make_config(root / "in", data__scorer=None)
    run_stage("data", config, "test.yaml")
    with pytest.raises(UserError, match=r"data.scorer is null: every score is 1"):
        score.run(config, "test.yaml", ["README.md"], out=None, text_key=None, kind=None)


def test_a_full_disk_is_said_and_what_is_done_is_kept(tmp_path, finished):
    """A file may not grow over 20 kB: the same errors as a full disk, without filling one."""
    corpus = write_corpus(tmp_path / "in")
    config = tmp_path / "test.yaml"
    config.write_text(configs.to_yaml(make_config(corpus)))
    environment = {**os.environ, "HORNBOOK_ROOT": str(tmp_path / "root"), "PYTHONPATH": str(ROOT)}

    def run(limit: int | None):
        def confine():
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        return subprocess.run(
            [sys.executable, "-P", "-m", "pipeline", "data", str(config)], env=environment, preexec_fn=confine,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    full = run(20_000)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "make room, and the same command resumes" in full.stderr
    assert "Traceback" not in full.stderr
    assert run(None).returncode == 0
    made_there = next((tmp_path / "root" / "artifacts" / "data").iterdir())
    assert read_manifest(made_there)["content_hash"] == finished[1]["content_hash"]


def test_slurm_is_refused_with_the_key_that_is_missing_or_wrong(root, monkeypatch):
    corpus = write_corpus(root / "in")
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        stages.data_step(make_config(corpus, data__executor="slurm"))
    (root / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (root / "sbatch").chmod(0o755)
    with pytest.raises(UserError, match=r"executor_options.partition has no value"):
        stages.data_step(make_config(corpus, data__executor="slurm"))
    with pytest.raises(UserError, match=r"executor_options.tiem is not an option.*'time'"):
        stages.data_step(make_config(corpus, data__executor="slurm", data__executor_options={"tiem": "1"}))


def test_a_group_key_that_no_record_has_is_an_error(root):
    config = make_config(write_corpus(root / "in"), data__sources__web__group_key="domian")
    with pytest.raises(UserError, match=r"data.sources.web.group_key is 'domian'.*none of the first"):
        made(config)


def test_a_cut_file_and_a_scorer_that_is_missing_are_warned_of(root, capsys):
    corpus = write_corpus(root / "in")
    packed = gzip.compress(corpus.read_bytes())
    (root / "in" / "more.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    config = make_config(
        root / "in", data__scorer=None, data__max_unreadable=0.5, data__validation={"max_bytes": 100_000}
    )
    run_stage("data", config, "test.yaml")
    said = capsys.readouterr().out
    assert "WARNING: data.sources.web: 1 damaged_file" in said
    assert "WARNING: data.filters.quality cut nothing, for want of a scorer" in said
    assert "cut nothing, for want of a scorer" in (root / "runs/test/report.html").read_text()


@pytest.mark.parametrize(("max_bytes", "least"), [(1, 0), (3_000, 1_500)])
def test_held_out_text_keeps_to_its_limit_though_a_book_comes_first(root, max_bytes, least):
    """Where no document fits it is the smallest one, so that no validation takes minutes."""
    texts = [prose(i, sentences=14 if i % 4 == 0 else 80) for i in range(60)]  # about 1,000 and 5,700 bytes
    path = root / "in" / "texts.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text, "domain": f"d{i}"}) + "\n" for i, text in enumerate(texts)))
    val = made(make_config(path, data__validation={"share": 0.5, "max_bytes": max_bytes}))["sources"]["web"]["val"]
    assert least < val["bytes"] <= max(max_bytes, 1_200)


def test_a_damaged_manifest_vouches_for_nothing_and_is_made_again(root):
    config = make_config(write_corpus(root / "in"))
    first = made(config)
    manifest = stages.data_step(config).path / "manifest.json"
    manifest.write_text("{bad")
    assert made(config)["content_hash"] == first["content_hash"]
    assert json.loads(manifest.read_text())["content_hash"] == first["content_hash"]


def test_an_edit_that_keeps_size_and_time_is_noticed(root):
    corpus = write_corpus(root / "in")
    before = stages.data_step(make_config(corpus)).fingerprint
    stat, content = corpus.stat(), corpus.read_bytes()
    corpus.write_bytes(content.replace(b"river", b"raven"))
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert corpus.stat().st_size == stat.st_size
    assert stages.data_step(make_config(corpus)).fingerprint != before
