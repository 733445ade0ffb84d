"""What a model is asked to write, and how its answer is checked.

Forms: rewrites of the user's own documents (table, FAQ, tutorial, maths) beside textbook sections and exercises on a
topic; structured rewrites were found to help more than a larger generator (FinePhrase, 2026). Seeds: what each text is
asked from (topic x audience x style, or a piece of a document), in a fixed order, no two the same. Checks: what is
wrong with an answer, in a word: the reasons by which such texts are counted.
"""

import hashlib
import heapq
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_filters.rule import EXERCISE, PROSE
from pipeline.config import yaml_values
from pipeline.corpus.exercises.model_exercise import problem_of
from pipeline.corpus.text.documents import hash_key

_WORDS = yaml_values.load(Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8"))
TOPICS, AUDIENCES, STYLES = (tuple(_WORDS[name]) for name in ("topics", "audiences", "styles"))
DIFFICULTIES = ("easy", "medium", "hard")
LEAST_WORDS = 100

_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^\s*\|(.+)\|\s*$")
_RULE = re.compile(r"^\s*\|(\s*:?-+:?\s*\|)+\s*$")
_QUESTION = re.compile(
    r"^[#>*\s\d.]*(?:\*\*)?\s*(?:(?:Q|Question)\s*\d*\s*[:.)]|[^\n]{8,300}\?\**\s*$)", re.MULTILINE | re.IGNORECASE
)
_STEP = re.compile(r"^(?:#+\s*)?(?:\*\*)?(?:step\s+)?\d+\s*[.):]", re.MULTILINE | re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6}\s+\S", re.MULTILINE)
_PROBLEM = re.compile(r"^[#*\s]*(?:problem|exercise|question|task)\b", re.MULTILINE | re.IGNORECASE)
_SOLUTION = re.compile(r"^[#*\s]*(?:solution|answer)\b", re.MULTILINE | re.IGNORECASE)

LEAST_EXCERPT_CHARACTERS = 200

COPY_SHARE = 0.5  # of a text's runs of words that stand in its seed document
RUN_WORDS = 8
REPEATED_SHARE = 0.3  # of its runs of words that it has said before
MOST_BYTES_A_TOKEN = 32  # no tokenizer packs text so densely: a longer answer is not what was asked for

_REFUSAL = re.compile(
    r"\A\W*(?:(?:i['’]?m|i am)\s+(?:very\s+)?(?:sorry|afraid|unable)|sorry\b|unfortunately,? i\b|i "
    r"(?:cannot|can['’]t|won['’]t)\b"
    r"|as an? (?:ai|artificial|large) |i apologi[sz]e)",
    re.IGNORECASE,
)
_CHATTER = re.compile(r"\A\W*(?:sure|certainly|of course|here(?:'s| is)|okay)\b[^\n]{0,200}:?\s*\n", re.IGNORECASE)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Form:
    """`problem`: a text's departure from the structure asked for, in a word, or None. `rewrites`: made from a
    document. What the model is told is in forms.yaml."""

    problem: Callable[[str], str | None]
    kind: str = PROSE
    rewrites: bool = False


def _textbook(text: str) -> str | None:
    if not _HEADING.search(text):
        return "no_heading"
    return _too_short(text, LEAST_WORDS)


def _table(text: str) -> str | None:
    """A Markdown table with at least two columns and three rows, all of one width."""
    lines = text.split("\n")
    rule = next((i for i, line in enumerate(lines) if i and _RULE.match(line) and _ROW.match(lines[i - 1])), None)
    if rule is None:
        return "no_table"
    rows = [lines[rule - 1]]
    for line in lines[rule + 1 :]:
        if not _ROW.match(line):
            break
        rows.append(line)
    widths = {line.replace("\\|", "").count("|") for line in rows}
    if len(rows) < 4 or len(widths) > 1 or widths == {2}:
        return "broken_table"
    return _too_short(text, 40)


def _faq(text: str) -> str | None:
    """At least three questions, each with something behind it."""
    starts = [m.end() for m in _QUESTION.finditer(text)]
    if len(starts) < 3:
        return "too_few_questions"
    ends = [*[m.start() for m in _QUESTION.finditer(text)][1:], len(text)]
    if any(len(text[a:b].split()) < 4 for a, b in zip(starts, ends, strict=True)):
        return "question_without_answer"
    return _too_short(text, 60)


def _tutorial(text: str) -> str | None:
    if not _HEADING.search(text):
        return "no_heading"
    return "too_few_steps" if len(_STEP.findall(text)) < 3 else _too_short(text, LEAST_WORDS)


def _maths(text: str) -> str | None:
    """At least two problems with a solution each, and numbers in them."""
    problems, solutions = len(_PROBLEM.findall(text)), len(_SOLUTION.findall(text))
    if problems < 2 or solutions < 2:
        return "too_few_problems"
    return "no_numbers" if sum(c.isdigit() for c in text) < 6 or "=" not in text else _too_short(text, 60)


def _too_short(text: str, words: int) -> str | None:
    return "too_short" if len(_FENCED.sub(" ", text).split()) < words else None


FORMS = {
    "textbook": Form(_textbook),
    "exercise": Form(problem_of, EXERCISE),
    "table": Form(_table, rewrites=True),
    "faq": Form(_faq, rewrites=True),
    "tutorial": Form(_tutorial, rewrites=True),
    "maths": Form(_maths, rewrites=True),
}


@dataclass(frozen=True)
class Excerpt:
    """A piece of a document, cut between paragraphs."""

    path: str
    group: str
    license: str
    text: str


@dataclass(frozen=True)
class Seed:
    """What text `number` is asked from."""

    number: int
    form: str
    topic: str
    audience: str
    style: str
    difficulty: str
    excerpt: Excerpt | None = None

    def messages(self) -> list[dict[str, str]]:
        told = _WORDS["asks"][self.form].format(
            topic=self.topic, audience=self.audience, style=self.style, difficulty=self.difficulty
        )
        if self.excerpt is not None:
            told += f"\n\n<document>\n{self.excerpt.text}\n</document>"
        return [{"role": "system", "content": _WORDS["system"]}, {"role": "user", "content": told}]

    @property
    def prompt_hash(self) -> str:
        return hashlib.sha256(
            json.dumps(self.messages(), sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
        ).hexdigest()

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "prompt_hash": self.prompt_hash}


def make_seeds(
    count: int, forms: Sequence[str], topics: Sequence[str], audiences: Sequence[str],
    excerpts: Mapping[str, Sequence[Excerpt]], seed: int,
) -> Iterator[Seed]:  # fmt: skip
    """At most `count` seeds, the forms in turn; fewer where a form has no more that differ. `excerpts`: of each form
    that rewrites. A larger count begins with the seeds of a smaller one."""
    left = {form: _combinations(form, topics, audiences, excerpts.get(form, ()), seed) for form in forms}
    number = 0
    while left and number < count:
        for form in [f for f in forms if f in left]:
            found = next(left[form], None)
            if found is None:
                del left[form]
            elif number < count:
                yield Seed(number, form, **found)
                number += 1


def _combinations(
    form: str, topics: Sequence[str], audiences: Sequence[str], excerpts: Sequence[Excerpt], seed: int
) -> Iterator[Mapping[str, Any]]:
    """Every combination of a form once, in seeded order. A rewrite takes every excerpt once before one comes again."""
    draw = random.Random(f"{seed}/{form}")
    if FORMS[form].rewrites:
        readers = draw.sample(list(audiences), len(audiences))
        for turn in range(len(readers)):
            for place, excerpt in enumerate(excerpts):
                reader = readers[(turn + place) % len(readers)]
                yield {"topic": "", "audience": reader, "style": "", "difficulty": "", "excerpt": excerpt}
        return
    manner = DIFFICULTIES if form == "exercise" else STYLES
    sizes = len(topics), len(audiences), len(manner)
    for index in draw.sample(range(sizes[0] * sizes[1] * sizes[2]), sizes[0] * sizes[1] * sizes[2]):
        rest, topic = divmod(index, sizes[0])
        way, reader = divmod(rest, sizes[1])
        named = (
            {"difficulty": manner[way], "style": ""} if form == "exercise" else {"difficulty": "", "style": manner[way]}
        )
        yield {"topic": topics[topic], "audience": audiences[reader], **named}


def take_excerpts(documents: Iterable[Any], characters: int, most: int, key: str) -> list[Excerpt]:
    """At most `most` pieces of all documents, chosen by a hash of `key` and of what is in them, in its order."""
    pieces = (piece for doc in documents if isinstance(doc, Document) for piece in cut(doc, characters))
    return heapq.nsmallest(most, pieces, key=lambda piece: (hash_key(key, piece.text), piece.path))


def cut(document: Document, characters: int) -> Iterator[Excerpt]:
    """The document in pieces of at most `characters`, cut between paragraphs where there are any; short rests are left
    out."""
    metadata = document.metadata
    piece = ""
    for paragraph in [*document.text.split("\n\n"), None]:
        whole = f"{piece}\n\n{paragraph}" if piece and paragraph is not None else paragraph or piece
        if paragraph is not None and len(whole) <= characters:
            piece = whole
            continue
        if len(piece.strip()) >= LEAST_EXCERPT_CHARACTERS:
            yield Excerpt(metadata["path"], metadata["group"], metadata["license"], piece.strip())
        piece = (paragraph or "")[:characters]


def clean_answer(text: str) -> str:
    """Without a first line that only talks to the asker, and without a fence around the whole."""
    text = _CHATTER.sub("", text.strip(), count=1).strip()
    whole = re.fullmatch(r"```(?:markdown|md)\n(.*)\n```", text, re.DOTALL)
    return (whole.group(1).strip() if whole else text) + "\n"


def problem(text: str, form: str, finish: str | None, max_tokens: int, excerpt: str | None) -> str | None:
    """Why a cleaned text is not kept, or None. `finish`: why the model stopped, `excerpt`: of its seed document."""
    if not text.strip():
        return "empty"
    if _REFUSAL.match(text):
        return "refusal"
    if len(text.encode("utf-8", "replace")) > MOST_BYTES_A_TOKEN * max_tokens:
        return "longer_than_asked"
    if finish == "length" or text.count("```") % 2:
        return "truncated"
    if "\ufffd" in text or "\x00" in text:
        return "broken_characters"
    runs = _runs(text)
    if len(runs) > 20 and 1 - len(set(runs)) / len(runs) > REPEATED_SHARE:
        return "repeats_itself"
    if excerpt is not None and runs and len(set(runs) & set(_runs(excerpt))) > COPY_SHARE * len(set(runs)):
        return "copy_of_seed"
    return FORMS[form].problem(text)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return [tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)]
