"""Checks of grown networks: `compare` in one dtype, and `first_difference`, which names the tensor to blame.

Where do a source and a network grown from it part? A walk through both, block by block, to the tensor to blame.

In: both networks, the rules that connect their blocks, one window of tokens. Out: the first place that differs.
The streams have other widths, orders and scales, so they are compared by what every exact growth keeps: the inner
products of the normalized stream's tokens. Inside a block: every head's scores, every value and every neuron of the
source must exist somewhere in the grown block. fp64, one pair of blocks in memory at a time.
Letters: T tokens, D hidden, U units (neurons, value coordinates, heads), H heads, G key-value heads, K head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.attention import rotary_tables, rotate
from model.config import ModelConfig
from model.growth.gate import GateResult, Network, Rounding, StoredNetwork, _compare, _compare_rounded, _Run, stored
from model.growth.rules import Rule, block_origins
from model.transformer import Attention, Block, Rotary, Transformer

SOURCE = ModelConfig(97, 48, 192, 3, 6, max_position_embeddings=64)  # head size 8, rotary size 4
TOKENS = 64  # enough for every unit to be told from the others, and phi-2's scores stay small


def windows(rows: int = 3, tokens: int = 40) -> Tensor:
    """Token ids for `SOURCE`."""
    return torch.randint(0, SOURCE.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(5))


def compare(source: Network, grown: Network, input_ids_BT: Tensor, dtype: torch.dtype = torch.float32) -> GateResult:
    """Runs both networks in `dtype` on all windows."""
    return _compare(*(_Run(stored(network), input_ids_BT, dtype) for network in (source, grown)))


def compare_rounded(source: Network, grown: Network, input_ids_BT: Tensor) -> Rounding:
    """Both networks in bf16 against the source in fp32."""
    reference = _Run(stored(source), input_ids_BT, torch.float32)
    return _compare_rounded(reference, *(_Run(stored(n), input_ids_BT, torch.bfloat16) for n in (source, grown)))


@dataclass(frozen=True)
class Parting:
    """The first place where the functions differ, as a tensor's name without `.weight`, and by how much (relative)."""

    place: str
    difference: float


@torch.no_grad()
def first_difference(
    source: Transformer | StoredNetwork,
    grown: Transformer | StoredNetwork,
    rules: Sequence[Rule],
    input_ids_BT: Tensor,
    tolerance: float = 1e-4,
) -> Parting | None:
    """The first place that is off by more than `tolerance`; None where no single place is (rounding that adds up).

    `rules` made `grown` from `source` by a method that claims to preserve: blocks in the source's order, inserted ones
    silent. The default tolerance is above what weights stored in fp32 leave after many blocks.
    """
    networks = source, grown = stored(source), stored(grown)
    small_TD, large_TD = (network.embedded(input_ids_BT[0, :TOKENS], torch.float64) for network in networks)
    eps = source.config.layer_norm_eps, grown.config.layer_norm_eps

    def apart(first_TD: Tensor, second_TD: Tensor) -> float:
        return _difference(_products(first_TD, eps[0]), _products(second_TD, eps[1]))

    if (found := apart(small_TD, large_TD)) > tolerance:
        return Parting("model.embed_tokens", found)
    for index, (origin, silent) in enumerate(block_origins(rules)):
        pair = _Pair(source, grown, origin, index, small_TD, large_TD)
        before_TD = small_TD
        for part in ("self_attn", "mlp"):
            small_part, large_part = pair.outputs(part)
            wanted_TD = before_TD if silent else before_TD + small_part
            if (found := apart(wanted_TD, pair.large_TD + large_part)) > tolerance:
                return Parting(f"model.layers.{index}.{pair.culprit(part, silent, tolerance)}", found)
            small_TD, large_TD = small_TD if silent else small_TD + small_part, large_TD + large_part
    streams = zip(networks, (small_TD, large_TD), strict=True)
    found = _difference(*(network.logits(network.final_norm(torch.float64)(x_TD)) for network, x_TD in streams))
    return Parting("model.final_layernorm or lm_head", found) if found > tolerance else None


class _Pair:
    """A target block and the source block that it comes from, on the streams that reach them."""

    def __init__(
        self, source: StoredNetwork, grown: StoredNetwork, origin: int, index: int, small_TD: Tensor, large_TD: Tensor
    ) -> None:
        self.large_TD = large_TD
        self.blocks: list[Block] = [source.block(origin, torch.float64), grown.block(index, torch.float64)]
        streams = (small_TD, large_TD)
        self.normalized = [block.input_layernorm(x) for block, x in zip(self.blocks, streams, strict=True)]
        tokens = len(small_TD)
        self.rotary = [rotary_tables(network.config, 0, tokens, like=small_TD) for network in (source, grown)]

    def outputs(self, part: str) -> tuple[Tensor, Tensor]:
        """What attention or MLP of both blocks add to the stream."""
        if part == "mlp":
            small, large = (block.mlp(n) for block, n in zip(self.blocks, self.normalized, strict=True))
        else:
            small, large = (
                block.self_attn(n[None], rotary, "sdpa", None, 0)[0]
                for block, n, rotary in zip(self.blocks, self.normalized, self.rotary, strict=True)
            )
        return small, large

    def culprit(self, part: str, silent: bool, tolerance: float) -> str:
        """The tensor inside a part whose sum differs."""
        if silent:
            return f"{part}.{'dense' if part == 'self_attn' else 'fc2'} (an inserted block that is not silent)"
        neurons = self._all_found([b.mlp.fc1(n).T for b, n in self._each()], tolerance)
        scores = self._all_found(
            [_scores(b.self_attn, n, r).flatten(1) for (b, n), r in zip(self._each(), self.rotary, strict=True)],
            tolerance,
        )
        if not neurons and not scores:
            return "input_layernorm"
        if part == "mlp":
            return "mlp.fc2" if neurons else "mlp.fc1"
        if not scores:
            return "self_attn.q_proj or self_attn.k_proj"
        values = self._all_found([b.self_attn.v_proj(n).T for b, n in self._each()], tolerance)
        return "self_attn.dense" if values else "self_attn.v_proj"

    def _each(self) -> list[tuple[Block, Tensor]]:
        return list(zip(self.blocks, self.normalized, strict=True))

    @staticmethod
    def _all_found(units: list[Tensor], tolerance: float) -> bool:
        """Whether every row of the source's units (U x anything) is also a row of the grown block's."""
        small, large = units[0], units[1].nan_to_num(nan=float("inf"))
        nearest = torch.cat([torch.cdist(rows, large, p=float("inf")).amin(1) for rows in small.split(256)])
        return bool(nearest.max() <= tolerance * small.abs().max())


def _scores(attention: Attention, n_TD: Tensor, rotary: Rotary) -> Tensor:
    """Attention scores of every head, [H, T x T], before the softmax."""
    q_THK = attention.q_proj(n_TD).unflatten(-1, (attention.heads, -1))
    k_TGK = attention.k_proj(n_TD).unflatten(-1, (attention.kv_heads, -1))
    if attention.qk_norm == "head":
        q_THK, k_TGK = attention.q_layernorm(q_THK), attention.k_layernorm(k_TGK)
    q_HTK, k_GTK = (rotate(x.transpose(0, 1)[None], *rotary)[0] for x in (q_THK, k_TGK))
    k_HTK = k_GTK.repeat_interleave(attention.heads // attention.kv_heads, 0)
    return q_HTK @ k_HTK.transpose(1, 2) * attention.head_size**-0.5


def _products(x_TD: Tensor, eps: float) -> Tensor:
    normalized_TD = nn.functional.layer_norm(x_TD, x_TD.shape[-1:], eps=eps)
    return normalized_TD @ normalized_TD.T / x_TD.shape[-1]


def _difference(wanted: Tensor, found: Tensor) -> float:
    difference = ((found - wanted).abs().max() / wanted.abs().max()).item()
    return difference if difference == difference else float("inf")  # not a number differs from everything
