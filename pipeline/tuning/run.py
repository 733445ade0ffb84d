"""A fine-tuning around the shared training loop: the network that is trained, the base model measured before, the
adapter and the whole model saved after.

The network is trained with adapters (LoRA), with adapters on a base in 4 bits (QLoRA), or whole. The memory of a step
is measured once per method, each in a process of its own: bytes above what that process held before the model was
loaded (weights, gradients, optimizer, activations). On a GPU torch's allocator counts them; on a CPU it is the peak of
the process's resident set.
"""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.adapters import add_adapters, cast_frozen, is_adapted, peft_state, quantize_base, trainable_share
from model.families.family import Family
from model.hf import load_config, load_network
from model.optim import PRECISIONS, held_dtype, trained_parameters
from pipeline.config import Config, FinetuneConfig
from pipeline.config.schema import MATRICES
from pipeline.corpus.text.shards import TokenShards
from pipeline.evaluation.language_model import LanguageModel, Score, share
from pipeline.evaluation.model_input import ModelInput
from pipeline.evaluation.tasks import answer
from pipeline.release.formats import torchao
from pipeline.storage.files import write_json
from pipeline.system.errors import UserError
from pipeline.training.batches import Batch, TokenBatches
from pipeline.training.control import Control
from pipeline.training.finish import finish
from pipeline.training.loop import Training
from pipeline.training.memory import DeviceMemory, set_up_allocator
from pipeline.training.module import PretrainModule
from pipeline.training.validation import Validation
from pipeline.tuning.data import LIKELY_BELOW, Target, TuningData, add_template

BASE = "base.json"  # what the first process measured of the base
PROBE_STEPS = 2  # the first one creates the optimizer's state


@dataclass
class Tuning:
    """`config`: the experiment's; `tuned`: with the `train` and `budget` of the tuning."""

    config: Config
    tuned: Config
    model: ModelInput
    data: TuningData
    target: Target | None
    end_id: int
    folder: Path

    def run(self, training: Training) -> dict[str, Any]:
        """Trains in the shared loop, the base measured before. Returns facts for the manifest."""
        network = self._begin(training.machine)
        batches = TokenBatches(self.data.train, self.tuned, training.machine.device)
        validation = Validation(self.data.val, self.data.length, self.end_id)
        return training.run(network, batches, validation, self._finish)

    def _begin(self, machine: Any) -> Any:
        """The network to train. The first process measures the base on the target task and the memory of a step."""
        options = self.config.finetune
        path = self.folder / BASE
        if not path.is_file():
            write_json(path, {"target": self._score_base(machine), "memory_bytes": self._memory(machine)})
        network = _prepare(self.model.folder, options, machine.device, machine.precision, self.config.seed)
        trained = sum(p.numel() for p in trained_parameters(network).values())
        print(
            f"  {options.method}: {trained:,} of {network.config.parameters:,} parameters are trained "
            f"({100 * trainable_share(network):.2f}%)"
            + ("" if options.method == "full" else f", rank {options.rank} on {', '.join(options.targets)}"),
            flush=True,
        )
        return network

    def _score_base(self, machine: Any) -> dict[str, Any] | None:
        if self.target is None:
            return None
        base = self._score(load_network(self.model.folder, device=machine.device))
        below = base["score"] < LIKELY_BELOW
        verdict = "below 50%: tuning is likely to pay" if below else "not below 50%: tuning may not pay"
        print(
            f"  base model on {self.target.name}: {100 * base['score']:.1f}% (guessing "
            f"{100 * base['chance']:.0f}%), {verdict}",
            flush=True,
        )
        return base

    def _score(self, network: Any) -> Score:
        assert self.target is not None
        right = answer(LanguageModel.of(network, self.model), self.target.questions())
        return share(right, 1 / len(self.target.labels))

    def _memory(self, machine: Any) -> dict[str, int | None]:
        options = self.config.finetune
        if not options.measure_memory:
            return {}
        train = self.tuned.train
        rows = train.global_batch_tokens // train.sequence_length
        probe = _Probe(self.model.folder, options, train.sequence_length, rows, machine.device.type,
                       machine.precision, self.config.seed)  # fmt: skip
        found = _measure_memory(probe, ("full",) if options.method == "full" else (options.method, "full"))
        shown = ", ".join(f"{k} {v / 1e6:,.1f} MB" if v is not None else f"{k}: did not fit" for k, v in found.items())
        print(f"  memory of a step of {rows} x {train.sequence_length} tokens, measured: {shown}", flush=True)
        return found

    def _finish(self, control: Control) -> dict[str, Any]:
        """The model folder, the adapter beside it, the score of the tuned model; facts for the manifest."""
        network, options = control.module.network, self.config.finetune
        tokens = TokenShards(self.model.folder, {}, {}, network.config.vocab_size, self.end_id)
        facts = finish(control, self.tuned, self.folder, tokens)
        if self.data.chat:
            add_template(self.folder / "model")
        adapter = is_adapted(network)
        if adapter:
            self._save_adapter(control.module.optimizer.master_state_dict())
        base = json.loads((self.folder / BASE).read_text(encoding="utf-8"))
        return {
            **facts,
            "context_tokens": self.model.context_tokens,
            "method": options.method,
            "rank": options.rank if adapter else None,
            "targets": options.targets if adapter else None,
            "parameters": network.config.parameters,
            "trainable_parameters": sum(p.numel() for p in trained_parameters(network).values()),
            "trainable_share": round(trainable_share(network), 6),
            "target": self._gain(base["target"], network),
            "memory_bytes": base["memory_bytes"],
            "base_folder": self._base_folder(),
            "adapter": "adapter" if adapter else None,
        }

    def _gain(self, base: dict[str, Any] | None, network: Any) -> dict[str, Any] | None:
        if base is None or self.target is None:
            return None
        after = self._score(network)
        return {
            "name": self.target.name,
            "before": base["score"],
            "after": after["score"],
            "standard_error": after["standard_error"],
            "items": after["items"],
            "chance": after["chance"],
            "was_likely_to_pay": base["score"] < LIKELY_BELOW,
        }

    def _base_folder(self) -> str | None:
        """Of the pretraining that the base came from, relative to the root."""
        manifest = self.model.manifest
        if manifest is None or manifest.get("stage") != "pretrain":
            return None
        return f"artifacts/pretrain/{manifest['fingerprint']}"

    def _save_adapter(self, trained: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        options, folder = self.config.finetune, self.folder / "adapter"
        folder.mkdir(exist_ok=True)
        family = load_config(self.model.folder).kin
        save_file(peft_state(trained, family), folder / "adapter_model.safetensors", {"format": "pt"})
        targets = [family.matrices()[name] for name in adapted(family, options.targets)]
        settings = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": options.rank, "lora_alpha": options.alpha,
            "lora_dropout": options.dropout, "target_modules": targets, "bias": "none", "fan_in_fan_out": False,
            "base_model_name_or_path": str(self.model.folder), "inference_mode": True,
        }  # fmt: skip
        write_json(folder / "adapter_config.json", settings)


def adapted(family: Family, targets: Sequence[str]) -> list[str]:
    """Our names of the matrices that `finetune.targets` means, by our names or the family's; the default: all.

    Raises `UserError` for one that the family does not have.
    """
    known = family.matrices()
    if tuple(targets) == MATRICES:
        return list(known)
    ours = known | {stored: name for name, stored in known.items()} | {name: name for name in known}
    for target in targets:
        if target not in ours:
            raise UserError(
                f"finetune.targets has '{target}', and a model of the family {family.name} has: "
                f"{', '.join(known.values())}"
            )
    return [name for name in known if name in {ours[target] for target in targets}]


def _prepare(folder: Path, options: FinetuneConfig, device: Any, precision: str, seed: int) -> Any:
    """The model of a folder on a device, ready to be trained by `options.method` in `precision`."""
    if options.method == "full":
        return load_network(folder, held_dtype(precision), device=device)
    network = load_network(folder)
    torchao()  # peft imports it too: imported here first, without the lines that it prints
    if options.method == "qlora":
        quantize_base(network)
    add_adapters(
        network, adapted(network.config.kin, options.targets), options.rank, options.alpha, options.dropout, seed
    )
    cast_frozen(network, PRECISIONS[precision])
    return network.to(device)


@dataclass(frozen=True)
class _Probe:
    folder: Path
    finetune: FinetuneConfig
    sequence_length: int
    windows: int
    device: str
    precision: str
    seed: int


def _measure_memory(probe: _Probe, methods: tuple[str, ...]) -> dict[str, int | None]:
    """Bytes by method; None where the process failed (most often because memory ran out)."""
    found: dict[str, int | None] = {}
    context = multiprocessing.get_context("spawn")
    for method in methods:
        receiver, sender = context.Pipe(duplex=False)
        own = replace(probe, finetune=replace(probe.finetune, method=method))
        child = context.Process(target=_measure_steps, args=(own, sender), daemon=True)
        child.start()
        sender.close()
        try:
            found[method] = receiver.recv()
        except EOFError:
            found[method] = None
        child.join()
    return found


def _measure_steps(probe: _Probe, sender: Any) -> None:
    if probe.device == "cpu":
        torch.set_num_threads(1)
        set_up_allocator()
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))  # buffers of the library, which are not the method's
    torch.zeros(1, device=probe.device)  # a GPU counts nothing before its first tensor
    memory = DeviceMemory(torch.device(probe.device))
    memory.restart_peak()
    held = memory.held_bytes()
    before = memory.newest_peak_bytes() if held is None else held
    network = _prepare(probe.folder, probe.finetune, probe.device, probe.precision, probe.seed)
    train = replace(probe.finetune.train, sequence_length=probe.sequence_length,
                    global_batch_tokens=probe.windows * probe.sequence_length, compile="false")  # fmt: skip
    module = PretrainModule(network, train, probe.precision)
    ids = torch.randint(0, network.config.vocab_size, (probe.windows, probe.sequence_length), device=probe.device)
    for _ in range(PROBE_STEPS):
        module.training_step(Batch(ids, ids, ids.numel()), 0)
    sender.send(max(0, memory.newest_peak_bytes() - before))
