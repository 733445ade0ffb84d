"""Records of the user's own files: one reader for sources, tuning examples and evaluation items."""

import gzip
import json
from pathlib import Path

import pytest
from data_corpus import items, made, make_config, write_corpus

from pipeline.corpus.contamination import read_items
from pipeline.corpus.sources.records import Jsonl
from pipeline.corpus.text.user_files import Unreadable, plain_ending, records
from pipeline.evaluation.benchmarks import check_sets
from pipeline.label import read_ratings
from pipeline.system.errors import UserError
from pipeline.tuning.data import read_sources

pytestmark = pytest.mark.usefixtures("root")

# What stands raw inside a text of JSON, and what becomes of it.
INSIDE = {
    "half an emoji": (b"\\ud83d", "\ufffd"),
    "the other half": (b"\\ude00", "\ufffd"),
    "an emoji in halves": (b"\\ud83d\\ude00", "\U0001f600"),
    "line separator": ("\u2028".encode(), "\u2028"),
    "paragraph separator": ("\u2029".encode(), "\u2029"),
    "next line": ("\u0085".encode(), "\u0085"),
    "vertical tab": (b"\x0b", "\x0b"),
    "form feed": (b"\x0c", "\x0c"),
    "file separator": (b"\x1c", "\x1c"),
    "byte-order mark": ("\ufeff".encode(), "\ufeff"),
}
# A line that is broken, and the cause it is counted by.
BROKEN = {
    b'{"cut off': "broken_json", b'{"a": "\xff\xfe"}': "not_utf8", b"[" * 100_000: "broken_json",
    b"\0" * 9: "broken_json",
}  # fmt: skip


def chat(text: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": "Q %s"}, {"role": "assistant", "content": "A %s"}]}' % (
        text,
        text,
    )


def completion(text: bytes) -> bytes:
    return b'{"prompt": "Q %s", "completion": "A %s"}' % (text, text)


def choice(text: bytes) -> bytes:
    return b'{"prompt": "Q %s", "options": ["one", "two"], "right": 1}' % text


def item(text: bytes) -> bytes:
    return b'{"question": "nine words stand in this item here and there %s"}' % text


def document(text: bytes) -> bytes:
    return b'{"text": "T %s"}' % text


def rating(text: bytes) -> bytes:
    return (b'{"sha256": "%s", "source": "s", "group": "g", "path": "p", "rater": "r", "score": 3, "rationale": "%s"}'
            % (text[:40].hex().encode(), text))  # fmt: skip


def read_as(kind: str, path: Path, max_unreadable: float = 0.1) -> int:
    """How many records of a file are kept where it is read as `kind`."""
    if kind in ("chat", "completion", "text"):
        return len(read_sources({"x": {"type": kind, "path": str(path)}}, max_unreadable)["x"])
    if kind == "items":
        return sum(map(len, read_items([path], None).check(max_unreadable).made))
    if kind == "set":
        check_sets({"x": str(path)}, max_unreadable)
        from pipeline.evaluation.benchmarks import _read

        return len(_read(path, "evaluate.sets.x").made)
    if kind == "ratings":
        return len(read_ratings(path))
    return len(items(Jsonl(str(path)))[0])


KINDS = {
    "chat": chat, "completion": completion, "text": document, "items": item, "set": choice, "documents": document,
    "ratings": rating,
}  # fmt: skip


@pytest.mark.parametrize("inside", INSIDE)
def test_what_stands_inside_a_text_is_kept_or_repaired(folder, inside) -> None:
    raw, expected = INSIDE[inside]
    (folder / "a.jsonl").write_bytes(document(raw) + b"\n" + document(b"next"))
    assert [value for _, value in records(folder / "a.jsonl")] == [{"text": f"T {expected}"}, {"text": "T next"}]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_keeps_its_good_records(folder, capsys, kind) -> None:
    make = KINDS[kind]
    lines = [make(b"%d" % i) for i in range(290)]
    lines += [make(raw) for raw, _ in INSIDE.values()]
    lines[100:100] = [b"", b"  "]
    path = folder / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert read_as(kind, path) == 300
    assert "WARNING" not in capsys.readouterr().err
    for line, cause in BROKEN.items():
        path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([*lines[:200], line, *lines[200:], b"[3]"]))
        assert read_as(kind, path) == 300
        if kind not in ("documents", "items"):
            said = capsys.readouterr().err
            assert "2 of 302 records cannot be read" in said
            assert f"1 {cause}" in said
            assert "a.jsonl, line 201 is not" in said
    packed = folder / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\n".join(lines)))
    assert read_as(kind, packed) == 300


@pytest.mark.parametrize("kind", ["chat", "completion", "text", "items", "set"])
def test_more_than_the_allowed_share_stops_and_can_be_allowed(folder, kind) -> None:
    path = folder / "a.jsonl"
    path.write_bytes(b"\n".join([KINDS[kind](b"%d" % i) for i in range(8)] + [b"{broken"] * 2))
    with pytest.raises(UserError, match=r"2 of 10 records.*a\.jsonl, line 9 is not JSON.*data\.max_unreadable=0\.21"):
        read_as(kind, path)
    assert read_as(kind, path, 0.21) == 8
    data = gzip.compress(b"\n".join(KINDS[kind](b"%d" % i) for i in range(30_000)))
    (folder / "c.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"1 damaged_file.*cut off"):
        read_as(kind, folder / "c.jsonl.gz")
    assert read_as(kind, folder / "c.jsonl.gz", 1.0) > 5_000


def test_one_json_document_is_read_as_its_entries_and_json_lines_by_that_name_too(folder) -> None:
    entries = [{"a": "1"}, {"a": "\u2028"}]
    (folder / "a.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False))
    (folder / "b.json").write_text(json.dumps(entries[0], indent=1))
    (folder / "c.json").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert list(records(folder / "a.json")) == [("item 1", entries[0]), ("item 2", entries[1])]
    assert list(records(folder / "b.json")) == [("item 1", entries[0])]
    assert list(records(folder / "c.json")) == [("line 1", entries[0]), ("line 2", entries[1])]
    (folder / "d.json").write_bytes(b"")
    ((_, problem),) = records(folder / "d.json")
    assert isinstance(problem, Unreadable)


def test_a_text_of_nul_does_not_end_the_text(folder) -> None:
    (folder / "a.jsonl").write_bytes(completion(b"x\\u0000") + b"\n" + completion(b"y"))
    (first, _) = read_sources({"x": {"path": str(folder / "a.jsonl")}})["x"]
    assert first == [("Q x", False), ("A x", True), ("", True)]


def test_paragraphs_of_a_text_file_are_items_and_a_bad_byte_costs_one(folder, capsys) -> None:
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone two\r\n\r\nthree \xff four\r\n\r\n" + b"five six\n\n" * 20)
    found = read_items([folder / "a.txt"], None)
    assert (len(found.made), found.causes) == (21, {"not_utf8": 1})
    assert found.made[0][0].words == (b"one", b"two")
    assert found.made[0][0].name == "a.txt:1"


def test_endings_below_a_compression() -> None:
    assert [plain_ending(Path(n)) for n in ("a.jsonl", "a.b.JSONL.gz", "a.json.zst", "a", "a.gz")] == [
        ".jsonl", ".jsonl", ".json", "", "",
    ]  # fmt: skip


def test_broken_evaluation_items_are_counted_in_the_account(folder) -> None:
    good = [item(b"%d" % i) for i in range(30)]
    (folder / "items.jsonl").write_bytes(b"\n".join([*good[:7], b"{broken", *good[7:]]))
    corpus = write_corpus(folder / "corpus")
    manifest = made(make_config(corpus, data__decontamination={"files": [str(folder / "items.jsonl")]}))
    assert (manifest["contamination"]["items"], manifest["contamination"]["items_unreadable"]) == (30, 1)
    from pipeline.data import warnings

    assert any("1 records of evaluation items" in line for line in warnings(manifest))


@pytest.mark.parametrize("label", [b"Infinity", b"NaN", b"1e999", b"-1", b"[1]", b'"x"', b"0.5", b"null"])
def test_an_item_whose_right_option_is_no_place_in_the_list_is_set_aside(folder, label, capsys) -> None:
    path = folder / "a.jsonl"
    sound = [choice(b"%d" % i) for i in range(20)]
    path.write_bytes(b"\n".join([*sound, b'{"goal": "g", "sol1": "a", "sol2": "b", "label": %s}' % label]))
    assert read_as("set", path) == 20
    assert "1 of 21 records" in capsys.readouterr().err
