"""Our arms: the module and loop of `hornbook pretrain`, bare and in Lightning with all that a run has."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import ModelConfig
from model.transformer import Transformer
from pipeline import config as configs
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.training import devices
from pipeline.training.batches import Batch, TokenBatches
from pipeline.training.forecast import MemoryForecast
from pipeline.training.module import PretrainModule
from scripts.train_bench.race import Meter
from scripts.train_bench.shapes import CLIP_NORM, LEARNING_RATE, ROTARY_SHARE, WEIGHT_DECAY, Shape, pool


def model_config(shape: Shape) -> ModelConfig:
    return ModelConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, partial_rotary_factor=ROTARY_SHARE,
        max_position_embeddings=shape.tokens,
    )  # fmt: skip


def experiment(shape: Shape, **train: Any) -> configs.Config:
    """A config of the shape, with the peers' learning rate and decay."""
    values: dict[str, Any] = {
        "sequence_length": shape.tokens, "global_batch_tokens": shape.step_tokens, "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY, "clip_norm": CLIP_NORM, "device": "cpu", **train,
    }  # fmt: skip
    model = {**model_config(shape).__dict__}
    return configs.from_values({"name": "bench", "model": model, "train": values}, where="bench")


def token_set(name: str, ids: np.ndarray) -> TokenSet:
    """One document of these ids."""
    index = np.array([(0, len(ids), 4 * len(ids), 0.5)], dtype=INDEX_DTYPE)
    return TokenSet(name, ids.astype(np.uint16), index)


def module_of(
    config: configs.Config, start: Mapping[str, float] | None = None
) -> tuple[PretrainModule, devices.Machine]:
    """The network as init and pretrain make it, on the machine as they choose it. `start`: how a tensor's name ends ->
    factor of its start values."""
    machine = devices.choose(config.train)
    network = Transformer(config.model).initialize(config.seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            for factor in [factor for end, factor in (start or {}).items() if name.endswith(end)]:
                parameter.mul_(factor)
    return PretrainModule(network, config.train, machine.precision), machine


def steps_without_end(batches: TokenBatches) -> Iterator[Batch]:
    yield from batches


def bare(shape: Shape, meter: Meter, precision: str) -> None:
    """Our training step in a plain loop over our batches."""
    config = experiment(shape, precision=precision)
    batches = TokenBatches({"text": token_set("text", pool(shape).flatten().numpy())}, config)
    module, _ = module_of(config)
    meter.built()
    for number, batch in enumerate(steps_without_end(batches)):
        module.training_step(batch, number)
        meter.step()


def lightning(shape: Shape, meter: Meter, precision: str, wandb: bool = False) -> None:
    """The same under Lightning's Trainer with budget, metrics, checkpoints and signals on."""
    with tempfile.TemporaryDirectory() as folder:
        fit(shape, meter, Path(folder), wandb, precision=precision)


def fit(shape: Shape, meter: Meter, folder: Path, wandb: bool, **train: Any) -> None:
    """`hornbook pretrain`'s own parts, put together as pipeline/pretrain.py does, with the meter as last callback."""
    from lightning.pytorch import Callback

    from pipeline.storage.ledger import Ledger
    from pipeline.training import tracking
    from pipeline.training.budget import Budget, Plan
    from pipeline.training.cap import Cap
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.control import Control, build_trainer
    from pipeline.training.decisions import Decisions
    from pipeline.training.validation import Validation

    class Tell(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            meter.step()

    config = experiment(shape, **train)
    text = pool(shape).flatten().numpy()
    batches = TokenBatches({"text": token_set("text", text)}, config)
    validation = Validation({"text": token_set("text", text[: 2 * shape.tokens])}, shape.tokens)
    module, machine = module_of(config)
    meter.built()
    mirror = None
    if wandb:
        mirror = tracking.WandbMirror(folder, folder / "id", "bench", "bench", {}, lambda line: None)
    decisions = Decisions(folder / "decisions.jsonl")
    ledger = Ledger(folder / "ledger.jsonl", stage="pretrain", fingerprint="bench", device="cpu")
    with ledger, tracking.Metrics(folder / "metrics.jsonl", mirror) as metrics:
        plan = Plan(Cap(1e4), max_steps=None, decay_share=config.train.decay_share)
        budget = Budget(plan, lambda: ledger.spent_seconds, decisions)
        checkpoints = Checkpoints(folder / "checkpoints", 2, decisions)
        flops = config.model.flops_per_token(shape.tokens)
        control = Control(
            stage="pretrain",
            train=config.train,
            machine=machine,
            module=module,
            batches=batches,
            validation=validation,
            budget=budget,
            checkpoints=checkpoints,
            metrics=metrics,
            ledger=ledger,
            memory=MemoryForecast(decisions, machine, machine.memory.held_bytes()),
            flops_per_token=flops,
        )
        trainer = build_trainer(machine, folder, control)
        trainer.callbacks.append(Tell())  # type: ignore[attr-defined]
        trainer.fit(module, batches)
