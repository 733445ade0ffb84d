"""`hornbook study`: runs what is left of a study and writes its results, or sends it to Slurm.

In: a study's YAML file. Out: `runs/<study>/` with one experiment per member, `study.json`, `study.md`, `study.html`,
and the pictures. The pages are rewritten after every experiment, so a stopped study shows what it has.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.pages import html
from pipeline.storage import pins
from pipeline.storage.files import root
from pipeline.studies import pages
from pipeline.studies import run as runner
from pipeline.studies.file import Study, read
from pipeline.studies.members import Member, flops_per_token, members, trainings
from pipeline.submit import run_array
from pipeline.system.errors import Failure, UserError


def run(path: str, *, dry_run: bool = False, only_report: bool = False, as_json: bool = False) -> None:
    """Raises `UserError` for a study that is wrong, `Failure` where members failed, `Stopped`."""
    study = read(path)
    found = members(study) if dry_run else _pinned_members(study)
    if dry_run:
        facts = _planned(study, found)
        print(json.dumps(facts, indent=1) if as_json else html.render("study.txt", facts=facts).rstrip("\n"))
        return
    if not only_report:

        def after_each(line: str) -> None:
            print(line, flush=True)
            pages.write(study, found)

        runner.run(study, trainings(found), after_each)
    facts = pages.write(study, found)
    print(json.dumps(facts, indent=1) if as_json else pages.show(facts), flush=True)
    failed = [row["experiment"] for row in facts["rows"] if row["state"] == "failed"]
    if failed and not only_report:
        raise Failure(f"{len(set(failed))} experiments failed, first {failed[0]}; see runs/{failed[0]}/*.log")


def submit(path: str, options: Any, at_once: int | None, *, dry_run: bool = False) -> None:
    """Data and sources as single jobs, the members' init and pretraining as one array, then one job of this verb, which
    tunes, quantizes and writes the pages. Raises `UserError`."""
    if at_once is not None and at_once < 1:
        raise UserError(f"study: --at-once is {at_once}; expected at least 1 member")
    study = read(path)
    if study.stop is not None:
        raise UserError(
            f"study {path}: stop compares members at shares of the budget, which needs them in turn; an array runs all "
            "to their end: set stop to null, or leave --slurm out"
        )
    configs = [one.config for one in trainings(members(study) if dry_run else _pinned_members(study))]
    last = ("study", Path(path).resolve())
    run_array(study.name, configs, path, options, at_once=at_once, until="pretrain", last=last, dry_run=dry_run)


def _pinned_members(study: Study) -> list[Member]:
    """The members, all with one commit for each name of the hub: that on the study's record, else what the hub says
    now."""
    path = root() / "runs" / study.name / pins.RECORD
    pins.resolve([one.config for one in trainings(members(study))], path, lambda key: False)
    return members(study)


def _planned(study: Study, found: list[Member]) -> dict[str, Any]:
    kind, amount = study.equal
    return {
        "study": study.name,
        "members": len(found),
        "equal": {kind: amount},
        "experiments": [
            {
                "name": one.name,
                "levels": dict(one.levels),
                "seed": one.seed,
                "parameters": one.config.model.parameters,
                "max_gpu_hours": one.config.budget.max_gpu_hours,
                "max_tokens": one.config.budget.max_tokens,
                "flops_per_token": flops_per_token(one.config),
                "tuned": one.config.finetune.method if one.tuned else None,
                "forms": list(one.forms),
                "finished": runner.is_finished(one),
            }
            for one in trainings(found)
        ],
    }
