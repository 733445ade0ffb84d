"""The command of scripts/fuzz.py: its kinds of case, its options and its table."""

import argparse
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench_rows import record, row
from tests.fuzz import experiments, models, texts
from tests.fuzz.judging import Case, Job, Result, Workers, as_processes
from tests.fuzz.texts import reading

SHOWN = 3  # cases of a fault that are printed in full


@dataclass(frozen=True)
class Kind:
    """`share`: of the cases of a run, beside those of the other kinds. `prepared`: needs the experiment of `runs`."""

    case: Case
    share: float = 1.0
    prepared: bool = True


def process(draw: random.Random, folder: Path) -> None:
    """A case of another kind whose commands are processes of their own, as a person's are."""
    with as_processes():
        draw.choice(
            (experiments.config, models.config_json, models.tokenizer, experiments.manifest, experiments.ledger)
        )(draw, folder)


KINDS = {
    "jsonl": Kind(reading(texts.jsonl), 2, False),
    "parquet": Kind(reading(texts.parquet), 1.5, False),
    "warc": Kind(reading(texts.warc), 1.2, False),
    "html": Kind(reading(texts.html), 1.2, False),
    "text": Kind(reading(texts.text), 1, False),
    "pdf": Kind(reading(texts.pdf), 1.2, False),
    "word": Kind(reading(texts.word), 1.2, False),
    "packed": Kind(reading(texts.packed), 1.5, False),
    "finetune": Kind(texts.finetune, 1.5, False),
    "decontamination": Kind(texts.decontamination, 1.2, False),
    "sets": Kind(texts.sets, 1.2, False),
    "tokenizer": Kind(models.tokenizer, 1),
    "config_json": Kind(models.config_json, 1),
    "safetensors": Kind(models.safetensors, 0.7),
    "gguf": Kind(models.gguf, 1),
    "scorer": Kind(models.scorer, 0.4, False),
    "config": Kind(experiments.config, 2),
    "overrides": Kind(experiments.overrides, 2),
    "where": Kind(experiments.where, 1.2, False),
    "study": Kind(experiments.study, 0.3),
    "manifest": Kind(experiments.manifest, 0.4),
    "ledger": Kind(experiments.ledger, 0.4),
    "decisions": Kind(experiments.decisions, 0.3),
    "metrics": Kind(experiments.metrics, 0.25),
    "checkpoint": Kind(experiments.checkpoint, 0.25),
    "data": Kind(experiments.data, 0.12),
    "process": Kind(process, 0.06),
}


def prepare(chosen: Sequence[str], folder: Path) -> None:
    """Makes what the chosen kinds need, in processes of their own, and imports what they use: workers are forked."""
    import torch

    torch.set_num_threads(1)  # of what is forked from here; threads do not survive a fork
    if not any(KINDS[name].prepared for name in chosen):
        return
    folder.mkdir()
    experiments.PREPARED = folder
    _apart(experiments.prepare, folder)
    _apart(models.prepare, folder / "tokenizers")


def _apart(make: Callable[[Path], None], folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=make, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the examples could not be made, see above")


def main(description: str) -> None:
    arguments = _arguments(description)
    chosen = arguments.kind or list(KINDS)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    kept = Path(tempfile.gettempdir()) / f"hornbook-fuzz-{os.getpid()}"
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="hornbook-fuzz-work-") as scratch:
        prepare(chosen, Path(scratch) / "prepared")
        cases = {name: KINDS[name].case for name in chosen}
        with Workers(cases, arguments.workers, Path(scratch), kept) as workers:
            seen: Counter[str] = Counter()
            for result in workers.run(_jobs(chosen, arguments)):
                results.append(result)
                if result.what is not None:
                    seen[result.what] += 1
                    if seen[result.what] <= SHOWN:
                        print(
                            f"\n{result.what}\n  {result.job.command}\n  files: {result.kept}\n{result.detail}",
                            flush=True,
                        )
    faults = _summary(chosen, results)
    if arguments.json:
        _write(Path(arguments.json), chosen, results)
    raise SystemExit(1 if faults else 0)


def _arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow it")
    parser.add_argument("--cases", type=int, default=500, help="in all, shared out over the kinds; default: 500")
    parser.add_argument("--each", type=int, help="cases of every kind, in place of --cases")
    parser.add_argument("--workers", type=int, default=1, help="processes; default: 1")
    parser.add_argument("--json", help="file to write the table to")
    return parser.parse_args()


def _jobs(chosen: Sequence[str], arguments: argparse.Namespace) -> Iterator[Job]:
    """All kinds by turns, each as often as its share says, so that a run cut short has some of every kind."""
    shares = {name: KINDS[name].share for name in chosen}
    total = sum(shares.values())
    counts = {n: arguments.each or max(1, round(arguments.cases * share / total)) for n, share in shares.items()}
    order = sorted((number / count, name, number) for name, count in counts.items() for number in range(count))
    for _, name, number in order:
        yield Job(name, arguments.seed + number)


def _summary(chosen: Sequence[str], results: Sequence[Result]) -> int:
    """Prints the table, then every fault with its number of cases; returns how many cases had one."""
    print(f"\n{'kind':<16} {'cases':>7} {'faults':>7} {'seconds':>9} {'slowest':>9} {'peak MB':>8}")
    for name in chosen:
        own = [r for r in results if r.job.kind == name]
        if own:
            faulty, seconds = sum(r.what is not None for r in own), sum(r.seconds for r in own)
            slowest, peak = max(r.seconds for r in own), max(r.peak_bytes for r in own) / 1e6
            print(f"{name:<16} {len(own):>7,} {faulty:>7,} {seconds:>9.1f} {slowest:>9.2f} {peak:>8,.0f}")
    faults: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.what is not None:
            faults[f"{result.job.kind}: {result.what}"].append(result)
    for what, cases in sorted(faults.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases):>6,} x {what}   {cases[0].job.command}")
    n_cases = sum(map(len, faults.values()))
    print(f"{len(results):,} cases, {n_cases:,} of them with a fault, {len(faults)} kinds of fault", flush=True)
    return n_cases


def _write(path: Path, chosen: Sequence[str], results: Sequence[Result]) -> None:
    """Rows that the file has of kinds that were not chosen stay, with the commit and command that they came of."""
    rows: list[dict[str, Any]] = []
    if path.is_file() and len(chosen) < len(KINDS):
        earlier = json.loads(path.read_text(encoding="utf-8"))
        origin = {"commit": earlier["commit"], "command": earlier["command"]}
        rows = [{**origin, **kept} for kept in earlier["rows"] if kept["kind"] not in chosen]
    for name in chosen:
        own = [r for r in results if r.job.kind == name]
        faults = sum(r.what is not None for r in own)
        more = {"kind": name, "cases": len(own), "seconds": round(sum(r.seconds for r in own), 1)}
        more |= {"slowest_seconds": round(max((r.seconds for r in own), default=0.0), 2)}
        more |= {"peak_bytes": max((r.peak_bytes for r in own), default=0)}
        rows.append({**row(f"{name}: cases with a fault", faults, "cases", "0", faults == 0), **more})
    rows.sort(key=lambda row: list(KINDS).index(row["kind"]))
    content = record("fuzz", rows, ("torch", "tokenizers", "pyarrow", "trafilatura", "warcio", "pypdf", "python-docx"))
    command = " ".join(["scripts/fuzz.py", *sys.argv[1:]])
    path.write_text(json.dumps({**content, "command": command}, indent=1) + "\n", encoding="utf-8")
