"""A network as its tensors lie in a file, run block by block: memory holds one block, whatever the network's size.

In: a shape and its tensors by name, memory-mapped (`hf.open_state`) or in memory. Out: hidden states and logits. The
tensors are taken as they are found, past `hf.load_network` and the config's `tie_word_embeddings`: a check that reads
through the loader would share the loader's faults.
Letters: B windows, T tokens, N of one window, D hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.hf import EMBEDDING, HEAD
from model.rotary import rotary_tables
from model.transformer import Block, Rotary, Transformer

HEAD_ELEMENTS = 1 << 25  # of the head in the dtype of the arithmetic at once, 128 MiB in fp32

Advance = Callable[[float], None]
"""Told after every piece of work how many FLOPs it took."""


@dataclass(frozen=True)
class StoredNetwork:
    """`state` may hold tensors in any dtype, and more of them than the shape names."""

    config: ModelConfig
    state: Mapping[str, Tensor]

    @property
    def embedding(self) -> Tensor:
        return self.state[EMBEDDING if EMBEDDING in self.state else HEAD]

    @property
    def head(self) -> Tensor:
        """The head's own matrix where there is one, whatever the config says."""
        return self.state[HEAD if HEAD in self.state else EMBEDDING]

    def flops(self, windows: int, tokens: int) -> float:
        """Of one forward pass: a third of what training takes (`ModelConfig.flops_per_token`)."""
        return windows * tokens * self.config.flops_per_token(tokens) / 3

    @torch.no_grad()
    def embedded(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """x_BTD before the first block (x_TD of ids_T); only the rows that are looked up are read."""
        return F.embedding(ids_BT.to(self.embedding.device), self.embedding).to(dtype)

    def block(self, index: int, dtype: torch.dtype) -> Block:
        """A block with its weights in `dtype`; what is stored in it stays in the mapped file."""
        with torch.device("meta"):
            block = Block(self.config)
        self._load(block, f"model.layers.{index}.", dtype)
        return block

    def final_norm(self, dtype: torch.dtype) -> nn.LayerNorm:
        with torch.device("meta"):
            norm = nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps)
        self._load(norm, "model.final_layernorm.", dtype)
        return norm

    def _load(self, module: nn.Module, prefix: str, dtype: torch.dtype) -> None:
        module.load_state_dict({n: self.state[prefix + n].to(dtype) for n in module.state_dict()}, assign=True)

    @torch.no_grad()
    def hidden(self, ids_BT: Tensor, dtype: torch.dtype, advance: Advance = lambda flops: None) -> Tensor:
        """x_BTD after the final LayerNorm. All windows go through a block before the next one is read."""
        x_BTD = self.embedded(ids_BT, dtype)
        rotary = rotary_tables(self.config, 0, ids_BT.shape[1], like=x_BTD)
        for index in range(self.config.num_hidden_layers):
            _run(self.block(index, dtype), x_BTD, rotary)
            advance(self.flops(*ids_BT.shape) / (self.config.num_hidden_layers + 1))
        return self.final_norm(dtype)(x_BTD)

    @torch.no_grad()
    def logits(self, h_ND: Tensor) -> Tensor:
        """logits_NV in the dtype of `h_ND`, a piece of the vocabulary at a time."""
        bias_V, logits_NV = self.state["lm_head.bias"].to(h_ND.dtype), h_ND.new_empty(len(h_ND), len(self.head))
        rows = max(1, HEAD_ELEMENTS // h_ND.shape[1])
        for start in range(0, len(self.head), rows):
            piece = slice(start, start + rows)
            logits_NV[:, piece] = F.linear(h_ND, self.head[piece].to(h_ND.dtype), bias_V[piece])
        return logits_NV


def _run(block: Block, x_BTD: Tensor, rotary: Rotary) -> None:
    """In place, and one window at a time: the MLP's inner states are the largest tensors of all."""
    for window in range(len(x_BTD)):
        x_BTD[window] = block.forward(x_BTD[window : window + 1], rotary, "auto")[0]


def stored(network: "Transformer | StoredNetwork") -> StoredNetwork:
    """A network in memory as one that is stored."""
    return network if isinstance(network, StoredNetwork) else StoredNetwork(network.config, network.state_dict())
