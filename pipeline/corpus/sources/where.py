"""`where`, the condition on a record's fields: its grammar, its errors and how it is judged.

    condition   = all ("or" all)*
    all         = one ("and" one)*
    one         = "not" one | "(" condition ")" | test
    test        = side (("==" | "!=" | "<" | "<=" | ">" | ">=") side)+     a field on one side, a value on the other
                | field ["not"] "in" "(" value ("," value)* ")"            or in square brackets
                | field "is" ["not"] "null"
    field       = name ("." name)*         a letter first, then letters, digits, `_`, `-`; any other name in backticks
    value       = number | 'text' | "text" | true | false

Words of the grammar may stand in upper case. `1 <= score < 5` means both. A test on a field that is absent, null or of
another type than the value is *unknown*, as in SQL: `not` of it is unknown too, and a record whose whole condition is
unknown is set aside and counted as unreadable, never let in. Nothing is evaluated as a program.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pipeline.corpus.text.user_files import MAX_SAMPLE, Unreadable

MAX_CHARACTERS, MAX_DEPTH = 10_000, 50
EXAMPLE = "int_score >= 3 and language == 'en'"
_SHOWN_CHARACTERS = 60  # of a long condition, on either side of what is wrong
ABSENT = object()  # what `find` gives for a field that is not there
_WORDS = ("and", "or", "not", "in", "is", "null", "true", "false")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>[+-]?(?:\d+(?:_\d+)*(?:\.(?:\d+(?:_\d+)*)?)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<quoted>`[^`]+`)
    |(?P<name>[^\W\d]\w*(?:-\w+)*)
    |(?P<compare>[=!]=(?!=)|[<>]=?(?![=<>]))
    |(?P<sign>[().,\[\]])""",
    re.VERBOSE | re.DOTALL,
)
_HINTS = (
    (r"&&?", "write `and`"),
    (r"\|\|?", "write `or`"),
    (r"<>|=!", "write `!=`"),
    (r"[<>]", "write one comparison, such as < or >="),
    (r"===", "write `==`"),
    (r"!==", "write `!=`"),
    (r"=<", "write `<=`"),
    (r"=>", "write `>=`"),
    (r"=", "write `==`"),
    (r"!", "write `not`"),
    (r"#|--|//|/\*|;", "a comment or a second statement has no place here; end the condition before it"),
    (r"['\"]", "the quote is not closed"),
    (r"`", "the backtick is not closed, or nothing stands between two"),
    (r"[\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb]", "write straight quotes, ' or \""),
    (r"\d", "no number is written so; a text stands in quotes, and a field that begins with a digit in backticks"),
    (r"[+*/%^~|-]", "there is no arithmetic here; a field with such a character in its name stands in backticks"),
    (r"[{$:?@]", "a field with such a character in its name stands in backticks"),
)


@dataclass(frozen=True)
class _Token:
    kind: str  # number, text, field (of one name, in backticks), name, compare, sign, end; or a word of the grammar
    text: str
    at: int


class _Field(tuple[str, ...]):
    """The names of a field and of those that it is in."""

    @property
    def key(self) -> str:
        return ".".join(self)


@dataclass(frozen=True)
class _Node:
    """A part of the condition. `judge`: True, False, or why that is unknown. `for_true`, `for_false`: the fields
    without which it cannot come out so."""

    judge: Callable[[Mapping[str, Any]], "bool | Unreadable"]
    for_true: frozenset[_Field]
    for_false: frozenset[_Field]


class Where:
    """A condition. Raises `ValueError`, with the place, for a text that is not a condition."""

    def __init__(self, text: str):
        self.text, parser = text, _Parser(text)
        self._node = parser.whole()
        self.fields = tuple(dict.fromkeys(field.key for field in parser.fields))
        self.needed_fields = tuple(sorted(field.key for field in self._node.for_true))
        """Those without which no record is wanted."""

    def __reduce__(self) -> tuple[type["Where"], tuple[str]]:
        return Where, (self.text,)

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Raises `Unreadable` where it is unknown: `no_where_field`, `where_field_type`."""
        found = self._node.judge(record)
        if isinstance(found, Unreadable):
            raise found
        return found


def find(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The field of a record whose name is all of `names` with dots between, else that of a field of a field; else
    `ABSENT`."""
    if (whole := ".".join(names)) in record:
        return record[whole]
    found: Any = record
    for name in names:
        if not isinstance(found, Mapping) or name not in found:
            return ABSENT
        found = found[name]
    return found


class _Parser:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, text: str):
        self.text, self.depth = text, 0
        self.fields: list[_Field] = []
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"where has {len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
        self.tokens = self._cut()
        self.next = 0

    def whole(self) -> _Node:
        found = self._any()
        if self._token.kind != "end":
            raise self._wrong(f"expected `and`, `or` or the end, found {self._token.text!r}")
        return found

    def _cut(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                hint = next((hint for shape, hint in _HINTS if re.compile(shape).match(self.text, at)), "")
                found = self.text[at]
                raise self._wrong(f"{found!r} is not understood" + (f": {hint}" if hint else ""), at)
            kind, found = str(match.lastgroup), match.group()
            if kind == "name" and found.lower() in _WORDS:
                kind = found.lower()
            if kind != "space":
                tokens.append(_Token(kind, found, at))
            at = match.end()
        return [*tokens, _Token("end", "the end", len(self.text.rstrip()))]

    @property
    def _token(self) -> _Token:
        return self.tokens[self.next]

    def _take(self, *kinds_or_signs: str) -> _Token | None:
        token = self._token
        if token.kind in kinds_or_signs or (token.kind == "sign" and token.text in kinds_or_signs):
            self.next += 1
            return token
        return None

    def _any(self) -> _Node:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else _not(_all_of([_not(part) for part in parts]))

    def _all(self) -> _Node:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return _all_of(parts)

    def _one(self) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._wrong(f"more than {MAX_DEPTH} levels deep")
        if self._take("not"):
            found = _not(self._one())
        elif self._take("("):
            found = self._any()
            if not self._take(")"):
                raise self._wrong(f"expected `)`, found {self._token.text!r}")
        else:
            found = self._test()
        self.depth -= 1
        return found

    def _test(self) -> _Node:
        at, left = self._token, self._side()
        if isinstance(left, _Field) and self._take("is"):
            negated = self._take("not")
            if not self._take("null"):
                raise self._wrong(f"expected `null` or `not null`, found {self._token.text!r}")
            return _not(_is_null(left)) if negated else _is_null(left)
        if isinstance(left, _Field) and (self._token.kind in ("in", "not")):
            negated = self._take("not")
            if not self._take("in"):
                raise self._wrong(f"expected `in`, found {self._token.text!r}")
            found = self._in(left)
            return _not(found) if negated else found
        parts = []
        while sign := self._take("compare"):
            right = self._side()
            parts.append(self._comparison(left, sign, right))
            left = right
        if not parts:
            shown = left.key if isinstance(left, _Field) else ""
            hint = f"'{shown}' ({shown} == true? {shown} is not null?)" if shown else f"{left!r}; expected a comparison"
            raise self._wrong(f"nothing is asked of {hint}", at.at)
        return _all_of(parts)

    def _comparison(self, left: Any, sign: _Token, right: Any) -> _Node:
        if isinstance(left, _Field) == isinstance(right, _Field):
            what = f"two fields; a text stands in quotes: '{right.key}'" if isinstance(right, _Field) else "two values"
            raise self._wrong(f"{sign.text!r} compares {what}; expected a field and a value", sign.at)
        if isinstance(right, _Field):
            left, right = right, left
            turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign.text, sign.text)
        else:
            turned = sign.text
        if isinstance(right, bool) and turned not in ("==", "!="):
            raise self._wrong("true and false can be compared with == and != only", sign.at)
        compare = _COMPARE[turned]
        return _of_value(left, lambda found: compare(found, right) if _comparable(found, right) else None)

    def _in(self, left: _Field) -> _Node:
        opened = self._take("(", "[")
        if opened is None:
            raise self._wrong(f"expected a list such as ('en', 'de'), found {self._token.text!r}")
        values = [self._value()]
        while self._take(","):
            if self._token.text in (")", "]"):
                break
            values.append(self._value())
        if not self._take(")" if opened.text == "(" else "]"):
            raise self._wrong(f"expected `,` or the end of the list, found {self._token.text!r}")

        def judge(found: Any) -> bool | None:
            alike = [value for value in values if _comparable(found, value)]
            return found in alike if alike else None

        return _of_value(left, judge)

    def _value(self) -> Any:
        at = self._token.at
        value = self._side()
        if isinstance(value, _Field):
            raise self._wrong(f"expected a value; a text stands in quotes: '{value.key}'", at)
        return value

    def _side(self) -> Any:
        """A field, or a value."""
        if token := self._take("text"):
            if self._token.kind == "text":
                raise self._wrong("two texts side by side; for a quote inside a text write \\' or the other quotes")
            return self._unquoted(token)
        if token := self._take("number"):
            return self._number(token)
        if token := self._take("true", "false"):
            return token.kind == "true"
        if self._token.kind == "null":
            raise self._wrong("nothing equals null; write `is null` or `is not null`")
        if self._token.kind not in ("name", "quoted"):
            word = self._token.kind in _WORDS
            hint = f"; a field of this name stands in backticks: `{self._token.text}`" if word else ""
            raise self._wrong(f"expected a field or a value, found {self._token.text!r}{hint}")
        names = [self._name()]
        while self._take("."):
            names.append(self._name())
        if self._token.text in ("(", "["):
            raise self._wrong(f"{self._token.text!r} is not understood: nothing is called or looked up here")
        self.fields.append(_Field(names))
        return self.fields[-1]

    def _name(self) -> str:
        token = self._take("name", "quoted")
        if token is None and self._token.kind in _WORDS and self.tokens[self.next - 1].text == ".":
            token = self._take(self._token.kind)  # after a dot it can be nothing else
        if token is None:
            raise self._wrong(f"expected a field's name, found {self._token.text!r}")
        return token.text.strip("`")

    def _number(self, token: _Token) -> int | float:
        plain = token.text.replace("_", "")
        if re.fullmatch(r"[+-]?0\d+", plain):
            raise self._wrong(f"{token.text} begins with a 0: write {int(plain)}, or a text in quotes", token.at)
        value = int(plain) if re.fullmatch(r"[+-]?\d+", plain) else float(plain)
        if value in (float("inf"), float("-inf")):
            raise self._wrong(f"{token.text} is too large for a number", token.at)
        return value

    def _unquoted(self, token: _Token) -> str:
        def plain(match: re.Match[str]) -> str:
            known = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
            if match[0][1] in known:
                return known[match[0][1]]
            if len(match[0]) == 6:
                return chr(int(match[0][2:], 16))
            raise self._wrong(f"{match[0]!r} is no escape; write \\\\ for a backslash", token.at + 1 + match.start())

        return re.sub(r"\\u[0-9a-fA-F]{4}|\\.", plain, token.text[1:-1], flags=re.DOTALL)

    def _wrong(self, what: str, at: int | None = None) -> ValueError:
        at = self._token.at if at is None else at
        line_start = self.text.rfind("\n", 0, at) + 1
        line_end = self.text.find("\n", at)
        line_end = len(self.text) if line_end < 0 else line_end
        start, end = max(line_start, at - _SHOWN_CHARACTERS), min(line_end, at + _SHOWN_CHARACTERS)
        shown = "".join(c if c.isprintable() else " " for c in self.text[start:end])
        return ValueError(
            f"where, character {at + 1}: {what}\n    {shown}\n    {' ' * (at - start)}^\n"
            f"expected a condition such as {EXAMPLE} (docs/data/README.md has the grammar)"
        )


def _all_of(parts: Sequence[_Node]) -> _Node:
    if len(parts) == 1:
        return parts[0]

    def judge(record: Mapping[str, Any]) -> bool | Unreadable:
        unknown: bool | Unreadable = True
        for part in parts:
            found = part.judge(record)
            if found is False:
                return False
            unknown = found if unknown is True else unknown
        return unknown

    for_false = frozenset.intersection(*(part.for_false for part in parts))
    return _Node(judge, frozenset().union(*(part.for_true for part in parts)), for_false)


def _not(part: _Node) -> _Node:
    def judge(record: Mapping[str, Any]) -> bool | Unreadable:
        found = part.judge(record)
        return found if isinstance(found, Unreadable) else not found

    return _Node(judge, part.for_false, part.for_true)


def _is_null(field: _Field) -> _Node:
    def judge(record: Mapping[str, Any]) -> bool:
        found = find(record, field)
        return found is None or found is ABSENT

    return _Node(judge, frozenset(), frozenset([field]))


def _of_value(field: _Field, judge_value: Callable[[Any], bool | None]) -> _Node:
    def judge(record: Mapping[str, Any]) -> bool | Unreadable:
        found = find(record, field)
        if found is None or found is ABSENT:
            return Unreadable("no_where_field", f"{field.key}; keys: {', '.join(map(str, record))[:MAX_SAMPLE]}")
        judged = judge_value(found)
        if judged is None:
            shown = repr(found[:MAX_SAMPLE]) if isinstance(found, str) else ""
            return Unreadable("where_field_type", f"{field.key} is {type(found).__name__} {shown}".strip())
        return judged

    return _Node(judge, frozenset([field]), frozenset([field]))


def _comparable(found: Any, value: Any) -> bool:
    """True and false with each other, numbers with numbers, text with text."""
    if isinstance(value, bool) or isinstance(found, bool):
        return isinstance(value, bool) and isinstance(found, bool)
    if isinstance(value, str):
        return isinstance(found, str)
    return isinstance(found, int | float | Decimal) and found == found  # not-a-number is not
