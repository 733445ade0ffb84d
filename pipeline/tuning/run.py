"""One tuning around the shared training loop: the base measured first, the adapter and the whole model saved last."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.adapters import is_adapted, peft_state, trainable_share
from model.optim import trained_parameters
from pipeline.config import Config
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.evaluation.language_model import LanguageModel
from pipeline.evaluation.model_input import TakenModel
from pipeline.evaluation.scores import share
from pipeline.evaluation.tasks import answer
from pipeline.storage.files import write_json
from pipeline.training.control import Control
from pipeline.training.finish import finish
from pipeline.tuning.adapters import prepare
from pipeline.tuning.chat import add_template
from pipeline.tuning.data import TuningData
from pipeline.tuning.memory_probe import Probe, measure
from pipeline.tuning.targets import LIKELY_BELOW, Target

BASE = "base.json"  # what was measured of the base in the first life


@dataclass
class Tuning:
    """`config`: the experiment's; `tuned`: with the `train` and `budget` of the tuning."""

    config: Config
    tuned: Config
    model: TakenModel
    data: TuningData
    target: Target | None
    end_id: int
    folder: Path

    def begin(self, machine: Any) -> Any:
        """The network to train; before, once, the base on the target task and the memory of a step."""
        options = self.config.finetune
        path = self.folder / BASE
        if not path.is_file():
            write_json(path, {"target": self._score_base(machine), "memory_bytes": self._memory(machine)})
        network = prepare(self.model.folder, options, machine.device, machine.precision, self.config.seed)
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
        from model.hf import load_network

        base = self._score(load_network(self.model.folder).to(machine.device))
        likely = base["score"] < LIKELY_BELOW
        verdict = (
            "below 50%: tuning is likely to pay"
            if likely
            else "not below 50%: there is less to gain, tuning may not pay"
        )
        print(
            f"  base model on {self.target.name}: {100 * base['score']:.1f}% (guessing "
            f"{100 * base['chance']:.0f}%), {verdict}",
            flush=True,
        )
        return base

    def _score(self, network: Any) -> dict[str, Any]:
        assert self.target is not None
        tokenizer, stop_ids = load_tokenizer(self.model.tokenizer_json), self.model.special_tokens().stop_ids
        model = LanguageModel(network.eval(), tokenizer, self.end_id, self.model.context_tokens, stop_ids=stop_ids)
        return share(answer(model, self.target.questions()), 1 / len(self.target.labels))

    def _memory(self, machine: Any) -> dict[str, int | None]:
        options = self.config.finetune
        if not options.measure_memory:
            return {}
        train = self.tuned.train
        rows = train.global_batch_tokens // train.sequence_length
        probe = Probe(
            self.model.folder, options, train.sequence_length, rows, machine.device.type, machine.precision,
            self.config.seed,
        )  # fmt: skip
        found = measure(probe, ("full",) if options.method == "full" else (options.method, "full"))
        shown = ", ".join(f"{k} {v / 1e6:,.1f} MB" if v is not None else f"{k}: did not fit" for k, v in found.items())
        print(f"  memory of a step of {rows} x {train.sequence_length} tokens, measured: {shown}", flush=True)
        return found

    def finish(self, control: Control) -> dict[str, Any]:
        """The model folder, the adapter beside it, the score of the tuned model; facts for the manifest."""
        network, options = control.module.network, self.config.finetune
        tokens = TokenShards(self.model.folder, {}, {}, network.config.vocab_size, self.end_id)
        facts = finish(control, self.tuned, self.folder, tokens)
        if any(source.get("type") == "chat" for source in options.sources.values()):
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
        save_file(peft_state(trained), folder / "adapter_model.safetensors", {"format": "pt"})
        settings = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": options.rank, "lora_alpha": options.alpha,
            "lora_dropout": options.dropout, "target_modules": list(options.targets), "bias": "none",
            "fan_in_fan_out": False, "base_model_name_or_path": str(self.model.folder),
            "inference_mode": True,
        }  # fmt: skip
        write_json(folder / "adapter_config.json", settings)
