"""Exercises on Python itself: comprehensions, generators, functions of functions, exceptions, small classes."""

from itertools import accumulate, islice
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import EASY, HARD, MEDIUM, Exercise, compose, compose_class, rows_of
from pipeline.corpus.exercises.templates.words import PEOPLE, THINGS, WORDS, numbers, sentence


def comprehensions(draw: Random, difficulty: str) -> Exercise:
    """Lists, sets and dictionaries in one expression."""
    k, letter = draw.randint(2, 9), draw.choice("aeiorst")
    xs = [(numbers(draw, 0, 40),) for _ in range(3)]
    texts = [(sentence(draw, 4, 7).split(),) for _ in range(3)]
    stocks = [({w: draw.randint(0, 20) for w in draw.sample(THINGS, 4)},) for _ in range(3)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "scaled", f"scaled_by_{k}", "xs", f"Return `xs` with every element multiplied by {k}, even results "
         "only.",
         f"return [x * {k} for x in xs if x * {k} % 2 == 0]",
         lambda xs: list(filter(lambda y: not y & 1, map(lambda x: x + x * (k - 1), xs))), xs,
         "The condition at the end decides which elements get in, the expression at the front what becomes of them."),
        (EASY, "lengths", f"lengths_of_{letter}", "words", f"Return a dictionary from each word that contains "
         f"'{letter}' "
         f"to its length plus {k}.",
         f"return {{word: len(word) + {k} for word in words if '{letter}' in word}}",
         lambda ws: dict([(w, k + sum(1 for _ in w)) for w in ws if w.find(letter) >= 0]), texts,
         "With a colon in it, the expression in braces makes a dictionary; a repeated word is one key only."),
        (MEDIUM, "products", f"products_up_to_{k * 10}", "xs", "Return the sorted different products of two elements "
         "at "
         f"different places that are at most {k * 10}.",
         f"found = {{a * b for i, a in enumerate(xs) for b in xs[:i]}}\nreturn sorted(p for p in found if p <= "
         f"{k * 10})",
         lambda xs: [p for p in range(k * 10 + 1) if any(p == xs[i] * xs[j] for i in range(len(xs)) for j in range(i))],
         xs, "Two `for` in one comprehension are nested loops, the first one outside. A set keeps each product once."),
        (MEDIUM, "invert", "by_amount", "stock", f"`stock` maps names to amounts. Return a dictionary from each "
         "amount of at "
         f"least {k} to the sorted names with it.",
         f"amounts = {{n for n in stock.values() if n >= {k}}}\n"
         "return {n: sorted(name for name in stock if stock[name] == n) for n in sorted(amounts)}",
         lambda s: {n: sorted(w for w, m in s.items() if m == n) for n in sorted(s.values()) if not n < k}, stocks,
         "First the different amounts are gathered, then each one gathers its names."),
        (HARD, "matrix", f"spiral_table_{k}", "xs", "Return a table (list of rows) of all sums of two elements: row i "
         "and "
         f"column j hold xs[i] + xs[j], and {k} more on the diagonal.",
         f"return [[a + b + ({k} if i == j else 0) for j, b in enumerate(xs)] for i, a in enumerate(xs)]",
         lambda xs: [[sum((xs[i], xs[j])) + k * (i == j) for j in range(len(xs))] for i in range(len(xs))],
         [(numbers(draw, 0, 20, 2, 3),) for _ in range(3)],
         "A comprehension inside another makes one row for each element. Brackets hold the condition together."),
        (HARD, "nested", "letters_shared", "words", f"Return a dictionary from each word of more than {k // 2 + 3} "
         "letters to "
         "the sorted other words that share its first or its last letter.",
         f"return {{w: sorted({{v for v in words if v != w and (v[0] == w[0] or v[-1] == w[-1])}})\n"
         f"        for w in words if len(w) > {k // 2 + 3}}}",
         lambda ws: {w: sorted(x for x in set(ws) if x != w and {(0, x[0]), (1, x[-1])} & {(0, w[0]), (1, w[-1])})
                     for w in ws if len(w) >= k // 2 + 4}, texts,
         "The inner set is built anew for every word of the outer loop."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "comprehensions", variant, name, arguments, [task], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def generators(draw: Random, difficulty: str) -> Exercise:
    """Values one at a time: yield, endless sequences, pipelines."""
    k, count = draw.randint(2, 9), draw.randint(3, 6)
    xs = [(numbers(draw, 1, 30),) for _ in range(4)]
    starts = [(n,) for n in draw.sample(range(1, 40), 4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "evens", "every_step", "start", f"Return the first {count} numbers from `start` on in steps of {k}, "
         "taken "
         "from a generator inside.",
         f"def steps(n):\n    while True:\n        yield n\n        n += {k}\n\n"
         f"numbers = steps(start)\nreturn [next(numbers) for _ in range({count})]",
         lambda s: list(range(s, s + k * count, k)), starts,
         "`yield` hands out a value and waits there; the endless loop does no harm, as nobody asks for more."),
        (MEDIUM, "totals", "totals_until", "xs", f"Return the running totals of `xs` as long as they are below "
         f"{k * 10}, "
         "with a generator that stops by itself.",
         f"def totals():\n    total = 0\n    for x in xs:\n        total += x\n        if total >= {k * 10}:\n"
         "            return\n        yield total\n\nreturn list(totals())",
         lambda xs: [t for t in accumulate(xs) if t < k * 10], xs,
         "`return` ends a generator; whoever reads it sees the end as if a list were used up."),
        (MEDIUM, "pairs", f"in_batches_of_{k}", "xs", f"Return the largest element of each batch of {k} elements, "
         "reading "
         "`xs` through an iterator only.",
         f"iterator, largest = iter(xs), []\nwhile batch := list(islice(iterator, {k})):\n"
         "    largest.append(max(batch))\nreturn largest",
         lambda xs: [sorted(xs[i : i + k])[-1] for i in range(0, len(xs), k)], xs,
         "`islice` takes the next elements from where the iterator stands; an empty batch ends the loop."),
        (HARD, "collatz", "path_length", "start", f"From `start` go to half of it if it is even, else to three times "
         "it and "
         f"one more, up to 1. Return the numbers on the way that are divisible by {k}, at most {count}.",
         "def path(n):\n    yield n\n    while n != 1:\n        n = n // 2 if n % 2 == 0 else 3 * n + 1\n        "
         "yield n\n\n"
         f"return list(islice((n for n in path(start) if n % {k} == 0), {count}))",
         lambda s: [n for n in _collatz(s) if n % k == 0][:count], starts,
         "The generator walks, the expression around it picks, and `islice` stops: none of them holds the whole way."),
        (HARD, "merge", "merged_steps", "start", f"Return the first {count + 3} different numbers above `start`, in "
         "order, that "
         f"are multiples of {k} or of {k + 3}, from two endless generators that are merged.",
         f"def multiples(of):\n    n = start // of * of\n    while True:\n        n += of\n        yield n\n\n"
         f"found = []\nfor n in heapq.merge(multiples({k}), multiples({k + 3})):\n    if n not in found[-1:]:\n"
         f"        found.append(n)\n    if len(found) == {count + 3}:\n        return found",
         lambda s: list(islice((n for n in range(s + 1, 9_999) if n % k == 0 or n % (k + 3) == 0), count + 3)), starts,
         "`heapq.merge` only ever asks each generator for its next value, so endless ones can be merged."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    imports = [*(["import heapq"] if "heapq" in body else []),
               *(["from itertools import islice"] if "islice" in body else [])]  # fmt: skip
    return compose(
        draw, "generators", variant, name, arguments, [task], body, expected, inputs, idea=idea,
        difficulty=difficulty, imports=imports,
    )  # fmt: skip


def _collatz(n: int) -> list[int]:
    return [n] if n == 1 else [n, *_collatz(3 * n + 1 if n % 2 else n // 2)]


def functions(draw: Random, difficulty: str) -> Exercise:
    """Functions that make or take functions: closures, composition, memory."""
    k, n = draw.randint(2, 9), draw.randint(2, 4)
    values = [(numbers(draw, 0, 20, 3, 5),) for _ in range(4)]
    single = [(x,) for x in draw.sample(range(1, 30), 4)]
    calls = [(draw.choices(range(1, 6), k=6),) for _ in range(4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "adders", f"apply_all_{k}", "x", f"Make {n} functions, the i-th of which adds i * {k} to its argument "
         "(i from "
         f"0), and return the list of what they make of `x`.",
         f"def adder(i):\n    return lambda value: value + i * {k}\n\nreturn [adder(i)(x) for i in range({n})]",
         lambda x: list(range(x, x + n * k, k)), single,
         "Each call of `adder` has an `i` of its own, which the function it returns keeps."),
        (EASY, "keyword", "with_default", "*args", f"Return the sum of all arguments, or {k * n} if there are none.",
         f"return sum(args) if args else {k * n}", lambda *a: sum(a[1:], a[0]) if len(a) else k * n,
         [tuple(numbers(draw, 0, 30, 1, 4)) for _ in range(3)] + [()],
         "The star gathers all arguments in a tuple, and an empty tuple counts as false."),
        (MEDIUM, "compose", "composed", "x", f"Build one function from three that add {k}, multiply by {n} and "
         "subtract 1, "
         f"applied in this order, and return what {n} applications of it make of `x`.",
         "def compose(*functions):\n    def composed(value):\n        for function in functions:\n"
         "            value = function(value)\n        return value\n\n    return composed\n\n"
         f"step = compose(lambda v: v + {k}, lambda v: v * {n}, lambda v: v - 1)\nfor _ in range({n}):\n    x = "
         "step(x)\n"
         "return x",
         lambda x: x * n**n + sum((k * n - 1) * n**i for i in range(n)), single,
         "The inner function remembers the list of functions that it was made with."),
        (MEDIUM, "counter", "calls_needed", "xs", f"Return how often an expensive function must really be called for "
         "the "
         f"arguments `xs` if results are remembered, and the sum of all results, which are {k} * x + 1.",
         "calls, known = 0, {}\n\ndef remembered(x):\n    nonlocal calls\n    if x not in known:\n        calls += 1\n"
         f"        known[x] = {k} * x + 1\n    return known[x]\n\ntotal = sum(remembered(x) for x in xs)\nreturn "
         "calls, total",
         lambda xs: (len(set(xs)), len(xs) + k * sum(xs)), calls,
         "`nonlocal` lets the inner function change a variable of the outer one. A dictionary holds what is known."),
        (HARD, "decorator", "logged_results", "xs", "Write a decorator that keeps a list of all results of a function, "
         f"put it on a function that squares and takes the remainder by {k + 10}, call that for `xs`, and return the "
         "list.",
         "log = []\n\ndef logged(function):\n    def wrapper(*args):\n        result = function(*args)\n"
         "        log.append(result)\n        return result\n\n    return wrapper\n\n"
         f"@logged\ndef squared(x):\n    return x * x % {k + 10}\n\nfor x in xs:\n    squared(x)\nreturn log",
         lambda xs: [x**2 - x**2 // (k + 10) * (k + 10) for x in xs], values,
         "A decorator takes a function and gives back another one that calls it. The name then stands for the "
         "wrapper."),
        (HARD, "fold", "folded", "xs", f"Fold the list from the left with a function of two arguments that gives {n} "
         "* a + b, "
         f"starting at {k}, and from the right likewise; return both results.",
         f"def fold(function, start, items):\n    for item in items:\n        start = function(start, item)\n    "
         "return start\n\n"
         f"step = lambda a, b: {n} * a + b\nreturn fold(step, {k}, xs), fold(step, {k}, reversed(xs))",
         lambda xs: tuple(k * n ** len(xs) + sum(x * n**i for i, x in enumerate(ys)) for ys in (xs[::-1], xs)), values,
         "Folding carries one value along and lets the function join it with each element in turn."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "functions", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def errors(draw: Random, difficulty: str) -> Exercise:
    """What goes wrong and how it is caught: bad numbers, missing keys, own exceptions, cleaning up."""
    k, word = draw.randint(2, 30), draw.choice(WORDS)
    cell = lambda: draw.choice([str(draw.randint(1, 60)), "x", "", f"{draw.randint(1, 9)}.5", "-3"])  # noqa: E731
    cells = [([cell() for _ in range(draw.randint(3, 5))],) for _ in range(4)]
    names = draw.sample(PEOPLE, 4)
    lookups = [({m: draw.randint(1, 50) for m in names[:3]}, draw.choice(names)) for _ in range(4)]
    whole = lambda c: c.lstrip("-").isdigit()  # noqa: E731
    rows: list[tuple[Any, ...]] = [
        (EASY, "default", "number_or_default", "cells", f"Return the cells as whole numbers, with {k} for each one "
         "that is "
         "no whole number.",
         f"numbers = []\nfor cell in cells:\n    try:\n        numbers.append(int(cell))\n    except ValueError:\n"
         f"        numbers.append({k})\nreturn numbers",
         lambda cs: [int(c) if whole(c) else k for c in cs], cells,
         "Trying and catching `ValueError` leaves the decision what a number is to `int` itself."),
        (EASY, "lookup", "points_of", "points, name", f"Return the points of `name` plus {k}, or '{word}' if the name "
         "is not "
         "there, by catching the error.",
         f"try:\n    return points[name] + {k}\nexcept KeyError:\n    return '{word}'",
         lambda p, m: p.get(m, None) + k if m in p else word, [*lookups, ({names[0]: 3}, names[1])],
         "A missing key raises `KeyError`; only that is caught, so that other mistakes still show."),
        (MEDIUM, "sorted_out", "sort_out", "cells", f"Return two lists: the cells that are whole numbers, as numbers "
         "above "
         f"{k // 3}, and the others as they are. Numbers up to {k // 3} are left out.",
         "good, bad = [], []\nfor cell in cells:\n    try:\n        number = int(cell)\n    except ValueError:\n"
         f"        bad.append(cell)\n    else:\n        if number > {k // 3}:\n            good.append(number)\n"
         "return good, bad",
         lambda cs: ([int(c) for c in cs if whole(c) and int(c) > k // 3], [c for c in cs if not whole(c)]), cells,
         "What stands under `else` runs only if nothing was raised, and is itself not watched."),
        (MEDIUM, "own", "checked", "cells", f"Raise an exception of your own for cells that are empty or longer than 2 "
         f"characters, catch it, and return its messages '{word}: ' and the cell.",
         "class BadCell(Exception):\n    pass\n\ndef check(cell):\n    if not 1 <= len(cell) <= 2:\n"
         f"        raise BadCell(f'{word}: {{cell}}')\n\nmessages = []\nfor cell in cells:\n    try:\n        "
         "check(cell)\n"
         "    except BadCell as problem:\n        messages.append(str(problem))\nreturn messages",
         lambda cs: [f"{word}: {c}" for c in cs if len(c) not in (1, 2)], [*cells, (["", "a", "abc"],)],
         "A class of one's own lets the caller catch exactly this problem and nothing else."),
        (HARD, "finally", "opened_and_closed", "cells", f"Return a log: 'open' before each cell, 'close' after it in "
         "any case, "
         f"and between them {k} divided by the cell as a whole number (// is meant), or the name of the error.",
         f"log = []\nfor cell in cells:\n    log.append('open')\n    try:\n        log.append({k} // int(cell))\n"
         "    except (ValueError, ZeroDivisionError) as problem:\n        log.append(type(problem).__name__)\n    "
         "finally:\n"
         "        log.append('close')\nreturn log",
         lambda cs: [x for c in cs for x in ("open", "ValueError" if not whole(c) else "ZeroDivisionError" if c == "0"
                                             else k // int(c), "close")], [*cells, (["0", "1", "z"],)],
         "`finally` runs whether or not something was raised, also when the error is passed on."),
        (HARD, "context", "with_depth", "words", f"Write a context manager that counts how deep it is nested, enter "
         "it once "
         f"for each word of more than {2 + k % 4} letters (all of them nested), and return the depth reached and the "
         "depth "
         "after all are left.",
         "class Nested:\n    depth = deepest = 0\n\n    def __enter__(self):\n        Nested.depth += 1\n"
         "        Nested.deepest = max(Nested.deepest, Nested.depth)\n\n    def __exit__(self, *problem):\n"
         "        Nested.depth -= 1\n\ndef enter(rest):\n    if rest:\n        with Nested():\n            "
         "enter(rest[1:])\n\n"
         f"enter([word for word in words if len(word) > {2 + k % 4}])\nreturn Nested.deepest, Nested.depth",
         lambda ws: (sum(len(w) >= 3 + k % 4 for w in ws), 0), [(sentence(draw, 3, 6).split(),) for _ in range(4)],
         "`with` calls `__enter__` at the start and `__exit__` at the end of its block, also after an error."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "errors", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def small_classes(draw: Random, difficulty: str) -> Exercise:
    """Classes with behaviour of their own: money, vectors, accounts, temperatures, text builders."""
    k, word = draw.randint(2, 9), draw.choice(WORDS).capitalize()
    a, b, c, d = (draw.randint(1, 40) for _ in range(4))
    variant = draw.choice(
        {EASY: ["Account", "Rectangle"], MEDIUM: ["Vector", "Playlist"], HARD: ["Polynomial", "Span"]}[difficulty]
    )
    name = f"{word}{variant}"
    if variant == "Account":
        task = (
            f"An account: `pay_in(n)` adds n, `pay_out(n)` takes n and a fee of {k} away and answers True, or changes "
            "nothing and answers False if there is too little; `balance` holds what is there."
        )
        body = (
            "def __init__(self, balance=0):\n    self.balance = balance\n\ndef pay_in(self, n):\n    self.balance += "
            "n\n\n"
            f"def pay_out(self, n):\n    if n + {k} > self.balance:\n        return False\n    self.balance -= n + "
            f"{k}\n"
            "    return True"
        )
        methods, idea = (
            ["__init__(self, balance=0)", "pay_in(self, n)", "pay_out(self, n)"],
            ("The check comes before any change, so a refused payment leaves no trace."),
        )
        scripts = [[f"account = {name}({a + b})", f"assert account.pay_out({a}) is {b >= k}",
                    f"assert account.balance == {b - k if b >= k else a + b}"],
                   [f"account = {name}()", f"account.pay_in({c})", f"assert account.pay_out({c}) is False",
                    f"assert account.balance == {c}"]]  # fmt: skip
    elif variant == "Rectangle":
        task = (
            f"A rectangle with `width` and `height`: `area()`, `border()` (all four sides, {k} more for the corners), "
            "and "
            "`fits_into(other)`, which may turn it."
        )
        body = (
            "def __init__(self, width, height):\n    self.width, self.height = width, height\n\ndef area(self):\n"
            f"    return self.width * self.height\n\ndef border(self):\n    return 2 * (self.width + self.height) + "
            f"{k}\n\n"
            "def fits_into(self, other):\n    mine = sorted([self.width, self.height])\n"
            "    theirs = sorted([other.width, other.height])\n    return mine[0] <= theirs[0] and mine[1] <= theirs[1]"
        )
        methods, idea = (
            ["__init__(self, width, height)", "area(self)", "border(self)", "fits_into(self, other)"],
            ("Sorting both pairs of sides compares short with short and long with long, which is what turning allows."),
        )
        fits = (a <= c and b <= d) or (b <= c and a <= d)
        scripts = [[f"small, large = {name}({a}, {b}), {name}({c}, {d})", f"assert small.area() == {a * b}",
                    f"assert large.border() == {c + d + c + d + k}", f"assert small.fits_into(large) is {fits}"],
                   [f"assert {name}({a}, {b}).fits_into({name}({b}, {a}))"]]  # fmt: skip
    elif variant == "Vector":
        task = (
            f"A vector of two numbers `x` and `y` with +, *, == and `dot`: v + w adds, v * n stretches and then adds "
            f"{k} to "
            "x, v == w compares, `v.dot(w)` is x * x + y * y of both."
        )
        body = (
            f"def __init__(self, x, y):\n    self.x, self.y = x, y\n\ndef __add__(self, other):\n"
            f"    return {name}(self.x + other.x, self.y + other.y)\n\ndef __mul__(self, n):\n"
            f"    return {name}(self.x * n + {k}, self.y * n)\n\ndef __eq__(self, other):\n"
            "    return (self.x, self.y) == (other.x, other.y)\n\ndef dot(self, other):\n"
            "    return self.x * other.x + self.y * other.y"
        )
        methods, idea = ["__init__(self, x, y)", "__add__(self, other)", "__mul__(self, n)", "__eq__(self, other)",
                         "dot(self, other)"], (
            "Python calls `__add__`, `__mul__` and `__eq__` for the signs. The results are new vectors; nothing is "
            "changed."
        )  # fmt: skip
        scripts = [[f"v, w = {name}({a}, {b}), {name}({c}, {d})", f"assert v + w == {name}({a + c}, {b + d})",
                    f"assert v.dot(w) == {sum(p * q for p, q in ((a, c), (b, d)))}"],
                   [f"assert {name}({a}, {b}) * {k} == {name}({sum([a] * k) + k}, {sum([b] * k)})"]]  # fmt: skip
    elif variant == "Playlist":
        songs = draw.sample(WORDS, 4)
        task = (
            f"A playlist: `add(song)` puts it at the end unless it is there; `skip()` moves the first song to the end "
            "and "
            f"answers it; iterating gives the songs in order, at most {k}; `in` works."
        )
        body = (
            "def __init__(self):\n    self.songs = []\n\ndef add(self, song):\n    if song not in self.songs:\n"
            "        self.songs.append(song)\n\ndef skip(self):\n    song = self.songs.pop(0)\n    "
            "self.songs.append(song)\n"
            f"    return song\n\ndef __iter__(self):\n    return iter(self.songs[:{k}])\n\n"
            "def __contains__(self, song):\n    return song in self.songs"
        )
        methods, idea = (
            ["add(self, song)", "skip(self)", "__iter__(self)", "__contains__(self, song)"],
            ("`__iter__` answers an iterator, so `list` and `for` work; `__contains__` is what `in` asks."),
        )
        scripts = [[f"songs = {name}()", f"for song in {[*songs[:3], songs[0]]}:", "    songs.add(song)",
                    f"assert list(songs) == {songs[:3][:k]}", f"assert songs.skip() == {songs[0]!r}",
                    f"assert list(songs) == {[songs[1], songs[2], songs[0]][:k]}"],
                   [f"songs = {name}()", f"songs.add({songs[3]!r})", f"assert {songs[3]!r} in songs",
                    f"assert {songs[0]!r} not in songs"]]  # fmt: skip
    elif variant == "Polynomial":
        low, high = [a % 9, b % 9 - 4, 1 + c % 5], [d % 7, 1 + a % 4]
        at = lambda p, x: sum(f * x**i for i, f in enumerate(p))  # noqa: E731
        task = (
            f"A polynomial from the list of its coefficients, that of x ** 0 first: call it with x for its value plus "
            f"{k}, "
            "multiply two with *, and `slope()` answers the derivative as a polynomial."
        )
        body = (
            "def __init__(self, factors):\n    self.factors = factors\n\ndef __call__(self, x):\n    value = 0\n"
            f"    for factor in reversed(self.factors):\n        value = value * x + factor\n    return value + {k}\n\n"
            "def __mul__(self, other):\n    product = [0] * (len(self.factors) + len(other.factors) - 1)\n"
            "    for i, a in enumerate(self.factors):\n        for j, b in enumerate(other.factors):\n"
            f"            product[i + j] += a * b\n    return {name}(product)\n\ndef slope(self):\n"
            f"    return {name}([i * factor for i, factor in enumerate(self.factors)][1:])"
        )
        methods, idea = (
            ["__init__(self, factors)", "__call__(self, x)", "__mul__(self, other)", "slope(self)"],
            (
                "Reckoning from the highest coefficient down needs no powers (Horner's scheme). In a product the "
                "exponents add."
            ),
        )
        derived = [low[1], 2 * low[2]]
        scripts = [[f"p, q = {name}({low}), {name}({high})", f"assert p(3) == {at(low, 3) + k}",
                    f"assert (p * q)(2) == {at(low, 2) * at(high, 2) + k}"],
                   [f"assert {name}({low}).slope()(5) == {at(derived, 5) + k}"]]  # fmt: skip
    else:
        lo, hi = sorted((a, a + b))
        task = (
            f"A span of whole numbers from `low` up to, but without, `high`: `len`, `in`, `&` for the common part "
            "(empty: "
            f"from 0 to 0), and `widened()`, which is {k} longer at both ends."
        )
        body = (
            "def __init__(self, low, high):\n    self.low, self.high = low, high\n\ndef __len__(self):\n"
            "    return self.high - self.low\n\ndef __contains__(self, x):\n    return self.low <= x < self.high\n\n"
            "def __and__(self, other):\n    low, high = max(self.low, other.low), min(self.high, other.high)\n"
            f"    return {name}(low, high) if low < high else {name}(0, 0)\n\ndef widened(self):\n"
            f"    return {name}(self.low - {k}, self.high + {k})"
        )
        methods, idea = ["__init__(self, low, high)", "__len__(self)", "__contains__(self, x)", "__and__(self, other)",
                         "widened(self)"], (
            "The common part begins at the later start and ends at the earlier end; if these are in the wrong order, "
            "there "
            "is none."
        )  # fmt: skip
        common = len(set(range(lo, hi)) & set(range(c, c + d)))
        scripts = [[f"span, other = {name}({lo}, {hi}), {name}({c}, {c + d})", f"assert len(span) == {hi - lo}",
                    f"assert len(span & other) == {common}"],
                   [f"span = {name}({lo}, {hi}).widened()", f"assert {lo - k} in span", f"assert {hi + k} not in span",
                    f"assert len(span) == {hi - lo + 2 * k}"]]  # fmt: skip
    return compose_class(
        draw, "small_classes", variant, name, task, body, scripts, idea=idea, difficulty=difficulty, methods=methods
    )
