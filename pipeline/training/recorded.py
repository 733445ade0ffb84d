"""Runs again what was decided: the decisions of another run in place of the clock's and the machine's.

In: the `decisions.jsonl` of a run with the same config, data and init. Out: its decay, its end, and for each step the
micro-batch and the number of threads, because sums run in another order with others. On the same device the weights,
the loss of every step and the text read are then the same, bit by bit, however often either run was killed.
"""

from pathlib import Path
from typing import Any

from pipeline.storage.steps import hash_file
from pipeline.system.errors import UserError
from pipeline.training.decisions import Decisions, in_force

ABOUT_LIFE = ("micro_batch", "threads")


class Replay:
    """The decisions of the run recorded in `path`. Raises `UserError` where they cannot be followed."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"--replay: there is no file {path}; expected the decisions.jsonl of a pretraining")
        try:
            record = Decisions(path, mend=False)
            lives = record.of_kind("life")
            self.precision = {life["precision"] for life in lives}
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"--replay: {path} is no decisions.jsonl of a pretraining ({error})") from None
        if len(self.precision) != 1:
            found = ", ".join(sorted(self.precision)) or "no life at all"
            raise UserError(f"--replay: {path} records {found}; expected lives of one precision, as on one device")
        if record.of_kind("branch"):
            raise UserError(f"--replay: {path} is of a branch, which begins in another run; replay its trunk")
        self.decays = record.decays()
        ends = [r["step"] for r in record.of_kind("finish")]
        self.end_step: int | None = ends[-1] if ends else None
        self.sha256 = hash_file(path)
        self._settings = {
            key: in_force([r for r in record.records if r["kind"] in ("life", key) and key in r]) for key in ABOUT_LIFE
        }

    def setting(self, key: str, step: int) -> Any:
        """`micro_batch` or `threads` with which the step after `step` steps was taken; None: not on record."""
        return next((r[key] for r in reversed(self._settings[key]) if r["step"] <= step), None)

    def begin(self, decisions: Decisions) -> None:
        """Puts the decay on record in the run that follows; once, whatever its lives."""
        if decisions.of_kind("replay"):
            return
        for record in self.decays:
            decisions.add("decay", **{key: value for key, value in record.items() if key not in ("kind", "time")})
        decisions.add("replay", 0, sha256=self.sha256, end_step=self.end_step)
