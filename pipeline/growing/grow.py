"""Growing, as `hornbook grow` and the init stage share it: a method's rules applied to a source, and the gate.

In: a source model, windows of text. Out: a Hugging Face folder, and what growth changed: facts for the manifest, or a
`UserError` where a method broke its promise. The gate reads networks from their files block by block, so that the
models that growth is for fit; `affordable` chooses how much text is worth its time, and a line says how much that is.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import Config, nearest
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.system.errors import UserError
from pipeline.system.progress import counted, progress
from pipeline.training.cap import check_names

GATE_WINDOWS = 32  # at most


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Windows of held-out text: `input_ids` [B, T] (int64), and the bytes of one predicted token on average."""

    input_ids: Any
    bytes_per_token: float

    def bits_per_byte(self, nats_per_token: float) -> float:
        return nats_per_token / 0.6931471805599453 / self.bytes_per_token


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """Where a source lies: `folder` has its config.json, `weights` its safetensors (mostly the same folder)."""

    folder: Path
    weights: Path


def check_method(config: Config) -> None:
    """Raises `UserError` for an unknown method, option, optimizer or decay, and for a source too many or too few."""
    from model.growth import GROWTH

    check_names(config)
    method = GROWTH.get(config.init.method)
    if method is None:
        raise UserError(
            f"init.method is '{config.init.method}'{nearest(config.init.method, GROWTH)}; "
            f"expected one of {', '.join(GROWTH)}"
        )
    options = list(method.options)
    for key in config.init.options:
        if key not in options:
            raise UserError(
                f"init.options.{key}: method '{config.init.method}' has no such option{nearest(key, options)}; "
                f"it takes {', '.join(options) or 'none'}"
            )
    if method.needs_source and config.init.source is None:
        raise UserError(
            f"init.method '{config.init.method}' grows a smaller model: set init.source, or init.method=random"
        )
    if not method.needs_source and config.init.source is not None:
        raise UserError(
            f"init.method is '{config.init.method}', which uses no source: set init.method=exact, or init.source=null"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other in a loop: beside other work two of them took twice the CPU time and no less
    time by the clock for the same products, and most of growth is reading and writing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def grow_folder(config: Config, source: Any, target: Path, tokenizer_json: Path) -> dict[str, Any]:
    """Applies the method's rules and writes the grown model as a Hugging Face folder in fp32.

    `source`: (ModelConfig, state by name), or None for a method that needs none. `tokenizer_json`: goes with the model,
    with what the files beside it say; where it does not exist, what they say of ids alone. Raises `UserError` for what
    the method cannot do, with the method's own reason.
    """
    from model.growth import GROWTH
    from model.growth.rules import block_origins, cautions, stream
    from model.hf import save_folder

    method = GROWTH[config.init.method]
    shape, state = source if source else (None, {})
    try:
        rules = method(shape, config.model, **config.init.options)
    except ValueError as error:
        raise UserError(str(error)) from None
    for caution in cautions(shape, config.model) if shape else []:
        print(f"note: {caution}", flush=True)
    special = special_tokens(tokenizer_json, need_end=False)
    with progress("growing", config.model.parameters, "parameters") as bar:
        pieces = counted(stream(rules, state, seed=config.seed), bar)
        save_folder(
            target, pieces, config.model, tokenizer_json if tokenizer_json.is_file() else None, special, "float32"
        )
    return {
        "method": config.init.method,
        "source": config.init.source,
        "parameters": {
            "source": shape.parameters if shape else None,
            "grown": config.model.parameters,
        },
        "source_model": dataclasses.asdict(shape) if shape else None,
        "blocks": [{"source": block, "silent": silent} for block, silent in block_origins(rules)],
    }


def _stored(folder: Path, weights: Path) -> Any:
    from model.growth.gate import StoredNetwork
    from model.hf import load_config, open_state

    shape = load_config(folder)
    return StoredNetwork(shape, open_state(weights).renamed(shape))


@one_thread()
def measure(config: Config, files: SourceFiles | None, grown_folder: Path, windows: HeldOut) -> dict[str, Any]:
    """The gate: logits and loss of source and grown model on held-out windows, in fp32 (fp64 and bf16 beside it).

    Tensors come from the files themselves, past the network's loader, whose faults would be in both models. Raises
    `UserError` where a method that claims exactness moves a logit by more than `init.tolerance` of the largest one.
    """
    from model.growth import GROWTH
    from model.growth.gate import MAX_FLOPS, affordable, cost, examine, mean_loss

    grown = _stored(grown_folder, grown_folder)
    source = _stored(files.folder, files.weights) if files else None
    ids = affordable(source, grown, windows.input_ids)
    flops = cost(source, grown, *ids.shape)
    of = "" if ids.shape == windows.input_ids.shape else " (of {} of {})".format(*windows.input_ids.shape)
    print(
        f"  gate: {len(ids)} windows of {ids.shape[1]} tokens{of}: {flops / 1e12:.2g} of at most "
        f"{MAX_FLOPS / 1e12:g} TFLOP",
        flush=True,
    )
    with progress("gate", flops, "FLOP") as bar:
        if source is None:
            loss = mean_loss(grown, ids, bar.advance)
            return _facts(False, None, windows.bits_per_byte(loss), ids)
        report = examine(source, grown, ids, bar.advance)
    claims = GROWTH[config.init.method].claims_exact(**config.init.options)
    if claims and not report.fp32.max_rel_logit_diff <= config.init.tolerance:
        raise UserError(
            f"init.method '{config.init.method}' claims to keep the function, but logits moved by "
            f"{report.fp32.max_rel_logit_diff:.1e} of the largest one (init.tolerance is {config.init.tolerance:.0e}); "
            "the grown model is not used. If the source is fine, this is a defect of the method: please report it"
        )
    return _facts(claims, report, windows.bits_per_byte(report.fp32.grown_loss), ids) | {
        "source_bits_per_byte": windows.bits_per_byte(report.fp32.source_loss)
    }


def _facts(claims: bool, report: Any, grown_bits_per_byte: float, ids: Any) -> dict[str, Any]:
    """`report`: a `GateReport`, or None where there is no source."""
    text = {"windows": ids.shape[0], "window_tokens": ids.shape[1]}
    return {
        "function_preserving": claims,
        "max_abs_logit_diff": report.fp32.max_abs_logit_diff if report else None,
        "max_rel_logit_diff": report.fp32.max_rel_logit_diff if report else None,
        "source_bits_per_byte": None,
        "grown_bits_per_byte": grown_bits_per_byte,
        "gate": report.facts() | text if report else None,
    }
