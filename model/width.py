"""How the learning rate follows the width of a network, so that a rate found on a narrow one serves a wide one.

In: the width, the width at which the rate was found, the optimizer's name. Out: factors of the learning rate for the
blocks' matrices and the head. Rule: Yang et al. 2022 (muP, arXiv 2203.03466, table 3), for the rates alone as in
Everett et al. 2024 (arXiv 2407.05872). A step of AdamW moves every weight by about the rate, and those moves agree in
direction, so a matrix that sums over `width` inputs moves its outputs by rate x width: its rate goes down with 1 /
width. A step of Muon is orthogonal and as large as one of AdamW (0.2 of the rate a weight), so it moves its outputs by
rate x sqrt(width) only: 1 / sqrt(width). The embedding is looked up and sums nothing, biases and norms neither: they
keep the rate. So does a matrix shared by embedding and head.

Nothing else is scaled: not the initialization (a grown network brings its own weights, and takes the rates of the
width it has now), not the weight decay, which is a share of the rate and so weakens with it.
"""

from typing import NamedTuple


class RateScales(NamedTuple):
    """Factors of the learning rate."""

    matrices: float = 1.0
    head: float = 1.0


ONE_RATE = RateScales()


def rate_scales(width: int, base_width: int | None, optimizer: str) -> RateScales:
    """For a network of `width` whose rate was found at `base_width` (None: one rate for all weights)."""
    if base_width is None:
        return ONE_RATE
    ratio = base_width / width
    return RateScales(matrices=ratio**0.5 if optimizer == "muon" else ratio, head=ratio)
