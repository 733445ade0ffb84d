"""What the clock and the machine decided, on disk before it is used: `decisions.jsonl` of one pretraining.

In: records as they are made. Out: the decay segments, extensions and skips in force, so that a resumed run takes the
same learning rate at every step, and a record from which a run can be repeated. One JSON object per line: `kind`,
`step` (steps done when it was decided), `time`, and what the kind needs. A later decay record replaces earlier ones
from its step on. Kinds: life (a process starts), card (on another device), memory, forecast, decay, extend (a raised
limit continues the run from before its decay), skip, emergency, threads, branch_point, branch, validated, replay,
finish.
"""

import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.schedules import DecaySegment, decay_progress
from pipeline.config import BudgetConfig
from pipeline.storage.files import hash_file
from pipeline.storage.run_files import raised
from pipeline.system.disk import append_synced
from pipeline.system.errors import UserError

SETTINGS = ("micro_batch", "threads")  # of a machine, which change the order in which sums run
NEEDED_FIELDS = {
    "decay": ("end_step", "progress"), "validated": ("bits_per_byte",), "forecast": ("steps", "seconds"),
    "branch": ("inherited_seconds",),
}  # fmt: skip


class Decisions:
    """The record of one run. `add` returns after the line is synced; a line torn by a kill is dropped on opening.
    `read_only`: of a run that another process may be writing. `content`: of a file elsewhere."""

    def __init__(self, path: Path | None, read_only: bool = False, content: bytes = b""):
        self.path = path
        self.records: list[dict[str, Any]] = _read(path, read_only) if path else _parse(content)
        self._decays = self._decays_in_force()

    def add(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        record = {"kind": kind, "step": step, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_synced(self.path, json.dumps(record).encode() + b"\n")
        self.records.append(record)
        self._decays = self._decays_in_force()
        return record

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]

    # ---- the decay

    def decays(self) -> list[dict[str, Any]]:
        """The decay records in force, by step: those after the last extension, less the replaced ones."""
        return self._decays

    def _decays_in_force(self) -> list[dict[str, Any]]:
        last = max((i for i, r in enumerate(self.records) if r["kind"] == "extend"), default=-1)
        return in_force([record for record in self.records[last + 1 :] if record["kind"] == "decay"])

    def segments(self) -> list[DecaySegment]:
        return [DecaySegment(r["step"], r["end_step"], r["progress"], r.get("hold_until", 0)) for r in self.decays()]

    def progress(self, step: float) -> float:
        """How far the decay has come when `step` steps are done; 0 before it starts."""
        return decay_progress(step, [s for s in self.segments() if s.step <= step])

    # ---- extensions, and the checkpoints that count

    @property
    def extension(self) -> int:
        """How often the run was extended. Checkpoints keep it under "branch"."""
        return len(self.of_kind("extend"))

    def counts(self, step: int, extension: int) -> bool:
        """Whether a checkpoint of `step` that was made in that extension is one of the run as it is now: each later
        extension left what lay beyond its step."""
        return all(step <= later["step"] for later in self.of_kind("extend")[extension:])

    def kept(self, steps: Sequence[int], keep: int) -> set[int]:
        """Of checkpoints, newest first: the `keep` newest, and wherever they are the one from before the decay, the
        best validated and those for branches."""
        kept = set(steps[:keep]) | {record["step"] for record in self.of_kind("branch_point")}
        if self._decays:
            kept.add(self._decays[0]["step"])
        if validations := self.validations():
            kept.add(min(validations, key=validations.__getitem__))
        return kept

    # ---- validations, which are recorded under `train.stop_after_worse`

    def validations(self) -> dict[int, float]:
        """Step -> bits per byte over all held-out text; an extension drops those beyond its step."""
        found: dict[int, float] = {}
        for record in self.records:
            if record["kind"] == "extend":
                found = {step: bits for step, bits in found.items() if step <= record["step"]}
            elif record["kind"] == "validated":
                found[record["step"]] = record["bits_per_byte"]
        return found

    def record_validation(self, step: int, bits_per_byte: float) -> bool:
        """Puts a validation on record; whether it is the best so far."""
        best = min(self.validations().values(), default=math.inf)
        self.add("validated", step, bits_per_byte=round(bits_per_byte, 6))
        return bits_per_byte < best


class RecordedRun:
    """The decisions of the run recorded in `path`, for `--replay`: they stand in for the clock's and the machine's.

    `path`: the `decisions.jsonl` of a run with the same config, data and init. From it come the decay, the end, and for
    each step the micro-batch and the number of threads, because both change the order in which sums run. On the same
    CPU the weights, the loss of every step and the text read are then equal bit by bit, however often either run was
    killed; on a GPU the text is, and the rest up to rounding. Raises `UserError` where the decisions cannot be
    followed.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"--replay: there is no file {path}; expected the decisions.jsonl of a pretraining")
        try:
            record = Decisions(path, read_only=True)
            precisions = {process["precision"] for process in record.of_kind("life")}
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"--replay: {path} is no decisions.jsonl of a pretraining ({error})") from None
        if len(precisions) != 1:
            found = ", ".join(sorted(precisions)) or "none"
            raise UserError(f"--replay: {path} records these precisions: {found}; expected one, as on one device")
        if record.of_kind("branch"):
            raise UserError(f"--replay: {path} is of a branch, which begins in another run; replay its trunk")
        self.precision: str = precisions.pop()
        self.decays = record.decays()
        ends = [r["step"] for r in record.of_kind("finish")]
        self.end_step: int | None = ends[-1] if ends else None
        self.sha256 = hash_file(path)
        self._settings = {
            key: in_force([r for r in record.records if r["kind"] in ("life", key) and key in r]) for key in SETTINGS
        }

    def setting(self, key: str, step: int) -> Any:
        """`micro_batch` or `threads` with which the step after `step` steps was taken; None: not on record."""
        return next((r[key] for r in reversed(self._settings[key]) if r["step"] <= step), None)

    def begin(self, decisions: Decisions) -> None:
        """Puts the decay on record in the run that repeats this one, once, however many processes it takes."""
        if decisions.of_kind("replay"):
            return
        for record in self.decays:
            decisions.add("decay", **{key: value for key, value in record.items() if key not in ("kind", "time")})
        decisions.add("replay", 0, sha256=self.sha256, end_step=self.end_step)


def in_force(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of one kind that still hold, by step: a later record replaces what earlier ones said from its step on."""
    kept: list[dict[str, Any]] = []
    for record in records:
        kept = [k for k in kept if k["step"] < record["step"]] + [record]
    return kept


def raised_decay(decisions: Decisions, budget: BudgetConfig) -> dict[str, Any] | None:
    """The first record of a decay that was planned for a smaller limit than this budget's, or None."""
    decays = decisions.decays()
    if not decays or decays[-1]["bound_by"] == "validation":
        return None
    limit = "max_tokens" if decays[-1]["bound_by"] == "tokens" else "max_gpu_hours"
    return decays[0] if raised(getattr(budget, limit), decays[-1][limit]) else None


def _read(path: Path, read_only: bool) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content) and not read_only:
        with open(path, "r+b") as file:  # what was never fully written was never used either
            file.truncate(whole)
            os.fsync(file.fileno())
    return _parse(content, str(path))


def _parse(content: bytes, where: str = "a copy of decisions.jsonl") -> list[dict[str, Any]]:
    """Raises `UserError` for a damaged line: without it nobody knows at what rate the next step trains."""
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # the last one is empty, or torn
        if line.strip():
            try:
                records.append(_checked(json.loads(line)))
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{where}, line {number} is damaged ({type(error).__name__}: {error!s:.200}); expected what "
                    "hornbook wrote there. Put back a copy of the file, or delete the line: that is then decided again"
                ) from None
    return records


def _checked(record: Any) -> dict[str, Any]:
    """Raises what comes of a record that lacks the fields of its kind, as finite numbers of at least 0."""
    if not isinstance(record["kind"], str) or isinstance(record["step"], float):
        raise TypeError("expected a kind and a whole number of steps")
    for name in ("step", *NEEDED_FIELDS.get(record["kind"], ()), *({"hold_until"} & record.keys())):
        if isinstance(record[name], bool) or not 0 <= record[name] < 1e15:
            raise ValueError(f"{name} is {record[name]!r:.50}")
    return record
