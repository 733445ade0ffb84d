"""Batches on the card before the step that takes them.

In: batches in the host's memory. Out: the same batches on the device. To a CUDA card a batch goes through pinned memory
on a stream of its own while the step before computes; neither the host nor that step waits for it. A CPU computes where
the batch is; to other devices Lightning moves it. Written without a card at hand: what it gains is not measured.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pipeline.training.batches import Batch

Copied = tuple["Batch", Any]  # a CUDA event: the copy is done; None: nothing is copied


class Copies:
    """The way of one training's batches to its device."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: "Batch") -> Copied:
        """Starts the copy; called in the thread that made the batch, so that the pinning does not hold up a step."""
        if self.stream is None:
            return batch, None
        with torch.cuda.stream(self.stream):
            inputs, labels = (
                tensor.pin_memory().to(self.stream.device, non_blocking=True)
                for tensor in (batch.input_ids_BT, batch.labels_BT)
            )
            return batch._replace(input_ids_BT=inputs, labels_BT=labels), self.stream.record_event()

    def finish(self, copied: Copied) -> "Batch":
        """The batch, for the thread that trains: what it launches from here on waits on the card for the copy."""
        batch, event = copied
        if event is not None:
            computing = torch.cuda.current_stream(batch.input_ids_BT.device)
            computing.wait_event(event)
            for tensor in (batch.input_ids_BT, batch.labels_BT):
                tensor.record_stream(computing)  # its memory is the copying stream's: not to be reused too early
        return batch
