"""What is held out: how much of each source, whole groups or documents, and what becomes of the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_corpus import made, make_config, prose

from pipeline import stages
from pipeline.corpus.splitting import choose
from pipeline.corpus.text.documents import ROW, Table, hash_key, read_all_alive, read_validation
from pipeline.corpus.text.shards import HEAD_TOKENS, TokenShards, head_bytes
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.run_stage import run_stage


def rows_of(documents) -> np.ndarray:
    """From (source, group, origin, bytes)."""
    rows = np.zeros(len(documents), dtype=ROW)
    for row, (source, group, origin, size) in zip(rows, documents, strict=True):
        row["source"], row["bytes"] = source, size
        row["group"], row["origin"] = hash_key("group", group), hash_key("origin", group, origin)
    return rows


def held(documents, share: float, seed: int = 0) -> tuple[list, bool]:
    """(the documents that are held out, whether a warning is due); within the share of each source everywhere."""
    rows = rows_of(documents)
    totals, counts = np.bincount(rows["source"], weights=rows["bytes"]), np.bincount(rows["source"])
    found = choose(rows, rows["bytes"], share * totals, share * counts, seed)
    for source, total in enumerate(totals):
        own = rows["source"] == source
        assert rows["bytes"][own & found.held_D].sum() <= share * total + rows["bytes"][own].max()
        assert (own & found.held_D).sum() <= share * own.sum() + 1
        assert not found.held_D[own].all()
    return [d for d, out in zip(documents, found.held_D, strict=True) if out], bool(found.too_large)


def grouped(sizes: dict[str, int], documents: int, source: int = 0):
    return [
        (source, group, f"{group}/{i}", size // documents) for group, size in sizes.items() for i in range(documents)
    ]


def test_whole_groups_are_held_out_where_they_fit():
    found, warned = held(grouped({f"g{i}": 1_000 for i in range(200)}, 10), 0.02)
    assert not warned
    assert len(found) == 40
    assert len({group for _, group, _, _ in found}) == 4
    backwards, _ = held(grouped({f"g{i}": 1_000 for i in reversed(range(200))}, 10), 0.02)
    assert sorted(backwards) == sorted(found)


@pytest.mark.parametrize("groups", [1, 2, 4, 30])
def test_groups_beyond_the_share_are_split_by_document_with_a_warning(groups):
    found, warned = held(grouped({f"g{i}": 300_000 for i in range(groups)}, 200), 0.02)
    assert warned
    assert 0.015 * groups * 200 <= len(found) <= 0.02 * groups * 200 + 1
    assert len({group for _, group, _, _ in found}) >= min(groups, 4)


def test_small_groups_stay_whole_beside_a_giant_that_is_split():
    documents = [*grouped({"giant": 1_900_000}, 1_900), *grouped({f"g{i}": 2_000 for i in range(50)}, 10)]
    found, warned = held(documents, 0.02)
    assert warned
    assert any(group == "giant" for _, group, _, _ in found)
    for i in range(50):
        assert sum(group == f"g{i}" for _, group, _, _ in found) in (0, 10)


def test_a_giant_is_passed_over_where_the_other_groups_are_enough():
    documents = [*grouped({"giant": 300_000}, 90), *grouped({f"g{i}": 2_000 for i in range(50)}, 10)]
    for seed in range(5):
        found, warned = held(documents, 0.02, seed)
        assert not warned
        assert found
        assert "giant" not in {group for _, group, _, _ in found}


def test_a_small_source_holds_out_one_document_and_never_its_last():
    sizes = [10, 5_000, 80, 100, 120]
    documents = [(0, i, i, size) for i, size in enumerate(sizes)]
    assert held(documents, 1e-6) == ([documents[3]], False)  # neither a line nor a book
    assert held(documents[:2], 0.02) == ([documents[0]], False)
    rows = rows_of(documents[:1])
    assert not choose(rows, rows["bytes"], np.array([5.0]), np.array([1.0]), 0).held_D.any()
    assert choose(rows[:0], rows["bytes"][:0], np.array([0.0]), np.array([0.0]), 0).held_D.shape == (0,)


@pytest.mark.parametrize("domains", [2, 300])
def test_what_was_made_of_a_document_is_held_out_with_it_within_both_shares(domains):
    documents = [(0, i % domains, i, 1_000 + i) for i in range(900)]
    rewrites = [(1, i % domains, i, 200) for i in range(0, 900, 3) for _ in range(2)]
    found, warned = held([*documents, *rewrites], 0.02)
    assert warned is (domains == 2)
    assert {source for source, *_ in found} == {0, 1}
    by = (lambda d: d[2]) if warned else (lambda d: d[1])
    units = {by(d) for d in found}
    assert len(found) == sum(by(d) in units for d in [*documents, *rewrites])


def test_whole_groups_go_back_where_their_beginnings_are_more_than_validation_needs():
    rows = rows_of(grouped({f"g{i}": 1_000 for i in range(100)}, 10))

    def held_for(max_bytes: float) -> np.ndarray:
        return choose(rows, rows["bytes"], np.array([max_bytes]), np.array([np.inf]), 0, whole=True).held_D

    assert rows["bytes"][held_for(5_000)].sum() == 5_000
    assert len(np.unique(rows["group"][held_for(5_000)])) == 5
    assert held_for(1e6).all()
    assert held_for(1).sum() == 1


def test_documents_that_are_short_do_not_take_more_than_their_share():
    documents = [(0, i, i, 10_000 if i % 4 else 300) for i in range(800)]
    found, warned = held(documents, 0.02)
    assert not warned
    assert 12 <= len(found) <= 16


def write_folder(path: Path, folders: int, documents: int, sentences: int = 14) -> Path:
    for i in range(documents):
        file = path / f"folder{i % folders}" / f"{i:04d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(prose(i, sentences))
    return path


def of_folder(path: Path, **changes):
    source = {"type": "text", "path": str(path), "license": "MIT"}
    return make_config(path, data__sources={"mine": source}, **changes)


def check_sums(manifest) -> None:
    documents, mine = manifest["documents"], manifest["sources"]["mine"]
    held_out = manifest["held_out"]["sources"]["mine"]
    assert documents["read"] == documents["kept"] + sum(documents["dropped"].values()) + documents["unreadable"]
    assert "validation_limit" not in documents["dropped"]
    assert held_out["documents"] == mine["val"]["documents"]
    for unit in ("tokens", "bytes"):
        assert mine[unit] == mine["train"][unit] + held_out[unit]
        assert held_out[unit] == held_out["scored"][unit] + held_out["unscored"][unit]
        assert manifest[unit]["val"] == held_out["scored"][unit] == mine["val"][unit]


def test_of_four_subfolders_the_share_is_held_out_and_all_else_trained_on(root, capsys):
    config = of_folder(write_folder(root / "in", 4, 120), data__validation={"share": 0.05})
    run_stage("data", config, "test.yaml")
    said = capsys.readouterr().out
    manifest = made(config)
    check_sums(manifest)
    mine = manifest["sources"]["mine"]
    assert 3 <= mine["val"]["documents"] <= 7
    assert mine["val"]["groups"] >= 2
    assert mine["documents"] == 120
    assert "WARNING: data.sources.mine: each of the 4 groups is larger than the 5% of the source" in said
    assert "share of at least 0.25" in said
    assert manifest["held_out"]["by_document"] == ["mine"]
    assert manifest["textbook"]["documents"] == 0  # nothing was scored
    assert set(TokenShards.open(stages.data_step(config).path).val) == {"mine"}


def test_what_validation_does_not_need_is_trained_on_unless_it_is_near_what_stays(root):
    """`max_bytes` leaves a few of 30 documents; copies of every document differ in punctuation alone."""
    source = root / "in"
    for i in range(60):
        (source / f"folder{i}").mkdir(parents=True)
        (source / f"folder{i}" / "a.txt").write_text(prose(i))
        (source / f"folder{i}" / "b.txt").write_text(prose(i).replace("more.", "more!", 1) + "\nOne new line of text.")
    config = of_folder(source, data__validation={"share": 0.5, "max_bytes": 9_000})
    manifest = made(config)
    check_sums(manifest)
    held_out, back = manifest["held_out"], manifest["held_out"]["returned"]["documents"]
    assert 0 < held_out["scored"]["bytes"] <= 9_000
    assert held_out["warnings"] == []
    assert held_out["documents"] + back >= 50
    assert back >= 40
    # Of the pairs that are not held out the second copy is dropped, as everywhere in train text.
    assert manifest["documents"]["dropped"] == {"near_dedup": 60 - held_out["documents"] // 2}
    assert manifest["sources"]["mine"]["train"]["documents"] == 60 - held_out["documents"] // 2


def test_a_split_by_document_keeps_near_copies_of_held_out_text_out_of_training(root):
    source = write_folder(root / "in", 2, 60)
    for file in sorted(source.rglob("*.txt")):
        other = source / f"folder{1 - int(file.parent.name[-1])}" / f"copy-{file.name}"
        other.write_text(file.read_text().replace("more.", "more!", 1) + "\nOne new line of text.")
    config = of_folder(source, data__validation={"share": 0.1})
    manifest = made(config)
    check_sums(manifest)
    step = stages.data_step(config)
    chain = {s.name: s.path for s in step.chain()}
    table = Table.load(chain["data-repair"])
    out = read_validation(chain["data-split"], table.tasks)
    names = {i: n.path.split("/")[-1].removeprefix("copy-") for i, n in table.names(np.arange(len(table))).items()}
    left = read_all_alive(chain["data-near-dedup"], table.tasks)
    validated = {names[int(i)] for i in np.flatnonzero(out)}
    assert len(validated) >= 5
    assert not validated & {names[int(i)] for i in np.flatnonzero(left & ~out)}


def test_of_a_long_document_the_beginning_counts_and_ends_with_a_whole_character(root):
    """Documents of characters of four bytes, each of several tokens."""
    source = root / "in" / "texts.jsonl"
    source.parent.mkdir()
    texts = ["".join(chr(0x1F300 + (i * (7 + j)) % 500) + " ab "[i % 4] for i in range(5_000)) for j in range(9)]
    source.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    options = {"type": "jsonl", "path": str(source), "license": "MIT"}
    config = make_config(source, data__sources={"mine": options}, data__filters={"length": {"min_characters": 50}})
    manifest = made(config)
    check_sums(manifest)
    held_out = manifest["held_out"]
    assert held_out["unscored"]["documents"] == 1
    assert 10_000 < held_out["unscored"]["bytes"] < held_out["bytes"]
    shards = TokenShards.open(stages.data_step(config).path)
    index = shards.val["mine"].index
    assert index["length"].max() <= HEAD_TOKENS
    assert index["bytes"].max() <= head_bytes(2_000_000)
    tokenizer = load_tokenizer(shards.tokenizer_path)
    row = index[np.argmax(index["bytes"])]
    ids = shards.val["mine"].tokens[int(row["offset"]) : int(row["offset"] + row["length"])].tolist()
    text = tokenizer.decode(ids[:-1], skip_special_tokens=False)
    assert ids[-1] == shards.eos_token_id
    assert any(given.startswith(text) for given in texts)
    assert len(text.encode()) == row["bytes"] > 2_000


def test_a_source_of_one_document_trains_on_it_and_says_so(root, capsys):
    source = root / "in" / "a.txt"
    source.parent.mkdir()
    source.write_text(prose(1, 40))
    config = make_config(root, data__sources={"mine": {"type": "text", "path": str(source.parent), "license": "MIT"}})
    run_stage("data", config, "test.yaml")
    assert "WARNING: data.sources.mine has 1 document: nothing of it is held out" in capsys.readouterr().out
    assert made(config)["tokens"]["val"] == 0
