"""Model folders in Hugging Face's form: written so that `AutoModelForCausalLM` loads them, read without transformers.

In: tensors by name (a state dict, or an iterator that makes them one at a time), a config, a tokenizer. Out: a folder
with config.json, generation_config.json, model.safetensors and the tokenizer. The writer streams: names, shapes and
dtype are known from the config, so the header goes first and each tensor follows as it comes, through a temporary name,
so that an interrupted writer leaves no half model. Only safetensors are read: a pickle can run a stranger's code.
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
import operator
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from model.config import ModelConfig, UnreadableModel, read_field, read_object
from model.special_tokens import SpecialTokens, token_id, write_json
from model.transformer import Transformer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # ours: safetensors'
IGNORED_TENSORS = ("rotary_emb.inv_freq",)  # derived from the config; old exports stored it
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMPARED_ROWS = 4096  # of two matrices at once


def save_folder(
    path: Path, state_dict: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], config: ModelConfig, tokenizer_json:
    Path | None, special: SpecialTokens | str, dtype: str = "float32",
) -> None:  # fmt: skip
    """Writes the folder, except for its README. `dtype` is one of `DTYPES`.

    An iterator must yield the tensors of `config.tensor_shapes()` in that order, whole or in pieces of rows (see
    `write_safetensors`; `growth.rules.stream` makes such). Tensors come under our names and are stored under those of
    the family. `special`: what the model's files are to say
    (`read_special_tokens` of its source), or the one token for every purpose, which must be in the tokenizer. Raises
    ValueError for tensors that do not fit the config, and for an end of text that the model has no row for.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(special, str):
        special = SpecialTokens.only(special, token_id(tokenizer_json, special) if tokenizer_json else None)
    special = special.within(config.vocab_size)
    if special.eos_token_id is not None and special.eos_token_id >= config.vocab_size:
        raise UnreadableModel(
            f"{special.eos_token!r} has id {special.eos_token_id}, outside model.vocab_size={config.vocab_size}; raise "
            "that size."
        )
    write_json(path / "config.json", config.to_hf(**special.model_ids(), dtype=dtype))
    if tokenizer_json and Path(tokenizer_json).resolve() != (path / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_json, path / "tokenizer.json")
    special.write(path, config.max_position_embeddings)
    tensors = _in_order(state_dict, config) if isinstance(state_dict, Mapping) else state_dict
    shapes, stored = config.tensor_shapes(), config.kin.stored_name
    write_safetensors(
        path / WEIGHTS,
        ((stored(name) if name in shapes else name, tensor) for name, tensor in tensors),
        {stored(name): shape for name, shape in shapes.items()},
        dtype,
    )


def write_safetensors(
    path: Path, tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> None:
    """Streams tensors, in the order of `shapes`, into one safetensors file; only one piece is in memory at a time.

    A tensor may come whole, or as several pieces of rows one after the other, each with the tensor's name. Raises
    `ValueError`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of: {', '.join(DTYPES)}.")
    torch_dtype = getattr(torch, dtype)
    partial = path.with_name(path.name + ".partial")
    names = iter(shapes)
    with partial.open("wb") as file:
        file.write(_header(shapes, dtype, torch_dtype.itemsize))
        for name, pieces in itertools.groupby(tensors, key=operator.itemgetter(0)):
            expected = next(names, None)
            wanted, rows = shapes.get(expected or "", ()), 0
            for _, piece in pieces:
                rows += len(piece)
                if name != expected or tuple(piece.shape[1:]) != wanted[1:] or rows > wanted[0]:
                    found = (rows, *piece.shape[1:])
                    raise ValueError(f"cannot write {path.name}: expected {expected!r} {wanted}, got {name!r} {found}.")
                stored = _cast(piece.detach().cpu(), torch_dtype, name).contiguous()
                file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
            if rows < wanted[0]:
                raise ValueError(f"cannot write {path.name}: {name!r} ended after {rows} of {wanted[0]} rows.")
        if (missing := next(names, None)) is not None:
            raise ValueError(f"cannot write {path.name}: the tensors ended before {missing!r}.")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Raises `UnreadableModel` where float16 has no such number: it would store infinity."""
    cast = tensor.to(dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and bool((cast.isinf() & ~tensor.isinf()).any()):
        largest = float(tensor.abs().max())
        raise UnreadableModel(
            f"{name} has a value of {largest:g}, and float16 ends at 65504; take bfloat16 or float32."
        )
    return cast


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str, itemsize: int) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        content[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return struct.pack("<Q", len(text)) + text


def _in_order(state_dict: Mapping[Any, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    shapes = config.tensor_shapes()
    _check_names(set(state_dict), shapes, "the state dict")
    return ((name, state_dict[name]) for name in shapes)


def load_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`. Raises `UnreadableModel` or `ImpossibleShape`.

    A config that ties head and embedding is read as untied where the weights beside it hold two different matrices, as
    transformers 5 does: merging an adapter into a tied model leaves such folders. One warning is logged.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        adapter = (Path(folder) / "adapter_config.json").is_file()
        why = "it holds an adapter; merge it into its model first" if adapter else "so it is no model folder"
        expected = "expected a folder with config.json, model.safetensors and tokenizer.json"
        raise UnreadableModel(f"{folder} has no config.json, {why}; {expected}.")
    config = ModelConfig.from_hf(read_object(file))
    if config.tie_word_embeddings and _has_own_head(Path(folder)):
        _warn_of_own_head(Path(folder))
        return dataclasses.replace(config, tie_word_embeddings=False)
    return config


def _has_own_head(folder: Path) -> bool:
    """Whether the weights hold a head that differs from the embedding. Weights that cannot be read say nothing here:
    `open_state` raises for them where they are needed."""
    try:
        state = open_state(folder)
    except UnreadableModel:
        return False
    if not {EMBEDDING, HEAD} <= set(state):
        return False
    embedding, head = state[EMBEDDING], state[HEAD]
    if embedding.shape != head.shape:
        return True
    pieces = zip(embedding.split(COMPARED_ROWS), head.split(COMPARED_ROWS), strict=True)
    return not all(torch.equal(a.float(), b.float()) for a, b in pieces)


@functools.cache  # once for each folder
def _warn_of_own_head(folder: Path) -> None:
    logging.getLogger(__name__).warning(
        f"note: {folder / 'config.json'} says tie_word_embeddings=true, but {HEAD} differs from {EMBEDDING}: both are "
        f"used, and the model is read as tie_word_embeddings=false."
    )


class SafetensorsState(Mapping[str, Tensor]):
    """Tensor names to tensors, memory-mapped: reading a name costs its pages, and nothing is kept."""

    def __init__(self, files: Mapping[str, Path], stored_names: Mapping[str, str] | None = None) -> None:
        """`files`: for each tensor name the file that holds it; `stored_names`: under which name, where it differs."""
        self._files, self._stored_names = dict(files), dict(stored_names or {})
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._opened(name).get_tensor(self._stored_names.get(name, name))

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """(shape, safetensors' name of the dtype) of a tensor that is not read."""
        part = self._opened(name).get_slice(self._stored_names.get(name, name))
        return tuple(part.get_shape()), str(part.get_dtype())

    def _opened(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt", device="cpu")
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def renamed(self, config: ModelConfig) -> "SafetensorsState":
        """The same under our names; tensors that the shape does not know keep theirs. A training's checkpoint, which
        is not for other programs, has our names already."""
        names = config.stored_names()
        if set(names.values()) - {HEAD} <= set(self._files):
            return self
        files = {names.get(name, name): file for name, file in self._files.items()}
        return SafetensorsState(
            files, {names.get(name, name): self._stored_names.get(name, name) for name in self._files}
        )

    def tied(self) -> "SafetensorsState":
        """The same with the one matrix of embedding and head under the embedding's name, whichever name the file has:
        some writers store it twice, others (safetensors' `save_model`) as the head alone."""
        files = dict(self._files)
        if HEAD not in files:
            return self
        head = files.pop(HEAD)
        return (
            SafetensorsState(files, {})
            if EMBEDDING in files
            else SafetensorsState(files | {EMBEDDING: head}, {EMBEDDING: HEAD})
        )


def open_state(folder: Path) -> SafetensorsState:
    """The tensors of `folder`, from one file or from the shards of an index, in the dtypes in which they are stored.

    Only headers are read. Raises `UnreadableModel` for pickles, missing or damaged files, and an index that is wrong.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        files = dict.fromkeys(_names_in(folder / WEIGHTS), folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        files = _indexed(folder)
    else:
        raise UnreadableModel(_why_no_weights(folder))
    return SafetensorsState({name: file for name, file in files.items() if not name.endswith(IGNORED_TENSORS)})


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as content:
            return list(content.keys())
    except Exception as error:  # safetensors raises its own, undocumented kinds
        raise UnreadableModel(f"{file} is damaged ({error}); write or download it again.") from error


def _indexed(folder: Path) -> dict[str, Path]:
    index = read_field(read_object(folder / INDEX), "weight_map", dict, folder / INDEX)
    if index is None or not all(isinstance(s, str) and Path(s).name == s and len(s) < 200 for s in index.values()):
        raise UnreadableModel(f"{folder / INDEX} is no index of shards that lie beside it; download it again.")
    missing = sorted({shard for shard in index.values() if not (folder / shard).is_file()})
    if missing:
        raise UnreadableModel(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; download it again.")
    held = {shard: set(_names_in(folder / shard)) for shard in set(index.values())}
    for name, shard in index.items():
        if name not in held[shard]:
            raise UnreadableModel(f"{folder / shard} lacks {name!r}, which {INDEX} places there; download both again.")
    return {name: folder / shard for name, shard in index.items()}


def _why_no_weights(folder: Path) -> str:
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind))
    if not pickles:
        return f"{folder} has neither {WEIGHTS} nor {INDEX}; check the path."
    return (
        f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is read, so hornbook "
        f"does not; take the safetensors revision of that model, or convert it once in a sandbox with "
        f"`AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)`."
    )


def open_model(folder: Path, weights: Path | None = None) -> tuple[ModelConfig, SafetensorsState]:
    """The shape of the model in `folder` and its tensors, memory-mapped: those of `config.tensor_shapes()`, no others.

    `weights`: the folder of the tensors, where it is another one. Raises `UnreadableModel` where tensors and config
    disagree, `ImpossibleShape` for a config that no network can have.
    """
    config, state = load_config(folder), open_state(weights or folder)
    if config.tie_word_embeddings:
        state = state.tied()
    state, shapes = state.renamed(config), config.tensor_shapes()
    stored = {ours: name for name, ours in config.stored_names().items()}
    _check_names({stored.get(name, name) for name in state}, stored.values(), str(folder))
    for name, shape in shapes.items():
        found, dtype = state.header(name)
        if found != shape:
            raise UnreadableModel(f"{folder}: {stored[name]} has shape {found}, but its config says {shape}.")
        if dtype not in DTYPES.values():
            kinds = ", ".join(DTYPES)
            raise UnreadableModel(
                f"{folder}: {stored[name]} is stored as {dtype}; expected weights in full, one of {kinds}."
            )
    return config, state


def load_network(
    folder: Path, dtype: torch.dtype = torch.float32, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """The network in `folder`, on `device`, in `dtype`, with the tensors of the folder `weights` where one is given.

    One tensor at a time, cast before it gets there: the device never holds more than the network. Raises
    `UnreadableModel` where tensors and config disagree.
    """
    config, state = open_model(folder, weights)
    with torch.device("meta"):
        network = Transformer(config)
    # Copies of their own: the mapped file must never be trained on.
    tensors = {name: state[name].to(dtype, copy=True).to(device) for name in config.tensor_shapes()}
    network.load_state_dict(tensors, assign=True)
    return network


def _check_names(found: set[str], shapes: Iterable[str], where: str) -> None:
    missing, extra = sorted(set(shapes) - found), sorted(found - set(shapes))
    if missing or extra:
        parts = [f"lacks {len(missing)} tensors, first {missing[0]!r}"] if missing else []
        parts += [f"has {len(extra)} that the config does not, first {extra[0]!r}"] if extra else []
        if missing == [HEAD]:
            parts[0] += " (tie_word_embeddings is false there; a model whose head is its embedding says true)"
        raise UnreadableModel(f"{where} does not fit its config: it {' and '.join(parts)}.")
