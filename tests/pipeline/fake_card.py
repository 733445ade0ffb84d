"""The trainer's own step on a card that is not there: fake tensors of a device that has no kernels at all.

`python fake_card.py NAME...` takes the settings of these names in `CASES` and prints one JSON object a line: what
failed, copies between host and card inside a step, devices of what is kept, and the card's bytes while a checkpoint is
taken. torch's FakeTensorMode computes shapes only, on any device; a private backend in Python gives it one that is
neither the CPU nor in need of a driver. There a host read (`.item()`, `if tensor`) raises, and so do tensors of two
devices in one operation. It has to be a process of its own: the backend cannot be taken away again, and autograd's
threads know nothing of it. torch.utils.checkpoint aborts there: recomputation is traced by model/estimate.py instead.
"""

import dataclasses
import json
import math
import sys
import tempfile
import traceback
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("card")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from model import optim, updates  # noqa: E402
from model.transformer import Transformer  # noqa: E402
from pipeline import config as configs  # noqa: E402
from pipeline.storage.ledger import Ledger  # noqa: E402
from pipeline.training import module as training_module  # noqa: E402
from pipeline.training import spikes  # noqa: E402
from pipeline.training.batches import Batch, StepSizes  # noqa: E402
from pipeline.training.budget import Budget, Limits  # noqa: E402
from pipeline.training.cap import Cap  # noqa: E402
from pipeline.training.checkpoint import Checkpoints  # noqa: E402
from pipeline.training.control import Control, state_of  # noqa: E402
from pipeline.training.decisions import Decisions  # noqa: E402
from pipeline.training.devices import Machine, Threads  # noqa: E402
from pipeline.training.forecast import MemoryForecast  # noqa: E402
from pipeline.training.memory import on_host  # noqa: E402
from pipeline.training.module import PretrainModule  # noqa: E402
from pipeline.training.tracking import Metrics  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
CARD = torch.device("card")
ALL_BLOCKS_ARE_ALIKE = ("model.num_hidden_layers=2", "train.activation_checkpointing=none", "train.compile=false")
IN_BACKWARD = (
    "train.optimizer=adamw4bit", "train.optimizer_in_backward=true", "train.clip_norm=0", "train.micro_batch=0",
    "train.global_batch_tokens=4096",
)  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    "day": ("train.micro_batch=2",),
    "day-source": ("train.micro_batch=2",),
    "phi1": (),
    "phi2": (),
    "phi2-24gb": (),
    "domain-24gb": (),
    "domain-smol": (),
    "smol-360m": (),
    "phi2-24gb in backward": IN_BACKWARD,
    "phi2 4 bits": ("train.optimizer=adamw4bit",),
    "day muon": ("train.optimizer=muon", "train.micro_batch=2"),
    "day masked": ("train.mask_documents=true", "train.micro_batch=2"),
    "day fp32": ("train.precision=32-true", "train.micro_batch=2", "train.z_loss=1e-4"),
}


class OnCard(TorchDispatchMode):
    """Notes copies between host and card, and counts the bytes of the card's storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1 and function.name().split("::")[1].split(".")[0] in (
            "_to_copy",
            "copy_",
        ):
            self.copies.append(f"{function.name()} {[tuple(tensor.shape) for tensor in tensors]} {_own_lines()}")
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == CARD.type:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _own_lines() -> list[str]:
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(REPOSITORY)) and f.filename != __file__]
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]


def stand_in_for_a_driver() -> None:
    """What a device without kernels cannot do, and a card can."""
    torch.autograd.set_multithreading_enabled(False)
    for owner in (optim, updates):  # like CUDA, and unlike an unknown device, it has fused optimizers
        owner.FUSED_DEVICES = (*owner.FUSED_DEVICES, "card")
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
        """Values need a kernel; where they are made, in the constructors, the card gets a shape."""
        found = made(data, **settings)
        return found if device is None else torch.empty(found.shape, dtype=found.dtype, device=device)

    torch.tensor = tensor
    training_module.random_state = dict
    # A copy to pinned memory behind the step, and the event that it is done: there is no stream to put it on.
    spikes.begin_copy = lambda verdict: (spikes.FINE, None)


def module_of(name: str) -> tuple[PretrainModule, Batch]:
    """A config's module with its network on the card, and a batch of two micro-batches."""
    path = REPOSITORY / "configs" / f"{name.split()[0]}.yaml"
    config = configs.load(path, [*CASES[name], *ALL_BLOCKS_ARE_ALIKE])
    train = dataclasses.replace(config.train, log_every_steps=10**9)
    if not train.optimizer_in_backward:
        tokens = 2 * train.micro_batch * train.sequence_length
        train = dataclasses.replace(train, global_batch_tokens=tokens, batch_start_tokens=None)
    torch.set_default_dtype(optim.held_dtype(train.precision))
    with torch.device(CARD):
        network = Transformer(config.model)
    torch.set_default_dtype(torch.float32)
    network.document_end_id = 0 if train.mask_documents else None
    shape = (train.global_batch_tokens // train.sequence_length, train.sequence_length)
    ids_BT = torch.zeros(shape, dtype=torch.int64, device=CARD)
    return PretrainModule(network, train, train.precision), Batch(ids_BT, ids_BT, ids_BT.numel(), b"x" * 32)


def control_of(module: PretrainModule, folder: Path, ledger: Ledger) -> Control:
    """The callback that stands between two steps, with its own budget, decisions, metrics and checkpoints."""
    train, decisions = module.train_config, Decisions(folder / "decisions.jsonl")
    limits = Limits(Cap(1.0), max_steps=10**6, decay_share=0.2, max_gpu_hours=1.0, max_tokens=10**12)
    machine = Machine(CARD, "fake", train.precision, "", None, "", Threads("card"))
    memory = MemoryForecast(decisions, machine, None)
    batches: Any = SimpleNamespace(sizes=StepSizes(train), decay_from=lambda step: None)
    return Control(
        stage="pretrain", train=train, machine=machine, module=module, batches=batches, validation=None,  # type: ignore
        budget=Budget(limits, lambda: ledger.spent_seconds, decisions), metrics=Metrics(folder / "metrics.jsonl"),
        checkpoints=Checkpoints(folder / "checkpoints", 2, decisions), ledger=ledger, memory=memory, flops_per_token=1,
    )  # fmt: skip


def facts_of(name: str, folder: Path) -> dict[str, Any]:
    trainer: Any = SimpleNamespace(should_stop=False)
    with (
        FakeTensorMode(),
        OnCard() as card,
        Ledger(folder / "ledger", stage="", fingerprint="", device="card") as ledger,
    ):
        module, batch = module_of(name)
        control = control_of(module, folder, ledger)
        control.budget.begin(0)
        control._saved_at_seconds = math.inf  # however slow the machine, no checkpoint is due between these steps
        for _ in range(3):  # states are made in the first; the last is one of many
            card.copies.clear()
            module.training_step(batch, 0)
            control.on_train_batch_end(trainer, module)
        copies = list(card.copies)
        held = card.peak_bytes = card.bytes
        state = state_of(control)
        optim.are_finite(t for t in (*state.weights.values(), *state.optimizer.values()) if t.is_floating_point())
        for _ in on_host({**state.weights, **state.optimizer}.items()):
            pass
        kept = [*(t for s in module.optimizer.optimizer.state.values() for t in s.values()), *module.optimizer.masters]
        return {
            "steps": module.step,
            "copies": copies,
            "devices": sorted({tensor.device.type for tensor in (*kept, module.last_loss, module.last_verdict)}),
            "save_extra_bytes": card.peak_bytes - held,
            "largest_bytes": max(tensor.nbytes for tensor in kept),
        }


def main(names: list[str]) -> None:
    stand_in_for_a_driver()
    for name in names:
        try:
            with tempfile.TemporaryDirectory() as folder:
                facts = facts_of(name, Path(folder))
        except Exception as error:
            lines = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            facts = {"error": f"{type(error).__name__}: {str(error)[:400]}", "lines": lines[-8:]}
        print(json.dumps({"name": name, **facts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
