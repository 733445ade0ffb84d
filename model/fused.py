"""Passes over memory that run as one or a few kernels on a CUDA device: small functions, compiled there and only there.

In: a function of tensors under the decorator `fused`. Out: the same function. On CUDA torch.compile makes its kernels
at the first call; elsewhere it runs as it is written, so that a CPU neither waits for a compiler nor rounds anew.
Compiled torch rather than Triton by hand: one text serves both devices, a CPU test of it is a test of the formula, and
what is left to trust is the compiler. Kernels, bytes and results are tested on a CPU with the same compiler.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Watcher = Callable[["Fused", tuple[Any, ...]], Any]
_watchers: list[Watcher] = []


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Hands every call of a fused function to `watcher`, which returns its result: for traces on fake tensors, where
    the passes between its inputs and outputs are not those of the card."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.pop()


class Fused:
    """See `fused`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, *args: Any) -> Any:
        if _watchers:
            return _watchers[-1](self, args)
        if args[0].device.type == "cuda" and compiling_works():
            return self.run_compiled(*args)
        return self.function(*args)

    def run_compiled(self, *args: Any) -> Any:
        """On any device. One compilation serves every number of rows, the first dimension of the arguments."""
        for leaf in tree_leaves(args):
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] > 1:
                torch._dynamo.mark_dynamic(leaf, 0)
        return self._compiled(*args)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        # With fullgraph a graph break and too many compilations are errors, not a slow run that says nothing. A whole
        # row in registers, the compiler's choice for short rows, spills in the 8-bit step (docs/results/gpu).
        return torch.compile(self.function, fullgraph=True, options={"triton.persistent_reductions": False})


def fused(function: Callable[..., Any]) -> Fused:
    """The decorator. The first argument is a tensor, whose device decides. Tensors have rows as their first dimension,
    or no dimension at all; what else is passed is a constant of the compiled code."""
    return Fused(function)


@cache
def compiling_works() -> bool:
    """Whether torch.compile makes a kernel on this CUDA device; says so once where it does not."""
    try:
        torch.compile(lambda x: x + 1, fullgraph=True)(torch.zeros(16, device="cuda"))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a missing compiler, Triton or kernel: torch raises a class of its own for each
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"torch.compile does not run here, optimizer and loss take many passes: {reason}", stacklevel=3)
        return False
    return True
