"""Templates of exercises: each draws parameters and gives a task, a solution and assertions.

The expected values in the assertions come from a second, independent way of computing them, written here as a lambda:
so a mistake in a solution's text is found when the exercise is run. `variant` names the idea without its numbers;
ideas, not items, are held out together.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from pipeline.corpus.exercise import Exercise, compose


def _numbers(draw: Random, low: int = -40, high: int = 99) -> list[int]:
    return [draw.randint(low, high) for _ in range(draw.randint(4, 9))]


def filter_and_fold(draw: Random) -> Exercise:
    """Sum, count, largest... of the numbers that meet a condition."""
    k, other = draw.randint(2, 19), draw.randint(2, 60)
    condition, words, test, holds = draw.choice(
        [
            ("multiples", f"divisible by {k}", f"x % {k} == 0", lambda x: not x % k),
            ("above", f"greater than {other}", f"x > {other}", lambda x: x > other),
            ("below", f"less than {other}", f"x < {other}", lambda x: other > x),
            ("negative", "negative", "x < 0", lambda x: x < 0),
            ("odd", f"odd and not equal to {other}", f"x % 2 == 1 and x != {other}", lambda x: x & 1 and x != other),
            ("between", f"between {-other} and {other}", f"-{other} <= x <= {other}", lambda x: abs(x) <= other),
        ]
    )  # fmt: skip
    folds: list[tuple[str, str, str, str, Callable[[list[int]], Any]]] = (
        [
            ("sum", "sum", "0", "total += x", sum),
            ("count", "number", "0", "total += 1", len),
            ("squares", "sum of the squares", "0", "total += x * x", lambda xs: sum(x**2 for x in xs)),
            ("largest", f"largest (or {-other} if there is none)", f"{-other}", "total = max(total, x)",
             lambda xs: max([*xs, -other])),
            ("last", "last (or None if there is none)", "None", "total = x", lambda xs: xs[-1] if xs else None),
            ("list", "list in reverse order", "[]", "total = [x] + total", lambda xs: xs[::-1]),
        ]
    )  # fmt: skip
    fold, noun, start, step, finish = draw.choice(folds)
    numbers = draw.choice(["numbers", "values", "xs", "items", "scores"])
    name = f"{fold}_of_{condition}_{k if condition == 'multiples' else other}"
    body = f"total = {start}\nfor x in {numbers}:\n    if {test}:\n        {step}\nreturn total"
    tasks = [
        f"Return the {noun} of the elements of `{numbers}` that are {words}.",
        f"Given a list of integers, find the {noun} of those that are {words}.",
        f"Look at each element of `{numbers}` and keep only what is {words}. Return the {noun} of what is left.",
    ]
    inputs = [(_numbers(draw),) for _ in range(3)] + [([],)]
    expected = lambda xs: finish([x for x in xs if holds(x)])  # noqa: E731
    return compose(draw, "filter_and_fold", f"{fold}-{condition}", name, numbers, tasks, body, expected, inputs)


_WORDS = (
    "river", "stone", "garden", "window", "paper", "morning", "silver", "market", "forest", "bridge", "letter",
    "engine", "candle", "harbor", "pencil", "orange", "violet", "basket", "ladder", "mirror", "planet", "rocket",
    "summer", "winter", "teapot", "cotton", "marble", "island", "desert", "meadow",
)  # fmt: skip
_PEOPLE = (
    "Ana",
    "Ben",
    "Chloe",
    "David",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Lena",
    "Mei",
    "Noah",
    "Olga",
)
_THINGS = ("apples", "notebooks", "tickets", "candles", "pencils", "bottles", "stamps", "marbles", "books", "cups")


def text_steps(draw: Random) -> Exercise:
    """Two or three changes to a text, one after the other."""
    letter, new = draw.sample("aeiorstln", 2)
    k = draw.randint(2, 5)
    steps = [
        ("reverse", "reverse it", "text = text[::-1]", lambda t: "".join(reversed(t))),
        ("remove", f"remove every '{letter}'", f"text = text.replace('{letter}', '')",
         lambda t: "".join(c for c in t if c != letter)),
        ("replace", f"turn every '{letter}' into '{new}'", f"text = text.replace('{letter}', '{new}')",
         lambda t: "".join(new if c == letter else c for c in t)),
        ("upper", "make it upper case", "text = text.upper()", lambda t: "".join(c.upper() for c in t)),
        ("first", f"keep the first {k} characters", f"text = text[:{k}]",
         lambda t: "".join(c for i, c in enumerate(t) if i < k)),
        ("drop", f"drop the first {k} characters", f"text = text[{k}:]",
         lambda t: "".join(c for i, c in enumerate(t) if i >= k)),
        ("double", "write every character twice", "text = ''.join(c + c for c in text)",
         lambda t: "".join(x for c in t for x in (c, c))),
        ("every", f"keep every {k}th character, starting with the first", f"text = text[::{k}]",
         lambda t: "".join(c for i, c in enumerate(t) if i % k == 0)),
    ]  # fmt: skip
    chosen = draw.sample(steps, draw.randint(2, 3))
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
    inputs = [(" ".join(draw.sample(_WORDS, draw.randint(1, 3))),) for _ in range(4)]
    name = draw.choice(["change_text", "transform", "rewrite", "process_text", "edit"]) + f"_{names[0]}_{names[1]}"
    return compose(draw, "text_steps", "-".join(sorted(names)), name, "text", tasks, body, expected, inputs)


def story(draw: Random) -> Exercise:
    """A sum from daily life, with the steps of the reckoning as comments."""
    person = draw.choice(_PEOPLE)
    thing = draw.choice(_THINGS)
    price, gift, pack = draw.randint(2, 40), draw.randint(1, 30), draw.randint(3, 12)
    variant, arguments, question, lines, expected = draw.choice(
        [
            ("shop", "count, money", f"{person} has `money` coins and buys `count` {thing} at {price} coins each, then "
             f"gets {gift} coins back as a gift. How many coins does {person} have now?",
             [f"# {thing} cost count * {price}", f"left = money - count * {price}", f"return left + {gift}"],
             lambda count, money: money + gift - price * count),
            ("packs", "count", f"{thing.capitalize()} are sold in packs of {pack}. How many packs must {person} buy to "
             f"have at least `count` {thing}, and how many are left over? Return both as a pair.",
             [f"packs = (count + {pack - 1}) // {pack}", f"return packs, packs * {pack} - count"],
             lambda count: (-(-count // pack), -count % pack)),
            ("share", "count, people", f"{person} keeps {gift} of `count` {thing} and shares the rest equally among "
             "`people` friends. How many does each friend get, and how many remain? Return both as a pair.",
             [f"rest = count - {gift}", "return rest // people, rest % people"],
             lambda count, people: divmod(count - gift, people)),
            ("saving", "days", f"{person} saves {price} coins on the first day and {gift} coins more each day than the "
             "day before. How many coins are saved after `days` days?",
             ["total = 0", f"today = {price}", "for _ in range(days):", "    total += today", f"    today += {gift}",
              "return total"],
             lambda days: days * price + gift * days * (days - 1) // 2),
            ("trip", "distance", f"{person} walks {pack} km an hour and rests {gift} minutes after every full hour of "
             "walking that is not the end. How many minutes does a trip of `distance` km take? Round the walking time "
             "down to whole minutes.",
             [f"walking = distance * 60 // {pack}", "rests = max(0, (walking - 1) // 60)",
              f"return walking + rests * {gift}"],
             lambda distance: (m := distance * 60 // pack) + gift * len([x for x in range(60, m, 60)])),
        ]
    )  # fmt: skip
    inputs = [
        tuple(
            draw.randint(2, 9) if a.strip() == "people" else draw.randint(gift + 1, 120) for a in arguments.split(",")
        )
        for _ in range(4)
    ]
    name = f"{variant}_{person.lower()}_{thing}"
    return compose(draw, "story", variant, name, arguments, [question], "\n".join(lines), expected, inputs)


def recurrence(draw: Random) -> Exercise:
    """Terms of a sequence defined by the two before it."""
    a, b, c = draw.randint(1, 4), draw.randint(-3, 4), draw.randint(-5, 9)
    first, second = draw.randint(0, 7), draw.randint(1, 9)
    modulus = draw.choice([None, None, draw.randint(11, 97)])
    rule = f"{a} * s(n-1) {'+' if b >= 0 else '-'} {abs(b)} * s(n-2) {'+' if c >= 0 else '-'} {abs(c)}"
    formula = f"{a} * y {'+' if b >= 0 else '-'} {abs(b)} * x {'+' if c >= 0 else '-'} {abs(c)}"
    if modulus:
        rule, formula = f"({rule}) mod {modulus}", f"({formula}) % {modulus}"

    def terms(n: int) -> list[int]:
        found = [first, second]
        while len(found) < n:
            value = a * found[-1] + b * found[-2] + c
            found.append(value % modulus if modulus else value)
        return found[:n]

    defined = f"A sequence starts with s(0) = {first} and s(1) = {second}; after that s(n) = {rule}."
    if draw.random() < 0.5:
        variant, what, expected = "nth", "Return s(n).", lambda n: terms(n + 1)[n]
        body = f"x, y = {first}, {second}\nfor _ in range(n):\n    x, y = y, {formula}\nreturn x"
    else:
        variant, what, expected = "list", "Return the first n terms as a list.", terms
        body = (
            f"terms = []\nx, y = {first}, {second}\nwhile len(terms) < n:\n    terms.append(x)\n"
            f"    x, y = y, {formula}\nreturn terms"
        )
    variant += "-mod" if modulus else ""
    name = f"sequence_{a}_{abs(b)}_{first}{second}" + (f"_mod_{modulus}" if modulus else "")
    inputs = [(n,) for n in draw.sample(range(9), 4)]
    return compose(draw, "recurrence", variant, name, "n", [f"{defined} {what}"], body, expected, inputs)


def count_words(draw: Random) -> Exercise:
    """A dictionary or list built from the words of a text."""
    k, letter = draw.randint(2, 4), draw.choice("aeiorst")
    keys: list[tuple[str, str, str, Callable[[str], Any]]] = [
        ("length", "length", "len(word)", len),
        ("first", "first letter", "word[0]", lambda w: w[0]),
        ("last", "last letter", "word[-1]", lambda w: w[-1]),
        ("with", f"number of times '{letter}' is in it", f"word.count('{letter}')", lambda w: w.count(letter)),
    ]
    variant, what, key, function = draw.choice(keys)
    if draw.random() < 0.5:
        variant += "-count"
        tasks = [
            f"Count the words of `text` by their {what}; leave out counts below {k - 1}. Return a dictionary.",
            f"Return a dictionary from the {what} of a word to the number of such words in `text`, without entries "
            f"below {k - 1}.",
        ]
        body = (
            f"counts = {{}}\nfor word in text.split():\n    key = {key}\n    counts[key] = counts.get(key, 0) + 1\n"
            f"return {{key: n for key, n in counts.items() if n >= {k - 1}}}"
        )

        def expected(text: str) -> dict:
            return {x: n for x, n in Counter(map(function, text.split())).items() if n > k - 2}

    else:
        variant += "-group"
        tasks = [f"Group the different words of `text` by their {what}. Return a dictionary of sorted lists."]
        body = (
            f"groups = {{}}\nfor word in sorted(set(text.split())):\n    groups.setdefault({key}, []).append(word)\n"
            "return groups"
        )

        def expected(text: str) -> dict:
            words = sorted(set(text.split()))
            return {x: [w for w in words if function(w) == x] for x in dict.fromkeys(map(function, words))}

    inputs = [(" ".join(draw.choices(_WORDS, k=draw.randint(3, 7))),) for _ in range(3)]
    name = f"{variant.split('-')[1]}_words_by_{variant.split('-')[0]}"
    return compose(draw, "count_words", variant, name, "text", tasks, body, expected, inputs)


def rearrange(draw: Random) -> Exercise:
    """A list cut, turned or joined in another order."""
    k = draw.randint(2, 7)
    variant, task, body, expected = draw.choice(
        [
            ("rotate", f"Move the first {k} elements to the end. A shorter list goes round more than once.",
             f"if not xs:\n    return []\nshift = {k} % len(xs)\nreturn xs[shift:] + xs[:shift]",
             lambda xs: [xs[(i + k) % len(xs)] for i in range(len(xs))]),
            ("chunks", f"Cut the list into pieces of {k} elements; the last may be shorter.",
             f"return [xs[i:i + {k}] for i in range(0, len(xs), {k})]",
             lambda xs: [[x for j, x in enumerate(xs) if j // k == i] for i in range(-(-len(xs) // k))]),
            ("windows", f"Return the sum of every {k} neighbours, from left to right.",
             f"return [sum(xs[i:i + {k}]) for i in range(len(xs) - {k - 1})]",
             lambda xs: [sum(xs[j] for j in range(i, i + k)) for i in range(max(0, len(xs) - k + 1))]),
            ("pairs", f"Return all pairs (a, b) of elements, a before b in the list, whose difference a - b is a "
             f"multiple of {k}.",
             "pairs = []\nfor i, a in enumerate(xs):\n    for b in xs[i + 1:]:\n"
             f"        if (a - b) % {k} == 0:\n            pairs.append((a, b))\nreturn pairs",
             lambda xs: [(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i < j and a % k == b % k]),
            ("partition", f"Put the elements that leave no remainder when divided by {k} first, then the others; keep "
             "the order within both.",
             f"first = [x for x in xs if x % {k} == 0]\nreturn first + [x for x in xs if x % {k}]",
             lambda xs: sorted(xs, key=lambda x: x % k != 0)),
            ("runs", f"Return the running total of the elements, back to 0 each time it exceeds {k * 10}.",
             f"totals, total = [], 0\nfor x in xs:\n    total += x\n    if total > {k * 10}:\n        total = 0\n"
             "    totals.append(total)\nreturn totals",
             lambda xs: [_running(xs[: i + 1], k * 10) for i in range(len(xs))]),
        ]
    )  # fmt: skip
    inputs = [(_numbers(draw),) for _ in range(3)]
    return compose(draw, "rearrange", variant, f"{variant}_{k}", "xs", [task], body, expected, inputs)


def _running(xs: list[int], limit: int) -> int:
    total = 0
    for x in xs:
        total = 0 if total + x > limit else total + x
    return total


def digits(draw: Random) -> Exercise:
    """Digits of a number in some base."""
    base, digit = draw.randint(2, 10), draw.randint(1, 9)
    digit = digit % base or 1
    variant, what, finish, expected = draw.choice(
        [
            ("sum", "the sum of its digits", "sum(digits)", lambda ds: sum(ds)),
            ("count", f"how often the digit {digit} occurs", f"digits.count({digit})",
             lambda ds: len([d for d in ds if d == digit])),
            ("text", "its digits as a string", "''.join(str(d) for d in reversed(digits))",
             lambda ds: "".join(map(str, ds[::-1]))),
            ("palindrome", "whether it reads the same from both ends", "digits == digits[::-1]",
             lambda ds: all(a == b for a, b in zip(ds, reversed(ds), strict=True))),
            ("largest", "its largest digit", "max(digits)", lambda ds: sorted(ds)[-1]),
            ("alternating", "the alternating sum of its digits, starting with plus at the last digit",
             "sum(d if i % 2 == 0 else -d for i, d in enumerate(digits))", lambda ds: sum(ds[::2]) - sum(ds[1::2])),
        ]
    )  # fmt: skip
    tasks = [
        f"Write the positive integer `n` in base {base} and return {what}.",
        f"For a number n > 0 in base {base}, return {what}.",
    ]
    body = f"digits = []\nwhile n:\n    digits.append(n % {base})\n    n //= {base}\nreturn {finish}"

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
    return compose(draw, "digits", variant, f"{variant}_in_base_{base}", "n", tasks, body, of, inputs)


def machine(draw: Random) -> Exercise:
    """A small machine that follows commands."""
    start, step = draw.randint(-9, 20), draw.randint(2, 9)
    up, down, twice = draw.choice([("up", "down", "double"), ("add", "take", "twice"), ("left", "right", "jump")])
    limit = draw.choice([None, draw.randint(25, 80)])
    clamp = f"    value = min(value, {limit})\n" if limit else ""
    task = (
        f"A counter starts at {start}. Each command changes it: '{up}' adds {step}, '{down}' subtracts {step - 1}, "
        f"'{twice}' multiplies it by 2; anything else is ignored."
        + (f" It never exceeds {limit}." if limit else "")
        + " Return the value at the end."
    )
    body = (
        f"value = {start}\nfor command in commands:\n    if command == '{up}':\n        value += {step}\n"
        f"    elif command == '{down}':\n        value -= {step - 1}\n    elif command == '{twice}':\n"
        f"        value *= 2\n{clamp}return value"
    )

    def expected(commands: list[str]) -> int:
        value = start
        for c in commands:
            value = {up: value + step, down: value - step + 1, twice: value + value}.get(c, value)
            value = value if limit is None or value < limit else limit
        return value

    inputs = [(draw.choices([up, down, twice, "wait"], k=draw.randint(2, 7)),) for _ in range(4)]
    variant = f"{up}-{'limit' if limit else 'free'}"
    name = f"counter_{up}_{abs(start)}_{step}"
    return compose(draw, "machine", variant, name, "commands", [task], body, expected, inputs)


def grid(draw: Random) -> Exercise:
    """Rows and columns of a table of numbers."""
    k = draw.randint(2, 30)
    shapes: list[tuple[str, str, str, Callable[[list[list[int]]], Any]]] = (
        [
            ("columns", f"Return the sum of each column, plus {k}.",
             f"return [sum(row[j] for row in grid) + {k} for j in range(len(grid[0]))]",
             lambda g: [k + sum(column) for column in zip(*g, strict=True)]),
            ("turn", f"Turn the grid a quarter to the right and add {k} to each cell.",
             f"turned = zip(*reversed(grid))\nreturn [[x + {k} for x in row] for row in turned]",
             lambda g: [[g[len(g) - 1 - i][j] + k for i in range(len(g))] for j in range(len(g[0]))]),
            ("cells", f"Return the positions (row, column) of all cells greater than {k}, row by row.",
             f"return [(i, j) for i, row in enumerate(grid) for j, x in enumerate(row) if x > {k}]",
             lambda g: [(n // len(g[0]), n % len(g[0])) for n, x in enumerate(x for row in g for x in row) if x > k]),
            ("border", f"Return the sum of the cells at the edge of the grid, times {k}.",
             "total = 0\nfor i, row in enumerate(grid):\n    for j, x in enumerate(row):\n"
             "        if i in (0, len(grid) - 1) or j in (0, len(row) - 1):\n            total += x\n"
             f"return total * {k}",
             lambda g: k * (sum(map(sum, g)) - sum(sum(r[1:-1]) for r in g[1:-1]))),
            ("rows", f"Return the rows whose sum is at least {k}, the largest sum first; equal sums keep their order.",
             f"rows = [row for row in grid if sum(row) >= {k}]\nreturn sorted(rows, key=sum, reverse=True)",
             lambda g: sorted((r for r in g if not sum(r) < k), key=lambda r: -sum(r))),
        ]
    )  # fmt: skip
    variant, task, body, expected = draw.choice(shapes)
    inputs = []
    for _ in range(3):
        width, height = draw.randint(2, 4), draw.randint(2, 3)
        inputs.append(([[draw.randint(0, 40) for _ in range(width)] for _ in range(height)],))
    return compose(draw, "grid", variant, f"{variant}_{k}", "grid", [task], body, expected, inputs)


TEMPLATES: dict[str, Callable[[Random], Exercise]] = {
    function.__name__: function
    for function in (filter_and_fold, text_steps, story, recurrence, count_words, rearrange, digits, machine, grid)
}
