"""The gate: do two networks compute the same function on real text, and what does each lose on it?

In: source, grown network, token windows. Out: how far logits are apart, and both losses. Windows go through one at a
time, so memory holds the logits of one window per network, whatever the number of windows.
Letters: B windows, T tokens, V vocabulary.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import Transformer


@dataclass(frozen=True)
class GateResult:
    """What `compare` measured; losses in nats per token."""

    max_abs_logit_diff: float
    max_rel_logit_diff: float
    """Largest difference divided by the source's largest |logit|."""
    source_loss: float
    grown_loss: float


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
        for index, logits in enumerate((logits_TV, grown_TV)):
            losses[index] += F.cross_entropy(logits[:-1], ids_1T[0, 1:], reduction="sum").item()
        difference = torch.maximum(difference, grown_TV.sub_(logits_TV).abs_().max())
        largest = torch.maximum(largest, logits_TV.abs_().max())
    tokens = input_ids_BT.shape[0] * (input_ids_BT.shape[1] - 1)
    source_loss, grown_loss = (losses / tokens).tolist()
    return GateResult(difference.item(), (difference / largest).item(), source_loss, grown_loss)


def _in_dtype(network: Transformer, dtype: torch.dtype) -> Transformer:
    return network if network.lm_head.weight.dtype == dtype else copy.deepcopy(network).to(dtype)
