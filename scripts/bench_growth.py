"""phi-1.5's exact shape to phi-2's from synthetic fp16 weights: memory and time, each in a process of its own.

    scripts/with_env.sh scripts/bench_growth.py --json docs/results/growth/bench_growth_streaming.json

The tensors alone, streamed as bf16 and as fp32; and all of `hornbook grow` with its gate, from the process's start.
The comparisons with scratch and between ways to spend a budget, whose figures docs/growth has, are in the scripts of
commit b39d95c.
"""

import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.rules import stream
from model.hf import open_model, save_folder
from pipeline import grow
from scripts import growth_ladder
from scripts.bench_rows import Part, Rows, at_most, main, row

PHI_1_5 = ModelConfig(51200, 2048, 8192, 24, 32)
PHI_2 = ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4)
GATED = "float32 with the gate"
MOST_GIGABYTES = {"bfloat16": 2.5, "float32": 2.5, GATED: 3.0}
MOST_SECONDS = 120.0


def streaming(quick: bool) -> Rows:
    """`quick` takes 4 -> 5 blocks."""
    shapes = (replace(PHI_1_5, num_hidden_layers=4), replace(PHI_2, num_hidden_layers=5)) if quick else (PHI_1_5, PHI_2)
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="bench_growth.") as folder:
        needed = 2 * shapes[0].parameters + 4 * shapes[1].parameters
        if shutil.disk_usage(folder).free < needed + 4e9:
            raise SystemExit(f"{folder} needs {needed / 1e9:.0f} GB of free disk and 4 GB to spare; set TMPDIR")
        save_folder(Path(folder) / "source", _synthetic(shapes[0]), shapes[0], None, "", "float16")
        for dtype in ("bfloat16", "float32", GATED):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                facts = pool.submit(grow_once, Path(folder), dtype, shapes[1]).result()
            name = f"phi-1.5 to phi-2 as {dtype}"
            rows += [
                at_most(f"{name}: private_gb", facts["private_gb"], "GB", MOST_GIGABYTES[dtype]),
                at_most(f"{name}: cpu_seconds", facts["cpu_seconds"], "s", MOST_SECONDS),
                row(f"{name}: wall_seconds", round(facts["wall_seconds"], 1), "s"),
            ]
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
    """Grows folder/source to folder/grown, with the gate where `dtype` is `GATED`. CPU time: of all threads, user and
    system, since the process began. Private memory: what the kernel counts as anonymous, without the mapped files'
    pages, with all that Python and torch hold."""
    if dtype != GATED:  # which sets its threads itself
        torch.set_num_threads(1)
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, done))
    watcher.start()
    wall = time.monotonic()
    try:
        if dtype == GATED:
            changed = {k: v for k, v in asdict(target).items() if v is not None and v != getattr(PHI_1_5, k)}
            words = [f"model.{k}={v}" for k, v in changed.items()]
            grow.run(str(folder / "source"), str(folder / "grown"), words, None)
        else:
            source, state = open_model(folder / "source")
            pieces = stream(GROWTH["exact"](source, target), state, seed=0)
            save_folder(folder / "grown", pieces, target, None, "", dtype)
    finally:
        done.set()
        watcher.join()
    return {"private_gb": peak[0], "cpu_seconds": time.process_time(), "wall_seconds": time.monotonic() - wall}


def _watch(peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.02):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak[0] = max(peak[0], *(int(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon")))


PARTS = {"streaming": Part(streaming)}

if __name__ == "__main__":
    if {"--ladder", "--report"} & set(sys.argv):
        growth_ladder.command(sys.argv[1:])
        sys.exit()
    main(__file__, __doc__ or "", "growth", PARTS, ("torch",))
