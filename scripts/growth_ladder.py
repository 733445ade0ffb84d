"""Does growth pay? Equal FLOPs for training from scratch, for the source's shape without growth, and for growth.

    scripts/with_env.sh scripts/bench_growth.py --ladder --runs FILE [--threads N] [--device cuda --scale 100m]
    scripts/with_env.sh scripts/bench_growth.py --report --runs FILE

`--ladder` appends one line to FILE for each finished run and takes the next one that FILE lacks, in an order of which
any beginning can be used. It may be killed at any time. A run is its settings (`Setting`); learning rates are tuned
first, on files that no other run uses, and are part of the settings.

A budget is a number of steps of the target. Whatever an arm trains, source included, costs the FLOPs of these steps.
All arms use hornbook's schedule (warm-up, stable, linear decay over the last 30%); a source does not decay. Runs of one
shape, seed and rate share their stable phase: it is trained once, and each budget's decay branches off.
Every seed has its own split of the files into training and held-out text, its own tokenizer, order and weights.
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.rules import apply
from model.optim import OPTIMIZERS, MasterWeights
from model.schedules import DecaySegment, warmup_multiplier, wsd
from model.transformer import Transformer
from pipeline.planner.growth import GROWTH_LADDER
from pipeline.storage.files import write_json, write_text
from pipeline.system.errors import UserError
from pipeline.training.devices import cpu_name
from scripts.growth_ladder_report import ladder_record, lines, picture, planning_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "growth"
DECAY_SHARE = 0.3
WARMUP_STEPS = 25
SHARES = (0.2, 0.35, 0.5)
TUNING_BUDGET = 400
TUNING_SHARE = 0.35
FREE_BUDGET, FREE_BUDGETS = 4_000, (200, 800)  # of a source that costs nothing, and of what is trained from it
PACKAGES = ("torch", "sympy", "numpy", "networkx", "pydantic", "datasets", "huggingface_hub", "aiohttp",
            "lightning", "mpmath", "pyarrow", "datatrove")  # fmt: skip
TUNING_FILES = 8  # one file of so many, by the hash of its path, is for tuning alone
HELD_OUT_FILES, HEAD_WINDOWS = 128, 4  # files that are held out whole, and how much of each is scored
PERMUTED_WINDOWS = 8_192  # windows are shuffled within so many, so that a longer run reads the same text first


@dataclass(frozen=True)
class Setting:
    """One run. `budget`: steps of the target. `arm`: scratch, small (the source's shape, ungrown), grown, or continue
    (a trained source that does not grow). `source`: a name of `Scale.source`. `share`: of the FLOPs, for the source.
    `source_rate`: its learning rate where it grows. `treatment`: a name of `TREATMENTS`. `free`: the source is trained
    with this budget, decays, and costs nothing. `domain`: a kind of text of `DOMAINS` that all but the source read."""

    arm: str
    budget: int
    seed: int
    rate: float
    source: str = ""
    share: float = 0.0
    source_rate: float = 0.0
    family: str = "phi"
    optimizer: str = "adamw"
    scale: str = "toy"
    tuning: bool = False
    treatment: str = ""
    free: int = 0
    domain: str = ""

    @property
    def id(self) -> str:
        """Over the fields that are not at their defaults: a field that is added later changes no earlier run."""
        said = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Setting":
        """What a finished run was."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})


@dataclass(frozen=True)
class Treatment:
    """How a grown model's parts are treated. `options`: of the growth method. `keep_moments`: the optimizer's of old
    weights; those of new ones begin at 0. `rewarm_old`: whether old weights warm up again too. `new_rate`: of new
    weights, in times of the others'. `twice`: half of the source's share trains a model in between."""

    source: str = "stacked"
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_moments: bool = False
    rewarm_old: bool = True
    new_rate: float = 1.0
    twice: bool = False


TREATMENTS: dict[str, Treatment] = {
    "moments kept": Treatment(keep_moments=True),
    "moments kept, only new weights warm up": Treatment(keep_moments=True, rewarm_old=False),
    "only new weights warm up": Treatment(rewarm_old=False),
    "new weights at twice the rate": Treatment(new_rate=2.0),
    "new weights at half the rate": Treatment(new_rate=0.5),
    "silent blocks": Treatment(method="exact"),
    "in two steps": Treatment(twice=True),
    "copied units": Treatment("phi", options={"new_units": "copies"}),
    "live blocks": Treatment("phi", options={"new_blocks": "copy", "exact": False}),
    "new weights at twice the rate, wider": Treatment("phi", new_rate=2.0),
    "doubled width": Treatment("half"),
}
"""What is compared with the plain growth of the same source at the same share and rates."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the target in heads and blocks, and of a step."""

    heads: int
    head: int
    blocks: int
    vocab: int
    window: int
    batch_windows: int
    micro_windows: int
    rates: tuple[float, float, float]

    @property
    def step_tokens(self) -> int:
        return self.window * self.batch_windows

    def shape(self, family: str, head: int, blocks: int) -> ModelConfig:
        """`head`: the width of a head; 2 of 5 coordinates of the target's rotate, and as many in every source."""
        width, rotary = self.heads * head, self.head * 2 // 5
        common = {"head_dim": head, "max_position_embeddings": self.window, "family": family}
        if family == "phi":
            factor = rotary / head + 1e-9
            return ModelConfig(
                self.vocab, width, 4 * width, blocks, self.heads, partial_rotary_factor=factor, **common
            ).validate()
        # One group of keys and values; the MLP is as wide as makes a block as large as Phi's.
        mlp = (8 * width**2 + 2 * width * (width - head)) // (3 * width)
        return ModelConfig(
            self.vocab, width, mlp, blocks, self.heads, num_key_value_heads=1, tie_word_embeddings=True, **common
        ).validate()

    def target(self, family: str) -> ModelConfig:
        return self.shape(family, self.head, self.blocks)

    def source(self, name: str, family: str) -> ModelConfig:
        """`stacked`: the target's width, a quarter of its blocks. `phi`: Phi-1.5's ratios to Phi-2 (widths 0.8,
        blocks 3/4). `phi-twice`: the same ratios applied twice. `half`: half the width, to be doubled."""
        head, blocks = {
            "stacked": (self.head, self.blocks // 4),
            "phi": (self.head * 4 // 5, self.blocks * 3 // 4),
            "phi-twice": (self.head * 16 // 25, self.blocks // 2),
            "half": (self.head // 2, self.blocks),
        }[name]
        return self.shape(family, head + head % 2 * (family != "phi"), blocks)

    def cost(self, config: ModelConfig) -> float:
        """FLOPs of a token over those of a token of the phi target: the unit of every budget."""
        return config.flops_per_token(self.window) / self.target("phi").flops_per_token(self.window)


SCALES = {
    "toy": Scale(3, 20, 4, 512, 128, 8, 8, (4e-3, 8e-3, 1.6e-2)),
    "100m": Scale(10, 80, 12, 8192, 1024, 64, 16, (5e-4, 1e-3, 2e-3)),
}


class Text:
    """Windows of files of `DOMAINS`, as this environment has them. `tokenizer`: of another text; None: of this one."""

    def __init__(
        self, scale: Scale, seed: int, tuning: bool, domain: str = "", tokenizer: Tokenizer | None = None
    ) -> None:
        files = [f for f in DOMAINS[domain]() if _is_for_tuning(f) == tuning]
        random.Random(f"{seed}").shuffle(files)
        self._window, self._waiting, self._windows = scale.window + 1, files, list[Tensor]()
        self._left, self._seed = list[int](), seed
        held_out = [files.pop() for _ in range(HELD_OUT_FILES)]
        self._files = tuple(files)
        self.tokenizer = tokenizer or _tokenizer([_read(f) for f in files[: max(200, scale.vocab // 4)]], scale.vocab)
        heads = [self._ids(file)[: HEAD_WINDOWS * self._window] for file in held_out]
        windows = [torch.tensor(ids[: len(ids) // self._window * self._window]) for ids in heads]
        self.held_out = torch.cat([ids.view(-1, self._window) for ids in windows])
        self._bytes = torch.tensor([len(self.tokenizer.id_to_token(i) or "") for i in range(scale.vocab)])
        self.held_out_bytes = int(self._bytes[self.held_out[:, 1:]].sum())

    def _ids(self, file: Path) -> list[int]:
        return self.tokenizer.encode(_read(file)).ids

    def windows(self, first: int, count: int) -> Tensor:
        """[count, window + 1] from window `first` on."""
        need = -(-(first + count) // PERMUTED_WINDOWS)
        while len(self._windows) < need:
            wanted = PERMUTED_WINDOWS * self._window
            while len(self._left) < wanted:
                self._waiting = self._waiting or list(self._files)  # all is read: from the beginning
                self._left += self._ids(self._waiting.pop())
            ids = torch.tensor(self._left[:wanted], dtype=torch.int32).view(-1, self._window)
            self._left = self._left[wanted:]
            generator = torch.Generator().manual_seed(1000 * self._seed + len(self._windows))
            self._windows.append(ids[torch.randperm(len(ids), generator=generator)])
        pool, place = divmod(first, PERMUTED_WINDOWS)
        found = self._windows[pool][place : place + count]
        if len(found) == count:
            return found.long()
        return torch.cat([found.long(), self.windows(first + len(found), count - len(found))])


@cache
def source_files() -> list[Path]:
    """Every Python file of `PACKAGES` and of the standard library, tests left out."""
    paths = sysconfig.get_paths()
    roots = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / name for name in PACKAGES)]
    left_out = {"test", "tests", "site-packages", "__pycache__"}
    files = [
        file for root in roots for file in root.rglob("*.py")
        if not left_out & set(file.relative_to(root).parts) and file.stat().st_size > 1_000
    ]  # fmt: skip
    return sorted(files, key=_short)


@cache
def header_files() -> list[Path]:
    """C++ headers that come with torch: another language than the sources'."""
    root = Path(sysconfig.get_paths()["purelib"]) / "torch" / "include"
    return sorted((f for f in root.rglob("*.h*") if f.stat().st_size > 1_000), key=_short)


DOMAINS = {"": source_files, "headers": header_files}


def _short(file: Path) -> str:
    return re.sub(r".*/(?:site-packages|python3\.\d+)/", "", str(file))


def _is_for_tuning(file: Path) -> bool:
    return int(hashlib.sha256(_short(file).encode()).hexdigest(), 16) % TUNING_FILES == 0


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


@dataclass
class State:
    """A model after so many steps: fp32 tensors of the network and of its optimizer."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Lab:
    """Trains the runs of one scale on one device. `folder` keeps the stable phases that runs branch from."""

    def __init__(self, scale: str, device: str, folder: Path) -> None:
        self.scale, self.device, self.folder = SCALES[scale], device, folder
        self.precision = "32-true" if device == "cpu" else "bf16-mixed"
        self._texts: dict[tuple[int, bool, str], Text] = {}
        self._after_warmup: float | None = None

    def text(self, setting: Setting, domain: str | None = None) -> Text:
        """What a setting reads, or its seed's text of another domain. The tokenizer is the library text's."""
        domain = setting.domain if domain is None else domain
        key = (setting.seed, setting.tuning, domain)
        if key not in self._texts:
            self._texts = {k: t for k, t in self._texts.items() if k[:2] == key[:2]}  # a text grows to 100 MB
            tokenizer = self.text(setting, "").tokenizer if domain else None
            self._texts[key] = Text(self.scale, *key, tokenizer)
        return self._texts[key]

    def run(self, setting: Setting) -> dict[str, Any]:
        """Trains what a setting says; its held-out loss and what it cost."""
        began, cpu = time.monotonic(), time.process_time()
        scale, text = self.scale, self.text(setting)
        if setting.arm in ("grown", "continue"):
            network, extra = self._from_source(setting)
        else:
            small = setting.arm == "small"
            config = (scale.source if small else lambda _, family: scale.target(family))(setting.source, setting.family)
            network, extra = self._complete(setting, config, setting.budget)
        loss, tokens = self.held_out_loss(network, text), text.held_out[:, 1:].numel()
        if setting.domain:
            extra["loss_on_source_text"] = self.held_out_loss(network, self.text(setting, ""))
        return {
            **asdict(setting), "loss": loss, "bits_per_byte": loss * tokens / text.held_out_bytes / math.log(2),
            **extra,
            "parameters": network.config.parameters, "target_parameters": scale.target("phi").parameters,
            "flops": setting.budget * scale.step_tokens * scale.target("phi").flops_per_token(scale.window),
            "budget_tokens": setting.budget * scale.step_tokens, "held_out_tokens": tokens,
            "seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
            "device": self.device, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip

    def _complete(self, setting: Setting, config: ModelConfig, budget: float) -> tuple[Transformer, dict[str, Any]]:
        """Fresh weights trained with a whole budget, decay included."""
        steps = round(budget / self.scale.cost(config))
        state = self._stable(setting, config, round((1 - DECAY_SHARE) * steps))
        network = self._network(config, state.weights)
        self._train(setting, network, range(state.step, steps), self._decaying(steps), moments=state.optimizer)
        return network, {"steps": steps}

    def _from_source(self, setting: Setting) -> tuple[Transformer, dict[str, Any]]:
        """Trains a source, grows it where the arm says so, and trains the rest."""
        scale, text = self.scale, self.text(setting)
        treatment = TREATMENTS.get(setting.treatment, Treatment())
        self._after_warmup = None
        config, target = scale.source(setting.source, setting.family), scale.target(setting.family)
        own = replace(setting, rate=setting.source_rate, domain="")
        if setting.free:
            network, read = self._free_source(own, config)
            state, first = State(0, _weights(network), {}), 0 if setting.domain else read
        else:
            part = setting.share / 2 if treatment.twice else setting.share
            first = round(part * setting.budget / scale.cost(config))
            state = self._stable(own, config, first)
        if treatment.twice:
            between = replace(config, num_hidden_layers=config.num_hidden_layers * 2)
            network = self._network(between, self._grow(setting, config, between, state.weights)[0])
            steps = round(setting.share / 2 * setting.budget / scale.cost(between))
            self._train(setting, network, range(steps), [], first=first)
            config, state, first = between, State(0, _weights(network), {}), first + steps
        weights, is_new = state.weights, {}
        if setting.arm == "grown":
            weights, is_new = self._grow(setting, config, target, state.weights)
        else:
            target = config
        network = self._network(target, weights)
        before = self.held_out_loss(network, text)
        steps = round((1 - setting.share) * setting.budget / scale.cost(target))
        moments = self._grown_moments(config, weights, state) if treatment.keep_moments else None
        plain = treatment.rewarm_old and treatment.new_rate == 1
        self._train(setting, network, range(steps), self._decaying(steps), first=first, moments=moments,
                    parts=None if plain else (treatment, is_new))  # fmt: skip
        return network, {"steps": steps, "source_steps": first, "loss_before": before,
                         "loss_after_warmup": self._after_warmup}  # fmt: skip

    def _free_source(self, setting: Setting, config: ModelConfig) -> tuple[Transformer, int]:
        """The finished source, trained once for a seed, and the step of the text at which it ended."""
        steps, path = round(setting.free / self.scale.cost(config)), self._kept(setting, config, "free", setting.free)
        if path.is_file():
            return self._network(config, State(**torch.load(path, weights_only=True)).weights), steps
        network, _ = self._complete(setting, config, setting.free)
        self._keep(path, State(steps, _weights(network), {}))
        return network, steps

    def _grow(
        self, setting: Setting, config: ModelConfig, target: ModelConfig, weights: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The grown weights, and for each whether its values are new: repeated blocks, and values that do not depend on
        the source, which a source of the other sign leaves as they are."""
        treatment = TREATMENTS.get(setting.treatment, Treatment())
        method = GROWTH[treatment.method or ("stack" if setting.source == "stacked" else "exact")]
        rules = method(config, target, **treatment.options)
        grown = dict(apply(rules, weights, setting.seed))
        turned = dict(apply(rules, {name: -value for name, value in weights.items()}, setting.seed))
        is_new = {name: value == turned[name] for name, value in grown.items()}
        if setting.source == "stacked":
            old = [f"model.layers.{i}." for i in range(config.num_hidden_layers)]
            for name, new in is_new.items():
                if name.startswith("model.layers."):
                    new.fill_(not name.startswith(tuple(old)))
        return grown, is_new

    @staticmethod
    def _grown_moments(config: ModelConfig, weights: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
        """The source's optimizer state for a stacked model's old weights; that of repeated blocks begins at 0."""
        found = {f"master/{name}": value for name, value in weights.items()}
        for kind in {key.partition("/")[0] for key in state.optimizer} - {"master"}:
            for name in weights:
                block = re.sub(r"layers\.(\d+)", lambda m: f"layers.{int(m[1]) % config.num_hidden_layers}", name)
                value = state.optimizer[f"{kind}/{block}"]
                found[f"{kind}/{name}"] = value if block == name else torch.zeros_like(value)
        return found

    def _network(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> Transformer:
        network = Transformer(config)
        network.load_state_dict(weights)
        return network

    @staticmethod
    def _decaying(steps: int) -> list[DecaySegment]:
        return [DecaySegment(round((1 - DECAY_SHARE) * steps), steps)]

    def _kept(self, setting: Setting, config: ModelConfig, kind: str, steps: int) -> Path:
        """Where the state of a shape, seed and rate after so many steps is kept."""
        key = [asdict(config), setting.seed, setting.rate, setting.optimizer, setting.tuning, setting.scale]
        key += [kind, setting.domain] if kind or setting.domain else []
        return self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]}-{steps}.pt"

    def _keep(self, path: Path, state: State) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{os.getpid()}.part")
        torch.save(vars(state), part)
        part.replace(path)

    def _stable(self, setting: Setting, config: ModelConfig, steps: int) -> State:
        """The model after `steps` at its full rate, from the longest kept beginning of that training."""
        path = self._kept(setting, config, "", steps)
        name = path.stem.rpartition("-")[0]
        kept = {int(each.stem.rpartition("-")[2]): each for each in self.folder.glob(f"{name}-*.pt")}
        start = max((step for step in kept if step <= steps), default=0)
        if start:
            state = State(**torch.load(kept[start], weights_only=True))
            network = self._network(config, state.weights)
        else:
            network = Transformer(config).initialize(setting.seed)
            state = State(0, dict(network.state_dict()), {})
        if start == steps:
            return state
        optimizer = self._train(setting, network, range(start, steps), [], moments=state.optimizer)
        state = State(steps, _copied(optimizer.master_state_dict()), _copied(optimizer.state_dict()))
        self._keep(path, state)
        return state

    def _train(
        self, setting: Setting, network: Transformer, steps: range, segments: Sequence[DecaySegment], first: int = 0,
        moments: dict[str, Tensor] | None = None, parts: tuple[Treatment, dict[str, Tensor]] | None = None,
    ) -> MasterWeights:  # fmt: skip
        """`first`: the step of the text at which step 0 reads. `parts`: how new values are treated, and which are."""
        scale, text = self.scale, self.text(setting)
        network.to(self.device)
        make = OPTIMIZERS[setting.optimizer]
        optimizer = MasterWeights(network, lambda groups: make(groups, setting.rate), self.precision)
        if moments:
            optimizer.load_state_dict(moments)
        for step in steps:
            warmup = WARMUP_STEPS if parts is None else 0
            optimizer.set_learning_rate(setting.rate * wsd(step, warmup, segments))
            ids_BT = text.windows((first + step) * scale.batch_windows, scale.batch_windows).to(self.device)
            for part_BT in ids_BT.split(scale.micro_windows):
                loss_sum, count = network.loss(part_BT[:, :-1], part_BT[:, 1:])
                (loss_sum / (count * len(ids_BT) / len(part_BT))).backward()
                optimizer.accumulate()
            before = None if parts is None else _copied(optimizer.master_state_dict())
            optimizer.step(1.0)
            if parts is not None and before is not None:
                _scale_moves(optimizer.master_state_dict(), before, *parts, warmup_multiplier(step, WARMUP_STEPS))
            if step + 1 == WARMUP_STEPS and first:  # a run that grew: is the loss above its start?
                self._after_warmup = self.held_out_loss(network, text)
        return optimizer

    @torch.no_grad()
    def held_out_loss(self, network: Transformer, text: Text) -> float:
        """Nats per token."""
        network.to(self.device)
        parts = text.held_out.to(self.device).split(self.scale.micro_windows)
        return sum(float(network.loss(p[:, :-1], p[:, 1:])[0]) for p in parts) / text.held_out[:, 1:].numel()


def _weights(network: Transformer) -> dict[str, Tensor]:
    return _copied(network.state_dict())


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def _scale_moves(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor], treatment: Treatment, is_new: Mapping[str, Tensor],
    warmup: float,
) -> None:  # fmt: skip
    """What a step moved, by a factor that depends on whether a value is new."""
    for name, value in after.items():
        new, old = treatment.new_rate * warmup, warmup if treatment.rewarm_old else 1.0
        factor = torch.where(is_new[name].to(value.device), new, old)
        value.copy_(before[name].to(value.device).lerp(value, factor))


class Runs:
    """The finished runs of a file, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """A line that a kill cut short is left out, and its run is done again."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[Setting.of(row).id] = row
        return list(found.values())

    def append(self, row: dict[str, Any]) -> None:
        """In one write, after a line break if the last line was cut short."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            else:
                torn = False
            file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Group:
    """What has a learning rate of its own."""

    arm: str
    source: str = ""
    family: str = "phi"
    optimizer: str = "adamw"
    free: int = 0


class Plan:
    """The runs in their order, given those that are done."""

    def __init__(self, scale: str, rows: Sequence[dict[str, Any]]) -> None:
        self.scale = scale
        self.tuned = [row for row in rows if row["tuning"] and row["scale"] == scale]
        self.done = {Setting.of(row).id for row in rows}

    def next(self) -> Setting | None:
        """The first run that is not done; None at the end."""
        return next((setting for setting in self.runs() if setting.id not in self.done), None)

    def runs(self) -> Iterator[Setting]:
        """Ends early with the runs that tune a rate, as long as that rate is not known."""
        stacked = [("scratch", ""), ("small", "stacked"), ("grown", "stacked")]
        yield from self._block(stacked, (200, 400), (1, 2, 3))
        yield from self._block([("scratch", "")], (200, 400), (1, 2, 3), family="qwen3")
        yield from self._block(stacked, (800,), (1, 2, 3))
        yield from self._block([("scratch", "")], (200, 400), (4, 5))
        yield from self._block([("scratch", "")], (200, 400), (4, 5), family="qwen3")
        yield from self._block(stacked, (200, 400, 800), (4, 5))
        yield from self._block(stacked, (1600,), (1, 2, 3))
        others = [(arm, source) for source in ("phi", "phi-twice") for arm in ("small", "grown")]
        yield from self._block(others, (200, 400, 800), (1, 2, 3))
        yield from self._free((1, 2, 3))
        yield from self._treated((400,), (1, 2, 3))
        yield from self._block(stacked, (1600,), (4, 5))
        yield from self._block(stacked, (3200,), (1, 2, 3))
        yield from self._treated((1600,), (1, 2, 3))
        yield from self._block(others, (1600,), (1, 2, 3))
        yield from self._block(others, (200, 400, 800, 1600), (4, 5))
        yield from self._block(stacked, (3200,), (4, 5))
        yield from self._block(stacked, (400,), (1, 2, 3, 4, 5), optimizer="muon")
        yield from self._block(stacked, (200, 400, 800, 1600), (1, 2, 3, 4, 5), family="qwen3")
        yield from self._block(others, (3200,), (1, 2, 3, 4, 5))
        yield from self._block(stacked, (6400,), (1, 2))

    def _block(
        self, arms: Sequence[tuple[str, str]], budgets: Sequence[int], seeds: Sequence[int], family: str = "phi",
        optimizer: str = "adamw",
    ) -> Iterator[Setting]:  # fmt: skip
        groups = [Group(*arm, family, optimizer) for arm in arms]
        for group in groups:
            yield from self._tuning(group)
        for seed in seeds:
            for budget in budgets:
                for group in groups:
                    yield from self._arm(group, budget, seed)

    def _treated(self, budgets: Sequence[int], seeds: Sequence[int]) -> Iterator[Setting]:
        """Every treatment at the share of tuning, with the rates of the plain growth that it is compared with."""
        for source in dict.fromkeys(treatment.source for treatment in TREATMENTS.values()):
            yield from self._tuning(Group("grown", source))
        for budget in budgets:
            for seed in seeds:
                for name, treatment in TREATMENTS.items():
                    for run in self._arm(Group("grown", treatment.source), budget, seed):
                        if run.share == TUNING_SHARE:
                            yield replace(run, treatment=name)

    def _free(self, seeds: Sequence[int]) -> Iterator[Setting]:
        """A source that costs nothing: continued or grown, beside fresh weights, on its own text and on another."""
        groups = [Group("continue", "phi", free=FREE_BUDGET), Group("grown", "phi", free=FREE_BUDGET), Group("scratch")]
        for group in groups:
            yield from self._tuning(group)
        for seed in seeds:
            for domain in DOMAINS:
                for budget in FREE_BUDGETS:
                    for group in groups:
                        yield from (replace(run, domain=domain) for run in self._arm(group, budget, seed))

    def _arm(self, group: Group, budget: int, seed: int, tuning: bool = False, rate: float = 0.0) -> Iterator[Setting]:
        rate = rate or self.rate(group) or 0.0
        if not rate:
            return
        run = Setting(
            group.arm, budget, seed, rate, group.source, family=group.family, optimizer=group.optimizer,
            scale=self.scale, tuning=tuning, free=group.free,
        )  # fmt: skip
        if not (group.free or group.arm == "grown"):
            yield run
        elif source_rate := self.rate(replace(group, arm="small", free=0)):
            for share in (0.0,) if group.free else (TUNING_SHARE,) if tuning else SHARES:
                yield replace(run, share=share, source_rate=source_rate)

    def _tuning(self, group: Group) -> Iterator[Setting]:
        """Three rates; while the best is at an end of those tried, one more beyond it."""
        if group.arm in ("grown", "continue") and self.rate(replace(group, arm="small", free=0)) is None:
            yield from self._tuning(replace(group, arm="small", free=0))
            return
        rates = list(SCALES[self.scale].rates)
        found = self.tried(group)
        if found and self.rate(group) is None:
            best = min(found, key=found.__getitem__)
            rates += [best * 2 if best == max(found) else best / 2] if len(found) >= len(rates) else []
        for rate in rates:
            yield from self._arm(group, TUNING_BUDGET, 0, tuning=True, rate=rate)

    def tried(self, group: Group) -> dict[float, float]:
        """Rate -> held-out loss on the text for tuning."""
        keys = asdict(group)
        return {row["rate"]: row["loss"] for row in self.tuned if all(row.get(key, 0) == keys[key] for key in keys)}

    def rate(self, group: Group) -> float | None:
        """The best of the rates tried, once it has a worse one on either side."""
        found = self.tried(group)
        if len(found) < len(SCALES[self.scale].rates):
            return None
        best = min(found, key=found.__getitem__)
        return best if min(found) < best < max(found) else None


def ladder(runs: Runs, scale: str, device: str, threads: int, most_runs: int | None = None) -> None:
    """Trains what `runs` lacks, until nothing is left or `most_runs` are done. Raises `UserError` where another
    process works on the same file."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    runs.path.parent.mkdir(parents=True, exist_ok=True)
    with open(runs.path.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process writes {runs.path}; wait for it, or name another file") from error
        lab = Lab(scale, device, runs.path.with_suffix(".stable"))
        done = 0
        while (setting := Plan(scale, runs.rows()).next()) and done != most_runs:
            row = lab.run(setting)
            runs.append(row)
            done += 1
            words = {k: v for k, v in asdict(setting).items() if v and k not in ("scale", "source_rate")}
            print(f"{row['finished']} {row['loss']:.4f} {row['seconds']:6.1f} s  {words}", flush=True)


def write_report(rows: Sequence[dict[str, Any]], scale: str, results: Path, table: Path) -> None:
    """ladder.json and a picture of each ladder in `results`, the points for planning in `table`, tables on stdout."""
    if not rows:
        raise UserError("the file has no finished run; run --ladder first")
    record = ladder_record(rows, scale)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    write_json(
        results / "ladder.json", {"commit": commit, "device": rows[-1]["device"], "machine": cpu_name(), **record}
    )
    # What was measured at other sizes stays in the table.
    kept = json.loads(table.read_text(encoding="utf-8"))["ladders"] if table.is_file() else []
    kept = [ladder for ladder in kept if ladder["target_parameters"] != record["target_parameters"]]
    made = planning_table(record)
    write_json(table, {**made, "ladders": [*made["ladders"], *kept]})
    for ladder in record["ladders"]:
        name = "-".join(["ladder", ladder["family"], ladder["optimizer"], ladder["source"]])
        if svg := picture(ladder):
            write_text(results / f"{name}.svg", svg)
    print("\n".join(lines(record)))


def command(words: Sequence[str]) -> None:
    """`--ladder` and `--report` of scripts/bench_growth.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--ladder", action="store_true", help="train what is missing")
    action.add_argument("--report", action="store_true", help="write the tables and the picture")
    parser.add_argument("--runs", type=Path, required=True, help="file of the finished runs, one JSON line each")
    parser.add_argument("--scale", choices=SCALES, default="toy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for ladder.json and the picture")
    parser.add_argument("--table", type=Path, default=GROWTH_LADDER, help="what `hornbook plan` reads")
    parser.add_argument("--most-runs", type=int, help="stop after so many runs")
    arguments = parser.parse_args(words)
    try:
        runs = Runs(arguments.runs)
        if arguments.ladder:
            ladder(runs, arguments.scale, arguments.device, arguments.threads, arguments.most_runs)
        else:
            write_report(runs.rows(), arguments.scale, arguments.results, arguments.table)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
