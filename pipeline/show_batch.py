"""`hornbook batch <run> --step N`: the text that one optimizer step trains on, with its sources and scores.

In: a run whose data stage is finished, and a step (1 = the first). Out: every document piece of that step's windows, in
order: for a loss spike at step N, what the model was given. A batch is a pure function of the config, the data and the
decisions so far, so nothing is trained or stored. For a step that the run has not reached, it shows what the step will
read if no decay starts before it.
"""

from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.pages import html
from pipeline.storage.run_files import finished_manifest
from pipeline.storage.steps import Step
from pipeline.system.errors import UserError
from pipeline.training.mixing import StepSizes

MOST_STEPS = 10**9
SHOWN_CHARACTERS = 400  # of a piece on the terminal; --json has all


def pieces(config: Config, step: int) -> dict[str, Any]:
    """`{step, tokens, decay, pieces: [{sequence, source, epoch, document, score, tokens, text}]}` as plain values.

    `document`: its row in the source's token set; `score`: quality, 0 to 1. Raises `UserError` where the data stage
    is not finished, the source to grow from is not trained, or the step lies past the end of the text.
    """
    from pipeline.corpus.text.shards import TokenShards
    from pipeline.stages import pretrain_step
    from pipeline.training.batches import BEST, TokenBatches
    from pipeline.training.decisions import Decisions
    from pipeline.training.packing import Examples

    run = pretrain_step(config)
    _check_step(config, run, step)
    data = run.inputs["data"]
    assert isinstance(data, Step)
    shards = TokenShards.open(data.path)
    batches = TokenBatches(shards.train, config)
    decays = Decisions(run.path / "decisions.jsonl", read_only=True).decays()
    decay = decays[0]["step"] if decays else None
    batches.decay_from(decay)
    indices = batches.indices(step - 1)
    if batches.order.total is not None and int(indices[-1]) >= batches.order.total:
        last = batches.steps_available(decay)
        raise UserError(f"--step is {step:,}; train.max_epochs ends the text after step {last:,}")
    tokenizer = load_tokenizer(shards.tokenizer_path)
    source_B, number_B = batches.order.places(indices)
    found = []
    for index, source, number in zip(indices, source_B, number_B, strict=True):
        name = batches.order.names[int(source)]
        stream, tokens = batches.streams[name], shards.train[name.removesuffix(BEST)]
        if isinstance(stream, Examples):  # of a tuning, which is no pretraining
            continue
        places = stream.places(int(batches.window_numbers(stream, np.array([number]))[0]))
        document_P = np.searchsorted(tokens.index["offset"], places, side="right") - 1
        for cut in np.split(np.arange(len(places)), np.flatnonzero(np.diff(document_P)) + 1):
            document = int(document_P[cut[0]])
            found.append(
                {
                    "sequence": int(index),
                    "source": name,
                    "epoch": int(number) // stream.count + 1,
                    "document": document,
                    "score": round(float(tokens.index["score"][document]), 4),
                    "tokens": len(cut),
                    "text": tokenizer.decode(tokens.tokens[places[cut]].tolist(), skip_special_tokens=False),
                }
            )
    in_decay = decay is not None and step > decay
    return {"step": step, "tokens": len(indices) * batches.sequence_length, "decay": in_decay, "pieces": found}


def _check_step(config: Config, run: Step, step: int) -> None:
    """Raises `UserError` for a step that the run does not have, as far as its length is known."""
    if step < 1:
        raise UserError(f"--step is {step}; the first step is 1")
    last, why = MOST_STEPS, "no run is longer"
    if manifest := finished_manifest(run, config.budget):
        last, why = manifest["steps"], f"the run '{config.name}' ended then"
    elif config.budget.max_tokens is not None:
        windows = config.budget.max_tokens // config.train.sequence_length
        last, why = max(1, StepSizes(config.train).whole_steps(windows)), "budget.max_tokens ends the run then"
    if step > last:
        raise UserError(f"--step is {step:,}; expected 1 to {last:,} ({why})")


def show(facts: dict[str, Any]) -> str:
    """For a terminal: one line of facts a piece, then its text, cut where it is long."""
    return html.render("batch.txt", facts=facts, shown=SHOWN_CHARACTERS).rstrip("\n")
