"""Cases of configs: YAML files, overrides on the command line, conditions on records, and studies.

What is accepted can be printed, read again, and gives the same. Nothing runs: verbs are asked what they would do.
"""

import operator
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scripts.fuzz_parts import runs
from scripts.fuzz_parts.lab import Wrong, command, equal, run, write
from scripts.fuzz_parts.mutate import dumped, mutate, mutate_value, odd

WORDS = (
    "1:30", "12:00:00", "010", "0x10", "1_000", "no", "on", "~", "null", "", "1e3", "1e999", ".inf", "-.inf", ".nan",
    "-1", "0", "0.5", "[]", "{}", "[1,2]", "{a: 1}", "a,b", "${name}", "${oc.env:HOME}", "!!python/name:os.system",
    "&a 1", "*a", "'", '"', "[", "{", ": ", "- ", "#", "true", "True", "yes", "2026-01-02", "9" * 400, "x" * 5_000,
    "\u2028", "../..", "a/b", "/", ".", "..", "ü", "6h", "500M", "a b", "tiny", "none", "lora", "exact", "muon",
)  # fmt: skip
ASKS = ("data", "init", "pretrain", "evaluate", "export", "quantize", "finetune")


def config(draw: random.Random, folder: Path) -> None:
    """A YAML file: values of other types, or the text damaged."""
    text = draw.choice(_examples())
    if draw.random() < 0.65:
        data = _as_yaml(mutate_value(yaml.safe_load(text), draw))
    else:
        data = mutate(text.encode(), draw)
    path = write(folder / "config.yaml", data)
    _asked(str(path), [], draw)


def overrides(draw: random.Random, folder: Path) -> None:
    """One to three words of the command line, on any key that there is or that there might be."""
    from pipeline.config import key_kinds

    keys = [*key_kinds(), "data.sources.web.path", "data.sources.web.where", "data.sources.web.limit_documents",
            "data.filters.length.min_characters", "data.filters.quality.min_score", "data.sources.new.type",
            "data.sources.web.license", "data.sources.web.weight", "data.sources.web.metadata_keys"]  # fmt: skip
    words = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        key, way = draw.choice(keys), draw.random()
        if way < 0.08:
            key = mutate(key.encode(), draw).decode("utf-8", "replace").replace("\0", "")[:300]
        value = draw.choice((draw.choice(WORDS), str(odd(draw))[:2_000])).replace("\0", "")
        words.append(f"{key}={value}".encode("utf-8", "replace").decode())
    _asked(str(runs.PREPARED / "fuzz.yaml"), [word for word in words if not word.startswith("-")], draw)


def _as_yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")
    except RecursionError:  # of PyYAML, on what is too deep for it
        return dumped(value)


def study(draw: random.Random, folder: Path) -> None:
    text = draw.choice([path.read_text() for path in sorted((_root() / "configs/studies").glob("*.yaml"))])
    text = text.replace("base: ../", f"base: {_root() / 'configs'}/")
    if draw.random() < 0.65:
        data = _as_yaml(mutate_value(yaml.safe_load(text), draw))
    else:
        data = mutate(text.encode(), draw)
    command("study", str(write(folder / "study.yaml", data)), "--dry-run", *draw.choice(((), ("--json",))))


def _asked(path: str, words: list[str], draw: random.Random) -> None:
    way = draw.random()
    if way < 0.5:
        _is_read_again(path, words)
    elif way < 0.85:
        command(draw.choice(ASKS), path, *words, "--dry-run", *draw.choice(((), ("--json",))))
    else:
        ways: list[Callable[[], Any]] = [
            lambda: command("where", draw.choice(ASKS), path, *words),
            lambda: command("submit", path, *words, "--dry-run"),
            lambda: command("report", path, *words),
            lambda: command("data", path, *words, "--limit", draw.choice(("1", "0", "-1", "x", "1.5"))),
        ]
        draw.choice(ways)()


def _is_read_again(path: str, words: list[str]) -> None:
    """A resolved config, printed, is the same config."""
    from pipeline import config as configs

    def twice() -> tuple[Any, Any]:
        first = configs.load(path, words)
        again = Path("again.yaml")
        again.write_text(configs.to_yaml(first), encoding="utf-8")
        return configs.to_values(first), configs.to_values(configs.load(again))

    made = run(twice)
    if made.code == 0:
        equal(repr(made.value[0]), repr(made.value[1]), "a printed config is read as another one")
    elif "again.yaml" in made.said:
        raise Wrong("a printed config is refused", made.said[-1500:])


def _examples() -> list[str]:
    files = sorted((_root() / "configs").glob("*.yaml"))
    texts = [path.read_text() for path in files if path.name not in ("gpus.yaml",) and "base:" not in path.read_text()]
    own = (runs.PREPARED / "fuzz.yaml").read_text()
    return [own] * len(texts) + texts


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


# Conditions: drawn with what they mean, and judged by both

Judge = Callable[[dict[str, Any]], bool | None]  # None: unknown, as in SQL
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def where(draw: random.Random, folder: Path) -> None:
    """A condition on records: what it means is what is read; a damaged one is refused with its place, or counted."""
    from pipeline.corpus.named import make_source
    from pipeline.corpus.text.documents import SetAside

    values: list[Any] = [None, 0, 1, 2.5, -3, "en", "de", "it's", "", True, False, "3", [1], {"a": 1}]
    drawn = ((f"text {i}", *draw.choices(values, k=3)) for i in range(12))
    records = [{"text": text, "score": score, "lang": lang, "meta": {"n": n}} for text, score, lang, n in drawn]
    path = write(folder / "in/a.jsonl", b"\n".join(map(dumped, records)))
    text, judge = _condition(draw, draw.choice((0, 1, 2, 4)))
    sound = draw.random() < 0.6
    if not sound:
        text = mutate(text.encode(), draw).decode("utf-8", "replace").replace("\0", " ")
    options = {"type": "jsonl", "path": str(path), "where": text}
    made = run(lambda: list(make_source(options, "data.sources.web").documents(0, 1)))
    if made.code == 0:
        equal(len(made.value), len(records), "records outside of a condition are not counted")
        if sound:
            found = [item.text for item in made.value if not isinstance(item, SetAside)]
            equal(found, [r["text"] for r in records if judge(r)], f"the condition {text}")
    elif sound or "where" not in made.said:
        raise Wrong("a condition is refused" if sound else "a refusal that does not say where", f"{text}\n{made.said}")


def _condition(draw: random.Random, depth: int) -> tuple[str, Judge]:
    if depth == 0:
        return _test(draw)
    parts = [_condition(draw, depth - 1) for _ in range(draw.choice((1, 2, 2, 3)))]
    word = draw.choice(("and", "or", "AND", "Or"))
    text = f" {word} ".join(f"({part})" for part, _ in parts)
    every = word.lower() == "and"

    def judge(record: dict[str, Any]) -> bool | None:
        found = [part(record) for _, part in parts]
        if (not every) in found:  # one true decides an or, one false an and
            return not every
        return None if None in found else every

    if draw.random() < 0.3:
        return f"not ({text})", lambda record: None if (found := judge(record)) is None else not found
    return text, judge


def _test(draw: random.Random) -> tuple[str, Judge]:
    field = draw.choice(("score", "lang", "meta.n"))

    def value_of(record: dict[str, Any]) -> Any:
        return record["meta"]["n"] if field == "meta.n" else record[field]

    if draw.random() < 0.2:
        negated = draw.random() < 0.5
        return f"{field} is {'not ' * negated}null", lambda record: (value_of(record) is None) != negated
    wanted = draw.choice((0, 1, 2.5, -3, "en", "it's", "", True, False))
    kinds = bool if isinstance(wanted, bool) else str if isinstance(wanted, str) else int | float
    written = str(wanted).lower() if isinstance(wanted, bool) else f'"{wanted}"' if kinds is str else f"{wanted}"
    sign = draw.choice(("==", "!=") if kinds is bool else tuple(_COMPARED))

    def judge(record: dict[str, Any]) -> bool | None:
        found = value_of(record)
        if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(wanted, bool):
            return None
        return _COMPARED[sign](found, wanted)

    return f"{field} {sign} {written}", judge
