"""Does growth pay, and does it fit into memory? Two benchmarks in one file, plain PyTorch on a CPU.

Training (default): Python's standard library as text, a small BPE, a source and a target in the ratios of phi-1.5 to
phi-2 (width, head size and MLP 1.25x, blocks 4/3). Everything sees fresh text, the same batch size and peak rate. Both
accountings are printed together: source free, and source counted in FLOPs.
Streaming (`--streaming`): synthetic fp16 weights of phi-1.5's exact shape, grown to phi-2's in a child process.
"""

import argparse
import json
import math
import operator
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.heads import GrowHeadSize
from model.growth.operations import Centre, Chain, Constant, Pad, Scale
from model.growth.rules import Rule, apply, stream
from model.hf import load_config, open_state, save_folder
from model.optim import adamw, parameter_groups
from model.schedules import DecaySegment, cosine, wsd
from model.transformer import Transformer

WINDOW, BATCH_WINDOWS, HELD_OUT_BATCHES = 128, 16, 8
PEAK_RATE = 8e-3  # near the best for scratch among 3e-3, 6e-3, 12e-3 (GROWTH.md 4.2); the same for every run
DECAY_SHARE = 0.3
SOURCE = ModelConfig(512, 48, 192, 3, 3, partial_rotary_factor=0.5, max_position_embeddings=WINDOW)
MIDDLE = ModelConfig(512, 54, 216, 3, 3, partial_rotary_factor=8 / 18, max_position_embeddings=WINDOW)
TARGET = ModelConfig(512, 60, 240, 4, 3, partial_rotary_factor=0.4, max_position_embeddings=WINDOW)
PHI_1_5 = ModelConfig(51200, 2048, 8192, 24, 32)
PHI_2 = ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4)
COST = {id(c): c.flops_per_token(WINDOW) / TARGET.flops_per_token(WINDOW) for c in (SOURCE, MIDDLE, TARGET)}

Schedule = Callable[[int], float]
Row = dict[str, Any]


@dataclass
class Run:
    """One training: `curve` holds (steps, held-out nats per token); cost in steps of the target, source included."""

    network: Transformer
    curve: list[tuple[int, float]]
    source_cost: float = 0.0
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def final(self) -> float:
        return self.curve[-1][1]

    @property
    def cost(self) -> float:
        return self.source_cost + self.curve[-1][0] * COST[id(self.network.config)]

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


Figure = Callable[[dict[str, Run]], float | None]


class Text:
    """Token windows of the standard library's sources: `batch(seed, step)` never repeats within 2 x `steps` steps."""

    def __init__(self, steps: int) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        left_out = {"test", "tests", "site-packages", "__pycache__"}
        files = sorted(f for f in root.rglob("*.py") if not left_out & set(f.relative_to(root).parts))
        random.Random(0).shuffle(files)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=SOURCE.vocab_size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts[:100], trainer)
        wanted = (2 * steps + HELD_OUT_BATCHES) * BATCH_WINDOWS * (WINDOW + 1)
        ids: list[int] = []
        for text in texts:
            ids += tokenizer.encode(text).ids
            if len(ids) >= wanted:
                break
        if len(ids) < wanted:
            raise SystemExit(f"the standard library has {len(ids):,} tokens, {wanted:,} are needed: take fewer --steps")
        windows = torch.tensor(ids[:wanted]).view(-1, BATCH_WINDOWS, WINDOW + 1)
        self.held_out, self._train = windows[:HELD_OUT_BATCHES], windows[HELD_OUT_BATCHES:].flatten(0, 1)

    def batch(self, seed: int, step: int) -> Tensor:
        """Windows of one step, [windows, tokens + 1], in an order that depends on the seed."""
        order = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(seed))
        return self._train[order[step * BATCH_WINDOWS : (step + 1) * BATCH_WINDOWS]]


@dataclass
class Lab:
    """Trains and grows with one seed; `steps` is the length of the scratch run."""

    text: Text
    seed: int
    steps: int

    def train(self, network: Transformer, steps: int, schedule: Schedule, first: int = 0, **kept: Any) -> Run:
        """`first`: step at which the run starts to read the text. `kept`: source_cost, moments, start (of a trunk)."""
        optimizer = adamw(parameter_groups(network, 0.1), PEAK_RATE)
        for name, parameter in network.named_parameters():
            if state := kept.get("moments", {}).get(name):
                optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}
        start = kept.get("start", 0)
        every, curve = max(4, self.steps // 25), [(start, self.held_out_loss(network))]
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * schedule(step)
            ids_BT = self.text.batch(self.seed, first + step)
            loss_sum, count = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
            (loss_sum / count).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % every == 0 or step + 1 == steps:
                curve.append((step + 1, self.held_out_loss(network)))
        moments = {name: optimizer.state[p] for name, p in network.named_parameters() if p in optimizer.state}
        return Run(network, curve, kept.get("source_cost", 0.0), moments)

    @torch.no_grad()
    def held_out_loss(self, network: Transformer) -> float:
        return mean(float(network.loss(b[:, :-1], b[:, 1:])[0]) / b[:, 1:].numel() for b in self.text.held_out)

    def fresh(self, config: ModelConfig) -> Transformer:
        return Transformer(config).initialize(self.seed)

    def grow(self, source: Run, target: ModelConfig, method: str, **options: Any) -> Transformer:
        rules = GROWTH[method](source.network.config, target, **options)
        grown = Transformer(target)
        grown.load_state_dict(dict(apply(rules, source.network.state_dict(), self.seed)))
        return grown

    def cosine(self, steps: int) -> Schedule:
        """Warm-up, then a cosine to a tenth."""
        warmup = self.steps // 16
        return lambda step: min((step + 1) / warmup, 0.1 + 0.9 * cosine(max(0, step - warmup) / (steps - warmup)))

    def wsd(self, steps: int) -> Schedule:
        segments = [DecaySegment(round(steps * (1 - DECAY_SHARE)), steps)]
        return lambda step: wsd(step, self.steps // 16, segments)


def grown_moments(rules: list[Rule], source: dict[str, dict[str, Tensor]], seed: int) -> dict[str, dict[str, Tensor]]:
    """Adam's moments for a grown network (at most one whole copy of the stream), after GROWTH.md item 12.

    Where a weight is c times its source, its gradient is 1/c times the old one. New entries, and inserted blocks, whose
    gradients start at zero or anew, start at 0.
    """
    silenced = {_block(rule.target) for rule in rules if isinstance(rule.operation, Constant)}
    moments: dict[str, dict[str, Tensor]] = {rule.target: {} for rule in rules}
    for key, power in (("exp_avg", -1), ("exp_avg_sq", -2)):
        state = {name: values[key] for name, values in source.items()}
        turned = [replace(rule, operation=_gradient_rule(rule, power, silenced)) for rule in rules]
        for rule, (name, tensor) in zip(turned, apply(turned, state, seed), strict=True):
            moments[name][key] = tensor
            moments[name]["step"] = source[rule.sources[0] if rule.sources else "lm_head.bias"]["step"]
    return moments


def _gradient_rule(rule: Rule, power: int, silenced: set[str]) -> Any:
    if not isinstance(rule.operation, Chain) or _block(rule.target) in silenced:
        return Constant(rule.shape, 0.0, "no gradient yet")
    steps = []
    for step in rule.operation.steps:
        if isinstance(step, Scale):
            steps.append(Scale(step.factor**power, step.reason))
        elif isinstance(step, Pad | GrowHeadSize):
            steps.append(replace(step, fill="zero"))
        elif not isinstance(step, Centre):
            raise NotImplementedError(f"moments do not pass through: {step.describe()}")
    return Chain(tuple(steps))


def _block(name: str) -> str:
    return ".".join(name.split(".")[:3])


def experiment(lab: Lab) -> dict[str, Run]:
    """All runs of one seed, by name."""
    T, source_share = lab.steps, COST[id(SOURCE)]
    cut = round(T * (1 - source_share))  # what is left for the target when the source's T steps are paid
    runs: dict[str, Run] = {}

    def train(name: str, network: Transformer, steps: int, schedule: Callable[[int], Schedule], **more: Any) -> None:
        began = time.monotonic()
        runs[name] = lab.train(network, steps, schedule(steps), **more)
        print(f"  seed {lab.seed} {name:<30} {runs[name].final:.4f}  {time.monotonic() - began:.0f} s", flush=True)

    train("scratch", lab.fresh(TARGET), T, lab.cosine)
    train("source", lab.fresh(SOURCE), T, lab.cosine)
    paid = {"first": T, "source_cost": runs["source"].cost}
    train("exact, same schedule", lab.grow(runs["source"], TARGET, "exact"), T, lab.cosine, **paid)
    train("exact, cut", lab.grow(runs["source"], TARGET, "exact"), cut, lab.cosine, **paid)
    copied = {"new_blocks": "copy", "exact": False}
    train("exact, live new blocks, cut", lab.grow(runs["source"], TARGET, "exact", **copied), cut, lab.cosine, **paid)
    train("rescale, cut", lab.grow(runs["source"], TARGET, "rescale"), cut, lab.cosine, **paid)
    train("stack, cut", lab.grow(runs["source"], TARGET, "stack"), cut, lab.cosine, **paid)
    half = round((T - runs["source"].cost) / 3 / COST[id(MIDDLE)])  # a third of what is left goes to the middle model
    train("middle", lab.grow(runs["source"], MIDDLE, "exact"), half, lab.cosine, **paid)
    rest = round(T - runs["middle"].cost)
    second = {"first": T + half, "source_cost": runs["middle"].cost}
    train("two steps of growth", lab.grow(runs["middle"], TARGET, "exact"), rest, lab.cosine, **second)
    train("cheap source", lab.fresh(SOURCE), T * 2 // 5, lab.cosine)
    cheap = {"first": T * 2 // 5, "source_cost": runs["cheap source"].cost}
    left = round(T - cheap["source_cost"])
    train("exact from cheap source", lab.grow(runs["cheap source"], TARGET, "exact"), left, lab.cosine, **cheap)
    _before_the_decay(lab, runs, train, cut)
    return runs


def _before_the_decay(lab: Lab, runs: dict[str, Run], train: Callable[..., None], cut: int) -> None:
    """The same with hornbook's own schedule: growing the source from before its decay, or after it."""
    T, trunk = lab.steps, round(lab.steps * (1 - DECAY_SHARE))
    full = lab.wsd(T)
    train("scratch, wsd", lab.fresh(TARGET), T, lab.wsd)
    train("source before its decay", lab.fresh(SOURCE), trunk, lambda _: full)
    before = runs["source before its decay"]
    decayed = Transformer(SOURCE)
    decayed.load_state_dict(before.network.state_dict())
    train("source decayed", decayed, T, lambda _: full, start=trunk, moments=before.moments)
    rules = GROWTH["exact"](SOURCE, TARGET)
    moments = grown_moments(rules, before.moments, lab.seed)
    early, late = {"first": T, "source_cost": before.cost}, {"first": T, "source_cost": runs["source decayed"].cost}
    left = round(T - before.cost)
    train("from before the decay", lab.grow(before, TARGET, "exact"), cut, lab.wsd, **early)
    train("same, equal total FLOPs", lab.grow(before, TARGET, "exact"), left, lab.wsd, **early)
    train("same, moments grown", lab.grow(before, TARGET, "exact"), cut, lab.wsd, moments=moments, **early)
    train("from the decayed source", lab.grow(runs["source decayed"], TARGET, "exact"), cut, lab.wsd, **late)


def rows_of(seeds: list[dict[str, Run]], T: int) -> list[Row]:
    """The table of figures: means over seeds, each with its values per seed."""
    rows = []

    def add(name: str, of: Figure, unit: str, goal: str = "", reach: str = "") -> None:
        values = [of(runs) for runs in seeds]
        known = [value for value in values if value is not None]
        value = mean(known) if len(known) == len(values) else None
        row: Row = {"name": name, "value": value, "unit": unit, "goal": goal or None, "met": _met(value, goal)}
        rows.append(row | ({"reach": reach, "reached": _met(value, reach)} if reach else {}) | {"per_seed": values})

    def tokens(name: str, base: str = "scratch") -> Figure:
        return lambda runs: _over(runs[name].steps_to(runs[base].final), 0.0, T)

    def flops(name: str, base: str = "scratch") -> Figure:
        return lambda runs: _over(runs[name].steps_to(runs[base].final), runs[name].source_cost, T)

    def better(name: str, base: str = "scratch") -> Figure:
        return lambda runs: runs[base].final - runs[name].final

    def figures(name: str, base: str = "scratch", goals: tuple[str, ...] = ("", "", "", "", "", "")) -> None:
        add(f"{name}: tokens to {base}'s loss, source free", tokens(name, base), "x", *goals[:2])
        add(f"{name}: total FLOPs to it, source counted", flops(name, base), "x", *goals[2:4])
        add(f"{name}: better than {base}", better(name, base), "nats", *goals[4:])
        add(f"{name}: share of scratch's FLOPs spent", lambda runs: runs[name].cost / T, "x")
        add(f"{name}: loss before training", lambda runs: runs[name].curve[0][1], "nats")
        add(f"{name}: re-warm bump", lambda runs: runs[name].bump[0], "nats")
        add(f"{name}: back after, share of T", lambda runs: _over(runs[name].bump[1], 0.0, T), "x")

    figures("exact, same schedule", goals=("<= 0.60", "<= 0.40", "", "", "", ""))
    figures("exact, cut", goals=("<= 0.50", "<= 0.30", "<= 0.95", "<= 0.80", ">= 0.04", ">= 0.12"))
    for name in ("exact, live new blocks, cut", "rescale, cut", "stack, cut", "two steps of growth"):
        figures(name)
    add("two steps of growth: better than one", better("two steps of growth", "exact, cut"), "nats", "", "> 0")
    figures("exact from cheap source")
    for name in ("from before the decay", "same, equal total FLOPs", "same, moments grown", "from the decayed source"):
        figures(name, "scratch, wsd")
    for name in ("scratch", "scratch, wsd", "source", "source before its decay", "source decayed"):
        add(f"{name}: final loss", lambda runs, name=name: runs[name].final, "nats")
    return rows


def _over(steps: float | None, extra: float, T: int) -> float | None:
    return None if steps is None else (steps + extra) / T


def _met(value: float | None, goal: str) -> bool | None:
    if not goal:
        return None
    relation, limit = goal.split()
    holds = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}[relation]
    return value is not None and holds(value, float(limit))


def streaming(quick: bool) -> list[Row]:
    """Memory and time of phi-1.5 -> phi-2, each measured in a process of its own; `quick` takes 4 -> 5 blocks."""
    import shutil

    shapes = (replace(PHI_1_5, num_hidden_layers=4), replace(PHI_2, num_hidden_layers=5)) if quick else (PHI_1_5, PHI_2)
    with tempfile.TemporaryDirectory(prefix="bench_growth.") as folder:
        needed = 2 * shapes[0].parameters + 4 * shapes[1].parameters
        if shutil.disk_usage(folder).free < needed + 4e9:
            raise SystemExit(f"{folder} needs {needed / 1e9:.0f} GB of free disk and 4 GB to spare; set TMPDIR")
        save_folder(Path(folder) / "source", _synthetic(shapes[0]), shapes[0], None, "", "float16")
        rows = []
        for dtype in ("bfloat16", "float32"):
            command = [sys.executable, "-P", __file__, "--grow-once", folder, dtype, json.dumps(shapes[1].__dict__)]
            facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            goals = {"private_gb": ("<= 2.5", "<= 1.0"), "cpu_seconds": ("<= 120", "<= 60")}
            for name, unit in (("private_gb", "GB"), ("cpu_seconds", "s"), ("wall_seconds", "s")):
                goal, reach = goals.get(name, ("", ""))
                row = {"name": f"phi-1.5 to phi-2 as {dtype}: {name}", "value": facts[name], "unit": unit}
                row |= {"goal": goal or None, "met": _met(facts[name], goal), "reach": reach or None}
                rows.append(row | {"reached": _met(facts[name], reach)})
            shutil.rmtree(Path(folder) / "grown")
    return rows


def _synthetic(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for name, shape in config.tensor_shapes().items():
        if name.endswith("layernorm.weight"):
            yield name, torch.ones(shape)
        else:
            yield name, noise.repeat(math.prod(shape) // noise.numel() + 1)[: math.prod(shape)].view(shape)


def grow_once(folder: Path, dtype: str, target: ModelConfig) -> dict[str, float]:
    """Grows folder/source to folder/grown. Private memory: what the kernel counts as anonymous, without the mapped
    file's pages, with all that Python and torch hold."""
    torch.set_num_threads(1)
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, done))
    watcher.start()
    wall, cpu = time.monotonic(), time.process_time()
    rules = GROWTH["exact"](load_config(folder / "source"), target)
    pieces = stream(rules, open_state(folder / "source"), seed=0)
    save_folder(folder / "grown", pieces, target, None, "", dtype)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    done.set()
    watcher.join()
    return {"private_gb": peak[0], "cpu_seconds": cpu, "wall_seconds": wall}


def _watch(peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.02):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak[0] = max(peak[0], *(int(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon")))


def show(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| figure | value | goal | met | reach |", "|---|---|---|---|---|"]
    for row in rows:
        value = "never" if row["value"] is None else f"{row['value']:.3f} {row['unit']}"
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        reach = f"{row['reach']} {'yes' if row['reached'] else 'no'}" if row.get("reach") else ""
        lines.append(f"| {row['name']} | {value} | {row['goal'] or ''} | {met} | {reach} |")
    return "\n".join(lines)


def record(rows: list[Row], **more: Any) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {"python": platform.python_version(), "torch": metadata.version("torch")}
    machine = f"{platform.machine()}, one thread"
    return {"bench": "growth", "commit": commit.stdout.strip(), "machine": machine, "versions": versions} | {
        "rows": rows,
        **more,
    }


def training_record(seeds: list[dict[str, Run]], steps: int) -> dict[str, Any]:
    """Rows, settings and every curve of the seeds so far."""
    curves = [{name: {"source_cost": r.source_cost, "curve": r.curve} for name, r in s.items()} for s in seeds]
    settings = {"steps": steps, "seeds": len(seeds), "tokens_per_step": WINDOW * BATCH_WINDOWS, "peak_rate": PEAK_RATE}
    return record(rows_of(seeds, steps), settings=settings, curves=curves)


def write(path: str | None, content: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file to write the rows and curves to")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: shows that it runs, proves nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of the scratch run, 2,048 tokens each")
    parser.add_argument("--streaming", action="store_true", help="phi-1.5's shape to phi-2's: memory and time")
    parser.add_argument("--grow-once", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow_once:
        folder, dtype, shape = arguments.grow_once
        print(json.dumps(grow_once(Path(folder), dtype, ModelConfig(**json.loads(shape)))))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.streaming:
        content = record(streaming(arguments.quick))
    else:
        steps, count = (32, 1) if arguments.quick else (arguments.steps, arguments.seeds)
        text, seeds, content = Text(steps), [], {}
        for seed in range(1, count + 1):
            seeds.append(experiment(Lab(text, seed, steps)))
            content = training_record(seeds, steps)
            write(arguments.json, content)  # after every seed: an hour of measuring is not lost to a full disk
    print(show(content["rows"]))
    write(arguments.json, content)


if __name__ == "__main__":
    main()
