"""Built-in tasks, public sets and samples while a model is pretrained, every so many tokens, inside the cap.

In: `evaluate.every_tokens`, `during`, `during_items`, `sets`. Out: `tasks/...` in the step's row of metrics, and lines
of `samples.jsonl`. Nothing of the training changes by it but the hours that it takes, which are charged: it is left out
where it would eat the reserve, and it ends with what it has after `SHARE` of the cap or when a signal comes.
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
from pipeline.evaluation.choice_sets import score_sets
from pipeline.evaluation.held_out import HeldOutText
from pipeline.evaluation.language_model import LanguageModel
from pipeline.evaluation.tasks import TASKS
from pipeline.storage.files import read_json_lines, write_text
from pipeline.system import signals
from pipeline.training.cap import Cap

SHARE, LONGEST_SECONDS = 0.01, 60.0  # of the cap, for one round; and where there is none
SAMPLES = "samples.jsonl"


class _Over(Exception):
    """The time of a round is over, or a signal has come."""


@dataclass(frozen=True)
class _Watched(LanguageModel):
    """A model that stops answering when `check` raises."""

    check: Callable[[], None]

    def _batch(self, rows: Sequence[tuple[int, list[int], int]]) -> list[tuple[int, float]]:
        self.check()
        return super()._batch(rows)

    def complete(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        self.check()
        return super().complete(prompt, max_new_tokens, stop)


class ProgressTasks:
    """What runs every `every_tokens` tokens; `due(before, now)` says when. `limit_seconds`: of one round."""

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
        """`{"tasks/cloze/code": 0.31, ...}` of what was done in time."""
        started, rows = time.monotonic(), {}

        def check() -> None:
            if signals.stop_requested() or time.monotonic() - started > self.limit_seconds:
                raise _Over

        context_tokens, stop_ids = self._context_tokens, self._stop_ids
        model = _Watched(network, self._tokenizer, self._end, context_tokens, check, stop_ids=stop_ids)
        with _plain(network):
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
        """After those of earlier steps: a life after a kill comes by the same step again."""
        path = self.folder / SAMPLES
        kept = [s for s in read_json_lines(path, step=int) if samples and s["step"] < samples[0]["step"]]
        write_text(path, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in [*kept, *samples]))


@contextmanager
def _plain(network: Transformer) -> Iterator[None]:
    """As it is for evaluation: no gradients, and blocks that were compiled run as written, as no length comes twice."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train(training)
