"""The gate: do two networks compute the same function on real text, and what does each lose on it?

In: source, grown network, token windows. Out: how far logits are apart in fp32, in fp64 where the networks are small,
and in bf16 beside the source's own rounding; both losses. Where a method promised equality and broke it, `walk.py`
finds the block. Windows go through one at a time, so memory holds the logits of one window per network.
Letters: B windows, T tokens, V vocabulary.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import Transformer

SMALL_PARAMETERS = 20_000_000  # fp64 on a CPU takes seconds up to here
LARGE_PARAMETERS = 1_000_000_000  # above it the bf16 copies of both networks may not fit beside the fp32 ones


@dataclass(frozen=True)
class GateResult:
    """What `compare` measured; losses in nats per token."""

    max_abs_logit_diff: float
    max_rel_logit_diff: float
    """Largest difference divided by the source's largest |logit|."""
    source_loss: float
    grown_loss: float


@dataclass(frozen=True)
class Rounding:
    """bf16 against the fp32 source. An absolute tolerance fails on any trained model, so the ratios are what counts.

    Judge by `rms_ratio`: the ratio of two largest errors is a matter of single logits, and was seen between 0.6 and 2.5
    for exact networks of a few thousand parameters.
    """

    source_error: float
    """Largest logit error of the source itself, computed in bf16."""
    grown_error: float
    """The same of the grown network, against the same fp32 source."""
    source_rms: float
    """Root mean square error of the source's logits in bf16."""
    grown_rms: float
    """The same of the grown network."""
    loss_diff: float
    """|loss of the grown network in bf16 - loss of the source in fp32|, nats per token."""

    @property
    def ratio(self) -> float:
        """How much larger the grown network's largest error is than the source's own."""
        return _ratio(self.grown_error, self.source_error)

    @property
    def rms_ratio(self) -> float:
        """The same of the root mean squares; about 1 for an exact growth."""
        return _ratio(self.grown_rms, self.source_rms)


@dataclass(frozen=True)
class GateReport:
    """All that the gate knows: `fp64` up to `SMALL_PARAMETERS`, `bf16` up to `LARGE_PARAMETERS`."""

    fp32: GateResult
    fp64: GateResult | None
    bf16: Rounding | None

    def facts(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        facts = asdict(self)
        if self.bf16:
            facts["bf16"] |= {"ratio": self.bf16.ratio, "rms_ratio": self.bf16.rms_ratio}
        return facts


def examine(source: Transformer, grown: Transformer, input_ids_BT: Tensor) -> GateReport:
    """Every comparison that the size allows. Both networks in fp32 (or wider), at least 2 tokens a window."""
    parameters = grown.config.parameters
    return GateReport(
        compare(source, grown, input_ids_BT),
        compare(source, grown, input_ids_BT, torch.float64) if parameters <= SMALL_PARAMETERS else None,
        compare_rounded(source, grown, input_ids_BT) if parameters <= LARGE_PARAMETERS else None,
    )


@torch.no_grad()
def compare(
    source: Transformer, grown: Transformer, input_ids_BT: Tensor, dtype: torch.dtype = torch.float32
) -> GateResult:
    """Runs both networks in `dtype` on all windows (at least 2 tokens each). The networks themselves stay as they are.

    Not-a-number logits make the differences NaN, which no tolerance admits.
    """
    source, grown = _in_dtype(source, dtype), _in_dtype(grown, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    difference = largest = torch.zeros((), dtype=wide, device=source.lm_head.weight.device)
    losses = torch.zeros(2, dtype=torch.float64)
    for ids_1T in input_ids_BT.to(difference.device).split(1):
        logits_TV, grown_TV = source(ids_1T)[0].to(wide), grown(ids_1T)[0].to(wide)
        losses += torch.tensor([_loss_sum(logits, ids_1T) for logits in (logits_TV, grown_TV)])
        difference = torch.maximum(difference, grown_TV.sub_(logits_TV).abs_().max())
        largest = torch.maximum(largest, logits_TV.abs_().max())
    source_loss, grown_loss = (losses / input_ids_BT[:, 1:].numel()).tolist()
    return GateResult(difference.item(), (difference / largest).item(), source_loss, grown_loss)


@torch.no_grad()
def compare_rounded(
    source: Transformer, grown: Transformer, input_ids_BT: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Rounding:
    """Both networks in `dtype` against the source in fp32."""
    reference = _in_dtype(source, torch.float32)
    rounded = [_in_dtype(source, dtype), _in_dtype(grown, dtype)]
    errors, squares, losses = torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for ids_1T in input_ids_BT.to(reference.lm_head.weight.device).split(1):
        exact_TV = reference(ids_1T)[0]
        logits = [network(ids_1T)[0].float() for network in rounded]
        losses += torch.tensor([_loss_sum(exact_TV, ids_1T), _loss_sum(logits[1], ids_1T)])
        errors_TV = [one.sub_(exact_TV) for one in logits]
        errors = torch.maximum(errors, torch.stack([error.abs().max().cpu() for error in errors_TV]))
        squares += torch.tensor([error.square().mean(dtype=torch.float64).item() for error in errors_TV])
    exact_loss, grown_loss = (losses / input_ids_BT[:, 1:].numel()).tolist()
    source_error, grown_error = errors.tolist()
    source_rms, grown_rms = (squares / len(input_ids_BT)).sqrt().tolist()
    return Rounding(source_error, grown_error, source_rms, grown_rms, abs(grown_loss - exact_loss))


def _ratio(grown: float, source: float) -> float:
    return grown / source if source else float(grown > 0)


def _loss_sum(logits_TV: Tensor, ids_1T: Tensor) -> float:
    return F.cross_entropy(logits_TV[:-1], ids_1T[0, 1:], reduction="sum").item()


def _in_dtype(network: Transformer, dtype: torch.dtype) -> Transformer:
    return network if network.lm_head.weight.dtype == dtype else copy.deepcopy(network).to(dtype)
