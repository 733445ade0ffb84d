"""Which files a source reads, and that every file found has a number: read, lost by name, or skipped by ending."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_corpus import items, made, make_config, prose
from page_text import words

from pipeline import stages
from pipeline.corpus.account import check_sums
from pipeline.corpus.sources.document_files import TextFolder, Warc
from pipeline.corpus.sources.records import HuggingFace, Jsonl, Parquet
from pipeline.pages.data_card import REPORT
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError

pytestmark = pytest.mark.usefixtures("root")

RECORDS = 100
COMPRESSED = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
}  # fmt: skip


def lines(start: int, n: int = RECORDS, make=lambda i: f"text {i}") -> bytes:
    return b"".join(json.dumps({"text": make(i)}).encode() + b"\n" for i in range(start, start + n))


def long_window(data: bytes) -> bytes:
    """What `zstd --long=28` writes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # as a stream: its size is unknown
    return frame.compress(data) + frame.flush()


# Which files


def test_an_empty_part_beside_a_whole_one_is_counted_and_refuses_nothing(root):
    folder = root / "in"
    folder.mkdir()
    (folder / "part-0.jsonl").write_bytes(lines(0, make=prose))
    (folder / "part-1.jsonl").write_bytes(b"")
    manifest = made(
        make_config(folder, data__sources={"web": {"type": "jsonl", "path": str(folder), "license": "MIT"}})
    )
    assert manifest["sources"]["web"]["files"]["lost"] == 1
    assert manifest["sources"]["web"]["lost_files"][0]["cause"] == "empty_file"


def test_every_compression_is_read_in_a_folder_as_behind_a_glob(folder):
    names = [f"a{kind}{packed}" for kind in (".jsonl", ".ndjson", ".json") for packed in ("", *COMPRESSED)]
    for i, name in enumerate(names):
        packed = next((pack for ending, pack in COMPRESSED.items() if name.endswith(ending)), bytes)
        (folder / name).write_bytes(packed(lines(10 * i, 10)))
    (folder / "notes.pod").write_text("=pod")
    (folder / "README").write_text("x")
    for path in (folder, folder / "*", folder / "**"):
        source = Jsonl(str(path))
        documents, causes = items(source)
        assert (len(documents), causes) == (10 * len(names), []), path
        assert source.find().skipped == {".pod": (1, 4), "no ending": (1, 1)}, path


def test_a_linked_subfolder_is_read_once_and_circles_end(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "a.jsonl").write_bytes(lines(0))
    (elsewhere / "b.jsonl").write_bytes(lines(RECORDS))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    for name in ("one", "two", "three"):  # three circles: Python's own `**` would try 3**40 paths
        (folder / name).symlink_to(folder)
    for path in (folder, folder / "**" / "*.jsonl"):
        documents, causes = items(Jsonl(str(path)))
        assert (len(documents), causes) == (2 * RECORDS, []), path


def test_a_link_out_of_a_folder_of_text_is_one_loss_in_either_form(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text("text")
        (elsewhere / f"{i}.txt").write_text("secret")
    (folder / "linked").symlink_to(elsewhere)
    for path in (folder, folder / "**", folder / "**" / "*", folder / "**" / "*.txt"):
        documents, causes = items(TextFolder(str(path)))
        assert ([d.text for d in documents], causes) == (["text"] * 5, ["leaves_its_folder"]), path


def test_hidden_files_are_counted_and_not_read(folder):
    (folder / "a.jsonl").write_bytes(lines(0, 3))
    (folder / ".a.jsonl").write_bytes(lines(0, 3))
    (folder / ".git").mkdir()
    (folder / ".git" / "b.jsonl").write_bytes(b"xy")
    source = Jsonl(str(folder))
    assert len(items(source)[0]) == 3
    assert source.find().skipped["hidden"][0] == 2


def test_what_a_folder_holds_is_said_where_nothing_of_it_is_read(folder):
    for i in range(3):
        (folder / f"{i}.pod").write_text("=pod")
    for source in (TextFolder(str(folder)), Jsonl(str(folder)), Parquet(str(folder)), Warc(str(folder))):
        with pytest.raises(UserError, match=r"it holds 3 \.pod files"):
            source.content_hash()


def test_a_json_file_may_be_one_list_of_records(folder):
    records = [{"text": f"text {i}"} for i in range(5)]
    (folder / "list.json").write_text(json.dumps(records, indent=1))
    (folder / "short.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    (folder / "lines.json").write_bytes(lines(0, 5))
    (folder / "settings.json").write_text(json.dumps({"a": {"b": 1}}, indent=1))
    documents, causes = items(Jsonl(str(folder)))
    assert (len(documents), causes) == (15, ["no_text_key"])


# Endings of texts


def test_any_ending_is_read_as_plain_text_where_it_is_asked_for(folder):
    (folder / "a.pod").write_text("plain words")
    (folder / "b.pod.gz").write_bytes(gzip.compress(b"packed words"))
    (folder / "c.txt").write_text("not asked for")
    source = TextFolder(str(folder), endings=[".pod"])
    documents, causes = items(source)
    assert causes == []
    found = {d.id: (d.text, d.metadata["kind"]) for d in documents}
    assert found == {"a.pod": ("plain words", "prose"), "b.pod.gz": ("packed words", "prose")}
    assert source.find().skipped == {".txt": (1, 13)}


def test_the_common_languages_are_known_with_their_kind_and_compressed(folder):
    code = ["c", "h", "cpp", "cs", "js", "ts", "go", "rs", "java", "kt", "swift", "rb", "php", "sh", "sql", "py",
            "el", "sol", "sv", "vhdl", "f95", "cob", "tcl", "cmake", "adb"]  # fmt: skip
    words = ["tex", "rst", "md", "org", "txt"]
    for ending in code + words:
        (folder / f"plain.{ending}").write_text(f"{ending} text")
        (folder / f"packed.{ending}.gz").write_bytes(gzip.compress(f"{ending} text".encode()))
    documents, causes = items(TextFolder(str(folder)))
    assert causes == []
    kinds = {d.id: d.metadata["kind"] for d in documents}
    assert len(kinds) == 2 * len(code + words)
    for ending in code + words:
        for name in (f"plain.{ending}", f"packed.{ending}.gz"):
            assert kinds[name] == ("code" if ending in code else "prose"), name


def test_a_notebook_gives_its_cells(folder):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Words."]},
        {"cell_type": "code", "source": "x = 1\n", "outputs": [{"text": "secret output"}]},
        {"cell_type": "raw", "source": "raw"},
    ]
    (folder / "four.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    old = [{"cell_type": "code", "input": ["y = 2"], "outputs": []}]
    (folder / "three.ipynb").write_text(json.dumps({"nbformat": 3, "worksheets": [{"cells": old}]}))
    for name, content in {"broken": "{", "other": '{"cells": 7}', "list": "[]", "empty": '{"cells": []}'}.items():
        (folder / f"{name}.ipynb").write_text(content)
    documents, causes = items(TextFolder(str(folder)))
    assert {d.id: d.text for d in documents} == {"four.ipynb": "# Title\nWords.\n\nx = 1", "three.ipynb": "y = 2"}
    assert {d.metadata["kind"] for d in documents} == {"code"}
    assert causes == ["broken_json", "broken_json", "broken_json", "no_text"]


# Lost files


def test_a_window_that_zstd_alone_refuses_is_read(folder):
    (folder / "a.jsonl.zst").write_bytes(long_window(lines(0, 500)))
    documents, causes = items(Jsonl(str(folder)))
    assert (len(documents), causes) == (500, [])


def test_a_file_of_a_dataset_with_a_column_more_is_read_with_its_own(folder):
    pq.write_table(pa.table({"text": ["a", "b"]}), folder / "train-0.parquet")
    pq.write_table(pa.table({"text": ["c"], "more": [1]}), folder / "train-1.parquet")
    documents, causes = items(HuggingFace(str(folder)))
    assert (sorted(d.text for d in documents), causes) == (["a", "b", "c"], [])
    lines_folder = folder / "lines"
    lines_folder.mkdir()
    (lines_folder / "train-0.csv").write_text("text\nd\n")
    (lines_folder / "train-1.csv").write_text("text,more\ne,1\n")
    documents, causes = items(HuggingFace(str(lines_folder)))
    assert (sorted(d.text for d in documents), causes) == (["d", "e"], [])


def table_file(path, column: str = "text", cut: bool = False) -> None:
    pq.write_table(pa.table({column: [prose(i) for i in range(RECORDS, 2 * RECORDS)]}), path)
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 20])


def lost_gz(path, packed=gzip.compress) -> None:
    data = packed(lines(RECORDS, make=prose))
    path.write_bytes(data[: len(data) // 20])


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 41\n"
LOST = {
    "cut.jsonl.gz": ("jsonl", lost_gz),
    "cut.jsonl.bz2": ("jsonl", lambda path: lost_gz(path, bz2.compress)),
    "cut.jsonl.xz": ("jsonl", lambda path: lost_gz(path, lzma.compress)),
    "cut.jsonl.zst": ("jsonl", lambda path: lost_gz(path, zstandard.compress)),
    "empty.jsonl.gz": ("jsonl", lambda path: path.write_bytes(b"")),
    "pointer.jsonl": ("jsonl", lambda path: path.write_bytes(POINTER)),
    "pointer.jsonl.gz": ("jsonl", lambda path: path.write_bytes(POINTER)),
    "pointer.parquet": ("parquet", lambda path: path.write_bytes(POINTER)),
    "cut.parquet": ("parquet", lambda path: table_file(path, cut=True)),
    "column.parquet": ("parquet", lambda path: table_file(path, "body")),
}


@pytest.mark.parametrize("name", LOST)
def test_a_lost_file_counts_with_its_bytes_and_is_named(root, name, capsys):
    kind, lose = LOST[name]
    folder = root / "in"
    folder.mkdir()
    if kind == "jsonl":
        (folder / "whole.jsonl").write_bytes(lines(0, make=prose))
    else:
        pq.write_table(pa.table({"text": [prose(i) for i in range(RECORDS)]}), folder / "whole.parquet")
    lose(folder / name)
    (folder / "notes.pod").write_text("=pod")
    sources = {"web": {"type": kind, "path": str(folder), "license": "MIT"}}
    with pytest.raises(UserError, match=rf"data.max_unreadable=0.1 allows.*{name}") as found:
        made(make_config(folder, data__sources=sources))
    share = float(str(found.value).split("% of it")[0].rpartition(" ")[2])
    assert 40 < share <= 60  # half of the records were in that file
    config = make_config(folder, data__sources=sources, data__max_unreadable=0.7)
    run_stage("data", config, "test.yaml")
    said = capsys.readouterr().out
    step = stages.data_step(config)
    manifest = read_manifest(step.path)
    size, whole = (folder / name).stat().st_size, next(folder.glob("whole*")).stat().st_size
    cause = "lfs_pointer" if "pointer" in name else manifest["sources"]["web"]["lost_files"][0]["cause"]
    assert [lost["cause"] for lost in manifest["sources"]["web"]["lost_files"]] == [cause]
    files = manifest["sources"]["web"]["files"]
    assert files == {
        "found": 3, "read": 1, "lost": 1, "beyond_limit": 0, "skipped": {".pod": 1},
        "bytes": {"found": size + whole + 4, "read": whole, "lost": size, "beyond_limit": 0, "skipped": 4},
    }  # fmt: skip
    assert manifest["files"] == files
    (lost,) = manifest["sources"]["web"]["lost_files"]
    assert (lost["file"], lost["bytes"]) == (name, size)
    documents = manifest["documents"]
    assert documents["unreadable"] == 1
    assert documents["read"] == documents["kept"] + sum(documents["dropped"].values()) + 1
    assert documents["read"] == RECORDS + lost["records"] + 1
    assert f"3 files found = 1 read + 1 lost ({size:,} bytes) + 1 skipped (1 .pod)" in said
    assert f"{name} ({lost['cause']}, {size:,} bytes" in said
    page = (root / "runs" / "test" / "report.html").read_text()
    assert name in page
    assert "1 .pod" in page
    assert "skipped leaves 0 files and 0 bytes" in words(page)


def test_files_behind_a_limit_are_a_class_of_their_own(root):
    folder = root / "in"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.jsonl").write_bytes(lines(20 * i, 20, prose))
    sources = {"web": {"type": "jsonl", "path": str(folder), "license": "MIT", "limit_documents": 30}}
    files = made(make_config(folder, data__sources=sources))["files"]
    assert (files["found"], files["read"] + files["beyond_limit"]) == (8, 8)
    assert files["beyond_limit"] >= 4


def test_an_account_that_does_not_close_is_refused(root):
    folder = root / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(0, 40, prose))
    sources = {"web": {"type": "jsonl", "path": str(folder), "license": "MIT"}}
    config = make_config(folder, data__sources=sources)
    made(config)
    account = json.loads((stages.data_step(config).path / REPORT).read_text())
    check_sums(account)
    for change in (
        lambda a: a["files"].update(read=a["files"]["read"] + 1),
        lambda a: a["sources"]["web"]["files"]["bytes"].update(lost=1),
        lambda a: a["funnel"]["read"].update(bytes=a["funnel"]["read"]["bytes"] + 1),
        lambda a: a["documents"].update(unreadable=1),
    ):
        wrong = json.loads(json.dumps(account))
        change(wrong)
        with pytest.raises(AssertionError):
            check_sums(wrong)
