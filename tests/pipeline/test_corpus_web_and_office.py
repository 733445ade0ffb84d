"""Web archives, PDF and Word files: what is read, and that hostile or damaged ones are counted by name."""

import gzip
import io
import os
import subprocess
import sys
import time
import zipfile

import docx
import pypdf
import pytest
from data_corpus import items

from pipeline.corpus.sources.document_files import TextFolder, Warc
from pipeline.corpus.sources.document_text import parsed
from pipeline.corpus.text.user_files import Unreadable

pytestmark = pytest.mark.usefixtures("root")


# Web archives


def page(words: str) -> str:
    sentences = f"This page is about {words}, says so in whole sentences, and goes on for a while. " * 8
    return f"<html><head></head><body><nav>Menu</nav><article><p>{sentences}</p></article></body></html>"


def archive(*answers: tuple[str, bytes, dict], gz: bool = True) -> bytes:
    """`(url, body, {header: value})` each; `status` and `type` (of the record) may stand among the headers."""
    records = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\ninfo\r\n\r\n"]
    for url, body, headers in answers:
        headers = {"Content-Type": "text/html", **headers}
        kind, status = headers.pop("type", "response"), headers.pop("status", "200 OK")
        about = {"WARC-Type": kind, "WARC-Target-URI": url, "WARC-Date": "2026-01-02"}
        if kind == "response":
            body = f"HTTP/1.1 {status}\r\n".encode() + header_lines(headers) + body
            about["Content-Type"] = "application/http; msgtype=response"
        else:
            about |= headers
        about["Content-Length"] = str(len(body))
        records.append(b"WARC/1.0\r\n" + header_lines(about) + body + b"\r\n\r\n")
    return b"".join(gzip.compress(r) if gz else r for r in records)


def header_lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode() + b"\r\n"


def test_answers_that_hold_pages_or_text_become_documents(folder):
    import zstandard

    answers = [
        ("http://www.one.org/a", page("one").encode(), {}),
        ("https://two.org/b?c", page("Grüße").encode("cp1252"), {"Content-Type": "text/html; charset=ISO-8859-1"}),
        ("https://two.org/plain", b"plain text", {"Content-Type": "text/plain; charset=utf-8"}),
        ("https://two.org/packed", gzip.compress(page("packed").encode()), {"Content-Encoding": "gzip"}),
        ("https://two.org/x.png", b"\x89PNG", {"Content-Type": "image/png"}),
        ("https://two.org/gone", page("gone").encode(), {"status": "404 Not Found"}),
        ("https://two.org/asked", b"", {"type": "request"}),
        ("https://three.org/", "extracted text ü".encode(), {"type": "conversion", "Content-Type": "text/plain"}),
    ]
    plain = archive(*answers, gz=False)
    for name, data in {
        "a.warc": plain,
        "a.warc.gz": archive(*answers),
        "whole.warc.gz": gzip.compress(plain),  # one member for all records: warcio alone refuses it
        "a.warc.zst": zstandard.compress(plain),
    }.items():
        path = folder / name
        path.write_bytes(data)
        for tasks in (1, 3):
            documents, causes = items(Warc(str(path), license="own"), tasks)
            assert causes == []
            found = {d.id: d for d in documents}
            assert set(found) == {answers[i][0] for i in (0, 1, 2, 3, 7)}
        assert found["http://www.one.org/a"].text.startswith("This page is about one,")
        assert "Menu" not in found["http://www.one.org/a"].text
        assert found["https://two.org/b?c"].text.startswith("This page is about Grüße,")
        assert found["https://three.org/"].text == "extracted text ü"
        metadata = found["http://www.one.org/a"].metadata
        assert (metadata["group"], metadata["license"], metadata["kind"]) == ("one.org", "own", "prose")
        assert metadata["record"] == {"url": "http://www.one.org/a", "date": "2026-01-02"}
    assert len(items(Warc(str(folder / "a.warc"), limit_documents=2), 3)[0]) == 2


def test_bad_records_are_counted_and_the_others_kept(folder):
    answers = [
        ("http://a.org/", page("a").encode(), {}),
        ("http://a.org/bytes", page("Grüße").encode("latin-1"), {}),
        ("http://a.org/lies", page("Grüße").encode("latin-1"), {"Content-Type": "text/html; charset=shift_jis"}),
        ("http://a.org/nothing", b"<html></html>", {}),
        ("http://a.org/bomb", gzip.compress(b"\0" * 40_000_000), {"Content-Encoding": "gzip"}),
        ("http://[", page("z").encode(), {}),
    ]
    (folder / "a.warc.gz").write_bytes(archive(*answers))
    documents, causes = items(Warc(str(folder)), 3)
    assert sorted(d.id for d in documents) == ["http://[", "http://a.org/"]
    assert causes == ["no_main_text", "not_utf8", "too_large", "wrong_encoding"]


def declared(words: str, charset: str) -> str:
    return page(words).replace("<head>", f'<head><meta charset="{charset}">')


GERMAN, JAPANESE, RUSSIAN, CHINESE = "Grüße aus Köln", "日本語の文章", "Привет из Москвы", "中文网页的内容"
THAI, HEBREW, POLISH = "ภาษาไทย", "דף בדיקה", "Zażółć gęślą jaźń"
LATIN, UTF8 = "text/html; charset=ISO-8859-1", "text/html; charset=utf-8"
DECODED = {
    "default and meta UTF-8": (GERMAN, declared(GERMAN, "utf-8").encode(), LATIN),
    "default and meta Shift_JIS": (JAPANESE, declared(JAPANESE, "Shift_JIS").encode("cp932"), LATIN),
    "default and meta x-sjis": (JAPANESE, declared(JAPANESE, "x-sjis").encode("cp932"), LATIN),
    "default and meta windows-874": (THAI, declared(THAI, "windows-874").encode("cp874"), LATIN),
    "default and meta iso-8859-8-i": (HEBREW, declared(HEBREW, "ISO-8859-8-I").encode("iso8859_8"), LATIN),
    "default and meta x-mac-cyrillic": (RUSSIAN, declared(RUSSIAN, "x-mac-cyrillic").encode("mac_cyrillic"), LATIN),
    "default and meta x-cp1250": (POLISH, declared(POLISH, "x-cp1250").encode("cp1250"), LATIN),
    "default and meta Cyrillic": (RUSSIAN, declared(RUSSIAN, "windows-1251").encode("cp1251"), LATIN),
    "default and meta Chinese": (CHINESE, declared(CHINESE, "gb2312").encode("gb18030"), LATIN),
    "default and no meta": (GERMAN, page(GERMAN).encode(), LATIN),
    "default that is right": (GERMAN, page(GERMAN).encode("cp1252"), LATIN),
    "default that is right, meta wrong": (GERMAN, declared(GERMAN, "utf-8").encode("cp1252"), LATIN),
    "quotes of Windows": ("“quoted” €", page("“quoted” €").encode("cp1252"), LATIN),
    "header UTF-8 and meta wrong": (GERMAN, declared(GERMAN, "big5").encode(), UTF8),
    "header wrong and meta right": (JAPANESE, declared(JAPANESE, "euc-jp").encode("euc_jp"), UTF8),
    "meta of another page": (GERMAN, declared(GERMAN, "Shift_JIS").encode(), "text/html"),
    "seven bits": (JAPANESE, declared(JAPANESE, "iso-2022-jp").encode("iso2022_jp"), "text/html"),
    "prolog": (RUSSIAN, b'<?xml version="1.0" encoding="koi8-r"?>' + page(RUSSIAN).encode("koi8_r"), "text/html"),
    "UTF-16 of the header": (GERMAN, page(GERMAN).encode("utf-16-le"), "text/html; charset=utf-16"),
    "mark against the header": (GERMAN, page(GERMAN).encode("utf-16"), LATIN),
    "UTF-8 mark": (GERMAN, b"\xef\xbb\xbf" + page(GERMAN).encode(), LATIN),
}  # fmt: skip


def test_a_page_is_decoded_by_the_declaration_that_fits(folder):
    answers = [
        (f"http://a.org/{i}", body, {"Content-Type": kind}) for i, (_, body, kind) in enumerate(DECODED.values())
    ]
    (folder / "a.warc.gz").write_bytes(archive(*answers))
    documents, causes = items(Warc(str(folder)), 1)
    assert causes == []
    for name, (words, _, _), document in zip(DECODED, DECODED.values(), documents, strict=True):
        assert document.text.startswith(f"This page is about {words},"), name
        assert "\ufffd" not in document.text, name


@pytest.mark.parametrize(("encoding", "header"), [("utf-8", LATIN), ("utf-8", "text/html"), ("cp932", LATIN)])
def test_one_bad_byte_in_a_page_costs_one_character(folder, encoding, header):
    words = JAPANESE if encoding == "cp932" else GERMAN
    body = declared(words, {"cp932": "Shift_JIS"}.get(encoding, encoding)).encode(encoding)
    body = body.replace(b"and goes on", b"and \xff goes on", 1)
    (folder / "a.warc").write_bytes(archive(("http://a.org/", body, {"Content-Type": header}), gz=False))
    (folder / "a.html").write_bytes(body)
    for source in (Warc(str(folder)), TextFolder(str(folder), endings=[".html"])):
        (document,), causes = items(source, 1)
        assert causes == []
        assert document.text.count("\ufffd") == (encoding == "utf-8")  # 0xff is a character of private use in cp932
        assert document.text.count(words) == 8


def test_one_bad_byte_in_a_text_costs_one_character_and_marks_and_cookies_are_obeyed(folder):
    (folder / "bad.txt").write_bytes("Grüße aus ".encode() + b"\xff" + "Köln".encode())
    (folder / "wide.txt").write_bytes("Grüße aus Köln".encode("utf-16"))
    (folder / "wider.md").write_bytes("Grüße aus Köln".encode("utf-32"))
    (folder / "cookie.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'Grüße'\n".encode("latin-1"))
    (folder / "latin.txt").write_bytes("Grüße aus Köln, lang genug für einen Satz".encode("latin-1"))
    documents, causes = items(TextFolder(str(folder)), 1)
    found = {d.id: d.text for d in documents}
    assert found.pop("cookie.py").endswith("x = 'Grüße'\n")
    assert found == {"bad.txt": "Grüße aus \ufffdKöln", "wide.txt": "Grüße aus Köln", "wider.md": "Grüße aus Köln"}
    assert causes == ["not_utf8"]  # several bad bytes in a short text, and nothing declares what they are


def test_a_damaged_archive_keeps_what_came_before_and_the_next_file_goes_on(folder):
    three = [gzip.compress(archive((f"http://a.org/{i}", page("x").encode(), {}), gz=False)) for i in range(3)]
    (folder / "three.warc.gz").write_bytes(three[0] + three[1] + three[2][:-30])
    assert [len(found) for found in items(Warc(str(folder)), 1)] == [2, 1]
    (folder / "three.warc.gz").unlink()
    many = [(f"http://a.org/{i}", page(os.urandom(500).hex()).encode(), {}) for i in range(40)]
    data = archive(*many)
    plain = archive(*many, gz=False)
    harms = {
        "cut.warc.gz": (data[: len(data) // 2], 10, 30, ["damaged_file"]),
        "cut.warc": (plain[: len(plain) // 2], 10, 30, ["cut_off"]),
        "no address.warc": (plain + b"WARC/1.0\r\nWARC-Type: response\r\n\r\n\r\n", 40, 40, ["damaged_file"]),
        "no.warc": (b"rubbish\n" * 1000, 0, 0, ["damaged_file"]),
        "empty.warc.gz": (b"", 0, 0, ["empty_file"]),
        "header.warc": (plain + b"WARC/1.0\r\n" + b"X-Long: " + b"x" * 3_000_000, 40, 40, ["damaged_file"]),
        "headers.warc": (plain + b"WARC/1.0\r\n" + b"X: y\r\n" * 500_000, 40, 40, ["damaged_file"]),
        "inside.warc": (
            plain[: len(plain) // 2] + b"rubbish" * 99 + plain[len(plain) // 2 :],
            10,
            30,
            ["damaged_file"],
        ),
    }
    for name, (content, least, most, expected) in harms.items():
        (folder / name).write_bytes(content)
        for tasks in (1, 3):
            documents, causes = items(Warc(str(folder / name)), tasks)
            assert (causes, name) == (expected, name)
            assert least <= len(documents) <= most, name
    assert len(items(Warc(str(folder)), 2)[0]) >= 100


# PDF and Word


def pdf(*pages: str) -> bytes:
    """Written by hand: one line of text a page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() if text else b""
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        kids.append(len(objects) + 1)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
    kid_list = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kid_list, len(kids))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % at for at in offsets)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        out.index(b"xref\n"),
    )


def locked(data: bytes, password: str, owner: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(password, owner, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_pages_of_a_pdf_are_joined_and_bad_ones_are_counted(folder):
    good = pdf("First page.", "", "Third page.")
    (folder / "good.pdf").write_bytes(good)
    (folder / "open.pdf").write_bytes(locked(good, "", "owner"))
    (folder / "locked.pdf").write_bytes(locked(good, "secret", "owner"))
    (folder / "scanned.pdf").write_bytes(pdf("", ""))
    (folder / "rubbish.pdf").write_bytes(os.urandom(5_000))
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "cut.pdf").write_bytes(good[:60])
    (folder / "many.pdf").write_bytes(good.replace(b"/Count 3", b"/Count 9"))
    (folder / "circle.pdf").write_bytes(good.replace(b"/Kids [5 0 R", b"/Kids [2 0 R"))
    documents, causes = items(TextFolder(str(folder), kind="prose"))
    found = {d.id: d.text for d in documents}
    assert found["good.pdf"] == found["open.pdf"] == "First page.\n\nThird page."
    assert set(found) <= {"good.pdf", "open.pdf", "many.pdf", "circle.pdf", "cut.pdf"}
    assert len(found) + len(causes) == 9
    assert {"encrypted", "no_text", "damaged_file"} <= set(causes)
    assert set(causes) <= {"encrypted", "no_text", "damaged_file", "cannot_parse"}
    assert TextFolder(str(folder)).libraries() == ("pypdf",)


def word(*paragraphs: str) -> bytes:
    document = docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    table = document.add_table(2, 2)
    for i, cell in enumerate(c for row in table.rows for c in row.cells):
        cell.text = f"cell {i}"
    document.add_paragraph("after the table")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def with_part(data: bytes, name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        for part in before.namelist():
            after.writestr(part, content if part == name else before.read(part))
        if name not in before.namelist():
            after.writestr(name, content)
    return out.getvalue()


LAUGHS = b'<!DOCTYPE d [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY %c "%s">' % (ord("b") + i, b"&%c;" % (ord("a") + i) * 10) for i in range(12)
)


def test_a_word_file_keeps_the_order_of_paragraphs_and_tables_and_bad_ones_are_counted(folder):
    good = word("First.", "", "Second ü.")
    (folder / "good.docx").write_bytes(good)
    (folder / "cut.docx").write_bytes(good[: len(good) // 2])
    (folder / "rubbish.docx").write_bytes(b"rubbish")
    (folder / "bomb.docx").write_bytes(with_part(good, "word/media/x.bin", b"\0" * 20_000_000))
    (folder / "none.docx").write_bytes(with_part(good, "[Content_Types].xml", b"<x/>"))
    (folder / "xml.docx").write_bytes(with_part(good, "word/document.xml", b"<not closed"))
    (folder / "laughs.docx").write_bytes(with_part(good, "word/document.xml", LAUGHS + b"]><d>&m;</d>"))
    (folder / "zip.docx").write_bytes(with_part(b"PK\x05\x06" + bytes(18), "a.txt", b"no word file"))
    started = time.process_time()
    documents, causes = items(TextFolder(str(folder)))
    assert time.process_time() - started < 5
    assert [(d.id, d.text) for d in documents] == [
        ("good.docx", "First.\n\nSecond ü.\n\ncell 0\tcell 1\ncell 2\tcell 3\n\nafter the table")
    ]
    assert len(causes) == 7
    assert causes.count("bomb") == 1
    assert causes.count("damaged_file") >= 2
    assert set(causes) <= {"bomb", "damaged_file", "cannot_parse"}


def test_an_archive_that_lies_about_its_sizes_is_refused(folder):
    data = bytearray(with_part(word("text"), "word/document.xml", b"\0" * 9_000_000))
    at = data.rindex(b"word/document.xml") - 46 + 24  # the size in the directory at the archive's end
    data[at : at + 4] = (1000).to_bytes(4, "little")
    (folder / "lies.docx").write_bytes(data)
    documents, causes = items(TextFolder(str(folder)))
    assert documents == []
    assert causes in (["damaged_file"], ["cannot_parse"])


WITHOUT = """
import sys
sys.modules["pypdf"] = None  # how Python remembers that there is no such module
from pipeline.corpus.sources.document_files import TextFolder
from pipeline.system.errors import UserError
try:
    TextFolder(sys.argv[1]).content_hash()
except UserError as error:
    print(error)
TextFolder(sys.argv[1], endings=[".txt"]).content_hash()
print("docs" if "docx" in sys.modules or "trafilatura" in sys.modules or "lxml" in sys.modules else "light")
"""


def test_files_that_need_the_extra_are_named_with_the_command_before_anything_is_read(folder):
    (folder / "a.pdf").write_bytes(pdf("x"))
    (folder / "a.txt").write_text("x")
    command = [sys.executable, "-P", "-c", WITHOUT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "holds 1 .pdf files and pypdf is not installed" in done.stdout
    assert "pip install -e '.[docs]'" in done.stdout
    assert done.stdout.endswith("light\n")


# Parsers


def test_whatever_a_parser_raises_loses_that_document_only_but_a_stop_passes_through():
    def deep(n: int = 0) -> str:
        return deep(n + 1)

    def raises(error: BaseException):
        def parse() -> str:
            raise error

        return parse

    for parse, cause in ((deep, "cannot_parse"), (raises(KeyError("x")), "cannot_parse")):
        with pytest.raises(Unreadable) as found:
            parsed(parse)
        assert found.value.cause == cause
    with pytest.raises(KeyboardInterrupt):
        parsed(raises(KeyboardInterrupt()))


def test_a_parse_that_does_not_end_is_ended():
    def forever() -> str:
        while True:
            try:
                sum(range(1000))
            except Exception:  # what libraries do
                continue

    with pytest.raises(Unreadable, match="parse_timeout"):
        parsed(forever, seconds=0.2)
    time.sleep(0.01)
    assert parsed(lambda: "next", seconds=0.2) == "next"
