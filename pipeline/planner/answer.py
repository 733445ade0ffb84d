"""A plan in five lines: does it fit, what do the hours buy, what does it cost, what to do, what would be better.

In: a config and the values of its plan (`pipeline/plan.py`). Out: the lines by name, each one sentence or list.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.pages.html import span
from pipeline.system.progress import format_count

FINE_TUNE_TOKENS = 1_000_000  # of own text: below it the cost of pretraining is not worth what tuning gives
MUCH_REPEATED = 8  # times: from about 4 on repeated text is worth less (arXiv 2305.16264)
WORTH_USD = 1.0  # cheaper runs are not worth another card
CHEAPER = 0.7  # of this card's price for the same tokens, from which another is named


def answer(config: Config, plan: Mapping[str, Any]) -> dict[str, str]:
    """`fits`, `buys`, `costs`, `advice`, `better`."""
    return {
        "fits": _fits(plan),
        "buys": _buys(plan),
        "costs": _costs(plan),
        "advice": advise(config, plan),
        "better": _better(plan),
    }


def advise(config: Config, plan: Mapping[str, Any]) -> str:
    """One sentence: whether to spend these hours so, and on what else if not."""
    if plan["overhead"].get("nothing_left"):
        return "raise budget.max_gpu_hours: what is no training takes all of these hours"
    text, epochs = plan["text"], plan["text"]["epochs"]
    own = [name for name, o in config.data.sources.items() if isinstance(o, Mapping) and o.get("license") == "own"]
    known = [text["sources"][name]["tokens"] for name in own if name in text["sources"]]
    if config.init.method == "continue" and own:
        tokens = sum(count or 0 for count in known)
        if None not in known and tokens < FINE_TUNE_TOKENS:
            return (
                f"{format_count(tokens)} tokens of your own text are little: continue on them for a short time with "
                "replay, as set, and compare with `hornbook finetune`; more text helps more than more hours"
            )
        return f"continue {config.init.source} on your text; watch the replay sources for what it forgets"
    if repeated := [
        f"{name} ({most[1]:.0f} times)" for name, most in epochs.items() if most and most[0] > MUCH_REPEATED
    ]:
        return f"add text or lower the hours: {', '.join(repeated)} would be learned by heart"
    way = [plan["growth"]["sentence"]] if plan["growth"] else []
    return "; ".join([*way, plan["verdict"]["why"]])


def _fits(plan: Mapping[str, Any]) -> str:
    memory = plan["memory"]
    word = "fits" if memory["fits"] else "DOES NOT FIT"
    return (
        f"{word}: {memory['needed_gib']:g} GiB needed of {memory['card_gib']:g} on {plan['card']}, at micro-batch "
        f"{memory['micro_batch']} ({plan['name']}, {format_count(plan['parameters'])} parameters)"
    )


def _buys(plan: Mapping[str, Any]) -> str:
    hours = plan["hours"]
    speed = f"{hours['tokens_per_second'][0]:,} to {hours['tokens_per_second'][1]:,} tokens/s"
    if "tokens" not in hours:
        return f"{speed}, and no end is set: set budget.max_gpu_hours"
    read = [f"{name} {span(times, '.2g')} times" for name, times in plan["text"]["epochs"].items() if times]
    said = f"; it reads {', '.join(read)}" if read else ""
    each = span([float(f"{n:.2g}") for n in hours["tokens_per_parameter"]], "g")
    return f"{span(hours['tokens'])} tokens in {span(hours['gpu_hours'])} h at {speed}, {each} a parameter{said}"


def _costs(plan: Mapping[str, Any]) -> str:
    hours, disk = plan["hours"], plan["disk_gb"]
    money = []
    if "cost_at_own_price" in hours:
        money = [f"{span(hours['cost_at_own_price'], '.2f')} USD at budget.gpu_hour_price"]
    elif "cost_usd" in hours and hours["price_per_hour"]:
        money = [f"{span(hours['cost_usd'], '.2f')} USD at {hours['price_per_hour']:g} an hour"]
    known = sum(disk[kind] or 0 for kind in ("checkpoints", "model", "tokens", "text"))
    more = " and what the text takes" if disk["text"] is None else ""
    lost = plan["overhead"]
    share = [f"{100 * lost['share']:.1f}% of the hours are no training"] if lost else []
    return "; ".join([*money, f"{known:.3g} GB of disk{more}", *share])


def _better(plan: Mapping[str, Any]) -> str:
    memory = plan["memory"]
    if not memory["fits"]:
        return _what_fits(plan)
    found = []
    for change in plan["expected"]["raised_by"][:1] if plan["expected"] else []:
        words = " ".join(f"{key}={value}" for key, value in change.items() if key != "mfu")
        found.append(f"{words} if that fits: MFU up to {100 * change['mfu']:.0f}% instead of {_most_mfu(plan):.0f}%")
    best = plan["verdict"]["best_trained"]
    if best and not best.startswith("this size") and not (plan["continues"] and best.startswith(plan["continues"])):
        found.append(f"for general text: {best}")
    if cheaper := _cheaper(plan):
        found.append(cheaper)
    return "; ".join(found) or "nothing that is known here"


def _most_mfu(plan: Mapping[str, Any]) -> float:
    return 100 * plan["expected"]["mfu"][1]


def _what_fits(plan: Mapping[str, Any]) -> str:
    """Settings that fit this card, else the smallest card that takes the config as it is."""
    rung = plan["fitting"]
    if rung is not None:
        words = [f"train.{key}={str(value).lower() if value is True else value}" for key, value in rung.items()
                 if key != "needed_gib"]  # fmt: skip
        return f"{' '.join(words)}: {rung['needed_gib']:g} GiB"
    fitting = [row for row in plan["cards"] if row["micro_batch"]]
    if fitting:
        row = min(fitting, key=lambda row: (row["memory_gb"], row["price_per_hour"]))
        return f"--card {row['card']} ({row['memory_gb']} GB) takes it as it is set; on this card a smaller model"
    return "a smaller model or a shorter train.sequence_length: no card of configs/gpus.yaml takes it as it is set"


def _cheaper(plan: Mapping[str, Any]) -> str | None:
    """The card that takes the config and trains a token for clearly less; of a CPU the smallest card."""
    rows = [row for row in plan["cards"] if row["micro_batch"] and "tokens_per_second" in row]

    def price(row: Mapping[str, Any]) -> float:
        return row["price_per_hour"] / sum(row["tokens_per_second"])

    own = plan["hours"]
    if not rows:
        return None
    if not own["price_per_hour"]:
        row = min(rows, key=lambda row: (row["memory_gb"], row["price_per_hour"]))
        times = sum(row["tokens_per_second"]) / sum(own["tokens_per_second"])
        return f"a GPU: --card {row['card']} reads about {times:.0f} times as many tokens in these hours"
    row = min(rows, key=price)
    here = own["price_per_hour"] / sum(own["tokens_per_second"])
    share = price(row) / here
    if share > CHEAPER or max(own.get("cost_usd", [0])) < WORTH_USD:
        return None
    return f"--card {row['card']}: {100 * share:.0f}% of the money for the same tokens"
