"""A model as the tasks use it, the held-out text that it is measured on, and scores with their standard errors.

`LanguageModel` takes a network (its own weights or quantized ones) and a tokenizer, and returns likelihoods of texts
(nats, summed in fp32) and greedy continuations. Prompt and continuation are tokenized separately, so that the tokens of
a continuation do not depend on the last word of the prompt. `HeldOutText` decodes the validation documents of a data
folder, so that models with other tokenizers can be compared on the same bytes.
Letters: B texts, T tokens, D hidden, V vocabulary.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from model.hf import load_network
from model.transformer import Transformer
from pipeline.config import Config
from pipeline.corpus.text.intervals import interval, ratio_of_sums
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import ids_around, load_tokenizer
from pipeline.evaluation.model_input import ModelInput
from pipeline.system.progress import progress
from pipeline.training import devices

FORWARD_TOKENS = 8192  # of a batch, padding included

Score = dict[str, Any]  # score, standard_error, items and, depending on the task, chance, interval, groups or why
Scores = dict[str, Score]


@dataclass(frozen=True)
class LanguageModel:
    """A text begins with what its tokenizer puts before every text, else with `eos_token_id` where there is no prompt.
    That ends a continuation, as each of `stop_ids` does.
    `context_tokens`: the length of the windows that the network was trained on. It may have more positions, which
    were never trained."""

    network: Transformer
    tokenizer: Tokenizer
    eos_token_id: int
    context_tokens: int
    stop_ids: Collection[int] = field(default=(), kw_only=True)

    @classmethod
    def of(cls, network: Transformer, model: ModelInput) -> "LanguageModel":
        """A network with the tokenizer, special tokens and context of the model folder that it came from."""
        special, tokenizer = model.special_tokens(), load_tokenizer(model.tokenizer_json)
        assert special.eos_token_id is not None
        return cls(network.eval(), tokenizer, special.eos_token_id, model.context_tokens, stop_ids=special.stop_ids)

    @property
    def device(self) -> torch.device:
        return self.network.lm_head.weight.device

    def nats(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """-ln p(continuation | prompt) of each (prompt, continuation), summed over its tokens."""
        room, rows = self.context_tokens, []
        for i, (prompt, continuation) in enumerate(pairs):
            before, after = self._begun(prompt), self.encode(continuation)
            rows.append((i, (before + after)[-(room + 1) :], min(len(after), room)))
        return self._sums(rows, len(pairs))

    def nats_of_documents(self, documents: Sequence[str]) -> list[float]:
        """Of each document, over all its tokens. A document longer than the context is cut into pieces."""
        length, rows = self.context_tokens, []
        for number, document in enumerate(documents):
            ids = [*self._begun(""), *self.encode(document)]
            # Pieces overlap by one token, which the next piece starts from: every token is predicted exactly once.
            pieces = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
            rows += [(number, piece, len(piece) - 1) for piece in pieces]
        return self._sums(rows, len(documents))

    def complete(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        """The likeliest continuation, up to the first of the `stop` texts (not included)."""
        room = self.context_tokens - 1
        ids = self._begun(prompt)[-room:]
        new: list[int] = []
        stops = {self.eos_token_id, *self.stop_ids}
        for token in self.network.generate(torch.tensor(ids), max_new_tokens, temperature=0, eos_token_id=stops):
            new.append(token)
            text = self.tokenizer.decode(new)
            ends = [at for word in stop if (at := text.find(word)) >= 0]
            if ends:
                return text[: min(ends)]
        return self.tokenizer.decode(new)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _begun(self, prompt: str) -> list[int]:
        return [*self._first_ids, *self.encode(prompt)] or [self.eos_token_id]

    @cached_property
    def _first_ids(self) -> list[int]:
        return ids_around(self.tokenizer)[0]

    def _sums(self, rows: Sequence[tuple[int, list[int], int]], count: int) -> list[float]:
        """Nats by number. Rows are (number, ids, how many ids at the end are counted), run in batches of similar
        length, so that little of a batch is padding."""
        found, batches = [0.0] * count, [[]]
        for row in sorted(rows, key=lambda row: len(row[1])):
            if (len(batches[-1]) + 1) * len(row[1]) > FORWARD_TOKENS and batches[-1]:
                batches.append([])
            batches[-1].append(row)
        with progress("scoring", sum(len(ids) for _, ids, _ in rows), "tokens") as bar:
            for batch in filter(None, batches):
                self._add_batch(batch, found)
                bar.advance(sum(len(ids) for _, ids, _ in batch))
        return found

    @torch.no_grad()
    def _add_batch(self, rows: Sequence[tuple[int, list[int], int]], found: list[float]) -> None:
        inputs = torch.zeros(len(rows), max(len(ids) for _, ids, _ in rows) - 1, dtype=torch.int64)
        for row, (_, ids, _) in enumerate(rows):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        labels = torch.tensor([id for _, ids, counted in rows for id in ids[len(ids) - counted :]], dtype=torch.int64)
        hidden_BTD = self.network.hidden(inputs.to(self.device))
        places = [slice(len(ids) - 1 - counted, len(ids) - 1) for _, ids, counted in rows]
        parts = zip(places, labels.to(self.device).split([counted for _, _, counted in rows]), strict=True)
        sums = [self.network.head_loss(hidden_BTD[row, place], part)[0] for row, (place, part) in enumerate(parts)]
        for (number, _, _), nats in zip(rows, torch.stack(sums).tolist(), strict=True):  # the batch's one host read
            found[number] += nats


def load_model(config: Config, model: ModelInput) -> LanguageModel:
    """The model on the device of `train.device`: bf16 on a GPU, fp32 elsewhere."""
    machine = devices.choose(config.train)
    dtype = torch.bfloat16 if machine.device.type == "cuda" else torch.float32
    return LanguageModel.of(load_network(model.folder, dtype, device=machine.device), model)


@dataclass(frozen=True)
class HeldOutText:
    """Validation text of a data folder by source; the textbook set is one of the sources."""

    shards: TokenShards

    @cached_property
    def documents(self) -> Mapping[str, Sequence[str]]:
        tokenizer = load_tokenizer(self.shards.tokenizer_path)
        begin, found = ids_around(tokenizer)[0], {}
        for name, tokens in self.shards.val.items():
            rows = [
                np.asarray(tokens.tokens[start : start + length]).tolist()
                for start, length in zip(tokens.index["offset"].tolist(), tokens.index["length"].tolist(), strict=True)
            ]
            texts = [row[:-1] if row[-1:] == [self.shards.eos_token_id] else row for row in rows]
            texts = [row[len(begin) :] if row[: len(begin)] == begin else row for row in texts]
            found[name] = tokenizer.decode_batch(texts, skip_special_tokens=False)  # the text itself may hold some
        return found


def held_out_bits_per_byte(model: LanguageModel, text: HeldOutText) -> Scores:
    """Per source, over all its held-out text: nats of all tokens / ln 2 / UTF-8 bytes, with a 95% interval over the
    documents, and the number of groups that the documents belong to.

    Each document is scored alone, after an end of text. So the value is slightly higher than pretraining's own
    validation, which reads the same text as one stream, where nearly every token has text before it.
    """
    found = {}
    for name, documents in text.documents.items():
        sizes = [float(len(document.encode())) for document in documents]
        if sum(sizes) > 0:
            found[name] = ratio([nats / math.log(2) for nats in model.nats_of_documents(documents)], sizes)
            found[name]["groups"] = text.shards.groups.get(name)
    return found


def share(right: Sequence[bool], chance: float = 0.0) -> Score:
    """Share of right answers: `{score, standard_error, items, chance}`. `chance`: the score of guessing. The error is
    that of a mean over items, sqrt(p (1 - p) / (n - 1)); one item has none."""
    n = len(right)
    mean = sum(right) / n
    error = round(math.sqrt(mean * (1 - mean) / (n - 1)), 6) if n > 1 else None
    return {"score": round(mean, 6), "standard_error": error, "items": n, "chance": round(chance, 6)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Score:
    """sum(numerators) / sum(denominators): `{score, standard_error, interval, items}`; the interval is 95%."""
    n, (value, error) = len(numerators), ratio_of_sums(numerators, denominators)
    found = {"score": round(value, 6), "standard_error": None if error is None else round(error, 6)}
    return {**found, "interval": interval(value, error, n), "items": n}
