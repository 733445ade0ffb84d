"""The data stage as a whole, on tiny made-up corpora: what is rebuilt, what is counted, what never changes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_corpus import MODEL, fingerprints, made, make_config, prose, write_corpus

from pipeline import stages
from pipeline.corpus.text.documents import read_records, read_validation, shard_name
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError


def test_every_document_read_is_kept_dropped_or_unreadable(finished):
    documents = finished[1]["documents"]
    assert documents["read"] == documents["kept"] + sum(documents["dropped"].values()) + documents["unreadable"]
    assert documents["read"] == 60 + 8 + 24


def test_broken_lines_are_counted_by_cause_and_take_no_neighbour_along(finished):
    manifest = finished[1]
    causes = {"broken_json": 1, "not_utf8": 1, "text_is_not_text": 1, "no_text_key": 1}
    assert manifest["unreadable_causes"] == causes
    assert manifest["documents"]["dropped"]["empty"] == 1
    assert manifest["documents"]["dropped"]["exact_dedup"] == 1
    assert manifest["documents"]["dropped"]["length"] >= 1


def test_ids_are_the_tokenizers_own_and_each_document_ends(finished):
    shards = TokenShards.open(finished[0])
    tokenizer = load_tokenizer(shards.tokenizer_path)
    seen = 0
    for token_set in [*shards.train.values(), *shards.val.values()]:
        assert token_set.index.dtype == INDEX_DTYPE
        assert token_set.index["length"].sum() == token_set.n_tokens
        for row in token_set.index:
            ids = token_set.tokens[int(row["offset"]) : int(row["offset"]) + int(row["length"])].tolist()
            assert ids[-1] == shards.eos_token_id
            text = tokenizer.decode(ids[:-1], skip_special_tokens=False)
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids[:-1]
            assert len(text.encode()) == row["bytes"]
            seen += 1
    assert seen >= finished[1]["documents"]["kept"]
    assert set(shards.train) == {"web", "exercises"}


def test_manifest_has_the_numbers_that_the_contract_names(finished):
    folder, manifest = finished
    shards = TokenShards.open(folder)
    assert manifest["tokens"]["train"] == sum(s.n_tokens for s in shards.train.values())
    assert manifest["tokens"]["val"] == sum(s.n_tokens for n, s in shards.val.items() if n != "textbook")
    assert manifest["bytes"]["train"] == sum(s.n_bytes for s in shards.train.values())
    assert manifest["sources"]["web"]["license"] == "MIT"
    assert manifest["vocab_size"] == shards.vocab_size <= MODEL["vocab_size"]
    assert manifest["contamination"] is None
    assert {"auc", "threshold"} <= set(manifest["classifier"])
    assert manifest["funnel"][0]["step"] == "read"


def test_a_missing_or_short_token_file_is_named(finished, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    path = folder / "tokens" / "train-web" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-web/tokens\.bin has"):
        TokenShards.open(folder)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        TokenShards.open(folder)


def test_same_content_for_one_and_two_workers_and_any_hash_seed(finished, tmp_path):
    corpus = write_corpus(tmp_path / "in")
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "import data_corpus as t\n"
        "print(t.made(t.make_config(Path(sys.argv[1]), data__workers=int(sys.argv[3])))['content_hash'])"
    )
    for workers, seed in ((1, "1"), (2, "77")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "HORNBOOK_ROOT": str(tmp_path / seed)}
        done = subprocess.run(
            [sys.executable, "-c", script, str(corpus), str(Path(__file__).parent), str(workers)],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == finished[1]["content_hash"]


def test_a_changed_cut_redoes_only_cut_and_data(root):
    corpus = write_corpus(root / "in")
    before = fingerprints(make_config(corpus))
    after = fingerprints(make_config(corpus, data__filters__quality={"min_score": 0.9}))
    assert {name for name in before if before[name] != after[name]} == {"data-cut/", "data/"}


def test_a_changed_filter_redoes_rules_and_what_follows(root):
    corpus = write_corpus(root / "in")
    before = fingerprints(make_config(corpus))
    after = fingerprints(make_config(corpus, data__filters__length={"min_characters": 60}))
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {"data-read/web", "data-read/exercises", "data-repair/"}


def test_changed_input_text_redoes_its_reading(root):
    corpus = write_corpus(root / "in")
    before = fingerprints(make_config(corpus))
    corpus.write_bytes(corpus.read_bytes() + b'{"text": "one more"}\n')
    after = fingerprints(make_config(corpus))
    assert {name for name in before if before[name] == after[name]} == {"data-read/exercises"}


def test_runtime_keys_and_the_place_of_the_input_change_nothing(root):
    corpus = write_corpus(root / "in")
    moved = write_corpus(root / "elsewhere")
    before = fingerprints(make_config(corpus))
    assert fingerprints(make_config(moved, data__workers=1, data__keep_dropped="none")) == before


def test_samples_for_reading_do_not_change_the_content(root, finished):
    manifest = made(make_config(write_corpus(root / "in"), data__keep_dropped="none"))
    assert not [path for path in manifest["outputs"] if path.startswith(("kept", "dropped"))]
    assert [path for path in finished[1]["outputs"] if path.startswith("dropped/")]
    assert manifest["content_hash"] == finished[1]["content_hash"]


def test_validation_is_never_cut_and_train_near_it_is_removed(root):
    """With a cut that drops all, validation stays; a train copy of a validation text is dropped."""
    corpus = write_corpus(root / "in")
    first = made(make_config(corpus))
    step = stages.data_step(make_config(corpus))
    held_out = next(iter(_held_out_texts(step)))
    in_validation = read_manifest(step.inputs["split"].path)["validation_groups"]["web"]
    thief = next(f"site{i}" for i in range(10) if f"site{i}" not in in_validation)
    changed = held_out.replace("more.", "more!", 1)  # other punctuation: no exact copy, the same shingles
    with open(corpus, "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": changed + "\nAnd one line that is new to the text.", "domain": thief}) + "\n")
    second = made(make_config(corpus))
    assert second["documents"]["dropped"]["near_dedup"] == first["documents"]["dropped"].get("near_dedup", 0) + 1
    assert held_out in set(_held_out_texts(stages.data_step(make_config(corpus))))


def test_a_source_of_one_group_is_split_by_document(root):
    corpus = write_corpus(root / "in")
    corpus.write_text("".join(json.dumps({"text": prose(i), "domain": "only"}) + "\n" for i in range(60)))
    config = make_config(corpus)
    made(config)
    split = read_manifest(stages.data_step(config).inputs["split"].path)
    held_out = split["validation_groups"]["web"]
    assert len(held_out) in (1, 2, 3)  # 2% of 60 documents
    assert all(name.startswith("only/") for name in held_out)
    assert 0 < split["validation"]["documents"] < 60


def _held_out_texts(step):
    repaired, split = step.inputs["repair"].path, step.inputs["split"].path
    held_out = read_validation(split, 3)
    records = [r for shard in range(3) for r in read_records(repaired / "documents" / shard_name(shard))]
    for record, held in zip(records, held_out, strict=True):
        if held and record["metadata"]["source"] == "web":
            yield record["text"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__sources": {}}, "data.sources is empty"),
        ({"data__sources__web": {"type": "json"}}, "did you mean 'jsonl'"),
        ({"data__sources__web": {"type": "jsonl", "path": "nowhere/*.jsonl"}}, "nothing matches"),
        ({"data__sources__web": {"type": "jsonl", "pth": "x"}}, "unknown option 'pth'.*'path'"),
        ({"data__sources__web": {"type": "jsonl", "path": "x", "kind": "poem"}}, "kind is 'poem'"),
        ({"data__sources__lib": {"type": "python_library", "distributions": ["no-such-thing"]}}, "not installed"),
        ({"data__sources__lib": {"type": "text", "path": "no-folder"}}, "nothing matches no-folder"),
        ({"data__sources__hub": {"type": "huggingface", "dataset": "a/b", "where": "score >>> 3"}}, "one comparison"),
        ({"data__filters__lenght": {}}, "did you mean 'length'"),
        ({"data__filters__length": {"min_chars": 3}}, "unknown option 'min_chars'"),
        ({"data__filters__length": {"min_characters": "many"}}, "expected int"),
        ({"data__filters__licence": {"allow": ["Beerware-9"]}}, "not an SPDX identifier"),
        ({"tokenizer__path": "no/tokenizer.json"}, "tokenizer.path: there is no file"),
    ],
)
def test_wrong_input_is_one_clear_message(root, changes, message):
    with pytest.raises(UserError, match=message):
        stages.data_step(make_config(write_corpus(root / "in"), **changes))


def test_a_tokenizer_larger_than_the_model_is_refused_naming_both(root, finished):
    path = finished[0] / "tokenizer.json"
    config = make_config(write_corpus(root / "in"), tokenizer__path=str(path), model__vocab_size=257)
    with pytest.raises(UserError, match=r"model.vocab_size is 257"):
        stages.data_step(config)


def test_a_named_tokenizer_is_used_as_it_is(root, finished):
    folder = finished[0]
    manifest = made(make_config(write_corpus(root / "in"), tokenizer__path=str(folder)))
    found = (
        stages.data_step(make_config(write_corpus(root / "in"), tokenizer__path=str(folder))).path / "tokenizer.json"
    )
    assert found.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert manifest["vocab_size"] == finished[1]["vocab_size"]


def test_an_empty_corpus_names_the_rule_that_dropped_most(root):
    config = make_config(
        write_corpus(root / "in"),
        data__sources={"web": {"type": "jsonl", "path": str(root / "in" / "texts.jsonl"), "license": "GPL-3.0-only"}},
    )
    with pytest.raises(UserError, match=r"Most by 'licence'.*data.filters.licence"):
        made(config)


def test_a_source_without_a_readable_document_is_an_error(root):
    path = root / "bad.jsonl"
    path.write_bytes(b"{broken\n" * 3)
    with pytest.raises(UserError, match=r"data.sources.web gave no readable document \(3 broken_json\)"):
        made(make_config(path, data__sources={"web": {"type": "jsonl", "path": str(path)}}))


def test_the_stage_says_what_happened_and_a_second_run_does_nothing(root, capsys):
    config = make_config(write_corpus(root / "in"))
    run_stage("data", config, "hornbook data test.yaml")
    first = capsys.readouterr().out
    assert "[1/12] data-read exercises" in first
    assert "documents    92 read" in first
    finished_at = read_manifest(stages.data_step(config).path)["finished"]
    run_stage("data", config, "hornbook data test.yaml")
    assert "[1/12]" not in capsys.readouterr().out
    assert read_manifest(stages.data_step(config).path)["finished"] == finished_at


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.8, 1.5, 2.5])
def test_killed_in_the_middle_and_run_again_gives_the_same_content(finished, tmp_path, seconds):
    corpus = write_corpus(tmp_path / "in")
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "import data_corpus as t\n"
        "print(t.made(t.make_config(Path(sys.argv[1])))['content_hash'])"
    )
    environment = {**os.environ, "HORNBOOK_ROOT": str(tmp_path / "root")}
    command = [sys.executable, "-c", script, str(corpus), str(Path(__file__).parent)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1] == finished[1]["content_hash"], done.stderr
