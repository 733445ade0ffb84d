"""`hornbook new FOLDER`: a config for the user's own text, model, card and hours, and the three commands that follow.

In: the answers to five questions, as flags or typed on a terminal. Out: one commented YAML file in FOLDER of at most
`MOST_LINES` lines, never in place of another; on the console what was found and chosen, and what each next command
takes. Reads names and sizes of all files and a sample of their text; fetches a config.json at most.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import checkpoints
from pipeline import config as configs
from pipeline.config import yaml_values
from pipeline.corpus.inspection import Text, examine, words
from pipeline.pages import html
from pipeline.planner.answer import FINE_TUNE_TOKENS
from pipeline.planner.cards import card_of
from pipeline.planner.costs import disk, hours
from pipeline.planner.recipe import Base, Recipe, make_recipe, slug
from pipeline.planner.savers import asked, own_settings
from pipeline.storage.files import root, write_text
from pipeline.storage.hub import GGUF, is_hub_name, known_shape, local_folder
from pipeline.system.errors import UserError
from pipeline.system.progress import format_bytes, format_count, format_seconds

MOST_LINES, MOST_TEXTS = 60, 10
DEMO = "none: a demo on the text that Python comes with"
DATA_BYTES_PER_SECOND, FIXED_SECONDS = 4e6, 20  # of the data stage on one core, half of what was measured: data.md
CPU_HOURS, GPU_HOURS = 0.12, 12.0
NAMES = {".py": "Python", ".c": "C", ".h": "C", ".cpp": "C++", ".cc": "C++", ".hpp": "C++", ".java": "Java",
         ".js": "JavaScript", ".ts": "TypeScript", ".go": "Go", ".rs": "Rust", ".rb": "Ruby", ".cs": "C#",
         ".sh": "shell", ".sql": "SQL", ".md": "Markdown", ".rst": "reStructuredText", ".txt": "text", ".html": "HTML",
         ".pdf": "PDF", ".docx": "Word", ".jsonl": "JSON lines", ".parquet": "Parquet", ".tex": "LaTeX"}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What is asked; None: not answered, so the default holds. No `text`: what FOLDER holds, else a demo."""

    text: Sequence[str] | None = None
    base: str | None = None
    card: str | None = None
    hours: str | None = None
    slurm: bool = False

    @property
    def none_given(self) -> bool:
        return not self.slurm and not any((self.text, self.base, self.card, self.hours))


def run(folder: Path, answers: Answers) -> Path:
    """Writes the config and prints what follows; returns its path. Raises `UserError` for anything that keeps it from
    being written."""
    name = _free_name(folder)
    path = folder / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path} is there already and stays as it is; remove it, or name another folder")
    if answers.none_given:
        answers = _ask(folder)
    card_name, card = card_of(answers.card or "auto")
    texts = _texts(folder, answers.text)
    base = _base(answers.base or (_default_base(card) if texts else "none"))
    recipe = make_recipe(name, texts, base, card, _hours(answers.hours, card))
    told = _forecast(recipe, card_name, card)
    text = _yaml(recipe, path, told, answers.card)
    configs.from_values(yaml_values.load(text, configs.Config), where=str(path))  # as it will be read
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a folder that you may write to") from None
    print("\n".join(_summary(recipe, card_name, card, told)))
    print(f"wrote    {path} ({len(text.splitlines())} lines)\n")
    print("\n".join(_next(recipe, path, card_name, card, told, answers)), flush=True)
    return path


def _free_name(folder: Path) -> str:
    """Of the experiment: the folder's, with a number where another experiment has it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder, which is made where it is not there")
    name = slug(folder.expanduser().resolve().name, "-") or "new"
    recorded = root() / "runs" / name / "config.yaml"
    return f"{name}-2" if recorded.is_file() and not (folder / f"{name}.yaml").exists() else name


def _ask(folder: Path) -> Answers:
    """The five questions, on a terminal; an empty answer takes what stands in brackets."""
    if not sys.stdin.isatty():
        raise UserError(
            "hornbook new asks five questions on a terminal, and this is none; give --text PATH..., --base NAME, "
            "--card NAME, --hours N, or --slurm (any of them; the others have defaults)"
        )
    here = [str(folder)] if _holds_text(folder) else []
    text = _answer("Your text: folders, files or hub:owner/name", here[0] if here else DEMO)
    default = _default_base(card_of("auto")[1]) if text != DEMO else "none"
    base = _answer("Model to continue: smollm2-135m, qwen3-0.6b, a folder, a GGUF file, or none for a new one", default)
    card = _answer("Card: a name (rtx-4090), a size (24gb), cpu, or auto for this machine's", "auto")
    time = _answer("Hours of training at most", f"{CPU_HOURS if card_of(card)[1].get('cpu') else GPU_HOURS:g}")
    slurm = _answer("Does it run as Slurm jobs? y or n", "n").lower().startswith("y")
    return Answers(None if text == DEMO else here if text in here else _paths(text), base, card, time, slurm)


def _paths(answer: str) -> list[str]:
    """One path may have spaces; several stand as in a shell."""
    return [answer] if Path(answer).expanduser().exists() else shlex.split(answer)


def _answer(question: str, default: str) -> str:
    try:
        return input(f"{question} [{default}]: ").strip() or default
    except EOFError:
        return default


def _holds_text(folder: Path) -> bool:
    try:
        return bool(examine(str(folder)))
    except UserError:
        return False


def _texts(folder: Path, given: Sequence[str] | None) -> list[Text]:
    if given is None:
        given = [str(folder)] if _holds_text(folder) else []
    if len(given) > MOST_TEXTS:
        raise UserError(f"--text names {len(given)} places; expected at most {MOST_TEXTS}: name the folder above them")
    return [text for place in dict.fromkeys(given) for text in examine(place)]


def _default_base(card: Mapping[str, Any]) -> str:
    """The largest that trains well in the card's memory."""
    if card.get("cpu") or card["memory_gb"] < 11:
        return "smollm2-135m"
    return "qwen3-0.6b" if card["memory_gb"] < 23 else "qwen3-1.7b"


def _base(word: str) -> Base | None:
    """Raises `UserError` for what is neither a known name, a hub name, a folder nor a GGUF file."""
    from model.hf import load_config

    if word.lower() == "none":
        return None
    path = Path(word).expanduser()
    if path.exists():
        source = str(path.resolve())
        if not path.is_dir() and not word.endswith(GGUF):
            raise UserError(f"--base {word}: this is a file; expected a Hugging Face folder or a {GGUF} file")
        return Base(source, load_config(local_folder(source, f"--base {word}", ["config.json"])))
    if found := checkpoints.named(word):
        return Base(found[0], found[1].shape, of_hub=True)
    if not is_hub_name(word):
        known = [name.split("/")[1].lower().removesuffix("-base") for name in checkpoints.known()]
        raise UserError(
            f"--base {word}: no such folder or file here{configs.nearest(word.lower(), known)}; expected one of "
            f"{', '.join(known)}, owner/name of the hub, a folder, a {GGUF} file, or none"
        )
    known_shape(word, "--base")
    return Base(word, load_config(local_folder(word, "--base", ["config.json"])), of_hub=True)


def _hours(word: str | None, card: Mapping[str, Any]) -> float:
    """`12`, `12h`, `30m`."""
    if word is None:
        return CPU_HOURS if card.get("cpu") else GPU_HOURS
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(h|hours?|m|min|minutes?|d|days?)?\s*", word, re.IGNORECASE)
    number = float(found[1]) * {"m": 1 / 60, "d": 24.0}.get((found[2] or "h")[0].lower(), 1.0) if found else 0.0
    if not 0 < number < 1e6:
        raise UserError(f"--hours is '{word}'; expected a number of hours above 0, such as 12, 0.5 or 30m")
    return float(f"{number:.4g}")


def _forecast(recipe: Recipe, card_name: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Memory, tokens, hours, money and disk of pretraining, and seconds of the stages before it."""
    from pipeline.training.memory import memory_plan

    config = recipe.config
    windows = min(asked(config, card))
    memory = memory_plan(config.model, own_settings(config, card)).estimate(windows, int(card["memory_gb"] * 1e9))
    tokens = [text.tokens for text in recipe.texts.values()]
    limits = [source.get("limit_tokens", 0) for source in config.data.sources.values()]
    unique = sum(n or 0 for n in tokens) + sum(limits)
    stored = disk(config, unique)
    read_bytes = 4 * unique
    return {
        "memory": memory,
        "fits": recipe.fits and bool(memory.fits),
        "hours": hours(config, card, round(config.data.validation.max_bytes / 4 * len(limits))),
        "data_seconds": FIXED_SECONDS + read_bytes / DATA_BYTES_PER_SECOND,
        "init_seconds": FIXED_SECONDS + 12 * config.model.parameters / 2e8,
        "data_gb": (stored["tokens"] or 0) + (stored["text"] or 0),
        "init_gb": 4 * config.model.parameters / 1e9,
        "pretrain_gb": stored["checkpoints"] + stored["model"],
        "card": card_name,
        "unique": unique,
    }


def _yaml(recipe: Recipe, path: Path, told: Mapping[str, Any], card_word: str | None) -> str:
    values, remarks = recipe.values, recipe.remarks
    lost = Counter[str]()
    for text in recipe.texts.values():
        lost += text.unreadable
    init = values["init"]
    source = init.get("source")
    title = f"{values['name']}: {source} learns from" if source else f"{values['name']}: a new model of"
    return html.render(
        "new.yaml",
        values=values,
        remarks=remarks,
        title=f"{title} {', '.join(recipe.texts) or 'Python code and manuals, as a demo'}.",
        path=shlex.quote(str(path)),
        card_flag=f" --card {shlex.quote(card_word)}" if card_word else "",
        forecast=[_bought_words(recipe, told)],
        notes={name: _note(recipe.texts.get(name)) for name in values["data"]["sources"]},
        unreadable=words(lost),
        train_remarks={
            "mix": remarks.get("mix", "shares of the tokens, by size"),
            "max_epochs": remarks["epochs"],
            "micro_batch": remarks.get("memory", ""),
            "learning_rate": "lower than in its own training: more forgets more" if source else "for this size",
        },
    )


def _note(text: Text | None) -> str:
    """What a source is, beside it in the config."""
    if text is None:
        return ""
    if text.bytes is None:
        return "of the hub; its license is on its card: set license"
    return f"{_about(text)}{'; pages of the web: their rules apply' if text.web else ''}"


def _about(text: Text) -> str:
    """Files, kinds, languages, size."""
    by_name = Counter[str]()
    for ending, count in text.endings.items():
        by_name[NAMES.get(ending, ending or "no ending")] += count
    named = [f"{count:,} {name}" for name, count in by_name.most_common(6)]
    more = [f"{len(by_name) - 6} other kinds"] if len(by_name) > 6 else []
    spoken = "/".join(code for code, share in text.languages.items() if share >= 0.1)
    kinds = [f"{100 * share:.0f}% {kind}{f' ({spoken})' if kind == 'prose' and spoken else ''}"
             for kind, share in sorted(text.kinds.items(), key=lambda pair: -pair[1])]  # fmt: skip
    size = f"{format_bytes(text.bytes or 0)} of text, about {format_count(text.tokens or 0)} tokens"
    return f"{', '.join([*named, *more])}; {size}; {', '.join(kinds)}"


def _bought_words(recipe: Recipe, told: Mapping[str, Any]) -> str:
    bought, ends = told["hours"], recipe.ends_after_tokens
    until = f"; the text ends it after {format_count(ends)}" if ends else ""
    memory = f"{told['memory'].needed_bytes / 2**30:.1f} GiB (traced)"
    most = f"{html.span(bought['tokens'])} tokens in at most {bought['gpu_hours'][1]:g} h{until} (unmeasured)"
    return f"{told['card']}: {memory}; {most}"


def _summary(recipe: Recipe, card_name: str, card: Mapping[str, Any], told: Mapping[str, Any]) -> list[str]:
    """What was found and what was chosen."""
    config, lines = recipe.config, []
    for name, text in recipe.texts.items():
        if text.bytes is None:
            lines.append(f"text     {name}: {text.given}, read from the hub when `hornbook data` runs")
            continue
        lines.append(f"text     {name}: {_about(text)}")
        if text.unreadable:
            lost = f"{text.unreadable.total():,} of {text.sampled:,} sampled ({words(text.unreadable)})"
            lines.append(f"         cannot be read and is set aside: {lost}")
        lines += [f"         not read: {remark}" for remark in text.remarks]
        if "split_characters" in text.options:
            lines.append(f"         cut at blank lines into parts of {text.options['split_characters']:,} characters")
    if not recipe.texts:
        lines.append("text     none given: Python's own library and manuals, as a demo (--text PATH for yours)")
    model, train = config.model, config.train
    source = config.init.source
    known = checkpoints.find(source or "")
    how = f"{source}, continued{f' ({known.terms})' if known else ''}" if source else "new, from fresh weights"
    size = f"{format_count(model.parameters)} parameters, {model.num_hidden_layers} blocks of width {model.hidden_size}"
    lines.append(f"model    {how}: {model.family}, {size}")
    fits = f"{'needs' if told['fits'] else 'DOES NOT FIT, needs'} {told['memory'].needed_bytes / 2**30:.1f} GiB"
    steps = f"windows of {train.sequence_length} tokens, {train.global_batch_tokens:,} tokens a step"
    lines.append(
        f"card     {card_name}, {card['memory_gb']:g} GB: {fits}; {train.precision}, {train.optimizer}, {steps}"
    )
    shares = ", ".join(f"{name} {share:g}" for name, share in (train.mix or {}).items())
    lines.append(f"mix      {shares}; {100 * config.data.validation.share:.2g}% held out, at most "
                 f"{format_bytes(config.data.validation.max_bytes)} a source")  # fmt: skip
    own = [text.tokens for text in recipe.texts.values()]
    if own and None not in own and sum(own) < FINE_TUNE_TOKENS:  # type: ignore[arg-type]
        said = (
            "continue a small model (--base smollm2-135m)" if config.init.source is None else "add text, or fine-tune"
        )
        lines.append(f"note     {format_count(sum(own))} tokens are little to learn from: {said}")  # type: ignore[arg-type]
    return lines


def _next(
    recipe: Recipe, path: Path, card_name: str, card: Mapping[str, Any], told: Mapping[str, Any], answers: Answers
) -> list[str]:
    """Three commands, each with what it takes."""
    typed, bought = shlex.quote(str(path)), told["hours"]
    most = _time(3600 * bought["gpu_hours"][1])
    money = f", {html.span(bought['cost_usd'], '.2f')} USD" if bought.get("price_per_hour") else ""
    memory = f"{told['memory'].needed_bytes / 2**30:.1f} GiB of {'memory' if card.get('cpu') else 'GPU memory'}"
    train = f"at most {most} on {card_name}{money}, {memory}, {told['pretrain_gb']:.3g} GB of disk"
    read = f"about {_time(told['data_seconds'])}, no GPU, {told['data_gb']:.3g} GB of disk"
    grown = f"about {_time(told['init_seconds'])}, no GPU, {told['init_gb']:.3g} GB of disk"
    rows = [(f"hornbook data {typed}", read), (f"hornbook init {typed}", grown), (f"hornbook pretrain {typed}", train)]
    if answers.slurm:
        whole = f"{read.split(',')[0]}, then {train}"
        rows = [
            (f"hornbook submit {typed} --dry-run", "prints the job files and sends nothing"),
            (f"hornbook submit {typed}", f"{whole}; add --partition and --time of your site"),
            ("hornbook runs", "what is done"),
        ]
    width = max(len(command) for command, _ in rows)
    lines = ["next:", *(f"  {command:<{width}}   # {takes}" for command, takes in rows)]
    if not told["fits"]:
        plan = f"hornbook plan {typed} --card {shlex.quote(answers.card or 'auto')}"
        lines.append(f"It does not fit the card: {plan} says what would")
    return lines


def _time(seconds: float) -> str:
    return format_seconds(max(60, round(seconds / 60) * 60)) if seconds < 7200 else f"{seconds / 3600:.3g} h"
