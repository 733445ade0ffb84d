"""A folder of the user's own files, each a document: text, Markdown, code, notebooks, pages, and (extra `docs`) PDF
and Word; plain or compressed."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from data_filters.rule import CODE, PROSE
from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.sources.office_text import docx_text, pdf_text
from pipeline.corpus.sources.page_text import decode_code, decode_page, decode_text, main_text
from pipeline.corpus.sources.source import Item, TextOptions, document, missing
from pipeline.corpus.text.compressed import COMPRESSIONS, UNKNOWN_COMPRESSIONS, Unreadable, read_whole

_PROSE = (
    ".txt", ".text", ".md", ".markdown", ".mdx", ".qmd", ".rmd", ".rst", ".adoc", ".asciidoc", ".org", ".tex", ".texi",
    ".textile", ".wiki",
)  # fmt: skip
_CODE = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".cs", ".java", ".js", ".jsx", ".mjs",
    ".cjs", ".ts", ".tsx", ".go", ".rs", ".kt", ".kts", ".swift", ".rb", ".php", ".sh", ".bash", ".zsh", ".ps1", ".sql",
    ".scala", ".lua", ".pl", ".pm", ".r", ".jl", ".hs", ".ml", ".mli", ".erl", ".ex", ".exs", ".clj", ".lisp", ".scm",
    ".dart", ".groovy", ".zig", ".nim", ".f90", ".f", ".pas", ".asm", ".vb", ".fs", ".m", ".mm", ".cu", ".cuh",
    ".proto", ".css", ".scss", ".vue", ".svelte", ".sass", ".less", ".coffee", ".elm", ".sol", ".rkt", ".el", ".tcl",
    ".v", ".sv", ".vhd", ".vhdl", ".s", ".adb", ".ads", ".f77", ".f95", ".f03", ".f08", ".for", ".cob", ".cbl", ".bat",
    ".cmd", ".cmake", ".gradle", ".nix", ".tf", ".awk", ".vim", ".jsp", ".erb", ".thrift", ".graphql", ".hx", ".cr",
    ".raku", ".purs", ".ino", ".inl", ".inc", ".mojo",
)  # fmt: skip
PLAIN_ENDINGS = {**dict.fromkeys(_PROSE, PROSE), **dict.fromkeys(_CODE, CODE)}
NOTEBOOK = ".ipynb"
PAGE_ENDINGS = (".html", ".htm", ".xhtml")
EXTRA_ENDINGS = {".pdf": ("pypdf", "pypdf"), ".docx": ("docx", "python-docx")}  # module, distribution
ENDINGS = (*PLAIN_ENDINGS, NOTEBOOK, *PAGE_ENDINGS, *EXTRA_ENDINGS)
# Formats that are no text, so that a mistake is found before anything is read.
_BINARY_ENDINGS = (
    ".doc", ".dot", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".ods", ".odp", ".epub", ".mobi", ".zip", ".tar", ".tgz",
    ".rar", ".jar", ".exe", ".dll", ".so", ".o", ".a", ".class", ".pyc", ".png", ".jpg", ".jpeg", ".gif", ".bmp",
    ".tif", ".tiff", ".webp", ".ico", ".mp3", ".mp4", ".wav", ".ogg", ".avi", ".mov", ".parquet", ".arrow", ".npy",
    ".npz", ".pkl", ".pt", ".safetensors", ".gguf", ".bin", ".db", ".sqlite",
)  # fmt: skip


class TextFolder(FileSource):
    """A folder of text (`.txt`, `.md`, `.rst`, `.tex`, `.org`), code (`.py`, `.c`, `.js`, `.go`, `.rs`, `.java` and
    many more), notebooks (`.ipynb`), pages (`.html`, main text), `.pdf` and `.docx` (extra `docs`), plain or
    compressed (`.gz`), each a document; its first folder level is the group. `endings`: which to read (default: all of
    these); any other ending may stand there and is read as plain text. Files of others are counted, not looked at.
    `license: own` marks private text. `kind`: null takes it from the ending. Links out of the folder are not followed.
    `limit_tokens`: at 4 bytes a token.
    """

    version = 4
    options = TextOptions

    def __init__(self, path: str, endings: Sequence[str] | None = None, **common: Any):
        self.path = path
        self.limits = options = TextOptions(**common)
        self.license, self.kind = options.license, options.kind
        self.endings = _checked(endings)

    def find(self) -> Inputs:
        shown, more = ", ".join(self.endings[:12]), len(self.endings) - 12
        wanted = f"files ending in {shown}{f' and {more} more, or those of `endings`' if more > 0 else ''}"
        what = f"a folder, a text file, {wanted}"
        return find_inputs(self.path, what, self._wanted, links_inside=True, noun="text file")

    def _wanted(self, name: str) -> bool:
        name = name.lower()
        packed = next((e for e in (*COMPRESSIONS, *UNKNOWN_COMPRESSIONS) if name.endswith(e)), "")
        return name.endswith(self.endings) or name.removesuffix(packed).endswith(self.endings)

    def content_hash(self) -> str:
        files = self.files()
        for ending, (module, distribution) in EXTRA_ENDINGS.items():
            count = sum(f.ending == ending for f in files)
            if count and importlib.util.find_spec(module) is None:
                raise missing(
                    f"{self.path} holds {count:,} {ending} files and {distribution} is not installed",
                    "it: `pip install -e '.[docs]'`, or `endings` without this one",
                    "path",
                )
        return super().content_hash()

    def libraries(self) -> tuple[str, ...]:
        found = {f.ending for f in self.files()}
        pages = ("trafilatura", "lxml") if found & set(PAGE_ENDINGS) else ()
        return (*pages, *(name for ending, (_, name) in EXTRA_ENDINGS.items() if ending in found))

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        yield file

    def item(self, raw: Any, file: InputFile, place: str) -> Item:
        kind = self.kind or (CODE if file.ending == NOTEBOOK else PLAIN_ENDINGS.get(file.ending, PROSE))
        group = file.name.split("/")[0]
        return document(_text(file), path=file.name, group=group, license=self.license, kind=kind)


def _text(file: InputFile) -> str:
    data = read_whole(file.path)
    if file.ending in PAGE_ENDINGS:
        return main_text(decode_page(data))
    if file.ending == ".pdf":
        return pdf_text(data)
    if file.ending == ".docx":
        return docx_text(data)
    if file.ending == NOTEBOOK:
        return notebook_text(decode_text(data))
    return decode_code(data) if file.ending in (".py", ".pyi") else decode_text(data)


def notebook_text(text: str) -> str:
    """The cells of a Jupyter notebook, its words and its code in their order, a blank line between; no outputs. Raises
    `Unreadable`: `broken_json`, `no_text`."""
    try:
        book = orjson.loads(text)
        sheets = book.get("worksheets") or [book]  # before version 4 of the format
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        sources = [cell.get("source", cell.get("input", "")) for cell in cells if cell.get("cell_type") != "raw"]
        parts = [part if isinstance(part, str) else "".join(part) for part in sources]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unreadable("broken_json", f"no notebook: {type(error).__name__}: {error}") from None
    whole = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not whole:
        raise Unreadable("no_text", f"{len(parts):,} cells without a character")
    return whole


def _checked(endings: Sequence[str] | None) -> tuple[str, ...]:
    if endings is None:
        return ENDINGS
    if isinstance(endings, str) or not endings or not all(isinstance(e, str) for e in endings):
        raise ValueError(f"endings is {endings!r}; expected a list such as [.md, .html]")
    chosen = [e.lower() if e.startswith(".") else f".{e.lower()}" for e in endings]
    binary = [e for e in chosen if e in _BINARY_ENDINGS]
    if binary:
        raise ValueError(
            f"endings has '{binary[0]}', which is no text; expected endings of text, such as {', '.join(ENDINGS[:4])}"
        )
    return tuple(sorted(set(chosen)))
