"""Exercises on lists: fold, rearrange, tables of numbers, intervals, sets of items, two pointers."""

from collections.abc import Callable
from itertools import combinations, pairwise, zip_longest
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import EASY, HARD, MEDIUM, Exercise, compose, rows_of
from pipeline.corpus.exercises.templates.words import numbers


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
    fold, noun, start, step, how, finish = draw.choice(rows_of(difficulty, folds))
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
    return compose(
        draw, "filter_and_fold", f"{fold}-{condition}", name, items, tasks, body,
        lambda xs: finish([x for x in xs if holds(x)]), inputs, idea=idea, difficulty=difficulty,
    )  # fmt: skip


def rearrange(draw: Random, difficulty: str) -> Exercise:
    """A list cut, turned or joined in another order."""
    k = draw.randint(2, 7)
    rows = [
        (EASY, "rotate", f"Move the first {k} elements to the end. A shorter list goes round more than once.",
         f"if not xs:\n    return []\nshift = {k} % len(xs)\nreturn xs[shift:] + xs[:shift]",
         lambda xs: [xs[(i + k) % len(xs)] for i in range(len(xs))],
         "Two slices cut the list at the shift, and joining them the other way round rotates it. The remainder keeps "
         "the shift inside the list."),
        (EASY, "partition", f"Put the elements that leave no remainder when divided by {k} first, then the others; "
         "keep the order within both.",
         f"first = [x for x in xs if x % {k} == 0]\nreturn first + [x for x in xs if x % {k}]",
         lambda xs: sorted(xs, key=lambda x: x % k != 0),
         "Two passes with opposite conditions collect the two halves in their old order."),
        (MEDIUM, "chunks", f"Cut the list into pieces of {k} elements; the last may be shorter.",
         f"return [xs[i:i + {k}] for i in range(0, len(xs), {k})]",
         lambda xs: [[x for j, x in enumerate(xs) if j // k == i] for i in range(-(-len(xs) // k))],
         f"The starts of the pieces are {k} apart, and a slice past the end simply stops there."),
        (MEDIUM, "windows", f"Return the sum of every {k} neighbours, from left to right.",
         f"return [sum(xs[i:i + {k}]) for i in range(len(xs) - {k - 1})]",
         lambda xs: [sum(xs[j] for j in range(i, i + k)) for i in range(max(0, len(xs) - k + 1))],
         f"A window of {k} elements can start at every index that leaves room for it."),
        (HARD, "pairs", f"Return all pairs (a, b) of elements, a before b in the list, whose difference a - b is a "
         f"multiple of {k}.",
         "pairs = []\nfor i, a in enumerate(xs):\n    for b in xs[i + 1:]:\n"
         f"        if (a - b) % {k} == 0:\n            pairs.append((a, b))\nreturn pairs",
         lambda xs: [(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i < j and a % k == b % k],
         "Two loops visit each pair once, because the inner one starts behind the outer one."),
        (HARD, "runs", f"Return the running total of the elements, back to 0 each time it exceeds {k * 10}.",
         f"totals, total = [], 0\nfor x in xs:\n    total += x\n    if total > {k * 10}:\n        total = 0\n"
         "    totals.append(total)\nreturn totals",
         lambda xs: [_running(xs[: i + 1], k * 10) for i in range(len(xs))],
         "The total lives across the loop; it is reset before it is written down, so the limit never shows."),
        (MEDIUM, "differences", f"Return the differences between each element and the one {k - 1} places before it.",
         f"return [b - a for a, b in zip(xs, xs[{k - 1}:])]",
         lambda xs: [xs[i] - xs[i - k + 1] for i in range(k - 1, len(xs))],
         "`zip` walks over the list and a shifted copy of it at once, and stops with the shorter one."),
        (HARD, "interleave", f"Split the list after its first {k} elements and take from the two parts in turn, the "
         "second part first; what is left of the longer part comes last.",
         f"left, right, mixed = xs[:{k}], xs[{k}:], []\nfor i in range(max(len(left), len(right))):\n"
         "    mixed += right[i:i + 1] + left[i:i + 1]\nreturn mixed",
         lambda xs: [x for both in zip_longest(xs[k:], xs[:k]) for x in both if x is not None],
         "A slice of one element is empty beyond the end, so the shorter part needs no special case."),
    ]  # fmt: skip
    variant, task, body, expected, idea = draw.choice(rows_of(difficulty, rows))
    inputs = [(numbers(draw, least=5, most=10),) for _ in range(3)]
    return compose(
        draw, "rearrange", variant, f"{variant}_{k}", "xs", [task], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def _running(xs: list[int], limit: int) -> int:
    total = 0
    for x in xs:
        total = 0 if total + x > limit else total + x
    return total


def grid(draw: Random, difficulty: str) -> Exercise:
    """Rows and columns of a table of numbers."""
    k = draw.randint(2, 30)
    rows: list[tuple[str, str, str, str, Callable[[list[list[int]]], Any], str]] = [
        (EASY, "columns", f"Return the sum of each column, plus {k}.",
         f"return [sum(row[j] for row in grid) + {k} for j in range(len(grid[0]))]",
         lambda g: [k + sum(column) for column in zip(*g, strict=True)],
         "For each column number the inner sum picks one cell of every row."),
        (EASY, "row_lengths", f"Return how many cells of each row are greater than {k}.",
         f"return [sum(1 for x in row if x > {k}) for row in grid]",
         lambda g: [len([x for x in row if not x <= k]) for row in g],
         "Adding 1 for each cell that passes the test counts them, row by row."),
        (HARD, "turn", f"Turn the grid a quarter to the right and add {k} to each cell.",
         f"turned = zip(*reversed(grid))\nreturn [[x + {k} for x in row] for row in turned]",
         lambda g: [[g[len(g) - 1 - i][j] + k for i in range(len(g))] for j in range(len(g[0]))],
         "Reading the rows from the bottom up and then exchanging rows and columns is a quarter turn."),
        (MEDIUM, "cells", f"Return the positions (row, column) of all cells greater than {k}, row by row.",
         f"return [(i, j) for i, row in enumerate(grid) for j, x in enumerate(row) if x > {k}]",
         lambda g: [(n // len(g[0]), n % len(g[0])) for n, x in enumerate(x for row in g for x in row) if x > k],
         "`enumerate` gives the number of each row and, inside it, of each cell."),
        (HARD, "border", f"Return the sum of the cells at the edge of the grid, times {k}.",
         "total = 0\nfor i, row in enumerate(grid):\n    for j, x in enumerate(row):\n"
         "        if i in (0, len(grid) - 1) or j in (0, len(row) - 1):\n            total += x\n"
         f"return total * {k}",
         lambda g: k * (sum(map(sum, g)) - sum(sum(r[1:-1]) for r in g[1:-1])),
         "A cell is at the edge if its row or its column is the first or the last one."),
        (MEDIUM, "rows", f"Return the rows whose sum is at least {k}, the largest sum first; equal sums keep their "
         "order.",
         f"rows = [row for row in grid if sum(row) >= {k}]\nreturn sorted(rows, key=sum, reverse=True)",
         lambda g: sorted((r for r in g if not sum(r) < k), key=lambda r: -sum(r)),
         "Python's sort is stable, also in reverse: rows with the same sum stay as they were."),
    ]  # fmt: skip
    variant, task, body, expected, idea = draw.choice(rows_of(difficulty, rows))
    inputs = []
    for _ in range(3):
        width, height = draw.randint(2, 4), draw.randint(2, 3)
        inputs.append(([[draw.randint(0, 40) for _ in range(width)] for _ in range(height)],))
    return compose(
        draw, "grid", variant, f"{variant}_{k}", "grid", [task], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


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

    rows: list[tuple[str, str, str, str, Callable[..., Any], str]] = [
        (EASY, "covered", f"`{what}` is a list of pairs (start, end). Return how long they last together, not counting "
         f"those shorter than {gap}.",
         f"total = 0\nfor start, end in {what}:\n    if end - start >= {gap}:\n        total += end - start\n"
         "return total",
         lambda s: sum(b - a for a, b in s if not b - a < gap),
         "The length of a pair is its end minus its start; too short ones are skipped before adding."),
        (MEDIUM, "busiest", f"`{what}` is a list of pairs (start, end); the end no longer belongs to it. Return how "
         "many "
         "run at the same time at most.",
         f"changes = []\nfor start, end in {what}:\n    changes += [(start, 1), (end, -1)]\nrunning = most = 0\n"
         "for _, change in sorted(changes):\n    running += change\n    most = max(most, running)\nreturn most",
         most_at_once,
         "Each start adds one and each end takes one away. Sorted by time, with ends before starts at the same time "
         "because -1 is less than 1, the running sum is the number at work."),
        (HARD, "merge", f"`{what}` is a list of pairs (start, end). Join those that overlap or are less than {gap} "
         "apart, "
         "and return the joined pairs in order.",
         f"joined = []\nfor start, end in sorted({what}):\n    if joined and start - joined[-1][1] < {gap}:\n"
         "        joined[-1] = (joined[-1][0], max(end, joined[-1][1]))\n    else:\n"
         "        joined.append((start, end))\nreturn joined",
         lambda s: merged(s),
         "After sorting by start, a pair can only touch the last joined one. The larger of both ends matters, because "
         "a long early pair may swallow a short later one."),
        (HARD, "fit", f"`{what}` is a list of pairs (start, end). Return how many of them one person can attend at "
         "most, "
         f"with a break of at least {gap} between two.",
         f"count, free = 0, None\nfor start, end in sorted({what}, key=lambda pair: pair[1]):\n"
         f"    if free is None or start >= free:\n        count += 1\n        free = end + {gap}\nreturn count",
         lambda s: fit(s),
         "Taking the one that ends first is always safe: any plan can start with it without losing anything. This is "
         "a greedy choice."),
    ]  # fmt: skip
    variant, task, body, expected, idea = draw.choice(rows_of(difficulty, rows))
    inputs = []
    for _ in range(4):
        starts = [draw.randint(0, 40) for _ in range(draw.randint(3, 6))]
        inputs.append(([(a, a + draw.randint(1, 12)) for a in starts],))
    name = f"{variant}_{what}" + (f"_{gap}" if variant != "busiest" else "")
    return compose(
        draw, "intervals", variant, name, what, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )  # fmt: skip


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

    rows: list[tuple[Any, ...]] = [
        (EASY, "order", "in_order", "part, whole",
         "Return whether the elements of `part` occur in `whole` in this order, with anything between them.",
         "place = 0\nfor x in whole:\n    if place < len(part) and x == part[place]:\n        place += 1\n"
         "return place == len(part)",
         follows, order_inputs,
         "A pointer into `part` moves on at each match; if it reaches the end, all elements were found in order."),
        (MEDIUM, "merge", "merge", "left, right",
         "Merge two sorted lists into one sorted list, without sorting again.",
         "merged, i, j = [], 0, 0\nwhile i < len(left) and j < len(right):\n    if left[i] <= right[j]:\n"
         "        merged.append(left[i])\n        i += 1\n    else:\n        merged.append(right[j])\n        j += 1\n"
         "return merged + left[i:] + right[j:]",
         lambda a, b: sorted(a + b), merge_inputs,
         "The smaller of the two front elements comes next. When one list is used up, the rest of the other follows."),
        ((EASY, MEDIUM), "pair", f"pair_with_sum_{k}", "xs",
         f"`xs` is sorted and has no element twice. Return the pair (a, b) with a < b and a + b == {k} whose a is the "
         "smallest, or None.",
         f"i, j = 0, len(xs) - 1\nwhile i < j:\n    total = xs[i] + xs[j]\n    if total == {k}:\n"
         f"        return xs[i], xs[j]\n    if total < {k}:\n        i += 1\n    else:\n        j -= 1\nreturn None",
         lambda xs: next(((a, b) for a in xs for b in xs if a < b and a + b == k), None), pair_inputs,
         "If the sum is too small, the smaller element can be in no pair with anything left; if it is too large, the "
         "larger one cannot. So each step rules one element out."),
        (HARD, "window", f"longest_run_up_to_{limit}", "xs",
         f"All elements of `xs` are positive. Return the length of the longest stretch of neighbours whose sum is at "
         f"most {limit}.",
         "best = start = total = 0\nfor end, x in enumerate(xs):\n    total += x\n"
         f"    while total > {limit}:\n        total -= xs[start]\n        start += 1\n"
         "    best = max(best, end + 1 - start)\nreturn best",
         longest, window_inputs,
         "The window grows at its right end and shrinks at its left end only as far as it must, so each element "
         "enters and leaves once."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "two_pointers", variant, name, arguments, [task], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip
