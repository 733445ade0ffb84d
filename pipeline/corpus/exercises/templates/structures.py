"""Exercises on data structures: machines, stacks, queues, linked lists, trees, heaps, caches, joined sets."""

import ast
from collections import OrderedDict, deque
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import EASY, HARD, MEDIUM, Exercise, compose, compose_class, rows_of
from pipeline.corpus.exercises.templates.words import THINGS, WORDS


def machine(draw: Random, difficulty: str) -> Exercise:
    """A small machine that follows commands."""
    start, step = draw.randint(-9, 20), draw.randint(2, 9)
    up, down, twice = draw.choice([("up", "down", "double"), ("add", "take", "twice"), ("left", "right", "jump")])
    limit = draw.randint(25, 80) if difficulty != EASY else None
    undo = difficulty == HARD
    clamp = f"    value = min(value, {limit})\n" if limit else ""
    task = (
        f"A counter starts at {start}. Each command changes it: '{up}' adds {step}, '{down}' subtracts {step - 1}, "
        f"'{twice}' multiplies it by 2; anything else is ignored."
        + (f" It never exceeds {limit}." if limit else "")
        + (" 'undo' takes the last of these changes back, as long as there is one." if undo else "")
        + " Return the value at the end."
    )
    first = (
        "    if command == 'undo':\n        value = earlier.pop() if earlier else value\n        continue\n"
        if undo
        else ""
    )
    keep = f"    if command in ({up!r}, {down!r}, {twice!r}):\n        earlier.append(value)\n" if undo else ""
    body = (
        f"value = {start}\n{'earlier = []' + chr(10) if undo else ''}for command in commands:\n{first}{keep}"
        f"    if command == '{up}':\n        value += {step}\n"
        f"    elif command == '{down}':\n        value -= {step - 1}\n    elif command == '{twice}':\n"
        f"        value *= 2\n{clamp}return value"
    )

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
    variant = f"{up}-{'undo' if undo else 'limit' if limit else 'free'}"
    name = f"counter_{up}_{abs(start)}_{step}"
    idea = "The loop carries one number along, and each command says how it changes."
    idea += " Earlier values lie on a stack, so that the last one is taken back first." if undo else ""
    return compose(
        draw, "machine", variant, name, "commands", [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


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

    rows: list[tuple[Any, ...]] = [
        (EASY, "backspace", "typed", "keys", "Return the text that is left after typing `keys`, where '<' deletes the "
         f"character before it (if there is one) and '{k}' is typed as '-'.",
         "typed = []\nfor key in keys:\n    if key != '<':\n"
         f"        typed.append('-' if key == '{k}' else key)\n    elif typed:\n        typed.pop()\nreturn "
         "''.join(typed)",
         lambda keys: _typed(keys.replace(str(k), "-")),
         [("".join(draw.choice(["a", "b", str(k), "<", "c"]) for _ in range(draw.randint(5, 9))),) for _ in range(5)],
         "What was typed last is deleted first: the end of a list serves as a stack."),
        (MEDIUM, "polish", "reckon", "text", "`text` is a sum in reverse Polish notation, numbers and + - * apart by "
         f"spaces: '3 4 +' is 7. Return its value plus {k}.",
         "stack = []\nfor word in text.split():\n    if word in ('+', '-', '*'):\n        b, a = stack.pop(), "
         "stack.pop()\n"
         "        stack.append(a + b if word == '+' else a - b if word == '-' else a * b)\n    else:\n"
         f"        stack.append(int(word))\nreturn stack.pop() + {k}",
         lambda t: value(t) + k, [(f"{polish(1)} {polish(2)} {draw.choice('+-*')}",) for _ in range(4)],
         "A sign takes the two values on top and puts the result back. The second operand is on top, so it comes off "
         "first."),
        (HARD, "greater", "next_greater", "xs", "Return for each element the next one to its right that is greater by "
         "at "
         f"least {k}, or None; go through the list once, from right to left.",
         "answers, stack = [], []\nfor x in reversed(xs):\n    while stack and stack[-1] <= x:\n        stack.pop()\n"
         f"    answers.append(next((y for y in reversed(stack) if y >= x + {k}), None))\n    stack.append(x)\n"
         "return answers[::-1]",
         lambda xs: [next((y for y in xs[i:] if y >= x + k), None) for i, x in enumerate(xs)], lists,
         "An element hides all smaller ones behind it: whoever looks from further left and wants at least as much "
         "meets it first. So smaller ones leave the stack."),
        (HARD, "rooms", "most_water", "xs", f"`xs` are the heights of walls side by side, each {k} wide. Return how "
         "much "
         "water stays between them after rain.",
         "water = 0\nfor i, height in enumerate(xs):\n"
         f"    level = min(max(xs[:i + 1]), max(xs[i:]))\n    water += (level - height) * {k}\nreturn water",
         lambda xs: k * sum(1 for i in range(len(xs)) for h in range(xs[i], 99)
                            if any(x > h for x in xs[:i]) and any(x > h for x in xs[i:])), lists,
         "Over each wall the water stands as high as the lower one of the highest walls to both sides."),
        (MEDIUM, "collapse", "collapse", "text", f"Take two equal letters side by side out of `text` until there are "
         "none, "
         f"and return what is left, cut to {k} characters.",
         "kept = []\nfor letter in text:\n    if kept and kept[-1] == letter:\n        kept.pop()\n    else:\n"
         f"        kept.append(letter)\nreturn ''.join(kept)[:{k}]",
         lambda t: _collapsed(t)[:k], [("".join(draw.choices("abc", k=draw.randint(6, 10))),) for _ in range(5)],
         "After a pair is gone, the letter before it is the neighbour of the next one: exactly the top of the stack."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "stack_programs", variant, name, arguments, [task], body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


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
    variant = draw.choice(
        {EASY: ["bag", "counter"], MEDIUM: ["queue", "min_stack"], HARD: ["cache", "ring"]}[difficulty]
    )
    thing = draw.choice(THINGS)
    ints = lambda n: [draw.randint(1, 30) for _ in range(n)]  # noqa: E731
    name, scripts = f"{word}{variant.title().replace('_', '')}", []
    if variant == "bag":
        task = (
            f"A bag of {thing}: `add(name, n)` puts n of a kind in; `take(name)` takes one out and answers whether "
            "there "
            f"was one; `total` answers how many there are, counting at most {size + 6} of a kind."
        )
        body = (
            "def __init__(self):\n    self.counts = {}\n\ndef add(self, name, n=1):\n"
            "    self.counts[name] = self.counts.get(name, 0) + n\n\ndef take(self, name):\n"
            "    if not self.counts.get(name):\n        return False\n    self.counts[name] -= 1\n    return True\n\n"
            f"def total(self):\n    return sum(min(n, {size + 6}) for n in self.counts.values())"
        )
        methods = ["add(self, name, n=1)", "take(self, name)", "total(self)"]
        idea = "A dictionary from kind to number is all there is to keep; a kind that was never added counts as 0."
        for _ in range(2):
            (a, b, c), n, m = draw.sample(WORDS, 3), draw.randint(1, 3), draw.randint(4, 14)
            scripts.append([f"bag = {name}()", f"bag.add({a!r}, {n})", f"bag.add({b!r}, {m})",
                            f"assert [bag.take({a!r}) for _ in range({n + 1})] == {[True] * n + [False]}",
                            f"assert bag.take({c!r}) is False", f"assert bag.total() == "
                            f"{min(m, size + 6)}"])  # fmt: skip
    elif variant == "counter":
        task = (
            f"Counts {thing} that come by: `see(n)` adds a reading, `mean()` answers the mean of all readings or None, "
            f"`last()` answers the last {size} readings, the newest first."
        )
        body = (
            "def __init__(self):\n    self.readings = []\n\ndef see(self, n):\n    self.readings.append(n)\n\n"
            "def mean(self):\n    return sum(self.readings) / len(self.readings) if self.readings else None\n\n"
            f"def last(self):\n    return self.readings[-{size}:][::-1]"
        )
        methods = ["see(self, n)", "mean(self)", "last(self)"]
        idea = "The list keeps the order; a slice from the end and a second one backwards give the newest first."
        for _ in range(2):
            xs = ints(draw.randint(3, 5))
            scripts.append([f"seen = {name}()", "assert seen.mean() is None", f"for n in {xs}:", "    seen.see(n)",
                            f"assert seen.mean() == {sum(xs) / len(xs)!r}", f"assert seen.last() == "
                            f"{xs[::-1][:size]}"])  # fmt: skip
    elif variant == "queue":
        task = (
            f"A queue with room for {size} {thing}: `put(x)` answers False and changes nothing when it is full, else "
            "True; `get()` answers the oldest one, or None when it is empty; `len` works."
        )
        body = (
            "def __init__(self):\n    self.waiting = deque()\n\ndef put(self, x):\n"
            f"    if len(self.waiting) == {size}:\n        return False\n    self.waiting.append(x)\n    return True\n"
            "\n"
            "def get(self):\n    return self.waiting.popleft() if self.waiting else None\n\n"
            "def __len__(self):\n    return len(self.waiting)"
        )
        methods = ["put(self, x)", "get(self)", "__len__(self)"]
        idea = "A deque takes in at one end and gives out at the other, both in constant time."
        for _ in range(2):
            xs = ints(draw.randint(3, 5))
            scripts.append([f"queue = {name}()",
                            f"assert [queue.put(x) for x in {xs}] == {[i < size for i in range(len(xs))]}",
                            f"assert queue.get() == {xs[0]}", f"assert queue.put(0) is True",  # noqa: F541
                            f"assert len(queue) == {min(size, len(xs))}",
                            f"assert [queue.get() for _ in range({size + 1})] == "
                            f"{[*xs[1:size], 0, *[None] * (size + 2)][:size + 1]}"])  # fmt: skip
    elif variant == "min_stack":
        task = (
            f"A stack that knows its smallest element: `push(x)`, `pop()`, and `smallest()`, which answers "
            f"{size * 10 + 99} "
            "when it is empty and looks at no element twice."
        )
        body = (
            f"def __init__(self):\n    self.items = []\n    self.least = [{size * 10 + 99}]\n\ndef push(self, x):\n"
            "    self.items.append(x)\n    self.least.append(min(x, self.least[-1]))\n\ndef pop(self):\n"
            "    self.least.pop()\n    return self.items.pop()\n\ndef smallest(self):\n    return self.least[-1]"
        )
        methods = ["push(self, x)", "pop(self)", "smallest(self)"]
        idea = "A second stack remembers, for each height, the smallest of what lies below it. Both shrink together."
        for _ in range(2):
            xs, lines = ints(draw.randint(3, 5)), [f"stack = {name}()", f"assert stack.smallest() == {size * 10 + 99}"]
            for i, x in enumerate(xs):
                lines += [f"stack.push({x})", f"assert stack.smallest() == {sorted(xs[: i + 1])[0]}"]
            scripts.append([*lines, f"assert stack.pop() == {xs[-1]}", f"assert stack.smallest() == {min(xs[:-1])}"])
    elif variant == "cache":
        task = (
            f"A cache for {size} results: `get(key)` answers the value or None, `put(key, value)` stores it; when "
            "there "
            "are too many, the one that was longest not read or stored goes."
        )
        body = (
            "def __init__(self):\n    self.values = {}\n\ndef get(self, key):\n    if key not in self.values:\n"
            "        return None\n    self.values[key] = self.values.pop(key)\n    return self.values[key]\n\n"
            "def put(self, key, value):\n    self.values.pop(key, None)\n    self.values[key] = value\n"
            f"    if len(self.values) > {size}:\n        del self.values[next(iter(self.values))]"
        )
        methods = ["get(self, key)", "put(self, key, value)"]
        idea = (
            "A dictionary keeps the order in which keys were stored. Taking a key out and storing it again makes it "
            "the newest, so the oldest is always the first."
        )
        for _ in range(2):
            keys, reference, lines = draw.sample(WORDS, size + 1), OrderedDict(), [f"cache = {name}()"]
            for i in range(size + 5):
                key, n = draw.choice(keys), draw.randint(1, 99)
                if i < size or draw.random() < 0.4:
                    reference[key] = n
                    reference.move_to_end(key)
                    if len(reference) > size:
                        reference.popitem(last=False)
                    lines.append(f"cache.put({key!r}, {n})")
                else:
                    lines.append(f"assert cache.get({key!r}) == {reference.get(key)}")
                    if key in reference:
                        reference.move_to_end(key)
            scripts.append([*lines, f"assert [cache.get(key) for key in {keys}] == {[reference.get(k) for k in keys]}"])
    else:
        task = (
            f"A ring of the last {size + 1} values: `add(x)` overwrites the oldest when it is full; `values()` answers "
            "them, the oldest first; `spread()` answers the largest minus the smallest, 0 when empty. It holds one "
            "list "
            "of fixed length."
        )
        body = (
            f"def __init__(self):\n    self.slots, self.added = [None] * {size + 1}, 0\n\ndef add(self, x):\n"
            f"    self.slots[self.added % {size + 1}] = x\n    self.added += 1\n\ndef values(self):\n"
            f"    first = max(0, self.added - {size + 1})\n"
            f"    return [self.slots[i % {size + 1}] for i in range(first, self.added)]\n\ndef spread(self):\n"
            "    return max(self.values()) - min(self.values()) if self.added else 0"
        )
        methods = ["add(self, x)", "values(self)", "spread(self)"]
        idea = (
            "The number of values added so far says, by its remainder, which slot comes next and where the oldest is."
        )
        for _ in range(2):
            xs, last = ints(draw.randint(4, 7)), deque(maxlen=size + 1)
            lines = [f"ring = {name}()", "assert ring.spread() == 0"]
            for x in xs:
                last.append(x)
                lines.append(f"ring.add({x})")
            scripts.append([*lines, f"assert ring.values() == {list(last)}",
                            f"assert ring.spread() == {sorted(last)[-1] - sorted(last)[0]}"])  # fmt: skip
    imports = ["from collections import deque"] if "deque" in body else []
    return compose_class(
        draw, "containers", variant, name, task, body, scripts, idea=idea, difficulty=difficulty, methods=methods,
        imports=imports,
    )  # fmt: skip


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
    shape = "`tree` is a binary tree: None, or a tuple (left, value, right). "
    rows: list[tuple[Any, ...]] = [
        (EASY, "sum", "tree_sum", "tree", f"{shape}Return the sum of its values, each raised by {k}.",
         f"if tree is None:\n    return 0\nleft, value, right = tree\nreturn tree_sum(left) + value + {k} + "
         "tree_sum(right)",
         lambda t: sum(v + k for v, _ in depths(repr(t))), inputs,
         "The sum of a tree is its own value and the sums of two smaller trees; the empty tree ends it."),
        (EASY, "depth", "tree_depth", "tree", f"{shape}Return how many levels it has, plus {k}; the empty tree gives "
         f"{k}.",
         f"if tree is None:\n    return {k}\nreturn 1 + max(tree_depth(tree[0]), tree_depth(tree[2]))",
         lambda t: k + max(d for _, d in depths(repr(t))), inputs,
         "A node is one level above the deeper one of its two sides."),
        (MEDIUM, "leaves", "leaves", "tree", f"{shape}Return the values of its leaves (nodes with nothing below) from "
         "left "
         f"to right, times {k}.",
         "if tree is None:\n    return []\nleft, value, right = tree\nif left is None and right is None:\n"
         f"    return [value * {k}]\nreturn leaves(left) + leaves(right)",
         lambda t: [k * v for v in sorted(is_leaf(t))], inputs,
         "A leaf answers itself, any other node what its sides answer, the left one first."),
        (MEDIUM, "find", "path_to", "tree, wanted", f"{shape}Smaller values lie to the left, greater ones to the "
         "right. "
         "Return the values passed on the way down to `wanted`, itself included, or None if it is not there.",
         "path = []\nwhile tree is not None:\n    left, value, right = tree\n    path.append(value)\n"
         "    if value == wanted:\n        return path\n    tree = left if wanted < value else right\nreturn None",
         lambda t, w: _way(t, w), by_value,
         "One comparison at each node says on which side the value must be; the other side is never looked at."),
        (HARD, "levels", "levels", "tree", f"{shape}Return the sums of its levels from the top down, each plus {k}.",
         "sums, level = [], [tree] if tree else []\nwhile level:\n"
         f"    sums.append(sum(node[1] for node in level) + {k})\n"
         "    level = [side for node in level for side in (node[0], node[2]) if side is not None]\nreturn sums",
         lambda t: [k + sum(v for v, d in depths(repr(t)) if d == n)
                    for n in range(1, 1 + max(d for _, d in depths(repr(t))))], inputs,
         "All nodes of a level are held at once; their sides that exist are the next level."),
        (HARD, "insert", "insert", "tree, wanted", f"{shape}Smaller values lie to the left, greater ones to the right. "
         f"Return the tree with `wanted` + {k} put in as a new leaf, or the same tree if it is there already.",
         f"def put(node, new):\n    if node is None:\n        return (None, new, None)\n    left, value, right = node\n"
         "    if new < value:\n        return (put(left, new), value, right)\n    if new > value:\n"
         f"        return (left, value, put(right, new))\n    return node\n\nreturn put(tree, wanted + {k})",
         lambda t, w: t if w + k in [v for v, _ in depths(repr(t))] else ast.literal_eval(_inserted(repr(t), w + k)),
         by_value,
         "A tuple cannot be changed, so the nodes on the way are built anew and everything else is shared."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, given, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "trees", variant, name, arguments, [task], body, expected, given, idea=idea, difficulty=difficulty
    )


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

    rows: list[tuple[Any, ...]] = [
        (EASY, "common", "in_one_only", "first, second", "Return, in order, the values that are in exactly one of both "
         f"lists and at least {k}.",
         f"return sorted(x for x in set(first) ^ set(second) if x >= {k})",
         lambda a, b: [x for x in range(k, 21) if (x in a) != (x in b)], two,
         "The sign ^ gives what two sets do not share."),
        (EASY, "unique", f"first_{k}_different", "xs", f"Return the first {k} different elements in their order.",
         f"seen = []\nfor x in xs:\n    if x not in seen and len(seen) < {k}:\n        seen.append(x)\nreturn seen",
         lambda xs: list(dict.fromkeys(xs))[:k], lists, "An element is taken only if it has not been seen before."),
        (MEDIUM, "smallest", f"keep_{k}_largest", "xs", f"Return the {k} largest elements, smallest first, while never "
         f"holding more than {k + 1} of them.",
         f"heap = []\nfor x in xs:\n    heapq.heappush(heap, x)\n    if len(heap) > {k}:\n        heapq.heappop(heap)\n"
         "return sorted(heap)", lambda xs: sorted(xs)[-k:], lists,
         "A heap gives its smallest element cheaply. Throwing that one out whenever there are too many leaves the "
         "largest."),
        (MEDIUM, "linked", "chain", "xs", f"Build a chain of nodes (value, next) from the elements greater than {k}, "
         "the "
         "first element first, ending in None.",
         f"chain = None\nfor x in reversed(xs):\n    if x > {k}:\n        chain = (x, chain)\nreturn chain",
         lambda xs: ast.literal_eval("".join(f"({x}, " for x in xs if x > k) + "None" + ")" * sum(x > k for x in xs)),
         lists, "A node must know the next one, so the chain grows from its end."),
        (HARD, "join", "groups", "pairs", "Names in one pair belong together, and so do all that are linked by further "
         "pairs. Return each group as a text of its sorted names, in order.",
         "parent = {}\n\ndef find(name):\n    while parent.setdefault(name, name) != name:\n        name = "
         "parent[name]\n"
         "    return name\n\nfor a, b in pairs:\n    parent[find(a)] = find(b)\ngroups = {}\n"
         "for name in sorted(parent):\n    groups.setdefault(find(name), []).append(name)\n"
         "return sorted(''.join(group) for group in groups.values())",
         components, pairs,
         "Each name points to another of its group, and the last one to itself. Joining two groups lets one of these "
         "ends point to the other. This is called union-find."),
        (HARD, "ropes", "cheapest_joining", "xs", f"Joining two ropes costs the sum of their lengths plus {k}. Return "
         "the "
         "smallest cost to join all.",
         "heap, total = list(xs), 0\nheapq.heapify(heap)\nwhile len(heap) > 1:\n"
         "    joined = heapq.heappop(heap) + heapq.heappop(heap)\n"
         f"    total += joined + {k}\n    heapq.heappush(heap, joined)\nreturn total",
         ropes, lists,
         "A rope that is joined early is paid for again and again, so the two shortest come first. The heap finds "
         "them."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "heaps_and_sets", variant, name, arguments, [task], body, expected, inputs, idea=idea,
        difficulty=difficulty, imports=["import heapq"] if "heapq" in body else (),
    )  # fmt: skip
