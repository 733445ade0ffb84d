"""Parts `memory` and `time` of bench_hours.py: what a pretraining said beforehand beside what happened.

Memory: the traced peak of a step plus what the process held before, against the resident high-water mark over the
first steps, for settings that differ in what they keep: with big blocks given back to the kernel, which shows what a
step needs, and with glibc keeping them, which shows what the heap holds beside. Time: what was said when a tenth
of the budget was used, against the end.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.bench_rows import Rows, row
from scripts.hours_lab import Lab

WIDE = (
    "model.hidden_size=1024", "model.intermediate_size=4096", "model.num_hidden_layers=2",
    "model.num_attention_heads=16", "model.max_position_embeddings=1024", "train.sequence_length=1024",
    "train.global_batch_tokens=2048", "train.micro_batch=2", "train.log_every_steps=1", "train.precision=32-true",
    "train.validate_every_share=1", "budget.max_tokens=8_192", "data.validation.max_bytes=3_000",
)  # fmt: skip
SETTINGS = {
    "two windows of 1,024": (),
    "selective checkpointing": ("train.activation_checkpointing=selective",),
    "full checkpointing": ("train.activation_checkpointing=full",),
    "one window a pass of two": ("train.micro_batch=1",),
    "optimizer in the backward pass": ("train.optimizer_in_backward=true", "train.clip_norm=0"),
    "muon": ("train.optimizer=muon",),
    "8-bit optimizer states": ("train.optimizer=adamw8bit",),
    "windows of 512 (explicit attention)": ("train.sequence_length=512", "train.micro_batch=4"),
}
GIVEN_BACK = {"THP_MEM_ALLOC_ENABLE": "1"}  # see pipeline/training/memory.py
TIMED_TOKENS = {"75K tokens": 75_000, "150K tokens": 150_000, "300K tokens": 300_000}


def memory(quick: bool, jobs: int = 1) -> Rows:
    """Predicted over measured, one row a setting; `jobs`: of so many settings at a time."""
    settings = dict(list(SETTINGS.items())[: 2 if quick else None])
    rows: Rows = []
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        lab.prepare("seed=1", *WIDE)

        def memory_of(number: int, name: str, given_back: bool) -> dict:
            own, words = lab.beside(f"memory{number}{given_back}"), settings[name]
            own.environment = GIVEN_BACK if given_back else {}
            if any("sequence_length" in word for word in words):
                own.prepare("seed=1", *WIDE, *words)
            found = own.pretrain("run", "seed=1", "name=run", *WIDE, *words)["forecast"]["memory"]
            kinds = ("traced_bytes", "held_before_bytes", "measured_bytes")
            traced, held, measured = (f"{found[key] / 2**20:,.0f}" for key in kinds)
            way = "memory" if given_back else "the same, big blocks kept"
            text = f"{way}, predicted over measured: {name} ({traced} traced + {held} held, {measured} MiB)"
            if not given_back:
                return row(text, found["ratio"], "x")
            return row(text, found["ratio"], "x", "0.97 to 1.03", abs(found["ratio"] - 1) <= 0.03)

        wanted = [(number, name, way) for way in (True, False) for number, name in enumerate(settings)]
        with ThreadPoolExecutor(jobs) as pool:
            for found in pool.map(memory_of, *zip(*wanted, strict=True)):
                print(found["name"], found["value"], flush=True)
                rows.append(found)
    return rows


def time(quick: bool) -> Rows:
    """Predicted over measured, one row a length of run: nothing else may run beside it."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        lab.prepare("seed=1")
        for name, tokens in list(TIMED_TOKENS.items())[: 1 if quick else None]:
            own = lab.beside(f"time{tokens}")
            manifest = own.pretrain("run", "seed=1", "name=run", f"budget.max_tokens={tokens}")
            found = manifest["forecast"]["time"]
            text = f"time, predicted over measured: {name} ({found['predicted_seconds']} of {found['seconds']} s)"
            rows.append(row(text, found["ratio"], "x", "0.95 to 1.05", abs(found["ratio"] - 1) <= 0.05))
    return rows
