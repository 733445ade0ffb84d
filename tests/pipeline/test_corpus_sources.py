"""The text sources: what each kind of input gives, and that bad input is counted by name and takes nothing along."""

import gzip
import json
import os
import resource
import subprocess
import sys
import time

import pytest
from data_corpus import items

from pipeline.corpus.exercises.source import Exercises
from pipeline.corpus.sources.document_files import TextFolder
from pipeline.corpus.sources.python_library import PythonLibrary
from pipeline.corpus.sources.records import HuggingFace, Jsonl
from pipeline.corpus.steps import SOURCES
from pipeline.corpus.text.source import make
from pipeline.corpus.text.user_files import MAX_TEXT_BYTES
from pipeline.system.errors import UserError

pytestmark = pytest.mark.usefixtures("root")


def texts(source, tasks: int = 2) -> list[str]:
    documents, causes = items(source, tasks)
    assert causes == []
    return sorted(d.text for d in documents)


def line(**record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def numbered(n: int, filler: int = 20) -> bytes:
    return b"".join(line(text=f"line {i} {os.urandom(filler).hex()}") for i in range(n))


# Options that all sources share


def test_every_source_type_takes_the_limits_and_lists_them_among_its_options():
    import inspect

    for cls in SOURCES.values():
        parameters = inspect.signature(cls).parameters
        assert {"limit_documents", "limit_bytes", "limit_tokens"} <= set(parameters)
        assert not {"common", "weight", "filters"} & set(parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_documents": 0}, "limit_documents is 0"),
        ({"limit_documents": "many"}, "limit_documents is 'many'"),
        ({"text_kee": "x"}, "did you mean 'text_key'"),
        ({"kind": "poem"}, "kind is 'poem'"),
        ({"kind": None}, "kind is null"),
        ({"metadata_keys": "url"}, "expected a list"),
        ({"where": "score"}, "int_score >= 3"),
        ({"where": "a >= 1 and b"}, "'b'"),
        ({"license": 3}, "license"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_read(options, message):
    with pytest.raises(UserError, match=message):
        make(Jsonl, {"path": "nowhere.jsonl", **options}, "data.sources.x")


def test_limits_hold_over_all_shards_and_nothing_is_read_beyond_them(folder):
    path = folder / "a.jsonl"
    path.write_bytes(numbered(50))
    assert len(items(Jsonl(str(path), limit_documents=7), tasks=3)[0]) == 7
    assert len(items(Jsonl(str(path), limit_documents=2), tasks=5)[0]) == 2
    assert len(items(Jsonl(str(path), limit_bytes=300), tasks=1)[0]) == 7  # of 47 or 48 bytes each
    assert len(items(Jsonl(str(path), limit_tokens=75), tasks=1)[0]) == 7
    path.write_bytes(numbered(50) + b"broken\n")
    assert items(Jsonl(str(path), limit_documents=50), tasks=1)[1] == []
    assert len(items(Exercises(count=9, limit_documents=4), tasks=3)[0]) == 4
    assert len(items(PythonLibrary(["networkx"], standard_library=False, limit_documents=5))[0]) == 5


def test_a_small_limit_is_quick_on_a_large_file(folder):
    with open(folder / "a.jsonl", "wb") as file:
        file.write(numbered(100))
        file.truncate(50_000_000_000)  # a hole: 50 GB to read, nothing on disk
    started = time.process_time()
    assert len(items(Jsonl(str(folder / "a.jsonl"), limit_documents=10), tasks=4)[0]) == 10
    assert time.process_time() - started < 1


def test_the_same_documents_for_any_number_of_shards(folder):
    for name in "abc":
        (folder / f"{name}.jsonl").write_bytes(numbered(11) + b"broken\n")
        (folder / f"{name}.html").write_text(page(name))
    for source in (Jsonl(str(folder)), TextFolder(str(folder))):
        found = [sorted((d.id, d.text) for d in items(source, tasks)[0]) for tasks in (1, 2, 3, 7)]
        assert all(f == found[0] for f in found)
        causes = [items(source, tasks)[1] for tasks in (1, 2, 3, 7)]
        assert all(c == causes[0] for c in causes)


# Records


def test_fields_of_a_record_become_text_group_licence_and_metadata(folder):
    (folder / "a.jsonl").write_bytes(
        line(body={"text": "one"}, site="s", url="u", stars=3, tags=["x"], license=["MIT", "BSD-3-Clause"])
        + line(body={"text": "two"}, site=None, path="../../etc/passwd", source="other", license=7, big=2**63)
    )
    keys = ["url", "stars", "tags", "path", "source", "big"]
    source = Jsonl(str(folder), text_key="body.text", group_key="site", metadata_keys=keys, license="own", kind="code")
    one, two = items(source, 1)[0]
    assert (one.text, one.metadata["group"], one.metadata["license"]) == ("one", "s", "MIT AND BSD-3-Clause")
    assert one.metadata["record"] == {"url": "u", "stars": 3, "tags": "['x']"}
    assert (two.metadata["path"], two.metadata["license"], two.metadata["kind"]) == ("a.jsonl:2", "unknown: 7", "code")
    assert two.metadata["group"] == "a.jsonl:2"
    assert "source" not in two.metadata  # set by the stage, not by a record
    assert two.metadata["record"] == {"path": "../../etc/passwd", "source": "other", "big": str(2**63)}


def test_names_in_records_never_become_files(folder):
    (folder / "a.jsonl").write_bytes(line(text="t", id="../../x", path="/etc/x", group="../../y"))
    (found,) = items(Jsonl(str(folder), group_key="group", metadata_keys=["id"]))[0]
    assert found.id == "a.jsonl:1"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["in"]


def test_records_outside_where_are_left_out_and_those_it_cannot_judge_are_counted(folder):
    (folder / "a.jsonl").write_bytes(
        b"".join(line(text=f"{s}{lang}", score=s, language=lang) for s in (1, 3, 5) for lang in ("en", "de"))
        + line(text="no score", language="en")
        + line(text="text score", score="9", language="en")
    )
    documents, causes = items(Jsonl(str(folder), where='score >= 3 and language == "en"'))
    assert sorted(d.text for d in documents) == ["3en", "5en"]
    assert causes == ["no_where_field", *["where"] * 4, "where_field_type"]


BROKEN_LINES = {
    b'{"text": "cut off': "broken_json",
    b'{"text": 12}': "text_is_not_text",
    b'{"text": null}': "text_is_not_text",
    b'{"body": "x"}': "no_text_key",
    b'["text"]': "not_a_record",
    b'"text"': "not_a_record",
    b'{"text": "' + b"\xff\xfe" + b'"}': "not_utf8",
    b"[" * 100_000: "broken_json",
    b"[" * 900 + b"]" * 900: "not_a_record",
    b'{"text": "x", "n": ' + b"9" * 10_000 + b"}": "broken_json",
    b'{"text": ' + b'{"a":' * 900 + b"1" + b"}" * 901: "text_is_not_text",
    b"\0" * 50: "broken_json",
}


def test_each_kind_of_broken_line_is_counted_by_name_and_takes_no_neighbour_along(folder):
    lines = [line(text="first").strip()]
    for broken in BROKEN_LINES:
        lines += [broken, b"", line(text="between").strip()]  # a blank line is no document
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, causes = items(Jsonl(str(folder)), tasks=3)
    assert len(documents) == len(BROKEN_LINES) + 1
    assert causes == sorted(BROKEN_LINES.values())


def test_odd_lines_that_are_right_are_read(folder):
    odd = [
        b"\xef\xbb\xbf" + line(text="mark"),
        b'{"text": "first", "text": "last"}\n',
        b'{"text": "nan", "x": NaN, "y": Infinity}\r\n',
        b'{"text": "lone \\ud800"}\n',
        b'{"text": "nul \\u0000"}\n',
        line(text="m" * 12_000_000),
        b'{"text": "no newline"}',
    ]
    (folder / "a.jsonl").write_bytes(b"".join(odd))
    assert {t[:12] for t in texts(Jsonl(str(folder)))} == {
        "mark", "last", "nan", "lone \ud800", "nul \0", "m" * 12, "no newline",
    }  # fmt: skip


def test_a_line_too_long_is_lost_alone(folder):
    with open(folder / "a.jsonl", "wb") as file:
        file.write(line(text="before"))
        file.write(b'{"text": "' + b"x" * (2 * MAX_TEXT_BYTES) + b'"}\n')
        file.write(line(text="after"))
    documents, causes = items(Jsonl(str(folder)))
    assert (sorted(d.text for d in documents), causes) == (["after", "before"], ["too_large"])


def test_a_file_in_another_encoding_or_without_a_line_is_said_once(folder):
    (folder / "a.jsonl").write_bytes(numbered(500).decode().encode("utf-16"))
    (folder / "b.jsonl").write_bytes(b"")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    (folder / "d.jsonl.xz").write_bytes(b"\xfd7zXZ")
    (folder / "e.jsonl.lz4").write_bytes(b"\x04")
    for tasks in (1, 2, 6):
        documents, causes = items(Jsonl(str(folder / "*")), tasks)
        assert (documents, causes) == (
            [],
            ["damaged_file", "empty_file", "empty_file", "not_utf8", "unknown_compression"],
        )


def test_files_of_one_name_in_two_folders_give_documents_of_two_names(folder):
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "x.jsonl").write_bytes(line(text=name))
    assert [d.id for d in items(Jsonl(str(folder / "*" / "*.jsonl")), 1)[0]] == ["a/x.jsonl:1", "b/x.jsonl:1"]


# Compressed files


def test_compressed_lines_are_read_with_members_frames_and_padding(folder):
    import zstandard

    lines = numbered(2000)
    half = lines.index(b"\n", len(lines) // 2) - 10  # inside a line
    plain = folder / "plain.jsonl"
    plain.write_bytes(lines)
    for name, data in {
        "a.jsonl.gz": gzip.compress(lines),
        "b.jsonl.gz": gzip.compress(lines[:half]) + b"\0" * 700 + gzip.compress(lines[half:]) + b"\0" * 512,
        "c.jsonl.zst": zstandard.compress(lines),
        "d.jsonl.zst": zstandard.compress(lines[:half]) + zstandard.compress(lines[half:]),
    }.items():
        (folder / name).write_bytes(data)
        assert texts(Jsonl(str(folder / name))) == texts(Jsonl(str(plain))), name


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("harm", ["cut", "rubbish after", "no archive", "flipped"])
def test_a_damaged_archive_keeps_what_came_before(folder, ending, harm):
    import zstandard

    lines = numbered(20_000)
    good = gzip.compress(lines) if ending == "gz" else zstandard.compress(lines, 3)
    middle = len(good) // 2
    data = {
        "cut": good[:middle],
        "rubbish after": good + b"rubbish of some length",
        "no archive": lines,
        "flipped": good[:middle] + bytes([good[middle] ^ 0xFF]) * 8 + good[middle + 8 :],
    }[harm]
    (folder / f"a.jsonl.{ending}").write_bytes(data)
    (folder / "b.jsonl").write_bytes(line(text="next"))
    documents, causes = items(Jsonl(str(folder)))
    assert "damaged_file" in causes
    if harm != "flipped":  # else the lines at that place may be broken before the checksum says so
        assert causes == ["damaged_file"]
    kept = {"cut": (7_000, 13_000), "rubbish after": (20_001, 20_001), "no archive": (1, 1), "flipped": (1, 20_000)}
    assert kept[harm][0] <= len(documents) <= kept[harm][1]
    assert any(d.text == "next" for d in documents)


MEASURED_READ = """
import resource, sys, time
from pipeline.corpus.sources.records import Jsonl
source, before = Jsonl(sys.argv[1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [getattr(i, "cause", None) or i.text for i in source.documents(0, 1)]
print(found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_bomb_of_zeros_in_one_line_costs_seconds_and_the_memory_of_a_line(folder, ending):
    path = folder / f"bomb.jsonl.{ending}"
    if ending == "gz":
        with gzip.open(path, "wb", compresslevel=6) as file:
            file.write(line(text="before"))
        block = gzip.compress(b"\0" * 50_000_000)
        with open(path, "ab") as file:
            file.write(block * 22)
    else:
        import zstandard

        block = zstandard.compress(b"\0" * 50_000_000)
        path.write_bytes(zstandard.compress(line(text="before")) + block * 22)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # other programs' time is not ours
    command = [sys.executable, "-P", "-c", MEASURED_READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, _, grown_kb = done.stdout.rpartition(" ")
    assert found == "['before', 'too_large', 'bomb']"
    assert int(grown_kb) < 200_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 20


# Folders


def page(name: str) -> str:
    words = f"The page {name} tells in whole sentences what it is about, and goes on for a while. " * 8
    menu = "<nav><ul><li><a href='/'>Menu entry</a></li></ul></nav>"
    code = "<pre>def f(x):\n    return x</pre>"
    return (
        f"<html><head><title>T</title></head><body>{menu}<article><h1>Heading {name}</h1><p>{words}</p>{code}"
        f"<p>{words}</p></article><footer>Footer</footer></body></html>"
    )


def test_a_folder_gives_each_file_with_kind_and_group(folder):
    (folder / "one").mkdir()
    (folder / "one" / "a.md").write_text("hello")
    (folder / "b.py").write_text("x = 1")
    (folder / "mark.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (folder / "empty.txt").write_text("")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    documents, causes = items(TextFolder(str(folder), license="own"))
    assert causes == []
    assert {d.id: (d.text, d.metadata["kind"], d.metadata["group"]) for d in documents} == {
        "b.py": ("x = 1", "code", "b.py"),
        "one/a.md": ("hello", "prose", "one"),
        "mark.txt": ("marked", "prose", "mark.txt"),
        "empty.txt": ("", "prose", "empty.txt"),  # dropped later, and counted there, as empty
    }
    assert {d.metadata["license"] for d in documents} == {"own"}
    assert [d.id for d in items(TextFolder(str(folder), endings=["md"]))[0]] == ["one/a.md"]
    with pytest.raises(UserError, match=r"endings has '\.doc'"):
        make(TextFolder, {"path": str(folder), "endings": [".doc"]}, "data.sources.x")


def test_a_text_that_cannot_be_read_is_counted_by_name_and_the_others_are_kept(folder):
    (folder / "good.txt").write_text("good")
    (folder / "bad.txt").write_bytes(b"fine until here \xff\xfe\xfa")
    with open(folder / "large.txt", "wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    os.mkfifo(folder / "pipe.txt")
    os.symlink("/dev/zero", folder / "device.txt")
    os.symlink(folder / "nowhere", folder / "broken.txt")
    os.symlink(folder / "loop.txt", folder / "loop.txt")
    (folder.parent / "secret.txt").write_text("secret")
    os.symlink("../secret.txt", folder / "out.txt")
    os.symlink(folder.parent, folder / "out")
    os.symlink("good.txt", folder / "alias.txt")
    name = os.fsencode(folder) + b"/caf\xe9.txt"
    with open(name, "w") as file:
        file.write("latin name")
    source = TextFolder(str(folder))
    documents, causes = items(source)
    assert [d.text for d in documents] == ["good", "good"]
    assert causes == sorted(
        ["not_utf8", "too_large", "not_a_file", "name_not_utf8", *["cannot_open"] * 2, *["leaves_its_folder"] * 3]
    )
    before = source.content_hash()
    os.unlink(folder / "out.txt")
    assert source.content_hash() != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_counted(folder):
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    (folder / "b.txt").chmod(0)
    documents, causes = items(TextFolder(str(folder)))
    assert (len(documents), causes) == (1, ["cannot_open"])
    assert TextFolder(str(folder)).content_hash()


def test_a_folder_may_move_without_a_new_fingerprint(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.jsonl").write_bytes(line(text="x"))
    (folder / "sub" / "a.txt").write_text("x")
    made = [lambda f: TextFolder(str(f)), lambda f: Jsonl(str(f)), lambda f: HuggingFace(str(f))]
    before = [m(folder).content_hash() for m in made]
    folder = folder.rename(folder.parent / "moved")
    assert [m(folder).content_hash() for m in made] == before


def test_the_main_text_of_pages_is_taken_whatever_came_before(folder):
    for name in "abc":
        (folder / f"{name}.html").write_text(page("same"))
    documents, causes = items(TextFolder(str(folder), limit_documents=3))
    assert causes == []
    assert len({d.text for d in documents}) == 1
    assert documents[0].text.startswith("Heading same\nThe page same tells")
    assert "def f(x):\n    return x" in documents[0].text
    assert "Menu" not in documents[0].text
    assert "Footer" not in documents[0].text
    assert TextFolder(str(folder)).libraries() == ("trafilatura", "lxml")


def test_pages_are_decoded_as_they_say_and_hostile_ones_are_counted(folder):
    german = page("Grüße aus Köln").replace("<head>", '<head><meta charset="ISO-8859-1">')
    (folder / "german.html").write_bytes(german.encode("cp1252"))
    (folder / "wide.html").write_bytes(page("Grüße").encode("utf-16"))
    (folder / "nul.html").write_text(page("nul").replace("tells", "te\0lls"))
    (folder / "unknown.html").write_text(page("x").replace("<head>", '<head><meta charset="unicode_escape">'))
    documents, causes = items(TextFolder(str(folder)))
    assert causes == []
    assert all("tells in whole sentences" in d.text for d in documents)
    assert sum("Grüße" in d.text for d in documents) == 2
    (folder / "german.html").write_bytes(page("Grüße").encode("latin-1"))  # does not say so
    (folder / "wide.html").write_bytes(b"\xff\xfe" + b"\x00\xd8" * 99)
    (folder / "nul.html").write_text("<div>" * 100_000)
    (folder / "unknown.html").write_text("")
    documents, causes = items(TextFolder(str(folder)))
    assert (documents, causes) == ([], ["no_main_text", "no_main_text", "not_utf8", "wrong_encoding"])


def test_a_link_out_of_the_folder_is_refused_behind_a_glob_too(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "a.txt").write_text("mine")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    documents, causes = items(TextFolder(str(folder / "*.txt")))
    assert [d.text for d in documents] == ["mine"]
    assert causes == ["leaves_its_folder"]


def test_a_dataset_that_is_neither_here_nor_on_the_hub_is_one_clear_error(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="dataset is 'nobody/nothing-such@main'"):
        items(HuggingFace("nobody/nothing-such"))
