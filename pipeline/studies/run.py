"""Runs a study's experiments in turn, each stage as its own process with its own ledger.

Finished stages are skipped, so the same command resumes a study that was stopped. With `stop`, every experiment first
trains to a share of its budget and is then stopped as by a signal (it saves); only the best continue. Each decision is
synced to `runs/<study>/stops.jsonl` before it is used.
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
from pipeline.finetune import finetune_step
from pipeline.quantize import quantize_step
from pipeline.stages import data_step, init_step, is_trained, pretrain_step
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import hash_json, read_json_lines, read_metrics, root
from pipeline.storage.run_files import finished_manifest
from pipeline.storage.steps import MANIFEST
from pipeline.studies.file import Study
from pipeline.studies.members import Training
from pipeline.system.disk import append_synced
from pipeline.system.errors import DONE, STOPPED, WRONG_INPUT, Stopped, UserError
from pipeline.system.processes import start as start_child
from pipeline.system.progress import progress

STOPS, FAILURES = "stops.jsonl", "failures.jsonl"
POLL_SECONDS = 0.2
LOSS = "val/bits_per_byte"
STEPS = {
    "data": data_step,
    "init": init_step,
    "pretrain": pretrain_step,
    "finetune": lambda config: finetune_step(config, ""),
    "quantize": lambda config: quantize_step(config, ""),
}
_finished: set[str] = set()  # experiments, by a hash of their config


def run(study: Study, trainings: Sequence[Training], say: Callable[[str], None]) -> None:
    """Everything that is left. An experiment that fails (its loss diverges, for example) is recorded and the others
    continue. Raises `UserError` where an experiment's input is wrong, `Stopped` by a signal."""
    left = [one for one in trainings if not is_finished(one)]
    say(f"{len(trainings)} experiments, {len(trainings) - len(left)} of them finished")
    for one in trainings:
        one.write()
    with progress(f"study {study.name}", len(trainings), "experiments", done=len(trainings) - len(left)) as bar:
        if study.stop is not None:
            for share in study.stop.at:
                _halve(study, share, study.stop.keep, trainings, say)
        out = stopped(study)
        left = [one for one in left if one.name not in out]
        for number, one in enumerate(left, 1):
            began = time.monotonic()
            _run_stages(study, one, _stages(one))
            ended = "done" if is_finished(one) else "failed"
            bar.advance()
            say(f"[{number}/{len(left)}] {one.name}: {ended} in {time.monotonic() - began:.0f} s")


def is_finished(one: Training) -> bool:
    """Whether all of its models are made, by the fingerprints of the study as it is now. A finished experiment stays
    finished, so a process checks it once."""
    key = hash_json(configs.to_values(one.config))
    if key not in _finished and all(_is_done(one, stage) for stage in reversed(_stages(one)[2:])):
        _finished.add(key)
    return key in _finished


def stopped(study: Study) -> dict[str, dict[str, Any]]:
    """Name of an experiment that was stopped early -> the record of it."""
    return {name: record for record in _records(study, STOPS, stopped=list) for name in record["stopped"]}


def failed(study: Study) -> set[str]:
    """Names of the experiments of which a stage failed."""
    return {record["name"] for record in _records(study, FAILURES, name=str)}


def choose(losses: Mapping[str, Sequence[float]], keep: float) -> list[str]:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): the best share of the combinations by their
    mean loss, at least one. `losses`: combination -> bits per byte of its seeds."""
    ordered = sorted(losses, key=lambda name: (mean(losses[name]), name))
    return ordered[: max(1, math.ceil(keep * len(ordered)))]


def _halve(study: Study, share: float, keep: float, trainings: Sequence[Training], say: Callable[[str], None]) -> None:
    """Trains what is not stopped yet to `share` of the budget and records which combinations continue."""
    if any(record["at"] == share for record in _records(study, STOPS, at=float)):
        return
    out = {*stopped(study), *failed(study)}
    groups: dict[str, list[Training]] = defaultdict(list)
    for one in trainings:
        if one.name not in out:
            groups[one.name.rsplit("/", 1)[-1].removesuffix(f"-s{one.seed}") or "all"].append(one)
    losses: dict[str, list[float]] = {}
    for name, group in groups.items():
        for one in group:
            # Until a validation at this share is on record; the stage is then stopped as a signal would.
            if _loss_at(one, share) is None and _run_stages(study, one, ["data", "init"]):
                _run_stage(study, one, "pretrain", until=lambda one=one: _loss_at(one, share) is not None)
            if (loss := _loss_at(one, share)) is not None:
                losses.setdefault(name, []).append(loss)
    if not losses:
        return
    kept = choose(losses, keep)
    ending = [one.name for name in groups if name in losses and name not in kept for one in groups[name]]
    shown = {name: round(mean(found), 4) for name, found in sorted(losses.items())}
    record = {"at": share, "keep": keep, "rule": "mean bits per byte over seeds", "losses": shown,
              "kept": kept, "stopped": ending}  # fmt: skip
    append_synced(_folder(study) / STOPS, json.dumps(record).encode() + b"\n")
    say(f"at {share:g} of the budget: {len(kept)} of {len(losses)} combinations continue: {', '.join(kept)}")


def _stages(one: Training) -> list[str]:
    return [stage for stage in STEPS if one.tuned or stage != "finetune"]


def _is_done(one: Training, stage: str) -> bool:
    """Whether the experiment's finished folder is the one that the study asks for, with its whole budget used."""
    folder = Experiment(one.config).stage_folder(stage)
    if folder is None or not (folder / MANIFEST).is_file():  # asked first: a step looks at all of its inputs
        return False
    try:
        step = STEPS[stage](one.config)
        if folder != step.path.resolve() or (stage == "pretrain" and not is_trained(one.config)):
            return False
        return stage != "finetune" or finished_manifest(step, one.config.finetune.budget) is not None
    except UserError:  # the folder is of an earlier form of the study, and its new source is not made yet
        return False


def _loss_at(one: Training, share: float) -> float | None:
    """Held-out bits per byte where `share` of the budget was used, or None."""
    folder = Experiment(one.config).stage_folder("pretrain")
    if folder is None or not (folder / "metrics.jsonl").is_file():
        return None
    for row in read_metrics(folder / "metrics.jsonl"):
        if row.get(LOSS) is not None and row.get("budget/fraction", 0) >= share - 1e-6:
            return row[LOSS]
    return None


def _run_stages(study: Study, one: Training, stages: Sequence[str]) -> bool:
    """Those that are not done, in order, up to the first that fails; whether none did."""
    return all(_is_done(one, stage) or _run_stage(study, one, stage) for stage in stages)


def _run_stage(study: Study, one: Training, stage: str, until: Callable[[], bool] = lambda: False) -> bool:
    """One stage as a process; its output goes to `runs/<experiment>/<stage>.log`. Returns whether it succeeded, or was
    stopped because `until` became true."""
    log = Experiment(one.config).folder / f"{stage}.log"
    words = [sys.executable, "-P", "-m", "pipeline", stage, str(one.write())]
    with log.open("ab") as output, progress(one.name.removeprefix(f"{study.name}/")) as bar:
        child = start_child(words, stdout=output, stderr=subprocess.STDOUT)
        asked = False
        try:
            while (code := child.poll()) is None:
                if not asked and until():
                    child.terminate()
                    asked = True
                time.sleep(POLL_SECONDS)
                if bar.due:
                    bar.to(0, stage, _at_work(one))
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


def _at_work(one: Training) -> str:
    """What the newest line of an experiment's ledger says that it does."""
    lines = read_json_lines(Experiment(one.config).ledger_path, doing=str)
    return lines[-1]["doing"] if lines else "starting"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("hornbook: ") if lines else f"see {log}"


def _records(study: Study, file: str, **needed: type) -> list[dict[str, Any]]:
    return read_json_lines(_folder(study) / file, **needed)


def _folder(study: Study) -> Path:
    return root() / "runs" / study.name
