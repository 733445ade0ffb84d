"""The command line: every verb with its options, in one table, as an argparse parser.

In: the words after `hornbook`. Out: a namespace with `verb` and the verb's options. Imports nothing heavy, so that
`--help` answers at once. `pipeline/__main__.py` runs the verb.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.config.schema import AFTER, STAGES, key_kinds, nearest

RUN = "one YAML file = one experiment, such as configs/tiny.yaml; or its name under runs/, such as tiny"
TABLES = ("filters", "sources", "scorers", "growth", "optimizers", "decays", "tasks", "kinds", "keys")

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what `add_argument` takes


@dataclass(frozen=True)
class Verb:
    """`description`: what its own `--help` says first; default: `help`."""

    name: str
    help: str
    arguments: Sequence[Argument]
    description: str | None = None


def _argument(*names: str, **settings: Any) -> Argument:
    return names, settings


def _flag(name: str, help: str) -> Argument:
    return _argument(name, action="store_true", help=help)


def _stage(name: str, help: str, *more: Argument) -> Verb:
    facts = "what came out, or with --dry-run what would run" if name in AFTER else "with --dry-run"
    dry_run = _flag("--dry-run", "show what would run, what is done, what it would cost")
    print_config = _flag("--print-config", "print the resolved config and stop")
    return Verb(name, help, [*CONFIG, dry_run, _flag("--json", f"{facts}: as JSON"), print_config, *more])


CONFIG = [
    _argument("config", help=RUN),
    _argument("overrides", nargs="*", metavar="key=value", help="laid over the file"),
]
JSON = _flag("--json", "as JSON")
CARD = "a card of configs/gpus.yaml, near it (4090), a size (24gb), cpu, or auto"
SLURM = [
    _argument("--partition", help="default: the site's"),
    _argument("--cpu-partition", metavar="NAME", help="for jobs without a GPU; default: as --partition"),
    _argument("--time", help="time limit of one job, as in Slurm; a longer budget takes several jobs"),
    _argument("--gpus-per-node", default="1", metavar="1|TYPE:1", help="for jobs that train; default: 1"),
    _argument("--cpus-per-task", type=int, default=4, metavar="N", help="of every job; default: 4"),
    _argument("--mem", help="of every job, such as 32G; default: the site's"),
    _argument("--account", help="default: the site's"),
    _argument("--qos", help="default: the site's"),
    _argument(
        "--notice", dest="notice_seconds", type=int, default=120, metavar="SECONDS",
        help="warning before the time limit, for the save; Slurm warns up to a minute earlier; default: 120",
    ),
    _flag("--srun", "run hornbook as a job step"),
    _argument("--setup", action="append", default=[], metavar="LINE", help="shell line before it, repeatable"),
    _argument(
        "--sbatch", dest="extra", action="append", default=[], metavar="OPTION",
        help="one more option of sbatch, repeatable: --sbatch=--constraint=a100",
    ),
]  # fmt: skip

VERBS = [
    Verb("new", "write a config for your own text, model, card and hours", [
        _argument("folder", help="where the config is written; made where it is not there"),
        _argument("--text", nargs="+", action="extend", metavar="PATH",
                  help="folders, files or hub:owner/name[/configuration]; default: what FOLDER holds, else a demo"),
        _argument("--base", metavar="NAME",
                  help="the model to continue: smollm2-135m, qwen3-0.6b, phi-1_5, a hub name, a folder, a GGUF file; "
                  "none: a new one; default: by the card"),
        _argument("--card", help=f"{CARD}; default: auto, this machine's"),
        _argument("--hours", metavar="N", help="most hours of training; default: 12, on a CPU 0.12"),
        _flag("--slurm", "it runs as Slurm jobs: print how to submit them"),
    ],
        "Looks at your text, chooses shape, precision, batch, filters, mix and validation, writes one YAML file of at "
        "most 60 lines, and prints the next three commands with their cost. Without flags it asks five questions.",
    ),
    _stage(
        "data", "text in, filtered, deduplicated and tokenized shards out",
        _argument("--limit", type=int, metavar="N", help="preview: N documents of each source, from all of its files"),
    ),
    _stage("init", "grow the model from a smaller one, and prove what it keeps"),
    _stage(
        "pretrain", "train inside the GPU-hour cap; always ends annealed",
        _argument(
            "--branch", metavar="6h",
            help="an annealed model for another budget (6h, 90m, or tokens: 500M) out of this run's trunk, as the "
            "experiment <name>/branch-6h",
        ),
        _argument(
            "--replay", metavar="FILE",
            help="repeat what the clock and the machine decided (decay, micro-batch, threads, end) in another run, "
            "from its decisions.jsonl: the same weights, bit by bit on the same CPU, up to rounding on a GPU",
        ),
    ),
    _stage("evaluate", "bits per byte and task scores of a model, with standard errors"),
    _stage("export", "a model for others: Hugging Face folder, cards, GGUF"),
    _stage("quantize", "smaller forms of a model: size, memory, speed, cost, quality before and after"),
    _stage("finetune", "tune a model on examples inside a GPU-hour cap: LoRA, QLoRA or every weight"),
    Verb("fetch", "download the models and the text of a config, for machines without a network", CONFIG,
        "Resolves every hub name of the config to a commit, downloads the models to HF_HOME and reads the text of the "
        "hub into HORNBOOK_ROOT, as the data stage would. After it, every stage runs with HF_HUB_OFFLINE=1."),
    Verb("plan", "what the config needs and buys on a card: memory, tokens, hours, cost", [
        *CONFIG,
        _argument("--card", help=f"{CARD}; default: this machine's, else h100-80"),
        _flag("--full", "all figures with what they rest on, beside the five lines"),
        _flag("--measure", "run a few real steps here, beside the forecast"),
        JSON,
    ]),
    Verb("submit", "send the stages that are left to Slurm, as a chain of jobs", [
        *CONFIG,
        _flag("--dry-run", "print the job files and send nothing"),
        _argument("--until", choices=STAGES[:4], default="evaluate", help="the last stage to send"),
        *SLURM,
    ]),
    Verb("sample", "stream text from a trained model", [
        *CONFIG,
        _argument("--prompt", help="text to continue; default: sample.prompts of the config"),
        _argument("--max-new-tokens", type=int, help="default: sample.max_new_tokens"),
        _flag("--chat", "talk with a tuned model; without --prompt line by line"),
        _argument("--temperature", type=float, help="default: sample.temperature; 0 = always the likeliest"),
    ]),
    Verb("drops", "texts that the data stage dropped, each with its reason and limit, beside similar ones it kept", [
        *CONFIG,
        _argument("--reason", metavar="NAME", help="a filter (gopher_quality) or one of its reasons; default: all"),
        _argument("--source", metavar="NAME", help="one of data.sources; default: all"),
        _argument("-n", type=int, default=20, metavar="N", help="how many are shown; default: 20"),
        JSON,
    ]),
    Verb("report", "write the experiment's report.html again, or one page of several runs, and print its path", [
        CONFIG[0],
        _argument("words", nargs="*", metavar="run", help="more runs for the same page; key=value overrides"),
        _flag("--share", "write one to pass on, into runs/<name>/shared: without private text, file names and sources"),
    ]),
    Verb("watch", "follow a run: its stage, loss, speed, budget and end, on this terminal or as pages", [
        _argument("names", nargs="*", metavar="run", help=f"default: the newest. {RUN}"),
        _flag("--once", "print one picture and stop; so does output to a file"),
        _flag("--web", "serve the reports of all runs, side by side and refreshed, at 127.0.0.1 only"),
        _argument("--port", type=int, help="with --web; default: 8765, and 0 for any that is free"),
    ]),
    Verb("score", "quality scores of your own texts, by the scorer of a data stage", [
        _argument("config", help=f"experiment whose data stage is finished: {RUN}"),
        _argument("words", nargs="+", metavar="file", help="files or folders of text; key=value overrides"),
        _argument("--out", help="file for the JSON lines; default: standard output"),
        _argument("--text-key", help="field that holds the text of a record; default: text"),
        _argument("--kind", choices=("code", "prose", "exercise"), help="default: told from the ending, else prose"),
    ],
        "Writes one JSON line a document: {path, score, bytes}, or {path, unreadable}. Scores are from 0 to 1; the "
        "scorer is the one that the data stage of the config used.",
    ),
    Verb("label", "rate documents of your own and train a quality scorer on them", [
        *CONFIG,
        _argument("--documents", type=int, default=100, metavar="N", help="how many are rated; default 100"),
        _argument("--endpoint", metavar="URL",
                  help="an OpenAI-compatible server rates (http://localhost:8000/v1); default: you do"),
        _argument("--model", help="the endpoint's model"),
        _argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time; default 4"),
        _argument("--max-dollars", type=float, metavar="D", help="never spend more, over all runs of the command"),
        _argument("--price-in", type=float, default=0.0, metavar="D", help="dollars for a million tokens asked"),
        _argument("--price-out", type=float, default=0.0, metavar="D", help="dollars for a million answered"),
    ]),
    Verb("study", "a study's members under equal budgets: run what is left, then table, picture, effects, findings", [
        _argument("config", metavar="study", help="a study's YAML file, such as configs/studies/combine.yaml"),
        _flag("--dry-run", "show what would run, or with --slurm print the job files"),
        _flag("--report", "run nothing: write the pages from what is there"),
        _flag("--json", "what came out, or would run: as JSON"),
        _flag("--slurm", "send it as a job array, and a last job for the rest"),
        _argument("--at-once", type=int, metavar="N", help="of the array's members; default: all"),
        *SLURM,
    ]),
    Verb("runs", "every experiment: state of its stages, hours, loss, bytes on disk", [JSON]),
    Verb("clean", "list what no experiment needs, and with --yes remove it", [
        JSON,
        _argument("names", nargs="*", metavar="run", help="experiments to forget with all their own folders"),
        _flag("--yes", "remove; without it nothing is touched"),
    ]),
    Verb("compare", "two runs: config difference, figures, curves over tokens, hours and money", [
        JSON,
        _argument("first", metavar="A", help=RUN),
        _argument("second", metavar="B", help=RUN),
    ]),
    Verb("batch", "the text that one optimizer step trains on, with sources and scores", [
        JSON,
        _argument("name", metavar="run", help=RUN),
        _argument("--step", type=int, required=True, metavar="N", help="1 = the first"),
    ]),
    Verb("sync", "write the W&B, TensorBoard or trackio mirror of a run again from its record", [
        _argument("name", metavar="run", help=RUN),
        _argument("--to", help="wandb, tensorboard or trackio; default: the config's tracking.to"),
    ]),
    Verb("doctor", "what this machine has, what will be used of it, what is missing for what", [JSON]),
    Verb("push", "the export of a run in a repository of the Hugging Face hub; without --yes nothing is uploaded", [
        _argument("config", metavar="run", help=f"whose export is finished: {RUN}"),
        _argument("repository", metavar="org/name", help="on the hub; it is made where there is none"),
        _flag("--yes", "upload; the token is HF_TOKEN, or the one that `hf auth login` stored"),
        _flag("--public", "make the repository public; default: private, until you change that on the hub"),
        _flag("--allow-private", "also where the model was trained on private text (license: own)"),
        JSON,
    ]),
    Verb("where", "print the folder of a stage", [_argument("stage", choices=STAGES), *CONFIG]),
    Verb("grow", "grow a model folder with no experiment around it", [
        _argument("source", help="model folder (Hugging Face), GGUF file or hub name"),
        _argument("target", help="folder to write the grown model to"),
        _argument("overrides", nargs="*", metavar="key=value", help="model.hidden_size=2560 ... init.method=exact"),
        _argument("--text", help="file of text to measure the logits on"),
    ]),
    Verb("list", "print a table of names with what they do", [_argument("table", choices=TABLES)]),
]  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line, with the nearest right word, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        if "required: verb" in message:
            message = "a verb is missing, such as: hornbook data configs/tiny.yaml; hornbook --help lists them"
        elif "required: config" in message:
            message += f", such as: {self.prog} configs/tiny.yaml; hornbook new FOLDER writes one"
        self.exit(2, f"hornbook: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names, what = list(map(str, action.choices)), "verb" if action.dest == "verb" else action.dest
            raise argparse.ArgumentError(None, f"'{value}' is no {what}{nearest(value, names)}; expected one of "
                                         f"{', '.join(names)}")  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """The command line of `hornbook`, from the table of verbs."""
    parser = _Parser(
        prog="hornbook",
        description="The best small language model that one GPU and a number of GPU-hours can buy.",
        epilog="A stage: hornbook pretrain configs/tiny.yaml budget.max_gpu_hours=0.1. "
        "Keys and their meaning: hornbook list keys.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for verb in VERBS:
        of_verb = verbs.add_parser(verb.name, help=verb.help, description=verb.description or verb.help)
        for names, settings in verb.arguments:
            of_verb.add_argument(*names, **settings)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command; `argv`: default, those of this process. Exits with 2 and a message for a mistake.

    Overrides may stand before and after flags, which argparse alone does not allow under a verb.
    """
    parser, typed = make_parser(), list(sys.argv[1:] if argv is None else argv)
    verbs = {verb.name: verb for verb in VERBS}
    if typed and not typed[0].startswith("-") and typed[0] not in verbs and (later := verbs.keys() & set(typed[1:2])):
        verb = next(iter(later))
        parser.error(f"the verb comes first: hornbook {shlex.join([verb, typed[0], *typed[2:]])}")
    arguments, rest = parser.parse_known_args(typed)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    place = next((name for name in ("overrides", "words") if hasattr(arguments, name)), None)
    if len(overrides) < len(rest) or (rest and place is None):
        unknown = next((word for word in rest if word not in overrides), rest[0])
        parser.error(_unknown(unknown, rest, verbs[arguments.verb]))
    if rest and place is not None:
        setattr(arguments, place, [*getattr(arguments, place), *overrides])
    return arguments


def _unknown(word: str, rest: Sequence[str], verb: Verb) -> str:
    """What to write in place of a word that the verb does not take."""
    flag, _, value = word.partition("=")
    if (key := flag.lstrip("-").replace("-", "_")) in key_kinds() and word.startswith("-"):
        after = rest[rest.index(word) + 1 :]
        value = value or (after[0] if after else "...")
        return f"'{word}' is a key of the config and no flag: write {key}={value}"
    flags = [name for names, _ in verb.arguments for name in names if name.startswith("-")]
    known = f"; it takes {', '.join(flags)}" if flags else ""
    return f"{verb.name} does not take '{word}'{nearest(flag, flags)}{known}; see hornbook {verb.name} --help"
