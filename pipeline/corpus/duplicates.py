"""Exact and near duplicates over the whole corpus, in the memory of a few numbers a document.

Exact: the same words in the same order, whatever the case and white space; the first in corpus order stays. Near:
MinHash (Broder 1997) over five-word shingles, whose signatures and band keys lie on disk; one band at a time is
sorted, candidates are confirmed on the whole signature (16 bits of each value: b-bit minwise hashing, Li and König
2010), clusters are found by union-find. Ten million documents need 5.4 GB of disk and under 2 GB of memory.

Exercises keep numbers and punctuation, all other text loses them: with the usual normalization 398 of 400 different
exercises would be "duplicates". So an exercise is never compared with a library text. A short text that is about its
numbers (a word problem) keeps them too, but a text does not become another one by its year, date or version.

Words become 64-bit hashes, one numpy array a text; decontamination uses them too. Each distinct word is normalized and
hashed once and remembered, and n-grams are combined in numpy (60 MB/s on one core; hashing joined strings in Python
makes 10).
"""

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_filters.rule import EXERCISE, PROSE, Drop
from pipeline.corpus.execute import Executor
from pipeline.corpus.text.documents import (
    DocumentReader,
    ShardStep,
    Table,
    draw,
    forget_pages,
    read_all_alive,
    read_rows,
    read_validation,
    step_facts,
    write_decisions,
)
from pipeline.storage.steps import Folder

PERMUTATIONS = 256
SHINGLE_WORDS = 5
MINHASH_SEED = 1
LOW_BITS, KEY = np.dtype("<u2"), np.dtype("<u8")
BATCH_DOCUMENTS = 256  # signatures made in one call
SHORT_WORDS, NUMBER_EVERY_WORDS = 300, 25
# With a unit at most (`5kg`); letters of scripts without spaces may touch it.
_NUMBERS = re.compile(r"(?<![A-Za-z0-9_.])(\d+(?:[-.,:/]\d+)*)(?!st|nd|rd|th)[A-Za-z]{0,3}(?![A-Za-z0-9_])")
_AMOUNT = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[1-9]\d{0,2}/[1-9]\d{0,2}")
CONFIRM_PAIRS = 100_000  # signatures of pairs compared at a time

REMEMBERED_WORDS = 1_000_000  # about 150 MB at worst; real text of one shard has a tenth

_BREAKS = bytes.maketrans(
    string.ascii_uppercase.encode() + string.punctuation.encode() + bytes(range(32)) + b"\x7f",
    string.ascii_lowercase.encode() + b" " * (len(string.punctuation) + 33),
)
# Quotes, dashes, wide punctuation and spaces of other scripts break words, as do the marks between the syllables of
# Tibetan and the stops of Burmese and Khmer.
_WIDE_BREAKS = re.compile(
    "[\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u0f01-\u0f14\u104a-\u104f\u17d4-\u17da\u2000-\u206f"
    "\u3000-\u3004\u3008-\u3020\u3030\u303d\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
# Soft hyphens, joiners, variation selectors: what PDF and web text carry.
_INVISIBLE = re.compile("\u00ad\n?|[\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
# Scripts that put no spaces between words are taken a letter at a time, with the signs written around it.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese and its neighbours
    "\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u303c\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters, all extensions
    "\ua000-\ua4cf\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff"  # Yi, Tangut, kana supplements, Nushu
    "\U00012000-\U0001345f"  # cuneiform, hieroglyphs
)
_SIGNS = "".join(
    chr(point) for point in (*range(0x0E00, 0x1B80), *range(0x3000, 0x3100), *range(0xA980, 0xAAE0))
    if unicodedata.category(chr(point)).startswith("M")
)  # fmt: skip
_STACKERS = "\u17d2\u1039"  # the letter after one of these stands under the letter before it
_NO_SPACES = re.compile(f"([{_UNSPACED}](?:[{_STACKERS}][{_UNSPACED}]|[{_SIGNS}])*)")
_DIGITS = re.compile(rb"\d+")
_SYMBOLS = re.compile(rb"[A-Za-z0-9_\x80-\xff]+|[^\sA-Za-z0-9_\x80-\xff]")
_MIX = [np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]


def drop_exact_duplicates(folder: Folder) -> dict[str, Any]:
    """Drops every document but the first of those with the same digest, across sources."""
    table = Table.load(folder.input("repair"))
    alive = read_all_alive(folder.input("rules"), table.tasks)
    left = np.flatnonzero(alive)
    kept = left[_first_equal(table.rows["digest"][left])]
    copies = np.flatnonzero(kept != left)
    names = table.names(kept[copies])
    drops = (
        (int(left[i]), "exact_dedup", Drop("same_text", 1.0, 1.0, _called(table, names, int(kept[i])))) for i in copies
    )
    write_decisions(folder.path, table, alive, drops)
    return step_facts(folder.path, table)


def _first_equal(digests: np.ndarray) -> np.ndarray:
    """For each row of two numbers the first row that is equal to it."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal rows stay in corpus order
    ordered = digests[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _called(table: Table, names: dict, index: int) -> str:
    return f"{table.sources[table.rows['source'][index]]}/{names[index].path}"


def drop_near_duplicates(folder: Folder, similarity: float, executor: Executor) -> dict[str, Any]:
    """Drops train documents near another: near a validation document always, else all but the first of a cluster.
    Validation documents stay, whatever they are near."""
    repaired, previous = folder.input("repair"), folder.input("exact_dedup")
    signing = ShardStep("minhash", partial(_sign_shard, folder.path, band_rows(similarity)))
    executor.run(folder, [DocumentReader(repaired, previous), signing], description="near duplicates")
    table = Table.load(repaired)
    alive = read_all_alive(previous, table.tasks)
    left = np.flatnonzero(alive)
    store = SignatureStore(folder.path, table.tasks, band_rows(similarity))
    roots = clusters(store.bands(), store.similarity, len(left), similarity)
    # A cluster with a validation document loses all its train documents, so that nothing near it is trained on.
    # Any other cluster keeps its first document.
    held_out = read_validation(folder.input("split"), table.tasks)[left]
    has_validation = np.zeros(len(left), dtype=bool)
    has_validation[roots[held_out]] = True
    dropped = np.flatnonzero(~held_out & ((roots != np.arange(len(left))) | has_validation[roots]))
    shown = _representatives(roots, held_out, has_validation)[dropped]
    alike = np.concatenate(
        [store.similarity(dropped[i : i + CONFIRM_PAIRS], shown[i : i + CONFIRM_PAIRS])
         for i in range(0, len(dropped), CONFIRM_PAIRS)] or [np.zeros(0)]
    )  # fmt: skip
    sizes = np.bincount(roots, minlength=len(left))
    largest = [int(i) for i in np.argsort(-sizes, kind="stable")[:10] if sizes[i] > 1]
    names = table.names([*left[shown], *left[largest]])

    def drops() -> Iterator[tuple[int, str, Drop]]:
        for number, to, value in zip(dropped, shown, alike, strict=True):
            reason = "near_validation" if has_validation[roots[number]] else "near_train"
            near = Drop(reason, round(float(value), 3), similarity, _called(table, names, int(left[to])))
            yield int(left[number]), "near_dedup", near

    write_decisions(folder.path, table, alive, drops())
    return {
        **step_facts(folder.path, table),
        "clusters": int((sizes > 1).sum()),
        "cluster_sizes": _histogram(sizes),
        "largest_clusters": [
            {"documents": int(sizes[i]), "path": _called(table, names, int(left[i]))} for i in largest
        ],
    }


def _representatives(roots: np.ndarray, held_out: np.ndarray, has_validation: np.ndarray) -> np.ndarray:
    """The document that each one is reported as near to: its cluster's first validation document, else its first."""
    shown = roots.copy()
    first: dict[int, int] = {}
    for i in np.flatnonzero(held_out):
        first.setdefault(int(roots[i]), int(i))
    for i in np.flatnonzero(has_validation[roots]):
        shown[i] = first[int(roots[i])]
    return shown


def _histogram(sizes: np.ndarray) -> dict[str, int]:
    """Clusters by their number of documents."""
    bounds = ((2, 2), (3, 5), (6, 20), (21, 100), (101, len(sizes) + 101))
    counts = {f"{a}-{b}" if b > a else str(a): int(((sizes >= a) & (sizes <= b)).sum()) for a, b in bounds[:-1]}
    return {**counts, "over 100": int((sizes > 100).sum())}


def _sign_shard(folder: Path, rows: int, documents: Iterable[Document], shard: int) -> None:
    """MinHash of one shard's documents: `signatures/00003.bin`, 16 bits of each of `PERMUTATIONS` values a document,
    and `bands/00003.bin`, one 64-bit key per band and document."""
    for name in ("signatures", "bands"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    keys_path, count = folder / "bands" / f"{shard:05d}.part", 0
    sketcher = Sketcher()
    with open(folder / "signatures" / f"{shard:05d}.bin", "wb") as file, open(keys_path, "wb") as keys:
        for texts in _batches(documents):
            values, empty = sketcher.sketch([d.text for d in texts], [d.metadata["kind"] for d in texts])
            file.write(values.astype(LOW_BITS).tobytes())
            part = band_keys(values, rows)
            own = np.arange(count, count + len(texts), dtype=np.uint64)[empty]
            part[:, empty] = draw(own, "no words", shard)  # texts without words are like nothing else
            keys.write(np.ascontiguousarray(part.T).tobytes())
            count += len(texts)
    by_document = read_rows(keys_path, KEY).reshape(-1, PERMUTATIONS // rows)
    with open(folder / "bands" / f"{shard:05d}.bin", "wb") as file:
        for band in by_document.T:  # band after band on disk, so that one band is read in one piece
            file.write(band.tobytes())
    keys_path.unlink()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for doc in documents:
        batch.append(doc)
        characters += len(doc.text)
        if len(batch) >= BATCH_DOCUMENTS or characters > 4_000_000:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Sketcher:
    """`sketch(texts, kinds)`: uint32 MinHash values, documents x permutations, and which have no words at all."""

    def __init__(self) -> None:
        self._plain, self._counted = WordHashes(without_numbers), WordHashes(without_accents)
        self._symbols = WordHashes()

    def sketch(self, texts: list[str], kinds: list[str]) -> tuple[np.ndarray, np.ndarray]:
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - a compiled module without stubs

        shingles = [
            ngrams(self._word_hashes(text, kind), SHINGLE_WORDS) for text, kind in zip(texts, kinds, strict=True)
        ]
        lengths = np.array([len(s) for s in shingles])
        filled = [s if len(s) else np.zeros(1, dtype=np.uint64) for s in shingles]
        ends = np.concatenate([[0], np.cumsum([len(s) for s in filled])]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(filled), ends, PERMUTATIONS, MINHASH_SEED)
        return np.array(matrix.to_rows(), dtype=np.uint32), lengths == 0

    def _word_hashes(self, text: str, kind: str) -> np.ndarray:
        if kind == EXERCISE:
            return self._symbols.hashes(symbols(text))
        words = plain_words(text)
        about_numbers = kind == PROSE and len(words) <= SHORT_WORDS and is_about_numbers(text, len(words))
        return (self._counted if about_numbers else self._plain).hashes(words)


def is_about_numbers(text: str, words: int) -> bool:
    """Whether two or more of a text's words, and at least one of 25, are numbers: no year, date, time or version."""
    found = (number for number in _NUMBERS.findall(text) if _AMOUNT.fullmatch(number))
    count = sum(not (len(number) == 4 and number[:2] in ("19", "20")) for number in found)
    return count >= max(2, words / NUMBER_EVERY_WORDS)


def band_rows(similarity: float) -> int:
    """Rows per band: as many (fewest false candidates) as still bring 99% of the pairs at `similarity` + 0.05."""
    wanted = min(1.0, similarity + 0.05)
    good = [r for r in range(1, PERMUTATIONS + 1) if 1 - (1 - wanted**r) ** (PERMUTATIONS // r) >= 0.99]
    return max(good, default=1)


def band_keys(values: np.ndarray, rows: int) -> np.ndarray:
    """uint64, bands x documents: one hash of each band's values."""
    bands = values.shape[1] // rows
    parts = values[:, : bands * rows].reshape(len(values), bands, rows).astype(np.uint64)
    keys = np.zeros((len(values), bands), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for i in range(rows):
            keys = (keys ^ parts[:, :, i]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(32)
    return keys.T


class SignatureStore:
    """The signatures of all shards on disk, numbered over the documents that were signed."""

    def __init__(self, folder: Path, tasks: int, rows: int):
        self._bands = PERMUTATIONS // rows
        names = [f"{shard:05d}.bin" for shard in range(tasks)]
        self._signatures = [read_rows(folder / "signatures" / n, LOW_BITS).reshape(-1, PERMUTATIONS) for n in names]
        self._keys = [read_rows(folder / "bands" / n, KEY).reshape(self._bands, -1) for n in names]
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in self._signatures])])

    def bands(self) -> Iterator[np.ndarray]:
        """The keys of one band after the other."""
        for band in range(self._bands):
            keys = np.concatenate([k[band] for k in self._keys])
            for part in self._keys:
                forget_pages(part)
            yield keys

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Estimated Jaccard similarity of pairs: the share of equal values (standard error 0.025 at 0.8)."""
        return (self._rows(left) == self._rows(right)).mean(axis=1) if len(left) else np.zeros(0)

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty((len(numbers), PERMUTATIONS), dtype=LOW_BITS)
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._signatures[shard][numbers[here] - self._starts[shard]]
            forget_pages(self._signatures[shard])
        return found


def clusters(
    bands: Iterable[np.ndarray], alike: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int, similarity: float
) -> np.ndarray:
    """The first member of each document's cluster. Candidates share a band's key; of a bucket its first and each
    neighbour are compared, and a pair joins if `alike(left, right)` is at least `similarity`."""
    parent = np.arange(count)

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = int(parent[x])
        return x

    # Sorting puts equal keys side by side. Each is compared with the first of its bucket and with its neighbour only:
    # all pairs of a bucket of boilerplate would grow with its square.
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # places whose key is the one before
        if not len(same):
            continue
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        heads = order[starts[np.searchsorted(starts, same, side="right") - 1]]
        left = np.concatenate([heads, order[same - 1]])
        right = np.concatenate([order[same], order[same]])
        pairs = np.unique(np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1), axis=0)
        for i in range(0, len(pairs), CONFIRM_PAIRS):
            a, b = pairs[i : i + CONFIRM_PAIRS].T
            # Pairs that already have one parent need no comparison of signatures, which reads the disk.
            apart = parent[a] != parent[b]
            a, b = a[apart], b[apart]
            good = alike(a, b) >= similarity
            for x, y in zip(a[good].tolist(), b[good].tolist(), strict=True):
                root_x, root_y = find(x), find(y)
                parent[max(root_x, root_y)] = min(root_x, root_y)
    # Union by smaller number: the root is the first document of the cluster in corpus order.
    while True:  # every document points to its root
        further = parent[parent]
        if np.array_equal(further, parent):
            return parent
        parent[:] = further


def plain_words(text: str) -> list[bytes]:
    """UTF-8 words in lower case without punctuation: `Don't (really)` is `don t really`. Wide letters and ligatures are
    the plain ones, invisible characters are not there."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).lower()
        text = _NO_SPACES.sub(r" \1 ", _WIDE_BREAKS.sub(" ", text))
    return text.encode().translate(_BREAKS).split()


def symbols(text: str) -> list[bytes]:
    """Words as they are and each punctuation mark alone: what generated exercises differ by."""
    return _SYMBOLS.findall(text.encode())


def without_numbers(word: bytes) -> bytes:
    """Every number is the same number, and no accents: the normalisation of near dedup."""
    return without_accents(_DIGITS.sub(b"0", word))


def without_accents(word: bytes) -> bytes:
    """The letters of a word alone."""
    if not word.isascii():
        letters = unicodedata.normalize("NFD", word.decode("utf-8", "replace"))
        word = "".join(c for c in letters if unicodedata.category(c) != "Mn").encode()
    return word


class WordHashes(dict[bytes, int]):
    """`hashes(words)`: one uint64 a word, of `normalise(word)`."""

    def __init__(self, normalise: Callable[[bytes], bytes] | None = None):
        super().__init__()
        self._normalise = normalise

    def __missing__(self, word: bytes) -> int:
        normal = word if self._normalise is None else self._normalise(word)
        number = self[word] = int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest(), "little")
        return number

    def hashes(self, words: list[bytes]) -> np.ndarray:
        if len(self) > REMEMBERED_WORDS:
            self.clear()
        return np.fromiter(map(self.__getitem__, words), dtype=np.uint64, count=len(words))


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """One uint64 per run of `n` words; of a shorter text one for all of it; nothing of an empty one."""
    n = min(n, len(hashes))
    if n == 0:
        return hashes
    count = len(hashes) - n + 1
    with np.errstate(over="ignore"):
        mixed = hashes[:count] * _MIX[0]
        for i in range(1, n):
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[1] + hashes[i : count + i]
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _MIX[2]
    return mixed ^ (mixed >> np.uint64(29))
