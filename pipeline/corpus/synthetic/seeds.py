"""What each text is asked from: topic x audience x style, and for rewrites a piece of a document.

In: the options of a source and its documents. Out: seeds in a fixed order, no two the same, and the messages of each.
"""

import hashlib
import heapq
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datatrove.data import Document

from pipeline.corpus.synthetic.forms import DIFFICULTIES, FORMS, STYLES, SYSTEM
from pipeline.corpus.text.documents import hash_key

LEAST_EXCERPT_CHARACTERS = 200


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
        told = FORMS[self.form].ask.format(
            topic=self.topic, audience=self.audience, style=self.style, difficulty=self.difficulty
        )
        if self.excerpt is not None:
            told += f"\n\n<document>\n{self.excerpt.text}\n</document>"
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": told}]

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
