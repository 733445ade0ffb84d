"""What else the same hours would buy: ranked, with ranges, and "do not pretrain" where that is the answer.

In: a config, a GPU, the amount of text. Out: choices with an expected loss on general text, as [best, worst], and the
basis of each. A published fit of loss against parameters and tokens (`FIT`) ranks them. It was made on other text, so
the order means more than the numbers, and two ranges that overlap are not told apart.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from model import checkpoints
from model.checkpoints import Checkpoint
from model.config import ModelConfig
from pipeline.config import Config

SHRINK = (0.5, 0.25, 0.1)  # of the parameters: smaller sizes to compare for the same hours
TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)
STARVED = 2  # tokens per parameter below which a smaller model learns more from the same hours
# Loss against parameters and tokens, the fit of Besiroglu et al. 2024 (arXiv 2404.10102) to Hoffmann's data: for
# ranking sizes by the same hours, not for predicting a loss on other text.
FIT = {"floor": 1.82, "a": 482.0, "alpha": 0.348, "b": 2085.0, "beta": 0.366}
FIT_ERROR = 0.05  # nats
# The range of the fitted trainings (Hoffmann et al. 2022, section 3 and table A9). Below it no loss is given. Above it
# the loss at the end of the range is given, which more training can only lower.
FIT_PARAMETERS, FIT_FLOPS = (44e6, 16e9), (6e18, 3e21)
REPEATS = 15.4  # epochs after the first in which repeated text loses 1 - 1/e of its value (arXiv 2305.16264)
FIT_BASIS = (
    f"published fit (arXiv 2404.10102; error about {FIT_ERROR:g} nats, other text; a bound from above past "
    f"{FIT_FLOPS[1]:.0e} FLOPs)".replace("e+", "e")
)
FIT_SPAN = (
    f"{FIT_PARAMETERS[0] / 1e6:.0f}M to {FIT_PARAMETERS[1] / 1e9:.0f}B parameters, "
    f"{FIT_FLOPS[0]:.0e} to {FIT_FLOPS[1]:.0e} FLOPs".replace("e+", "e")
)
REPEAT_BASIS = f"; repeated text counts less (arXiv 2305.16264, {REPEATS:g})"


def expected_loss(parameters: float, tokens: float) -> float | None:
    """Nats per token by `FIT`; None below the range of the fit, a bound from above where there are more FLOPs."""
    flops = 6 * parameters * tokens
    if not FIT_PARAMETERS[0] <= parameters <= FIT_PARAMETERS[1] or flops < FIT_FLOPS[0]:
        return None
    fitted_tokens = min(tokens, FIT_FLOPS[1] / (6 * parameters))
    return FIT["floor"] + FIT["a"] / parameters ** FIT["alpha"] + FIT["b"] / fitted_tokens ** FIT["beta"]


def tokens_for(parameters: float, loss: float) -> float:
    """Tokens after which a model of this size reaches that loss by `FIT`; infinite where it never does."""
    left = loss - FIT["floor"] - FIT["a"] / parameters ** FIT["alpha"]
    return (FIT["b"] / left) ** (1 / FIT["beta"]) if left > 0 else math.inf


def worth_of(tokens: float, unique: float | None) -> float:
    """How many fresh tokens `tokens` of a text of `unique` tokens are worth; all of them where its size is unknown."""
    if unique is None or tokens <= unique:
        return tokens
    return unique * (1 + REPEATS * (1 - math.exp(-(tokens / unique - 1) / REPEATS)))


def advice(
    config: Config, bought: Mapping[str, Any], card: Mapping[str, Any], unique: int | None = None
) -> list[dict[str, Any]]:
    """Choices for the same hours, best first; choices outside the fit come last. Empty where the config sets no end.
    `bought`: `costs.hours` of the GPU. `unique`: tokens of the text; None: unknown.
    Fields: choice, kind (fresh, grown, continued, lora), parameters, tokens and expected_loss as ranges (None outside
    the fit), starved, terms (the license of a public model that it takes, else None), basis.
    """
    if bought.get("tokens") is None:
        return []
    choices = [_fresh(config, bought, share, unique) for share in (1.0, *SHRINK)]
    source = source_of(config)
    if source is not None:
        if source.shape.parameters < config.model.parameters:
            choices.append(_grown_from(config, bought, source, unique))
        choices.append(_continued(config, bought, source, unique))
    choices += _lora(config, card)
    return sorted(choices, key=_rank)


def _rank(choice: Mapping[str, Any]) -> tuple[bool, float]:
    loss = choice["expected_loss"]
    return loss is None, sum(loss or ())


def source_of(config: Config) -> Checkpoint | None:
    """The public model that the config starts from, by its hub name or a folder that ends in it; None for another."""
    return checkpoints.find("/".join((config.init.source or "").rstrip("/").split("/")[-2:]))


def verdict(config: Config, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """`{pretrain, why, best_trained, not_told_apart}`: whether to spend the hours on pretraining, the reason in one
    sentence, and what to train if so (None where nothing can be ranked)."""
    if not choices:
        why = "the config sets no end: set budget.max_gpu_hours to compare"
        return {"pretrain": None, "why": why, "best_trained": None, "not_told_apart": []}
    fresh = [c for c in choices if c["kind"] == "fresh"]
    trained = [c for c in choices if c["kind"] != "lora" and c["expected_loss"]]
    best = trained[0] if trained else None
    close = [c["choice"] for c in trained[1:] if c["expected_loss"][0] <= trained[0]["expected_loss"][1]]
    found = {"pretrain": True, "why": None, "best_trained": best and best["choice"], "not_told_apart": close}
    # In this order: without enough text no ranking matters, without a ranking no public model can be compared.
    if all(c["starved"] for c in fresh) and (best is None or best["kind"] == "fresh"):
        why = "do not pretrain for these hours: none of these sizes sees enough text; fine-tune a public model"
        return {**found, "pretrain": False, "why": why}
    if best is None:
        return {**found, "why": f"these sizes and hours are outside the published fit ({FIT_SPAN}), so no loss is "
                "expected and nothing is ranked; short runs of each (hornbook study) tell them apart"}  # fmt: skip
    rivals = [c for c in choices if c["kind"] == "lora" and c["parameters"] <= 1.25 * config.model.parameters]
    rival = min((c for c in rivals if c["expected_loss"]), key=lambda c: c["expected_loss"][1], default=None)
    if rival and rival["expected_loss"][1] + FIT_ERROR < best["expected_loss"][0]:
        gap = best["expected_loss"][0] - rival["expected_loss"][1]
        why = (
            f"do not pretrain for general text: {rival['choice']} is no larger and expected {gap:.2f} nats better; "
            "pretrain for what it cannot give: text, a licence, a tokenizer or a shape of your own"
        )
        return {**found, "pretrain": False, "why": why}
    return {**found, "why": "no public model of this size that hornbook knows of is expected to be better"}


def _fresh(config: Config, bought: Mapping[str, Any], share: float, unique: int | None) -> dict[str, Any]:
    model = _shrunk(config.model, share)
    tokens = _tokens(config, bought, model.flops_per_token(config.train.sequence_length))
    return _choice(
        "this size, fresh weights" if share == 1.0 else f"{share:g} of the size, fresh weights",
        "fresh",
        model.parameters,
        tokens,
        [expected_loss(model.parameters, worth_of(n, unique)) for n in tokens],
        FIT_BASIS + (REPEAT_BASIS if unique else ""),
        starved=tokens[1] < STARVED * model.parameters,
    )


def _grown_from(config: Config, bought: Mapping[str, Any], public: Checkpoint, unique: int | None) -> dict[str, Any]:
    """At best everything that the source knows carries over; at worst only its loss is kept."""
    size, tokens = config.model.parameters, _tokens(config, bought)
    before = expected_loss(public.shape.parameters, public.tokens)
    head_start = tokens_for(size, before) if before else 0.0
    return _choice(
        f"this size, grown from {public.name}",
        "grown",
        size,
        tokens,
        [expected_loss(size, head_start + worth_of(tokens[1], unique)), before],
        f"{FIT_BASIS}; best: the source's loss is a head start of {head_start:.2g} tokens, worst: it is only kept; on "
        "the source's own kind of text, which is not public",
        terms=public.terms,
    )


def _continued(config: Config, bought: Mapping[str, Any], public: Checkpoint, unique: int | None) -> dict[str, Any]:
    tokens = _tokens(config, bought, public.shape.flops_per_token(config.train.sequence_length))
    before = expected_loss(public.shape.parameters, public.tokens)
    after = expected_loss(public.shape.parameters, public.tokens + worth_of(tokens[1], unique))
    return _choice(
        f"{public.name} trained on, as large as it is",
        "continued",
        public.shape.parameters,
        tokens,
        [after, before],
        f"{FIT_BASIS}; what it gains on text unlike its own is not in this number",
        terms=public.terms,
    )


def _lora(config: Config, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Public models that a GPU can adapt in bf16, with 1 GB for the adapter and 2 GB for activations."""
    fitting = [p for p in checkpoints.known().values() if 2 * p.shape.parameters + 3e9 <= card["memory_gb"] * 1e9]
    return [
        _choice(
            f"LoRA on {public.name}",
            "lora",
            public.shape.parameters,
            None,
            [expected_loss(public.shape.parameters, public.tokens)] * 2,
            f"{FIT_BASIS}, from the tokens its makers name; before any adapting, which costs minutes to hours; its "
            "license and tokenizer come with it",
            terms=public.terms,
        )
        for public in fitting
        if public.shape.parameters >= 0.5 * config.model.parameters
    ]


def _tokens(config: Config, bought: Mapping[str, Any], flops: float | None = None) -> list[int]:
    """What the hours buy of this size, or of a model with other FLOPs per token."""
    own = config.model.flops_per_token(config.train.sequence_length)
    return [round(n * own / (flops or own)) for n in bought["tokens"]]


def _choice(
    choice: str,
    kind: str,
    parameters: int,
    tokens: list[int] | None,
    losses: list[float | None],
    basis: str,
    starved: bool = False,
    terms: str | None = None,
) -> dict[str, Any]:
    known = [loss for loss in losses if loss is not None]
    inside = len(known) == len(losses)
    return {
        "choice": choice,
        "kind": kind,
        "parameters": parameters,
        "tokens": tokens,
        "expected_loss": [round(min(known), 3), round(max(known), 3)] if inside else None,
        "starved": starved,
        "terms": terms,
        "basis": basis if inside else f"outside the published fit (arXiv 2404.10102), which spans {FIT_SPAN}",
    }


def _shrunk(model: ModelConfig, share: float) -> ModelConfig:
    """The shape whose parameters, embedding included, are nearest to `share` of this one's: width and depth shrink by
    the same factor, heads keep their size and, as far as that divides, their number in each group."""
    smaller = [_with_heads(model, heads) for heads in range(1, model.num_attention_heads)]
    return min([model, *smaller], key=lambda shape: abs(shape.parameters - share * model.parameters))


def _with_heads(model: ModelConfig, heads: int) -> ModelConfig:
    scale = heads / model.num_attention_heads
    width = heads * (model.hidden_size // model.num_attention_heads)
    groups = next(n for n in range(max(1, round(model.kv_heads * scale)), 0, -1) if heads % n == 0)
    return dataclasses.replace(
        model.with_blocks(max(1, round(model.num_hidden_layers * scale))),
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=max(1, round(model.intermediate_size * scale)),
    )
