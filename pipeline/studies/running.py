"""Runs a study's experiments, one stage after the other, each as its own process with its own ledger.

What is finished is passed over, so the same command goes on wherever it was stopped. With `stop` the experiments take
turns: each trains to a share of its budget, is stopped as by a signal (it saves), and only the best go on. What is
decided is synced to `runs/<study>/stops.jsonl` before it is used.
"""

import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline import config as configs
from pipeline.data import data_step
from pipeline.finetune import finetune_step
from pipeline.init import init_step, is_trained
from pipeline.quantize import quantize_step
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import MANIFEST, Step, hash_json, read_json_lines, read_metrics, root
from pipeline.studies.members import Trained
from pipeline.studies.study_file import Stop, Study
from pipeline.system.disk import append_synced
from pipeline.system.errors import DONE, STOPPED, WRONG_INPUT, Stopped, UserError
from pipeline.system.processes import start as start_child
from pipeline.training.identity import finished_manifest, pretrain_step

STOPS, FAILURES = "stops.jsonl", "failures.jsonl"
POLL_SECONDS = 0.2
LOSS = "val/bits_per_byte"
_finished: set[str] = set()


def run(study: Study, trained: Sequence[Trained], say: Callable[[str], None]) -> None:
    """Everything that is left. An experiment that fails (diverges, say) is noted and the others go on. Raises
    `UserError` where one's input is wrong, `Stopped` by a signal."""
    left = [one for one in trained if not is_finished(one)]
    say(f"{len(trained)} experiments, {len(trained) - len(left)} of them finished")
    for one in trained:
        one.write()
    if study.stop is not None:
        for share in study.stop.at:
            _rung(study, study.stop, share, trained, say)
    out = stopped(study)
    left = [one for one in left if one.name not in out]
    for number, one in enumerate(left, 1):
        began = time.monotonic()
        _whole(study, one)
        say(f"[{number}/{len(left)}] {one.name}: {'done' if is_finished(one) else 'failed'} in "
            f"{time.monotonic() - began:.0f} s")  # fmt: skip


def is_finished(one: Trained) -> bool:
    """Whether the last of its stages is there, by the fingerprints of what the study says now. Looked at once in a
    process: what was finished when it began stays so."""
    key = hash_json(configs.to_values(one.config))
    if key not in _finished and _last_is_there(one):
        _finished.add(key)
    return key in _finished


def _last_is_there(one: Trained) -> bool:
    try:
        return (
            _made(one, "quantize")
            and is_trained(one.config)
            and _finished_tuning(one)
            and quantize_step(one.config, "").finished
        )
    except UserError:  # a stage before has made nothing yet
        return False


def stopped(study: Study) -> dict[str, dict[str, Any]]:
    """Name of an experiment that was stopped early -> the record of it."""
    return {
        name: record for record in read_json_lines(_folder(study) / STOPS, stopped=list) for name in record["stopped"]
    }


def failed(study: Study) -> dict[str, str]:
    """Name of an experiment -> the stage that it failed in last."""
    return {
        record["name"]: record["stage"] for record in read_json_lines(_folder(study) / FAILURES, name=str, stage=str)
    }


def choose(losses: Mapping[str, Sequence[float]], keep: float) -> list[str]:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): the best share of the combinations by their
    mean loss, at least one. `losses`: combination -> bits per byte of its seeds."""
    ordered = sorted(losses, key=lambda name: (mean(losses[name]), name))
    return ordered[: max(1, math.ceil(keep * len(ordered)))]


def _rung(study: Study, stop: Stop, share: float, trained: Sequence[Trained], say: Callable[[str], None]) -> None:
    records = read_json_lines(_folder(study) / STOPS, at=float)
    if any(record["at"] == share for record in records):
        return
    out = stopped(study)
    groups: dict[str, list[Trained]] = defaultdict(list)
    for one in trained:
        if one.name not in out and one.name not in failed(study):
            groups[_combination(one)].append(one)
    losses: dict[str, list[float]] = {}
    for name, group in groups.items():
        for one in group:
            if _loss_at(one, share) is None:
                _until(study, one, share)
        found = [loss for one in group if (loss := _loss_at(one, share)) is not None]
        if found:
            losses[name] = found
    if not losses:
        return
    kept = choose(losses, stop.keep)
    ending = [one.name for name, group in groups.items() if name in losses and name not in kept for one in group]
    shown = {name: round(mean(found), 4) for name, found in sorted(losses.items())}
    record = {"at": share, "keep": stop.keep, "rule": "mean bits per byte over seeds", "losses": shown,
              "kept": kept, "stopped": ending}  # fmt: skip
    append_synced(_folder(study) / STOPS, json.dumps(record).encode() + b"\n")
    say(f"at {share:g} of the budget: {len(kept)} of {len(losses)} combinations go on: {', '.join(kept)}")


def _combination(one: Trained) -> str:
    return one.name.rsplit("/", 1)[-1].removesuffix(f"-s{one.seed}") or "all"


def _whole(study: Study, one: Trained) -> None:
    """All stages of one experiment."""
    _before_pretraining(study, one)
    for stage, is_done in (
        ("pretrain", lambda: _linked(one, "pretrain", lambda: pretrain_step(one.config)) and is_trained(one.config)),
        ("finetune", lambda: _finished_tuning(one)),
        ("quantize", lambda: _linked(one, "quantize", lambda: quantize_step(one.config, ""))),
    ):
        if not is_done() and not _stage(study, one, stage):
            return


def _before_pretraining(study: Study, one: Trained) -> None:
    if not _linked(one, "data", lambda: data_step(one.config)):
        _stage(study, one, "data")
    if not _linked(one, "init", lambda: init_step(one.config)):
        _stage(study, one, "init")


def _made(one: Trained, stage: str) -> bool:
    """Whether a finished folder stands under the experiment's name: quick, and not yet that it is the right one."""
    folder = Experiment(one.config).stage_folder(stage)
    return folder is not None and (folder / MANIFEST).is_file()


def _linked(one: Trained, stage: str, step: Callable[[], Step]) -> bool:
    """Whether it is the folder of `step`, which takes time to know: all inputs are looked at."""
    try:
        return _made(one, stage) and Experiment(one.config).stage_folder(stage) == step().path.resolve()
    except UserError:  # of an earlier form of the study: what it is now has no source yet
        return False


def _finished_tuning(one: Trained) -> bool:
    if not one.tuned:
        return True
    if not _made(one, "finetune"):
        return False
    step = finetune_step(one.config, "")
    linked = _linked(one, "finetune", lambda: step)
    return linked and finished_manifest(step, one.config.finetune.budget) is not None


def _until(study: Study, one: Trained, share: float) -> None:
    """Trains until a validation at `share` of the budget is on record, then stops it as a signal would."""
    _before_pretraining(study, one)
    _stage(study, one, "pretrain", until=lambda: _loss_at(one, share) is not None)


def _loss_at(one: Trained, share: float) -> float | None:
    """Held-out bits per byte where `share` of the budget was used, or None."""
    folder = Experiment(one.config).stage_folder("pretrain")
    if folder is None or not (folder / "metrics.jsonl").is_file():
        return None
    for row in read_metrics(folder / "metrics.jsonl"):
        if row.get(LOSS) is not None and row.get("budget/fraction", 0) >= share - 1e-6:
            return row[LOSS]
    return None


def _stage(study: Study, one: Trained, stage: str, until: Callable[[], bool] | None = None) -> bool:
    """One stage as a process; its output goes to `runs/<experiment>/<stage>.log`. Returns whether it ended well (or was
    stopped because `until` became true)."""
    log = Experiment(one.config).folder / f"{stage}.log"
    words = [sys.executable, "-P", "-m", "pipeline", stage, str(one.write())]
    with log.open("ab") as output:
        child = start_child(words, stdout=output, stderr=subprocess.STDOUT)
        asked = False
        try:
            while (code := _ended(child)) is None:
                if until is not None and not asked and until():
                    child.terminate()
                    asked = True
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code == STOPPED and not asked:
        raise Stopped("SIGTERM")
    if code == WRONG_INPUT:
        raise UserError(f"{one.name}: hornbook {stage} {one.path} found wrong input: {_last_line(log)}")
    if code not in (DONE, STOPPED):
        record = {"name": one.name, "stage": stage, "code": code, "log": str(log.relative_to(root()))}
        append_synced(_folder(study) / FAILURES, json.dumps(record).encode() + b"\n")
        return False
    return True


def _ended(child: subprocess.Popen) -> int | None:
    try:
        return child.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("hornbook: ") if lines else f"see {log}"


def _folder(named: Study | str) -> Path:
    return root() / "runs" / (named if isinstance(named, str) else named.name)
