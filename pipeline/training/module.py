"""One optimizer step as Lightning sees it: one batch in, one step done. Manual optimization.

In: a network, its optimizer with masters, the decisions in force. Out: weights moved by one step. Micro-batches are
looped inside, so that no half-accumulated gradient exists where a checkpoint could be taken. Nothing here is read by
the host: the device always has work queued.
"""

import gc
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from model.float8 import use_float8
from model.optim import OPTIMIZERS, MasterWeights, needs_slices, rate_scales
from model.schedules import DecaySegment, wsd
from model.transformer import Transformer
from pipeline.config import TrainConfig
from pipeline.system import signals
from pipeline.system.errors import LESS_MEMORY, UserError
from pipeline.training.batches import Batch
from pipeline.training.checkpoint import random_state
from pipeline.training.memory import divisors, micro_batch_windows
from pipeline.training.spikes import FINE, Spikes


class _Abandoned(Exception):
    """A signal came between two micro-batches."""


class PretrainModule(LightningModule):
    """`step` counts optimizer steps, skipped ones included: it is the position in the data.

    `last_loss`, `last_grad_norm`, `last_verdict` (see spikes.py): tensors on the device, of the newest step.
    `segments` are the decay decisions in force; the learning rate is a function of `step` and them alone.
    `tokens_sha256` is the record of the text: the hash of the hash so far and of the windows of each step, in order.
    `abandoned` holds the generators' state where a signal ended the step that was being taken: nothing has moved.
    """

    def __init__(self, network: Transformer, train: TrainConfig, precision: str):
        super().__init__()
        self.automatic_optimization = False
        self.network, self.train_config = network, train
        network.activation_checkpointing = train.activation_checkpointing
        network.z_loss = train.z_loss
        if train.float8 != "none":
            use_float8(network, train.float8)
        settings = {"learning_rate": train.learning_rate, "beta1": train.beta1, "beta2": train.beta2}
        if train.optimizer == "muon":
            settings["momentum"] = train.muon_momentum
        sliced = needs_slices(precision, train.optimizer_in_backward)
        self.optimizer = MasterWeights(
            network,
            lambda groups: OPTIMIZERS[train.optimizer](groups, sliced=sliced, **settings),
            precision=precision,
            weight_decay=train.weight_decay,
            in_backward=train.optimizer_in_backward,
            scales=rate_scales(network.config.hidden_size, train.learning_rate_base_width, train.optimizer),
        )
        device_type = network.lm_head.weight.device.type
        if train.compile == "true" or (train.compile == "auto" and device_type == "cuda"):
            network.compile_blocks()
        self.windows = micro_batch_windows(train, device_type, network.config, precision)
        # A step inside the backward pass is taken before its norm is known: there a gradient that is not finite
        # leaves its own tensor alone, and nothing is a spike.
        spike_sigmas = 0.0 if train.optimizer_in_backward else train.spike_sigmas
        self.spikes = Spikes(spike_sigmas, network.lm_head.weight.device)
        self.step = 0
        self.tokens_sha256 = ""
        self.abandoned: dict[str, Any] | None = None
        self.segments: Sequence[DecaySegment] = ()
        self.last_learning_rate = 0.0
        self.last_loss: Tensor = torch.zeros(())
        self.last_grad_norm: Tensor = torch.zeros(())
        self.last_verdict: Tensor = torch.tensor(FINE)

    def configure_optimizers(self) -> None:
        return None  # ours steps inside training_step; Lightning would count two optimizers' steps twice

    def learning_rate(self) -> float:
        """Of the step about to be taken."""
        multiplier = wsd(self.step, self.train_config.warmup_steps, self.segments, self.train_config.decay)
        return self.train_config.learning_rate * multiplier

    def on_train_start(self) -> None:
        # What exists now stays to the end: the garbage collector need not walk it again in the middle of a step.
        gc.collect()
        gc.freeze()

    def on_train_end(self) -> None:
        gc.unfreeze()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.last_learning_rate = self.learning_rate()
        self.optimizer.set_learning_rate(self.last_learning_rate)
        generators = random_state() if len(batch.input_ids_BT) > self.windows else None
        try:
            while (loss_sum := self._try_passes(batch)) is None:
                self._halve_micro_batch()
        except _Abandoned:
            self.optimizer.zero_grad()
            self.abandoned = generators
            return
        loss = loss_sum / batch.predicted
        norm = self.optimizer.step(self.train_config.clip_norm or None, lambda norm: self._judge(loss, norm) == FINE)
        if self.train_config.optimizer_in_backward:
            self._judge(loss, norm)
        self.last_loss, self.last_grad_norm = loss, norm
        self.tokens_sha256 = hashlib.sha256(bytes.fromhex(self.tokens_sha256) + batch.sha256).hexdigest()
        self.step += 1

    def _judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        self.last_verdict = self.spikes.judge(self.step, loss, norm)
        return self.last_verdict

    def _try_passes(self, batch: Batch) -> Tensor | None:
        """None where memory ran out: the exception, whose frames hold the tensors, must be gone before a retry."""
        try:
            return self._passes(batch)
        except torch.OutOfMemoryError:
            return None

    def _passes(self, batch: Batch) -> Tensor:
        """The step's forward and backward passes; the summed loss."""
        loss_sum = torch.zeros((), device=batch.input_ids_BT.device)
        windows = batch.input_ids_BT.split(self.windows), batch.labels_BT.split(self.windows)
        for number, (inputs, labels) in enumerate(zip(*windows, strict=True)):
            if number and signals.stop_requested():
                raise _Abandoned  # a step of a large model on a small card takes a minute; the state before it is whole
            micro_sum, _ = self.network.loss(inputs, labels)
            # Over the whole step's labels, so that the result does not depend on the micro-batch.
            (micro_sum / batch.predicted).backward()
            self.optimizer.accumulate()
            loss_sum += micro_sum.detach()
        return loss_sum

    def _halve_micro_batch(self) -> None:
        """After memory ran out: the step starts again with half the windows a pass, where the config left them open."""
        train, before = self.train_config, self.windows
        smaller = [windows for windows in divisors(train) if windows < before]
        if train.micro_batch or train.optimizer_in_backward or not smaller:
            raise UserError(
                f"memory ran out with {before} windows of {train.sequence_length} tokens a forward pass; {LESS_MEMORY}"
            )
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.windows = max([windows for windows in smaller if windows <= before // 2] or smaller)
        print(f"  memory ran out at micro-batch {before}; continuing with {self.windows} windows a pass", flush=True)
