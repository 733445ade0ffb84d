"""Growing: a method's rules applied to a source model, written as a Hugging Face folder.

What the init stage and `hornbook grow` share."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Config, nearest
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.growing.gate import one_thread
from pipeline.system.errors import UserError
from pipeline.system.progress import Progress, progress
from pipeline.training.cap import check_names


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
        pieces = _counted(stream(rules, state, seed=config.seed), bar)
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


def _counted(pieces: Iterable[tuple[str, Any]], bar: Progress) -> Iterator[tuple[str, Any]]:
    for name, piece in pieces:
        yield name, piece
        bar.advance(piece.numel())
