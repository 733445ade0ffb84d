"""The `hornbook` command: a verb, a config, overrides.

Each verb is imported only when it runs, so that `--help` answers at once. Exit codes: 0 done or up to date; 2 config or
input is wrong; 75 stopped by a signal, the same command resumes; 1 anything else.
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
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.config.arguments import parse
from pipeline.config.schema import STAGES, Config
from pipeline.storage.files import root
from pipeline.system import signals
from pipeline.system.disk import writing
from pipeline.system.errors import (
    DONE,
    FAILED,
    LESS_MEMORY,
    STOPPED,
    WRONG_INPUT,
    Failure,
    Stopped,
    UserError,
    printable,
)
from pipeline.system.processes import let_segments_grow, refuse_unsafe_loading
from pipeline.system.progress import LINE_EVERY_SECONDS, close_all

SMALL_WRITE_BYTES = 1 << 20  # of links, reports, logs: whatever does not state its own size


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb and leaves the process with its exit code (never returns)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    let_segments_grow()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", f"{LINE_EVERY_SECONDS:g}")  # bars of libraries, such as a download's
    code = run_guarded(parse(argv))
    close_all()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Interpreter teardown of torch takes up to a second that no cap could account for; everything is on disk.
    os._exit(code)


def run_guarded(arguments: argparse.Namespace, run: Callable[[argparse.Namespace], None] | None = None) -> int:
    """Runs a verb, or `run` in its place, and turns its errors into one message and an exit code."""
    try:
        refuse_unsafe_loading()
        if arguments.verb in (*STAGES, "study", "fetch") and not getattr(arguments, "dry_run", False):
            signals.install()
        with writing(root(), SMALL_WRITE_BYTES):
            (run or _verb)(arguments)
        return DONE
    except UserError as error:
        return _report_error(error, WRONG_INPUT)
    except Failure as error:
        return _report_error(error, FAILED)
    except (Stopped, KeyboardInterrupt) as stop:
        print(
            f"hornbook: stopped ({str(stop) or 'SIGINT'}); what is done is saved, the same command resumes", flush=True
        )
        return STOPPED
    except BrokenPipeError:
        return FAILED
    except OSError as error:
        return _of_os(error)
    except Exception as error:
        from model.config import ImpossibleShape, UnreadableModel

        if isinstance(error, ImpossibleShape | UnreadableModel):
            return _report_error(error, WRONG_INPUT)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            said = ". ".join(str(error).split(". ")[:3])
            return _report_error(f"{said}. What was saved is whole. {LESS_MEMORY}", WRONG_INPUT)
        traceback.print_exc()
        return FAILED


def _of_os(error: OSError) -> int:
    """A name that no file can have and a root that cannot be written are the user's to fix, anything else is a bug."""
    unwritable = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
    if error.errno == errno.ENAMETOOLONG:
        return _report_error(f"{error.strerror}: {error.filename}; expected a name that a file can have", WRONG_INPUT)
    if error.filename and (unwritable or (error.errno == errno.ENOENT and not root().exists())):
        where = "artifacts/ and runs/ in the working folder, or in HORNBOOK_ROOT"
        message = f"{error.strerror}: {error.filename}. hornbook writes to {where}; expected a folder there that it"
        return _report_error(f"{message} may write to", WRONG_INPUT)
    traceback.print_exc()
    return FAILED


def _report_error(message: Any, code: int) -> int:
    print(f"hornbook: {printable(str(message))}", file=sys.stderr)
    return code


def _verb(arguments: argparse.Namespace) -> None:
    """Runs the verb that was typed."""
    if arguments.verb in STAGES:
        return _stage(arguments)
    run = {
        "new": _new, "plan": _plan, "submit": _submit, "sample": _sample, "report": _report, "score": _score,
        "label": _label, "watch": _watch, "study": _study, "runs": _runs, "clean": _clean, "compare": _compare,
        "batch": _batch, "sync": _sync, "drops": _drops, "push": _push, "fetch": _fetch, "doctor": _doctor,
        "where": _where, "grow": _grow, "list": _list,
    }[arguments.verb]  # fmt: skip
    return run(arguments)


def _config(arguments: argparse.Namespace) -> Config:
    from pipeline import runs

    return runs.load(arguments.config, arguments.overrides)


def _typed(arguments: argparse.Namespace) -> str:
    """Config and overrides as the user may type them again."""
    return shlex.join([arguments.config, *arguments.overrides])


def _print(facts: Any, as_json: bool, show: Callable[[Any], str]) -> None:
    print(json.dumps(facts, indent=1) if as_json else show(facts))


def _stage(arguments: argparse.Namespace) -> None:
    from pipeline import config as configs
    from pipeline import runs
    from pipeline.storage.pins import recorded

    config = runs.read(arguments.config, arguments.overrides)  # the stage itself pins names of the hub
    if getattr(arguments, "limit", None) is not None:
        config = configs.preview(config, arguments.limit)
    if getattr(arguments, "branch", None) is not None:
        config = recorded(config)
        from pipeline.stages import pretrain_step
        from pipeline.training.branching import branch

        config = branch(config, arguments.branch, lambda: pretrain_step(config).fingerprint)
    if arguments.print_config:
        print(configs.to_yaml(config), end="")
    elif arguments.dry_run:
        from pipeline.run_stage import describe, show

        _print(describe(recorded(config), arguments.verb, _typed(arguments)), arguments.json, show)
    else:
        from pipeline import runs
        from pipeline.run_stage import run_stage

        if Path(arguments.config).is_file():
            runs.claim(config.name, Path(arguments.config))
        replay = getattr(arguments, "replay", None)
        run_stage(arguments.verb, config, _typed(arguments), replay=replay, as_json=arguments.json)


def _new(arguments: argparse.Namespace) -> None:
    from pipeline import new

    given = (arguments.text, arguments.base, arguments.card, arguments.hours, arguments.slurm)
    new.run(Path(arguments.folder), new.Answers(*given))


def _plan(arguments: argparse.Namespace) -> None:
    from pipeline.plan import make_plan, show

    full = arguments.full or arguments.json
    found = make_plan(_config(arguments), arguments.card, arguments.measure, full)
    _print(found, arguments.json, lambda plan: show(plan, full))


def _fetch(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline.remote import fetch

    fetch.run(runs.read(arguments.config, arguments.overrides), _typed(arguments))


def _submit(arguments: argparse.Namespace) -> None:
    from pipeline import submit

    options, config = _slurm_options(arguments), _config(arguments)
    if not arguments.dry_run:
        from pipeline.run_stage import pin

        config = pin(config, "submit")  # the jobs get commits, not names that move
    submit.run(config, _typed(arguments), options, until=arguments.until, dry_run=arguments.dry_run)


def _slurm_options(arguments: argparse.Namespace) -> Any:
    from pipeline.slurm import Options

    return Options(**{f.name: getattr(arguments, f.name) for f in fields(Options)})


def _sample(arguments: argparse.Namespace) -> None:
    from pipeline import config as configs
    from pipeline import sample

    config = _config(arguments)
    for key in ("max_new_tokens", "temperature"):
        if getattr(arguments, key) is not None:
            setattr(config.sample, key, getattr(arguments, key))
    configs.validate(config, "sample")
    sample.run(config, _typed(arguments), prompt=arguments.prompt, chat=arguments.chat)


def _drops(arguments: argparse.Namespace) -> None:
    from pipeline import drops

    options = arguments.reason, arguments.source, arguments.n
    _print(drops.collect(_config(arguments), _typed(arguments), *options), arguments.json, drops.show)


def _report(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline.reporting import page

    others = _split_overrides(arguments)
    if others and arguments.share:
        raise UserError("--share writes the page of one run; expected one config or run")
    if others:
        print(page.write_several([_config(arguments), *(runs.load(word) for word in others)]))
    elif arguments.share:
        print(page.write_shared(_config(arguments)))
    else:
        print(page.write(_config(arguments), unfinished=True))


def _watch(arguments: argparse.Namespace) -> None:
    from pipeline import watch

    if arguments.web:
        from pipeline import serve

        serve.serve(
            [watch.find(name) for name in arguments.names], serve.PORT if arguments.port is None else arguments.port
        )
    elif len(arguments.names) > 1:
        raise UserError("a terminal shows one run; expected one name, or --web for several side by side")
    else:
        watch.show(watch.find(arguments.names[0] if arguments.names else None), once=arguments.once)


def _split_overrides(arguments: argparse.Namespace) -> list[str]:
    """Takes the overrides from among `words`; returns the others, which name files or runs."""
    names = [word for word in arguments.words if "=" not in word or Path(word).exists()]
    arguments.overrides = [word for word in arguments.words if word not in names]
    return names


def _score(arguments: argparse.Namespace) -> None:
    from pipeline import score

    names = _split_overrides(arguments)
    options = {"out": arguments.out, "text_key": arguments.text_key, "kind": arguments.kind}
    score.run(_config(arguments), _typed(arguments), names, **options)


def _label(arguments: argparse.Namespace) -> None:
    from pipeline import label

    config = _config(arguments)
    prices = {name: getattr(arguments, name) for name in ("max_dollars", "price_in", "price_out")}
    endpoint = label.make_endpoint(config, arguments.endpoint, arguments.model, **prices)
    label.run(config, _typed(arguments), label.Choice(arguments.documents, arguments.concurrency), endpoint)


def _study(arguments: argparse.Namespace) -> None:
    from pipeline import study

    if arguments.slurm:
        study.submit(arguments.config, _slurm_options(arguments), arguments.at_once, dry_run=arguments.dry_run)
    else:
        study.run(arguments.config, dry_run=arguments.dry_run, only_report=arguments.report, as_json=arguments.json)


def _runs(arguments: argparse.Namespace) -> None:
    from pipeline import runs

    _print([runs.facts(name) for name in runs.names()], arguments.json, runs.show)


def _clean(arguments: argparse.Namespace) -> None:
    from pipeline import clean

    planned = clean.plan(arguments.names)
    busy = clean.remove(planned) if arguments.yes else []
    _print(planned, arguments.json, lambda facts: clean.show(facts, arguments.yes, busy))


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline import compare

    facts = compare.compare(arguments.first, arguments.second)
    _print(facts, arguments.json, lambda facts: compare.show(facts, compare.write_page(facts)))


def _batch(arguments: argparse.Namespace) -> None:
    from pipeline import runs, show_batch

    facts = show_batch.pieces(runs.load(arguments.name), arguments.step)
    print(json.dumps(facts, indent=1, ensure_ascii=False) if arguments.json else show_batch.show(facts))  # it is read


def _sync(arguments: argparse.Namespace) -> None:
    from pipeline import config as configs
    from pipeline import retrack, runs

    config = runs.load(arguments.name)
    if arguments.to:
        config.tracking.to = arguments.to
        configs.validate(config, arguments.name)
    print(retrack.run(config))


def _push(arguments: argparse.Namespace) -> None:
    from pipeline import runs
    from pipeline.release import push

    planned = push.plan(runs.load(arguments.config), shlex.quote(arguments.config), arguments.repository)
    if arguments.yes:
        planned["address"] = push.upload(planned, allow_private=arguments.allow_private, public=arguments.public)
    _print(planned, arguments.json, lambda facts: facts.get("address") or push.show(facts))


def _doctor(arguments: argparse.Namespace) -> None:
    from pipeline import doctor

    findings = doctor.examine()
    _print(doctor.as_json(findings) if arguments.json else findings, arguments.json, doctor.show)


def _where(arguments: argparse.Namespace) -> None:
    from pipeline.run_stage import step_of

    print(step_of(_config(arguments), arguments.stage, _typed(arguments)).path)


def _grow(arguments: argparse.Namespace) -> None:
    from pipeline import grow

    grow.run(arguments.source, arguments.target, arguments.overrides, text_path=arguments.text)


def _list(arguments: argparse.Namespace) -> None:
    from pipeline.list_names import show

    print(show(arguments.table))


if __name__ == "__main__":
    main()
