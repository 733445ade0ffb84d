"""One optimizer step as Lightning sees it: one batch in, one step done. Manual optimization.

In: a network, its optimizer with masters, the decisions in force. Out: weights moved by one step. Micro-batches are
looped inside, so that no half-accumulated gradient exists where a checkpoint could be taken. The host reads numbers
of the step before last only: the device always has the next step queued, yet the clock cannot run ahead of it.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from model.optim import OPTIMIZERS, MasterWeights
from model.schedules import DecaySegment, wsd
from model.transformer import Transformer
from pipeline.config import TrainConfig
from pipeline.training.batches import Batch

CPU_MICRO_TOKENS = 8192  # activations of a larger step fall out of the caches and into gigabytes
GPU_MICRO_WINDOWS = 8


class PretrainModule(LightningModule):
    """`step` counts optimizer steps, skipped ones included: it is the position in the data.

    `last_loss`, `last_grad_norm`: tensors on the device, of the newest step. `segments` are the decay decisions
    in force; the learning rate is a function of `step` and them alone.
    """

    def __init__(self, network: Transformer, train: TrainConfig, precision: str):
        super().__init__()
        self.automatic_optimization = False
        self.network, self.train_config = network, train
        network.activation_checkpointing = train.activation_checkpointing
        network.z_loss = train.z_loss
        self.optimizer = MasterWeights(
            network,
            lambda groups: OPTIMIZERS[train.optimizer](
                groups, learning_rate=train.learning_rate, beta1=train.beta1, beta2=train.beta2
            ),
            precision=precision,
            weight_decay=train.weight_decay,
        )
        self.step = 0
        self.segments: Sequence[DecaySegment] = ()
        self.last_loss: Tensor = torch.zeros(())
        self.last_grad_norm: Tensor = torch.zeros(())

    def configure_optimizers(self) -> None:
        return None  # ours steps inside training_step; Lightning would count two optimizers' steps twice

    def learning_rate(self) -> float:
        """Of the step about to be taken."""
        multiplier = wsd(self.step, self.train_config.warmup_steps, self.segments, self.train_config.decay)
        return self.train_config.learning_rate * multiplier

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.optimizer.set_learning_rate(self.learning_rate())
        loss_sum = torch.zeros((), device=batch.input_ids_BT.device)
        windows = micro_batch_windows(self.train_config, batch.input_ids_BT.device.type)
        for inputs, labels in zip(batch.input_ids_BT.split(windows), batch.labels_BT.split(windows), strict=True):
            micro_sum, _ = self.network.loss(inputs, labels)
            # Over the whole step's labels, so that the result does not depend on the micro-batch.
            (micro_sum / batch.predicted).backward()
            self.optimizer.accumulate()
            loss_sum += micro_sum.detach()
        self.last_loss = loss_sum / batch.predicted
        self.last_grad_norm = self.optimizer.step(self.train_config.clip_norm or None)
        self.step += 1


def micro_batch_windows(train: TrainConfig, device_type: str) -> int:
    """Windows per forward pass: `train.micro_batch`, or what serves the device."""
    if train.micro_batch:
        return train.micro_batch
    windows = train.global_batch_tokens // train.sequence_length
    if device_type == "cpu":
        return min(windows, max(1, CPU_MICRO_TOKENS // train.sequence_length))
    return min(windows, GPU_MICRO_WINDOWS)
