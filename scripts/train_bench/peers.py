"""The peers' arms: litgpt's model in its Fabric loop, transformers' Phi in a plain loop and in its Trainer, nanoGPT's.

Each builds the shape, then trains without end and tells the meter after every optimizer step.
"""

import tempfile
from contextlib import nullcontext
from typing import Any

import torch

from scripts.train_bench import nanogpt
from scripts.train_bench.race import Meter
from scripts.train_bench.shapes import (
    CLIP_NORM,
    LEARNING_RATE,
    ROTARY_SHARE,
    VOCAB_SIZE,
    WEIGHT_DECAY,
    Shape,
    batches,
    pool,
)


def litgpt(shape: Shape, meter: Meter, precision: str, compiled: bool = False) -> None:
    """litgpt's Phi with the loss and the order of litgpt/pretrain.py."""
    from lightning import Fabric
    from litgpt.model import GPT, Config  # pyright: ignore[reportMissingImports]
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]

    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    config = Config.from_name(
        "phi-1_5", block_size=shape.tokens, vocab_size=VOCAB_SIZE, padded_vocab_size=VOCAB_SIZE, n_layer=shape.layers,
        n_embd=shape.hidden, n_head=shape.heads, n_query_groups=shape.heads, head_size=shape.hidden // shape.heads,
        intermediate_size=4 * shape.hidden, rotary_percentage=ROTARY_SHARE,
    )  # fmt: skip
    with fabric.init_module():
        model: Any = GPT(config)
    model.max_seq_length = shape.tokens
    whole: Any = torch.compile(model) if compiled else model
    model = fabric.setup(whole)
    adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=False)
    optimizer: Any = fabric.setup_optimizers(adamw)
    meter.built()
    for inputs, labels in batches(shape):
        loss = chunked_cross_entropy(model(inputs), labels)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        meter.step()


def _phi(shape: Shape) -> Any:
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(
        PhiConfig(
            vocab_size=VOCAB_SIZE, hidden_size=shape.hidden, intermediate_size=4 * shape.hidden,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=shape.tokens,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": ROTARY_SHARE},
            use_cache=False,
        )
    )  # fmt: skip


def transformers_loop(shape: Shape, meter: Meter, autocast: bool) -> None:
    """What a user who knows torch writes around PhiForCausalLM."""
    model = _phi(shape).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    meter.built()
    for inputs, _ in batches(shape):
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        meter.step()


def transformers_trainer(shape: Shape, meter: Meter, bf16: bool) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Tell(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            meter.built()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.step()

    windows = pool(shape)[:, :-1]
    text = [{"input_ids": ids, "labels": ids} for ids in windows]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=shape.windows, max_steps=10**6, bf16=bf16,
        learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP_NORM, logging_steps=10,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=_phi(shape), args=arguments, train_dataset=text, callbacks=[Tell()]).train()  # type: ignore[arg-type]


def nanogpt_loop(shape: Shape, meter: Meter, autocast: bool) -> None:
    model = nanogpt.GPT(shape)
    step = nanogpt.step(model, nanogpt.optimizer(model, LEARNING_RATE, beta2=0.95), autocast)
    meter.built()
    for inputs, labels in batches(shape):
        step(inputs, labels)
        meter.step()
