"""Exercises on text: steps of change, words, ciphers, run lengths, records, layout, brackets."""

import re
import textwrap
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from random import Random
from typing import Any

from pipeline.corpus.exercises.exercise import EASY, HARD, MEDIUM, Exercise, compose, rows_of
from pipeline.corpus.exercises.templates.words import CITIES, PEOPLE, THINGS, WORDS, sentence

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


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
    return compose(
        draw, "text_steps", "-".join(sorted(names)), name, "text", tasks, body, expected, inputs, idea=idea,
        difficulty=difficulty,
    )  # fmt: skip


def count_words(draw: Random, difficulty: str) -> Exercise:
    """A dictionary or list built from the words of a text."""
    k, letter = draw.randint(3, 4), draw.choice("aeiorst")
    keys: list[tuple[str, str, str, Callable[[str], Any]]] = [
        ("length", "length", "len(word)", len),
        ("first", "first letter", "word[0]", lambda w: w[0]),
        ("last", "last letter", "word[-1]", lambda w: w[-1]),
        ("with", f"number of times '{letter}' is in it", f"word.count('{letter}')", lambda w: w.count(letter)),
    ]
    expected: Callable[[str], Any]
    variant, what, key, function = draw.choice(keys[:3] if difficulty == EASY else keys)
    least = k - 1 if difficulty == HARD else 1
    if difficulty == EASY or (difficulty == HARD and draw.random() < 0.5):
        variant += "-count"
        only = f", without entries below {least}" if least > 1 else ""
        tasks = [
            f"Count the words of `text` by their {what}. Return a dictionary{only}.",
            f"Return a dictionary from the {what} of a word to the number of such words in `text`{only}.",
        ]
        kept = f"{{key: n for key, n in counts.items() if n >= {least}}}" if least > 1 else "counts"
        body = (
            f"counts = {{}}\nfor word in text.split():\n    key = {key}\n    counts[key] = counts.get(key, 0) + 1\n"
            f"return {kept}"
        )
        idea = "`counts.get(key, 0)` answers 0 for a key that is new, so that the first word of a kind needs no test."

        def counted(text: str) -> dict:
            return {x: n for x, n in Counter(map(function, text.split())).items() if n >= least}

        expected = counted

    elif difficulty == MEDIUM:
        variant += "-group"
        tasks = [f"Group the different words of `text` by their {what}. Return a dictionary of sorted lists."]
        body = (
            f"groups = {{}}\nfor word in sorted(set(text.split())):\n    groups.setdefault({key}, []).append(word)\n"
            "return groups"
        )
        idea = "The set takes repeated words out and sorting comes first, so each list is filled in order."

        def grouped(text: str) -> dict:
            words = sorted(set(text.split()))
            return {x: [w for w in words if function(w) == x] for x in dict.fromkeys(map(function, words))}

        expected = grouped

    else:
        variant += "-rank"
        tasks = [
            f"Return the {least} most frequent words of `text` as a list; equally frequent ones in order of their "
            f"{what}, then of the alphabet."
        ]
        body = (
            "counts = {}\nfor word in text.split():\n    counts[word] = counts.get(word, 0) + 1\n"
            f"ranked = sorted(counts, key=lambda word: (-counts[word], {key}, word))\nreturn ranked[:{least}]"
        )
        idea = "The sort key is a tuple: the count with a minus sign, because more comes first, then what breaks ties."

        def ranked_words(text: str) -> list:
            words = text.split()
            by_word = sorted(set(words))
            by_key = sorted(by_word, key=function)
            return sorted(by_key, key=words.count, reverse=True)[:least]

        expected = ranked_words

    common = draw.sample(WORDS, 8)
    inputs = [(" ".join(draw.choices(common, k=draw.randint(5, 9))),) for _ in range(3)]
    name = f"{variant.split('-')[1]}_words_by_{variant.split('-')[0]}"
    return compose(
        draw, "count_words", variant, name, "text", tasks, body, expected, inputs, idea=idea, difficulty=difficulty
    )  # fmt: skip


def cipher(draw: Random, difficulty: str) -> Exercise:
    """Letters moved, mirrored or taken in another order; and back."""
    k = draw.randint(2, 12)
    rails = draw.randint(2, 4)
    moved = lambda c, n: ALPHABET[(ALPHABET.index(c) + n) % 26] if c in ALPHABET else c  # noqa: E731
    shift = "''.join(chr((ord(c) - 97 {sign} {by}) % 26 + 97) if 'a' <= c <= 'z' else c for c in text)"
    texts = [(sentence(draw, 1, 3),) for _ in range(4)]
    keyed = [(sentence(draw, 1, 2), draw.choice(WORDS)) for _ in range(4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "shift", f"shift_by_{k}", "text", f"Move each lower-case letter {k} places on in the alphabet, from z "
         "back to a; leave other characters as they are.", f"return {shift.format(sign='+', by=k)}",
         lambda t: "".join(moved(c, k) for c in t), texts,
         "`ord` gives the letter's number; the remainder by 26 brings what passes z back to a."),
        (EASY, "unshift", f"shift_back_{k}", "text", f"A text was encrypted by moving each lower-case letter {k} "
         "places "
         "on in the alphabet. Return the original.", f"return {shift.format(sign='-', by=k)}",
         lambda t: "".join(moved(c, 26 - k) for c in t), texts,
         "Going back is going on with a minus sign. Python's remainder is never negative, so a becomes a late letter."),
        (MEDIUM, "mirror", "mirror_letters", "text", "Replace each lower-case letter by its mirror image in the "
         f"alphabet (a and z, b and y, ...) and then move it {k} places on, from z back to a.",
         f"letters = 'abcdefghijklmnopqrstuvwxyz'\nchanged = letters[::-1][-{k}:] + letters[::-1][:-{k}]\n"
         "return text.translate(str.maketrans(letters, changed))",
         lambda t: "".join(moved(ALPHABET[25 - ALPHABET.index(c)], k) if c in ALPHABET else c for c in t), texts,
         "`str.maketrans` pairs the letters of two strings. The second one is the reversed alphabet, turned."),
        (HARD, "keyword", "encrypt_with_word", "text, key", "Move each letter of `text` by the place of the "
         "key's next letter in the alphabet (a moves by 0). The key starts again when it is used up; characters that "
         f"are no lower-case letters stay and use up no letter of the key. After that move everything by {k}.",
         "letters = 'abcdefghijklmnopqrstuvwxyz'\nresult, used = '', 0\nfor c in text:\n    if c in letters:\n"
         f"        by = letters.index(key[used % len(key)]) + {k}\n"
         "        c = letters[(letters.index(c) + by) % 26]\n        used += 1\n    result += c\nreturn result",
         lambda t, key: _keyword(t, key, k), keyed,
         "The counter `used` runs over the key only when a letter was encrypted, and its remainder starts it again."),
        (HARD, "rails", f"read_by_rails_{rails}", "text", f"Write the characters of `text` on {rails} lines in turn "
         f"(character 0 on line 0, character {rails} on line 0 again) and return the lines joined, the last line "
         "first.",
         f"return ''.join(text[i::{rails}] for i in reversed(range({rails})))",
         lambda t: "".join(c for i in range(rails - 1, -1, -1) for j, c in enumerate(t) if j % rails == i), texts,
         "A slice with a step takes every nth character, which is exactly one line."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "cipher", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


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
    rows: list[tuple[Any, ...]] = [
        (EASY, "longest", "longest_run", "Return the length of the longest stretch of one and the same character, or "
         f"{least} if it is shorter than that.",
         f"longest = {least}\nlength = 0\nbefore = ''\nfor c in text:\n    length = length + 1 if c == before else 1\n"
         "    longest = max(longest, length)\n    before = c\nreturn longest",
         lambda t: max([least, *(n for _, n in runs(t))]), [(t,) for t in raw],
         "The loop remembers the character before: the length grows while it stays the same and starts at 1 else."),
        (MEDIUM, "pack", f"pack_runs_of_{least}", f"Replace each stretch of at least {least} equal characters by the "
         f"character, '{mark}' and its length; leave shorter ones as they are.",
         "packed, start = '', 0\nfor i in range(1, len(text) + 1):\n    if i == len(text) or text[i] != text[start]:\n"
         f"        run = text[start:i]\n        packed += f'{{run[0]}}{mark}{{len(run)}}' if len(run) >= {least} else "
         "run\n"
         "        start = i\nreturn packed",
         lambda t: "".join(f"{c}{mark}{n}" if n >= least else c * n for c, n in runs(t)), [(t,) for t in raw],
         "A stretch ends where the character changes or the text does; going one step past the end saves a second "
         "treatment of the last one."),
        (HARD, "unpack", "unpack", "`text` is made of numbers, each followed by a character: '3a2b' stands for "
         "'aaabb'. "
         f"Return the unpacked text, '{mark}' between the stretches.",
         "parts, number = [], ''\nfor c in text:\n    if c.isdigit():\n        number += c\n    else:\n"
         f"        parts.append(c * int(number))\n        number = ''\nreturn '{mark}'.join(parts)",
         lambda t: mark.join(c * int(n) for n, c in re.findall(r"(\d+)(\D)", t)), packed,
         "Digits are gathered until a character that is none says how often it stands there."),
    ]  # fmt: skip
    variant, name, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "run_lengths", variant, name, "text", [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


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
    each = f"name, amount = line.split('{separator}')"
    rows: list[tuple[Any, ...]] = [
        (EASY, "names", f"names_from_{least}", f"Each line of `text` is a name and a number with '{separator}' "
         "between. "
         f"Return the names whose number is at least {least}, in order.",
         f"found = []\nfor line in text.splitlines():\n    {each}\n    if int(amount) >= {least}:\n"
         "        found.append(name)\nreturn found",
         lambda t: [n for n, a in split(t) if not int(a) < least], [(table(2),) for _ in range(3)],
         "Splitting gives texts; only `int` makes a number of one, and '9' would be greater than '10' without it."),
        (EASY, "options", "read_options", f"`text` holds pairs such as 'width=3', apart by spaces. Return a "
         "dictionary of "
         f"numbers, with {least} added to each.",
         f"options = {{}}\nfor pair in text.split():\n    key, value = pair.split('=')\n"
         f"    options[key] = int(value) + {least}\nreturn options",
         lambda t: {k: least + int(v) for k, v in re.findall(r"(\w+)=(\d+)", t)}, [(options(),) for _ in range(3)],
         "Two splits take it apart: at spaces into pairs, and at the sign into key and value. A later pair wins."),
        (MEDIUM, "totals", "totals_by_name", f"Each line of `text` is a name and a number with '{separator}' between. "
         f"Return a dictionary from each name to the sum of its numbers, leaving out sums up to {least}.",
         f"totals = {{}}\nfor line in text.splitlines():\n    {each}\n"
         "    totals[name] = totals.get(name, 0) + int(amount)\n"
         f"return {{name: total for name, total in totals.items() if total > {least}}}",
         lambda t: {n: s for n in dict.fromkeys(f[0] for f in split(t))
                    if (s := sum(int(a) for m, a in split(t) if m == n)) > least}, [(table(2),) for _ in range(3)],
         "The dictionary holds one running sum a name; the filter waits until all lines are read."),
        (HARD, "nested", "by_city", f"Each line of `text` is name, number and city with '{separator}' between. Return "
         "a "
         f"dictionary from city to the name with the largest number there (the first of equals), for numbers of at "
         f"least {least} only.",
         f"best = {{}}\nfor line in text.splitlines():\n    name, amount, city = line.split('{separator}')\n"
         f"    amount = int(amount)\n    if amount >= {least} and (city not in best or amount > best[city][0]):\n"
         "        best[city] = amount, name\nreturn {city: name for city, (_, name) in best.items()}",
         lambda t: {c: max(((int(a), -i, n) for i, (n, a, d) in enumerate(split(t)) if d == c))[2]
                    for c in dict.fromkeys(f[2] for f in split(t) if int(f[1]) >= least)},
         [(table(3),) for _ in range(3)],
         "Beside the name, the dictionary remembers the number that it won with; only a larger one replaces it."),
    ]  # fmt: skip
    variant, name, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "records", variant, name, "text", [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def layout(draw: Random, difficulty: str) -> Exercise:
    """Text set out in lines, columns and boxes."""
    width, fill = draw.randint(14, 26), draw.choice(".-_ ")
    names = [draw.sample(WORDS, draw.randint(2, 4)) for _ in range(4)]
    bars = [([draw.randint(1, 9) for _ in range(draw.randint(2, 5))],) for _ in range(4)]
    rows: list[tuple[Any, ...]] = [
        (EASY, "bars", "bars", "numbers", f"Return one line for each number: so many '{fill.strip() or '='}', a space "
         "and "
         "the number.", f"return [{(fill.strip() or '=')!r} * n + f' {{n}}' for n in numbers]",
         lambda ns: [f"{''.join((fill.strip() or '=') for _ in range(n))} {n}" for n in ns], bars,
         "A text times a number repeats it."),
        (EASY, "menu", f"menu_{width}", "names", f"Return one line of {width} characters for each name: the name at "
         "the "
         f"left, its length at the right, '{fill}' between.",
         f"return [name + str(len(name)).rjust({width} - len(name), {fill!r}) for name in names]",
         lambda ns: [n + fill * (width - len(n) - len(str(len(n)))) + str(len(n)) for n in ns], [(n,) for n in names],
         "`rjust` fills up on the left to the wanted width, which is what the name leaves."),
        (MEDIUM, "wrap", f"wrap_{width}", "text", f"Break `text` between words into lines of at most {width} "
         "characters, "
         "each as long as possible. Return the lines.",
         "lines, line = [], ''\nfor word in text.split():\n    longer = f'{line} {word}' if line else word\n"
         f"    if len(longer) <= {width}:\n        line = longer\n    else:\n        lines.append(line)\n"
         "        line = word\nreturn lines + [line]",
         lambda t: textwrap.wrap(t, width), [(sentence(draw, 4, 8),) for _ in range(3)],
         "A word is put behind the line if it still fits; else the line is done and the word begins the next. The last "
         "line is added after the loop."),
        (HARD, "justify", f"justify_{width + 20}", "words", f"Join the words to a line of exactly {width + 20} "
         "characters: "
         "share the spaces out between the words, and where they do not share out evenly, put one more into the gaps "
         "at "
         "the left.",
         f"gaps = len(words) - 1\nspaces = {width + 20} - sum(len(word) for word in words)\n"
         "each, more = divmod(spaces, gaps)\nline = words[0]\nfor i, word in enumerate(words[1:]):\n"
         "    line += ' ' * (each + (i < more)) + word\nreturn line",
         lambda ws: _justify(ws, width + 20), [(n,) for n in names],
         "`divmod` says how many spaces every gap gets and how many gaps get one more. A true comparison counts as 1."),
        (HARD, "table", "table", "rows", "Return the rows of texts as lines in which every column is as wide as its "
         "widest "
         f"text, filled up with '{fill}' on the right, with ' | ' between columns.",
         "widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]\n"
         f"return [' | '.join(cell.ljust(width, {fill!r}) for cell, width in zip(row, widths)) for row in rows]",
         lambda rs: [" | ".join(c + fill * (max(len(r[j]) for r in rs) - len(c)) for j, c in enumerate(row))
                     for row in rs],
         [([draw.sample(WORDS, 2) for _ in range(draw.randint(2, 3))],) for _ in range(3)],
         "The widths must be known before the first line can be written, so the rows are read twice."),
    ]  # fmt: skip
    variant, name, arguments, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "layout", variant, name, arguments, [task], body, expected, inputs, idea=idea, difficulty=difficulty
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
    rows: list[tuple[Any, ...]] = [
        (EASY, "depth", "deepest", f"`text` has matching '{left}' and '{right}'. Return how deep they are nested at "
         "most, "
         f"plus {k}.",
         f"depth = deepest = 0\nfor c in text:\n    if c == '{left}':\n        depth += 1\n    elif c == '{right}':\n"
         f"        depth -= 1\n    deepest = max(deepest, depth)\nreturn deepest + {k}",
         lambda t: k + max(t[:i].count(left) - t[:i].count(right) for i in range(len(t) + 1)),
         [(proper(4),) for _ in range(4)],
         "Every opening one goes a level down, every closing one comes back up; the largest depth on the way counts."),
        (MEDIUM, "missing", "missing", f"Return how many '{left}' or '{right}' must be added to `text` at least, so "
         "that "
         "all of them match.",
         f"depth = missing = 0\nfor c in text:\n    if c == '{left}':\n        depth += 1\n"
         f"    elif c == '{right}' and depth:\n        depth -= 1\n    elif c == '{right}':\n        missing += 1\n"
         "return missing + depth",
         lambda t: _unmatched(t, left, right), [(nested(draw.randint(3, 8)),) for _ in range(4)],
         "A closing one without an open partner is missing one; what is open at the end is missing its closing one."),
        (HARD, "kinds", "balanced", "Return whether the round and square brackets of `text` match and are properly "
         "nested; other characters do not matter.",
         "waiting = []\nfor c in text:\n    if c in '([':\n        waiting.append(')' if c == '(' else ']')\n"
         "    elif c in ')]' and (not waiting or waiting.pop() != c):\n        return False\nreturn not waiting",
         matches, [*((m,) for m in mixed), ("[a(b)]",)],
         "The list holds, the last on top, which closing brackets are still expected. This is a stack."),
    ]  # fmt: skip
    variant, name, task, body, expected, inputs, idea = draw.choice(rows_of(difficulty, rows))
    return compose(
        draw, "brackets", variant, name, "text", [task], body, expected, inputs, idea=idea, difficulty=difficulty
    )


def _unmatched(text: str, left: str, right: str) -> int:
    text = "".join(c for c in text if c in left + right)
    while left + right in text:
        text = text.replace(left + right, "")
    return len(text)
