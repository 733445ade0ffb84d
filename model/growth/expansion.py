"""The exact algebra of widths: for each kind of tensor the operation that makes it larger and keeps the function.

In: two shapes of one family. Out: operations. The stream of width d becomes H = s * [h, ..., h (k copies), zeros],
k = D // d. With rho = k d / D its mean square is rho s^2 times the old one, so the source's norm is kept exactly by
s = sqrt(eps' / (eps rho)) and gains times sqrt(rho), for any eps' of the target; the same holds inside heads with
normalized queries. LayerNorm takes the mean away as well: there all that writes into the stream is centred first, so
that zero pads keep its mean at 0. RMSNorm needs none of that.
Post-norm (OLMo 2): attention and MLP read H itself, so their columns are divided by s; what they add passes a norm,
which takes out the scale of its input, so their rows are multiplied by s for its eps and its gains stay.
New units have one random and one zero factor, never two zeros: they change nothing at first and still get gradients.
A tied embedding is also a head. The final norm then takes s back. Under LayerNorm a row's mean is part of a logit: the
embedding keeps its mean and its pads carry it.
Related: LEMON (arXiv 2310.07999), HyperCloning (arXiv 2409.12903). New here: any ratio >= 1 by centring, changed head
size and rotary size, another eps, spread groups, all in one step.
"""

import math
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.growth.operations import (
    Centre,
    CentreHeads,
    Chain,
    Fill,
    GrowHeadCount,
    GrowHeadSize,
    Pad,
    Repeat,
    Scale,
    Share,
    Step,
    coordinate_places,
)
from model.growth.rules import Operation

NewUnits = Literal["random", "copies"]


@dataclass(frozen=True)
class Expansion:
    """The operation for each tensor. Linear weights are (out, in).

    `new_units`: how new MLP neurons and new heads start, `random` (in random, out zero) or as `copies` of old ones that
    share their outgoing weights. `noise`: how far shares differ, as `operations.share` says; it cancels.
    """

    source: ModelConfig
    target: ModelConfig
    new_units: NewUnits
    noise: float
    silent: bool = False
    """For an inserted block of a network with norms on what blocks add: their gains are 0, so what is written into the
    stream's pads is free, and random, for a gain and its input must not both start at 0."""

    def operation(self, name: str) -> Operation:
        """How to grow the source tensor whose name ends like `name`, a target tensor's."""
        module, kind = name.split(".")[-2:]
        return Chain(self._steps(module, kind == "bias"))

    def _steps(self, module: str, bias: bool) -> tuple[Step, ...]:
        if module == "embed_tokens":
            return self._tied_embedding() if self.target.tie_word_embeddings else self._writer(axis=1)
        if module == "final_layernorm" and self.target.tie_word_embeddings:
            return self._tied_head_norm() + self._norm(bias)
        if module in ("attention_output_layernorm", "mlp_output_layernorm"):
            return self._output_norm()
        if module in ("input_layernorm", "mlp_layernorm", "final_layernorm"):
            return self._norm(bias)
        if module in ("q_proj", "k_proj", "v_proj"):
            return (() if bias else self._block_reader()) + self._projection(module, bias)
        if module in ("q_layernorm", "k_layernorm"):
            return self._head_norm(module, bias)
        if module == "dense":
            return self._writer(axis=0) + (() if bias else self._dense_columns())
        if module in ("fc1", "gate_proj"):
            return (() if bias else self._block_reader()) + self._neurons(0, bias)
        if module == "fc2":
            return self._writer(axis=0) + (() if bias else self._neurons(1, True))
        return () if bias else self._reader()  # lm_head

    @property
    def _copied(self) -> int:
        """Width of the whole copies of the stream. One copy where the target is tied: nothing but the tied head tells
        the last block's copies apart, and it holds equal columns for them, so they would hardly part in training."""
        if self.target.tie_word_embeddings:
            return self.source.hidden_size
        return self.target.hidden_size // self.source.hidden_size * self.source.hidden_size

    @property
    def _pads(self) -> bool:
        return self.target.hidden_size > self._copied

    def _writer(self, axis: int) -> tuple[Step, ...]:
        """What is added to the stream: the stream's coordinates lie along `axis`."""
        steps: tuple[Step, ...] = (Centre(axis),) if self._pads and self._centres else ()
        return steps + self._into_stream(axis, "random" if self.silent else "zero")

    @property
    def _centres(self) -> bool:
        """Whether the norms take the mean away."""
        return self.target.norm == "layernorm"

    def _into_stream(self, axis: int, pads: Fill) -> tuple[Step, ...]:
        steps = self._scale_before_norm(self._copied / self.target.hidden_size)
        if self._copied > self.source.hidden_size:
            steps += (Repeat(axis, self._copied),)
        return steps + ((Pad(axis, self.target.hidden_size, pads),) if self._pads else ())

    def _tied_embedding(self) -> tuple[Step, ...]:
        """Not centred, for as a head's row its mean counts: the pads carry the mean instead, so that LayerNorm sees the
        same mean and variance. All else that is written is centred, so the pads hold the stream's mean at any depth.
        RMSNorm sees no mean: zeros there."""
        return self._into_stream(1, "mean" if self._centres else "zero")

    def _tied_head_norm(self) -> tuple[Step, ...]:
        """The head now holds the embedding's scale: the final norm takes it back. The pads come out of that norm as 0
        (their bias), so what the head holds there does not count at first."""
        factor = 1 / self._stream_scale(self._copied / self.target.hidden_size)
        return () if factor == 1 else (Scale(factor, "undoes the scale of the tied head"),)

    def _reader(self) -> tuple[Step, ...]:
        """What multiplies the normalized stream, along axis 1. Pads are 0 at first, so their columns are free."""
        steps: tuple[Step, ...] = ()
        if self._copied > self.source.hidden_size:
            steps += (Share(1, self._copied, self.noise),)
        return steps + ((Pad(1, self.target.hidden_size, "random"),) if self._pads else ())

    def _block_reader(self) -> tuple[Step, ...]:
        """What attention and MLP read: the normalized stream or, with norms on their outputs, the stream itself."""
        factor = self._stream_scale(self._copied / self.target.hidden_size)
        if self.target.block != "post" or factor == 1:
            return self._reader()
        return (Scale(1 / factor, "the stream is larger, and no norm comes before"), *self._reader())

    def _output_norm(self) -> tuple[Step, ...]:
        """The norm of what is added to the stream: it has to come out with the stream's scale. A pad's gain is free:
        it meets a zero."""
        rho = self._copied / self.target.hidden_size
        factor = math.sqrt(rho) * self._stream_scale(rho)
        steps: tuple[Step, ...] = () if abs(factor - 1) < 1e-15 else (Scale(factor, "the norm's eps weighs as before"),)
        if self._copied > self.source.hidden_size:
            steps += (Repeat(0, self._copied),)
        return steps + ((Pad(0, self.target.hidden_size, "mean"),) if self._pads else ())

    def _norm(self, bias: bool) -> tuple[Step, ...]:
        steps: tuple[Step, ...] = ()
        if self._pads and not bias:
            steps += (Scale(math.sqrt(self._copied / self.target.hidden_size), "undoes the variance of the pads"),)
        if self._copied > self.source.hidden_size:
            steps += (Repeat(0, self._copied),)
        # The pads' gain is free; the mean of the others gives the new coordinates a usual scale once they wake up.
        return steps + ((Pad(0, self.target.hidden_size, "zero" if bias else "mean"),) if self._pads else ())

    def _scale_before_norm(self, rho: float) -> tuple[Step, ...]:
        factor = self._stream_scale(rho)
        return () if factor == 1 else (Scale(factor, "the norm's eps weighs as before"),)

    def _stream_scale(self, rho: float) -> float:
        return math.sqrt(self.target.eps / (self.source.eps * rho))

    @property
    def _larger_heads(self) -> bool:
        return self._places != tuple(range(self.target.head_size))

    @property
    def _places(self) -> tuple[int, ...]:
        return coordinate_places(self.source, self.target)

    @property
    def _score_scale(self) -> tuple[Step, ...]:
        factor = math.sqrt(self.target.head_size / self.source.head_size)
        return () if factor == 1 else (Scale(factor, "scores are divided by the root of the head size"),)

    def _projection(self, module: str, bias: bool) -> tuple[Step, ...]:
        if module == "v_proj":
            return self._head_size(0, "zero" if bias else "random") + self._head_count(0, module, bias)
        if self.source.qk_norm == "none":
            steps = self._score_scale if module == "q_proj" else ()
            if self._larger_heads:  # new coordinates: random queries meet zero keys
                filling = "zero" if bias or module == "k_proj" else "random"
                steps += (GrowHeadSize(0, self.target.head_size, self._places, filling),)
            return steps + self._head_count(0, module, bias)
        old, new = self.source.head_size, self.target.head_size
        steps: tuple[Step, ...] = (CentreHeads(0, old),) if self._larger_heads and self._centres else ()
        steps += self._scale_before_norm(old / new)
        if self._larger_heads:
            steps += (GrowHeadSize(0, new, self._places, "zero"),)
        return steps + self._head_count(0, module, bias)

    def _head_norm(self, module: str, bias: bool) -> tuple[Step, ...]:
        """Normalized queries and keys: new coordinates come out of the norm as its bias, so a random one in the queries
        meets 0 in the keys, whose weights then have a gradient."""
        if self.source.qk_norm == "full":  # heads are copies of others (`limits`), and keep the mean square of all
            return self._head_count(0, "k_proj" if module == "k_layernorm" else "q_proj", bias)
        old, new = self.source.head_size, self.target.head_size
        steps: tuple[Step, ...] = ()
        if old != new and not bias:
            steps += (Scale(math.sqrt(old / new), "undoes the variance of the new coordinates"),)
        if module == "q_layernorm":
            steps += self._score_scale
        if not self._larger_heads:
            return steps
        if not bias:
            return (*steps, GrowHeadSize(0, new, self._places, "mean"))
        if module == "k_layernorm":
            return (*steps, GrowHeadSize(0, new, self._places, "zero"))
        return (*steps, GrowHeadSize(0, new, self._places, "random", std=1.0))  # a fresh norm's bias has no spread

    def _dense_columns(self) -> tuple[Step, ...]:
        return self._head_size(1, "zero") + self._head_count(1, "dense", False)

    def _head_size(self, axis: int, filling: Fill) -> tuple[Step, ...]:
        """Values have no pairs: their new coordinates simply go last."""
        old, new = self.source.head_size, self.target.head_size
        return () if old == new else (GrowHeadSize(axis, new, tuple(range(old)), filling),)

    def _head_count(self, axis: int, module: str, bias: bool) -> tuple[Step, ...]:
        before, after = grouping(self.source), grouping(self.target)
        if before == after:
            return ()
        keys = module in ("k_proj", "v_proj")
        if self.new_units == "copies":
            new = "share" if module == "dense" else "copy"
        else:
            new = "zero" if module == "dense" or bias else "random"
        return (GrowHeadCount(axis, self.target.head_size, before, after, keys, new, self.noise),)

    def _neurons(self, axis: int, outgoing_or_bias: bool) -> tuple[Step, ...]:
        size = self.target.intermediate_size
        if self.source.intermediate_size == size:
            return ()
        if self.new_units == "copies":
            return (Share(1, size, self.noise),) if axis == 1 else (Repeat(0, size),)
        return (Pad(axis, size, "zero" if outgoing_or_bias else "random"),)


def grouping(config: ModelConfig) -> tuple[int, int]:
    """Key-value heads (groups), and attention heads in each."""
    return config.kv_heads, config.num_attention_heads // config.kv_heads
