"""Exercises on programs: algorithms, data structures, and Python itself.

Each template draws what its ideas need, in a fixed order, and computes the expected results in another way than the
solutions in `algorithms.yaml`, `data_structures.yaml` and `python.yaml` do.
"""

import ast
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from itertools import accumulate, combinations, islice, pairwise, permutations, product
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import (
    CITIES,
    EASY,
    HARD,
    PEOPLE,
    THINGS,
    WORDS,
    Exercise,
    choose,
    numbers,
    sentence,
)


def search(draw: Random, difficulty: str) -> Exercise:
    """Finding a place: by looking at all, by halving, by halving over answers."""
    k, hours = draw.randint(2, 30), draw.randint(5, 12)
    plain = [(numbers(draw, 0, 40), draw.randint(0, 40)) for _ in range(4)]
    ordered = [(sorted(numbers(draw, 0, 40)), draw.randint(0, 40)) for _ in range(4)]
    single = [(n,) for n in draw.sample(range(2, 400), 4)]
    piles = [([draw.randint(1, 30) for _ in range(draw.randint(2, 4))],) for _ in range(4)]
    answers = {
        "nearest": (lambda xs, t: sorted(xs, key=lambda x: (abs(x - (t + k)), xs.index(x)))[0], plain),
        "all": (lambda xs, t: [i for i in range(len(xs)) if xs[i] in range(t + 1, t + k + 1)], plain),
        "first_at_least": (lambda xs, t: sum(x < t - k for x in xs), ordered),
        "count": (lambda xs, t: len([x for x in xs if t <= x <= t + k]), ordered),
        "root": (lambda n: [r for r in range(n + 1) if k * r * r <= n][-1], single),
        "speed": (lambda ps: next(s for s in range(1, 100) if sum(-(-p // s) for p in ps) <= hours), piles),
    }
    idea = choose(draw, "search", difficulty)
    return idea.exercise(draw, *answers[idea.variant], hours=hours, k=k)


def ordering(draw: Random, difficulty: str) -> Exercise:
    """Sorting by keys, and sorts written out."""
    k = draw.randint(2, 9)
    pairs = [([(n, draw.randint(1, 5)) for n in draw.sample(PEOPLE, 4)],) for _ in range(3)]
    lists = [(numbers(draw, 0, 30),) for _ in range(4)]
    answers = {
        "remainder": (lambda xs: [x for r in range(k) for x in sorted(xs)[::-1] if x % k == r], lists),
        "scores": (lambda ps: [n for p in range(9, k // 3, -1) for n in sorted(m for m, q in ps if q == p)], pairs),
        "insertion": (lambda xs: (sorted(xs), k + sum(a > b for a, b in combinations(xs, 2))), lists),
        "selection": (lambda xs: sorted(xs)[:k], lists),
        "merge_sort": (lambda xs: sorted(xs, key=lambda x: x % (7 * k)), lists),
        "counting": (lambda xs: sorted(xs, key=lambda x: x // k), lists),
        "quick": (lambda xs: sorted(xs)[len(xs) // k], lists),
    }
    idea = choose(draw, "ordering", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, least=k // 3, modulus=k * 7)


def dynamic(draw: Random, difficulty: str) -> Exercise:
    """Answers built from answers of smaller questions."""
    steps = sorted(draw.sample(range(1, 6), draw.randint(2, 3)))
    coins = sorted({1, *draw.sample(range(2, 14), 2)})
    capacity, thing = draw.randint(8, 16), draw.choice(THINGS)
    small = [(n,) for n in draw.sample(range(2, 14), 4)]
    lists = [(numbers(draw, -9, 12, 3, 6),) for _ in range(4)]
    loads = [([(draw.randint(1, 9), draw.randint(1, 20)) for _ in range(draw.randint(3, 4))],) for _ in range(4)]
    words = [(draw.choice(WORDS)[:5], draw.choice(WORDS)[:5]) for _ in range(4)]
    subsets = lambda xs: [c for n in range(len(xs) + 1) for c in combinations(xs, n)]  # noqa: E731

    @cache
    def ways(n: int) -> int:
        return 1 if n == 0 else sum(ways(n - s) for s in steps if s <= n)

    @cache
    def fewest(n: int) -> int:
        return 0 if n == 0 else 1 + min(fewest(n - c) for c in coins if c <= n)

    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    answers = {
        "running_best": (
            lambda xs: max([capacity - 8, *(sum(xs[i:j]) for i in range(len(xs)) for j in range(i + 1, len(xs) + 1))]),
            lists,
        ),
        "climb": (lambda n: ways(n), small),
        "coins": (lambda n: fewest(n), [(n,) for n in draw.sample(range(3, 40), 4)]),
        "rising": (
            lambda xs: max(len(c) for c in subsets(xs) if all(a + steps[0] <= b for a, b in pairwise(c))),
            lists,
        ),
        "knapsack": (
            lambda items: max(sum(v for _, v in c) for c in subsets(items) if sum(w for w, _ in c) <= capacity),
            loads,
        ),
        "edit": (lambda a, b: capacity + distance(a, b), words),
        "subset": (
            lambda xs: [n for n in range(1, capacity + 1) if n in {sum(c) for c in subsets([x for x in xs if x > 0])}],
            lists,
        ),
    }
    idea = choose(draw, "dynamic", difficulty)
    return idea.exercise(
        draw, *answers[idea.variant], thing=thing, capacity=capacity, least=capacity - 8, rooms=capacity + 1,
        coins=coins, coins_listed=", ".join(map(str, coins)), coins_name="_".join(map(str, coins)), rise=steps[0],
        steps=steps, steps_listed=" or ".join(map(str, steps)), steps_name="_".join(map(str, steps)),
    )  # fmt: skip


def graphs(draw: Random, difficulty: str) -> Exercise:
    """Cities and roads: neighbours, reachable, shortest, in order, cheapest."""
    cities, k = draw.sample(CITIES, 5), draw.randint(1, 9)
    roads = lambda: sorted(draw.sample(list(combinations(cities, 2)), draw.randint(4, 6)))  # noqa: E731

    def routes(edges: list, start: str, end: str) -> list[tuple[str, ...]]:
        step = {(a, b) for e in edges for a, b in (e[:2], e[1::-1])}
        middle = [c for c in cities if c not in (start, end)]
        found = [(start, *m, end) for n in range(len(middle) + 1) for m in permutations(middle, n)]
        return [r for r in found if all(pair in step for pair in pairwise(r))]

    def cost(edges: list, start: str, end: str) -> int | None:
        price = {(a, b): n for x, y, n in edges for a, b in ((x, y), (y, x))}
        prices = [sum(price[p] + k for p in pairwise(r)) for r in routes(edges, start, end)]
        return min(prices, default=None)

    def reach(edges: list, start: str) -> list[str]:
        return sorted(c for c in cities if c == start or routes(edges, start, c))

    def first_order(edges: list) -> list[str]:
        names = sorted({c for e in edges for c in e})
        return list(next(p for p in permutations(names) if all(p.index(a) < p.index(b) for a, b in edges)))

    steps = lambda e, a, b: min((len(r) - 1 for r in routes(e, a, b)), default=None)  # noqa: E731
    with_ends = [(roads(), *draw.sample(cities, 2)) for _ in range(3)]
    priced = [([(a, b, draw.randint(1, 9)) for a, b in roads()], *draw.sample(cities, 2)) for _ in range(3)]
    answers = {
        "degree": (
            lambda e: [c for c in sorted(cities) if sum(c in road for road in e) > k % 3],
            [(roads(),) for _ in range(3)],
        ),
        "reachable": (reach, [(e, a) for e, a, _ in with_ends]),
        "distance": (steps, with_ends),
        "cheapest": (cost, priced),
        "order": (first_order, [(draw.sample(list(combinations(cities, 2)), 4),) for _ in range(3)]),
    }
    idea = choose(draw, "graphs", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, least=1 + k % 3)


def recursion(draw: Random, difficulty: str) -> Exercise:
    """Functions that call themselves: nested lists, choices, towers."""
    k, limit = draw.randint(2, 9), draw.randint(12, 30)
    letters = "".join(draw.sample("abcdefgh", 3))

    def nested(depth: int) -> list:
        return [
            nested(depth - 1) if depth and draw.random() < 0.45 else draw.randint(0, 9)
            for _ in range(draw.randint(2, 3))
        ]

    flat = lambda xs: [y for x in xs for y in (flat(x) if isinstance(x, list) else [x])]  # noqa: E731
    trees = [(nested(2),) for _ in range(4)]
    sizes = [(n,) for n in draw.sample(range(1, 7), 4)]
    sets = [(sorted(draw.sample(range(1, 15), draw.randint(3, 4))),) for _ in range(3)]
    answers = {
        "digits": (lambda n: sum(int(d) + k for d in str(n)), [(draw.randint(3, 30_000),) for _ in range(4)]),
        "countdown": (lambda n: list(range(n, 0, -k)), [(draw.randint(5, 50),) for _ in range(4)]),
        "flatten": (lambda xs: [k * x for x in flat(xs)], trees),
        "depth": (lambda xs: _weighted(repr(xs), k), trees),
        "subsets": (
            lambda xs: [
                c
                for bits in product([0, 1], repeat=len(xs))
                if sum(c := [x for x, b in zip(xs, bits, strict=True) if b]) <= limit
            ],
            sets,
        ),
        "arrangements": (
            lambda n: ["".join(w) for w in product(letters, repeat=n) if all(a != b for a, b in pairwise(w))],
            [(n,) for n in (0, 1, 2, 3)],
        ),
        "towers": (lambda n: _towers(n)[::k], sizes),
    }
    idea = choose(draw, "recursion", difficulty)
    return idea.exercise(
        draw, *answers[idea.variant], k=k, letters=letters, letters_text=repr(letters), limit=limit, twice=2 * k
    )


def _weighted(text: str, more: int) -> int:
    """The weighted sum of a nested list of digits, read from its printed form."""
    depth = total = 0
    for c in text:
        depth += (c == "[") - (c == "]")
        total += more if c == "[" and depth > 1 else int(c) * depth if c.isdigit() else 0
    return total


def _towers(n: int) -> list[tuple[str, str]]:
    """By the rule for each move: the smallest disc goes round in every other move, else the only legal move is made."""
    order = "ACB" if n % 2 else "ABC"
    pegs: dict[str, list[int]] = {"A": list(range(n, 0, -1)), "B": [], "C": []}
    found: list[tuple[str, str]] = []
    while len(pegs["C"]) < n:
        small = next(p for p in order if pegs[p][-1:] == [1])
        if len(found) % 2 == 0:
            source, target = small, order[(order.index(small) + 1) % 3]
        else:
            a, b = (p for p in "ABC" if p != small)
            source, target = (a, b) if pegs[a] and (not pegs[b] or pegs[a][-1] < pegs[b][-1]) else (b, a)
        pegs[target].append(pegs[source].pop())
        found.append((source, target))
    return found


def machine(draw: Random, difficulty: str) -> Exercise:
    """A small machine that follows commands."""
    start, step = draw.randint(-9, 20), draw.randint(2, 9)
    up, down, twice = draw.choice([("up", "down", "double"), ("add", "take", "twice"), ("left", "right", "jump")])
    limit = draw.randint(25, 80) if difficulty != EASY else None
    undo = difficulty == HARD

    # The answers come from another algorithm than the body: it first drops what is undone, then runs the rest.
    def expected(commands: list[str]) -> int:
        left: list[str] = []
        for c in commands:
            if c == "undo" and undo:
                left = left[:-1]
            elif c in (up, down, twice):
                left.append(c)
        value = start
        for c in left:
            value = {up: value + step, down: value - step + 1, twice: value + value}[c]
            value = value if limit is None or value < limit else limit
        return value

    known = [up, down, twice, "wait", *(["undo"] if undo else [])]
    inputs = [(draw.choices(known, k=draw.randint(3, 7)),) for _ in range(4)]
    way = "undo" if undo else "limit" if limit else "free"
    idea = replace(choose(draw, "machine", difficulty, way), variant=f"{up}-{way}")
    return idea.exercise(
        draw, expected, inputs, start=start, size=abs(start), step=step, less=step - 1, up=up, down=down, twice=twice,
        limit=limit,
    )  # fmt: skip


def stack_programs(draw: Random, difficulty: str) -> Exercise:
    """Reckoning with a stack: reverse Polish notation, spans, next greater."""
    k = draw.randint(2, 9)
    lists = [([draw.randint(1, 20) for _ in range(draw.randint(4, 7))],) for _ in range(4)]

    def polish(depth: int) -> str:
        if not depth or draw.random() < 0.2:
            return str(draw.randint(1, 12))
        return f"{polish(depth - 1)} {polish(depth - 1)} {draw.choice('+-*')}"

    def value(text: str) -> int:
        words = text.split()
        while len(words) > 1:
            i = next(i for i, w in enumerate(words) if w in "+-*")
            words[i - 2 : i + 1] = [str(eval(f"({words[i - 2]}) {words[i]} ({words[i - 1]})"))]
        return int(words[0])

    # For each idea: an independent solution to check the body against, and its inputs.
    answers = {
        "backspace": (
            lambda keys: _typed(keys.replace(str(k), "-")),
            [
                ("".join(draw.choice(["a", "b", str(k), "<", "c"]) for _ in range(draw.randint(5, 9))),)
                for _ in range(5)
            ],
        ),
        "polish": (lambda t: value(t) + k, [(f"{polish(1)} {polish(2)} {draw.choice('+-*')}",) for _ in range(4)]),
        "greater": (lambda xs: [next((y for y in xs[i:] if y >= x + k), None) for i, x in enumerate(xs)], lists),
        "rooms": (
            lambda xs: (
                k
                * sum(
                    1
                    for i in range(len(xs))
                    for h in range(xs[i], 99)
                    if any(x > h for x in xs[:i]) and any(x > h for x in xs[i:])
                )
            ),
            lists,
        ),
        "collapse": (
            lambda t: _collapsed(t)[:k],
            [("".join(draw.choices("abc", k=draw.randint(6, 10))),) for _ in range(5)],
        ),
    }
    idea = choose(draw, "stack_programs", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k)


def _typed(keys: str) -> str:
    while "<" in keys:
        at = keys.index("<")
        keys = keys[: max(0, at - 1)] + keys[at + 1 :]
    return keys


def _collapsed(text: str) -> str:
    at = next((i for i in range(len(text) - 1) if text[i] == text[i + 1]), None)
    return text if at is None else _collapsed(text[:at] + text[at + 2 :])


def containers(draw: Random, difficulty: str) -> Exercise:
    """Classes that keep things: stack with the smallest, bounded queue, cache, inventory, ring."""
    size, word = draw.randint(2, 4), draw.choice(WORDS).capitalize()
    idea, thing = choose(draw, "containers", difficulty), draw.choice(THINGS)
    name = f"{word}{idea.variant.title().replace('_', '')}"
    script = {
        "bag": _bag, "counter": _counter, "queue": _queue, "min_stack": _min_stack, "cache": _cache, "ring": _ring,
    }[idea.variant]  # fmt: skip
    scripts = ["\n".join(script(draw, name, size)) for _ in range(2)]
    return idea.class_exercise(
        scripts, name=name, thing=thing, size=size, slots=size + 1, most=size + 6, empty=size * 10 + 99
    )


def _bag(draw: Random, name: str, size: int) -> list[str]:
    (a, b, c), n, m = draw.sample(WORDS, 3), draw.randint(1, 3), draw.randint(4, 14)
    return [
        f"bag = {name}()", f"bag.add({a!r}, {n})", f"bag.add({b!r}, {m})",
        f"assert [bag.take({a!r}) for _ in range({n + 1})] == {[True] * n + [False]}",
        f"assert bag.take({c!r}) is False", f"assert bag.total() == {min(m, size + 6)}",
    ]  # fmt: skip


def _counter(draw: Random, name: str, size: int) -> list[str]:
    xs = _readings(draw, 3, 5)
    return [
        f"seen = {name}()", "assert seen.mean() is None", f"for n in {xs}:", "    seen.see(n)",
        f"assert seen.mean() == {sum(xs) / len(xs)!r}", f"assert seen.last() == {xs[::-1][:size]}",
    ]  # fmt: skip


def _queue(draw: Random, name: str, size: int) -> list[str]:
    xs = _readings(draw, 3, 5)
    left = [*xs[1:size], 0, *[None] * (size + 2)][: size + 1]
    return [
        f"queue = {name}()",
        f"assert [queue.put(x) for x in {xs}] == {[i < size for i in range(len(xs))]}",
        f"assert queue.get() == {xs[0]}",
        "assert queue.put(0) is True",
        f"assert len(queue) == {min(size, len(xs))}",
        f"assert [queue.get() for _ in range({size + 1})] == {left}",
    ]


def _min_stack(draw: Random, name: str, size: int) -> list[str]:
    xs = _readings(draw, 3, 5)
    lines = [f"stack = {name}()", f"assert stack.smallest() == {size * 10 + 99}"]
    for i, x in enumerate(xs):
        lines += [f"stack.push({x})", f"assert stack.smallest() == {sorted(xs[: i + 1])[0]}"]
    return [*lines, f"assert stack.pop() == {xs[-1]}", f"assert stack.smallest() == {min(xs[:-1])}"]


def _cache(draw: Random, name: str, size: int) -> list[str]:
    keys, kept, lines = draw.sample(WORDS, size + 1), OrderedDict(), [f"cache = {name}()"]
    for i in range(size + 5):
        key, n = draw.choice(keys), draw.randint(1, 99)
        if i < size or draw.random() < 0.4:
            kept[key] = n
            lines.append(f"cache.put({key!r}, {n})")
        else:
            lines.append(f"assert cache.get({key!r}) == {kept.get(key)}")
        if key in kept:
            kept.move_to_end(key)
        if len(kept) > size:
            kept.popitem(last=False)
    return [*lines, f"assert [cache.get(key) for key in {keys}] == {[kept.get(k) for k in keys]}"]


def _ring(draw: Random, name: str, size: int) -> list[str]:
    xs = _readings(draw, 4, 7)
    last = xs[-size - 1 :]
    lines = [f"ring = {name}()", "assert ring.spread() == 0", *(f"ring.add({x})" for x in xs)]
    return [*lines, f"assert ring.values() == {last}", f"assert ring.spread() == {max(last) - min(last)}"]


def _readings(draw: Random, least: int, most: int) -> list[int]:
    return [draw.randint(1, 30) for _ in range(draw.randint(least, most))]


def trees(draw: Random, difficulty: str) -> Exercise:
    """Binary trees as nested tuples (left, value, right)."""
    k = draw.randint(1, 9)

    def tree(values: list[int]) -> tuple | None:
        """A search tree, filled in the order given."""
        if not values:
            return None
        root, rest = values[0], values[1:]
        return tree([v for v in rest if v < root]), root, tree([v for v in rest if v > root])

    def depths(text: str) -> list[tuple[int, int]]:
        """(value, depth) of each node, from the printed form: another way than walking."""
        found, depth, i = [], 0, 0
        for c in text.replace("None", "_"):
            depth += (c == "(") - (c == ")")
            if c.isdigit():
                i = i * 10 + int(c)
            elif i:
                found.append((i, depth))
                i = 0
        return found

    inputs = [(tree(draw.sample(range(10, 60), draw.randint(3, 5))),) for _ in range(3)]
    by_value = [(t, draw.choice(depths(repr(t)))[0] + draw.choice([0, 0, 1])) for (t,) in inputs]
    is_leaf = lambda t: [n[1] for n in _nodes(t) if n[0] is None and n[2] is None]  # noqa: E731
    answers = {
        "sum": (lambda t: sum(v + k for v, _ in depths(repr(t))), inputs),
        "depth": (lambda t: k + max(d for _, d in depths(repr(t))), inputs),
        "leaves": (lambda t: [k * v for v in sorted(is_leaf(t))], inputs),
        "find": (lambda t, w: _way(t, w), by_value),
        "levels": (
            lambda t: [
                k + sum(v for v, d in depths(repr(t)) if d == n)
                for n in range(1, 1 + max(d for _, d in depths(repr(t))))
            ],
            inputs,
        ),
        "insert": (
            lambda t, w: t if w + k in [v for v, _ in depths(repr(t))] else ast.literal_eval(_inserted(repr(t), w + k)),
            by_value,
        ),
    }
    idea = choose(draw, "trees", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k)


def _nodes(tree: Any) -> list[tuple]:
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.append(node)
            waiting += [node[0], node[2]]
    return found


def _way(tree: Any, wanted: int) -> list[int] | None:
    values = [n[1] for n in _nodes(tree)]
    if wanted not in values:
        return None
    nodes = [n for n in _nodes(tree) if wanted in [m[1] for m in _nodes(n)]]
    return [n[1] for n in sorted(nodes, key=lambda n: -len(_nodes(n)))]


def _inserted(text: str, new: int) -> str:
    """The printed tree with the new leaf in the place of the one gap (None) that it belongs to: gaps and values
    alternate in the printed form, in order."""
    parts = text.split("None")
    values = [int("".join(c for c in part if c.isdigit())) for part in parts[1:-1]]
    gap = sum(v < new for v in values)
    return "None".join(parts[: gap + 1]) + f"(None, {new}, None)" + "None".join(parts[gap + 1 :])


def heaps_and_sets(draw: Random, difficulty: str) -> Exercise:
    """Heaps, sets of sets, linked nodes."""
    k = draw.randint(2, 6)
    lists = [([draw.randint(1, 40) for _ in range(draw.randint(4, 7))],) for _ in range(4)]
    two = [(draw.sample(range(1, 20), 5), draw.sample(range(1, 20), 5)) for _ in range(4)]
    pairs = [([tuple(draw.sample("abcdefg", 2)) for _ in range(draw.randint(3, 5))],) for _ in range(4)]

    def components(edges: list[tuple[str, str]]) -> list[str]:
        groups = [set(e) for e in edges]
        for _ in groups:
            groups = [set().union(*(h for h in groups if g & h)) for g in groups]
        return sorted({"".join(sorted(g)) for g in groups})

    def ropes(xs: list[int]) -> int:
        total = 0
        while len(xs) > 1:
            xs = sorted(xs)
            xs = [xs[0] + xs[1], *xs[2:]]
            total += xs[0] + k
        return total

    answers = {
        "common": (lambda a, b: [x for x in range(k, 21) if (x in a) != (x in b)], two),
        "unique": (lambda xs: list(dict.fromkeys(xs))[:k], lists),
        "smallest": (lambda xs: sorted(xs)[-k:], lists),
        "linked": (
            lambda xs: ast.literal_eval(
                "".join(f"({x}, " for x in xs if x > k) + "None" + ")" * sum(x > k for x in xs)
            ),
            lists,
        ),
        "join": (components, pairs),
        "ropes": (ropes, lists),
    }
    idea = choose(draw, "heaps_and_sets", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, more=k + 1)


def comprehensions(draw: Random, difficulty: str) -> Exercise:
    """Lists, sets and dictionaries in one expression."""
    k, letter = draw.randint(2, 9), draw.choice("aeiorst")
    xs = [(numbers(draw, 0, 40),) for _ in range(3)]
    texts = [(sentence(draw, 4, 7).split(),) for _ in range(3)]
    stocks = [({w: draw.randint(0, 20) for w in draw.sample(THINGS, 4)},) for _ in range(3)]
    answers = {
        "scaled": (lambda xs: list(filter(lambda y: not y & 1, map(lambda x: x + x * (k - 1), xs))), xs),
        "lengths": (lambda ws: dict([(w, k + sum(1 for _ in w)) for w in ws if w.find(letter) >= 0]), texts),
        "products": (
            lambda xs: [
                p for p in range(k * 10 + 1) if any(p == xs[i] * xs[j] for i in range(len(xs)) for j in range(i))
            ],
            xs,
        ),
        "invert": (
            lambda s: {n: sorted(w for w, m in s.items() if m == n) for n in sorted(s.values()) if not n < k},
            stocks,
        ),
        "matrix": (
            lambda xs: [[sum((xs[i], xs[j])) + k * (i == j) for j in range(len(xs))] for i in range(len(xs))],
            [(numbers(draw, 0, 20, 2, 3),) for _ in range(3)],
        ),
        "nested": (
            lambda ws: {
                w: sorted(x for x in set(ws) if x != w and {(0, x[0]), (1, x[-1])} & {(0, w[0]), (1, w[-1])})
                for w in ws
                if len(w) >= k // 2 + 4
            },
            texts,
        ),
    }
    idea = choose(draw, "comprehensions", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, letter=letter, limit=k * 10, long=k // 2 + 3)


def generators(draw: Random, difficulty: str) -> Exercise:
    """Values one at a time: yield, endless sequences, pipelines."""
    k, count = draw.randint(2, 9), draw.randint(3, 6)
    xs = [(numbers(draw, 1, 30),) for _ in range(4)]
    starts = [(n,) for n in draw.sample(range(1, 40), 4)]
    answers = {
        "evens": (lambda s: list(range(s, s + k * count, k)), starts),
        "totals": (lambda xs: [t for t in accumulate(xs) if t < k * 10], xs),
        "pairs": (lambda xs: [sorted(xs[i : i + k])[-1] for i in range(0, len(xs), k)], xs),
        "collatz": (lambda s: [n for n in _collatz(s) if n % k == 0][:count], starts),
        "merge": (
            lambda s: list(islice((n for n in range(s + 1, 9_999) if n % k == 0 or n % (k + 3) == 0), count + 3)),
            starts,
        ),
    }
    idea = choose(draw, "generators", difficulty)
    return idea.exercise(draw, *answers[idea.variant], count=count, k=k, limit=k * 10, more=count + 3, other=k + 3)


def _collatz(n: int) -> list[int]:
    return [n] if n == 1 else [n, *_collatz(3 * n + 1 if n % 2 else n // 2)]


def functions(draw: Random, difficulty: str) -> Exercise:
    """Functions that make or take functions: closures, composition, memory."""
    k, n = draw.randint(2, 9), draw.randint(2, 4)
    values = [(numbers(draw, 0, 20, 3, 5),) for _ in range(4)]
    single = [(x,) for x in draw.sample(range(1, 30), 4)]
    calls = [(draw.choices(range(1, 6), k=6),) for _ in range(4)]
    answers = {
        "adders": (lambda x: list(range(x, x + n * k, k)), single),
        "keyword": (
            lambda *a: sum(a[1:], a[0]) if len(a) else k * n,
            [tuple(numbers(draw, 0, 30, 1, 4)) for _ in range(3)] + [()],
        ),
        "compose": (lambda x: x * n**n + sum((k * n - 1) * n**i for i in range(n)), single),
        "counter": (lambda xs: (len(set(xs)), len(xs) + k * sum(xs)), calls),
        "decorator": (lambda xs: [x**2 - x**2 // (k + 10) * (k + 10) for x in xs], values),
        "fold": (
            lambda xs: tuple(k * n ** len(xs) + sum(x * n**i for i, x in enumerate(ys)) for ys in (xs[::-1], xs)),
            values,
        ),
    }
    idea = choose(draw, "functions", difficulty)
    return idea.exercise(draw, *answers[idea.variant], default=k * n, k=k, modulus=k + 10, n=n)


def errors(draw: Random, difficulty: str) -> Exercise:
    """What goes wrong and how it is caught: bad numbers, missing keys, own exceptions, cleaning up."""
    k, word = draw.randint(2, 30), draw.choice(WORDS)
    cell = lambda: draw.choice([str(draw.randint(1, 60)), "x", "", f"{draw.randint(1, 9)}.5", "-3"])  # noqa: E731
    cells = [([cell() for _ in range(draw.randint(3, 5))],) for _ in range(4)]
    names = draw.sample(PEOPLE, 4)
    lookups = [({m: draw.randint(1, 50) for m in names[:3]}, draw.choice(names)) for _ in range(4)]
    whole = lambda c: c.lstrip("-").isdigit()  # noqa: E731
    answers = {
        "default": (lambda cs: [int(c) if whole(c) else k for c in cs], cells),
        "lookup": (lambda p, m: p.get(m, None) + k if m in p else word, [*lookups, ({names[0]: 3}, names[1])]),
        "sorted_out": (
            lambda cs: ([int(c) for c in cs if whole(c) and int(c) > k // 3], [c for c in cs if not whole(c)]),
            cells,
        ),
        "own": (lambda cs: [f"{word}: {c}" for c in cs if len(c) not in (1, 2)], [*cells, (["", "a", "abc"],)]),
        "finally": (
            lambda cs: [
                x
                for c in cs
                for x in (
                    "open",
                    "ValueError" if not whole(c) else "ZeroDivisionError" if c == "0" else k // int(c),
                    "close",
                )
            ],
            [*cells, (["0", "1", "z"],)],
        ),
        "context": (
            lambda ws: (sum(len(w) >= 3 + k % 4 for w in ws), 0),
            [(sentence(draw, 3, 6).split(),) for _ in range(4)],
        ),
    }
    idea = choose(draw, "errors", difficulty)
    return idea.exercise(draw, *answers[idea.variant], k=k, length=2 + k % 4, limit=k // 3, word=word)


def small_classes(draw: Random, difficulty: str) -> Exercise:
    """Classes with behaviour of their own: money, vectors, accounts, temperatures, text builders."""
    k, word = draw.randint(2, 9), draw.choice(WORDS).capitalize()
    a, b, c, d = (draw.randint(1, 40) for _ in range(4))
    idea = choose(draw, "small_classes", difficulty)
    songs = draw.sample(WORDS, 4) if idea.variant == "Playlist" else ["", "", "", ""]
    low, high, derived = [a % 9, b % 9 - 4, 1 + c % 5], [d % 7, 1 + a % 4], [b % 9 - 4, 2 + c % 5 * 2]
    at = lambda p, x: sum(f * x**i for i, f in enumerate(p))  # noqa: E731
    values = {
        "Account": {"together": a + b, "pays": b >= k, "left": b - k if b >= k else a + b},
        "Rectangle": {
            "area": a * b,
            "border": c + d + c + d + k,
            "fits": (a <= c and b <= d) or (b <= c and a <= d),
        },
        "Vector": {
            "x": a + c,
            "y": b + d,
            "dot": sum(p * q for p, q in ((a, c), (b, d))),
            "stretched_x": sum([a] * k) + k,
            "stretched_y": sum([b] * k),
        },
        "Playlist": {
            "first": repr(songs[0]),
            "other": repr(songs[3]),
            "added": [*songs[:3], songs[0]],
            "listed": songs[:3][:k],
            "skipped": [songs[1], songs[2], songs[0]][:k],
        },
        "Polynomial": {
            "low": low,
            "high": high,
            "value": at(low, 3) + k,
            "product": at(low, 2) * at(high, 2) + k,
            "slope": at(derived, 5) + k,
        },
        "Span": {
            "lo": a,
            "hi": a + b,
            "end": c + d,
            "length": b,
            "common": len(set(range(a, a + b)) & set(range(c, c + d))),
            "below": a - k,
            "above": a + b + k,
            "wide": b + 2 * k,
        },
    }[idea.variant]
    return idea.class_exercise(name=f"{word}{idea.variant}", k=k, a=a, b=b, c=c, d=d, **values)
