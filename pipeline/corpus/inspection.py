"""What text lies where a person points, before there is a config: kinds, languages, sizes, what cannot be read.

In: a folder, a file, or `hub:owner/name`. Out: one `Text` per kind of source found there (files of text, JSON lines,
tables, web archives), with the options of that source. Names and sizes are of all files, everything else is of a
sample: `SAMPLE_FILES` files spread over all of them, the first records of each.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_filters.rule import CODE, PROSE
from pipeline.corpus.sources.document_files import (
    EXTRA_ENDINGS,
    PAGE_ENDINGS,
    PLAIN_ENDINGS,
    TEXT_ENDINGS,
    WARC_ENDINGS,
    TextFolder,
    Warc,
)
from pipeline.corpus.sources.input_files import FileSource, InputFile
from pipeline.corpus.sources.records import JSON_ENDINGS, TABLE_ENDINGS, Jsonl, Parquet, record_of
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.source import BYTES_PER_TOKEN
from pipeline.corpus.text.user_files import Unreadable, numbered_lines, parse, records, split_ending
from pipeline.system.errors import UserError

HUB = "hub:"
SAMPLE_FILES, SAMPLE_SLOW_FILES, SAMPLE_RECORDS, SAMPLE_BYTES = 100, 12, 50, 8_000_000
SLOW_ENDINGS = (*EXTRA_ENDINGS, *PAGE_ENDINGS)  # parsed, a file may take a second
LONG_CHARACTERS = 200_000  # a text longer than this is a book, and not one document
PIECE_CHARACTERS, MUCH_BYTES = 20_000, 1_000_000  # of less text the pieces are a tenth as long
FEW_DOCUMENTS = 8  # out of fewer nothing sensible is held out: longer ones are cut
TEXT_KEYS = ("text", "content", "body", "markdown", "document", "article", "code", "raw_content", "passage", "page")
GROUP_KEYS = ("domain", "host", "site", "repo", "repo_name", "repository", "package", "project", "book", "group")
WEB_KEYS = {"url", "domain", "host", "warc_date", "uri"}
CHAT_KEYS = {"messages", "conversations", "instruction", "output", "response", "completion"}
COMPRESSION = 4  # of compressed text, times
WARC_TEXT_SHARE = 0.2  # of an archive's bytes
LANGUAGE_CHARACTERS, LANGUAGE_SURE = 2_000, 0.5


@dataclass
class Text:
    """A source of text. `options`: of `data.sources.<name>`. `bytes` of its text, `documents`: estimates; None where
    unknown. `kinds`: kind -> share of the sample's bytes. `endings`: ending -> files. `languages`: of prose, share of
    the sampled documents. `unreadable`: cause -> how many of `sampled`. `web`: pages that nobody has chosen. `remarks`:
    what lies beside it and is not read."""

    given: str
    options: dict[str, Any]
    bytes: int | None = None
    documents: int | None = None
    endings: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, float] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    unreadable: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    web: bool = False
    remarks: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int | None:
        return None if self.bytes is None else round(self.bytes / BYTES_PER_TOKEN)

    @property
    def unreadable_share(self) -> float:
        return self.unreadable.total() / max(1, self.sampled)


def examine(given: str) -> list[Text]:
    """The sources that a path or hub name holds. Raises `UserError`, naming it, where there is no text."""
    if given.startswith(HUB):
        return [_of_hub(given)]
    path = Path(given).expanduser()
    if not path.exists():
        raise UserError(
            f"--text {given}: there is no such file or folder; expected a folder, a file, or hub:owner/name"
        )
    sources = [source for source in _sources(path) if _files(source)]
    if not sources:
        raise UserError(f"--text {given}: {_what_is_there(path)}; expected {', '.join(TEXT_ENDINGS[:4])} and other "
                        "text, code, .html, .pdf, .docx, .jsonl, .parquet or .warc files")  # fmt: skip
    found, refused = list[Text](), list[UserError]()
    for source in sources:
        try:
            found.append(_examined(given, source))
        except UserError as problem:
            refused.append(problem)
    good = [text for text in found if text.bytes]
    if good:
        good[0].remarks += map(str, refused)
    elif refused:
        raise refused[0]
    else:
        causes = Counter[str]()
        for text in found:
            causes += text.unreadable
        cut = "; cut a file of more than 32 MB into several" if "too_large" in causes else ""
        found_none = f"none of its text can be read ({words(causes) or 'every file is empty'}){cut}"
        raise UserError(f"--text {given}: {found_none}; expected text in UTF-8")
    return good


def words(counts: Mapping[str, int]) -> str:
    """`3 not_utf8, 1 damaged_file`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count:,} {name}" for name, count in ordered)


def _of_hub(given: str) -> Text:
    owner, _, rest = given.removeprefix(HUB).partition("/")
    name, _, config = rest.partition("/")
    if not owner or not name or "/" in config:
        raise UserError(f"--text {given}: expected hub:owner/name, or hub:owner/name/configuration")
    options = {"type": "huggingface", "dataset": f"{owner}/{name}", **({"config": config} if config else {})}
    return Text(given, {**options, "text_key": "text"}, kinds={PROSE: 1.0}, web=True)


def _sources(path: Path) -> Iterator[FileSource]:
    """Of each type, with the path that finds its files and no others."""
    absolute = str(path.resolve())
    if path.is_file():
        ending = split_ending(path.name)[0]
        by_ending = {JSON_ENDINGS: Jsonl, TABLE_ENDINGS: Parquet, WARC_ENDINGS: Warc}
        yield next((kind for endings, kind in by_ending.items() if ending in endings), TextFolder)(absolute)
        return
    yield TextFolder(absolute)
    yield from (Parquet(absolute), Warc(absolute))
    lines = Jsonl(absolute)
    dumps = [file for file in _files(lines) if file.ending != ".json"]
    others = [file for file in _files(lines) if file.ending == ".json"]
    if others and _text_key(_some_records(others)) in TEXT_KEYS:  # else settings and manifests
        yield lines
    elif dumps:
        exact = "" if not others else f"/**/*{_common_ending(dumps)}"
        yield Jsonl(f"{glob.escape(absolute)}{exact}" if exact else absolute)


def _common_ending(files: list[InputFile]) -> str:
    """The most frequent one, such as `.jsonl.gz`."""
    return Counter("".join(split_ending(file.name)) for file in files).most_common(1)[0][0]


def _files(source: FileSource) -> list[InputFile]:
    try:
        return source.files()
    except UserError:  # nothing there
        return []


def _what_is_there(path: Path) -> str:
    if path.is_file():
        return "this is no file that hornbook reads"
    skipped = Counter("".join(split_ending(file.name)) or "no ending" for file in path.rglob("*") if file.is_file())
    return f"the folder holds no text (it holds {words(skipped)})" if skipped else "the folder is empty"


def _examined(given: str, source: FileSource) -> Text:
    files = source.files()
    if isinstance(source, TextFolder):
        source.check_packages()
    text = Text(given, {"type": _TYPES[type(source)], "path": source.path})  # type: ignore[attr-defined]
    text.endings = Counter(file.ending for file in files)
    if isinstance(source, Jsonl | Parquet):
        source = _with_keys(source, text, files)
    sizes: dict[str, list[int]] = {}  # ending -> [bytes of the sampled files, of their text]
    kinds: Counter[str] = Counter()
    prose, longest, documents = list[str](), 0, 0
    chosen = _spread([f for f in files if f.ending not in SLOW_ENDINGS], SAMPLE_FILES)
    chosen += _spread([f for f in files if f.ending in SLOW_ENDINGS], SAMPLE_SLOW_FILES)
    for file in chosen:
        of_file = sizes.setdefault(file.ending, [0, 0])
        of_file[0] += file.size_bytes
        for item in _first_items(source, file):
            text.sampled += 1
            if isinstance(item, SetAside):
                text.unreadable[item.cause] += 1
                continue
            documents += 1
            n_bytes = len(item.text.encode("utf-8", "surrogatepass"))
            of_file[1] += n_bytes
            kinds[item.metadata["kind"]] += n_bytes
            longest = max(longest, len(item.text))
            if item.metadata["kind"] == PROSE:
                prose.append(item.text[:LANGUAGE_CHARACTERS])
        if kinds.total() > SAMPLE_BYTES:
            break
    text.kinds = {kind: count / kinds.total() for kind, count in kinds.items() if count}
    text.languages = _languages(prose)
    text.bytes, text.documents = _size(source, files, sizes, documents, text.sampled)
    piece = PIECE_CHARACTERS if text.bytes > MUCH_BYTES else PIECE_CHARACTERS // 10
    few = text.documents < FEW_DOCUMENTS and text.bytes > 4 * piece
    if isinstance(source, TextFolder) and (longest > LONG_CHARACTERS or few):
        text.options["split_characters"] = piece
    return text


_TYPES: dict[type, str] = {TextFolder: "text", Jsonl: "jsonl", Parquet: "parquet", Warc: "warc"}


def _spread(files: list[InputFile], most: int) -> list[InputFile]:
    """At most `most` of them, evenly over their order."""
    return files[:: -(-len(files) // most)] if files else []


def _first_items(source: FileSource, file: InputFile) -> Iterator[Document | SetAside]:
    try:
        if file.problem is not None:
            raise file.problem
        for number, raw in enumerate(islice(source.raw_records(file), SAMPLE_RECORDS)):
            if isinstance(raw, Unreadable):
                raise raw
            item = source.item(raw, file, f"{file.name}:{number + 1}")
            if item is not None:
                yield item
    except Unreadable as problem:
        yield SetAside(file.name, problem.cause, problem.sample)


def _size(
    source: FileSource, files: list[InputFile], sizes: Mapping[str, list[int]], documents: int, sampled: int
) -> tuple[int, int]:
    """(bytes of text, documents) of all files: those of records by their size on disk, others by what the sample's
    files gave."""
    disk = Counter[str]()
    for file in files:
        packed = bool(split_ending(file.name)[1])
        disk[file.ending] += file.size_bytes * (COMPRESSION if packed and file.ending != ".parquet" else 1)
    if not documents:
        return 0, 0
    if isinstance(source, TextFolder):
        shares = {e: text / on_disk if on_disk else 0.0 for e, (on_disk, text) in sizes.items()}
        plain = sum(n * (1.0 if e in PLAIN_ENDINGS else shares.get(e, 1.0)) for e, n in disk.items())
        return round(plain * documents / max(1, sampled)), round(len(files) * documents / max(1, sampled))
    mean = sum(text for _, text in sizes.values()) / documents
    if isinstance(source, Parquet):
        import pyarrow.parquet as pq

        rows = sum(pq.ParquetFile(file.path).metadata.num_rows for file in files if file.problem is None)
        return round(rows * mean), rows
    if isinstance(source, Warc):
        return round(disk.total() * WARC_TEXT_SHARE), round(disk.total() * WARC_TEXT_SHARE / mean)
    in_records = _bytes_of_records(source, files)
    share = min(1.0, mean / in_records) if in_records else 1.0
    return round(disk.total() * share), round(disk.total() * share / mean)


def _bytes_of_records(source: FileSource, files: list[InputFile]) -> float:
    """Of a record as it stands in its file, on average."""
    raws = [raw for file in files[:SAMPLE_SLOW_FILES] if file.problem is None for raw in _raw_lines(file)]
    return sum(map(len, raws)) / len(raws) if raws else 0.0


def _raw_lines(file: InputFile) -> list[bytes]:
    lines = (line for _, line in islice(numbered_lines(file.path), SAMPLE_RECORDS))
    return [line for line in lines if isinstance(line, bytes) and line.strip()]


def _some_records(files: list[InputFile]) -> list[dict[str, Any]]:
    found = []
    for file in _spread([f for f in files if f.problem is None], SAMPLE_SLOW_FILES):
        if file.ending == ".json":
            values = (value for _, value in records(file.path))
        else:
            values = (_parsed(line) for line in _raw_lines(file))
        found += [value for value in islice(values, SAMPLE_RECORDS) if isinstance(value, dict)]
    return found


def _parsed(line: bytes) -> Any:
    try:
        return parse(line)
    except Unreadable:
        return None


def _some_rows(files: list[InputFile]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for file in _spread([f for f in files if f.problem is None], SAMPLE_SLOW_FILES):
        try:
            batch = next(pq.ParquetFile(file.path).iter_batches(SAMPLE_RECORDS), None)
        except (pa.ArrowException, OSError, ValueError):
            continue
        rows = [record_of(batch, row) for row in range(batch.num_rows)] if batch is not None else []
        found += [row for row in rows if isinstance(row, dict)]
    return found


def _with_keys(source: Jsonl | Parquet, text: Text, files: list[InputFile]) -> Jsonl | Parquet:
    """The same source with the fields that its records have; they go into the options."""
    some = _some_records(files) if isinstance(source, Jsonl) else _some_rows(files)
    key = _text_key(some)
    if key is None and some:
        names = sorted({name for record in some for name in record})[:20]
        chat = "; examples of a dialog are for `hornbook finetune`" if set(names) & CHAT_KEYS else ""
        raise UserError(f"--text {text.given}: its records have no field of text (fields: {', '.join(names)}){chat}; "
                        f"expected one such as {', '.join(TEXT_KEYS[:3])}")  # fmt: skip
    if key not in (None, "text"):
        text.options["text_key"] = key
    group = next((name for name in GROUP_KEYS if some and len({str(r.get(name)) for r in some if name in r}) > 4), None)
    if group:
        text.options["group_key"] = group
    text.web = any(name.lower() in WEB_KEYS for record in some for name in record)
    if _looks_like_code(some, key):
        text.options["kind"] = CODE
    kind = {"kind": CODE} if text.options.get("kind") else {}
    return type(source)(source.path, text_key=key or "text", **kind)


def _looks_like_code(some: list[dict[str, Any]], key: str | None) -> bool:
    """Records of programs name the file that they were, or the field `code`."""
    names = [str(r.get(n)) for r in some for n in ("path", "file", "file_path", "filename") if n in r]
    code = sum(PLAIN_ENDINGS.get(Path(name).suffix.lower()) == CODE for name in names)
    return key == "code" or (bool(names) and code > len(names) / 2)


def _text_key(some: list[dict[str, Any]]) -> str | None:
    """The usual name that most records have, else the field with most text; None where no field has sentences."""
    lengths: Counter[str] = Counter()
    spaced: Counter[str] = Counter()
    for record in some:
        for name, value in record.items():
            if isinstance(value, str):
                lengths[name] += len(value)
                spaced[name] += len(value.split()) > 5
    usual = [name for name in TEXT_KEYS if 2 * sum(isinstance(r.get(name), str) for r in some) > len(some)]
    if usual or any(CHAT_KEYS & set(record) for record in some):
        return usual[0] if usual else None
    return next((name for name, _ in lengths.most_common() if 2 * spaced[name] > len(some)), None)


def _languages(prose: list[str]) -> dict[str, float]:
    """ISO 639-1 code -> share of the texts that are surely in one language; at most five."""
    from data_filters.language import identify

    if not prose:
        return {}
    found = [language for language, sure in map(identify, _spread_texts(prose)) if sure >= LANGUAGE_SURE]
    counts = Counter(found).most_common(5)
    return {language: count / len(found) for language, count in counts}


def _spread_texts(prose: list[str]) -> list[str]:
    return prose[:: -(-len(prose) // 40)]
