"""Optimizers, and the fp32 master weights of a network that computes in bf16.

In: a network with gradients. Out: updated weights and the gradient's norm. One class serves all precisions:
"bf16-mixed" (bf16 weights and gradients, fp32 masters and sums), "bf16-true" (bf16 only: updates below about 2^-9 of a
weight are lost), "bf16-sr" (bf16 weights, updates computed in fp32 and rounded stochastically, so that small ones
count on average), "32-true" (fp32 only). Nothing here waits for a GPU: the norm is returned as a tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer

from model.updates import FUSED_DEVICES, Muon, SlicedAdamW, Updates, add_stochastically

PRECISIONS = {
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "bf16-sr": torch.bfloat16,
    "32-true": torch.float32,
}


class RateScales(NamedTuple):
    """Factors of the learning rate."""

    matrices: float = 1.0
    head: float = 1.0


ONE_RATE = RateScales()


def parameter_groups(network: nn.Module, weight_decay: float, scales: RateScales = ONE_RATE) -> list[dict[str, Any]]:
    """Three groups: the blocks' matrices (marked `matrices`) and the head's decay, everything else does not.
    `rate_scale`: what the learning rate is multiplied by.

    Biases and norms are offsets and scales, where a pull to 0 changes the function without regularizing it. The
    embedding is a matrix by form only: a row sees a gradient when its token occurs, and would decay at every step, so
    that rare tokens shrink towards 0.
    """
    linear = {
        id(module.weight): "lm_head" in name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }
    parameters = trained_parameters(network).values()
    of_blocks = [p for p in parameters if linear.get(id(p)) is False]
    of_head = [p for p in parameters if linear.get(id(p)) is True]
    others = [p for p in parameters if id(p) not in linear]
    return [
        {"params": of_blocks, "weight_decay": weight_decay, "rate_scale": scales.matrices, "matrices": True},
        {"params": of_head, "weight_decay": weight_decay, "rate_scale": scales.head},
        {"params": others, "weight_decay": 0.0, "rate_scale": 1.0},
    ]


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """By name; frozen ones (the base under an adapter) get no master, no gradient, no optimizer state."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def held_dtype(precision: str) -> torch.dtype:
    """In which a network's values are kept, and so loaded: that of the masters where they exist, else the weights'."""
    return torch.float32 if precision == "bf16-mixed" else PRECISIONS[precision]


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """A truth value for each, on their device. Lowest and highest value are found in one pass and keep what is not
    finite; `isfinite` of a whole tensor would take a quarter to all of its bytes again."""
    return torch.stack([torch.isfinite(torch.stack(torch.aminmax(tensor))).all() for tensor in tensors])


def needs_slices(precision: str, in_backward: bool) -> bool:
    """Whether an optimizer must be one of `model.updates`: for stochastic rounding, and tensor by tensor."""
    return precision == "bf16-sr" or in_backward


def adamw(
    groups: list[dict[str, Any]], learning_rate: float, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8,
    sliced: bool = False, bits: int = 32,
) -> Optimizer:  # fmt: skip
    """AdamW (arXiv 1711.05101), fused into one kernel where the device has it. beta2 0.95: short runs, large steps.

    `sliced`: ours instead of torch's, with fp32 moments for any weights (see `needs_slices`). `bits` of each moment:
    under 32 it is ours too.
    """
    if sliced or bits < 32:
        return SlicedAdamW(groups, learning_rate, (beta1, beta2), eps, bits)
    device = groups[0]["params"][0].device.type
    return AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=eps, fused=device in FUSED_DEVICES or None)


def adamw8bit(groups: list[dict[str, Any]], learning_rate: float, **settings: Any) -> Optimizer:
    """AdamW with both moments in 8 bits, block by block (arXiv 2110.02861): 2.03 bytes a parameter instead of 8."""
    return adamw(groups, learning_rate, bits=8, **settings)


def adamw4bit(groups: list[dict[str, Any]], learning_rate: float, **settings: Any) -> Optimizer:
    """AdamW with both moments in 4 bits, block by block (arXiv 2309.01507): 1.06 bytes a parameter instead of 8."""
    return adamw(groups, learning_rate, bits=4, **settings)


def muon(
    groups: list[dict[str, Any]], learning_rate: float, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8,
    sliced: bool = True, momentum: float = 0.95,
) -> Optimizer:  # fmt: skip
    """Muon (arXiv 2502.16982) for the blocks' matrices, AdamW for embedding, head, norms and biases; one rate."""
    return Muon(groups, momentum, lr=learning_rate, betas=(beta1, beta2), eps=eps)


def rate_scales(width: int, base_width: int | None, optimizer: str) -> RateScales:
    """For a network of `width` whose rate was found at `base_width` (None: one rate for all weights).

    Yang et al. 2022 (muP, arXiv 2203.03466, table 3), for the rates alone as in Everett et al. 2024 (arXiv 2407.05872).
    A step of AdamW moves every weight by about the rate, and those moves agree in direction, so a matrix that sums over
    `width` inputs moves its outputs by rate x width: its rate goes down with 1 / width. A step of Muon is orthogonal
    and as large as one of AdamW (0.2 of the rate a weight), so it moves its outputs by rate x sqrt(width) only. The
    embedding is looked up and sums nothing, biases and norms neither: they keep the rate, and so does a matrix shared
    by embedding and head. Neither the initialization is scaled (a grown network brings its own weights) nor the weight
    decay, which is a share of the rate.
    """
    if base_width is None:
        return ONE_RATE
    ratio = base_width / width
    return RateScales(matrices=ratio**0.5 if optimizer == "muon" else ratio, head=ratio)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adamw4bit": adamw4bit,
    "muon": muon,
}


class MasterWeights:
    """Drives any torch optimizer for a network in any of the three precisions.

    `MasterWeights(network, lambda groups: OPTIMIZERS["adamw"](groups, learning_rate=1e-3), precision="bf16-mixed")`
    casts the network in place (give it in fp32 and on its device: its values become the masters). Per micro-batch:
    `backward()`, then `accumulate()`. Per optimizer step: `set_learning_rate`, then `step(clip_norm)`.
    `optimizer` is the torch optimizer inside (over the masters), for those who need its `param_groups`.

    `in_backward`: each weight is updated, and its gradient freed, as soon as the backward pass has it: all gradients
    never exist together. One backward pass per step and no clipping; a gradient that is not finite leaves its own
    tensor alone while the others move. Needs an optimizer of `model.updates`.
    """

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        precision: str = "bf16-mixed",
        weight_decay: float = 0.1,
        in_backward: bool = False,
        scales: RateScales = ONE_RATE,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"train.precision is {precision!r}; it must be one of: {', '.join(PRECISIONS)}.")
        self.precision = precision
        trained = trained_parameters(network)
        self.names, self.weights = list(trained), list(trained.values())
        groups = parameter_groups(network, weight_decay, scales)
        self.masters = self._make_masters()
        master_of = {id(w): m for w, m in zip(self.weights, self.masters, strict=True)}
        for group in groups:
            group["params"] = [master_of[id(weight)] for weight in group["params"]]
        groups = [group for group in groups if group["params"]]
        self.optimizer = make_optimizer(groups)
        for group in self.optimizer.param_groups:
            group["lr"] *= group["rate_scale"]
        if precision == "bf16-sr":
            if not isinstance(self.optimizer, SlicedAdamW):
                raise ValueError("precision bf16-sr needs an optimizer that rounds stochastically: pass sliced=True.")
            self.optimizer.stochastic = True
        self.in_backward = in_backward
        self._squares: list[Tensor] = []  # of the gradients that the backward pass has used up
        if in_backward:
            self._step_in_backward()
        elif precision == "bf16-sr":
            for weight in self.weights:
                weight.register_post_accumulate_grad_hook(self._add_to_sum)
        self._sums: dict[int, Tensor] = {}  # of bf16-sr's gradients over the micro-batches, by the weight's identity

    def gradient(self, weight: Tensor) -> Tensor | None:
        """Of one of the network's weights, as far as it is summed up; None where there is none yet."""
        return self._sums.get(id(weight), weight.grad)

    @torch.no_grad()
    def _add_to_sum(self, weight: Tensor) -> None:
        """Gradients of many micro-batches in bf16: rounded up or down by chance, small ones are not lost in the sum."""
        assert weight.grad is not None
        gradient, weight.grad = weight.grad, None
        before = self._sums.setdefault(id(weight), gradient)
        if before is not gradient:
            add_stochastically(before, gradient)

    def _step_in_backward(self) -> None:
        optimizer = self.optimizer
        if not isinstance(optimizer, Updates):
            raise ValueError("a step inside the backward pass needs an optimizer that updates tensor by tensor.")
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        master_of = {id(w): m for w, m in zip(self.weights, self.masters, strict=True)}

        def update(weight: Tensor) -> None:
            master = master_of[id(weight)]
            if self.has_masters:
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
            self._squares.append(torch.linalg.vector_norm(master.grad, dtype=torch.float32).square())
            optimizer.found_inf = (~torch.isfinite(self._squares[-1])).float()
            with torch.no_grad():
                optimizer.update(group_of[id(master)], [master])
                master.grad = None
                if self.has_masters:
                    weight.copy_(master)

        for weight in self.weights:
            weight.register_post_accumulate_grad_hook(update)

    def _make_masters(self) -> list[nn.Parameter]:
        dtype = PRECISIONS[self.precision]
        masters = []
        for weight in self.weights:
            if self.precision == "bf16-mixed":
                masters.append(nn.Parameter(weight.detach().float()))  # fp32 already: the same memory, no copy
            weight.data = weight.data.to(dtype)
        return masters or self.weights

    @property
    def has_masters(self) -> bool:
        """Whether fp32 copies exist beside the network's own weights."""
        return self.masters is not self.weights

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the rate for the next step: in every parameter group times its `rate_scale`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_scale"]

    def accumulate(self) -> None:
        """Moves the network's bf16 gradients of one micro-batch into fp32 sums and frees them.

        Without masters the sums stay in the weights' dtype, in "bf16-sr" rounded stochastically. After the
        last micro-batch the call may be left out: `step` does it.
        """
        if not self.has_masters or self.in_backward:
            return
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def step(self, clip_norm: float | None = None, accept: Callable[[Tensor], Tensor] = torch.isfinite) -> Tensor:
        """One optimizer step; returns the gradient's norm before clipping, as an fp32 tensor on the device.

        Where `accept(norm)`, a truth value on the device, is false, weights, masters and optimizer state stay
        untouched: check the returned norm when you next look at numbers anyway. Gradients are freed in either case.
        """
        if self.in_backward:
            return self._end_backward(clip_norm)
        self.accumulate()
        for weight in self.weights:
            if id(weight) in self._sums:
                weight.grad = self._sums.pop(id(weight))
        updated = [master for master in self.masters if master.grad is not None]
        norm = _global_norm([master.grad for master in updated if master.grad is not None])
        if clip_norm is not None:
            clip_grads_with_norm_(updated, clip_norm, norm)
        self._step_if(accept(norm))
        if self.has_masters:
            torch._foreach_copy_(self.weights, self.masters)  # pyright: ignore  (one launch for many tensors)
        self.zero_grad()
        return norm

    def _end_backward(self, clip_norm: float | None) -> Tensor:
        if clip_norm is not None:
            raise ValueError("a step inside the backward pass cannot clip by the norm of all gradients.")
        norm = torch.stack(self._squares).sum().sqrt()
        self._squares.clear()
        return norm

    def _step_if(self, accepted: Tensor) -> None:
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # Fused kernels read this flag on the device, as they do for torch's GradScaler: no host sync.
            self.optimizer.found_inf = (~accepted).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif accepted:
            self.optimizer.step()

    def zero_grad(self) -> None:
        """Frees all gradients, also those of micro-batches that were not stepped."""
        self._sums.clear()
        for tensor in (*self.weights, *self.masters):
            tensor.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Flat names to tensors, without copies: "master/<parameter>" and "<state>/<parameter>" (exp_avg, step, ...).

        Hyperparameters are not in it: they come from the config and the schedule. Fits safetensors as well as
        torch.load(weights_only=True).
        """
        state = {f"master/{name}": tensor for name, tensor in self.master_state_dict().items()}
        for name, master in zip(self.names, self.masters, strict=True):
            state |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(master, {}).items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores masters, the network's weights and the optimizer's state. Raises ValueError where names differ."""
        per_name = _by_parameter(state, self.names)
        for name, weight, master in zip(self.names, self.weights, self.masters, strict=True):
            master.copy_(per_name[name].pop("master"))
            if self.has_masters:
                weight.copy_(master)
            # Not the optimizer's own load_state_dict: it would cast codes and fp32 moments to the weight's dtype.
            state = {key: value.to(master.device, copy=True) for key, value in per_name[name].items()}
            if state:
                self.optimizer.state[master] = state

    def master_state_dict(self) -> dict[str, Tensor]:
        """Parameter names to masters where they exist, else to the weights, for export and checkpoints. No copies, also
        not to fp32: a card that can train a model has no room for them."""
        return {name: master.detach() for name, master in zip(self.names, self.masters, strict=True)}


def _global_norm(gradients: list[Tensor]) -> Tensor:
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        return get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def _by_parameter(state: Mapping[str, Tensor], names: list[str]) -> dict[str, dict[str, Tensor]]:
    """{"exp_avg/lm_head.bias": t} as {"lm_head.bias": {"exp_avg": t}}, checked against the network's names."""
    per_name: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, tensor in state.items():
        kind, _, name = key.partition("/")
        if name not in per_name:
            raise ValueError(f"the optimizer state has {key!r}, but the network has no parameter {name!r}.")
        per_name[name][kind] = tensor
    missing = [name for name, found in per_name.items() if "master" not in found]
    if missing:
        raise ValueError(f"the optimizer state lacks {len(missing)} parameters of the network, first {missing[0]!r}.")
    return per_name
