"""What the members of a study came to, from their manifests: one row a member, plain JSON values.

`state`: done, stopped (early, by the study's rule), failed, or missing (not run yet). A figure that is not there is
null. Hours and FLOPs are those of the experiment: source, pretraining and tuning; making a quantized form is not in
them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.init import source_config, source_is_experiment
from pipeline.runs import DONE, state
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import read_manifest
from pipeline.studies import running
from pipeline.studies.measures import QUALITY, TARGET
from pipeline.studies.members import Member, Trained, flops_per_token, tuning_flops_per_token
from pipeline.studies.study_file import AS_STORED, Study

FIGURES = (QUALITY, TARGET, "target_before", "cloze", "arithmetic", "exercises", "gpu_hours", "training_flops",
           "tokens", "epochs", "parameters", "inference_bytes", "disk_bytes", "inference_tokens_per_second",
           "train_tokens_per_second", "peak_memory_bytes", "trainable_share")  # fmt: skip


def rows(study: Study, members: Sequence[Member]) -> list[dict[str, Any]]:
    """One row a member, in the study's order."""
    out, failed = running.stopped(study), running.failed(study)
    trained = {member.trained.name: _trained(member.trained) for member in members}
    found = []
    for member in members:
        name = member.trained.name
        facts = trained[name]
        form = _form(facts, member)
        done = facts["quantize"] is not None and "scores" in form
        state = "done" if done else "stopped" if name in out else "failed" if name in failed else "missing"
        found.append(
            {
                "experiment": name,
                "cell": dict(member.cell),
                "label": label(study, member),
                "seed": member.seed,
                "form": member.form,
                "state": state,
                "stopped_at": out[name]["at"] if name in out else None,
                "why_not": form.get("unavailable"),
                **_figures(facts, form if done else {}, member),
            }
        )
    return found


def label(study: Study, member: Member) -> str:
    """What of the cell is not the reference, in words; `reference` for the cell that is."""
    levels = study.levels
    words = [level for axis, level in member.cell.items() if level != levels[axis][0]]
    return " ".join(words) or "reference"


def _trained(one: Trained) -> dict[str, Any]:
    experiment = Experiment(one.config)
    made: dict[str, Any] = {}
    finished = running.is_finished(one)
    for stage in ("data", "init", "pretrain", "finetune", "quantize"):
        folder = experiment.stage_folder(stage)
        made[stage] = read_manifest(folder) if finished and folder is not None and state(folder) == DONE else None
    made["source"] = _source(one) if finished else None
    made["data_folder"] = experiment.stage_folder("data")
    return made


def _source(one: Trained) -> dict[str, Any] | None:
    if not source_is_experiment(one.config):
        return None
    source = source_config(one.config)
    folder = Experiment(source).stage_folder("pretrain")
    if folder is None or state(folder) != DONE:
        return None
    return {**read_manifest(folder), "flops_per_token": flops_per_token(source)}


def _form(facts: Mapping[str, Any], member: Member) -> dict[str, Any]:
    report = facts["quantize"]
    kinds = {row["kind"]: row for row in report["rows"]} if report else {}
    return kinds.get(AS_STORED if member.form == AS_STORED else member.form, {})


def _figures(facts: Mapping[str, Any], form: Mapping[str, Any], member: Member) -> dict[str, Any]:
    pretrain, tuning, source = facts["pretrain"] or {}, facts["finetune"] or {}, facts["source"] or {}
    config, scores = member.trained.config, form.get("scores", {})
    target = tuning.get("target") or {}
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if pretrain:
        parts = (pretrain, source, tuning)
        found["gpu_hours"] = sum(part.get("gpu_hours", 0.0) for part in parts)
        found["training_flops"] = (
            pretrain["tokens_seen"] * flops_per_token(config)
            + source.get("tokens_seen", 0) * source.get("flops_per_token", 0.0)
            + (tuning["tokens_seen"] * tuning_flops_per_token(config) if tuning else 0.0)
        )
        found |= {"tokens": pretrain["tokens_seen"], "parameters": config.model.parameters}
        found["epochs"] = max(pretrain["epochs"].values(), default=None)
        found["train_tokens_per_second"] = (tuning or pretrain)["tokens_per_second"]
        found["peak_memory_bytes"] = (tuning or pretrain)["peak_memory_bytes"]
    found |= {TARGET: target.get("after"), "target_before": target.get("before")}
    found["trainable_share"] = tuning.get("trainable_share")
    if form:
        found[QUALITY] = _overall(scores, facts["data_folder"])
        found["inference_bytes"], found["disk_bytes"] = form["memory_bytes"], form["disk_bytes"]
        found["inference_tokens_per_second"] = form.get("tokens_per_second")
        for task in ("cloze", "arithmetic", "exercises"):
            parts = [s["score"] for name, s in scores.items() if name.startswith(task) and s["score"] is not None]
            found[task] = mean(parts) if parts else None
    return found


def _overall(scores: Mapping[str, Any], data: Path) -> float | None:
    """Bits per byte over the general held-out sets, by bytes, as pretraining's own overall figure is."""
    from pipeline.corpus.text.shards import TEXTBOOK, TokenShards

    sets = {name: s for name, s in TokenShards.open(data).val.items() if name != TEXTBOOK}
    found = {name: scores[key]["score"] for name in sets if (key := f"bits_per_byte/{name}") in scores}
    total = sum(sets[name].n_bytes for name in found)
    return sum(value * sets[name].n_bytes for name, value in found.items()) / total if total else None
