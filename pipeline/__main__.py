"""The `hornbook` command: a verb, a config, overrides. Stages are imported only when they run, so that `--help`
answers at once. Exit codes: 0 done or up to date; 2 config or input is wrong; 75 stopped by a signal, run again
to go on; 1 anything else.
"""

import argparse
import contextlib
import errno
import io
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.storage.files import root
from pipeline.system import safety
from pipeline.system.disk import writing
from pipeline.system.errors import DONE, FAILED, STOPPED, WRONG_INPUT, Failure, Stopped, UserError, printable

SMALL_WRITE_BYTES = 1 << 20  # of links, reports, logs: whatever does not say itself what it needs
AFTER = ("evaluate", "export", "quantize", "finetune")  # what comes after pretraining
STAGES = ("data", "init", "pretrain", *AFTER)
RUN = "one YAML file = one experiment, such as configs/tiny.yaml; or its name under runs/, such as tiny"
TABLES = ("filters", "sources", "scorers", "growth", "optimizers", "decays", "tasks", "kinds", "keys")


_SCORE = (
    "Writes one JSON line a document: {path, score, bytes}, or {path, unreadable}. Scores are from 0 to 1; the scorer "
    "is the one that the data stage of the config used."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb and leaves the process with its exit code (never returns)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    code = _guarded(_parse(argv))
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Interpreter teardown of torch takes up to a second that no cap could account for; everything is on disk.
    os._exit(code)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before and after flags, which argparse alone does not allow under a verb."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in overrides) or rest[0]}")
    if rest:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def _guarded(arguments: argparse.Namespace) -> int:
    try:
        safety.refuse_unsafe_loading()
        if arguments.verb in (*STAGES, "study") and not arguments.dry_run:
            from pipeline.system import signals

            signals.install()
        with writing(root(), SMALL_WRITE_BYTES):
            arguments.run(arguments)
        return DONE
    except UserError as error:
        return _said(error, WRONG_INPUT)
    except Failure as error:
        return _said(error, FAILED)
    except (Stopped, KeyboardInterrupt) as stop:
        print(
            f"hornbook: stopped ({str(stop) or 'SIGINT'}); what is done is saved, the same command goes on", flush=True
        )
        return STOPPED
    except BrokenPipeError:
        return FAILED
    except OSError as error:
        unwritable = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
        if error.errno == errno.ENAMETOOLONG:
            return _said(f"{error.strerror}: {error.filename}; expected a name that a file can have", WRONG_INPUT)
        if error.filename and (unwritable or (error.errno == errno.ENOENT and not root().exists())):
            where = "artifacts/ and runs/ in the working folder, or in HORNBOOK_ROOT"
            message = f"{error.strerror}: {error.filename}. hornbook writes to {where}; expected a folder there that it"
            return _said(f"{message} may write to", WRONG_INPUT)
        traceback.print_exc()
        return FAILED
    except Exception as error:
        from model.config import ImpossibleShape, UnreadableModel

        if isinstance(error, ImpossibleShape | UnreadableModel):
            return _said(error, WRONG_INPUT)
        traceback.print_exc()
        return FAILED


def _said(message: Any, code: int) -> int:
    print(f"hornbook: {printable(str(message))}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hornbook",
        description="The best small language model that one GPU and a number of GPU-hours can buy.",
        epilog="A stage: hornbook pretrain configs/tiny.yaml budget.max_gpu_hours=0.1. "
        "Keys and their meaning: hornbook list keys.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    data = _add_stage(verbs, "data", "text in, filtered, deduplicated and tokenized shards out")
    data.add_argument("--limit", type=int, metavar="N", help="preview: at most N documents of each source")
    _add_stage(verbs, "init", "grow the model from a smaller one, and prove what it keeps")
    pretrain = _add_stage(verbs, "pretrain", "train inside the GPU-hour cap; always ends annealed")
    pretrain.add_argument(
        "--branch",
        metavar="6h",
        help="an annealed model for another budget (6h, 90m, or tokens: 500M) out of this run's trunk, as the "
        "experiment <name>/branch-6h",
    )
    pretrain.add_argument(
        "--replay",
        metavar="FILE",
        help="take what the clock and the machine decided (decay, micro-batch, threads, end) from the decisions.jsonl "
        "of another run: on the same device the same weights, bit by bit",
    )
    _add_stage(verbs, "evaluate", "bits per byte and task scores of a model, with standard errors")
    _add_stage(verbs, "export", "a model for others: Hugging Face folder, cards, GGUF")
    _add_stage(verbs, "quantize", "smaller forms of a model: size, memory, speed, cost, quality before and after")
    _add_stage(verbs, "finetune", "tune a model on examples inside a GPU-hour cap: LoRA, QLoRA or every weight")
    plan = _add_verb(verbs, "plan", _plan, "what the config needs and buys on a card: memory, tokens, hours, cost")
    plan.add_argument("--card", help="a name of configs/gpus.yaml; default: h100-80")
    plan.add_argument("--measure", action="store_true", help="run a few real steps here, beside the forecast")
    plan.add_argument("--json", action="store_true", help="as JSON")
    _add_submit(verbs)
    sample = _add_verb(verbs, "sample", _sample, "stream text from a trained model")
    sample.add_argument("--prompt", help="text to continue; default: sample.prompts of the config")
    sample.add_argument("--max-new-tokens", type=int, help="default: sample.max_new_tokens")
    sample.add_argument("--chat", action="store_true", help="talk with a tuned model; without --prompt line by line")
    sample.add_argument("--temperature", type=float, help="default: sample.temperature; 0 = always the likeliest")
    _add_verb(verbs, "report", _report, "write the experiment's report.html again and say where it lies")
    score = verbs.add_parser(
        "score", help="quality scores of your own texts, by the scorer of a data stage", description=_SCORE
    )
    score.add_argument("config", help=f"experiment whose data stage is finished: {RUN}")
    score.add_argument("words", nargs="+", metavar="file", help="files or folders of text; key=value overrides")
    score.add_argument("--out", help="file for the JSON lines; default: standard output")
    score.add_argument("--text-key", help="field that holds the text of a record; default: text")
    score.add_argument(
        "--kind", choices=("code", "prose", "exercise"), help="default: told from the ending, else prose"
    )
    score.set_defaults(run=_score)
    _add_label(verbs)
    _add_study(verbs)
    _add_run_verbs(verbs)
    where = verbs.add_parser("where", help="print the folder of a stage")
    where.add_argument("stage", choices=STAGES)
    _add_config(where)
    where.set_defaults(run=_where)
    grow = verbs.add_parser("grow", help="grow a model folder with no experiment around it")
    grow.add_argument("source", help="Hugging Face folder of a Phi model, or a hub name")
    grow.add_argument("target", help="folder to write the grown model to")
    grow.add_argument("overrides", nargs="*", metavar="key=value", help="model.hidden_size=2560 ... init.method=exact")
    grow.add_argument("--text", help="file of text to measure the logits on")
    grow.set_defaults(run=_grow)
    table = verbs.add_parser("list", help="print a table of names with what they do")
    table.add_argument("table", choices=TABLES)
    table.set_defaults(run=_list)
    return parser


def _add_label(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    label = _add_verb(verbs, "label", _label, "rate documents of your own and train a quality scorer on them")
    label.add_argument("--documents", type=int, default=100, metavar="N", help="how many are rated; default 100")
    label.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible server rates (http://localhost:8000/v1); default: you do",
    )
    label.add_argument("--model", help="the endpoint's model")
    label.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time; default 4")
    label.add_argument("--max-dollars", type=float, metavar="D", help="never spend more, over all runs of the command")
    label.add_argument("--price-in", type=float, default=0.0, metavar="D", help="dollars for a million tokens asked")
    label.add_argument("--price-out", type=float, default=0.0, metavar="D", help="dollars for a million answered")


def _add_run_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verbs that look at what has been made."""
    described = {
        "runs": (_runs, "every experiment: state of its stages, hours, loss, bytes on disk"),
        "clean": (_clean, "say what no experiment needs, and with --yes remove it"),
        "compare": (_compare, "two runs: config difference, figures, curves over tokens, hours and money"),
        "batch": (_batch, "the text that one optimizer step trains on, with sources and scores"),
        "sync": (_sync, "write the W&B or TensorBoard mirror of a run anew from its record"),
        "doctor": (_doctor, "what this machine has, what will be used of it, what is missing for what"),
    }
    added = {}
    for name, (run, help) in described.items():
        added[name] = verbs.add_parser(name, help=help, description=help)
        if name != "sync":
            added[name].add_argument("--json", action="store_true", help="as JSON")
        added[name].set_defaults(run=run)
    added["clean"].add_argument(
        "names", nargs="*", metavar="run", help="experiments to forget with all their own folders"
    )
    added["clean"].add_argument("--yes", action="store_true", help="remove; without it nothing is touched")
    added["compare"].add_argument("first", metavar="A", help=RUN)
    added["compare"].add_argument("second", metavar="B", help=RUN)
    added["batch"].add_argument("name", metavar="run", help=RUN)
    added["sync"].add_argument("name", metavar="run", help=RUN)
    added["sync"].add_argument("--to", help="wandb or tensorboard; default: the config's tracking.to")
    added["batch"].add_argument("--step", type=int, required=True, metavar="N", help="1 = the first")


def _add_stage(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help: str
) -> argparse.ArgumentParser:
    stage = _add_verb(verbs, name, _stage, help)
    stage.add_argument("--dry-run", action="store_true", help="say what would run, what is done, what it would cost")
    of = "what came out, or with --dry-run what would run" if name in AFTER else "with --dry-run"
    stage.add_argument("--json", action="store_true", help=f"{of}: as JSON")
    stage.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    return stage


def _add_study(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    help = "members of one study under equal budgets: run what is left, then table, picture, effects, findings"
    study = verbs.add_parser("study", help=help, description=help)
    study.add_argument("config", metavar="study", help="a study's YAML file, such as configs/studies/combine.yaml")
    study.add_argument("--dry-run", action="store_true", help="say what would run, or with --slurm print the job files")
    study.add_argument("--report", action="store_true", help="run nothing: write the pages from what is there")
    study.add_argument("--json", action="store_true", help="what came out, or would run: as JSON")
    study.add_argument("--slurm", action="store_true", help="send it as a job array, and a last job for the rest")
    study.add_argument("--at-once", type=int, metavar="N", help="of the array's members; default: all")
    _add_slurm_options(study)
    study.set_defaults(run=_study)


def _add_submit(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    submit = _add_verb(verbs, "submit", _submit, "send the stages that are left to Slurm, as a chain of jobs")
    submit.add_argument("--dry-run", action="store_true", help="print the job files and send nothing")
    submit.add_argument(
        "--until", choices=("data", "init", "pretrain", "evaluate"), default="evaluate", help="the last stage to send"
    )
    _add_slurm_options(submit)


def _add_slurm_options(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--partition", help="default: the site's")
    submit.add_argument("--cpu-partition", metavar="NAME", help="for jobs without a GPU; default: as --partition")
    submit.add_argument("--time", help="of one life of a job, as in Slurm; shorter than the budget = many lives")
    submit.add_argument("--gpus-per-node", default="1", metavar="1|TYPE:1", help="for jobs that train; default: 1")
    submit.add_argument("--cpus-per-task", type=int, default=4, metavar="N", help="of every job; default: 4")
    submit.add_argument("--mem", help="of every job, such as 32G; default: the site's")
    submit.add_argument("--account", help="default: the site's")
    submit.add_argument("--qos", help="default: the site's")
    submit.add_argument(
        "--notice", dest="notice_seconds", type=int, default=120, metavar="SECONDS",
        help="warning before the time limit, for the save; Slurm warns up to a minute earlier; default: 120",
    )  # fmt: skip
    submit.add_argument("--srun", action="store_true", help="run hornbook as a job step")
    submit.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line before it, repeatable")
    submit.add_argument(
        "--sbatch", dest="extra", action="append", default=[], metavar="OPTION",
        help="one more option of sbatch, repeatable: --sbatch=--constraint=a100",
    )  # fmt: skip


def _add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Callable, help: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=help, description=help)
    _add_config(verb)
    verb.set_defaults(run=run)
    return verb


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=RUN)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the file")


def _stage(arguments: argparse.Namespace) -> None:
    from pipeline import config as configs
    from pipeline import runs

    config = runs.load(arguments.config, arguments.overrides)
    if getattr(arguments, "limit", None) is not None:
        config = configs.preview(config, arguments.limit)
    if getattr(arguments, "branch", None) is not None:
        from pipeline.stages import pretrain_step
        from pipeline.training.branching import branch

        config = branch(config, arguments.branch, pretrain_step(config).fingerprint)
    command = _typed(arguments)
    if arguments.print_config:
        print(configs.to_yaml(config), end="")
    elif arguments.dry_run:
        from pipeline.dry_run import describe, show

        facts = describe(config, arguments.verb, command)
        print(json.dumps(facts, indent=1) if arguments.json else show(facts))
    else:
        _run_stage(arguments, config, command)


def _run_stage(arguments: argparse.Namespace, config: Any, command: str) -> None:
    from pipeline.run_stage import run_stage

    replay = getattr(arguments, "replay", None)
    run_stage(arguments.verb, config, command, replay=replay, as_json=arguments.json)


def _plan(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline.plan import make_plan
    from pipeline.planner.show import show

    made = make_plan(runs.load(arguments.config, arguments.overrides), arguments.card, arguments.measure)
    print(json.dumps(made, indent=1) if arguments.json else show(made))


def _study(arguments: argparse.Namespace) -> None:
    from pipeline import study

    if arguments.slurm:
        if arguments.at_once is not None and arguments.at_once < 1:
            raise UserError(f"study: --at-once is {arguments.at_once}; expected at least 1 member")
        study.submit(arguments.config, _slurm_options(arguments), arguments.at_once, dry_run=arguments.dry_run)
    else:
        study.run(arguments.config, dry_run=arguments.dry_run, only_report=arguments.report, as_json=arguments.json)


def _slurm_options(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from pipeline.slurm import jobs as slurm

    return slurm.Options(**{f.name: getattr(arguments, f.name) for f in fields(slurm.Options)})


def _submit(arguments: argparse.Namespace) -> None:
    from pipeline import runs, submit

    options = _slurm_options(arguments)
    config = runs.load(arguments.config, arguments.overrides)
    submit.run(config, _typed(arguments), options, until=arguments.until, dry_run=arguments.dry_run)


def _sample(arguments: argparse.Namespace) -> None:
    from pipeline import config as configs
    from pipeline import runs, sample

    config = runs.load(arguments.config, arguments.overrides)
    for key in ("max_new_tokens", "temperature"):
        if getattr(arguments, key) is not None:
            setattr(config.sample, key, getattr(arguments, key))
    configs.validate(config, "sample")
    sample.run(config, _typed(arguments), prompt=arguments.prompt, chat=arguments.chat)


def _score(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from pipeline import runs, score

    names = [word for word in arguments.words if "=" not in word or Path(word).exists()]
    overrides = [word for word in arguments.words if word not in names]
    if not names:
        raise UserError("score: no file or folder was named; expected hornbook score <config> <file or folder> ...")
    config = runs.load(arguments.config, overrides)
    command = shlex.join([arguments.config, *overrides])
    score.run(config, command, names, out=arguments.out, text_key=arguments.text_key, kind=arguments.kind)


def _label(arguments: argparse.Namespace) -> None:
    from pipeline import label, runs
    from pipeline.corpus.synthetic.endpoint import ChatEndpoint, Price
    from pipeline.storage.experiment import Experiment

    config = runs.load(arguments.config, arguments.overrides)
    endpoint = None
    if (arguments.endpoint is None) != (arguments.model is None):
        raise UserError("label: --endpoint and --model go together; without both, you rate at the terminal")
    for option in ("max_dollars", "price_in", "price_out"):
        if not 0 <= (getattr(arguments, option) or 0) < float("inf"):
            value = getattr(arguments, option)
            raise UserError(f"label: --{option.replace('_', '-')} is {value}; expected a number of at least 0")
    if arguments.max_dollars is not None and not (arguments.price_in > 0 or arguments.price_out > 0):
        raise UserError("label: --max-dollars needs the model's prices: --price-in and --price-out")
    if arguments.endpoint is not None:
        price = Price(arguments.price_in, arguments.price_out, arguments.max_dollars)
        cache = Experiment(config).folder / label.REQUESTS
        endpoint = ChatEndpoint(arguments.endpoint, arguments.model, cache, price=price)
    choice = label.Choice(arguments.documents, arguments.concurrency)
    label.run(config, _typed(arguments), choice, endpoint)


def _typed(arguments: argparse.Namespace) -> str:
    """Config and overrides as the user may type them again."""
    return shlex.join([arguments.config, *arguments.overrides])


def _report(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline.reporting import page as report

    print(report.write(runs.load(arguments.config, arguments.overrides)))


def _where(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline.run_stage import step_of

    config = runs.load(arguments.config, arguments.overrides)
    print(step_of(config, arguments.stage, _typed(arguments)).path)


def _runs(arguments: argparse.Namespace) -> None:
    from pipeline import runs

    rows = [runs.facts(name) for name in runs.names()]
    print(json.dumps(rows, indent=1) if arguments.json else runs.show(rows))


def _clean(arguments: argparse.Namespace) -> None:
    from pipeline import clean

    planned = clean.plan(arguments.names)
    busy = clean.remove(planned) if arguments.yes else []
    print(json.dumps(planned, indent=1) if arguments.json else clean.show(planned, arguments.yes, busy))


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline import compare

    facts = compare.compare(arguments.first, arguments.second)
    print(json.dumps(facts, indent=1) if arguments.json else compare.show(facts, compare.write_page(facts)))


def _batch(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline import show_batch as batch

    facts = batch.pieces(runs.load(arguments.name), arguments.step)
    print(json.dumps(facts, indent=1, ensure_ascii=False) if arguments.json else batch.show(facts))


def _sync(arguments: argparse.Namespace) -> None:
    from pipeline import config as configs
    from pipeline import retrack as sync
    from pipeline import runs

    config = runs.load(arguments.name)
    if arguments.to:
        config.tracking.to = arguments.to
        configs.validate(config, arguments.name)
    print(sync.run(config))


def _doctor(arguments: argparse.Namespace) -> None:
    from pipeline import doctor

    findings = doctor.examine()
    print(json.dumps(doctor.as_json(findings), indent=1) if arguments.json else doctor.show(findings))


def _grow(arguments: argparse.Namespace) -> None:
    from pipeline import grow

    grow.run(arguments.source, arguments.target, arguments.overrides, text_path=arguments.text)


def _list(arguments: argparse.Namespace) -> None:
    from pipeline.list_names import show

    print(show(arguments.table))


if __name__ == "__main__":
    main()
