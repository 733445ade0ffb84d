"""Documents shared by the tests of the rules."""

import random
import sysconfig
from pathlib import Path

import pytest

ODD = [
    "…",
    "•",
    "-",
    "#",
    "...",
    "{",
    "}",
    "[1]",
    "[edit]",
    "\u00a0",
    "\u2028",
    "\x1c",
    "\ud800",
    "😀",
    "İ",
    "Σ",
    "１",
    "。",
]
POOL = [
    "the", "be", "to", "of", "and", "that", "have", "with", "lorem", "ipsum", "javascript", "Javascript", "cookie",
    "policy", "terms", "use", "a", "ab", "abc", "b", "c", "d", "word", "word.", "end!", "why?", '"so"', "12", "3.14",
    "under_score", "=", "==", "->", "|", "----", "naïve", "日本語", "слово", "internationalisation", "[2]", "x" * 60,
]  # fmt: skip
GAPS = [" ", " ", " ", " ", "\n", "\n", "\n\n", "\n\n\n", "\t", "  ", "\r\n", "", ". ", ".\n", "\x0b", "\x85"]


def random_text(seed: int) -> str:
    """Words of a pool that may be tiny (much repetition), odd characters, every kind of white space."""
    draw = random.Random(seed)
    pool = draw.sample(POOL, draw.choice([1, 2, 4, 10, len(POOL)])) + (
        draw.sample(ODD, 3) if draw.random() < 0.5 else []
    )
    if draw.random() < 0.1:
        pool = ["a", "b", "ab", "ba", "aa"]  # equal when joined, cut differently
    gaps = draw.choice([[" "], GAPS, [" "] * 12 + ["\n"], [" "] * 30 + [".\n", "\n\n"]])
    pieces: list[str] = []
    for _ in range(draw.choice([0, 1, 2, 5, 12, 40, 80, 200, 600])):
        if pieces and draw.random() < 0.05:
            start = draw.randrange(len(pieces))
            pieces += pieces[start : start + draw.choice([5, 20, 60])]  # a passage again
        pieces += [draw.choice(pool), draw.choice(gaps)]
    return "".join(pieces)


@pytest.fixture(scope="session")
def odd_texts() -> list[str]:
    return [
        "",
        " ",
        "\n",
        "\n\n\n",
        " \n ",
        "word",
        "\ud800",
        "…",
        "•\n•",
        "#",
        "- a\n- a\n- a",
        *map(random_text, range(2_000)),
    ]


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """Documentation and code of installed packages, 2 MB at most."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = sorted([*root.glob("*/METADATA"), *root.glob("*/*.md"), *root.glob("*/*.rst"), *root.glob("*/*.py")])
    random.Random(0).shuffle(files)
    texts, size = [], 0
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        if len(text) < 200_000 and size < 2_000_000:
            texts.append(text)
            size += len(text)
    return texts
