"""Damage, drawn from a seed: what happens to files on their way, and what people and programs write into them.

In: a good example as bytes, or as a value of JSON, and a `random.Random`. Out: another one. Ten ways on bytes (flip,
cut, splice, nest, repeat, enlarge, other types, other encodings, line ends, words that trip programs), six on values.
"""

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

MOST_BYTES = 3_000_000  # of a mutated file: what is larger only takes longer
_WORDS = (
    "null", "true", "NaN", "Infinity", "-Infinity", "-1", "0", "1e999", "-0.0", "9" * 400, "18446744073709551616",
    "9223372036854775808", "-9223372036854775809", "0x10", "010", "1_000", "1:30", "no", "~", '""', '"\\ud83d"',
    '"\\ud800\\udfff"', '"\\u0000"', "[]", "{}", "[[]]", '{"":{}}', "${name}", "!!python/object:os.system", "&a [*a]",
    "<<", "../../../etc/passwd", "/dev/zero", "%s%n", "\x00", "\x1b[2J", "\u2028", "\u0085", "\ufeff", "\u202e",
    "a\u0301" * 50, "\U0001f600", "]]>", "<![CDATA[", "<!--", "<!DOCTYPE x [<!ENTITY a 'b'>]>", "&a;",
    "Content-Length: -5", "WARC-Type: response", "\r\n\r\n", "/Count 99999999", "/Kids [1 0 R]", "/Length 0",
    "/Filter /FlateDecode",
)  # fmt: skip
_PAIRS = (("[", "]"), ('{"a":', "}"), ("<div>", "</div>"), ("(", ")"), ("<<", ">>"), ("- ", ""), ('"', '"'), ("<b", ""))
_ENCODINGS = (
    "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp1252", "shift_jis", "utf-7", "cp037",
    "gb18030", "big5",
)  # fmt: skip
_LINE_ENDS = (b"\r\n", b"\r", b"\n\r", b"\n\n\n", "\u2028".encode(), "\u0085".encode(), b"\x0b", b"\0\n", b" \n")
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?|\btrue\b|\bfalse\b|\bnull\b')


def mutate(data: bytes, draw: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four ways of damage, one after the other. `others`: examples that pieces are taken from."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        data = draw.choice(_ON_BYTES)(data, draw, others or (data,))[:MOST_BYTES]
    return data


def mutate_value(value: Any, draw: random.Random) -> Any:
    """One to three changes at random places of a value of JSON."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _changed(value, draw)
    return value


def odd(draw: random.Random) -> Any:
    """A value of JSON that nobody expects."""
    made: Sequence[Callable[[], Any]] = (
        lambda: None, lambda: draw.choice((True, False)), lambda: draw.choice((0, -1, 1, 2, 7, 10**6)),
        lambda: draw.choice((2**31, 2**63, -(2**63) - 1, 10**30)),
        lambda: draw.choice((0.5, -0.0, 1e308, float("inf"), float("nan"), -1e-9)), lambda: "", lambda: "none",
        lambda: draw.choice(_WORDS), lambda: "x" * draw.choice((100, 5_000, 200_000)), list, dict,
        lambda: [None], lambda: [1, "a", {"b": 2}], lambda: {"content": "x"}, lambda: {"type": "default", "": 0},
        lambda: "1", lambda: ["a"] * draw.choice((3, 2_000)), lambda: _deep(draw.choice((3, 60, 400))),
    )  # fmt: skip
    return draw.choice(made)()


def dumped(value: Any) -> bytes:
    """As JSON; half of a surrogate pair stays an escape."""
    return json.dumps(value).encode()


def _deep(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


# On bytes


def _flip(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64)) if data else 0):
        at = draw.randrange(len(changed))
        changed[at] = changed[at] ^ (1 << draw.randrange(8)) if draw.random() < 0.6 else draw.randrange(256)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _range(data, draw)
    return draw.choice((data[:start], data[:start] + data[end:], data[start:], data[start:end]))


def _splice(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    first, last = _range(other, draw)
    start, end = _range(data, draw)
    return data[:start] + other[first:last] + data[start if draw.random() < 0.5 else end :]


def _nest(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    opened, closed = (word.encode() for word in draw.choice(_PAIRS))
    levels = draw.choice((1, 2, 30, 1_000, 20_000))
    start, end = _range(data, draw)
    return data[:start] + opened * levels + data[start:end] + closed * draw.choice((levels, 0)) + data[end:]


def _repeat(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _range(data, draw)
    times = min(draw.choice((2, 5, 100, 3_000)), MOST_BYTES // max(1, end - start))
    return data[:start] + data[start:end] * times + data[end:]


def _enlarge(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    filler = draw.choice((b"0", b"9", b"x", b" ", b"\n", b"\0", b"\xff", "ü".encode(), b"<a>", b'"k":1,', b"\\"))
    return data[:at] + filler * draw.choice((20, 3_000, 300_000)) + data[at:]


def _retype(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    found = list(_TOKEN.finditer(data[:200_000]))
    if not found:
        return _word(data, draw, ())
    token = draw.choice(found)
    return data[: token.start()] + dumped(odd(draw)) + data[token.end() :]


def _recode(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    text = data.decode("utf-8", draw.choice(("replace", "ignore")))
    coded = text.encode(draw.choice(_ENCODINGS), draw.choice(("replace", "ignore", "xmlcharrefreplace")))
    if draw.random() < 0.7:
        return coded
    start, end = _range(data, draw)
    return data[:start] + coded[start:end] + data[end:]


def _line_ends(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    return data.replace(b"\n", draw.choice(_LINE_ENDS), draw.choice((-1, 1, 3)))


def _word(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _range(data, draw)
    word = draw.choice(_WORDS).encode("utf-8", "surrogatepass")
    return data[:start] + word + data[start if draw.random() < 0.6 else end :]


_ON_BYTES = (_flip, _cut, _splice, _nest, _repeat, _enlarge, _retype, _recode, _line_ends, _word)


def _range(data: bytes, draw: random.Random) -> tuple[int, int]:
    """Mostly short, sometimes up to the end."""
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((0, 1, 4, 16, 200, 4_000, len(data))))


# On values


def _changed(value: Any, draw: random.Random) -> Any:
    """`value` with one of its places changed: which one is drawn on the way down."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        way = draw.random()
        if way < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.2:
            return {(draw.choice(_WORDS) if k == key else k): v for k, v in value.items()}
        if way < 0.26:
            return {**value, draw.choice(("x", "", "type", "__class__", key + " ", key.upper())): odd(draw)}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at, way = draw.randrange(len(value)), draw.random()
        if way < 0.15:
            return value[:at] + value[at + 1 :]
        if way < 0.3:
            return value[:at] + [value[at]] * draw.choice((2, 3, 300)) + value[at + 1 :]
        if way < 0.36:
            return draw.sample(value, len(value))
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    return _other(value, draw)


def _other(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool) or draw.random() < 0.45:
        return odd(draw)
    if isinstance(value, int | float):
        return draw.choice((-value, value + 1, value - 1, value * 2, value * 10**6, str(value), [value], float(value)))
    if isinstance(value, str):
        start, end = _range(value.encode(), draw)
        word = draw.choice(_WORDS)
        return draw.choice((value.upper(), value + word, value[:start] + value[end:], value * 50, [value], value + " "))
    return draw.choice(([value], {"a": value}, str(value), odd(draw)))
