"""Held-out text of an experiment as documents, for any model, also one with another tokenizer.

In: a finished data folder. Out: the text of every validation document, decoded from the token sets that pretraining
validates on, and bits per byte of any model on them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.evaluation.scores import ratio

if TYPE_CHECKING:
    from pipeline.evaluation.language_model import LanguageModel


@dataclass(frozen=True)
class HeldOutText:
    """Validation text of a data folder by source; the textbook set is one of them."""

    shards: TokenShards

    @cached_property
    def documents(self) -> Mapping[str, Sequence[str]]:
        tokenizer = load_tokenizer(self.shards.tokenizer_path)
        found = {}
        for name, tokens in self.shards.val.items():
            rows = [
                np.asarray(tokens.tokens[start : start + length]).tolist()
                for start, length in zip(tokens.index["offset"].tolist(), tokens.index["length"].tolist(), strict=True)
            ]
            texts = [row[:-1] if row[-1:] == [self.shards.eos_token_id] else row for row in rows]
            found[name] = tokenizer.decode_batch(texts, skip_special_tokens=False)  # the text itself may hold some
        return found


def bits_per_byte(model: "LanguageModel", text: HeldOutText) -> dict[str, dict[str, Any]]:
    """Per source, over all its held-out text: nats of all tokens / ln 2 / UTF-8 bytes, with a 95% interval over the
    documents and the number of groups that they are of.

    Each document stands alone, after an end of text; one that is longer than the context is cut into pieces that
    predict every token once. So the number is a little higher than pretraining's own validation, which reads the same
    text as one stream where every token but a window's first few has text before it.
    """
    found = {}
    for name, documents in text.documents.items():
        sizes = [float(len(document.encode())) for document in documents]
        if sum(sizes) > 0:
            found[name] = ratio([nats / math.log(2) for nats in _nats(model, documents)], sizes)
            found[name]["groups"] = text.shards.groups.get(name)
    return found


def _nats(model: "LanguageModel", documents: Sequence[str]) -> list[float]:
    """Of each document, over all its tokens and the end of text after none of them."""
    length = model.context_tokens
    pieces = []
    for number, document in enumerate(documents):
        ids = [model.eos_token_id, *model.encode(document)]
        pieces += [(number, ids[start : start + length + 1]) for start in range(0, len(ids) - 1, length)]
    found = [0.0] * len(documents)
    for number, nats in model.nats_of_rows(pieces):
        found[number] += nats
    return found
