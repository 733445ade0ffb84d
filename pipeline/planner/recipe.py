"""A config for given text, base model, card and hours: what `hornbook new` writes.

In: what was found (`pipeline/corpus/inspection.py`), a base or None, a card, hours. Out: the values of a config and the
remarks beside them. Shape, batch, learning rate, mix, replay and validation follow from the numbers of tokens that the
text has and the hours buy; precision, optimizer and micro-batch from the card's memory. Constants are those of the
shipped configs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_filters.rule import CODE
from model.config import ModelConfig
from pipeline import config as configs
from pipeline.config import Config
from pipeline.corpus.inspection import Text
from pipeline.corpus.text.source import BYTES_PER_TOKEN
from pipeline.planner.advice import TOKENS_PER_PARAMETER
from pipeline.planner.costs import hours as hours_bought
from pipeline.planner.savers import FP32_LADDER, LADDER, first_that_fits

REPLAY, DEMO = "general", "python_library"
REPLAY_SHARE = 0.3  # of the mix, against forgetting
EPOCHS, EPOCHS_OF_LITTLE, LITTLE_TOKENS = 4, 16, 5_000_000  # repeated more often text is learned by heart (2305.16264)
LEAST_STEPS, LEAST_BATCH_TOKENS = 200, 1024  # fewer steps learn little: the batch shrinks first, as far as this
DISTRIBUTIONS = ["aiohttp", "click", "jinja2", "networkx", "numpy", "packaging", "pydantic", "requests", "tqdm",
                 "urllib3", "yarl"]  # fmt: skip
WEB_RULES: dict[str, Any] = {"gopher_quality": {}, "gopher_repetition": {}}
CODE_RULES: dict[str, Any] = {"long_lines": {}, "letters": {"min_share": 0.4}, "generated_code": {}}
HEAD = 64  # of new shapes
# (width, blocks) of new shapes, the smallest first; the feed-forward part is 8/3 as wide, as in Llama's shapes.
SHAPES = ((128, 4), (192, 6), (256, 8), (384, 8), (512, 10), (640, 12), (768, 14), (1024, 18), (1280, 20), (1536, 24),
          (2048, 24))  # fmt: skip
VOCABULARIES = ((1_000_000, 1024), (20_000_000, 4096), (400_000_000, 16_384))  # (bytes of text below which, entries)
LARGEST_VOCABULARY = 32_768
CONTINUED_RATES = ((20e6, 1e-3), (2e8, 2e-4), (1e9, 1e-4))  # (parameters below which, learning rate)
FRESH_RATES = ((2e7, 3e-3), (1e8, 2e-3), (4e8, 1.5e-3))


@dataclass(frozen=True)
class Base:
    """The model to continue. `source`: as `init.source` takes it; `of_hub`: a name that is fetched."""

    source: str
    shape: ModelConfig
    of_hub: bool = False


@dataclass
class Recipe:
    """`values`: of the config. `remarks`: what its comments say, by section. `ends_after_tokens`: where the text ends
    the run before the hours do."""

    values: dict[str, Any]
    remarks: dict[str, str] = field(default_factory=dict)
    texts: dict[str, Text] = field(default_factory=dict)
    ends_after_tokens: int | None = None
    fits: bool = True

    @property
    def config(self) -> Config:
        return configs.from_values(self.values, where="the new config")


def make_recipe(name: str, texts: Sequence[Text], base: Base | None, card: Mapping[str, Any], hours: float) -> Recipe:
    """`texts`: none means the text that Python's own library holds. Raises `UserError` for a base that cannot train."""
    cpu = bool(card.get("cpu"))
    named = _named(texts)
    own_tokens = _sum([text.tokens for text in texts]) if texts else 3_000_000
    length = _sequence_length(base, cpu, own_tokens)
    replay = base is not None and bool(texts)
    share = 1 - REPLAY_SHARE if replay else 1.0
    epochs = EPOCHS_OF_LITTLE if base is None and (own_tokens or LITTLE_TOKENS) < LITTLE_TOKENS else EPOCHS
    ends = None if own_tokens is None else round(own_tokens * epochs / share)
    shape, bought = _shape(base, card, hours, length, ends, own_tokens)
    run_tokens = min(ends or bought, bought)
    ended = ends is not None and ends < bought
    sources = {n: _source(text, round(run_tokens * share)) for n, text in named.items()}
    if replay:
        sources[REPLAY] = _replay(base.of_hub and not cpu, round(run_tokens * REPLAY_SHARE))  # type: ignore[union-attr]
    elif not texts:
        sources[DEMO] = _python_library(3_000_000)
    code = not texts or any(text.kinds.get(CODE) for text in texts)
    batch = _batch_tokens(cpu, base, shape.parameters, length, ends or 10**15 if cpu else run_tokens)
    rates = FRESH_RATES if base is None else CONTINUED_RATES
    rate = next((rate for below, rate in rates if shape.parameters < below), 1e-3 if base is None else 5e-5)
    steps = max(1, run_tokens // batch)
    values: dict[str, Any] = {
        "name": name,
        "seed": 1,
        "data": {
            "sources": sources,
            "filters": {"length": {"min_characters": 100, "max_characters": 1_000_000}, **(CODE_RULES if code else {})},
            "validation": _validation(named, run_tokens, len(sources), cpu),
            "tasks": 4 if (own_tokens or 10**8) < 20_000_000 else 16,
        },
        "model": model_values(shape),
        "init": {"method": "continue", "source": base.source} if base else {"method": "random"},
        "train": {
            "sequence_length": length,
            "global_batch_tokens": batch,
            "micro_batch": 0,
            "learning_rate": rate / 4 if base and batch <= 8192 else rate,
            "warmup_steps": min(200, max(5, steps // 30)),
            "mix": _mix(named, share) if texts else {DEMO: 1.0},
            "max_epochs": dict.fromkeys(named, epochs) if named else None,
            "precision": "auto",
            "optimizer": "adamw",
            "activation_checkpointing": "none",
            "validate_every_share": 0.5 if cpu else 0.2,
            **({"log_every_steps": 5} if cpu else {"checkpoint_every_seconds": 1800}),
        },
        "budget": {"max_gpu_hours": hours, "max_tokens": max(ends or 0, batch) if ended else None,
                   "gpu_hour_price": card["price_per_hour"] or None},
        "sample": {"prompts": ["def main(", "# "] if _code_share(texts) > 0.5 else ["The ", "How to "]},
    }  # fmt: skip
    if any(text.unreadable_share > 0.1 for text in texts):
        values["data"]["max_unreadable"] = min(1.0, round(1.5 * max(t.unreadable_share for t in texts) + 0.05, 2))
    if cpu:
        for key in ("micro_batch", "precision", "optimizer", "activation_checkpointing"):
            del values["train"][key]
    recipe = Recipe(_without_none(values), _remarks(base, card, replay, epochs), named, ends if ended else None)
    if not cpu:
        _fit(recipe, card)
    return recipe


def _named(texts: Sequence[Text]) -> dict[str, Text]:
    """By short names, the kind of source in them where a place gives several."""
    named: dict[str, Text] = {}
    for text in texts:
        options = text.options
        word = str(
            options.get("dataset") or Path(str(options["path"]).split("*")[0].rstrip("/")).name.partition(".")[0]
        )
        name = slug(word.rpartition("/")[2]) or "text"
        same = [t for t in texts if t.given == text.given]
        name = f"{name}_{options['type']}" if len(same) > 1 and options["type"] != "text" else name
        name = f"own_{name}" if name in (REPLAY, DEMO) else name
        number = sum(n == name or (n.startswith(f"{name}_") and n[len(name) + 1 :].isdigit()) for n in named)
        named[f"{name}_{number + 1}" if number else name] = text
    return named


def slug(word: str, join: str = "_") -> str:
    """A name of a source, or with `-` of an experiment, from any file's name."""
    kept = "".join(c if c.isascii() and c.isalnum() else " " for c in word.lower())
    return join.join(kept.split())[:40]


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _code_share(texts: Sequence[Text]) -> float:
    total = sum(text.bytes or 0 for text in texts)
    return sum(text.kinds.get(CODE, 0.0) * (text.bytes or 0) for text in texts) / max(1, total)


def _sequence_length(base: Base | None, cpu: bool, own_tokens: int | None) -> int:
    """As long as the base and the device like, and short enough that little held-out text has several windows."""
    most = (512 if base else 256) if cpu else (2048 if base else 1024)
    most = min(most, base.shape.max_position_embeddings) if base else most
    while most > 64 and own_tokens is not None and 0.1 * own_tokens < 8 * most:
        most //= 2
    return most


def _shape(
    base: Base | None, card: Mapping[str, Any], hours: float, length: int, ends: int | None, own_tokens: int | None
) -> tuple[ModelConfig, int]:
    """The base's shape; without a base the largest for which the hours and the text give enough tokens, at least the
    smallest. And the tokens that the hours buy of it, in the middle of their range."""
    if base:
        return base.shape, _bought(base.shape, card, hours, length)
    text_bytes = (own_tokens or 10**9) * BYTES_PER_TOKEN
    vocabulary = next((size for below, size in VOCABULARIES if text_bytes < below), LARGEST_VOCABULARY)
    for width, blocks in reversed(SHAPES):
        shape = ModelConfig(
            family="llama", vocab_size=vocabulary, hidden_size=width, intermediate_size=-(-8 * width // 3 // 64) * 64,
            num_hidden_layers=blocks, num_attention_heads=max(2, width // HEAD), tie_word_embeddings=True,
            max_position_embeddings=max(length, 1024), layer_norm_eps=1.0e-5,
        )  # fmt: skip
        bought = _bought(shape, card, hours, length)
        seen = bought if ends is None else min(ends, bought)
        if seen >= TOKENS_PER_PARAMETER * shape.parameters or (width, blocks) == SHAPES[0]:
            return shape, bought
    raise AssertionError("the smallest shape is always taken")


def _bought(shape: ModelConfig, card: Mapping[str, Any], hours: float, length: int) -> int:
    values = {"name": "x", "model": dataclasses.asdict(shape), "train": {"sequence_length": length,
              "global_batch_tokens": length}, "budget": {"max_gpu_hours": hours}}  # fmt: skip
    least, most = hours_bought(configs.from_values(values, where="the new config"), card)["tokens"]
    return max(length, (least + most) // 2)


def _source(text: Text, run_tokens: int) -> dict[str, Any]:
    """Own files are private; of a hub dataset not more is read than the run can use."""
    if text.options["type"] != "huggingface":
        return {**text.options, "license": "own", **_web_rules(text)}
    return {**text.options, "kind": "prose", "limit_tokens": _rounded(max(100_000, run_tokens))}


def _web_rules(text: Text) -> dict[str, Any]:
    """Pages that nobody has chosen take the rules for web prose, if these know their language."""
    if not text.web or text.languages.get("en", 0) < 0.8:
        return {}
    return {
        "filters": {**WEB_RULES, "language": {"languages": [code for code, n in text.languages.items() if n > 0.05]}}
    }


def _replay(hub: bool, tokens: int) -> dict[str, Any]:
    """Text of the kind that public models learned from. Without a hub, and on a CPU, what every Python environment
    holds: it costs no download."""
    if not hub:
        return {**_python_library(min(5_000_000, max(50_000, 2 * tokens))), "replay": True}
    return {
        "type": "huggingface", "dataset": "HuggingFaceFW/fineweb-edu", "config": "sample-10BT", "text_key": "text",
        "license": "ODC-By-1.0", "kind": "prose", "limit_tokens": _rounded(max(100_000, tokens)), "replay": True,
    }  # fmt: skip


def _python_library(tokens: int) -> dict[str, Any]:
    return {"type": "python_library", "distributions": DISTRIBUTIONS, "limit_tokens": _rounded(tokens)}


def _rounded(count: int) -> int:
    """Two digits, upwards."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def _batch_tokens(cpu: bool, base: Base | None, parameters: int, length: int, run_tokens: int) -> int:
    """What the shipped configs take; less where that would leave fewer than `LEAST_STEPS`."""
    wanted = 2048 if cpu else 131_072 if base or parameters < 1e8 else 262_144 if parameters < 5e8 else 524_288
    while wanted > max(length, LEAST_BATCH_TOKENS) and run_tokens < LEAST_STEPS * wanted:
        wanted //= 2
    return max(length, wanted // length * length)


def _validation(named: Mapping[str, Text], run_tokens: int, sources: int, cpu: bool) -> dict[str, Any]:
    """Enough to see a difference, at most a fifth of the text and a tenth of the run."""
    known = [text.bytes for text in named.values() if text.bytes]
    smallest = min(known) if known else 10**8
    share = min(0.2, max(0.02, 200_000 / smallest))
    times = 3 if cpu else 6
    affordable = 0.1 * run_tokens * 3 / times / max(1, sources) * BYTES_PER_TOKEN
    return {"share": round(share, 3), "max_bytes": _rounded(int(min(1_000_000, max(20_000, affordable))))}


def _mix(named: Mapping[str, Text], share: float) -> dict[str, float]:
    """By size; of unknown sizes evenly. With replay it has the rest."""
    sizes = {name: text.tokens for name, text in named.items()}
    known = None not in sizes.values()
    total = sum(sizes.values()) if known else len(sizes)  # type: ignore[arg-type]
    mix = {name: max(0.001, round(share * (size if known else 1) / total, 3)) for name, size in sizes.items()}  # type: ignore[operator]
    return {**mix, REPLAY: REPLAY_SHARE} if share < 1 else mix


def model_values(shape: ModelConfig) -> dict[str, Any]:
    """The fields that a config must name: those that are not the family's default."""
    required = {f.name: getattr(shape, f.name) for f in dataclasses.fields(shape)
                if f.default is dataclasses.MISSING}  # fmt: skip
    plain = ModelConfig(family=shape.family, **required)
    changed = {
        f.name: value
        for f in dataclasses.fields(shape)
        if f.name not in (*required, "family", "initializer_range")
        and (value := getattr(shape, f.name)) != getattr(plain, f.name)
        and value is not None
    }
    if changed.get("head_dim") == shape.hidden_size // shape.num_attention_heads:
        del changed["head_dim"]
    if changed.get("num_key_value_heads") == shape.num_attention_heads:
        del changed["num_key_value_heads"]
    return {"family": shape.family, **required, **changed}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in inner.items() if value is not None}


def _fit(recipe: Recipe, card: Mapping[str, Any]) -> None:
    """The fastest settings of memory that the card takes; the last ones where none does."""
    ladder = FP32_LADDER if card.get("emulates_bf16") else LADDER[:3]
    config, card_bytes = recipe.config, int(card["memory_gb"] * 1e9)
    found = first_that_fits(config, card_bytes, ladder=ladder)
    rung, windows = (found[0], found[1].windows) if found else (ladder[-1], 1)
    recipe.fits = found is not None
    all_windows = config.train.global_batch_tokens // config.train.sequence_length
    windows = next(n for n in range(windows, 0, -1) if all_windows % n == 0)
    recipe.values["train"] |= {**rung, "micro_batch": windows}


def _remarks(base: Base | None, card: Mapping[str, Any], replay: bool, epochs: int) -> dict[str, str]:
    found = {"epochs": f"read more often than {epochs} times it is learned by heart (arXiv 2305.16264)"}
    if epochs > EPOCHS:
        found["epochs"] = f"little text is read up to {epochs} times; the later ones teach less (arXiv 2305.16264)"
    found["filters"] = "no rules for web prose: manuals and notes are wanted as they are"
    if replay:
        found["mix"] = f"{REPLAY}: what the base knows already, against forgetting"
    if not card.get("cpu"):
        found["memory"] = "the fastest settings that fit the card, by a traced step"
    found["model"] = "the base's shape as it is" if base else "the size that text and hours can teach"
    return found
