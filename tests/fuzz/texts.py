"""Cases of texts: JSON lines, tables, web archives, pages, plain text, PDF, Word, and what they are packed in.

Good files stand beside the damaged one, and every good document in them must come out. Of the damaged file every
record is counted: as a document, or set aside with a cause; and where the damage leaves a line as it was, so must we.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.corpus.execute import Executor
from pipeline.corpus.reading import read_source
from pipeline.corpus.sources.document_files import TextFolder, Warc
from pipeline.corpus.sources.records import Jsonl, Parquet
from pipeline.corpus.text.documents import SetAside, read_records, shard_name
from pipeline.storage.steps import Folder
from tests.fuzz.damage import dumped, mutate, mutate_value, odd
from tests.fuzz.judging import Wrong, equal, run, survive, texts, write

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1),
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
WHOLE_STEP_SHARE = 0.12  # of the cases go through the step itself, with its processes and files


@dataclass(frozen=True)
class Written:
    """A folder `in` with damaged and good files. `check(texts, items by file)` raises `Wrong` for what a source of
    `kind`, read with `options`, must have found there."""

    kind: Any
    check: Callable[[list[str], "Items"], None]
    options: Mapping[str, Any] = field(default_factory=dict)


def reading(write_case: Callable[[random.Random, Path], Written]) -> Callable[[random.Random, Path], None]:
    """The case that reads what `write_case` wrote."""

    def case(draw: random.Random, folder: Path) -> None:
        written = write_case(draw, folder)
        written.check(*read(written, folder, draw))

    return case


def jsonl(draw: random.Random, folder: Path) -> Written:
    good, own = texts(draw, 6), texts(draw, 5)
    sound = [dumped(record(text, draw)) for text in own]
    lines = list(sound)
    if draw.random() < 0.4:
        at = draw.randrange(len(lines))
        lines[at] = dumped(mutate_value(json.loads(lines[at]), draw))
        data = b"\n".join(lines) + b"\n"
    else:
        data = mutate(b"\n".join(lines) + b"\n", draw, (*lines, table(own)))
    before, after = good[:3], good[3:]
    for name, part in (("a", before), ("c", after)):
        ending = draw.choice(("", "", ".gz", ".zst"))
        whole = b"".join(dumped(record(text, draw)) + b"\n" for text in part)
        write(folder / f"in/{name}.jsonl{ending}", PACKED[ending](whole))
    write(folder / "in/b.jsonl", data)

    def check(found: list[str], items: Items) -> None:
        survive(good, found, "lines of the files beside it")
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # of UTF-16: said once, for the file
            return
        rest = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        whole = (text for text, line in zip(own, sound, strict=True) if line in rest)
        survive(whole, found, "whole lines of the file itself")
        if not _has_unusual_ends(data):
            equal(items["b.jsonl"], max(1, sum(bool(line.strip()) for line in rest)), "lines are not all counted")

    return Written(Jsonl, check, {"group_key": draw.choice((None, "meta.domain"))})


def _has_unusual_ends(data: bytes) -> bool:
    """Whether what a line is might be read in more than one way."""
    return any(end in data for end in (b"\0", b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85"))


def record(text: str, draw: random.Random) -> dict[str, Any]:
    licences = ("MIT", ["MIT", "Apache-2.0"], {"spdx_id": "MIT"}, None)
    more = {"score": draw.randrange(5), "meta": {"domain": f"site{draw.randrange(3)}.org", "tags": ["a", "b"]}}
    return {"id": draw.randrange(10**6), "text": text, "license": draw.choice(licences), **more}


def parquet(draw: random.Random, folder: Path) -> Written:
    good, own = texts(draw, 6), texts(draw, 8)
    write(folder / "in/a.parquet", table(good[:3]))
    write(folder / "in/c.parquet", table(good[3:]))
    data = _odd_table(own, draw) if draw.random() < 0.35 else mutate(table(own, draw), draw, (table(good),))
    write(folder / "in/b.parquet", data)

    def check(found: list[str], items: Items) -> None:
        survive(good, found, "rows of the files beside it")
        if items["b.parquet"] < 1:
            raise Wrong("a file that gave nothing is not counted")

    return Written(Parquet, check, {"metadata_keys": ["meta"], "group_key": draw.choice((None, "meta"))})


def table(rows: list[str], draw: random.Random | None = None) -> bytes:
    columns = {"text": pa.array(rows), "score": pa.array(range(len(rows)))}
    columns["license"] = pa.array(["MIT"] * len(rows))
    columns["meta"] = pa.array([{"url": "http://a.org", "tags": ["x"]}] * len(rows))
    out = io.BytesIO()
    packed = draw.choice(("snappy", "zstd", "gzip", "none", "lz4")) if draw else "snappy"
    pq.write_table(pa.table(columns), out, compression=packed, row_group_size=3 if draw else 100)
    return out.getvalue()


def _odd_table(rows: list[str], draw: random.Random) -> bytes:
    """A sound file of other types, or with odd rows."""
    n = len(rows)
    kinds: list[Callable[[], pa.Array]] = [
        lambda: pa.array(range(n)),
        lambda: pa.array([r.encode() for r in rows]),
        lambda: pa.array([b"\xff\xfe" + r.encode() for r in rows]),
        lambda: pa.array([[r] for r in rows]),
        lambda: pa.array([{"text": r} for r in rows]),
        lambda: pa.array(rows).dictionary_encode(),
        lambda: pa.array([None, *rows[1:]]),
        lambda: pa.nulls(n),
        lambda: pa.array([1.5] * n),
        lambda: pa.array(rows, pa.large_string()),
        lambda: pa.array([True] * n),
        lambda: pa.array([0] * n, pa.timestamp("ns")),
        lambda: pa.array([2**62] * n, pa.timestamp("us")),  # no year that Python knows
        lambda: pa.array(["x" * 2_000_000] * n),
        lambda: pa.array([""] * n),
    ]
    columns: dict[str, pa.Array] = {"text": draw.choice(kinds)(), "license": draw.choice(kinds)()}
    columns[draw.choice(("meta", "score", "text2", "", "a.b", "ü"))] = draw.choice(kinds)()
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def warc(draw: random.Random, folder: Path) -> Written:
    good = texts(draw, 4, 8)
    records = [_answer(f"http://www.a{i}.org/", text, draw) for i, text in enumerate(good)]
    data = mutate(draw.choice(records), draw, records)
    by_member = draw.random() < 0.5
    ending = ".gz" if by_member else draw.choice(("", ".zst"))
    pack = PACKED[ending]
    # The damaged record comes last in its file, so whatever stands before it is to be kept.
    write(folder / f"in/a.warc{ending}", b"".join(map(pack, (*records[:2], data))) if by_member else
          pack(b"".join(records[:2]) + data))  # fmt: skip
    whole = draw.choice(("", ".gz", ".zst"))
    write(folder / f"in/b.warc{whole}", PACKED[whole](b"".join(records[2:])))
    if ending and draw.random() < 0.3:
        path = folder / f"in/c.warc{ending}"
        write(path, mutate(path.with_name(f"a.warc{ending}").read_bytes(), draw))
    what = "records before the damage and in the file beside it"
    return Written(Warc, lambda found, _: survive(good, found, what))


def _answer(url: str, text: str, draw: random.Random) -> bytes:
    form = draw.choice(("html", "html", "latin", "plain", "packed", "extracted"))
    kind = "text/plain; charset=utf-8" if form in ("plain", "extracted") else "text/html; charset=utf-8"
    body = text.encode() if form in ("plain", "extracted") else page_of(text)
    more = ""
    if form == "packed":
        body, more = gzip.compress(body), "Content-Encoding: gzip\r\n"
    if form == "latin":
        kind = "text/html; charset=ISO-8859-1"
    about = f"WARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
    if form == "extracted":
        about = f"WARC-Type: conversion\r\n{about}Content-Type: text/plain\r\n"
    else:
        body = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body
        about = f"WARC-Type: response\r\n{about}Content-Type: application/http; msgtype=response\r\n"
    return f"WARC/1.0\r\n{about}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


def page_of(text: str) -> bytes:
    nav = "<nav><a href='/'>Menu</a></nav>"
    head = "<html><head><title>Title</title><meta charset='utf-8'></head>"
    return f"{head}<body>{nav}<article><p>{text}</p></article></body></html>".encode()


def html(draw: random.Random, folder: Path) -> Written:
    own = "".join(f"<p>{t}</p><table><tr><td>1</td></tr></table><pre>x = 1</pre>" for t in texts(draw, 4))
    whole = page_of(own) + b"<script>var a = '<p>';</script><!-- note --><ul><li>one<li>two</ul>"
    return _one_file(draw, folder, draw.choice((".html", ".htm")), whole)


def text(draw: random.Random, folder: Path) -> Written:
    own = draw.choice(("\n\n".join(texts(draw, 5)), "def f(x):\n    return x + 1\n\n\nclass A:\n    b = 'ü'\n" * 9))
    return _one_file(draw, folder, draw.choice((".txt", ".md", ".rst", ".py")), own.encode())


def pdf(draw: random.Random, folder: Path) -> Written:
    return _one_file(draw, folder, ".pdf", pdf_of(texts(draw, draw.choice((1, 2, 5))), draw.random() < 0.5))


def word(draw: random.Random, folder: Path) -> Written:
    """Half of the cases damage a part of the archive, and pack it again."""
    data = docx_of(texts(draw, 3))
    if draw.random() < 0.5:
        return _one_file(draw, folder, ".docx", data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(("word/document.xml", "word/document.xml", *parts))
    parts[name] = mutate(parts[name], draw, tuple(parts.values()))
    if draw.random() < 0.1:
        del parts[name]
    return _one_file(draw, folder, ".docx", zipped(parts), damaged=True)


def _one_file(draw: random.Random, folder: Path, ending: str, data: bytes, damaged: bool = False) -> Written:
    """A folder with the damaged file between good ones of several types: each gives one document or one cause."""
    good = texts(draw, 3, 8)
    write(folder / "in/a/good.txt", good[0].encode())
    write(folder / "in/m/good.html", page_of(good[1]))
    write(folder / "in/z.md", good[2].encode())
    write(folder / f"in/k/damaged{ending}", data if damaged else mutate(data, draw, (page_of(good[1]),)))

    def check(found: list[str], items: Items) -> None:
        survive(good, found, "files beside it")
        equal(items[f"k/damaged{ending}"], 1, "the damaged file is not counted once")

    return Written(TextFolder, check, {"license": "own"})


def packed(draw: random.Random, folder: Path) -> Written:
    """The same lines in every form of compression, the packed bytes damaged, cut, joined or under another's name."""
    good, own = texts(draw, 3), texts(draw, 40, 8)
    write(folder / "in/a.jsonl", b"".join(dumped({"text": t}) + b"\n" for t in good))
    ending = draw.choice([name for name in PACKED if name])
    lines = [dumped({"text": t}) + b"\n" for t in own]
    data, way = PACKED[ending](b"".join(lines)), draw.random()
    if way < 0.3:
        data = data[: draw.randrange(len(data))]
    elif way < 0.7:
        data = mutate(data, draw, [pack(b"".join(lines[:9])) for pack in PACKED.values()])
    elif way < 0.8:  # members one after the other
        data = b"".join(PACKED[ending](b"".join(lines[i : i + 10])) for i in range(0, 40, 10))
    else:
        data = PACKED[draw.choice(list(PACKED))](b"".join(lines))
    write(folder / f"in/b.jsonl{ending}", data)

    def check(found: list[str], items: Items) -> None:
        survive(good, found, "lines of the file beside it")
        if 0.7 <= way < 0.8:
            survive(own, found, "lines of a file of several members")
        if way < 0.3 and ending == ".gz":
            made = zlib.decompressobj(wbits=31).decompress(data)
            survive(own[: made.count(b"\n")], found, "whole lines before a file was cut off")
        if not items[f"b.jsonl{ending}"]:
            raise Wrong("a packed file that gave nothing is not counted", str(items))

    return Written(Jsonl, check)


def read(written: Written, folder: Path, draw: random.Random) -> tuple[list[str], "Items"]:
    """(texts, items by file) over all shards. Raises `Wrong` where reading ends in anything but items."""
    tasks = draw.choice((1, 2, 5))
    source = written.kind(str(folder / "in"), **written.options)
    if draw.random() < WHOLE_STEP_SHARE:
        step = Folder(folder / "step", {})
        step.path.mkdir()
        made = run(lambda: read_source(step, "web", source, 1.0, Executor(tasks, 1)))
        made.must_succeed("a source with good documents beside damage")
        documents = [r for i in range(tasks) for r in read_records(step.path / "documents" / shard_name(i))]
        aside = [r for i in range(tasks) for r in read_records(step.path / "set_aside" / shard_name(i))]
        equal(made.value["documents"], len(documents), "the step's documents are not those on disk")
        equal(sum(made.value["unreadable"].values()), len(aside), "the step's account is not what was set aside")
        names = [r["id"].removeprefix("web/") for r in documents] + [r["path"] for r in aside]
        return [r["text"] for r in documents], Items(names)
    items = run(lambda: [i for task in range(tasks) for i in source.documents(task, tasks)])
    items.must_succeed("a source with good documents beside damage")
    documents = [item for item in items.value if not isinstance(item, SetAside)]
    names = [item.path if isinstance(item, SetAside) else item.id for item in items.value]
    return [document.text for document in documents], Items(names)


class Items(dict[str, int]):
    """Name of a file -> how many documents and causes it gave."""

    def __init__(self, names: list[str]):
        super().__init__()
        for name in names:
            file = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
            self[file] = self.get(file, 0) + 1

    def __missing__(self, _: str) -> int:
        return 0


def pdf_of(pages: list[str], packed_streams: bool) -> bytes:
    """Written by hand: a line of text a page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for line in pages:
        content, more = f"BT /F1 12 Tf 72 700 Td ({line}) Tj ET".encode(), b""
        if packed_streams:
            content, more = zlib.compress(content), b" /Filter /FlateDecode"
        objects.append(b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(content), more, content))
        kids.append(len(objects) + 1)
        fonts = b"/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s >>" % (len(objects), fonts)
        )
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(b"%d 0 R" % k for k in kids), len(kids))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % at for at in offsets)
    start, size = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, rows)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, start)


def docx_of(paragraphs: list[str]) -> bytes:
    """The smallest archive that Word and python-docx open."""
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    rows = "".join(f"<w:p><w:r><w:t>{p}</w:t></w:r></w:p>" for p in paragraphs)
    cells = "".join(f"<w:tc><w:p><w:r><w:t>{i}</w:t></w:r></w:p></w:tc>" for i in range(2))
    body = f"{rows}<w:tbl><w:tblGrid><w:gridCol/><w:gridCol/></w:tblGrid><w:tr>{cells}</w:tr></w:tbl>"
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
        f'PartName="/word/document.xml" ContentType="{office}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{relation}" '
        'Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{main}"><w:body>{body}</w:body></w:document>',
    }
    return zipped({name: part.encode() for name, part in parts.items()})


def zipped(parts: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return out.getvalue()


def finetune(draw: random.Random, folder: Path) -> None:
    """Examples to tune on: good lines in the damaged file and in the file beside it are kept, the rest is counted."""
    from pipeline.tuning.data import read_sources

    kind = draw.choice(("text", "completion", "chat"))
    good, own = ([_example(t, kind, draw) for t in texts(draw, n)] for n in (4, 5))
    lines = [dumped(e) for e in own]
    if draw.random() < 0.5:
        at = draw.randrange(len(lines))
        lines[at] = dumped(mutate_value(own[at], draw))
        data = b"\n".join(lines)
    else:
        data = mutate(b"\n".join(lines) + b"\n", draw, lines)
    write(folder / "in/a.jsonl", b"\n".join(map(dumped, good)))
    write(folder / "in/b.jsonl", data)
    options = {"type": kind, "path": str(folder / "in/*.jsonl")}
    made = run(lambda: read_sources({"mine": options}, max_unreadable=1.0))
    survive(map(_learnt, good), _all_text(made.must_succeed("examples with good ones beside")), "examples beside it")
    whole = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        kept = [_learnt(e) for e, line in zip(own, map(dumped, own), strict=True) if line in whole]
        survive(kept, _all_text(made.value), "whole lines of the file itself")


def _all_text(found: dict[str, Any]) -> list[str]:
    return [
        text.rstrip("\0") for examples in found.values() for example in examples for text, learnt in example if learnt
    ]


def _example(text: str, kind: str, draw: random.Random) -> dict[str, Any]:
    if kind == "text":
        return {"text": text}
    if kind == "completion":
        return {"prompt": f"Say {draw.randrange(99)}:", "completion": text}
    asked = {"role": "user", "content": f"What is {draw.randrange(99)}?"}
    return {"messages": [asked, {"role": "assistant", "content": text}]}


def _learnt(example: dict[str, Any]) -> str:
    return example.get("text") or example.get("completion") or example["messages"][-1]["content"]


def decontamination(draw: random.Random, folder: Path) -> None:
    """Evaluation items: whatever stands beside the damage is still looked for, and no text takes the search along."""
    from pipeline.corpus.contamination import Index, item_files, read_items

    good, own = texts(draw, 4), texts(draw, 5)
    ending = draw.choice((".jsonl", ".jsonl", ".json", ".txt"))
    records = [{"question": t, "answer": "yes", "choices": ["a", t[:40]], "n": 1} for t in own]
    if ending == ".txt":
        data = mutate("\n\n".join(own).encode(), draw)
    elif draw.random() < 0.5:
        changed = mutate_value(records, draw)
        data = b"\n".join(map(dumped, changed)) if ending == ".jsonl" and isinstance(changed, list) else dumped(changed)
    else:
        data = mutate(b"\n".join(map(dumped, records)) if ending == ".jsonl" else dumped(records), draw)
    write(folder / "in/good.jsonl", b"\n".join(dumped({"question": t}) for t in good))
    write(folder / f"in/odd{ending}", data)
    keys = draw.choice((None, None, ["question"], ["question", "choices", "a.b"]))

    def look() -> list[bool]:
        found = read_items(item_files([str(folder / "in/*")]), keys).check(1.0)
        index = Index([item for items in found.made for item in items], 13, 8)
        return [index.match(text) is not None for text in (*good, data.decode("utf-8", "replace"), str(odd(draw)))]

    made = run(look)
    if made.code == 0:
        equal(made.value[: len(good)], [True] * len(good), "items beside it are not looked for")
    elif ending == ".jsonl":
        own_lines = [dumped(r) for r in records]
        if any(line in data.split(b"\n") for line in own_lines):
            raise Wrong("stopped: items with good ones beside", made.said[-1500:])


def sets(draw: random.Random, folder: Path) -> None:
    """Multiple-choice sets: sound items around a damaged one are asked."""
    from pipeline.evaluation.benchmarks import _read, check_sets

    made = [_question(t, draw) for t in texts(draw, 6)]
    lines = [dumped(q) for q in made]
    ending = draw.choice((".jsonl", ".jsonl", ".json", ".ndjson", ".parquet"))
    if ending == ".parquet":
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([{"prompt": "a", "options": ["b", "c"], "right": 1}] * 5), out)
        data = mutate(out.getvalue(), draw)
    elif draw.random() < 0.6:
        at = draw.randrange(len(lines))
        lines[at] = dumped(mutate_value(made[at], draw))
        data = b"\n".join(lines)
    else:
        data = mutate(b"\n".join(lines) + b"\n", draw, lines)
    path = write(folder / f"set{ending}", data)
    run(lambda: check_sets({"mine": str(path)}, 1.0))
    asked = run(lambda: [question.prompt for question in _read(path, "evaluate.sets.mine").check(1.0).made])
    if ending in (".jsonl", ".ndjson") and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        whole = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        kept = [q for q in made if dumped(q) in whole]
        if kept:
            prompts = asked.must_succeed("a set with sound items")
            survive([q.get("ctx") or q.get("goal") or q["prompt"] for q in kept], prompts, "sound items of a set")


def _question(text: str, draw: random.Random) -> dict[str, Any]:
    forms: list[dict[str, Any]] = [
        {"prompt": text, "options": ["yes", "no"], "right": 0},
        {"ctx": text, "endings": ["one", "two", "three"], "label": "2"},
        {"goal": text, "sol1": "first", "sol2": "second", "label": 1},
    ]
    return draw.choice(forms)
