"""Parquet tables: one record a row, read row group by row group, with the needed columns only, a few rows at a time.

A file without the text column, or one that is damaged, is set aside by name and the others go on.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.sources.licences import FIELDS
from pipeline.corpus.sources.records import RecordReader
from pipeline.corpus.sources.source import Item, RecordOptions, set_aside
from pipeline.corpus.text.compressed import BOMB_BYTES, BOMB_RATIO, Unreadable, open_input, split_ending

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".parq", ".pq")
_PLAIN = {(ending, "") for ending in ENDINGS}
_ROWS_AT_ONCE = 32  # a text may be 32 MB
_BUFFER_BYTES = 1 << 20  # a column is streamed through it, where row groups are a gigabyte


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
        return find_inputs(self.path, "a .parquet file, a folder of them", lambda n: split_ending(n) in _PLAIN)

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
            columns = [c for c in table.schema_arrow.names if c in asked or c.lower() in FIELDS]
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
            value = _plain(column[row])
            record[name] = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            around = error.object[max(0, error.start - 50) : error.start + 200]
            return Unreadable("not_utf8", f"column {name}: {bytes(around).decode('utf-8', 'backslashreplace')}")
    return record


def _plain(scalar: "pa.Scalar") -> Any:
    """A value as Python's. A time that Python cannot name (beyond its years, in a zone of no name) is the number that
    is stored, null where it lies deeper."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError, KeyError):
        return getattr(scalar, "value", None)
