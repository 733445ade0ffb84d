"""Texts that look like good ones and hold nothing: what a scorer must not fall for.

In: real texts and a seed. Out: a text of a named kind, made from them. Nobody learns anything from one, so they are
rated 0 without reading. The scorer is trained on some kinds and judged on the others; the same texts come out for the
same texts and seed.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

CHARACTERS = 4_000  # of one, about

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[A-Za-z][A-Za-z']+")
_TEACHING = [
    "for example",
    "note that",
    "because",
    "therefore",
    "in other words",
    "step by step",
    "algorithm",
    "tutorial",
    "introduction",
    "chapter",
    "exercise",
    "theorem",
    "definition",
    "proof",
    "complexity",
    "let us consider",
    "we can see",
    "the idea is",
    "suppose",
    "first",
    "next",
    "finally",
    "explanation",
    "lesson",
    "beginners",
    "learn",
    "understand",
    "concept",
    "function",
    "returns",
    "parameters",
    "examples",
    "best practices",
    "guide",
    "overview",
    "summary",
    "why",
    "how it works",
]
_MARKS = (">>> ", "## ", "Args:", "Returns:", "```python", "```", "Example::", "$$ x^2 $$", "* ", "1. ", "Note: ")


def shuffled_words(texts: Sequence[str], draws: random.Random) -> str:
    """The words of a text in any order, its lines as long as they were."""
    lines = _piece(texts, draws).split("\n")
    words = " ".join(lines).split()
    draws.shuffle(words)
    found = iter(words)
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + " ".join(next(found) for _ in line.split()) for line in lines
    )


def shuffled_sentences(texts: Sequence[str], draws: random.Random) -> str:
    """Sentences (of code: lines) of five texts, mixed."""
    parts = [part for text in _some(texts, draws, 5) for part in _sentences(text)]
    draws.shuffle(parts)
    return " ".join(parts)[:CHARACTERS] if draws.random() < 0.7 else "\n".join(parts)[:CHARACTERS]


def repeated_phrase(texts: Sequence[str], draws: random.Random) -> str:
    """One phrase or sentence many times, under headings or as a docstring."""
    phrase = draws.choice([p for p in _sentences(_piece(texts, draws)) if len(p) > 20] or ["this is the way it works."])
    phrase = phrase[: draws.randint(30, 300)].strip()
    between = draws.choice(["\n", " ", "\n\n", "\n\n>>> run()\n", "\n\n## Example\n\n", "\n# "])
    text = between.join([phrase] * draws.randint(12, 60))[:CHARACTERS]
    if draws.random() < 0.4:
        return f'class Guide:\n    """\n    {text}\n    """\n\n    def run(self):\n        return None\n'
    return text


def repeated_paragraph(texts: Sequence[str], draws: random.Random) -> str:
    """A good paragraph again and again, each time with a few words exchanged."""
    text = _piece(texts, draws)
    paragraph = draws.choice([p for p in text.split("\n\n") if len(p) > 150] or [text[:500]])[:900]
    words, copies = paragraph.split(" "), []
    while sum(map(len, copies)) < CHARACTERS:
        copy = list(words)
        for _ in range(draws.randint(0, 4)):
            copy[draws.randrange(len(copy))] = draws.choice(words)
        copies.append(" ".join(copy))
    return "\n\n".join(copies[: max(4, len(copies))])


def stuffed_keywords(texts: Sequence[str], draws: random.Random) -> str:
    """The words and marks of teaching, strewn over words that say nothing together."""
    words = _WORD.findall(_piece(texts, draws))
    lines = []
    for _ in range(draws.randint(15, 60)):
        line = [draws.choice(words) if draws.random() < 0.5 else draws.choice(_TEACHING) for _ in range(12)]
        lines.append((draws.choice(_MARKS) if draws.random() < 0.4 else "") + " ".join(line).capitalize() + ".")
    return "\n".join(lines)


def word_salad_with_doctests(texts: Sequence[str], draws: random.Random) -> str:
    """Random words as a docstring with parameters and doctests, over code that does nothing."""
    words = _WORD.findall(" ".join(_some(texts, draws, 3)))

    def sentence() -> str:
        return " ".join(draws.choice(words).lower() for _ in range(draws.randint(6, 16))).capitalize() + "."

    parts = []
    for _ in range(draws.randint(3, 8)):
        name = "_".join(draws.choice(words).lower() for _ in range(2))
        said = "\n    ".join(sentence() for _ in range(draws.randint(2, 6)))
        parts.append(
            f'def {name}({draws.choice(words).lower()}=None):\n    """{sentence()}\n\n    {said}\n\n    Args:\n        '
            f"{draws.choice(words).lower()}: {sentence()}\n\n    >>> {name}({draws.randint(0, 99)})\n    "
            f'{draws.randint(0, 99)}\n    """\n    pass\n'
        )
    return "\n\n".join(parts)


def boilerplate(texts: Sequence[str], draws: random.Random) -> str:
    """Notices, disclaimers and comments that say what the name says."""
    nouns = sorted({w.lower() for w in _WORD.findall(_piece(texts, draws)) if len(w) > 4}) or ["value"]
    forms = (
        "This site uses cookies to improve your experience. By continuing you accept our {0} policy.",
        "All rights reserved. No part of this {0} may be reproduced without written permission of {1}.",
        "For more information about {0}, please visit our {1} page or contact the {2} team.",
        "# The {0}.\n{0} = {0}",
        'def get_{0}(self):\n    """Gets the {0}.\n\n    Returns:\n        The {0}.\n    """\n    return self.{0}',
        "/** Sets the {0}. @param {0} the {0} to set */\npublic void set{0}(String {0}) {{ this.{0} = {0}; }}",
        "Click here to subscribe to {0}. Share this {1} on social media. Leave a comment below.",
        "THE {0} IS PROVIDED AS IS, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING {1} AND {2}.",
        "Home | {0} | {1} | {2} | About | Contact | Login | Register",
        "Thank you for reading this {0}. If you enjoyed it, consider {1} and {2} today!",
    )
    some = draws.sample(forms, draws.randint(1, 4))
    return "\n\n".join(
        draws.choice(some).format(*(draws.choice(nouns) for _ in range(3))) for _ in range(draws.randint(10, 40))
    )


def table_or_log(texts: Sequence[str], draws: random.Random) -> str:
    """Rows of numbers or lines of a log."""
    words = [w.lower() for w in _WORD.findall(_piece(texts, draws))] or ["value"]
    form = draws.randrange(4)
    rows = []
    for i in range(draws.randint(30, 90)):
        if form == 0:
            rows.append("\t".join(f"{draws.uniform(-9, 999):.{draws.randint(0, 4)}f}" for _ in range(6)))
        elif form == 1:
            level = draws.choice(["INFO", "DEBUG", "WARN", "ERROR"])
            rows.append(f"2024-03-{i % 28 + 1:02} 12:{i % 60:02}:07,{draws.randint(0, 999):03} {level} "
                        f"[{draws.choice(words)}] {draws.choice(words)} {draws.choice(words)} "
                        f"id={draws.randint(1, 9999)}")  # fmt: skip
        elif form == 2:
            rows.append(f"| {draws.choice(words)} | {draws.randint(0, 9999)} | {draws.choice(words)} | yes |")
        else:
            rows.append(
                f"    {draws.randint(0, 65535):#06x}, {draws.randint(0, 65535):#06x}, /* {draws.choice(words)} */"
            )
    return "\n".join(rows)


def minified(texts: Sequence[str], draws: random.Random) -> str:
    """A text without its spaces and line ends, names of one letter."""
    text = re.sub(r"(?m)^\s*(#|//|\*|/\*).*$", "", _piece(texts, draws))
    names = sorted(set(re.findall(r"\b[a-zA-Z_]\w{4,}\b", text)))
    draws.shuffle(names)
    short = {name: "abcdefghijklmnopqrstuvwxyz"[i % 26] + str(i // 26 or "") for i, name in enumerate(names[::2])}
    text = re.sub(r"\b[a-zA-Z_]\w{4,}\b", lambda m: short.get(m.group(0), m.group(0)), text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", re.sub(r"\s+", " ", text))


def generated_code(texts: Sequence[str], draws: random.Random) -> str:
    """One template of code for a list of names, in one of several languages."""
    names = sorted({w for w in _WORD.findall(_piece(texts, draws)) if len(w) > 3}) or ["Field"]
    templates = (
        "class {1}Request(Message):\n    __slots__ = ('{0}', '{2}')\n    {0} = Field({3}, 'string')\n"
        "    {2} = Field({4}, 'int64')\n",
        "  public static final int {1}_FIELD = {3};\n  public {1} get{1}() {{ return {0}_; }}\n"
        "  public boolean has{1}() {{ return {0}_ != null; }}\n",
        'func (x *{1}) Get{2}() string {{\n\tif x != nil {{\n\t\treturn x.{2}\n\t}}\n\treturn ""\n}}\n',
        'static const struct entry {0}_{3} = {{ .name = "{0}", .code = {3}, .flags = {4} }};\n',
        "INSERT INTO {0} (id, name, {2}) VALUES ({3}, '{1}', {4});",
        "export const {0}Schema = {{ type: 'object', properties: {{ {2}: {{ type: 'string' }}, "
        "id: {{ type: 'number', maximum: {3} }} }} }};",
        "impl From<{1}> for u32 {{ fn from(v: {1}) -> u32 {{ v.{0} as u32 + {3} }} }}",
        "# {1}: returns the {0}\ndef test_{0}_{3}():\n    assert {0}({3}) == {4}\n",
    )
    template = draws.choice(templates)
    rows = []
    while sum(map(len, rows)) < draws.randint(1_500, CHARACTERS):
        word = draws.choice(names)
        rows.append(template.format(word.lower(), word.capitalize(), draws.choice(names).lower(),
                                    draws.randint(1, 500), draws.randint(1, 99)))  # fmt: skip
    return "\n".join(rows)


def garbled(texts: Sequence[str], draws: random.Random) -> str:
    """Characters lost, doubled and exchanged; or text in the wrong encoding."""
    text = _piece(texts, draws)
    if draws.random() < 0.3:
        return "".join(c if draws.random() > 0.25 else draws.choice("Ã¢Â€™œ©ï¿½§") for c in text)
    share = draws.uniform(0.12, 0.35)
    letters = "etaoinshrdlucmfwypvbgkjqxz .,;()"
    return "".join("" if (r := draws.random()) < share / 3 else draws.choice(letters) if r < share else c for c in text)


def truncated(texts: Sequence[str], draws: random.Random) -> str:
    """The beginning of every line only, or every fourth word: what a bad extractor leaves."""
    text = " ".join(_piece(texts, draws).split()) if draws.random() < 0.4 else _piece(texts, draws)
    if "\n" not in text:
        return " ".join(text.split()[:: draws.randint(2, 4)])
    width = draws.randint(10, 26)
    return "\n".join(line[:width] for line in text.split("\n") if line.strip())


def fluent_nonsense(texts: Sequence[str], draws: random.Random) -> str:
    """A walk over which word follows which two in forty texts: fluent, about nothing."""
    follows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text in _some(texts, draws, 40):
        words = re.findall(r"\S+|\n", text)
        for a, b, c in zip(words, words[1:], words[2:], strict=False):
            follows[a, b].append(c)
    pairs = [pair for pair, after in follows.items() if len(set(after)) > 1] or list(follows)
    pair = draws.choice(pairs)
    written = list(pair)
    while sum(map(len, written)) < CHARACTERS * 0.8:
        if pair not in follows or draws.random() < 0.02:
            pair = draws.choice(pairs)
            written += pair
        pair = (pair[1], draws.choice(follows[pair]))
        written.append(pair[1])
    return re.sub(r" *\n *", "\n", " ".join(written))


def exchanged_words(texts: Sequence[str], draws: random.Random) -> str:
    """Grammar kept, meaning lost: every longer word becomes another of the same length class and ending."""
    text, others = _piece(texts, draws), " ".join(_some(texts, draws, 6))
    classes: dict[tuple[int, str], list[str]] = defaultdict(list)
    for word in _WORD.findall(others):
        classes[len(word) // 3, word[-1:]].append(word)

    def other(match: re.Match[str]) -> str:
        word = match.group(0)
        return word if len(word) < 5 else draws.choice(classes.get((len(word) // 3, word[-1:])) or [word])

    return _WORD.sub(other, text)


def listed_terms(texts: Sequence[str], draws: random.Random) -> str:
    """Terms of a text as a bare list: an index, navigation, names."""
    words = sorted({w for w in _WORD.findall(" ".join(_some(texts, draws, 3))) if len(w) > 4}) or ["entry"]
    form = draws.choice(["{}", "* {}", "{}, 12, 47", "- [{}](#)", "{} ....... 9"])
    return "\n".join(form.format(draws.choice(words)) for _ in range(draws.randint(40, 160)))


KINDS: dict[str, Callable[[Sequence[str], random.Random], str]] = {
    make.__name__: make
    for make in (
        shuffled_words, shuffled_sentences, repeated_phrase, repeated_paragraph, stuffed_keywords,
        word_salad_with_doctests, boilerplate, table_or_log, minified, generated_code, garbled, truncated,
        fluent_nonsense, exchanged_words, listed_terms,
    )
}  # fmt: skip


def make(kind: str, texts: Sequence[str], seed: int) -> str:
    """A text of `kind` made from real `texts`; the same for the same arguments."""
    return KINDS[kind](texts, random.Random(f"{kind} {seed}"))[:CHARACTERS]


def dress(text: str, seed: int) -> str:
    """Nonsense after up to sixty of an adversary's changes, taken at random."""
    draws = random.Random(f"dress {seed}")
    for _ in range(draws.choice((0, 5, 20, 60))):
        text = draws.choice(_CHANGES)(text, draws)[: 2 * CHARACTERS]
    return text


def attack(
    score: Callable[[Sequence[str]], Sequence[float]], text: str, tries: int, draws: random.Random
) -> tuple[str, float]:
    """(text, score) that an adversary reaches from nonsense in `tries` scored changes of what a scorer may look at:
    words and marks of teaching, sentences' beginnings and ends, lines, order. It writes no sentence of sense."""
    best, most = text, float(score([text])[0])
    for _ in range(tries):
        changed = draws.choice(_CHANGES)(best, draws)[: 2 * CHARACTERS]
        reached = float(score([changed])[0])
        if reached > most:
            best, most = changed, reached
    return best, most


def _with_teaching(text: str, draws: random.Random) -> str:
    words = text.split(" ")
    for _ in range(draws.randint(1, 12)):
        words.insert(draws.randrange(len(words) + 1), draws.choice(_TEACHING))
    return " ".join(words)


def _with_common_words(text: str, draws: random.Random) -> str:
    words = text.split(" ")
    for _ in range(draws.randint(1, 30)):
        words.insert(
            draws.randrange(len(words) + 1), draws.choice(("the", "of", "is", "a", "to", "in", "that", "when"))
        )
    return " ".join(words)


def _with_mark(text: str, draws: random.Random) -> str:
    lines = text.split("\n")
    at = draws.randrange(len(lines))
    lines[at] = draws.choice(_MARKS) + lines[at]
    return "\n".join(lines)


def _as_sentences(text: str, draws: random.Random) -> str:
    words, length = text.split(), draws.randint(8, 22)
    parts = [" ".join(words[i : i + length]) for i in range(0, len(words), length)]
    return draws.choice([" ", "\n", "\n\n"]).join(part[:1].upper() + part[1:] + "." for part in parts)


def _in_lines(text: str, draws: random.Random) -> str:
    words, length = text.split(" "), draws.randint(6, 16)
    return "\n".join(" ".join(words[i : i + length]) for i in range(0, len(words), length))


def _without_lines(text: str, draws: random.Random) -> str:
    lines = text.split("\n")
    kept = [line for line in lines if draws.random() > 0.15]
    return "\n".join(kept or lines)


def _as_documentation(text: str, draws: random.Random) -> str:
    forms = ('"""{}"""', "/*\n{}\n*/", "# Introduction\n\n{}", 'def example():\n    """{}"""\n    return 1\n')
    form = draws.choice(forms)
    return form.replace("{}", text)


def _with_code(text: str, draws: random.Random) -> str:
    codes = (">>> f(1)\n2", "```python\nx = f(1)\n```", "    return a + b", "for (i = 0; i < n; i++)", "Example::")
    code = draws.choice(codes)
    paragraphs = text.split("\n")
    paragraphs.insert(draws.randrange(len(paragraphs) + 1), code)
    return "\n".join(paragraphs)


def _reordered(text: str, draws: random.Random) -> str:
    lines = text.split("\n")
    draws.shuffle(lines)
    return "\n".join(lines)


_CHANGES = (
    _with_teaching, _with_common_words, _with_mark, _as_sentences, _in_lines, _without_lines, _as_documentation,
    _with_code, _reordered,
)  # fmt: skip


def _some(texts: Sequence[str], draws: random.Random, n: int) -> list[str]:
    return [texts[draws.randrange(len(texts))] for _ in range(n)]


def _piece(texts: Sequence[str], draws: random.Random) -> str:
    return _some(texts, draws, 1)[0][: draws.randint(1_500, CHARACTERS)]


def _sentences(text: str) -> list[str]:
    found = [part.strip() for part in _SENTENCE.split(text) if part.strip()]
    return found if len(found) > 8 else [line.strip() for line in text.split("\n") if line.strip()]
