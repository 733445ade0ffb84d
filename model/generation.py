"""Writing text: one token id after another, with a cache of keys and values.

In: a network and the ids of a prompt. Out: an iterator of new ids, so that a caller can print text while it grows.
Letters: B batch (1 here), G key-value heads, T new tokens, S cached tokens, K head size, V vocabulary.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import ModelConfig

if TYPE_CHECKING:
    from model.transformer import Transformer


class KeyValueCache:
    """Keys and values of every block for up to `capacity` tokens, allocated once."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> None:
        """Device and dtype are those of `like`."""
        shape = (config.num_hidden_layers, batch, config.kv_heads, capacity, config.head_size)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def append(self, block: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the new tokens of one block; returns k_BGSK, v_BGSK of all tokens so far. The last block counts them."""
        if self.length and k_BGTK.shape[2] > 1:
            raise ValueError("a cache that holds tokens takes one more token at a time; give the prompt in one piece.")
        end = self.length + k_BGTK.shape[2]
        self.keys[block, :, :, self.length : end] = k_BGTK
        self.values[block, :, :, self.length : end] = v_BGTK
        if block == self.keys.shape[0] - 1:
            self.length = end
        return self.keys[block, :, :, :end], self.values[block, :, :, :end]


@torch.no_grad()
def generate(
    network: "Transformer",
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    eos_token_id: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yields up to `max_new_tokens` ids that continue `input_ids` (1-D, or one row).

    Stops before (any of) `eos_token_id`, which is not yielded, and when the context of max_position_embeddings tokens
    is full. `temperature=0` takes the likeliest token. `generator` must live on the network's device. Raises ValueError
    for an empty prompt and for one that fills the context.
    """
    config, head = network.config, network.lm_head.weight
    stops = (eos_token_id,) if isinstance(eos_token_id, int) else eos_token_id or ()
    ids_1T = input_ids.reshape(1, -1).to(head.device)
    room = config.max_position_embeddings - ids_1T.shape[1]
    if not ids_1T.shape[1] or room < 1:
        raise ValueError(
            f"the prompt has {ids_1T.shape[1]} tokens; it needs at least 1 and, to leave room for an answer, fewer "
            f"than model.max_position_embeddings={config.max_position_embeddings}."
        )
    new_tokens = min(max_new_tokens, room)
    cache = KeyValueCache(config, 1, ids_1T.shape[1] + new_tokens, like=head)
    for _ in range(new_tokens):
        logits_V = network.lm_head(network.hidden(ids_1T, cache)[0, -1])
        token = _sample(logits_V.float(), temperature, top_k, generator)
        if token in stops:
            return
        yield token
        ids_1T = torch.full((1, 1), token, device=head.device)


def _sample(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < logits_V.shape[0]:
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial(torch.softmax(logits_V / temperature, -1), 1, generator=generator))
