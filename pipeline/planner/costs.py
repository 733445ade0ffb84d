"""What a run costs and reads: hours and money on each GPU, time that is not training, disk, and epochs of its text.

In: a config, a GPU of configs/gpus.yaml, the manifest of the data stage where that is finished. Out: plain values, each
with the basis of the estimate. Speeds come from the MFU that published trainings of this size reach. `ASSUMED_SECONDS`
and the disk's speed are assumptions, not measured on a GPU so far.
"""

import math
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from pipeline.config import Config
from pipeline.corpus.sources.document_files import PLAIN_ENDINGS
from pipeline.corpus.steps import make_source
from pipeline.corpus.text.source import BYTES_PER_TOKEN
from pipeline.corpus.text.user_files import split_ending
from pipeline.stages import data_step
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError
from pipeline.training.budget import FLOAT32_MAX_BYTES, SAVE_BYTES_PER_SECOND, save_interval_seconds
from pipeline.training.mixing import effective_weights

MFU = {"none": (0.35, 0.50), "selective": (0.34, 0.49), "full": (0.27, 0.39)}  # recomputing all costs 4/3 of the FLOPs
CPU_MFU = (0.20, 0.45)  # of a matrix product measured now; 0.43 and 0.46 in real-cpu.yaml and tiny.yaml
MFU_BASIS = "MFU of published trainings of 1 to 7B (35 to 50%, less what is recomputed): unmeasured here"
MOMENT_BYTES = {"adamw8bit": 2.03, "adamw4bit": 1.06, "muon": 6.0}  # a parameter; 8 for the others
CPU_BASIS = "20 to 45% of a matrix product that was measured now on this machine, as two runs on one CPU reached"
ASSUMED_SECONDS = {"start": 60.0, "compile": 90.0}  # of each process on a card: imports and loading; torch.compile
CPU_START_SECONDS = 20.0
HOST_COPY_BYTES_PER_SECOND = 4e9  # from a card into the host's memory, assumed: half of what its bus carries
MUCH_VALIDATION = 0.25  # of the work of all training steps
TOKEN_COPIES = 2  # encoded shards, and the token sets that training reads
TEXT_COPIES = 2  # JSON lines as read, and as repaired
MANIFEST, LIMIT = "the data manifest", "the source's limit, an upper bound"  # where a size comes from
FILES = f"its files, at {BYTES_PER_TOKEN:g} bytes a token"
PLAIN_FILES = {(ending, "") for ending in (*PLAIN_ENDINGS, ".jsonl", ".ndjson", ".json")}


def tokens_per_second(config: Config, model: ModelConfig, card: Mapping[str, Any]) -> tuple[float, float]:
    """[least, most] by `MFU`; of a CPU by `CPU_MFU`."""
    peak = card["bf16_dense_tflops"] * 1e12
    low, high = CPU_MFU if card.get("cpu") else MFU[config.train.activation_checkpointing]
    flops = model.flops_per_token(config.train.sequence_length)
    return peak * low / flops, peak * high / flops


def basis_of(card: Mapping[str, Any]) -> str:
    """Where the speeds come from."""
    return CPU_BASIS if card.get("cpu") else MFU_BASIS


def hours(
    config: Config, card: Mapping[str, Any], validation_tokens: int = 0, speeds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """What the cap buys: tokens or hours, and the cost, each as [least, most].

    Seconds that are not training (`overhead`) are subtracted from a cap in hours, and added to the time for a number of
    tokens. `validation_tokens`: of the held-out text. `speeds`: measured tokens per second, instead of the GPU's.
    """
    slow, fast = speeds or tokens_per_second(config, config.model, card)
    cap, tokens = config.budget.max_gpu_hours, config.budget.max_tokens
    price, own = card["price_per_hour"], config.budget.gpu_hour_price
    if cap is None and tokens is None:
        return {"tokens_per_second": [round(slow), round(fast)]}
    spent, bought = [], []
    for speed in (fast, slow):
        lost = sum(_lost_seconds(config, card, speed, validation_tokens)[0].values())
        spent.append(min(cap or math.inf, ((tokens or math.inf) / speed + lost) / 3600))
        bought.append(min(tokens or math.inf, speed * max(0.0, (cap or math.inf) * 3600 - lost)))
    bought.reverse()
    return {
        "tokens_per_second": [round(slow), round(fast)],
        "gpu_hours": [round(h, 3) for h in spent],
        "tokens": [round(n) for n in bought],
        "tokens_per_parameter": [round(n / config.model.parameters, 3) for n in bought],
        "cost_usd": [round(h * price, 2) for h in spent],
        "price_per_hour": price,
        **({"cost_at_own_price": [round(h * own, 2) for h in spent]} if own not in (None, price) else {}),
    }


def _validations(config: Config) -> int:
    """Before the first step, and after every share `train.validate_every_share` of the run."""
    return 1 + math.ceil(1 / config.train.validate_every_share)


def validation_cost(config: Config, tokens: int) -> tuple[str, str | None]:
    """The cost of all validations of `tokens` held-out tokens as a sentence, and a warning where it is much of the run.
    It counts tokens of training, which are known before anything is measured: a forward pass is a third of a step."""
    times = _validations(config)
    work, most = times * tokens / 3, config.budget.max_tokens
    words = f"{times} validations of {tokens:,} tokens cost as much as training on {work:,.0f} tokens"
    if not most or work <= MUCH_VALIDATION * most:
        return words, None
    return words, (
        f"{words}, {100 * work / most:,.0f}% of budget.max_tokens; lower data.validation.max_bytes (what is not needed "
        "is train text), or raise train.validate_every_share"
    )


def overhead(config: Config, card: Mapping[str, Any], validation_tokens: int) -> dict[str, Any]:
    """Seconds of the run outside training steps, by kind, and their share of the run, which is 1 where they leave no
    time for a step. Empty where the config sets no end."""
    slow, _ = tokens_per_second(config, config.model, card)
    stepping, capped = _stepping_seconds(config, slow), _capped_seconds(config)
    if min(stepping, capped) == math.inf:
        return {}
    by_kind, (validations, saves, one_save) = _lost_seconds(config, card, slow, validation_tokens)
    lost = sum(by_kind.values())
    run = min(capped, stepping + lost)
    return {
        "seconds": {kind: round(value, 1) for kind, value in by_kind.items()},
        "share": round(min(1.0, lost / run), 4),
        "share_by_kind": {kind: round(value / max(run, lost), 4) for kind, value in by_kind.items()},
        "nothing_left": lost >= run,
        "validations": validations,
        "validation_tokens": validation_tokens,
        "saves": saves,
        "seconds_per_save": round(one_save, 1),
        "data": "none where the data stage ran before, as its own job on CPUs; batches are read ahead while steps run",
        "basis": f"start and compile assumed ({ASSUMED_SECONDS['start']:.0f} and {ASSUMED_SECONDS['compile']:.0f} s), "
        f"evaluation from FLOPs, saving at {SAVE_BYTES_PER_SECOND / 1e6:.0f} MB/s after a copy to the host, for which "
        f"alone the steps wait, at {HOST_COPY_BYTES_PER_SECOND / 1e9:.0f} GB/s; one process, unmeasured on a card",
    }


def _stepping_seconds(config: Config, speed: float) -> float:
    return math.inf if config.budget.max_tokens is None else config.budget.max_tokens / speed


def _capped_seconds(config: Config) -> float:
    return math.inf if config.budget.max_gpu_hours is None else 3600 * config.budget.max_gpu_hours


def _lost_seconds(
    config: Config, card: Mapping[str, Any], speed: float, validation_tokens: int
) -> tuple[dict[str, float], tuple[int, int, float]]:
    """Seconds outside training steps by kind; and (validations, saves, seconds of a save)."""
    train = config.train
    seconds = min(_stepping_seconds(config, speed), _capped_seconds(config))
    validations = _validations(config)
    one_save = checkpoint_bytes(config) / SAVE_BYTES_PER_SECOND
    interval = save_interval_seconds(train.checkpoint_every_seconds, one_save)
    copying = checkpoint_bytes(config) / HOST_COPY_BYTES_PER_SECOND
    waited = one_save if card.get("cpu") else max(copying, one_save - interval)  # one is written at a time
    saves = 2 + math.floor(seconds / interval)  # before the decay, and the last one
    by_kind = {
        "start": CPU_START_SECONDS if card.get("cpu") else ASSUMED_SECONDS["start"],
        "compile": ASSUMED_SECONDS["compile"] if _compiles(train.compile, card) else 0.0,
        "evaluation": validations * validation_tokens / (3 * speed),  # forward only
        # The steps of a card wait for the copy alone, but at the end there are none.
        "saving": (saves - 1) * waited + one_save + model_bytes(config) / SAVE_BYTES_PER_SECOND,
    }
    return by_kind, (validations, saves, one_save)


def _compiles(setting: str, card: Mapping[str, Any]) -> bool:
    return setting == "true" or (setting == "auto" and not card.get("cpu"))


def checkpoint_bytes(config: Config) -> float:
    """fp32 weights and the optimizer's moments."""
    return config.model.parameters * (4 + MOMENT_BYTES.get(config.train.optimizer, 8))


def model_bytes(config: Config) -> float:
    """The exported model."""
    return config.model.parameters * (4 if config.model.parameters * 4 <= FLOAT32_MAX_BYTES else 2)


def disk(config: Config, unique_tokens: int | None) -> dict[str, Any]:
    """GB of checkpoints (the newest, one from before the decay, one being written, one per branch), of the exported
    model, of tokens, and of the text that the data stage keeps; None where the text's size is unknown."""
    kept = config.train.keep_checkpoints + 2 + len(config.budget.branches)
    width = 2 if config.model.vocab_size <= 2**16 else 4
    tokens = None if unique_tokens is None else unique_tokens * width * TOKEN_COPIES / 1e9
    text = None if unique_tokens is None else unique_tokens * BYTES_PER_TOKEN * TEXT_COPIES / 1e9
    return {
        "checkpoints": round(kept * checkpoint_bytes(config) / 1e9, 2),
        "model": round(model_bytes(config) / 1e9, 2),
        "tokens": None if tokens is None else round(tokens, 3),
        "text": None if text is None else round(text, 3),
        "basis": f"{kept} checkpoints; {width} bytes a token, encoded and as token sets; {BYTES_PER_TOKEN:g} bytes of "
        "text a token, as read and as repaired, not compressed; what filters will drop is not known and not counted",
    }


def cards(
    config: Config, table: Mapping[str, Mapping[str, Any]], largest: Any, validation_tokens: int
) -> list[dict[str, Any]]:
    """The config on every GPU of the table. `largest`: bytes of a GPU -> the largest estimate that fits, or None."""
    rows = []
    for name, card in table.items():
        fits = largest(int(card["memory_gb"] * 1e9))
        facts = {"card": name, "memory_gb": card["memory_gb"], "price_per_hour": card["price_per_hour"]}
        rows.append({**facts, **hours(config, card, validation_tokens), "micro_batch": fits.windows if fits else None})
    return rows


def text_of(config: Config) -> dict[str, Any]:
    """`{sources: {name: {tokens, from}}, validation_tokens, why}`; `tokens` is None where nothing says how many. Reads
    only the manifest of the data stage, where that is finished."""
    why = "the data stage is not made yet"
    try:
        step = data_step(config)
        if step.finished:
            manifest = read_manifest(step.path)
            sources = {n: {"tokens": s["train"]["tokens"], "from": MANIFEST} for n, s in manifest["sources"].items()}
            return {"sources": sources, "validation_tokens": validation_tokens(manifest), "why": None}
    except UserError as error:  # its input is not on this machine, and a plan does not need it
        why = str(error)
    named = {name: options for name, options in config.data.sources.items() if isinstance(options, Mapping)}
    sources = {name: _size(name, options) for name, options in named.items()}
    most = (len(named) + 1) * config.data.validation.max_bytes / BYTES_PER_TOKEN
    return {"sources": sources, "validation_tokens": round(most), "why": why}


def validation_tokens(manifest: Mapping[str, Any]) -> int:
    """Of all validation sets of a finished data stage. The textbook set is counted twice, because it is read twice."""
    return sum(manifest.get(part, {}).get(key, 0) for part, key in (("tokens", "val"), ("textbook", "tokens")))


def epochs_of(config: Config, text: Mapping[str, Any], tokens: float) -> dict[str, float | None]:
    """How often each source is seen in so many tokens; None where its size or its share is unknown."""
    sizes = {name: s["tokens"] for name, s in text["sources"].items() if s["tokens"]}
    unknown = [name for name, s in text["sources"].items() if s["tokens"] is None]
    if config.train.mix is not None:
        total = sum(config.train.mix.values())
        shares = {name: share / total for name, share in config.train.mix.items()}
    elif sizes and not unknown:
        weights = effective_weights(config, sizes)
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    else:
        shares = {}
    return {
        name: round(tokens * shares.get(name, 0) / sizes[name], 3) if name in sizes and shares else None
        for name in text["sources"]
    }


def unique_tokens(text: Mapping[str, Any]) -> int | None:
    """Of all sources together; None where one of them is unknown."""
    counts = [source["tokens"] for source in text["sources"].values()]
    return None if None in counts or not counts else sum(counts)


def _size(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """By the source's limit, else by the bytes of its files where these are plain text."""
    limit = _limit(options)
    if limit["tokens"] is not None or options.get("type") not in ("text", "jsonl"):
        return limit
    try:
        files = make_source(options, f"data.sources.{name}").files()  # type: ignore[attr-defined]
    except UserError:
        return limit
    if not all(split_ending(file.name) in PLAIN_FILES for file in files):
        return limit
    return {"tokens": round(sum(file.size_bytes for file in files) / BYTES_PER_TOKEN), "from": FILES}


def _limit(options: Mapping[str, Any]) -> dict[str, Any]:
    found = [options["limit_tokens"]] if isinstance(options.get("limit_tokens"), int) else []
    found += [options["limit_bytes"] / BYTES_PER_TOKEN] if isinstance(options.get("limit_bytes"), int) else []
    return {"tokens": round(min(found)), "from": LIMIT} if found else {"tokens": None, "from": "unknown"}
