"""Launches and bytes of the passes between tensors: of plain operations by listing them, of functions of model/fused.py
by asking the compiler for its kernels. Nothing is run: tensors may be fake, and no C++ or Triton is compiled."""

from collections import Counter
from typing import Any

import torch
from torch._inductor.codegen.common import BackendFeature
from torch._inductor.graph import GraphLowering
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.fused import Fused

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
# Views, questions and memory: nothing is launched.
QUIET = (
    "view", "_unsafe_view", "t", "transpose", "slice", "select", "expand", "unsqueeze", "squeeze", "as_strided",
    "alias", "detach", "split", "split_with_sizes", "unbind", "empty", "empty_like", "new_empty", "empty_strided",
    "unsafe_split", "device", "is_pinned", "_record_function_enter_new", "_record_function_exit", "result_type",
)  # fmt: skip
TENSORS_A_LAUNCH = 64  # of torch's multi-tensor functions; the fewest of those used here


class _Counted(Exception):
    pass


def compiled(function: Fused, *args: Any) -> tuple[int, int]:
    """(launches, bytes read and written) of a fused function for these arguments, as the compiler plans them.

    On a CPU it would call torch's bucketize, which it writes itself on a card (Triton has it); it is told that it can.
    """
    module, feature = GraphLowering.compile_to_module, GraphLowering.has_feature

    def count(graph: GraphLowering) -> None:
        graph._update_scheduler()
        kernels = [node for node in graph.scheduler.nodes if node.get_read_write_buffers_sizes()]
        raise _Counted(len(kernels), graph.count_bytes()[0])

    GraphLowering.compile_to_module = count  # type: ignore[method-assign]
    GraphLowering.has_feature = lambda self, device, wanted: (  # type: ignore[method-assign]
        wanted == BackendFeature.BUCKETIZE or feature(self, device, wanted)
    )
    torch._dynamo.reset()
    try:
        with torch._inductor.config.patch(fx_graph_cache=False), torch.no_grad():
            function.run_compiled(*args)
    except Exception as error:
        found = getattr(error, "inner_exception", error)
        if isinstance(found, _Counted):
            return found.args
        raise
    finally:
        GraphLowering.compile_to_module, GraphLowering.has_feature = module, feature  # type: ignore[method-assign]
        torch._dynamo.reset()
    raise AssertionError("nothing was compiled")


class Launches(TorchDispatchMode):
    """Under it `launches` and `bytes` count by operation. A fused function, handed over by `fused.watched`, counts by
    its kernels and by what goes in and out; `fused_launches`: of each, by name."""

    def __init__(self, fused_launches: dict[str, int]) -> None:
        super().__init__()
        self.fused_launches = fused_launches
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._inside = False

    def fused(self, function: Fused, args: tuple[Any, ...]) -> Any:
        self._inside = True
        out = function.function(*args)
        self._inside = False
        self.launches[function.__name__] += self.fused_launches[function.__name__]
        return out

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.name().split("::")[1].split(".")[0]
        if self._inside or name in QUIET:
            return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {}, out)) if isinstance(leaf, torch.Tensor)]
        many = name.startswith(("_foreach", "_fused")) or name == "cat"
        count = len(tree_leaves(args[0])) if many else 1
        self.launches[name] += -(-count // TENSORS_A_LAUNCH)
        self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out
