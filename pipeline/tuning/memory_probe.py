"""How much memory a training step takes, measured: by one method in a process of its own.

In: a model folder, a method, the shape of a batch. Out: bytes above what the process held before the model was loaded:
weights, gradients, optimizer, activations. On a card what torch's allocator counts, on a CPU the process' resident
set at its largest.
"""

import multiprocessing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STEPS = 2  # the first makes the optimizer's state


@dataclass(frozen=True)
class Probe:
    folder: Path
    finetune: Any  # FinetuneConfig
    sequence_length: int
    windows: int
    device: str
    precision: str
    seed: int


def measure(probe: Probe, methods: tuple[str, ...]) -> dict[str, int | None]:
    """Bytes by method; None where the process did not end well (most often: memory ran out)."""
    found: dict[str, int | None] = {}
    context = multiprocessing.get_context("spawn")
    for method in methods:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(
            target=_child, args=(replace(probe, finetune=replace(probe.finetune, method=method)), sender), daemon=True
        )
        child.start()
        sender.close()
        try:
            found[method] = receiver.recv()
        except EOFError:
            found[method] = None
        child.join()
    return found


def _child(probe: Probe, sender: Any) -> None:
    import torch

    from pipeline.training.memory import DeviceMemory, set_up_allocator
    from pipeline.training.module import PretrainModule
    from pipeline.tuning.adapters import prepare

    if probe.device == "cpu":
        torch.set_num_threads(1)
        set_up_allocator()
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))
    torch.zeros(1, device=probe.device)  # a card counts nothing before its first tensor
    memory = DeviceMemory(torch.device(probe.device))
    memory.restart_peak()
    held = memory.held_bytes()
    before = memory.newest_peak_bytes() if held is None else held
    network = prepare(probe.folder, probe.finetune, probe.device, probe.precision, probe.seed)
    train = replace(probe.finetune.train, sequence_length=probe.sequence_length,
                    global_batch_tokens=probe.windows * probe.sequence_length, compile="false")  # fmt: skip
    module = PretrainModule(network, train, probe.precision)
    ids = torch.randint(0, network.config.vocab_size, (probe.windows, probe.sequence_length), device=probe.device)
    from pipeline.training.batches import Batch

    for _ in range(STEPS):
        module.training_step(Batch(ids, ids, ids.numel()), 0)
    sender.send(max(0, memory.newest_peak_bytes() - before))
