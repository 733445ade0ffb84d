"""What the tasks need of a model, whatever numbers its weights are in: likelihoods of texts, and greedy continuations.

In: a network (its own weights or quantized ones) and a tokenizer. Out: nats in fp32 sums, and text. Prompt and
continuation are encoded apart, so that a continuation's tokens do not depend on the prompt's last word.
Letters: B texts, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.transformer import Transformer

FORWARD_TOKENS = 8192  # of a batch, padding included


@dataclass(frozen=True)
class LanguageModel:
    """`eos_token_id` stands before a text that has no prompt, and ends a continuation, as any of `stop_ids` does.
    `context_tokens`: the length of the windows that the network was trained on; it may have more positions, which it
    never saw."""

    network: Transformer
    tokenizer: Tokenizer
    eos_token_id: int
    context_tokens: int
    stop_ids: Collection[int] = field(default=(), kw_only=True)

    @property
    def device(self) -> torch.device:
        return self.network.lm_head.weight.device

    def nats(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """-ln p(continuation | prompt) of each (prompt, continuation), summed over its tokens."""
        room, rows = self.context_tokens, []
        for i, (prompt, continuation) in enumerate(pairs):
            before, after = self.encode(prompt) or [self.eos_token_id], self.encode(continuation)
            rows.append((i, (before + after)[-(room + 1) :], min(len(after), room)))
        found = [0.0] * len(pairs)
        for i, value in self._in_batches(rows):
            found[i] = value
        return found

    def nats_of_rows(self, rows: Sequence[tuple[int, list[int]]]) -> Iterator[tuple[int, float]]:
        """(number, nats of all ids but the first) of each (number, ids), in any order."""
        return self._in_batches([(number, ids, len(ids) - 1) for number, ids in rows])

    def _in_batches(self, rows: Sequence[tuple[int, list[int], int]]) -> Iterator[tuple[int, float]]:
        """Rows are (number, ids, how many ids at the end are counted); those of a like length go together."""
        waiting: list[tuple[int, list[int], int]] = []
        for row in sorted(rows, key=lambda row: len(row[1])):
            if (len(waiting) + 1) * len(row[1]) > FORWARD_TOKENS and waiting:
                yield from self._batch(waiting)
                waiting = []
            waiting.append(row)
        if waiting:
            yield from self._batch(waiting)

    @torch.no_grad()
    def _batch(self, rows: Sequence[tuple[int, list[int], int]]) -> list[tuple[int, float]]:
        inputs = torch.zeros(len(rows), max(len(ids) for _, ids, _ in rows) - 1, dtype=torch.int64)
        for row, (_, ids, _) in enumerate(rows):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        hidden_BTD = self.network.hidden(inputs.to(self.device))
        found = []
        for row, (number, ids, counted) in enumerate(rows):
            labels = torch.tensor(ids[len(ids) - counted :], device=self.device)
            end = len(ids) - 1
            found.append((number, float(self.network.head_loss(hidden_BTD[row, end - counted : end], labels)[0])))
        return found

    def complete(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        """The likeliest continuation, up to the first of the `stop` texts (not in it)."""
        room = self.context_tokens - 1
        ids = (self.encode(prompt) or [self.eos_token_id])[-room:]
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

    def logits(self, ids_T: Tensor) -> Tensor:
        """logits_TV of one row of ids, in fp32."""
        with torch.no_grad():
            return self.network(ids_T[None].to(self.device))[0].float().cpu()
