"""Text from a network as it is written: bytes of a character that is not complete yet are held back.

In: a network, a byte-level BPE tokenizer, a prompt. Out: pieces of text. A character of several bytes may be spread
over several tokens; printing each token alone would print broken characters.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from model.transformer import Transformer
from pipeline.system.errors import UserError

BROKEN = "\ufffd"  # what decoding gives for bytes that are no character yet
LONGEST_CHARACTER_TOKENS = 4  # of UTF-8: after that many tokens the bytes are simply wrong, and shown as such


@dataclass(frozen=True)
class Writer:
    """How to continue a prompt. `temperature=0`: always the likeliest token. The same `seed` writes the same text."""

    network: Transformer
    tokenizer: Tokenizer
    eos_token_id: int | None
    temperature: float = 0.7
    top_k: int = 50
    seed: int = 0
    stop_ids: Collection[int] = ()

    def stream(self, prompt: str, max_new_tokens: int, add_special_tokens: bool = True) -> Iterator[str]:
        """Pieces that continue `prompt`, up to an end of text or another of `stop_ids`. `add_special_tokens`: those
        that the tokenizer puts before a text. Raises `UserError` where the prompt leaves no room in the context."""
        ends = [] if self.eos_token_id is None else [self.eos_token_id]
        ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids or ends
        device = self.network.lm_head.weight.device
        new_ids = self.network.generate(
            torch.tensor(ids, dtype=torch.int64),
            max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k or None,
            eos_token_id={*ends, *self.stop_ids},
            generator=torch.Generator(device).manual_seed(self.seed),
        )
        try:
            yield from self._decode(new_ids)
        except ValueError as error:
            raise UserError(f"{error} Use a shorter --prompt (or sample.prompts).") from None

    def _decode(self, new_ids: Iterator[int]) -> Iterator[str]:
        pending: list[int] = []
        for token in new_ids:
            pending.append(token)
            text = self.tokenizer.decode(pending, skip_special_tokens=True)
            if not text.endswith(BROKEN) or len(pending) > LONGEST_CHARACTER_TOKENS:
                pending = []
                yield text
        if pending:
            yield self.tokenizer.decode(pending, skip_special_tokens=True)
