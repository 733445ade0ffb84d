"""Our prose rules against datatrove's classes with the same splitter (white-space words).

Every decision, reason and (C4) text must be equal before any time is printed. CPU time of one process, stock and ours
in turns, the median of the turns.
"""

import time
from statistics import median
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_parts

from data_filters.c4 import C4Quality
from data_filters.fineweb import FineWebQuality
from data_filters.gopher import GopherQuality
from data_filters.repetition import GopherRepetition
from data_filters.words import whitespace_splitter
from scripts.bench_rows import at_least, row
from scripts.data_bench.corpus import RUNS, sample

Row = dict[str, Any]
Answer = tuple[str | None, str]


def run(megabytes: float, quick: bool) -> list[Row]:
    """Each rule on every text, and the four as a chain in which the first that drops a text is the last to see it."""
    docs, everything = sample(megabytes / 2, prose_only=True).texts, sample(megabytes).texts
    splitter = whitespace_splitter()
    stock = {
        "gopher_repetition": GopherRepetitionFilter(language=splitter),
        "gopher_quality": GopherQualityFilter(language=splitter),
        "fineweb": FineWebQualityFilter(language=splitter),
        "c4": C4QualityFilter(language=splitter),
    }
    ours = {
        "gopher_repetition": GopherRepetition(),
        "gopher_quality": GopherQuality(),
        "fineweb": FineWebQuality(),
        "c4": C4Quality(remove_lines=True),
    }
    turns = 1 if quick else RUNS
    jobs = [(name, [name], everything) for name in stock]
    jobs += [("all_four", list(stock), everything), ("chain", [], everything), ("chain_docs", [], docs)]
    rows = []
    for name, names, inputs in jobs:
        size = sum(len(text.encode()) for text in inputs) / 1e6
        chain = not names
        chosen = names or list(stock)
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        answers: dict[str, list[list[Answer]]] = {}
        for _ in range(turns):
            for side, filters in (("stock", stock), ("ours", ours)):
                split_into_parts.cache_clear()
                start = time.process_time()
                answers[side] = [_ask([filters[n] for n in chosen], text, chain) for text in inputs]
                seconds[side].append(time.process_time() - start)
        different = sum(a != b for a, b in zip(answers["stock"], answers["ours"], strict=True))
        if different:
            raise SystemExit(f"rules/{name}: {different} of {len(inputs)} texts are decided differently")
        ratio = median(seconds["stock"]) / median(seconds["ours"])
        rows += [
            row(f"rules, {name}: equal decisions and reasons", 100.0, "%", "100", True),
            row(f"rules, {name}, stock", round(size / median(seconds["stock"]), 2), "MB/s"),
            row(f"rules, {name}, ours", round(size / median(seconds["ours"]), 2), "MB/s"),
        ]
        title = f"rules, {name}: against datatrove's classes with the same splitter"
        rows.append(at_least(title, ratio, "x", 3) if name == "chain" else row(title, round(ratio, 2), "x"))
    return rows


def _ask(filters: list[Any], text: str, chain: bool) -> list[Answer]:
    """Reason and resulting text of each filter; in a chain up to the first that drops the document."""
    answers: list[Answer] = []
    doc = Document(text, "")
    for one in filters:
        if not chain:
            doc = Document(text, "")
        found = one.filter(doc)
        if found is not True:
            reason = found[1] if isinstance(found[1], str) else found[1].reason
            answers.append((reason, ""))
            if chain:
                break
        else:
            answers.append((None, doc.text))
    return answers
