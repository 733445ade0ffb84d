"""Exercises on values: lists, text and numbers.

Each template draws what its ideas need, in a fixed order, and computes the expected results in another way than the
solutions in `lists.yaml`, `text.yaml` and `arithmetic.yaml` do.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, groupby, pairwise, zip_longest
from math import gcd
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import (
    CITIES,
    EASY,
    HARD,
    MEDIUM,
    PEOPLE,
    THINGS,
    WORDS,
    Exercise,
    Idea,
    choose,
    numbers,
    sentence,
)

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def filter_and_fold(draw: Random, difficulty: str) -> Exercise:
    """Sum, count, largest... of the numbers that meet a condition, or two."""
    k, other = draw.randint(2, 19), draw.randint(2, 60)
    conditions = [
        ("multiples", f"divisible by {k}", f"x % {k} == 0", lambda x: not x % k),
        ("above", f"greater than {other}", f"x > {other}", lambda x: x > other),
        ("below", f"less than {other}", f"x < {other}", lambda x: other > x),
        ("negative", "negative", "x < 0", lambda x: x < 0),
        ("odd", "odd", "x % 2 == 1", lambda x: bool(x & 1)),
        ("between", f"between {-other} and {other}", f"-{other} <= x <= {other}", lambda x: abs(x) <= other),
    ]
    condition, words, test, holds = draw.choice(conditions[1:4] if difficulty == EASY else conditions)
    if difficulty == HARD:
        condition, words, test, holds = draw.choice([conditions[1], conditions[2], conditions[3], conditions[5]])
        second, more, also, too = draw.choice([conditions[0], conditions[4]])
        joint, sign = draw.choice([("and", all), ("or", any)])
        both = (holds, too)
        holds = lambda x: sign(f(x) for f in both)  # noqa: E731
        condition, words, test = f"{condition}_{joint}_{second}", f"{words} {joint} {more}", f"{test} {joint} {also}"
    folds: list[tuple[Any, str, str, str, str, str, Callable[[list[int]], Any]]] = [
        ((EASY, MEDIUM), "sum", "sum", "0", "total += x", "adds each of them to a running total", sum),
        ((EASY, MEDIUM, HARD), "count", "number", "0", "total += 1", "adds one for each of them", len),
        ((MEDIUM, HARD), "squares", "sum of the squares", "0", "total += x * x", "adds the square of each of them",
         lambda xs: sum(x**2 for x in xs)),
        ((EASY, MEDIUM), "largest", f"largest (or {-other} if there is none)", f"-{other}", "total = max(total, x)",
         "keeps the largest one seen so far, starting from the answer for an empty list",
         lambda xs: max([*xs, -other])),
        ((MEDIUM, HARD), "last", "last (or None if there is none)", "None", "total = x",
         "overwrites the answer each time, so that the last one stays", lambda xs: xs[-1] if xs else None),
        ((HARD,), "list", "list in reverse order", "[]", "total = [x] + total",
         "puts each one before those found earlier", lambda xs: xs[::-1]),
    ]  # fmt: skip
    _, fold, noun, start, step, how, finish = draw.choice([row for row in folds if difficulty in row[0]])
    items = draw.choice(["numbers", "values", "xs", "items", "scores"])
    name = f"{fold}_of_{condition}" + (f"_{k if condition == 'multiples' else other}" if difficulty != HARD else "")
    body = f"total = {start}\nfor x in {items}:\n    if {test}:\n        {step}\nreturn total"
    tasks = [
        f"Return the {noun} of the elements of `{items}` that are {words}.",
        f"Given a list of integers, find the {noun} of those that are {words}.",
        f"Look at each element of `{items}` and keep only what is {words}. Return the {noun} of what is left.",
    ]
    idea = f"One pass over the list is enough. The condition `{test}` picks the elements, and the loop {how}."
    inputs = [(numbers(draw),) for _ in range(3)] + [([],)]
    made = Idea("filter_and_fold", f"{fold}-{condition}", difficulty, f"{name}({items})", tasks, body, idea)
    return made.exercise(draw, lambda xs: finish([x for x in xs if holds(x)]), inputs)


def rearrange(draw: Random, difficulty: str) -> Exercise:
    """A list cut, turned or joined in another order."""
    k = draw.randint(2, 7)
    expected = {
        "rotate": lambda xs: [xs[(i + k) % len(xs)] for i in range(len(xs))],
        "partition": lambda xs: sorted(xs, key=lambda x: x % k != 0),
        "chunks": lambda xs: [[x for j, x in enumerate(xs) if j // k == i] for i in range(-(-len(xs) // k))],
        "windows": lambda xs: [sum(xs[j] for j in range(i, i + k)) for i in range(max(0, len(xs) - k + 1))],
        "pairs": lambda xs: [(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i < j and a % k == b % k],
        "runs": lambda xs: [_running(xs[: i + 1], k * 10) for i in range(len(xs))],
        "differences": lambda xs: [xs[i] - xs[i - k + 1] for i in range(k - 1, len(xs))],
        "interleave": lambda xs: [x for both in zip_longest(xs[k:], xs[:k]) for x in both if x is not None],
    }
    idea = choose(draw, "rearrange", difficulty)
    inputs = [(numbers(draw, least=5, most=10),) for _ in range(3)]
    return idea.exercise(draw, expected[idea.variant], inputs, before=k - 1, k=k, limit=k * 10)


def _running(xs: list[int], limit: int) -> int:
    total = 0
    for x in xs:
        total = 0 if total + x > limit else total + x
    return total


def grid(draw: Random, difficulty: str) -> Exercise:
    """Rows and columns of a table of numbers."""
    k = draw.randint(2, 30)
    expected = {
        "columns": lambda g: [k + sum(column) for column in zip(*g, strict=True)],
        "row_lengths": lambda g: [len([x for x in row if not x <= k]) for row in g],
        "turn": lambda g: [[g[len(g) - 1 - i][j] + k for i in range(len(g))] for j in range(len(g[0]))],
        "cells": lambda g: [
            (n // len(g[0]), n % len(g[0])) for n, x in enumerate(x for row in g for x in row) if x > k
        ],
        "border": lambda g: k * (sum(map(sum, g)) - sum(sum(r[1:-1]) for r in g[1:-1])),
        "rows": lambda g: sorted((r for r in g if not sum(r) < k), key=lambda r: -sum(r)),
    }
    idea = choose(draw, "grid", difficulty)
    inputs = []
    for _ in range(3):
        width, height = draw.randint(2, 4), draw.randint(2, 3)
        inputs.append(([[draw.randint(0, 40) for _ in range(width)] for _ in range(height)],))
    return idea.exercise(draw, expected[idea.variant], inputs, k=k)


def intervals(draw: Random, difficulty: str) -> Exercise:
    """Stretches of time or space: how long, where they overlap, how many fit."""
    what = draw.choice(["meetings", "shifts", "lessons", "bookings", "segments"])
    gap = draw.randint(1, 6)
    points = lambda s: {x for a, b in s for x in range(a, b)}  # noqa: E731

    def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        found = set(spans)
        for a, b in combinations(sorted(found), 2):
            if a[0] < b[1] + gap and b[0] < a[1] + gap:
                return merged([*(found - {a, b}), (min(a[0], b[0]), max(a[1], b[1]))])
        return sorted(found)

    def most_at_once(spans: list[tuple[int, int]]) -> int:
        return max((sum(a <= x < b for a, b in spans) for x in points(spans)), default=0)

    def fit(spans: list[tuple[int, int]]) -> int:
        return max(len(c) for n in range(len(spans) + 1) for c in combinations(sorted(spans), n)
                   if all(x[1] + gap <= y[0] for x, y in pairwise(c)))  # fmt: skip

    expected = {
        "covered": lambda s: sum(b - a for a, b in s if not b - a < gap),
        "busiest": most_at_once,
        "merge": lambda s: merged(s),
        "fit": lambda s: fit(s),
    }
    idea = choose(draw, "intervals", difficulty)
    inputs = []
    for _ in range(4):
        starts = [draw.randint(0, 40) for _ in range(draw.randint(3, 6))]
        inputs.append(([(a, a + draw.randint(1, 12)) for a in starts],))
    return idea.exercise(draw, expected[idea.variant], inputs, gap=gap, what=what)


def two_pointers(draw: Random, difficulty: str) -> Exercise:
    """Two places that move through a list: pairs, merges, subsequences, windows."""
    k, limit = draw.randint(3, 60), draw.randint(15, 70)
    ints = lambda low, high, n: [draw.randint(low, high) for _ in range(n)]  # noqa: E731
    pair_inputs = [(sorted({*ints(0, 40, 7), draw.randint(0, k // 2)} | ({k} if i else {k, 0})),) for i in range(4)]
    merge_inputs = [(sorted(ints(0, 40, 4)), sorted(ints(0, 40, draw.randint(2, 5)))) for _ in range(4)]
    order_inputs = [(ints(0, 4, draw.randint(1, 3)), ints(0, 4, 7)) for _ in range(5)]
    window_inputs = [(ints(1, 20, draw.randint(4, 8)),) for _ in range(4)]

    def longest(xs: list[int]) -> int:
        fits = [j - i for i in range(len(xs)) for j in range(i, len(xs) + 1) if sum(xs[i:j]) <= limit]
        return max(fits, default=0)

    def follows(part: list[int], whole: list[int]) -> bool:
        return any(list(c) == part for c in combinations(whole, len(part)))

    answers = {
        "order": (follows, order_inputs),
        "merge": (lambda a, b: sorted(a + b), merge_inputs),
        "pair": (lambda xs: next(((a, b) for a in xs for b in xs if a < b and a + b == k), None), pair_inputs),
        "window": (longest, window_inputs),
    }
    idea = choose(draw, "two_pointers", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, limit=limit)


def text_steps(draw: Random, difficulty: str) -> Exercise:
    """Some changes to a text, one after the other: the harder, the more."""
    letter, new = draw.sample("aeiorstln", 2)
    k = draw.randint(2, 5)
    steps = [
        ("reverse", "reverse it", "text = text[::-1]", lambda t: "".join(reversed(t))),
        ("remove", f"remove every '{letter}'", f"text = text.replace('{letter}', '')",
         lambda t: "".join(c for c in t if c != letter)),
        ("replace", f"turn every '{letter}' into '{new}'", f"text = text.replace('{letter}', '{new}')",
         lambda t: "".join(new if c == letter else c for c in t)),
        ("upper", "make it upper case", "text = text.upper()", lambda t: "".join(c.upper() for c in t)),
        ("first", f"keep the first {k + 3} characters", f"text = text[:{k + 3}]",
         lambda t: "".join(c for i, c in enumerate(t) if i < k + 3)),
        ("drop", f"drop the first {k} characters", f"text = text[{k}:]",
         lambda t: "".join(c for i, c in enumerate(t) if i >= k)),
        ("double", "write every character twice", "text = ''.join(c + c for c in text)",
         lambda t: "".join(x for c in t for x in (c, c))),
        ("every", f"keep one of every {k} characters, starting with the first", f"text = text[::{k}]",
         lambda t: "".join(c for i, c in enumerate(t) if i % k == 0)),
        ("title", "write each word with a capital", "text = ' '.join(w.capitalize() for w in text.split(' '))",
         lambda t: " ".join(w[:1].upper() + w[1:].lower() for w in t.split(" "))),
    ]  # fmt: skip
    chosen = draw.sample(steps, {EASY: 1, MEDIUM: 2, HARD: draw.choice([3, 4])}[difficulty])
    names = [s[0] for s in chosen]

    def expected(text: str) -> str:
        for step in chosen:
            text = step[3](text)
        return text

    said = ", then ".join(s[1] for s in chosen)
    tasks = [
        f"Take `text`, {said}, and return the result.",
        f"Change a string in this order: {said}. Return the new string.",
        f"Return `text` after these steps: {said}.",
    ]
    body = "\n".join([*(s[2] for s in chosen), "return text"])
    inputs = [(" ".join(draw.sample(WORDS, draw.randint(1, 3))),) for _ in range(4)]
    name = draw.choice(["change_text", "transform", "rewrite", "process_text", "edit"]) + "_" + "_".join(names[:2])
    idea = "A string cannot be changed in place, so every step makes a new one and gives it the old name."
    if len(chosen) > 1:
        idea += " The order matters, because each step sees only what the ones before it left."
    made = Idea("text_steps", "-".join(sorted(names)), difficulty, f"{name}(text)", tasks, body, idea)
    return made.exercise(draw, expected, inputs)


def count_words(draw: Random, difficulty: str) -> Exercise:
    """A dictionary or list built from the words of a text."""
    k, letter = draw.randint(3, 4), draw.choice("aeiorst")
    keys: list[tuple[str, str, str, Callable[[str], Any]]] = [
        ("length", "length", "len(word)", len),
        ("first", "first letter", "word[0]", lambda w: w[0]),
        ("last", "last letter", "word[-1]", lambda w: w[-1]),
        ("with", f"number of times '{letter}' is in it", f"word.count('{letter}')", lambda w: w.count(letter)),
    ]
    by, what, key, function = draw.choice(keys[:3] if difficulty == EASY else keys)
    least = k - 1 if difficulty == HARD else 1
    way = {EASY: "count", MEDIUM: "group"}.get(difficulty) or ("count" if draw.random() < 0.5 else "rank")

    def grouped(words: list[str]) -> dict:
        return {x: [w for w in sorted(set(words)) if function(w) == x] for x in map(function, sorted(set(words)))}

    def ranked(words: list[str]) -> list:
        by_key = sorted(sorted(set(words)), key=function)
        return sorted(by_key, key=words.count, reverse=True)[:least]

    counted = lambda words: {x: n for x, n in Counter(map(function, words)).items() if n >= least}  # noqa: E731
    answer = {"count": counted, "group": grouped, "rank": ranked}[way]
    common = draw.sample(WORDS, 8)
    inputs = [(" ".join(draw.choices(common, k=draw.randint(5, 9))),) for _ in range(3)]
    idea = replace(choose(draw, "count_words", difficulty, way), variant=f"{by}-{way}")
    return idea.exercise(
        draw, lambda text: answer(text.split()), inputs, by=by, what=what, key=key, least=least,
        only=f", without entries below {least}" if least > 1 else "",
        kept=f"{{key: n for key, n in counts.items() if n >= {least}}}" if least > 1 else "counts",
    )  # fmt: skip


def cipher(draw: Random, difficulty: str) -> Exercise:
    """Letters moved, mirrored or taken in another order; and back."""
    k = draw.randint(2, 12)
    rails = draw.randint(2, 4)
    moved = lambda c, n: ALPHABET[(ALPHABET.index(c) + n) % 26] if c in ALPHABET else c  # noqa: E731
    texts = [(sentence(draw, 1, 3),) for _ in range(4)]
    keyed = [(sentence(draw, 1, 2), draw.choice(WORDS)) for _ in range(4)]
    answers = {
        "shift": (lambda t: "".join(moved(c, k) for c in t), texts),
        "unshift": (lambda t: "".join(moved(c, 26 - k) for c in t), texts),
        "mirror": (
            lambda t: "".join(moved(ALPHABET[25 - ALPHABET.index(c)], k) if c in ALPHABET else c for c in t),
            texts,
        ),
        "keyword": (lambda t, key: _keyword(t, key, k), keyed),
        "rails": (
            lambda t: "".join(c for i in range(rails - 1, -1, -1) for j, c in enumerate(t) if j % rails == i),
            texts,
        ),
    }
    idea = choose(draw, "cipher", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, rails=rails)


def _keyword(text: str, key: str, by: int) -> str:
    letters = [c for c in text if c in ALPHABET]
    turned = iter([ALPHABET[(ord(c) + ord(key[i % len(key)]) - 194 + by) % 26] for i, c in enumerate(letters)])
    return "".join(next(turned) if c in ALPHABET else c for c in text)


def run_lengths(draw: Random, difficulty: str) -> Exercise:
    """Repeated characters packed and unpacked."""
    mark = draw.choice("#*:~")
    least = draw.randint(3, 4)
    raw = ["".join(draw.choice("abcx") * draw.randint(1, 5) for _ in range(draw.randint(2, 4))) for _ in range(5)]
    packed = [(("".join(f"{draw.randint(2, 12)}{draw.choice('abcxyz')}" for _ in range(3))),) for _ in range(4)]
    runs = lambda t: [(c, len(list(g))) for c, g in groupby(t)]  # noqa: E731
    answers = {
        "longest": (lambda t: max([least, *(n for _, n in runs(t))]), [(t,) for t in raw]),
        "pack": (lambda t: "".join(f"{c}{mark}{n}" if n >= least else c * n for c, n in runs(t)), [(t,) for t in raw]),
        "unpack": (lambda t: mark.join(c * int(n) for n, c in re.findall(r"(\d+)(\D)", t)), packed),
    }
    idea = choose(draw, "run_lengths", difficulty)
    return idea.exercise(draw, *answers[idea.variant], least=least, mark=mark)


def records(draw: Random, difficulty: str) -> Exercise:
    """Lines of fields: read, summed, joined."""
    separator = draw.choice([",", ";", "|", ":"])
    least = draw.randint(5, 40)
    people, things, cities = draw.sample(PEOPLE, 6), draw.sample(THINGS, 4), draw.sample(CITIES, 4)

    def table(columns: int) -> str:
        fields = lambda: [draw.choice(people), str(draw.randint(1, 80)), draw.choice(cities), draw.choice(things)]  # noqa: E731
        return "\n".join(separator.join(fields()[:columns]) for _ in range(draw.randint(3, 5)))

    split = lambda t: [line.split(separator) for line in t.split("\n")]  # noqa: E731
    options = lambda: " ".join(f"{draw.choice(WORDS)}={draw.randint(1, 99)}" for _ in range(draw.randint(2, 4)))  # noqa: E731
    answers = {
        "names": (lambda t: [n for n, a in split(t) if not int(a) < least], [(table(2),) for _ in range(3)]),
        "options": (
            lambda t: {k: least + int(v) for k, v in re.findall(r"(\w+)=(\d+)", t)},
            [(options(),) for _ in range(3)],
        ),
        "totals": (
            lambda t: {
                n: s
                for n in dict.fromkeys(f[0] for f in split(t))
                if (s := sum(int(a) for m, a in split(t) if m == n)) > least
            },
            [(table(2),) for _ in range(3)],
        ),
        "nested": (
            lambda t: {
                c: max(((int(a), -i, n) for i, (n, a, d) in enumerate(split(t)) if d == c))[2]
                for c in dict.fromkeys(f[2] for f in split(t) if int(f[1]) >= least)
            },
            [(table(3),) for _ in range(3)],
        ),
    }
    idea = choose(draw, "records", difficulty)
    return idea.exercise(draw, *answers[idea.variant], least=least, separator=separator)


def layout(draw: Random, difficulty: str) -> Exercise:
    """Text set out in lines, columns and boxes."""
    width, fill = draw.randint(14, 26), draw.choice(".-_ ")
    names = [draw.sample(WORDS, draw.randint(2, 4)) for _ in range(4)]
    bars = [([draw.randint(1, 9) for _ in range(draw.randint(2, 5))],) for _ in range(4)]
    answers = {
        "bars": (lambda ns: [f"{''.join((fill.strip() or '=') for _ in range(n))} {n}" for n in ns], bars),
        "menu": (
            lambda ns: [n + fill * (width - len(n) - len(str(len(n)))) + str(len(n)) for n in ns],
            [(n,) for n in names],
        ),
        "wrap": (lambda t: textwrap.wrap(t, width), [(sentence(draw, 4, 8),) for _ in range(3)]),
        "justify": (lambda ws: _justify(ws, width + 20), [(n,) for n in names]),
        "table": (
            lambda rs: [
                " | ".join(c + fill * (max(len(r[j]) for r in rs) - len(c)) for j, c in enumerate(row)) for row in rs
            ],
            [([draw.sample(WORDS, 2) for _ in range(draw.randint(2, 3))],) for _ in range(3)],
        ),
    }
    idea = choose(draw, "layout", difficulty)
    return idea.exercise(
        draw,
        *answers[idea.variant],
        bar=fill.strip() or "=",
        bar_text=repr(fill.strip() or "="),
        fill=fill,
        fill_text=repr(fill),
        wide=width + 20,
        width=width,
    )


def _justify(words: list[str], width: int) -> str:
    gaps = [" "] * (len(words) - 1)
    place = 0
    while len("".join(words)) + len("".join(gaps)) < width:
        place = place % len(gaps)
        if all(len(g) >= len(gaps[place]) for g in gaps):
            gaps[place] += " "
        place += 1
    return "".join(w + g for w, g in zip(words, [*gaps, ""], strict=True))


def brackets(draw: Random, difficulty: str) -> Exercise:
    """Brackets that must match, depth, and text between marks."""
    left, right = draw.choice([("(", ")"), ("[", "]"), ("{", "}"), ("<", ">")])
    k = draw.randint(1, 3)

    def nested(n: int) -> str:
        parts = draw.choices([left, right, "a", "b"], weights=[3, 3, 1, 1], k=n)
        return "".join(parts)

    def proper(n: int) -> str:
        if n <= 0:
            return draw.choice(["", "x", "y"])
        return draw.choice([left + proper(n - 1) + right, proper(n - 2) + "z" + proper(n - 1)])

    def matches(t: str) -> bool:
        t = "".join(c for c in t if c in "()[]")
        while "()" in t or "[]" in t:
            t = t.replace("()", "").replace("[]", "")
        return not t

    mixed = ["".join(draw.choices("()[]", k=2)) + draw.choice(["([x])", "[(])", "()[]", "(x]"]) for _ in range(4)]
    answers = {
        "depth": (
            lambda t: k + max(t[:i].count(left) - t[:i].count(right) for i in range(len(t) + 1)),
            [(proper(4),) for _ in range(4)],
        ),
        "missing": (lambda t: _unmatched(t, left, right), [(nested(draw.randint(3, 8)),) for _ in range(4)]),
        "kinds": (matches, [*((m,) for m in mixed), ("[a(b)]",)]),
    }
    idea = choose(draw, "brackets", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, left=left, right=right)


def _unmatched(text: str, left: str, right: str) -> int:
    text = "".join(c for c in text if c in left + right)
    while left + right in text:
        text = text.replace(left + right, "")
    return len(text)


def story(draw: Random, difficulty: str) -> Exercise:
    """A sum from daily life, with the steps of the reckoning as comments."""
    person, thing = draw.choice(PEOPLE), draw.choice(THINGS)
    price, gift, pack = draw.randint(2, 40), draw.randint(1, 30), draw.randint(3, 12)
    off = draw.choice([5, 10, 20, 25])
    expected = {
        "shop": lambda count, money: money + gift - price * count,
        "boxes": lambda boxes, loose: max(pack * (price - boxes) - loose, 0),
        "packs": lambda count: (-(-count // pack), -count % pack),
        "share": lambda count, people: divmod(count - gift, people),
        "discount": lambda count: price * count * (100 - off if count >= pack else 100),
        "saving": lambda days: days * price + gift * days * (days - 1) // 2,
        "trip": lambda distance: (m := distance * 60 // pack) + gift * len([x for x in range(60, m, 60)]),
    }
    idea = choose(draw, "story", difficulty)
    arguments = idea.signature.partition("(")[2].removesuffix(")").split(", ")
    value = lambda a: draw.randint(2, 9) if a in ("people", "boxes", "loose") else draw.randint(gift + 1, 120)  # noqa: E731
    inputs = [tuple(map(value, arguments)) for _ in range(4)]
    return idea.exercise(
        draw, expected[idea.variant], inputs, person=person, who=person.lower(), thing=thing, Thing=thing.capitalize(),
        price=price, gift=gift, pack=pack, off=off, less=pack - 1, needed=price * pack, percent=100 - off,
    )  # fmt: skip


def recurrence(draw: Random, difficulty: str) -> Exercise:
    """Terms of a sequence defined by the one or two before it."""
    a, b, c = draw.randint(1, 4), draw.choice([-3, -2, -1, 1, 2, 3, 4]), draw.randint(-5, 9)
    b = 0 if difficulty == EASY else b
    first, second = draw.randint(0, 7), draw.randint(1, 9)
    modulus = draw.randint(11, 97) if difficulty == HARD else None
    sign = lambda x: "+" if x >= 0 else "-"  # noqa: E731
    older = (f" {sign(b)} {abs(b)} * s(n-2)", f" {sign(b)} {abs(b)} * x") if b else ("", "")
    rule = f"{a} * s(n-1){older[0]} {sign(c)} {abs(c)}"
    formula = f"{a} * y{older[1]} {sign(c)} {abs(c)}"
    if modulus:
        rule, formula = f"({rule}) mod {modulus}", f"({formula}) % {modulus}"

    def terms(n: int) -> list[int]:
        found = [first, second]
        while len(found) < n:
            value = a * found[-1] + b * found[-2] + c
            found.append(value % modulus if modulus else value)
        return found[:n]

    way = "nth" if draw.random() < 0.5 else "list"
    inputs = [(n,) for n in draw.sample(range(9), 4)]
    idea = choose(draw, "recurrence", difficulty, way)
    idea = replace(idea, variant=way + ("-mod" if modulus else "-one" if not b else ""))
    name = f"sequence_{a}_{abs(b)}_{first}{second}" + (f"_mod_{modulus}" if modulus else "")
    return idea.exercise(
        draw, terms if way == "list" else lambda n: terms(n + 1)[n], inputs, name=name, first=first, second=second,
        rule=rule, formula=formula,
    )  # fmt: skip


def digits(draw: Random, difficulty: str) -> Exercise:
    """Digits of a number in some base."""
    base, digit = 10 if difficulty == EASY else draw.randint(2, 9), draw.randint(1, 9)
    digit = digit % base or 1
    rows = [
        ((EASY, MEDIUM), "sum", "the sum of its digits", "sum(digits)", lambda ds: sum(ds)),
        ((EASY, MEDIUM), "count", f"how often the digit {digit} occurs", f"digits.count({digit})",
         lambda ds: len([d for d in ds if d == digit])),
        (MEDIUM, "text", "its digits as a string", "''.join(str(d) for d in reversed(digits))",
         lambda ds: "".join(map(str, ds[::-1]))),
        (HARD, "palindrome", "whether it reads the same from both ends", "digits == digits[::-1]",
         lambda ds: all(a == b for a, b in zip(ds, reversed(ds), strict=True))),
        ((EASY, MEDIUM), "largest", "its largest digit", "max(digits)", lambda ds: sorted(ds)[-1]),
        (HARD, "alternating", "the alternating sum of its digits, starting with plus at the last digit",
         "sum(d if i % 2 == 0 else -d for i, d in enumerate(digits))", lambda ds: sum(ds[::2]) - sum(ds[1::2])),
        (HARD, "product", f"the product of its digits other than 0, plus {digit}",
         None, lambda ds: digit + eval("*".join(str(d) for d in ds if d))),
    ]  # fmt: skip
    _, variant, what, finish, expected = draw.choice([row for row in rows if difficulty in row[0]])
    tasks = [
        f"Write the positive integer `n` in base {base} and return {what}.",
        f"For a number n > 0 in base {base}, return {what}.",
    ]
    body = f"digits = []\nwhile n:\n    digits.append(n % {base})\n    n //= {base}\nreturn {finish}"
    idea = f"The remainder by {base} is the last digit, and whole division by {base} takes it away; at 0 none is left."
    if variant == "product":
        body = f"product = 1\nwhile n:\n    product *= n % {base} or 1\n    n //= {base}\nreturn product + {digit}"
        idea += " `or 1` makes a digit of 0 count as 1."

    def of(n: int) -> Any:
        power = 1
        while power * base <= n:
            power *= base
        found = []
        while power:
            found.insert(0, n // power % base)
            power //= base
        return expected(found)

    inputs = [(draw.randint(1, 5_000),) for _ in range(4)]
    made = Idea("digits", variant, difficulty, f"{variant}_in_base_{base}(n)", tasks, body, idea)
    return made.exercise(draw, of, inputs)


def number_theory(draw: Random, difficulty: str) -> Exercise:
    """Divisors, primes, common measures."""
    k = draw.randint(2, 12)
    one = [(n,) for n in draw.sample(range(4, 90), 4)]
    two = [(draw.randint(2, 60) * k, draw.randint(2, 60) * k) for _ in range(4)]
    divisors = lambda n: [d for d in range(1, n + 1) if n % d == 0]  # noqa: E731
    prime = lambda n: len(divisors(n)) == 2  # noqa: E731
    answers = {
        "divisors": (lambda n: [d for d in divisors(n) if d > k], one),
        "multiples": (lambda n: k * (m := n // k) * (m + 1) // 2, one),
        "gcd": (lambda a, b: k * gcd(a, b), two),
        "prime": (lambda n: next(m for m in range(n + k, 10_000) if prime(m)), one),
        "factors": (
            lambda n: [p for p in range(2, n * k + 1) if prime(p) for e in range(1, 12) if n * k % p**e == 0],
            one,
        ),
        "power": (lambda base, exponent: pow(base, exponent, k + 90), two),
        "sieve": (lambda n: [m for m in range(k, n + 1) if prime(m)], one),
    }
    idea = choose(draw, "number_theory", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, least=k + 1, modulus=k + 90)


def equations(draw: Random, difficulty: str) -> Exercise:
    """Unknown numbers from what is known about them, exactly, as fractions where need be."""
    a, b, c = draw.randint(2, 9), draw.randint(1, 30), draw.randint(2, 7)
    person, other = draw.sample(PEOPLE, 2)
    one = [(n,) for n in draw.sample(range(5, 90), 4)]
    two = [(draw.randint(3, 40), draw.randint(3, 40)) for _ in range(4)]
    answers = {
        "linear": (lambda total: next((x for x in range(-200, 200) if a * x + b == total), None), [*one, (a * c + b,)]),
        "average": (
            lambda known, average: average + sum(average - x for x in known) - b,
            [([draw.randint(1, 60) for _ in range(draw.randint(2, 4))], draw.randint(10, 50)) for _ in range(4)],
        ),
        "ages": (lambda t, y: (Fraction(t + a * y, a + 1), Fraction(t - y, a + 1)), two),
        "ratio": (lambda n: (Fraction(n * a, a + c), n - Fraction(n * a, a + c)), one),
        "pair": (lambda p, q: (Fraction(p + c * (q + b), a + c), Fraction(p - a * q - a * b, a + c)), two),
        "work": (lambda p, q: b + 60 / (Fraction(1, p) + Fraction(1, q)), two),
    }
    idea = choose(draw, "equations", difficulty)
    return idea.exercise(
        draw, *answers[idea.variant], a=a, b=b, c=c, other=other, parts=a + c, person=person, times=a + 1
    )


def clock(draw: Random, difficulty: str) -> Exercise:
    """Hours, minutes, weekdays, and other units that carry over."""
    k = draw.randint(5, 95)
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    time = lambda: f"{draw.randint(0, 23):02d}:{draw.randint(0, 59):02d}"  # noqa: E731
    minutes = lambda t: int(t[:2]) * 60 + int(t[3:])  # noqa: E731
    answers = {
        "minutes": (lambda t: k + minutes(t), [(time(),) for _ in range(4)]),
        "weekday": (lambda d: (days * 20)[days.index(d) + k], [(d,) for d in draw.sample(days, 3)]),
        "later": (
            lambda t: f"{(minutes(t) + k) // 60 % 24:02d}:{(int(t[3:]) + k) % 60:02d}",
            [(time(),) for _ in range(4)],
        ),
        "units": (
            lambda s: [(s + k) // 3600, (s + k) // 60 % 60, (s + k) % 60],
            [(draw.randint(50, 20_000),) for _ in range(4)],
        ),
        "between": (
            lambda s, e: (m := minutes(e) + (1440 if e < s else 0) - minutes(s)) - (k if m > k else 0),
            [(time(), time()) for _ in range(4)],
        ),
        "leap": (
            lambda y: (366 if y % 400 == 0 or (y % 4 == 0 and y % 100) else 365) - k,
            [
                (y,)
                for y in (draw.randint(1900, 2100), 1900 + 100 * draw.randint(0, 3), 2000, draw.randint(475, 520) * 4)
            ],
        ),
    }
    idea = choose(draw, "clock", difficulty)
    return idea.exercise(draw, *answers[idea.variant], days=repr(list(days)), k=k)
