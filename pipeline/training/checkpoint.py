"""Checkpoints that are whole or not there: `checkpoints/step-00000120/`.

In: weights, optimizer state, random states and the position in the data at the end of an optimizer step. Out: a
folder of `model.safetensors` (fp32 masters where they exist), `trainer.pt` (tensors and plain values only) and
`checkpoint.json` (their sizes and SHA-256). It is written under a temporary name in the same folder (a TMPDIR elsewhere
would make the rename a copy), synced, renamed, and the folder is synced. `load` takes the newest whose hashes fit, else
the one before, with a warning. Nothing is unpickled before its hash fits, and then only with weights_only.

On a card the loop waits only for the copy to the host (`save_behind`); a thread writes, syncs and hashes it.
"""

import copy
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.hf import write_safetensors
from model.optim import are_finite
from pipeline.storage.files import hash_file, hash_json, write_json
from pipeline.storage.run_files import INDEX, TRAINER, WEIGHTS, checkpoint_name, checkpoint_step
from pipeline.system.disk import check_free, sync_entry, writing
from pipeline.system.errors import Failure, UserError
from pipeline.system.processes import refuse_unsafe_loading
from pipeline.training.decisions import Decisions
from pipeline.training.memory import copy_to_host, on_host

FREE_SPACE_FACTOR = 2  # of the bytes of one checkpoint, free before it is written


@dataclass(frozen=True)
class State:
    """What a checkpoint holds; its tensors stay on their device, without copies, until they are written.

    `weights`: in any dtype, written as fp32; `optimizer`: flat names to tensors, without the weights; `values`: plain
    values; `random`: of the generators at the end of the step, None: as they are when it is saved.
    """

    step: int
    sequence_index: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    values: Mapping[str, Any]
    random: Mapping[str, Any] | None = None

    @property
    def bytes(self) -> int:
        weights = sum(tensor.numel() for tensor in self.weights.values())
        return 4 * weights + sum(tensor.nbytes for tensor in self.optimizer.values())


class NotFinite(Failure):
    """A state with an infinite or undefined number must never replace a good one."""


class Checkpoints:
    """The checkpoints of one run: saves, prunes, and loads the newest that is whole.

    `keep`: how many newest ones stay, besides the one from before the decay. `say`: where warnings go.
    Raises `UserError` where the environment would let `torch.load` run code.
    """

    def __init__(self, folder: Path, keep: int, decisions: Decisions, say: Callable[[str], None] = print):
        refuse_unsafe_loading()
        self.folder, self.keep, self.decisions, self.say = folder, keep, decisions, say
        self._writer: threading.Thread | None = None
        self._written_seconds = 0.0
        self._failure: BaseException | None = None

    def path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def steps(self) -> list[int]:
        """Steps of all checkpoints that count, newest first; not yet known to be whole. Waits for one being written."""
        self.settle()
        found = [checkpoint_step(path.name) for path in self.folder.glob("step-*")]
        return sorted((step for step in found if step is not None and self._counts(step)), reverse=True)

    def save(self, state: State) -> Path:
        """Writes, syncs, hashes, renames, prunes. Raises `NotFinite` or `DiskFull`; earlier checkpoints stay whole."""
        self.settle()
        _check_finite(state)
        return self._save(state)

    def save_behind(self, state: State) -> None:
        """Copies the state to the host, `state.bytes` or less, and returns while a thread saves the copy. Raises
        `NotFinite`; what goes wrong in the thread is raised by the next `settle`."""
        self.settle()
        _check_finite(state)
        check_free(self.folder.parent, FREE_SPACE_FACTOR * state.bytes)
        still = replace(
            state,
            weights=copy_to_host(state.weights),
            optimizer=copy_to_host(state.optimizer),
            values=copy.deepcopy(dict(state.values)),  # the loop changes these while they are written
            random=state.random or random_state(),
        )
        self._writer = threading.Thread(target=self._save_still, args=(still,), name="checkpoint", daemon=True)
        self._writer.start()

    def settle(self, wait: bool = True) -> float | None:
        """Ends a `save_behind`: the seconds that its thread took, None where there is none or, without `wait`, where it
        still writes. Raises what went wrong in it, `DiskFull` above all."""
        writer = self._writer
        if writer is None or writer is threading.current_thread() or (not wait and writer.is_alive()):
            return None
        writer.join()
        self._writer = None
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure
        return self._written_seconds

    def _save_still(self, state: State) -> None:
        started = time.monotonic()
        try:
            self._save(state)
        except BaseException as error:  # the loop's thread raises it
            self._failure = error
        self._written_seconds = time.monotonic() - started

    def _save(self, state: State) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        check_free(self.folder, FREE_SPACE_FACTOR * state.bytes)
        final = self.path(state.step)
        part = self.folder / f".{final.name}.{os.getpid()}.part"
        try:
            with writing(part, FREE_SPACE_FACTOR * state.bytes):
                self._write(part, state)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if final.exists():  # a damaged or abandoned one of the same step
            final.rename(part.with_suffix(".old"))
        part.rename(final)
        sync_entry(self.folder)
        shutil.rmtree(part.with_suffix(".old"), ignore_errors=True)
        self.prune()
        return final

    def _write(self, part: Path, state: State) -> None:
        part.mkdir(parents=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.weights.items()}
        write_safetensors(part / WEIGHTS, on_host(state.weights.items()), shapes, "float32")
        trainer = {"step": state.step, "sequence_index": state.sequence_index, "values": dict(state.values)}
        # torch.save takes one tensor at a time to the host; `load` maps them there whatever card they come from.
        optimizer = {name: tensor.detach() for name, tensor in state.optimizer.items()}
        with open(part / TRAINER, "wb") as file:  # ours, so that a failed write keeps its error number
            torch.save({**trainer, "optimizer": optimizer, "random": state.random or random_state()}, file)
            file.flush()
            os.fsync(file.fileno())
        index = {
            "step": state.step,
            "sequence_index": state.sequence_index,
            "branch": self.decisions.extension,
            "spent_seconds": state.values.get("spent_seconds"),
            "files": {name: _seal(part / name) for name in (WEIGHTS, TRAINER)},
        }
        _write_index(part, index)

    def load(self) -> State | None:
        """The newest checkpoint that is whole, or None. A damaged one is named and set aside."""
        for orphan in self.folder.glob(".step-*"):  # of a process that was killed inside a save
            shutil.rmtree(orphan, ignore_errors=True)
        steps = self.steps()
        for step in steps:
            path = self.path(step)
            problem = self.damage(path)
            if problem is None:
                return self._read(path)
            instead = "starting from the first step" if step == steps[-1] else "resuming from the one before it"
            self.say(f"WARNING: checkpoint {path} is damaged ({problem}); {instead}")
            path.rename(path.with_name(path.name + ".damaged"))
        return None

    def at(self, step: int) -> State | None:
        """One that is whole, or None."""
        return None if self.damage(self.path(step)) else self._read(self.path(step))

    def best(self, step: int) -> State | None:
        """The best validated state that was kept and is whole, to be exported instead of the one after the last `step`;
        None where that one is the best."""
        validations, kept = self.decisions.validations(), set(self.steps())
        for best in sorted(validations, key=validations.__getitem__):
            if best == step:
                return None
            if best in kept and (state := self.at(best)) is not None:
                return state
        return None

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint's files, or None: sizes first, then hashes."""
        try:
            index = json.loads((path / INDEX).read_text(encoding="utf-8"))
            sealed = index.pop("sha256")
            if hash_json(index) != sealed:
                return f"{INDEX} does not fit its own hash"
            for name, expected in index["files"].items():
                size = (path / name).stat().st_size
                if size != expected["bytes"]:
                    return f"{name} has {size:,} bytes, expected {expected['bytes']:,}"
                if hash_file(path / name) != expected["sha256"]:
                    return f"{name} does not fit its hash"
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error!s:.200}"
        return None

    def _read(self, path: Path) -> State:
        trainer = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
        weights = load_file(path / WEIGHTS)
        restore_random_state(trainer["random"])
        return State(trainer["step"], trainer["sequence_index"], weights, trainer["optimizer"], trainer["values"])

    def prune(self) -> None:
        """Keeps the newest, the one from before the decay, the best validated, those for branches; removes the rest."""
        kept = self.decisions.kept(self.steps(), self.keep)
        for path in self.folder.glob("step-*"):
            if checkpoint_step(path.name) not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def spent_seconds(self, step: int) -> float | None:
        """Device-seconds when the checkpoint was made; None where it does not say."""
        try:
            return json.loads((self.path(step) / INDEX).read_text(encoding="utf-8")).get("spent_seconds")
        except (OSError, ValueError):
            return None

    def adopt(self, path: Path) -> None:
        """Takes another run's checkpoint in, by hard links where the disk allows it. Raises `UserError` where it is
        damaged."""
        part, final = self.folder / f".{path.name}.{os.getpid()}.part", self.folder / path.name
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with writing(part, sum((path / name).stat().st_size for name in (WEIGHTS, TRAINER, INDEX))):
            for name in (WEIGHTS, TRAINER, INDEX):
                _link_or_copy(path / name, part / name)
        if problem := self.damage(part):
            shutil.rmtree(part)
            raise UserError(f"checkpoint {path} is damaged ({problem}); choose another budget for the branch")
        index = json.loads((part / INDEX).read_text(encoding="utf-8"))
        index.update(branch=self.decisions.extension)
        del index["sha256"]
        _write_index(part, index)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        sync_entry(self.folder)

    def _counts(self, step: int) -> bool:
        """Whether no later extension of the run left the checkpoint behind."""
        try:
            extension = json.loads((self.path(step) / INDEX).read_text(encoding="utf-8"))["branch"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return True  # damaged: `load` reports it
        return not isinstance(extension, int) or self.decisions.counts(step, extension)


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Seals a checkpoint that lies under a temporary name: its index with the index's own hash, all of it synced."""
    write_json(folder / INDEX, {**index, "sha256": hash_json(index)})


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def random_state() -> dict[str, Any]:
    """Python, NumPy, torch and CUDA generators as tensors and plain values (NumPy arrays cannot be loaded safely)."""
    version, internal, gauss = random.getstate()
    _, key, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    state: dict[str, Any] = {
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [torch.from_numpy(key.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def seed_random_state(seed: int) -> None:
    """Where a run begins: whatever was drawn while starting up leaves no trace in it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the generators of Python, numpy and torch to what a checkpoint holds."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    key, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):  # another machine may have fewer
            torch.cuda.set_rng_state(generator, index)


def _check_finite(state: State) -> None:
    tensors = {**state.weights, **state.optimizer}
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    for name, finite in zip(names, are_finite(tensors[name] for name in names).tolist(), strict=True):
        if not finite:
            raise NotFinite(f"{name} holds a number that is not finite after step {state.step}; nothing was saved")


def _seal(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}
