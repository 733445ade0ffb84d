"""The end of a run, inside the cap: last validation, last checkpoint, the model folder, samples, facts.

In: a network after its last step. Out: `model/` (a Hugging Face folder that loads without our code) and the facts of
the manifest. The folder is swapped in whole: whoever reads the model of an earlier cap has one at any moment.
"""

import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from model.adapters import Merged, is_adapted
from model.hf import save_folder
from model.transformer import Transformer
from pipeline.config import Config
from pipeline.corpus.text.intervals import beside
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer, special_tokens
from pipeline.storage.files import write_text
from pipeline.system import signals
from pipeline.system.disk import sync_entry, writing
from pipeline.system.errors import Stopped, UserError
from pipeline.system.progress import counted, progress
from pipeline.training.budget import FLOAT32_MAX_BYTES
from pipeline.training.forecast import time_facts
from pipeline.training.memory import on_host

if TYPE_CHECKING:
    from pipeline.training.control import Control

BROKEN = "\ufffd"  # what decoding gives for bytes that are no character yet
LONGEST_CHARACTER_TOKENS = 4  # of UTF-8: after that many tokens the bytes are simply wrong, and shown as such


def finish(control: "Control", config: Config, folder: Path, tokens: TokenShards) -> dict[str, Any]:
    """Everything after the last step but the manifest; returns its facts.

    Raises `Stopped` where a signal comes during the validation and the cap has room for another process: the checkpoint
    then says that only the end is left.
    """
    module = control.module
    left_at_end = control.budget.remaining_seconds()
    trained_to_end = module.step >= control.budget.end_step(module.step)
    fits = trained_to_end or control.budget.may_spend("validation", module.step)
    if control.last.step != module.step and fits:
        metrics = control.validate(limit_seconds=control.budget.validation_limit_seconds(last=True))
        name = signals.stop_requested()
        if name and not metrics and not control.is_last_process():
            control.save()
            raise Stopped(name)
        control.metrics.log({**(control.final_row or control.budget_row()), **metrics}, module.step)
        control.record_validation(module.step)
    if trained_to_end and control.budget.may_save_last():
        control.save()  # after the validation and its row, so that a process after a kill has only the export to do
    exported = _take_the_best(control)
    control.is_last_process()  # where it is the last one, a first signal stops nothing from here on
    signals.defer(False)  # everything is saved: a signal may end the process now, if another one can do the rest
    export(control, config, folder, tokens)
    samples = write_samples(control, config, tokens)
    facts = make_facts(control, config, samples, left_at_end, exported, tokens.groups)
    write_card(folder / "model" / "README.md", config, control, facts)
    return facts


def _take_the_best(control: "Control") -> int:
    """Under `train.stop_after_worse` puts the best validated weights in place; returns the step they are from."""
    step = control.module.step
    state = control.checkpoints.best(step) if control.train.stop_after_worse else None
    if state is None:
        return step
    control.module.optimizer.load_state_dict(
        {f"master/{n}": t for n, t in state.weights.items()} | dict(state.optimizer)
    )
    found = state.values["validated"]
    control.last = replace(control.last, bits_per_byte=found["bits_per_byte"], intervals=found.get("intervals", {}))
    print(f"  step {state.step:,} was the best on held-out text: it is exported, not step {step:,}", flush=True)
    return state.step


def export(control: "Control", config: Config, folder: Path, tokens: TokenShards) -> None:
    """Writes `model/` under a temporary name and swaps it in."""
    started = time.monotonic()
    shape = control.module.network.config
    dtype = "float32" if shape.parameters * 4 <= FLOAT32_MAX_BYTES else "bfloat16"
    part, old, final = folder / ".model.part", folder / ".model.old", folder / "model"
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    special = special_tokens(tokens.tokenizer_path)
    try:
        with writing(part, shape.parameters * (4 if dtype == "float32" else 2)):
            part.mkdir(parents=True)
            with progress("export", shape.parameters, "parameters") as bar:
                pieces = counted(on_host(whole_weights(control)), bar)
                save_folder(part, pieces, shape, tokens.tokenizer_path, special, dtype=dtype)
            for path in [*part.iterdir(), part]:
                sync_entry(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if final.exists():
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    control.budget.measured.event("export", time.monotonic() - started)


def whole_weights(control: "Control") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the network's own shape, one at a time; adapters are merged into what they adapt."""
    masters = control.module.optimizer.master_state_dict()
    network = control.module.network
    weights = Merged(network, masters) if is_adapted(network) else masters
    return ((name, weights[name]) for name in network.config.tensor_shapes())


def write_samples(control: "Control", config: Config, tokens: TokenShards) -> list[dict[str, str]]:
    """Continues `sample.prompts`, and stops in mid-sentence where the time set aside for it is over."""
    writer = Writer(
        control.module.network,
        load_tokenizer(tokens.tokenizer_path),
        tokens.eos_token_id,
        stop_ids=special_tokens(tokens.tokenizer_path).stop_ids,
        temperature=config.sample.temperature,
        top_k=config.sample.top_k,
        seed=config.seed,
    )
    deadline = time.monotonic() + control.budget.sample_limit_seconds()
    samples = []
    for prompt in config.sample.prompts:
        text = ""
        for piece in writer.stream(prompt, config.sample.max_new_tokens):
            text += piece
            if time.monotonic() > deadline:
                break
        samples.append({"prompt": prompt, "text": text})
    return samples


def make_facts(
    control: "Control", config: Config, samples: list[dict[str, str]], left_at_end: float, exported: int,
    groups: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    """The manifest's facts, under the names of the contract. `exported`: the step of the exported weights; `groups`: of
    the documents of each validation set."""
    budget, batches, machine, step = control.budget, control.batches, control.machine, control.module.step
    epochs = batches.epochs(batches.sizes.first_sequence(step))
    return {
        "tokens_seen": batches.sizes.tokens(step),
        "steps": step,
        "skipped_steps": control.skips.count,
        "tokens_sha256": control.module.tokens_sha256,
        "epochs": {name: round(n, 4) for name, n in epochs.items()},
        "packing": {"kind": batches.packing, "padding_share": round(batches.padding_share(), 6)},
        "mix": _mix(control),
        "context_tokens": config.train.sequence_length,
        "max_gpu_hours": budget.limits.max_gpu_hours,
        "max_tokens": budget.limits.max_tokens,
        "stopped_by": budget.stopped_by(step),
        "annealed": budget.annealed(step) and budget.decisions.progress(exported) >= 1.0,
        "exported_step": exported,
        "bits_per_byte": control.last.bits_per_byte,
        "bits_per_byte_interval": control.last.intervals.get("sets", {}),
        "val_bits_per_byte": control.validation.overall(control.last.bits_per_byte),
        "val_bits_per_byte_interval": control.last.intervals.get("overall"),
        "validated_share": round(control.validation.share, 4),
        "validation_documents": control.validation.documents(),
        "validation_groups": groups,
        "initial_bits_per_byte": control.first.bits_per_byte,
        "initial_bits_per_byte_interval": control.first.intervals.get("sets", {}),
        "initial_val_bits_per_byte": control.validation.overall(control.first.bits_per_byte),
        "initial_val_bits_per_byte_interval": control.first.intervals.get("overall"),
        "tokens_per_second": round(control.rate.mean(), 1),
        "mfu": control.mfu(control.rate.mean()),
        "mfu_peak": {"flops": machine.peak_flops, "source": machine.peak_source},
        "precision": machine.precision,
        "peak_memory_bytes": machine.memory.peak_bytes(),
        **machine.memory.of_allocator(),
        "lives": control.ledger.life,
        "start_seconds": round(budget.start_seconds, 2),
        "replay": what_was_lost(config, control.first.bits_per_byte, control.last.bits_per_byte),
        "forecast": _forecast(control, left_at_end),
        "samples": samples,
        "model": "model",
    }


def _mix(control: "Control") -> dict[str, dict[str, float]]:
    """Shares of the sequences that each source gave, before and in the decay; empty for a phase without steps."""
    batches, record = control.batches, control.budget.first_decay()
    end = batches.sizes.first_sequence(control.module.step)
    start = min(end, batches.sizes.first_sequence(record["step"])) if record else end
    phases = {"stable": batches.shares(0, start), "decay": batches.shares(start, end)}
    return {phase: {k: round(v, 6) for k, v in shares.items()} for phase, shares in phases.items()}


def _forecast(control: "Control", left_at_end: float) -> dict[str, Any]:
    """What was predicted when the decay was decided, and before (pipeline/training/forecast.py), against the facts."""
    budget, step = control.budget, control.module.step
    record = budget.first_decay()
    facts = {"memory": control.memory.facts(control.module.windows), "time": time_facts(budget, step)}
    if record is None:
        return facts
    finite = budget.limits.cap.seconds is not None
    return {
        **facts,
        "decided_at_step": record["step"],
        "predicted": {k: record[k] for k in ("step_seconds", "reserve_seconds", "end_step")},
        "actual": {
            "step_seconds": round(budget.measured.step_seconds(), 6),
            "end_seconds": round(left_at_end - budget.remaining_seconds(), 3) if finite else None,
            "end_step": step,
            "left_seconds": round(budget.remaining_seconds(), 3) if finite else None,
        },
    }


def write_card(path: Path, config: Config, control: "Control", facts: Mapping[str, Any]) -> None:
    """The model folder's README: what it is, what it was trained on, how good it is. Facts only."""
    shape = control.module.network.config
    hours = control.ledger.spent_seconds / 3600
    rows = [f"| {name} | {value:.4f} | {beside(facts, name)} |" for name, value in facts["bits_per_byte"].items()]
    scores = "\n".join(rows)
    annealed = (
        "" if facts["annealed"] else "\n**Not annealed**: the run was cut off before its learning rate decayed.\n"
    )
    write_text(
        path,
        f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {config.name}

A language model of the family {shape.family}, with {shape.parameters:,} parameters, pretrained with hornbook on one
device.
{annealed}
- {facts["tokens_seen"]:,} tokens in {facts["steps"]:,} steps, windows of {config.train.sequence_length} tokens
- {hours:.3f} device-hours on {control.machine.name}, {facts["precision"]}
- epochs: {", ".join(f"{k} {v:.2f}" for k, v in facts["epochs"].items())}

| held-out set | bits per byte | 95% interval over documents |
|---|---|---|
{scores}

A base model: it continues text, it was not taught to follow instructions or to be safe.
""",
    )


def what_was_lost(
    config: Config, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """What the model forgot of each source marked `replay: true`, the general text that it is shown again in its share
    of `train.mix`: `{source: {before, after, lost}}` in bits per byte on its held-out part, right after init and at the
    end; None where a validation did not take place. A negative `lost` is a gain."""
    sources = config.data.sources.items()
    facts = {}
    for name in [n for n, source in sources if isinstance(source, Mapping) and source.get("replay")]:
        first, last = before.get(name), after.get(name)
        facts[name] = {"before": first, "after": last, "lost": None if first is None or last is None else last - first}
    return facts


@dataclass(frozen=True)
class Writer:
    """Continues a prompt in whole characters: the bytes of one that is spread over several tokens are held back until
    it is complete. `temperature=0`: always the likeliest token. The same `seed` writes the same text."""

    network: Transformer
    tokenizer: Tokenizer
    eos_token_id: int | None
    temperature: float = 0.7
    top_k: int = 50
    seed: int = 0
    stop_ids: Collection[int] = ()

    def stream(self, prompt: str, max_new_tokens: int, add_special_tokens: bool = True) -> Iterator[str]:
        """Pieces that continue `prompt`, up to an end of text or another of `stop_ids`. `add_special_tokens`: those
        that the tokenizer puts before a text. Raises `UserError` where the prompt leaves no room in the context."""
        ends = [] if self.eos_token_id is None else [self.eos_token_id]
        ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids or ends
        device = self.network.lm_head.weight.device
        new_ids = self.network.generate(
            torch.tensor(ids, dtype=torch.int64),
            max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k or None,
            eos_token_id={*ends, *self.stop_ids},
            generator=torch.Generator(device).manual_seed(self.seed),
        )
        try:
            yield from self._decode(new_ids)
        except ValueError as error:
            raise UserError(f"{error} Use a shorter --prompt (or sample.prompts).") from None

    def _decode(self, new_ids: Iterator[int]) -> Iterator[str]:
        pending: list[int] = []
        for token in new_ids:
            pending.append(token)
            text = self.tokenizer.decode(pending, skip_special_tokens=True)
            if not text.endswith(BROKEN) or len(pending) > LONGEST_CHARACTER_TOKENS:
                pending = []
                yield text
        if pending:
            yield self.tokenizer.decode(pending, skip_special_tokens=True)
