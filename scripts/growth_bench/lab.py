"""What the growth benchmarks train with: shapes of a scale, text that every Python environment has, one training loop.

In: a scale (`SCALES`), a seed, a number of steps. Out: `Run`s with their held-out curves, whose cost is counted in
steps of the target model (FLOPs per token of the model over those of the target), source included.
"""

import functools
import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.rules import apply
from model.optim import MasterWeights, adamw
from model.schedules import DecaySegment, cosine, wsd
from model.transformer import Transformer

DECAY_SHARE = 0.3
HELD_OUT_EVERY = 5  # of the files, in a shuffled order, may be held out; what is not needed of them is trained on
HEAD_TOKENS, LEAST_FILES = 2_048, 64  # held out of a file at most, and in how many files

Schedule = Callable[[int], float]
Moments = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Scale:
    """Shapes in the ratios of phi-1.5 to phi-2 (width, head size and MLP 1.25x, blocks 4/3), and sizes of a step."""

    source: ModelConfig
    middle: ModelConfig
    target: ModelConfig
    window: int
    batch_windows: int
    micro_windows: int
    held_out_batches: int
    peak_rate: float
    """The same for every run."""
    installed: bool
    """Whether the text goes on with the installed packages where the standard library ends."""

    @property
    def step_tokens(self) -> int:
        return self.window * self.batch_windows

    def share(self, config: ModelConfig) -> float:
        """FLOPs of a step on `config` over those of a step on the target."""
        return config.flops_per_token(self.window) / self.target.flops_per_token(self.window)


def _shapes(
    vocab: int, window: int, heads: int, head: int, blocks: int
) -> tuple[ModelConfig, ModelConfig, ModelConfig]:
    """Source, a model in between, target; head sizes 1 : 1.125 : 1.25, the same rotary size in all."""

    def shape(size: int, depth: int) -> ModelConfig:
        width, rotary = heads * size, head // 2 / size + 1e-9
        return ModelConfig(
            vocab, width, 4 * width, depth, heads, partial_rotary_factor=rotary, max_position_embeddings=window
        )

    return shape(head, blocks), shape(head * 9 // 8, blocks), shape(head * 5 // 4, blocks * 4 // 3)


SCALES = {
    # 8e-3: near the best for scratch among 3e-3, 6e-3, 12e-3 (GROWTH.md 4.2)
    "toy": Scale(*_shapes(512, 128, 3, 16, 3), 128, 16, 16, 8, 8e-3, installed=False),
    "100m": Scale(*_shapes(8192, 1024, 10, 64, 9), 1024, 32, 16, 8, 1e-3, installed=True),
    "350m": Scale(*_shapes(8192, 1024, 14, 64, 18), 1024, 64, 8, 8, 6e-4, installed=True),
}


@dataclass
class Run:
    """One training: `curve` holds (steps, held-out nats per token); `weights` are fp32, on the CPU."""

    config: ModelConfig
    weights: dict[str, Tensor]
    curve: list[tuple[int, float]]
    share: float
    """FLOPs of one of its steps over those of the target's."""
    source_cost: float = 0.0
    moments: Moments = field(default_factory=dict)

    @property
    def final(self) -> float:
        return self.curve[-1][1]

    @property
    def cost(self) -> float:
        """In steps of the target, what its source cost included."""
        return self.source_cost + self.curve[-1][0] * self.share

    def steps_to(self, loss: float) -> float | None:
        """Steps until the held-out loss stays at or below `loss`, interpolated; None if it never does."""
        above = [index for index, (_, value) in enumerate(self.curve) if value > loss]
        if not above or above[-1] + 1 == len(self.curve):
            return None if above else 0.0
        (start, high), (end, low) = self.curve[above[-1]], self.curve[above[-1] + 1]
        return start + (end - start) * (high - loss) / (high - low)

    @property
    def bump(self) -> tuple[float, float | None]:
        """Nats that the loss rises above its start, and steps until it is back below."""
        return max(loss for _, loss in self.curve) - self.curve[0][1], self.steps_to(self.curve[0][1])


class Text:
    """Token windows of Python sources: `batch(seed, step)` never repeats within `steps` steps where text suffices.

    `held_out`: beginnings of `held_out_files` whole files, nothing of which is trained on. They are the same for every
    seed, as methods are compared on them: an interval over seeds says nothing of other texts.
    """

    def __init__(self, scale: Scale, steps: int) -> None:
        self.scale = scale
        texts = self._texts()
        held_out = texts[::HELD_OUT_EVERY]
        texts = [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY]
        tokenizer = self._tokenizer(texts)
        wanted = scale.held_out_batches * scale.batch_windows * (scale.window + 1)
        head, ids, self.held_out_files = min(HEAD_TOKENS, wanted // LEAST_FILES), list[int](), 0
        for text in held_out:
            if len(ids) < wanted:
                ids += tokenizer.encode(text).ids[:head]
                self.held_out_files += 1
        self.held_out = self._batches(ids, wanted)
        wanted, ids = steps * scale.batch_windows * (scale.window + 1), []
        for text in [*texts, *held_out[self.held_out_files :]]:
            ids += tokenizer.encode(text).ids
            if len(ids) >= wanted:
                break
        self._train = self._batches(ids, wanted).flatten(0, 1)
        self.repeats = steps * scale.batch_windows / len(self._train)

    def _tokenizer(self, texts: list[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        size = self.scale.source.vocab_size
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts[: 100 * (size // 512)], trainer)
        return tokenizer

    def _batches(self, ids: list[int], wanted: int) -> Tensor:
        per_batch = self.scale.batch_windows * (self.scale.window + 1)
        batches = min(len(ids), wanted) // per_batch
        return torch.tensor(ids[: batches * per_batch]).view(-1, self.scale.batch_windows, self.scale.window + 1)

    def _texts(self) -> list[str]:
        root = Path(sysconfig.get_paths()["stdlib"])
        left_out = {"test", "tests", "site-packages", "__pycache__"}
        files = sorted(f for f in root.rglob("*.py") if not left_out & set(f.relative_to(root).parts))
        random.Random(0).shuffle(files)
        if self.scale.installed:
            more = sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"))
            random.Random(0).shuffle(more)
            files += more
        return [file.read_text(encoding="utf-8", errors="replace") for file in files]

    def batch(self, seed: int, step: int) -> Tensor:
        """Windows of one step, [windows, tokens + 1], in an order that depends on the seed and, past the end, anew."""
        size = self.scale.batch_windows
        epoch, step = divmod(step, len(self._train) // size)
        return self._train[self._order(seed + 1000 * epoch)[step * size : (step + 1) * size]]

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one text lives as long as the process
    def _order(self, seed: int) -> Tensor:
        return torch.randperm(len(self._train), generator=torch.Generator().manual_seed(seed))


def precision(device: str) -> str:
    return "32-true" if device == "cpu" else "bf16-mixed"


def grow(
    source: ModelConfig,
    weights: dict[str, Tensor],
    target: ModelConfig,
    seed: int,
    method: str = "exact",
    **options: Any,
) -> Transformer:
    """A network of the target's shape from the source's fp32 weights."""
    grown = Transformer(target)
    grown.load_state_dict(dict(apply(GROWTH[method](source, target, **options), weights, seed)))
    return grown


@dataclass
class Lab:
    """Trains and grows with one seed; `steps` is the length of the scratch run."""

    text: Text
    seed: int
    steps: int
    device: str = "cpu"
    points: int = 25
    """Of the held-out curve of a run as long as scratch."""

    @property
    def scale(self) -> Scale:
        return self.text.scale

    def train(self, network: Transformer, steps: int, schedule: Schedule, first: int = 0, **kept: Any) -> Run:
        """Up to step `steps` of `schedule`, on fp32 weights (a CPU) or bf16 with fp32 masters (else).

        `first`: where in the text the run starts to read. `kept`: source_cost, moments, start (the step it goes on
        from).
        """
        network.to(self.device)
        optimizer = MasterWeights(network, lambda groups: adamw(groups, self.scale.peak_rate), precision(self.device))
        self._set_moments(optimizer, kept.get("moments", {}))
        start = kept.get("start", 0)
        every, curve = max(4, self.steps // self.points), [(start, self.held_out_loss(network))]
        for step in range(start, steps):
            optimizer.set_learning_rate(self.scale.peak_rate * schedule(step))
            ids_BT = self.text.batch(self.seed, first + step).to(self.device)
            for part_BT in ids_BT.split(self.scale.micro_windows):
                loss_sum, count = network.loss(part_BT[:, :-1], part_BT[:, 1:])
                (loss_sum / (count * len(ids_BT) / len(part_BT))).backward()
                optimizer.accumulate()
            optimizer.step(1.0)
            if (step + 1) % every == 0 or step + 1 == steps:
                curve.append((step + 1, self.held_out_loss(network)))
        share, source_cost = self.scale.share(network.config), kept.get("source_cost", 0.0)
        weights = {name: t.to("cpu", copy=True) for name, t in optimizer.master_state_dict().items()}
        return Run(network.config, weights, curve, share, source_cost, self._moments(optimizer))

    @staticmethod
    def _set_moments(optimizer: MasterWeights, moments: Moments) -> None:
        for name, master in zip(optimizer.names, optimizer.masters, strict=True):
            if state := moments.get(name):
                optimizer.optimizer.state[master] = {key: value.clone() for key, value in state.items()}

    @staticmethod
    def _moments(optimizer: MasterWeights) -> Moments:
        states = zip(optimizer.names, optimizer.masters, strict=True)
        return {name: dict(optimizer.optimizer.state[master]) for name, master in states}

    @torch.no_grad()
    def held_out_loss(self, network: Transformer) -> float:
        batches = [batch.to(self.device) for batch in self.text.held_out]
        return mean(float(network.loss(b[:, :-1], b[:, 1:])[0]) / b[:, 1:].numel() for b in batches)

    def fresh(self, config: ModelConfig) -> Transformer:
        return Transformer(config).initialize(self.seed)

    def again(self, run: Run) -> Transformer:
        """The network of a run as it ended; its moments are the run's."""
        network = Transformer(run.config)
        network.load_state_dict(run.weights)
        return network

    def grow(self, source: Run, target: ModelConfig, method: str = "exact", **options: Any) -> Transformer:
        return grow(source.config, source.weights, target, self.seed, method, **options)

    def cosine(self, steps: int) -> Schedule:
        """Warm-up, then a cosine to a tenth."""
        warmup = self.steps // 16
        return lambda step: min((step + 1) / warmup, 0.1 + 0.9 * cosine(max(0, step - warmup) / (steps - warmup)))

    def wsd(self, steps: int) -> Schedule:
        """hornbook's own: warm-up, stable, linear decay over the last `DECAY_SHARE`."""
        segments = [DecaySegment(round(steps * (1 - DECAY_SHARE)), steps)]
        return lambda step: wsd(step, self.steps // 16, segments)

    def stable(self, step: int) -> float:
        """wsd with a decay that never comes."""
        return wsd(step, self.steps // 16, [])
