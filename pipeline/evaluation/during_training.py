"""Built-in tasks, public sets and samples during pretraining, every `evaluate.every_tokens` tokens, inside the cap.

In: `evaluate.every_tokens`, `during`, `during_items`, `sets`. Out: `tasks/...` in the step's row of metrics, and lines
of `samples.jsonl`. The training is unchanged but for the time that a round takes, which is charged to the cap. A round
is skipped where it would use up the reserve; it ends, with the scores it has by then, after `SHARE` of the cap or when
a signal arrives.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.transformer import Transformer
from pipeline.config import Config
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer, special_tokens
from pipeline.evaluation.benchmarks import score_sets
from pipeline.evaluation.language_model import HeldOutText, LanguageModel
from pipeline.evaluation.tasks import TASKS
from pipeline.storage.files import read_json_lines, write_text
from pipeline.system import signals
from pipeline.training.cap import Cap

SHARE, LONGEST_SECONDS = 0.01, 60.0  # of one round: a share of the cap, and at most so long
SAMPLES = "samples.jsonl"


class _Over(Exception):
    """The time of a round is used up, or a signal has arrived."""


@dataclass(frozen=True)
class _Interruptible(LanguageModel):
    """A model that calls `check`, which may raise, before every batch and every completion."""

    check: Callable[[], None]

    def _add_batch(self, rows: Sequence[tuple[int, list[int], int]], found: list[float]) -> None:
        self.check()
        super()._add_batch(rows, found)

    def complete(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        self.check()
        return super().complete(prompt, max_new_tokens, stop)


class ProgressTasks:
    """Runs every `every_tokens` tokens; `due(before, now)` says when. `limit_seconds`: of one round."""

    def __init__(self, config: Config, tokens: TokenShards, folder: Path, cap: Cap):
        self.options, self.sample, self.seed, self.folder = config.evaluate, config.sample, config.seed, folder
        self._tokenizer = load_tokenizer(tokens.tokenizer_path)
        self._text, self._end = HeldOutText(tokens), tokens.eos_token_id
        self._stop_ids = special_tokens(tokens.tokenizer_path).stop_ids
        self._context_tokens = config.train.sequence_length
        self.limit_seconds = LONGEST_SECONDS if cap.seconds is None else min(LONGEST_SECONDS, SHARE * cap.seconds)

    def due(self, tokens_before: int, tokens_now: int) -> bool:
        every = self.options.every_tokens or 0
        return every > 0 and tokens_before // every != tokens_now // every

    def run(self, network: Transformer, step: int) -> dict[str, float]:
        """`{"tasks/cloze/code": 0.31, ...}` of what was finished in time."""
        started, rows = time.monotonic(), {}

        def check() -> None:
            if signals.stop_requested() or time.monotonic() - started > self.limit_seconds:
                raise _Over

        context_tokens, stop_ids = self._context_tokens, self._stop_ids
        model = _Interruptible(network, self._tokenizer, self._end, context_tokens, check, stop_ids=stop_ids)
        with _evaluating(network):
            try:
                for name, score in self._scores(model):
                    if score["score"] is not None:
                        rows[f"tasks/{name}"] = score["score"]
                texts = {p: model.complete(p, self.sample.max_new_tokens) for p in self.sample.prompts}
                self._keep([{"step": step, "prompt": prompt, "text": text} for prompt, text in texts.items()])
            except _Over:
                pass
        return rows

    def _scores(self, model: LanguageModel) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in self.options.during:
            yield from TASKS[name](model, self._text, self.options.during_items, self.seed).items()
        for name, path in self.options.sets.items():
            yield from score_sets({name: path}, model, self.options.during_items, self.seed).items()

    def _keep(self, samples: Sequence[dict[str, Any]]) -> None:
        """Replaces samples of this and later steps: after a kill, the same step may run again."""
        path = self.folder / SAMPLES
        kept = [s for s in read_json_lines(path, step=int) if samples and s["step"] < samples[0]["step"]]
        write_text(path, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in [*kept, *samples]))


@contextmanager
def _evaluating(network: Transformer) -> Iterator[None]:
    """The network in evaluation mode, without gradients. Compiled blocks run eagerly, because every length is new and
    each would be compiled again."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train(training)
