"""Finds the texts that raters read for the quality scorer, mixes in some that are to fool it, collects the ratings.

    python scripts/rated_texts.py draw FOLDER         # downloads packages, draws documents: FOLDER/documents.jsonl
    python scripts/rated_texts.py batches FOLDER      # what raters read: batches/, second/, and the key to their ids
    python scripts/rated_texts.py collect FOLDER      # ratings/*.tsv of raters -> the shipped labels
    python scripts/rated_texts.py find FOLDER         # the texts of the shipped labels again, each checked by its hash

A document is a piece of a file of a package (`rated_texts.yaml` names them), at most 8,000 characters long. Labels name
it by package, version, path and first character, and hold a hash of its text, not the text: many licences do not allow
that. Packages come through apt-get (with deb-src and non-free lines of its own, nothing of the system changes), npm and
pip. Debian keeps old versions at snapshot.debian.org. Texts made to fool are made from drawn ones by seeds.
"""

import argparse
import fcntl
import gzip
import hashlib
import html
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datatrove.data import Document

from data_filters.rule import CODE, EXERCISE, PROSE
from pipeline.config import yaml_values
from pipeline.corpus.exercises.source import Exercises
from pipeline.corpus.scorers.features import PHRASE_BITS, PHRASE_WORDS, PHRASES, phrases, split_words
from pipeline.corpus.scorers.fooling import KINDS
from pipeline.corpus.scorers.fooling import make as fool
from pipeline.corpus.scorers.labels import (
    LABELS,
    PYTHON_LIBRARY,
    SECOND_LABELS,
    Label,
    content_hash,
    find_documents,
    read_labels,
)  # fmt: skip
from pipeline.corpus.scorers.linear import GOOD
from pipeline.corpus.sources.document_files import PLAIN_ENDINGS, notebook_text
from pipeline.corpus.sources.document_text import decode_code, decode_page, decode_text, main_text
from pipeline.corpus.text.user_files import Unreadable

CHARACTERS = 8_000  # of a document: what the scorer reads
LEAST_CHARACTERS, MOST_OF_A_PACKAGE = 250, 12
SHOWN_HEAD, SHOWN_MIDDLE, BATCH_DOCUMENTS = 1_600, 800, 40
MAX_FILE_BYTES = 3_000_000
RATED_OF_A_KIND, RATED_BEFORE = 7, 60  # of texts to fool, and of the labels there were: raters do not know which
EXERCISES = 40
RATER = "a language model with this rubric, blind"
SEED = 21

_PLAN = yaml_values.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
# domain: (documents, {package: which of its files})
PLAN: dict[str, tuple[int, dict[str, str]]] = {
    domain: (part["documents"], {package: rule["pattern"] for rule in part["files"] for package in rule["packages"]})
    for domain, part in _PLAN["domains"].items()
}


# Packages: one archive each, in FOLDER/archives, and the regular files in it.


def apt_settings(folder: Path) -> dict[str, str]:
    """An environment in which apt-get knows source packages and non-free ones and keeps its lists in `folder`."""
    home = folder / "apt"
    if not (home / "apt.conf").exists():
        for part in ("lists/partial", "cache/archives/partial", "parts"):
            (home / part).mkdir(parents=True, exist_ok=True)
        lines = Path("/etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8")
        lines = re.sub(r"(?m)^Types:.*", "Types: deb deb-src", lines)
        (home / "parts/all.sources").write_text(re.sub(r"(?m)^Components:.*", "Components: main non-free", lines))
        (home / "apt.conf").write_text(
            f'Dir::Etc::sourceparts "{home}/parts/";\nDir::Etc::sourcelist "/dev/null";\n'
            f'Dir::State::lists "{home}/lists";\nDir::Cache "{home}/cache";\nAPT::Sandbox::User "root";\n'
        )
    settings = {**os.environ, "APT_CONFIG": str(home / "apt.conf")}
    if not any((home / "lists").glob("*Sources*")):
        subprocess.run(["apt-get", "-qq", "update"], env=settings, check=True)
    return settings


def fetch(package: str, version: str | None, folder: Path) -> tuple[Path, str]:
    """(archive, version) of `deb:`, `src:`, `npm:` or `pypi:` and a name, the newest where no version is given."""
    system, name = package.split(":", 1)
    stored = folder / "archives" / re.sub(r"[^\w.+-]", "_", package)
    (folder / "archives").mkdir(exist_ok=True)
    with (stored.parent / f"{stored.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several domains may be drawn at once
        return _fetch(system, name, version, folder, stored)


def _fetch(system: str, name: str, version: str | None, folder: Path, stored: Path) -> tuple[Path, str]:
    known = stored / "version"
    if known.exists() and version in (None, known.read_text()):
        return next(path for path in stored.iterdir() if path != known), known.read_text()
    stored.mkdir(parents=True, exist_ok=True)
    for path in stored.iterdir():
        path.unlink()
    if system in ("deb", "src"):
        settings, wanted = apt_settings(folder), name + (f"={version}" if version else "")
        command = (
            ["apt-get", "-qq", "download"]
            if system == "deb"
            else ["apt-get", "-qq", "--download-only", "--tar-only", "source"]
        )
        subprocess.run([*command, wanted], cwd=stored, env=settings, check=True, capture_output=True)
        if not version:
            show = "show" if system == "deb" else "showsrc"
            found = subprocess.run(["apt-cache", show, name], env=settings, check=True, capture_output=True, text=True)
            version = max(re.findall(r"(?m)^Version: (.*)$", found.stdout), key=_debian_order)
    elif system == "npm":
        wanted = f"{name}@{version}" if version else name
        subprocess.run(["npm", "pack", "--silent", wanted], cwd=stored, check=True, capture_output=True)
        version = version or re.search(r"-(\d[^-]*(?:-.*)?)\.tgz$", next(stored.iterdir()).name).group(1)  # type: ignore[union-attr]
    else:
        wanted = f"{name}=={version}" if version else name
        form = ["--no-binary", ":all:"] if system == "sdist" else ["--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *form, wanted]
        subprocess.run(pip, cwd=stored, check=True, capture_output=True, timeout=120)
        version = version or next(stored.iterdir()).name.removesuffix(".tar.gz").split("-")[1]
    archives = [
        p for p in sorted(stored.iterdir(), key=lambda p: -p.stat().st_size) if p.suffix not in (".asc", ".dsc")
    ]
    for path in archives[1:]:
        path.unlink()
    known.write_text(str(version))
    return archives[0], str(version)


def _debian_order(version: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in re.split(r"(\d+)", version))


def files(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the regular files of an archive that are wanted, in its order."""
    if zipfile.is_zipfile(archive) and archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if wanted(entry.filename) and entry.file_size <= MAX_FILE_BYTES:
                    yield entry.filename, opened.read(entry)
        return
    process = None
    if archive.suffix == ".deb":
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    with tarfile.open(archive if process is None else None, "r|*", process and process.stdout) as opened:
        for entry in opened:
            if entry.isreg() and wanted(entry.name) and entry.size <= MAX_FILE_BYTES:
                yield entry.name, opened.extractfile(entry).read()  # type: ignore[union-attr]
    if process is not None:
        process.wait()


# Texts: what the data stage would make of a file, and pages of manuals without their marks.


def text_of(path: str, data: bytes) -> tuple[str, str]:
    """(text, kind) of a file. Raises `Unreadable`."""
    if path.endswith(".gz"):
        path, data = path[:-3], gzip.decompress(data)
    ending = Path(path).suffix.lower()
    if ending in (".html", ".htm"):
        return main_text(decode_page(data)), PROSE
    if ending == ".ipynb":
        return notebook_text(decode_text(data)), CODE
    if re.search(r"/man\d\w*/", path):
        return without_marks(decode_text(data)), PROSE
    if Path(path).name == "METADATA":
        return decode_text(data).partition("\n\n")[2], PROSE
    text = decode_code(data) if ending == ".py" else decode_text(data)
    return text, PLAIN_ENDINGS.get(ending, CODE if text.startswith("#!") else PROSE)


_TITLES, _BREAKS = (
    re.compile(r"^\.\s*S[hHsS]\s+(.*)"),
    re.compile(r"^\.\s*(PP|P|LP|IP|TP|Pp|It|br|sp|RS|RE|nf|fi)\b\s*(.*)"),
)
_WORDS_AFTER = re.compile(
    r"^\.\s*(?:[BIR]{1,2}|SB|SM|Nm|Nd|Xr|Fl|Ar|Pa|Cm|Op|Va|Vt|Fn|Ft|Fa|Dv|Er|Ev|Em|Sy|Li|Ql|Dq|Sq|Pq|Bx|Fx|An|Ic)\s+(.*)"
)
_ESCAPES = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\f(?:\[\w*\]|\(..|.)", ""),
        (r"\\s[+-]?\d+|\\[&|^/,:%]|\\c$", ""),
        (r"\\\((?:aq|cq|oq)|\\\[aq\]", "'"),
        (r"\\\((?:lq|rq)|\\\*\([lr]q|\\\*\(.\"", '"'),
        (r"\\\(em|\\\[em\]", "--"),
        (r"\\\((?:bu|ci)|\\\[bu\]", "*"),
        (r"\\\((?:en|mi|hy)", "-"),
        (r"\\[*]?\(..|\\[*]?\[[^]]*\]", ""),
        (r"\\e|\\\\", r"\\"),
        (r"\\([- .'`~\"])", r"\1"),
    )
]


def without_marks(page: str) -> str:
    """The words of a manual page in troff: titles, paragraphs and terms, without fonts and spacing."""
    lines: list[str] = []
    for line in page.split("\n"):
        if line.startswith(("'\\\"", '.\\"')):
            continue
        if title := _TITLES.match(line):
            lines += ["", title.group(1).strip('"')]
        elif found := _BREAKS.match(line):
            lines += [found.group(2).strip('"')] if found.group(1) in ("IP", "It") and found.group(2) else [""]
        elif words := _WORDS_AFTER.match(line):
            lines.append(words.group(1).replace('"', ""))
        elif not line.startswith((".", "'")):
            lines.append(line)
    text = "\n".join(lines)
    for pattern, plain in _ESCAPES:
        text = pattern.sub(plain, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# Drawing documents.


def draw(folder: Path, domains: Sequence[str]) -> list[dict[str, Any]]:
    """The documents of the plan, each with its text; packages that cannot be had are named and left out."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for domain in domains:
        if domain == "exercise":
            found += _exercises()
            continue
        wanted, packages = PLAN[domain]
        pools: dict[str, list[dict[str, Any]]] = {}
        for package, pattern in packages.items():
            try:
                pools[package] = _pool(folder, domain, package, re.compile(pattern), seen)
            except (subprocess.SubprocessError, StopIteration, OSError, tarfile.TarError) as error:
                print(f"{domain}: {package} left out: {error}", file=sys.stderr, flush=True)
        chosen = _round_robin(pools, wanted)
        print(f"{domain}: {len(chosen)} documents of {len({d['package'] for d in chosen})} packages", flush=True)
        found += chosen
    return found


def _exercises() -> list[dict[str, Any]]:
    """Exercises of the project's own templates: a template is a package here."""
    found = []
    for item in Exercises(count=EXERCISES, seed=SEED).items(0, 1):
        if isinstance(item, Document):
            text, path = item.text[:CHARACTERS], str(item.metadata["path"])
            digest = hashlib.sha256(text.encode()).hexdigest()
            package = f"exercise:{path.split('/')[0]}"
            found.append({"domain": "exercise", "package": package, "version": "", "path": path, "start": 0,
                          "kind": EXERCISE, "characters": len(text), "sha256": digest, "text": text})  # fmt: skip
    return found


def _pool(folder: Path, domain: str, package: str, pattern: re.Pattern[str], seen: set[str]) -> list[dict[str, Any]]:
    """Up to `MOST_OF_A_PACKAGE` documents of a package, of all lengths, in a random order."""
    archive, version = fetch(package, None, folder)
    draws = random.Random(f"{SEED} {domain} {package}")
    texts = {path: data for path, data in files(archive, lambda path: bool(pattern.search(path)))}
    by_length = sorted(texts, key=lambda path: (len(texts[path]), path))
    n_bins = min(MOST_OF_A_PACKAGE + 6, len(by_length))
    bins = [by_length[len(by_length) * i // n_bins : len(by_length) * (i + 1) // n_bins] for i in range(n_bins)]
    documents = []
    for paths in bins:
        for path in draws.sample(paths, min(4, len(paths))):
            try:
                text, kind = text_of(path, texts[path])
            except (Unreadable, OSError, EOFError):
                continue
            start = _start(text, kind, draws)
            piece = text[start : start + CHARACTERS]
            digest = hashlib.sha256(piece.encode("utf-8", "surrogatepass")).hexdigest()
            if len(piece.strip()) >= LEAST_CHARACTERS and digest not in seen and "\0" not in piece:
                seen.add(digest)
                documents.append({"domain": domain, "package": package, "version": version, "path": path,
                                  "start": start, "kind": kind, "characters": len(piece), "sha256": digest,
                                  "text": piece})  # fmt: skip
                break
    draws.shuffle(documents)
    return documents[:MOST_OF_A_PACKAGE]


def _start(text: str, kind: str, draws: random.Random) -> int:
    """0, or where a later paragraph begins: heads of long files are titles and licences more often than the rest is."""
    if len(text) < CHARACTERS * 3 // 2 or draws.random() > (0.5 if kind == PROSE else 0.3):
        return 0
    at = text.find("\n\n", draws.randrange(len(text) - CHARACTERS))
    return 0 if at < 0 or at + 2 > len(text) - 1_000 else at + 2


def _round_robin(pools: dict[str, list[dict[str, Any]]], wanted: int) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = []
    for turn in range(MOST_OF_A_PACKAGE):
        for pool in pools.values():
            if turn < len(pool) and len(chosen) < wanted:
                chosen.append(pool[turn])
    return chosen


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass"
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()]


# Batches for raters: blind, mixed over domains; texts to fool and documents rated before among them.


def write_batches(folder: Path) -> None:
    """batches/NNN.txt, second/NNN.txt, and key.jsonl: what stands behind each id. A quarter is rated twice. Documents
    that were drawn since the last call get batches of their own."""
    key = read_lines(folder / "key.jsonl") if (folder / "key.jsonl").exists() else []
    draws, known = random.Random(f"{SEED} {len(key)}"), {row["sha256"] for row in key if "sha256" in row}
    drawn = [row for path in sorted(folder.glob("documents-*.jsonl")) for row in read_lines(path)]
    every = list({row["sha256"]: row for row in drawn if row["sha256"] not in known}.values())
    if not key:
        texts = [row["text"] for row in sorted(every, key=lambda row: row["sha256"])]
        every += [
            {"domain": "fooling", "package": f"fooling:{kind}", "version": "", "path": str(seed), "start": 0,
             "kind": PROSE, "text": fool(kind, texts, seed)}
            for kind in KINDS for seed in range(RATED_OF_A_KIND)
        ]  # fmt: skip
        labels = read_labels()
        old, _ = find_documents(labels)
        every += [
            {"domain": "rated before", "package": label.distribution, "version": label.version, "path": label.path,
             "start": 0, "kind": label.kind, "text": old[label.path].text}
            for label in draws.sample([label for label in labels if label.path in old], RATED_BEFORE)
        ]  # fmt: skip
    taken = {row["id"] for row in key}
    for name, chosen in (("batches", every), ("second", draws.sample(every, len(every) // 4))):
        (folder / name).mkdir(exist_ok=True)
        batch = len(list((folder / name).glob("*.txt")))
        order = draws.sample(chosen, len(chosen))
        free = [number for number in range(10_000, 100_000) if f"{name[0]}{number}" not in taken]
        ids = [f"{name[0]}{number}" for number in draws.sample(free, len(order))]
        for first in range(0, len(order), BATCH_DOCUMENTS):
            part = list(zip(ids, order, strict=True))[first : first + BATCH_DOCUMENTS]
            shown = "\n".join(_shown(number, row) for number, row in part)
            path = folder / name / f"{batch + first // BATCH_DOCUMENTS:03}.txt"
            path.write_text(shown, encoding="utf-8", errors="replace")
            key += [{"id": number, "batch": path.stem, **row} for number, row in part]
        print(f"{name}: {len(order)} documents from {batch:03} on")
    write_lines(folder / "key.jsonl", key)


def _shown(number: str, row: dict[str, Any]) -> str:
    text, ending = row["text"].strip("\n"), Path(row["path"].removesuffix(".gz")).suffix
    ending = ending if ending.lower() in PLAIN_ENDINGS or ending == ".ipynb" else ""
    if len(text) > SHOWN_HEAD + SHOWN_MIDDLE:
        middle = (SHOWN_HEAD + len(text)) // 2
        text = f"{text[:SHOWN_HEAD]}\n[... middle ...]\n{text[middle : middle + SHOWN_MIDDLE]}"
    return f"@@@@@@@@@@ {number} {ending} ({len(row['text']):,} characters)\n{text}\n"


# What the raters gave, as the shipped labels; and the labels' texts, found again.


def collect(folder: Path) -> None:
    """Writes the ratings as labels of documents, first and second, behind those that the label files hold of the Python
    library; prints what the ratings of texts to fool, and of documents that were rated before, come to."""
    ratings = {}
    for path in sorted((folder / "ratings").glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            number, rating, *_ = [*line.split(), "", ""]
            if rating in "012345" and rating:
                ratings[number] = int(rating)
    key = [row for row in read_lines(folder / "key.jsonl") if row["id"] in ratings]
    for first, path in (("b", LABELS), ("s", SECOND_LABELS)):
        kept = [label for label in read_labels(path) if label.domain == PYTHON_LIBRARY]
        new = [
            Label(row["package"], row["version"], row["path"], row["kind"], row["characters"], row["sha256"],
                  ratings[row["id"]], RATER, "", row["domain"], row["start"])
            for row in key if row["id"].startswith(first) and row["domain"] not in ("fooling", "rated before")
        ]  # fmt: skip
        new.sort(key=lambda label: (label.domain, label.distribution, label.path, label.start))
        rows = [{k: v for k, v in asdict(label).items() if v or k not in ("rationale", "start")} for label in new]
        old = [line for line in read_lines(path) if line.get("domain", PYTHON_LIBRARY) == PYTHON_LIBRARY]
        write_lines(path, [*old, *rows])
        print(f"{path.name}: {len(kept)} of the Python library, {len(new)} others")
    fooled = Counter(ratings[row["id"]] for row in key if row["domain"] == "fooling" and row["id"].startswith("b"))
    print(f"texts to fool, by rating: {dict(sorted(fooled.items()))}")
    before = {(label.distribution, label.path): label.score for label in read_labels()}
    pairs = [
        (before[row["package"], row["path"]], ratings[row["id"]])
        for row in key if row["domain"] == "rated before" and row["id"].startswith("b")
    ]  # fmt: skip
    same = sum((a >= GOOD) == (b >= GOOD) for a, b in pairs)
    print(f"rated before: {len(pairs)}, the same side of {GOOD}: {same}; ratings before and now: {sorted(pairs)}")


def find(labels: Sequence[Label], folder: Path) -> tuple[dict[str, Document], dict[str, int]]:
    """({hash: document}, {why: labels without their text}) of the labels of other domains than the Python library, from
    what was drawn in `folder` before, or from their packages."""
    found: dict[str, Document] = {}
    missing: Counter[str] = Counter()
    by_package: dict[tuple[str, str], list[Label]] = defaultdict(list)
    drawn = {row["sha256"]: row for path in folder.glob("documents-*.jsonl") for row in read_lines(path)}
    for label in labels:
        if row := drawn.get(label.sha256):
            found[label.sha256] = Document(
                text=row["text"], id=label.path, metadata={"path": label.path, "kind": label.kind}
            )
        elif label.domain != PYTHON_LIBRARY:
            by_package[label.distribution, label.version].append(label)
    texts = {row["path"]: row["text"] for row in _exercises()}
    for (package, version), own in sorted(by_package.items()):
        wanted = {label.path for label in own}
        if not package.startswith("exercise:"):
            try:
                archive, _ = fetch(package, version, folder)
                texts = {path: text_of(path, data)[0] for path, data in files(archive, wanted.__contains__)}
            except (subprocess.SubprocessError, StopIteration, OSError, tarfile.TarError, Unreadable) as error:
                print(f"{package} {version} cannot be had: {error}", file=sys.stderr, flush=True)
                missing["package_not_found"] += len(own)
                continue
        for label in own:
            text = texts.get(label.path, "")[label.start : label.start + CHARACTERS]
            if content_hash(text) == label.sha256:
                metadata = {"path": label.path, "kind": label.kind}
                found[label.sha256] = Document(text=text, id=label.path, metadata=metadata)
            else:
                missing["other_content"] += 1
    return found, dict(missing)


# The table of known phrases.

_CODE_OR_TEXT = re.compile(r"\.(txt|md|rst|texi|html?|c|h|cc|py|js|ts|mjs|go|rs|java|sh|sql|pl|pm|rb|vim|gz|awk|xml)$")
_MARKUP = re.compile(r"(?is)<(script|style|head).*?</\1>|<[^>]*>")


def write_phrases(folder: Path) -> None:
    """Finds the runs of words that occur in several packages of the background; as many as fill the table to 12%."""
    by_length: dict[int, list[np.ndarray]] = {n: [] for n in PHRASE_WORDS}
    for package in _PLAN["background"]:
        texts = _background(folder, package)
        found: dict[int, list[np.ndarray]] = {n: [] for n in PHRASE_WORDS}
        for first in range(0, len(texts), 32):
            words, _ = split_words([text.encode("utf-8", "replace") for text in texts[first : first + 32]])
            for n, runs in phrases(words).items():
                found[n].append(runs.hashes >> np.uint64(24))
        for n, parts in found.items():
            by_length[n].append(np.unique(np.concatenate(parts)))
    tables = {}
    for n, parts in by_length.items():
        hashes, packages = np.unique(np.concatenate(parts), return_counts=True)
        least = next(k for k in range(2, 99) if (packages >= k).sum() <= 0.12 * (1 << PHRASE_BITS))
        places = (hashes[packages >= least] >> np.uint64(40 - PHRASE_BITS)).astype(np.int64)
        bits = np.zeros(1 << (PHRASE_BITS - 3), np.uint8)
        np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
        tables[f"words_{n}"] = bits
        print(f"{n} words: {len(places)} of {len(hashes)} runs are in {least} packages or more")
    np.savez_compressed(PHRASES, **tables)  # type: ignore[arg-type]


def _background(folder: Path, package: str) -> list[str]:
    """Up to 1.2 MB of a package's text and code, in an order that a hash of the path gives."""
    archive, _ = fetch(package, None, folder)
    wanted = [(path, data) for path, data in files(archive, lambda path: bool(_CODE_OR_TEXT.search(path)))]
    texts: list[str] = []
    for path, data in sorted(wanted, key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if sum(map(len, texts)) > 1_200_000:
            break
        try:
            text = (gzip.decompress(data) if path.endswith(".gz") else data).decode()
        except (UnicodeDecodeError, OSError, EOFError):
            continue
        if re.search(r"/man\d\w*/", path):
            text = without_marks(text)
        elif re.search(r"\.html?(\.gz)?$", path):
            text = html.unescape(_MARKUP.sub("", text))
        texts.append(text[:20_000])
    return texts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=["draw", "batches", "collect", "find", "phrases"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domains", nargs="*", default=[*PLAN, "exercise"])
    chosen = parser.parse_args()
    if chosen.action == "draw":
        for name in chosen.domains:
            write_lines(chosen.folder / f"documents-{name}.jsonl", draw(chosen.folder, [name]))
    elif chosen.action == "find":
        found, missing = find(read_labels(), chosen.folder)
        print(f"{len(found)} texts found; not found: {missing}")
    else:
        {"batches": write_batches, "collect": collect, "phrases": write_phrases}[chosen.action](chosen.folder)
