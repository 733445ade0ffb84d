"""Text of PDF and Word files, through pypdf and python-docx (extra `docs`), bounded before and while it is parsed."""

import io
import zipfile
from typing import Any

from pipeline.corpus.sources.parsing import parsed, quiet
from pipeline.corpus.text.compressed import BOMB_RATIO, Unreadable
from pipeline.corpus.text.documents import MAX_TEXT_BYTES

MAX_PAGES = 5_000
MAX_UNPACKED_BYTES = 256_000_000  # of a .docx: python-docx keeps every part of it in memory, pictures too
_MAX_HONEST_PART_BYTES = 10_000_000  # a part beyond it that shrank by more than BOMB_RATIO is no text


def pdf_text(data: bytes) -> str:
    """The pages' text, a blank line between them. Raises `Unreadable`: `damaged_file`, `encrypted`, `too_large`,
    `no_text` (scanned pages), `cannot_parse`, `parse_timeout`."""
    return parsed(lambda: _pdf_text(data))


def _pdf_text(data: bytes) -> str:
    quiet("pypdf")
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # many are open to read and locked to change only
            raise Unreadable("encrypted", "a password is needed")
        n_pages = len(reader.pages)
    except DependencyError:
        raise Unreadable("encrypted", "its cipher needs another library") from None
    except (PyPdfError, OSError) as error:
        raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None
    if n_pages > MAX_PAGES:
        raise Unreadable("too_large", f"{n_pages:,} pages; at most {MAX_PAGES:,} are read")
    texts, n_characters = [], 0
    for page in reader.pages:
        text = page.extract_text().strip()
        n_characters += len(text)
        if n_characters > MAX_TEXT_BYTES:
            raise Unreadable("too_large", f"over {MAX_TEXT_BYTES:,} characters")
        texts.append(text)
    whole = "\n\n".join(t for t in texts if t)
    if not whole:
        raise Unreadable("no_text", f"{n_pages:,} pages without a character: scanned?")
    return whole


def docx_text(data: bytes) -> str:
    """Paragraphs and tables in their order, a table's cells with tabs between. Raises `Unreadable`: `damaged_file`,
    `bomb`, `no_text`, `too_large`, `cannot_parse`, `parse_timeout`."""
    _check_archive(data)
    return parsed(lambda: _docx_text(data))


def _check_archive(data: bytes) -> None:
    """By the sizes that the archive declares; a part that goes on beyond its own is refused when it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None
    whole = sum(p.file_size for p in parts)
    if whole > MAX_UNPACKED_BYTES:
        raise Unreadable("bomb", f"{len(data):,} bytes unpack to {whole:,}; at most {MAX_UNPACKED_BYTES:,} are read")
    for part in parts:
        if part.file_size > _MAX_HONEST_PART_BYTES and part.file_size > BOMB_RATIO * max(part.compress_size, 1):
            raise Unreadable("bomb", f"{part.filename}: {part.compress_size:,} bytes unpack to {part.file_size:,}")


def _docx_text(data: bytes) -> str:
    import docx
    from docx.opc.exceptions import OpcError
    from docx.text.paragraph import Paragraph

    try:
        opened = docx.Document(io.BytesIO(data))
    except (OpcError, zipfile.BadZipFile) as error:
        raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None
    blocks = [block.text if isinstance(block, Paragraph) else _rows(block) for block in opened.iter_inner_content()]
    text = "\n\n".join(b for b in blocks if b.strip())
    if not text:
        raise Unreadable("no_text", f"{len(blocks):,} paragraphs and tables without a character")
    if len(text) > MAX_TEXT_BYTES:
        raise Unreadable("too_large", f"over {MAX_TEXT_BYTES:,} characters")
    return text


def _rows(table: Any) -> str:
    lines = []
    for row in table.rows:
        cells = {id(cell._tc): cell.text.replace("\n", " ") for cell in row.cells}  # a merged cell comes repeatedly
        lines.append("\t".join(cells.values()))
    return "\n".join(lines)
