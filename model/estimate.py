"""Peak memory of a training step before anything is bought or built: a real step on fake tensors, counted.

In: a model's shape, the settings that decide memory, the windows of a micro-batch. Out: bytes by kind at the peak.
The step is the one that trains (model, loss, optimizer, policies), run twice under torch's FakeTensorMode, which
computes shapes only; every storage is counted from its birth to its end. Each phase's peak is linear in blocks and in
windows, so 2 and 3 blocks of 1 and 2 windows tell the rest. The backward pass is three phases (last block, first block,
between): activations are all there in its first, gradients in its last, and which is larger changes with depth.
Tensors are fake CPU tensors: attention goes through SDPA and the loss takes the chunks of a GPU, which keep what a GPU
keeps; what is made and freed inside a function of model/fused.py is no tensor there, and is not counted. Not seen: the
CUDA context, workspaces of its libraries, blocks that the allocator rounds up or cannot join, what torch.compile fuses
in the blocks; `OVERHEAD_BYTES` and `FRAGMENTATION` stand for them and are unmeasured so far.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import fused, updates
from model.config import ModelConfig
from model.loss import GPU_CHUNK_TOKENS
from model.optim import OPTIMIZERS, MasterWeights, are_finite, held_dtype, needs_slices
from model.transformer import Transformer

KINDS = ("weights", "gradients", "optimizer", "activations", "loss", "workspace")
OVERHEAD_BYTES = int(1.2 * 2**30)  # CUDA context and library workspaces; unmeasured
FRAGMENTATION = 1.04  # share the caching allocator holds above what is allocated; unmeasured
BETWEEN = "backward between"
BLOCKS, WINDOWS = (2, 3), (1, 2)
TRACED_SLICES = 2


@dataclass(frozen=True)
class TrainSettings:
    """What of a training's settings decides its memory; fields as in the `train` section of a config."""

    sequence_length: int
    precision: str = "bf16-mixed"
    optimizer: str = "adamw"
    activation_checkpointing: str = "none"
    optimizer_in_backward: bool = False
    accumulate: bool = False  # more than one micro-batch a step
    device_type: str = "cuda"  # "cpu": the kernels and chunks that a CPU takes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one card. `by_kind` sums to `traced_bytes`; `needed_bytes` adds what a trace cannot see.

    `windows`: of the micro-batch that this is for. `fits`: None where no device was named.
    """

    windows: int
    by_kind: dict[str, int]
    phase: str
    fits: bool | None

    @property
    def traced_bytes(self) -> int:
        return sum(self.by_kind.values())

    @property
    def needed_bytes(self) -> int:
        return needed_bytes(self.traced_bytes)


def needed_bytes(traced_bytes: int) -> int:
    """With the share and the constant for what no trace sees."""
    return int(traced_bytes * FRAGMENTATION) + OVERHEAD_BYTES


class Plan:
    """The traces of one model and its settings; answers for any number of windows. Making one takes seconds."""

    def __init__(self, config: ModelConfig, settings: TrainSettings) -> None:
        self.layers = config.num_hidden_layers
        self.blocks = (self.layers,) if self.layers <= BLOCKS[-1] else BLOCKS
        self._traces: dict[tuple[int, int], dict[str, dict[str, int]]] = {}
        for blocks in self.blocks:
            found = trace_steps(config.with_blocks(blocks), settings, WINDOWS)
            self._traces |= {(blocks, windows): trace for windows, trace in zip(WINDOWS, found, strict=True)}

    def estimate(self, windows: int, device_memory_bytes: int | None = None) -> MemoryEstimate:
        phases = dict.fromkeys(phase for trace in self._traces.values() for phase in trace)
        if len(self.blocks) > 1:
            phases.pop(BETWEEN, None)  # lies between its neighbours in memory too, and two blocks have none between
        totals = {phase: {kind: self._extend(phase, kind, windows) for kind in KINDS} for phase in phases}
        phase = max(totals, key=lambda name: sum(totals[name].values()))
        found = MemoryEstimate(windows, totals[phase], phase, None)
        if device_memory_bytes is None:
            return found
        return replace(found, fits=found.needed_bytes <= device_memory_bytes)

    def largest(self, choices: list[int], device_memory_bytes: int) -> MemoryEstimate | None:
        """The largest of the `choices` of windows that fits, or None."""
        for windows in sorted(choices, reverse=True):
            found = self.estimate(windows, device_memory_bytes)
            if found.fits:
                return found
        return None

    def _extend(self, phase: str, kind: str, windows: int) -> int:
        """Linear in windows, then linear in blocks; never below 0."""
        at = []
        for blocks in self.blocks:
            one, two = (self._traces[blocks, count].get(phase, {}).get(kind, 0) for count in WINDOWS)
            at.append(one + (two - one) * (windows - 1))
        if len(at) > 1:
            at[0] += (at[-1] - at[0]) / (self.blocks[-1] - self.blocks[0]) * (self.layers - self.blocks[0])
        return max(0, round(at[0]))


def trace_steps(
    config: ModelConfig, settings: TrainSettings, windows: Sequence[int]
) -> list[dict[str, dict[str, int]]]:
    """For each number of windows a micro-batch: phase -> bytes by kind at that phase's peak. Phases are those of a
    step, once the optimizer has its states, and the loading and saving of the model. All on one network."""
    with FakeTensorMode(), _Storages(settings.device_type) as storages, fused.watched(storages.fused):
        storages.begin("loading", "weights")
        network = _loaded(config, settings.precision)
        network.activation_checkpointing = settings.activation_checkpointing
        network.attention_kernel = "auto" if settings.device_type == "cpu" else "sdpa"
        sliced = needs_slices(settings.precision, settings.optimizer_in_backward)
        make = lambda groups: OPTIMIZERS[settings.optimizer](groups, learning_rate=1e-3, sliced=sliced)  # noqa: E731
        weights = MasterWeights(network, make, settings.precision, in_backward=settings.optimizer_in_backward)
        for kind, tensors in (("weights", weights.weights), ("optimizer", weights.masters)):
            if kind == "weights" or weights.has_masters:
                storages.name(tensors, kind)
        loading = dict(storages.peaks["loading"])
        for parameter in {id(p): p for p in (*weights.weights, *weights.masters)}.values():
            parameter.register_post_accumulate_grad_hook(lambda p: storages.name([weights.gradient(p)], "gradients"))
        _mark_backward(network, storages)
        with _first_slices(0):  # the states are made, and nothing else is worth the time
            _some_gradients(weights)
            _update(weights, settings, storages)
        traces = []
        for count in windows:
            with _first_slices(0):
                if settings.accumulate:  # sums of the micro-batches before this one
                    storages.begin("", "gradients")
                    _some_gradients(weights)
                    weights.accumulate()
            with _first_slices(TRACED_SLICES):
                storages.peaks.clear()
                ids_BT = torch.zeros((count, settings.sequence_length), dtype=torch.int64)
                _micro_batch(network, ids_BT, settings.device_type, storages)
                if not settings.optimizer_in_backward:
                    storages.begin("accumulation", "gradients")
                    weights.accumulate()
                    storages.begin("optimizer", "workspace")
            with _first_slices(0 if traces else TRACED_SLICES):
                _update(weights, settings, storages)
            trace = {phase: dict(kinds) for phase, kinds in storages.peaks.items()}
            if traces and "optimizer" in trace:  # the windows are gone by then: the same for any number of them
                trace["optimizer"] = traces[0]["optimizer"]
            traces.append(trace)
        storages.begin("saving", "workspace")  # an export takes the same tensors, and no more of them
        are_finite(tensor for tensor in weights.state_dict().values() if tensor.is_floating_point())
        rest = {"loading": loading, "saving": dict(storages.peaks["saving"])}
        return [trace | rest for trace in traces]


def _loaded(config: ModelConfig, precision: str) -> Transformer:
    """As `load_network` makes it: every tensor in the numbers that it is kept in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(held_dtype(precision))
    try:
        return Transformer(config)
    finally:
        torch.set_default_dtype(before)


def _some_gradients(weights: MasterWeights) -> None:
    """Of every weight, by the backward pass of a sum: a hundredth of the work of a real one."""
    torch.stack([weight.sum() for weight in weights.weights]).sum().backward()


def _update(weights: MasterWeights, settings: TrainSettings, storages: "_Storages") -> None:
    weights.step(None if settings.optimizer_in_backward else 1.0)
    for state in weights.optimizer.state.values():
        storages.name(list(state.values()), "optimizer")


@contextmanager
def _first_slices(count: int) -> Iterator[None]:
    """Of a tensor that is updated slice by slice only the first: while the second is made, what the first left is
    there, as before any later one, so two show the peak of all; an embedding of Phi-2 has 16 of them."""
    every = updates.slices
    updates.slices = lambda values: islice(every(values), count)
    try:
        yield
    finally:
        updates.slices = every


def _micro_batch(network: Transformer, ids_BT: torch.Tensor, device_type: str, storages: "_Storages") -> None:
    storages.begin("forward", "activations")
    h_ND = network.hidden(ids_BT).flatten(0, 1)
    storages.begin("loss", "loss")
    loss_sum = network.head_loss(h_ND, ids_BT, None if device_type == "cpu" else GPU_CHUNK_TOKENS)[0]
    storages.begin("backward of the last block", "workspace")
    (loss_sum / ids_BT.numel()).backward()


def _mark_backward(network: Transformer, storages: "_Storages") -> None:
    """The phases of the backward pass begin where the gradient of a block's output arrives."""
    layers = network.model.layers
    if len(layers) < 2:
        return
    for block, phase in ((layers[-2], BETWEEN), (layers[0], "backward of the first block")):

        def mark(module: Any, args: Any, output: torch.Tensor, phase: str = phase) -> None:
            if storages.phase == "forward":  # not where the block is recomputed
                output.register_hook(lambda _: storages.begin(phase, "workspace"))

        block.register_forward_hook(mark)


class _Storages(TorchDispatchMode):
    """Counts the storages that operations make: living bytes by kind, and the kinds at each phase's peak."""

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.peaks: dict[str, Counter[str]] = {}
        self._living: Counter[str] = Counter()
        self._kinds: dict[int, list[Any]] = {}
        self._kind, self.phase, self._total, self._most = "weights", "", 0, 0
        self._inside = False  # a fused function

    def begin(self, phase: str, kind: str) -> None:
        """From here on new storages are of this kind and the peak is this phase's."""
        self.phase, self._kind = phase, kind
        self._most = sum(self.peaks.get(phase, Counter()).values())
        self._note()

    def name(self, tensors: list[Any], kind: str) -> None:
        """Puts what is already counted into another kind."""
        for tensor in tensors:
            entry = self._kinds.get(tensor.untyped_storage()._cdata) if tensor is not None else None
            if entry is not None:
                self._living[entry[0]] -= entry[1]
                self._living[kind] += entry[1]
                entry[0] = kind

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not self._inside:
            self._count_all(out)
        return out

    def fused(self, function: fused.Fused, args: tuple[Any, ...]) -> Any:
        """A call of a function whose temporaries a card does not have: what it returns is counted alone."""
        self._inside = self.device_type == "cuda"
        out = function.function(*args)
        self._inside = False
        self._count_all(out)
        return out

    def _count_all(self, out: Any) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._kinds:
            return
        entry = [self._kind, storage.nbytes()]
        self._kinds[key] = entry
        weakref.finalize(storage, self._forget, key)
        self._living[entry[0]] += entry[1]
        self._total += entry[1]
        self._note()

    def _note(self) -> None:
        if self.phase and self._total > self._most:
            self._most = self._total
            self.peaks[self.phase] = self._living.copy()

    def _forget(self, key: int) -> None:
        kind, count = self._kinds.pop(key)
        self._living[kind] -= count
        self._total -= count
