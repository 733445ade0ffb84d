"""Planted contamination: evaluation items put into real text; what is found, and what clean text is lost."""

import random
import time
from typing import Any

from pipeline.corpus.contamination import Index, Item
from pipeline.corpus.duplicates import plain_words
from scripts.bench_rows import at_least, at_most, row
from scripts.data_bench.corpus import sample

ITEMS, PLANTED = 500, 400


def run(megabytes: float, quick: bool) -> list[dict[str, Any]]:
    draw = random.Random(2)
    text = sample(megabytes)
    vocabulary = sorted({w.decode() for t in text.texts[:200] for w in plain_words(t) if w.isalpha()})
    items = [" ".join(draw.choices(vocabulary, k=draw.randint(9, 80))) for _ in range(ITEMS)]
    index = Index([Item(str(i), tuple(plain_words(t))) for i, t in enumerate(items)], 13, 8)
    hosts = [t for t in text.texts if len(t) > 500]
    planted = [_plant(draw.choice(hosts), draw.choice(items), draw) for _ in range(PLANTED)]
    found = sum(index.match(t) is not None for t in planted) / PLANTED
    started = time.process_time()
    lost = sum(index.match(t) is not None for t in text.texts)
    rate = text.megabytes / (time.process_time() - started)
    return [
        at_least(f"planted 13-gram contamination found (of {PLANTED})", found, "share", 1.0),
        at_most(f"clean documents lost (of {len(text.texts)})", lost / len(text.texts), "share", 0.001),
        row("decontamination", round(rate, 1), "MB/s"),
    ]


def _plant(host: str, item: str, draw: random.Random) -> str:
    """A run of 13 words or more of the item (the whole item where it is shorter) somewhere in the host, with other
    case, punctuation and line breaks."""
    words = item.split()
    if len(words) > 13:
        n = draw.randint(13, len(words))
        at = draw.randint(0, len(words) - n)
        words = words[at : at + n]
    joints = (" ", "  ", ", ", "\n", ". ", " - ")
    span = "".join(draw.choice((w, w.upper(), w.title())) + draw.choice(joints) for w in words)
    at = draw.randint(0, len(host))
    return f"{host[:at]} {span} {host[at:]}"
