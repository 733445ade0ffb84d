"""Compiles for cards, on a machine without one, the kernels that torch.compile makes of model/fused.py's functions.

    python scripts/compile_kernels.py --environment /tmp/kernels    # makes it: a CUDA build of torch, 5.5 GB, a minute
    python scripts/compile_kernels.py --environment /tmp/kernels --out docs/results/gpu/kernels.json

Out: registers, spilled bytes and shared memory of each kernel and launch setting, by ptxas, for sm_80 (A100), sm_89
(L4, RTX 4090) and sm_90 (H100, H200). Tensors are fake; a card's properties stand in for the driver's answers. What the
kernels compute is tested on a CPU (tests/model/test_fused.py); how fast they are needs a card.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TORCH = "torch==2.14.1"
NEEDED_GB = 8
ROOT = Path(__file__).resolve().parents[1]
# What the compiler asks of a card: multiprocessors, threads and shared memory of one (CUDA programming guide).
CARDS = {80: (108, 2048, 163), 89: (128, 1536, 99), 90: (132, 2048, 227)}
ROWS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="folder of the environment, made if missing")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"), help="where the results go")
    parser.add_argument("--capability", type=int, choices=CARDS, help="compile for this one here (for this script)")
    arguments = parser.parse_args()
    if arguments.capability:
        print(json.dumps(compile_all(arguments.capability)))
        return
    python = environment(arguments.environment)
    found: dict[str, Any] = {"torch": TORCH, "kernels": []}
    for capability in CARDS:
        command = [str(python), "-P", __file__, "--environment", str(arguments.environment)]
        done = subprocess.run(
            [*command, "--capability", str(capability)], check=True, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=arguments.environment,
        )  # fmt: skip
        found["kernels"] += json.loads(done.stdout.splitlines()[-1])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found["kernels"]))


def environment(folder: Path) -> Path:
    """The environment's python."""
    python = folder / "bin" / "python"
    if not python.is_file():
        free_gb = shutil.disk_usage(folder.absolute().parent).free / 1e9
        if free_gb < NEEDED_GB:
            sys.exit(f"{folder}: {free_gb:.1f} GB are free, torch with CUDA needs {NEEDED_GB}; choose another folder")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", TORCH, "numpy"], check=True)
    return python


def stand_in(capability: int) -> list[tuple[str, str]]:
    """Answers for a card in place of the driver; returns the list that Triton sources (name, text) will be added to."""
    import torch
    import torch._dynamo.device_interface as interfaces
    from torch._inductor import async_compile, config
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.runtime.driver import driver  # pyright: ignore[reportMissingImports]

    processors, threads, shared_kb = CARDS[capability]
    properties = SimpleNamespace(
        name=f"sm_{capability}", major=capability // 10, minor=capability % 10, multi_processor_count=processors,
        max_threads_per_multi_processor=threads, max_threads_per_block=1024, regs_per_multiprocessor=65536,
        warp_size=32, shared_memory_per_block=49152, shared_memory_per_block_optin=shared_kb * 1024,
        total_memory=24 << 30,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "get_device_properties": properties, "current_device": 0, "is_available": True, "device_count": 1,
        "is_bf16_supported": True, "maybe_exchange_device": 0, "exchange_device": 0, "set_device": None,
    }  # fmt: skip
    for name, answer in {**answers, "get_compute_capability": capability}.items():
        setattr(interfaces.CudaInterface, name, staticmethod(lambda *a, answer=answer, **k: answer))
    for name, answer in {**answers, "get_device_capability": divmod(capability, 10), "_lazy_init": None}.items():
        if name != "is_available":  # torch would then ask the driver for memory
            setattr(torch.cuda, name, lambda *a, answer=answer, **k: answer)
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0))  # type: ignore
    triton_helpers.set_driver_to_gpu = lambda: None
    triton_heuristics.StaticTritonCompileResult.can_statically_launch = staticmethod(lambda *a: None)  # type: ignore
    config.force_disable_caches, config.compile_threads = True, 1
    sources: list[tuple[str, str]] = []

    def keep(self: Any, name: str, source: str, device_str: str = "cuda") -> Any:
        sources.append((name, source))
        return SimpleNamespace(run=None)

    async_compile.AsyncCompile.triton = keep  # type: ignore[method-assign]
    return sources


def compile_all(capability: int) -> list[dict[str, Any]]:
    sources = stand_in(capability)
    import torch
    from torch._inductor.codecache import PyCodeCache
    from torch._subclasses.fake_tensor import FakeTensorMode

    rows = []
    for label in ("sum", "adamw", "adamw8bit", "adamw4bit", "loss"):
        sources.clear()
        torch._dynamo.reset()
        with FakeTensorMode(), torch.no_grad():
            function, arguments = case(label)
            try:
                function.run_compiled(*arguments)
            except (RuntimeError, TypeError, AttributeError):  # there is no card to run it
                if not sources:
                    raise
        for name, source in list(dict(sources).items()):
            tuner = getattr(PyCodeCache.load(source), name)
            for setting in tuner.configs:
                kernel = tuner._precompile_config(setting).kernel
                rows.append({"capability": capability, "function": label, "kernel": name, **usage(kernel, setting)})
    return rows


def case(label: str) -> tuple[Any, tuple[Any, ...]]:
    """A fused function and arguments of Phi-2's sizes: rows of a slice; a chunk's logits."""
    import torch

    from model.loss import GPU_CHUNK_TOKENS, nats_
    from model.updates import SUM_ROW, Quantizer, adamw_rows, add_rows

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    if label == "sum":
        return add_rows, tuple(empty(ROWS, SUM_ROW, dtype=torch.bfloat16) for _ in range(2))
    if label == "loss":
        logits = empty(GPU_CHUNK_TOKENS, 51200, dtype=torch.bfloat16)
        return nats_, (logits, empty(GPU_CHUNK_TOKENS, dtype=torch.int64), True, True, 0.0)
    bits = {"adamw": 32, "adamw8bit": 8, "adamw4bit": 4}[label]
    quantizers: list[Any] = [None, None]
    width = SUM_ROW
    if bits < 32:
        quantizers = [Quantizer(bits, signed, torch.device("cpu")) for signed in (True, False)]
        width = quantizers[0].block
        for quantizer in quantizers:
            quantizer.book, quantizer.borders = empty(2**bits), empty(2**bits - 1)
    moment = lambda: (  # noqa: E731
        [empty(ROWS, width)] if bits == 32 else [empty(ROWS, width * bits // 8, dtype=torch.uint8), empty(ROWS, 1)]
    )
    weights, grads = (empty(ROWS, width, dtype=torch.bfloat16) for _ in range(2))
    scalars = tuple(empty() for _ in range(4))
    return adamw_rows, (weights, grads, (moment(), moment()), tuple(quantizers), scalars, (0.9, 0.95), 1e-8, True)


def usage(kernel: Any, setting: Any) -> dict[str, Any]:
    """What ptxas says of one compiled kernel."""
    from triton.backends.nvidia.compiler import get_ptxas  # pyright: ignore[reportMissingImports]

    capability = re.search(r"\.target (sm_\w+)", kernel.asm["ptx"])
    assert capability is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"], encoding="utf-8")
        command = [get_ptxas(80).path, "-v", f"--gpu-name={capability[1]}", str(source), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    numbers = {
        name: int(found[1]) if (found := re.search(pattern, said)) else 0
        for name, pattern in {
            "registers": r"Used (\d+) registers", "spilled_bytes": r"(\d+) bytes spill stores",
        }.items()
    }  # fmt: skip
    return {
        "warps": setting.num_warps, "settings": setting.kwargs, **numbers, "shared_bytes": kernel.metadata.shared,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| function | sm | kernels | settings | registers | spilled bytes | shared bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for function, capability in dict.fromkeys((row["function"], row["capability"]) for row in rows):
        own = [row for row in rows if (row["function"], row["capability"]) == (function, capability)]
        spans = [
            f"{min(r[k] for r in own)} to {max(r[k] for r in own)}"
            for k in ("registers", "spilled_bytes", "shared_bytes")
        ]
        lines.append(
            f"| {function} | {capability} | {len({r['kernel'] for r in own})} | {len(own)} | {' | '.join(spans)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
