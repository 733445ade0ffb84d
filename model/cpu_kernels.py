"""Fused passes for a CPU: cross entropy, GELU, SwiGLU, RMSNorm, causal softmax, rotation; cpu_kernels.c, compiled
where it runs.

In: contiguous bf16 or fp32 tensors on the CPU. Out: the same values as torch's own operations up to one rounding in
bf16, to a few roundings in fp32. torch makes
each of these passes in several sweeps over memory and with exponentials of full precision. The compiler is the
system's (`CC`, else cc); the library is kept in the user's cache folder, by source, compiler and CPU. Where there is
no compiler, or torch brings no GNU OpenMP whose threads could be shared, torch's own operations are used.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
ELEMENTS = {torch.bfloat16: "bf16", torch.float32: "fp32"}  # how the functions for each type end
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-Wall")


def usable(x: Tensor) -> bool:
    """Whether the kernels take this tensor: real bf16 or fp32 on a CPU, not a stand-in that only has a shape, and not
    in a graph that torch.compile makes, which fuses passes itself."""
    if (
        torch.compiler.is_compiling()
        or x.dtype not in ELEMENTS
        or x.device.type != "cpu"
        or type(x) not in (Tensor, torch.nn.Parameter)
    ):
        return False
    return available() is not None


@cache
def available() -> ctypes.CDLL | None:
    """The compiled library, or None; `why_not` then says what is missing. The first call may take a second."""
    return None if why_not() is not None else _load()


@cache
def why_not() -> str | None:
    """What keeps the kernels from being used here; None where nothing does."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"not written for {platform.system()} on {platform.machine()}"
    if _compiler() is None:
        return "no C compiler"
    if _shared_openmp() is None:
        return "torch has no GNU OpenMP here"
    try:
        _load()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # no home, no space, a compiler that fails
        return f"no compiled library: {' '.join(str(error).split())[:200]}"
    return None


@cache
def _load() -> ctypes.CDLL:
    ctypes.CDLL(_shared_openmp(), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(_library()))


def cross_entropy_(
    logits_CV: Tensor, bias_V: Tensor | None, labels_C: Tensor, grad: bool, z_loss: float = 0.0
) -> Tensor:
    """Nats of each row [C] of logits (+ bias) in fp32, 0 where the label is negative. With `grad` the logits become the
    gradient, that of nats + `z_loss` * log(Z)^2. Raises IndexError for a label past the vocabulary."""
    loss_C = torch.empty(logits_CV.shape[0], dtype=torch.float32)
    labels_C = labels_C.long().contiguous()
    if int(labels_C.max()) >= logits_CV.shape[1]:
        raise IndexError(f"label {int(labels_C.max())} of a vocabulary of {logits_CV.shape[1]}")
    sizes = (*logits_CV.shape, ctypes.c_int(grad), ctypes.c_float(z_loss))
    _call("cross_entropy", logits_CV, bias_V, labels_C, loss_C, *sizes)
    return loss_C


def add_column_sums_(sums_V: Tensor, x_CV: Tensor) -> None:
    """sums += x.sum(0), in fp32."""
    _call("column_sums", x_CV, sums_V, *x_CV.shape)


def causal_softmax_(scores_NQP: Tensor, start: int) -> Tensor:
    """Softmax in place over the keys that query `start` + q sees: those up to its own place."""
    _call("causal_softmax", scores_NQP, *scores_NQP.shape, start)
    return scores_NQP


def causal_softmax_backward_(dp_NQP: Tensor, p_NQP: Tensor, start: int) -> Tensor:
    """The scores' gradient from the probabilities', in place."""
    _call("causal_softmax_backward", dp_NQP, p_NQP, *p_NQP.shape, start)
    return dp_NQP


def rotate(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor, sign: float) -> Tensor:
    """See `model.attention.rotate`; x may be strided but for its last dimension. `sign` -1 turns back."""
    if x_BHTK.stride(3) != 1:
        x_BHTK = x_BHTK.contiguous()
    y_BHTK = torch.empty(x_BHTK.shape, dtype=x_BHTK.dtype)
    sizes = (*x_BHTK.shape, cos_TR.shape[1], *x_BHTK.stride()[:3])
    _call("rotate", x_BHTK, y_BHTK, cos_TR.contiguous(), sin_TR.contiguous(), *sizes, ctypes.c_float(sign))
    return y_BHTK


def gelu(x: Tensor) -> Tensor:
    """The tanh GELU, differentiable."""
    return _Gelu.apply(x)  # type: ignore[no-any-return]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _call("gelu", x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _call("gelu_backward", grads[0].contiguous(), x, dx, x.numel())
        return dx


def swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """silu(gate) * x, differentiable."""
    return _SwiGLU.apply(gate, x)  # type: ignore[no-any-return]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, x: Tensor) -> Tensor:
        gate, x = gate.contiguous(), x.contiguous()
        ctx.save_for_backward(gate, x)
        y = torch.empty_like(x)
        _call("swiglu", gate, x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, x = ctx.saved_tensors
        dgate, dx = torch.empty_like(gate), torch.empty_like(x)
        _call("swiglu_backward", grads[0].contiguous(), gate, x, dgate, dx, x.numel())
        return dgate, dx


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, differentiable; the weight has the dtype of x."""
    return _RMSNorm.apply(x_D, weight_D, eps)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_D, weight_D = x_D.contiguous(), weight_D.contiguous()
        y_D, rows = torch.empty_like(x_D), x_D.numel() // x_D.shape[-1]
        inverse = torch.empty(rows, dtype=torch.float32)
        _call("rms_norm", x_D, weight_D, y_D, inverse, rows, x_D.shape[-1], ctypes.c_float(eps))
        ctx.save_for_backward(x_D, weight_D, inverse)
        return y_D

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_D, weight_D, inverse = ctx.saved_tensors
        dx_D, dweight_D = torch.empty_like(x_D), torch.zeros(weight_D.shape, dtype=torch.float32)
        sizes = (inverse.numel(), x_D.shape[-1])
        _call("rms_norm_backward", grads[0].contiguous(), x_D, weight_D, inverse, dx_D, dweight_D, *sizes)
        return dx_D, dweight_D.to(weight_D.dtype), None


def _call(name: str, x: Tensor, *arguments: Any) -> None:
    """Tensors go as addresses, whole numbers as int64; the number of torch's threads comes last. `x` says the type."""
    library = available()
    if library is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {why_not()}; ask `usable` first")
    given = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in (x, *arguments)
    ]
    library[f"{name}_{ELEMENTS[x.dtype]}"](*given, ctypes.c_int(torch.get_num_threads()))


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC") or "cc")


@cache
def _library() -> Path:
    """The compiled library's path, compiled if it is not there yet. Raises CalledProcessError, OSError."""
    compiler = _compiler() or "cc"
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    parts = [SOURCE.read_bytes(), repr(FLAGS).encode(), version, _cpu().encode()]
    name = f"cpu_kernels-{hashlib.sha256(b'/'.join(parts)).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook"
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            part = Path(work) / "part.o"
            # Linked without -fopenmp: the threads are to be those of torch's own OpenMP, not a second set.
            for command in (
                [compiler, *FLAGS, "-c", str(SOURCE), "-o", str(part)],
                [compiler, "-shared", str(part), "-o", str(part.with_suffix(".so")), "-lm"],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            part.with_suffix(".so").replace(folder / name)
    return folder / name


def _cpu() -> str:
    """What -march=native looks at: a library made on one machine must not be used on another of the same home."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _shared_openmp() -> str | None:
    """Path of the GNU OpenMP that torch has loaded into this process."""
    for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
        path = line.split(maxsplit=5)[-1]
        if "libgomp" in Path(path).name:
            return path
    return None
