"""A folder of the user's own files, each a document: text, Markdown, code, pages, and (extra `docs`) PDF and Word."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_filters.rule import CODE, PROSE
from pipeline.corpus.compressed import Unreadable, read_whole
from pipeline.corpus.input_files import InputFile, hash_inputs, in_folder, matching
from pipeline.corpus.office_text import docx_text, pdf_text
from pipeline.corpus.page_text import decode_code, decode_page, decode_text, main_text
from pipeline.corpus.source import Item, Source, TextOptions, document, missing, set_aside

PLAIN_ENDINGS = {".txt": PROSE, ".md": PROSE, ".rst": PROSE, ".py": CODE}
PAGE_ENDINGS = (".html", ".htm")
EXTRA_ENDINGS = {".pdf": ("pypdf", "pypdf"), ".docx": ("docx", "python-docx")}  # module, distribution
ENDINGS = (*PLAIN_ENDINGS, *PAGE_ENDINGS, *EXTRA_ENDINGS)


class TextFolder(Source):
    """A folder of `.txt`, `.md`, `.rst`, `.py`, `.html`, `.htm` (main text), `.pdf` and `.docx` files (extra `docs`),
    each a document; its first folder level is the group. `endings`: which of these to read (default: all); files of
    others are not looked at. `license: own` marks private text. `kind`: null takes it from the ending. Links out of
    the folder are not followed. `limit_tokens`: at 4 bytes a token.
    """

    version = 3
    options = TextOptions

    def __init__(self, path: str, endings: Sequence[str] | None = None, **common: Any):
        self.path = path
        self.limits = options = TextOptions(**common)
        self.license, self.kind = options.license, options.kind
        self.endings = _checked(endings)

    def files(self) -> list[InputFile]:
        if not Path(self.path).expanduser().is_dir():
            return matching(self.path, "a folder, a text file", self.endings, links_inside=True)
        found = in_folder(self.path, lambda name: name.lower().endswith(self.endings))
        if not found:
            raise missing(f"{self.path} holds no text file", f"files ending in {', '.join(self.endings)}", "path")
        return found

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
        return hash_inputs(files)

    def libraries(self) -> tuple[str, ...]:
        found = {f.ending for f in self.files()}
        pages = ("trafilatura", "lxml") if found & set(PAGE_ENDINGS) else ()
        return (*pages, *(name for ending, (_, name) in EXTRA_ENDINGS.items() if ending in found))

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        for file in self.files()[task::tasks]:
            try:
                text = _text(file)
            except Unreadable as problem:
                yield set_aside(file.name, problem)
                continue
            kind = self.kind or PLAIN_ENDINGS.get(file.ending, PROSE)
            yield document(text, path=file.name, group=file.name.split("/")[0], license=self.license, kind=kind)


def _text(file: InputFile) -> str:
    if file.problem is not None:
        raise file.problem
    if file.ending in PAGE_ENDINGS:
        return main_text(decode_page(read_whole(file.path)))
    if file.ending == ".pdf":
        return pdf_text(read_whole(file.path))
    if file.ending == ".docx":
        return docx_text(read_whole(file.path))
    data = read_whole(file.path)
    return decode_code(data) if file.ending == ".py" else decode_text(data)


def _checked(endings: Sequence[str] | None) -> tuple[str, ...]:
    if endings is None:
        return ENDINGS
    if isinstance(endings, str) or not endings or not all(isinstance(e, str) for e in endings):
        raise ValueError(f"endings is {endings!r}; expected a list such as [.md, .html]")
    chosen = [e.lower() if e.startswith(".") else f".{e.lower()}" for e in endings]
    unknown = [e for e in chosen if e not in ENDINGS]
    if unknown:
        raise ValueError(f"endings has '{unknown[0]}'; expected some of {', '.join(ENDINGS)}")
    return tuple(sorted(set(chosen)))
