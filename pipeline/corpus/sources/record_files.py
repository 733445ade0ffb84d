"""Sources whose input is records: JSON lines, Parquet tables, and datasets of the Hugging Face hub.

A broken line or row is set aside by the name of its cause and does not affect its neighbours. Parquet is read row
group by row group, with the needed columns only. A hub dataset is streamed through `datasets`; nothing is downloaded
whole. The files of a local dataset folder are read one by one, each with its own columns: `datasets` decides which they
are, tables and JSON lines are read as by `parquet` and `jsonl`, and other formats through `datasets`. Tested on local
folders; the hub itself is **unmeasured** (no network where this was written).
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.sources.records import LICENCE_FIELDS, RecordReader
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.source import Item, RecordOptions, missing, set_aside
from pipeline.corpus.text.user_files import (
    BOMB_BYTES,
    BOMB_RATIO,
    MAX_TEXT_BYTES,
    Unreadable,
    numbered_lines,
    open_input,
    parse,
    split_ending,
)
from pipeline.storage.files import hash_files, hash_json
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_MAX_JSON_BYTES = 4 * MAX_TEXT_BYTES  # of a file that is one JSON value

TABLE_ENDINGS = (".parquet", ".parq", ".pq")
_PLAIN_TABLES = {(ending, "") for ending in TABLE_ENDINGS}
_ROWS_AT_ONCE = 32  # a text may be 32 MB
_BUFFER_BYTES = 1 << 20  # a column is streamed through it, where row groups are a gigabyte


class Jsonl(FileSource):
    """JSON lines, plain or compressed (`.gz`, `.bz2`, `.xz`, `.zst`): one record a line, the text under `text_key`; a
    `.json` file may be one list of records. `path`: file, glob or folder. `group_key`: field whose documents are held
    out together (default: each its own). `metadata_keys`: fields that are kept with the document. `license`: of records
    that state none; `own` for private text. `where`: which records are wanted, such as `int_score >= 3 and language ==
    'en'` (docs/data/README.md). `limit_tokens`: at 4 bytes a token.
    """

    version = 3
    options = RecordOptions

    def __init__(self, path: str, **common: Any):
        self.path = path
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)

    def find(self) -> Inputs:
        wanted = "a file of JSON lines (.jsonl, .ndjson, .json, or one of them compressed), a folder of them"
        return find_inputs(self.path, wanted, lambda name: split_ending(name)[0] in JSON_ENDINGS)

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        whole = _one_value(file) if file.ending == ".json" else None
        return iter(whole) if whole is not None else (line for _, line in numbered_lines(file.path))

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        if not isinstance(raw, bytes):
            return self.reader.read(raw, place)
        if not raw.strip():
            return None  # a blank line is no document
        try:
            item = self.reader.read(parse(raw), place)
        except Unreadable as problem:
            item = set_aside(place, problem)
        unread = isinstance(item, SetAside) and item.filter is None
        return replace(item, bytes=len(raw)) if unread else item  # type: ignore[type-var]


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(parse(line), dict)
    except Unreadable:
        return False


def _one_value(file: InputFile) -> list[Any] | None:
    """The records of a file that is one JSON value over several lines, or one list; None where it is lines."""
    try:
        with open_input(file.path) as opened:
            data = opened.read(_MAX_JSON_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
        if len(data) > _MAX_JSON_BYTES or not data.lstrip().startswith((b"[", b"{")):
            return None
        if data.lstrip().startswith(b"{"):
            first, _, rest = data.partition(b"\n")
            if not rest.strip() or _is_record(first):
                return None
        value = parse(data)
    except (Unreadable, OSError):
        return None
    return value if isinstance(value, list) else [value]


class Parquet(FileSource):
    """Parquet: one record a row, the text in the column `text_key` (`a.b`: a field of a struct column). `path`: file,
    glob or folder. Other options as for `jsonl`: `group_key`, `metadata_keys`, `license`, `where`, limits.
    """

    options = RecordOptions

    def __init__(self, path: str, **common: Any):
        self.path = path
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)

    def find(self) -> Inputs:
        return find_inputs(self.path, "a .parquet file, a folder of them", lambda n: split_ending(n) in _PLAIN_TABLES)

    def libraries(self) -> tuple[str, ...]:
        return ("pyarrow",)

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        """(batch, row): a row becomes a record where it is asked for."""
        import pyarrow as pa

        open_input(file.path).close()  # says what is no file, or not downloaded
        try:
            yield from self._rows(file)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # of damaged names, too
            raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        record = record_of(*raw)
        return set_aside(place, record) if isinstance(record, Unreadable) else self.reader.read(record, place)

    def _rows(self, file: InputFile) -> Iterator[tuple["pa.RecordBatch", int]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as table:
            self._check_columns(table.schema_arrow)
            _check_growth(table.metadata, file.path.stat().st_size)
            asked = {top for key in self.reader.keys for top in _tops(key)}
            columns = [c for c in table.schema_arrow.names if c in asked or c.lower() in LICENCE_FIELDS]
            for number in range(table.metadata.num_row_groups):
                for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[number], columns=columns, use_threads=False):
                    for row in range(batch.num_rows):
                        yield batch, row

    def _check_columns(self, schema: "pa.Schema") -> None:
        names = f"columns: {', '.join(schema.names)}"
        text, *others = self.reader.needed_keys
        if not _tops(text) & set(schema.names):
            raise Unreadable("no_text_column", f"{text}; {names}")
        for key in others:
            if not _tops(key) & set(schema.names):
                raise Unreadable("no_where_column", f"{key}; {names}")
        if text in schema.names and not _holds_text(schema.field(text).type):
            raise Unreadable("text_is_not_text", f"column {text} is {schema.field(text).type}")


def _tops(key: str) -> set[str]:
    """The columns that can hold `key`: one of that name, or a struct that its first parts name."""
    parts = key.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}


def _holds_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    strings = types.is_string, types.is_large_string, types.is_string_view
    as_bytes = types.is_binary, types.is_large_binary, types.is_binary_view
    return any(is_one(kind) for is_one in (*strings, *as_bytes, types.is_null))


def _check_growth(metadata: Any, stored_bytes: int) -> None:
    """By the sizes of the row groups. Not by those of their columns: pyarrow aborts the process, where a damaged file
    has one that contradicts itself."""
    made = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if made > BOMB_BYTES and made > BOMB_RATIO * stored_bytes:
        raise Unreadable("bomb", f"{stored_bytes:,} bytes on disk grow to {made:,}")


def record_of(batch: "pa.RecordBatch", row: int) -> dict[str, Any] | Unreadable:
    """A row as a record; text that is stored as bytes is decoded."""
    record: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = _as_python(column[row])
            record[name] = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            around = error.object[max(0, error.start - 50) : error.start + 200]
            return Unreadable("not_utf8", f"column {name}: {bytes(around).decode('utf-8', 'backslashreplace')}")
    return record


def _as_python(scalar: "pa.Scalar") -> Any:
    """A value as Python's. A time that Python cannot name (beyond its years, in a zone of no name) is the number that
    is stored, null where it lies deeper."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError, KeyError):
        return getattr(scalar, "value", None)


class HuggingFace(FileSource):
    """A dataset of the Hugging Face hub (unmeasured) or a local folder of its layout (Parquet, JSON lines). `config`,
    `split`, `revision`: as in `datasets.load_dataset`; pin `revision` to a commit: the fingerprint of hub data is its
    name with these three. Other options as for `jsonl`: `text_key`, `group_key`, `metadata_keys`, `where`
    (`int_score >= 3`), limits.
    """

    version = 3
    options = RecordOptions

    def __init__(
        self, dataset: str, config: str | None = None, split: str = "train", revision: str | None = None, **common: Any
    ):
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)
        self._tables, self._lines = Parquet(dataset, **common), Jsonl(dataset, **common)

    @property
    def local_folder(self) -> Path | None:
        path = Path(self.dataset).expanduser()
        return path if path.is_dir() else None

    def libraries(self) -> tuple[str, ...]:
        return ("datasets", "pyarrow")

    def content_hash(self) -> str:
        folder = self.local_folder
        if folder is None:
            if self.dataset.startswith(("/", ".", "~")):
                raise missing(f"{self.dataset} is not a folder", "a local folder or a hub name owner/name", "dataset")
            return hash_json([self.dataset, self.config, self.split, self.revision])
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise missing(f"{self.dataset} is an empty folder", "Parquet or JSON lines files", "dataset")
        return hash_files(files, folder)

    def find(self) -> Inputs:
        """The files of the split, as `datasets` finds them. Empty for a hub name, and for archives and parts of splits,
        which `datasets` streams."""
        folder = self.local_folder
        if folder is None:
            return Inputs([])
        found = self._asked(lambda load: load.load_dataset_builder(str(folder), self.config)).config.data_files or {}
        paths = [Path(str(path)) for path in found.get(self.split, ())]
        base = folder.resolve()
        files = [InputFile(p, p.resolve().relative_to(base).as_posix()) for p in paths if p.is_file()]
        return Inputs(sorted(files, key=lambda f: f.name.split("/")) if len(files) == len(paths) else [])

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        """A damaged local file is set aside and the others are read; an error of the hub is raised, as the rest would
        be missing."""
        if self.find().files:
            yield from super().items(task, tasks)
            return
        stream = self._asked(
            lambda load: load.load_dataset(
                str(self.local_folder or self.dataset),
                self.config,
                split=self.split,
                revision=None if self.local_folder else self.revision,
                streaming=True,
            )
        )
        parts = stream.num_shards
        for part in range(parts):
            if parts >= tasks and part % tasks != task:
                continue
            for number, record in enumerate(stream.shard(parts, part)):
                if parts >= tasks or (number + part) % tasks == task:
                    yield self.reader.read(record, f"{Path(self.dataset).name}/{part}:{number + 1}")

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        if self._reader(file) is not self:
            return self._reader(file).raw_records(file)
        return self._streamed(file)

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        reader = self._reader(file)
        return self.reader.read(raw, place) if reader is self else reader.item(raw, file, place)

    def _reader(self, file: InputFile) -> FileSource:
        return self._tables if file.ending in TABLE_ENDINGS else self._lines if file.ending in JSON_ENDINGS else self

    def _streamed(self, file: InputFile) -> Iterator[Any]:
        """The records of one file of another format, with the options that the folder's card gives."""
        import datasets

        whole = self._asked(lambda load: load.load_dataset_builder(str(self.local_folder), self.config))
        module, default = whole.__class__.__module__.rpartition(".")[2], whole.BUILDER_CONFIG_CLASS()
        kept = {f.name for f in fields(default)} - {
            "name",
            "version",
            "data_dir",
            "data_files",
            "description",
            "features",
        }
        options = {n: v for n in sorted(kept) if (v := getattr(whole.config, n)) != getattr(default, n)}
        try:
            yield from datasets.load_dataset(
                module, data_files={"train": [str(file.path)]}, split="train", streaming=True, **options
            )
        except Exception as error:  # whatever pyarrow, pandas or json raise on a damaged file
            raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None

    def _asked(self, load: Callable[[Any], Any]) -> Any:
        """What `datasets` gives for this dataset, its errors in the user's words."""
        import datasets

        try:
            return load(datasets)
        except ValueError as error:  # how datasets says that a config or split does not exist
            raise UserError(f"dataset {self.dataset}, config {self.config}, split {self.split}: {error}") from None
        except OSError as error:  # no such dataset, no connection, no right to it
            raise UserError(
                f"dataset {self.dataset}: there is no local folder of this name here, and the hub did not give it "
                f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}); expected a "
                "folder, or a hub name owner/name and a network"
            ) from None
