"""Sources whose input is records: JSON lines, Parquet tables, and datasets of the Hugging Face hub.

A record (a JSON object, a table row) becomes a document, or the name of what is wrong with it; a broken one does not
affect its neighbours. A field is named as it stands in the record, or with dots for a field of a field (`meta.url`).
Parquet is read row group by row group, with the needed columns only. A hub dataset is streamed through `datasets`;
nothing is downloaded whole. The files of a local dataset folder are read one by one, each with its own columns:
`datasets` decides which they are, tables and JSON lines are read as by `parquet` and `jsonl`, and other formats through
`datasets`. Every shard reads the one commit that the stage resolved at its start. Where the hub is busy, fails or cuts
a connection, a shard waits and continues after the record it had reached.

A record may state its own licence, in text, as an SPDX expression, as an object of GitHub (`spdx_id`, `key`, `name`),
npm (`type`, `url`), Zenodo or CycloneDX (`id`, `expression`), as a list of these (all hold), or as any of them in JSON
or Python notation. Field names are compared without case. null and an empty text or list state nothing. Anything else
is stated and not understood: `unknown`, and never the source's own licence.
"""

import ast
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_filters.licence import normalise
from data_filters.repair import mend_surrogates
from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.sources.where import ABSENT, Where, find
from pipeline.corpus.text.documents import WHERE, SetAside
from pipeline.corpus.text.source import Item, RecordOptions, document, missing, set_aside
from pipeline.corpus.text.user_files import (
    BOMB_BYTES,
    BOMB_RATIO,
    MAX_SAMPLE,
    MAX_TEXT_BYTES,
    Unreadable,
    numbered_lines,
    open_input,
    parse,
    split_ending,
)
from pipeline.storage.files import hash_files, hash_json
from pipeline.storage.hub import DATASET, Unavailable, is_of_transport, refusal
from pipeline.system.errors import Failure, UserError

if TYPE_CHECKING:
    import pyarrow as pa

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_MAX_JSON_BYTES = 4 * MAX_TEXT_BYTES  # of a file that is one JSON value

TABLE_ENDINGS = (".parquet", ".parq", ".pq")
_PLAIN_TABLES = {(ending, "") for ending in TABLE_ENDINGS}
_ROWS_AT_ONCE = 32  # a text may be 32 MB
_BUFFER_BYTES = 1 << 20  # a column is streamed through it, where row groups are a gigabyte

HUB_TRIES = 20  # for one record

_NO_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features"}  # fields of a builder's config

_MAX_NAME_CHARACTERS = 2_000  # of a group, a metadata text: a URL fits, a page does not

_LICENCE_FIELDS = (
    "license", "licence", "licenses", "licences", "license_expression", "license_id", "spdx_id", "license_name",
    "max_stars_repo_licenses", "detected_licenses", "gha_license_id", "repo_license", "repo_licenses",  # The Stack's
)  # fmt: skip
_LICENCE_LINKS, _CONTAINERS = ("license_url", "license_link"), ("metadata", "meta")
LICENCE_FIELDS = frozenset((*_LICENCE_FIELDS, *_LICENCE_LINKS, *_CONTAINERS))  # of a record, in lower case
# Of an object, compared without case, `_`, `-` and `@`: the first of the exact ones that is text, else the first that
# is understood.
_EXACT_KEYS = ("spdxid", "spdx", "spdxexpression", "licenseid", "expression")
_OTHER_KEYS = (
    "id", "identifier", "rightsidentifier", "key", "name", "type", "title", "license", "licence", "licenses",
    "licences", "rights", "url", "uri", "rightsuri", "href", "link", "text",
)  # fmt: skip
_MAX_CHARACTERS, _MAX_DEPTH = 2_000, 6  # what is longer is a licence's text, and no name of one
_ONE_WORD = re.compile(r"[\w.+-]+")


class RecordFiles(FileSource):
    """Files that hold records. `given`: the options."""

    options = RecordOptions

    def __init__(self, path: str, **common: Any):
        self.path = path
        self.limits = self.given = RecordOptions(**common)
        self.where = None if self.given.where is None else Where(self.given.where)

    @property
    def needed_keys(self) -> tuple[str, ...]:
        """Fields without which no record becomes a document."""
        return (self.given.text_key, *(self.where.needed_fields if self.where else ()))

    def read(self, record: Any, path: str) -> Item:
        """A document, or what became of the record instead."""
        try:
            return self._read(record, path)
        except Unreadable as problem:
            return set_aside(path, problem)

    def _read(self, record: Any, path: str) -> Item:
        given = self.given
        if not isinstance(record, dict):
            raise Unreadable("not_a_record", shown(record))
        text = field(record, given.text_key)
        if self.where is not None and not self.where.holds(record):
            text = text if isinstance(text, str) else ""
            n_bytes = len(text.encode("utf-8", "surrogatepass"))
            return SetAside(path, "where", text[:MAX_SAMPLE], WHERE, n_bytes)
        if text is ABSENT:
            raise Unreadable("no_text_key", f"keys: {', '.join(map(str, record))}")
        if not isinstance(text, str):
            raise Unreadable("text_is_not_text", f"{type(text).__name__}: {shown(text)}")
        if len(text) > MAX_TEXT_BYTES:
            raise Unreadable("too_large", text[:MAX_SAMPLE])
        group = field(record, given.group_key) if given.group_key else None
        kept = {key: _scalar(value) for key in given.metadata_keys if (value := field(record, key)) is not ABSENT}
        more: dict[str, Any] = {"record": kept} if kept else {}
        return document(
            text,
            path=path,
            group=path if group is None or group is ABSENT else shown(group, _MAX_NAME_CHARACTERS),
            license=own_license(record) or given.license,
            kind=str(given.kind),
            **more,
        )


class Jsonl(RecordFiles):
    """JSON lines, plain or compressed (`.gz`, `.bz2`, `.xz`, `.zst`): one record a line, the text under `text_key`; a
    `.json` file may be one list of records. `path`: file, glob or folder. `group_key`: field whose documents are held
    out together (default: each its own). `metadata_keys`: fields that are kept with the document. `license`: of records
    that state none; `own` for private text. `where`: which records are wanted, such as `int_score >= 3 and language ==
    'en'` (docs/data/README.md). `limit_tokens`: at 4 bytes a token.
    """

    version = 3

    def find(self) -> Inputs:
        wanted = "a file of JSON lines (.jsonl, .ndjson, .json, or one of them compressed), a folder of them"
        return find_inputs(self.path, wanted, lambda name: split_ending(name)[0] in JSON_ENDINGS)

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        whole = _one_value(file) if file.ending == ".json" else None
        return iter(whole) if whole is not None else (line for _, line in numbered_lines(file.path))

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        if not isinstance(raw, bytes):
            return self.read(raw, place)
        if not raw.strip():
            return None  # a blank line is no document
        try:
            item = self.read(parse(raw), place)
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


class Parquet(RecordFiles):
    """Parquet: one record a row, the text in the column `text_key` (`a.b`: a field of a struct column). `path`: file,
    glob or folder. Other options as for `jsonl`: `group_key`, `metadata_keys`, `license`, `where`, limits.
    """

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
        return set_aside(place, record) if isinstance(record, Unreadable) else self.read(record, place)

    def _rows(self, file: InputFile) -> Iterator[tuple["pa.RecordBatch", int]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as table:
            self._check_columns(table.schema_arrow)
            _check_growth(table.metadata, file.path.stat().st_size)
            given, of_where = self.given, self.where.fields if self.where else ()
            keys = (given.text_key, *of_where, *filter(None, [given.group_key]), *given.metadata_keys)
            asked = {top for key in keys for top in _tops(key)}  # besides those of licences
            columns = [c for c in table.schema_arrow.names if c in asked or c.lower() in LICENCE_FIELDS]
            for number in range(table.metadata.num_row_groups):
                for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[number], columns=columns, use_threads=False):
                    for row in range(batch.num_rows):
                        yield batch, row

    def _check_columns(self, schema: "pa.Schema") -> None:
        names = f"columns: {', '.join(schema.names)}"
        text, *others = self.needed_keys
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


class HuggingFace(RecordFiles):
    """A dataset of the Hugging Face hub or a local folder of its layout (Parquet, JSON lines). `config`, `split`,
    `revision`: as in `datasets.load_dataset`; a branch or tag (default: main) is resolved to a commit when the stage
    starts. `hub_wait_seconds`: the wait after the hub was busy (429), failed (5xx) or cut a connection, 20 times at
    most for one record. Other options as for `jsonl`: `text_key`, `group_key`, `metadata_keys`, `where`
    (`int_score >= 3`), limits.
    """

    version = 3
    without_effect = ("hub_wait_seconds",)

    def __init__(
        self, dataset: str, config: str | None = None, split: str = "train", revision: str | None = None,
        hub_wait_seconds: float = 30.0, **common: Any
    ):  # fmt: skip
        super().__init__(dataset, **common)
        if not 0 <= hub_wait_seconds <= 3600:
            raise ValueError(f"hub_wait_seconds is {hub_wait_seconds}; expected 0 to 3600")
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.hub_wait_seconds = hub_wait_seconds
        self._tables, self._lines = Parquet(dataset, **common), Jsonl(dataset, **common)

    @property
    def local_folder(self) -> Path | None:
        path = Path(self.dataset).expanduser()
        return path if path.is_dir() else None

    def libraries(self) -> tuple[str, ...]:
        return ("datasets", "pyarrow")

    def prepare(self, folder: Path) -> dict[str, Any]:
        return {} if self.local_folder else {"dataset": self.dataset, "revision": self.revision}

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
        stream = self._stream()
        parts = stream.num_shards
        for part in range(parts):
            if parts >= tasks and part % tasks != task:
                continue
            for number, record in enumerate(self._records_of(stream.shard(parts, part), part)):
                if parts >= tasks or (number + part) % tasks == task:
                    yield self.read(record, f"{Path(self.dataset).name}/{part}:{number + 1}")

    def _stream(self) -> Any:
        from datasets import config as waits

        # Where datasets waits by itself it waits as long as we do, not its own 60 s after each 429.
        for setting in ("READ", "READ_SERVER_UNAVAILABLE", "READ_RATE_LIMIT", "OPEN"):
            setattr(waits, f"STREAMING_{setting}_RETRY_INTERVAL", self.hub_wait_seconds)

        def load(datasets: Any) -> Any:
            revision = None if self.local_folder else self.revision
            where = str(self.local_folder or self.dataset)
            return datasets.load_dataset(where, self.config, split=self.split, revision=revision, streaming=True)

        tries = 0
        while True:
            try:
                return self._asked(load)
            except Unavailable as error:
                if waits.HF_HUB_OFFLINE:
                    raise
                tries += 1
                self._wait("the list of its files", error, tries)

    def _records_of(self, shard: Any, part: int) -> Iterator[Any]:
        """The records of one shard, each once: after a failure that may pass, those that were read before are passed
        over."""
        done = tries = 0
        while True:
            try:
                for record in shard.skip(done) if done else shard:
                    done, tries = done + 1, 0
                    yield record
                return
            except Exception as error:
                tries += 1
                self._wait(f"shard {part} after {done:,} records", self._problem(error, part, done), tries)

    def _problem(self, error: Exception, part: int, done: int) -> Exception:
        """`Unavailable` for what may pass; else what ends the stage."""
        if self.local_folder:
            return error
        response = getattr(error, "response", None)
        busy = response is not None and (response.status_code == 429 or response.status_code >= 500)
        if busy or (response is None and is_of_transport(error)):
            words = (str(error).strip().splitlines() or [""])[0][:200]
            return Unavailable(f"dataset {self._name}: {words}", f"{type(error).__name__}: {words}")
        place = f"dataset {self._name}: shard {part} after {done:,} records"
        if isinstance(error, FileNotFoundError) or response is not None:
            found = refusal(error, self._name, DATASET, "dataset")
            if not isinstance(found, Unavailable):
                return UserError(f"{place}: {found}")
            return UserError(
                f"{place}: the hub lists a file and does not give it ({' '.join(str(error).split())[:300]}). Nothing "
                "of this source is used without it: the same command resumes with the shards that are missing, or "
                "name another `revision`"
            )
        return Failure(f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _wait(self, what: str, error: Exception, tries: int) -> None:
        """Waits after a failure that may pass, and says so. Raises any other, and one too many."""
        if not isinstance(error, Unavailable):
            raise error from None
        if tries > HUB_TRIES:
            waited = HUB_TRIES * self.hub_wait_seconds
            raise Failure(
                f"dataset {self._name}: {what}: {error.why}, for {waited:.0f} s; the same command resumes with the "
                "unfinished shards"
            ) from None
        print(
            f"  hub: {self._name}, {what}: {error.why}; waiting {self.hub_wait_seconds:g} s ({tries} of {HUB_TRIES})",
            flush=True,
        )
        time.sleep(self.hub_wait_seconds)

    @property
    def _name(self) -> str:
        return f"{self.dataset}@{self.revision or 'main'}"

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        if self._reader(file) is not self:
            return self._reader(file).raw_records(file)
        return self._streamed(file)

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        reader = self._reader(file)
        return self.read(raw, place) if reader is self else reader.item(raw, file, place)

    def _reader(self, file: InputFile) -> FileSource:
        return self._tables if file.ending in TABLE_ENDINGS else self._lines if file.ending in JSON_ENDINGS else self

    def _streamed(self, file: InputFile) -> Iterator[Any]:
        """The records of one file of another format, with the options that the folder's card gives."""
        import datasets

        whole = self._asked(lambda load: load.load_dataset_builder(str(self.local_folder), self.config))
        module, default = whole.__class__.__module__.rpartition(".")[2], whole.BUILDER_CONFIG_CLASS()
        kept = {f.name for f in fields(default)} - _NO_OPTIONS
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
            raise refusal(error, self._name, DATASET, "dataset") from None


def field(record: dict[str, Any], key: str) -> Any:
    """`record[key]`, else the field of a field that the dots in `key` lead to, else `ABSENT`."""
    return find(record, key.split("."))


def shown(value: Any, characters: int = MAX_SAMPLE) -> str:
    """`value` as text of bounded length, whatever it is."""
    if isinstance(value, str):
        return value[:characters]
    try:
        return str(value)[:characters]
    except (RecursionError, ValueError):  # nested a thousand times; a number of ten thousand digits
        return type(value).__name__


def _scalar(value: Any) -> str | int | float | bool | None:
    """What JSON has a word for; the rest as text. It travels in files of 64-bit numbers and whole UTF-8."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return mend_surrogates(shown(value, _MAX_NAME_CHARACTERS if isinstance(value, str) else MAX_SAMPLE))


def own_license(record: Mapping[str, Any]) -> str | None:
    """The licence that a record states; None where it states none. One that is not understood begins with
    `unknown`. The first of the record, its metadata and links to licences that states anything counts."""
    top = _in_lower_case(record)
    places = [top, *(_in_lower_case(_first_object(top[name])) for name in _CONTAINERS if name in top)]
    for names in (_LICENCE_FIELDS, _LICENCE_LINKS):
        for place in places:
            stated = _stated([value for name in names for value in place.get(name, ())], 0)
            if stated is not None:
                return mend_surrogates(stated)
    return None


def _in_lower_case(record: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """The fields that may state a licence: name -> values, of which `License` and `license` may both stand there."""
    found: dict[str, list[Any]] = {}
    for key, value in record.items():
        if isinstance(key, str) and (name := key.lower()) in LICENCE_FIELDS:
            found.setdefault(name, []).append(value)
    return found


def _first_object(values: Sequence[Any]) -> Mapping[Any, Any]:
    """The first object among them; tables hold some as JSON text."""
    for value in values:
        if isinstance(value, str) and "licen" in value.lower() and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, Mapping):
            return value
    return {}


def _stated(value: Any, depth: int) -> str | None:
    if value is None or value != value:  # not-a-number is how pandas writes null
        return None
    if depth > _MAX_DEPTH:
        return _unknown(value)
    if isinstance(value, str):
        return _of_text(value.strip(), depth)
    if isinstance(value, Mapping):
        return _of_object(value, depth)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return _all_of([part for entry in value if (part := _stated(entry, depth + 1)) is not None])
    return _unknown(value)


def _of_text(text: str, depth: int) -> str | None:
    if len(text) > _MAX_CHARACTERS:  # a part of it might read as a licence
        return _unknown(text)
    if text[:1] in ("{", "[", '"'):
        for parse in (json.loads, ast.literal_eval):
            try:
                return _stated(parse(text), depth + 1)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return text or None


def _of_object(value: Mapping[str, Any], depth: int) -> str | None:
    fields = {re.sub(r"[_@-]", "", str(key)).lower(): found for key, found in value.items()}
    stated = {name: part for name, found in fields.items() if (part := _stated(found, depth + 1)) is not None}
    if not stated:
        return None
    for name in _EXACT_KEYS:
        if name in stated:
            return stated[name]
    known = [stated[name] for name in _OTHER_KEYS if name in stated]
    return next((part for part in known if normalise(part)), None) or _unknown(known[0] if known else value)


def _all_of(parts: Sequence[str]) -> str | None:
    distinct = tuple(dict.fromkeys(parts))
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    if len("".join(distinct)) > _MAX_CHARACTERS or not all(normalise(part) for part in distinct):
        return _unknown(", ".join(distinct))
    return " AND ".join(part if _ONE_WORD.fullmatch(part) else f"({part})" for part in distinct)


def _unknown(value: Any) -> str:
    try:
        return f"unknown: {value}"[:200]
    except (RecursionError, ValueError):  # nested a thousand times; a number of ten thousand digits
        return "unknown"
