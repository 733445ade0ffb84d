"""The `data` stage: text in, token sets with a tokenizer, a scorer and an account of every document out.

read -> repair -> rules -> exact dedup -> split -> near dedup -> tokenizer -> encode -> score -> cut -> data. Each is a
cached step with its own folder (`pipeline/corpus/steps.py`), so a stopped stage resumes where it was, and two
experiments that share their first settings share the folders.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.corpus.contamination import drop_contaminated
from pipeline.corpus.duplicates import drop_exact_duplicates, drop_near_duplicates
from pipeline.corpus.publishing import cut_by_score, publish, score_documents
from pipeline.corpus.reading import apply_rules, in_words, lost_words, repair_documents
from pipeline.corpus.splitting import split_groups
from pipeline.corpus.steps import make_executor, named_sources, rules_by_source, scorer_options, source_reader
from pipeline.corpus.text.tokenizer import check_given_tokenizer
from pipeline.corpus.tokenizing import copy_tokenizer, encode_documents, train_tokenizer
from pipeline.pages import html
from pipeline.pages.data_card import file_words
from pipeline.planner.costs import validation_cost, validation_tokens
from pipeline.storage.experiment import Experiment
from pipeline.storage.hub import GGUF, TOKENIZER_FILES, is_hub_name, local_folder
from pipeline.storage.steps import Folder, Step, read_manifest
from pipeline.storage.store import Command, Maker, build
from pipeline.system.progress import format_seconds


def run(config: Config, step: Step, command: Command) -> None:
    """Builds whatever of the stage is not there yet and prints what happened."""
    experiment = Experiment(config)
    experiment.record()
    with experiment.ledger("data", step.fingerprint):
        fresh = not step.finished
        lines = _Lines(step)
        manifest = build(
            step, data_makers(config, step), experiment=config.name, store=command.store, announce=lines.announce
        )
        lines.finish()
        experiment.link("data", step.path)
    print(f"data: {'done' if fresh else 'up to date'}")
    print("\n".join(summary(step, manifest)))
    _, warning = validation_cost(config, validation_tokens(manifest))
    if warning:
        print(f"  WARNING: {warning}")
    after = f"data {command.words}" if config.name.endswith(configs.PREVIEW) else f"init {command.words}"
    print(f"  report       {command.write_page(config)}\n  next: hornbook {after}", flush=True)


def data_makers(config: Config, final: Step) -> dict[str, Maker]:
    """What makes each step of the chain that ends in `final` (of `data_step`), by fingerprint."""
    data, executor = config.data, make_executor(config)
    sources = named_sources(config)
    rules, qualities = rules_by_source(config)
    scored = final.input("score").config["sources"]
    share, max_bytes = data.validation.share, data.validation.max_bytes
    makers: dict[str, Maker] = {
        "data-repair": lambda folder: repair_documents(folder, list(sources), data.mask_personal_data, executor),
        "data-rules": lambda folder: apply_rules(folder, rules, executor),
        "data-exact-dedup": drop_exact_duplicates,
        "data-split": lambda folder: split_groups(folder, share, max_bytes, config.seed),
        "data-near-dedup": lambda folder: drop_near_duplicates(folder, data.near_dedup_similarity, executor),
        "data-contamination": lambda folder: drop_contaminated(
            folder, data.decontamination, executor, data.max_unreadable
        ),
        "data-tokenizer": lambda folder: _make_tokenizer(folder, config),
        "data-encode": lambda folder: encode_documents(folder, executor),
        "data-score": lambda folder: score_documents(folder, scorer_options(config), scored, executor),
        "data-cut": lambda folder: cut_by_score(folder, qualities),
        "data": lambda folder: publish(
            folder, max_bytes, data.validation.textbook_min_score, config.seed, data.keep_dropped
        ),
    }
    found: dict[str, Maker] = {}
    for step in final.chain():
        if step.name == "data-read":
            name = step.config["source"]
            found[step.fingerprint] = source_reader(name, sources[name], data.max_unreadable, executor)
        else:
            found[step.fingerprint] = makers[step.name]
    return found


def _make_tokenizer(folder: Folder, config: Config) -> dict[str, Any]:
    given, vocab_size = config.tokenizer.path, config.model.vocab_size
    if given is None:
        size = config.tokenizer.vocab_size or vocab_size
        return train_tokenizer(folder, size, config.data.tokenizer_train_bytes, config.seed)
    if is_hub_name(given) or given.endswith(GGUF):
        fetched = local_folder(given, "tokenizer.path", TOKENIZER_FILES)
        check_given_tokenizer(fetched, vocab_size)
        return copy_tokenizer(folder, fetched)
    return copy_tokenizer(folder, Path(given))


class _Lines:
    """One line as a step starts, one when it is done."""

    def __init__(self, final: Step):
        self.numbers = {step.fingerprint: i + 1 for i, step in enumerate(final.chain())}
        self.current: Step | None = None
        self.started = 0.0

    def announce(self, step: Step) -> None:
        self.finish()
        self.current, self.started = step, time.monotonic()
        source = f" {step.config['source']}" if "source" in step.config else ""
        print(f"[{self.numbers[step.fingerprint]}/{len(self.numbers)}] {step.name}{source}", flush=True)

    def finish(self) -> None:
        if self.current is not None:
            took = format_seconds(time.monotonic() - self.started)
            print(f"      {result_line(self.current.name, read_manifest(self.current.path))} ({took})", flush=True)
        self.current = None


def result_line(name: str, manifest: dict[str, Any]) -> str:
    """What one step did, from its manifest."""
    if name == "data-tokenizer":
        trained = f", trained on {manifest['train_bytes'] / 1e6:.1f} MB" if "train_bytes" in manifest else ""
        return f"{manifest['vocab_size']:,} entries{trained}"
    if name == "data-encode":
        return f"{manifest['tokens']:,} tokens"
    if name == "data-score":
        return scorer_line(manifest["classifier"])
    if name == "data":
        return f"{manifest['documents']['kept']:,} documents kept"
    dropped = sum(manifest["dropped"].values())
    parts = [f"{manifest['documents']:,} documents"]
    if "bytes" in manifest:
        parts.append(f"{manifest['bytes'] / 1e6:.1f} MB")
    if "validation" in manifest:
        parts.append(f"{manifest['validation']['documents']:,} held out for validation")
    if dropped:
        parts.append(f"{dropped:,} dropped")
    if manifest.get("unreadable"):
        parts.append(f"{sum(manifest['unreadable'].values()):,} unreadable ({in_words(manifest['unreadable'])})")
    return ", ".join(parts)


def scorer_line(classifier: Mapping[str, Any]) -> str:
    """What scored which sources, and how well it does on documents it was not trained on."""
    if not classifier["sources"]:
        return classifier["note"]
    if classifier["auc"] is None:
        return f"{', '.join(classifier['sources'])}: {classifier['note']}"
    low, high = classifier["auc_interval"]
    return (
        f"{', '.join(classifier['sources'])}: AUC {classifier['auc']:.3f} ({low:.2f} to {high:.2f}) on "
        f"{classifier['documents']} rated documents, groups disjoint"
    )


def warnings(manifest: Mapping[str, Any]) -> list[str]:
    """What went well enough to go on and is not what the user will have meant."""
    found = []
    for name, source in manifest["sources"].items():
        lost = source["lost_files"]
        if lost:
            causes = in_words(Counter(file["cause"] for file in lost))
            kept = "; what came before the damage is kept" if any(file["records"] for file in lost) else ""
            found.append(f"data.sources.{name}: {causes}: {lost_words(lost)}{kept}")
    found += manifest["held_out"]["warnings"]
    classifier = manifest["classifier"]
    if classifier["threshold"] is not None and not classifier["sources"]:
        found.append(f"data.filters.quality cut nothing, for want of a scorer: {classifier['note']}")
    elif uncut := sorted(set(classifier["not_scored"]) & set(classifier["thresholds"])):
        found.append(f"data.filters.quality cut nothing of {', '.join(uncut)}, which the scorer does not suit")
    if abstained := classifier.get("abstained"):
        found.append(
            f"the scorer has no opinion of {abstained:,} documents that are not in English; none of them is cut"
        )
    if lost := (manifest["contamination"] or {}).get("items_unreadable"):
        found.append(f"{lost:,} records of evaluation items could not be read (data.decontamination.files)")
    short = (manifest["contamination"] or {}).get("items_too_short")
    if short:
        found.append(f"{short:,} evaluation items are too short to look for (data.decontamination.min_words)")
    return found


def share_words(source: Mapping[str, Any]) -> str:
    """`60 of 2,000 documents (3.0%), from all 12 files`: the share that `--limit` took of a source; empty without."""
    whole, files = source.get("sampled_of"), source["files"]
    if whole is None:
        return ""
    taken = source["read"] - source["excluded"]
    if not whole["files"]:
        return f"the first {taken:,} documents; how many there are in all is not known"
    opened = files["read"] + files["lost"]
    if opened < whole["files"]:
        share = opened / whole["files"]
        return f"{taken:,} documents from {opened:,} of {whole['files']:,} files ({share:.1%} of the files)"
    records = max(1, whole["records"])
    return f"{taken:,} of {records:,} documents ({taken / records:.1%}), from all {whole['files']:,} files"


def summary(step: Step, manifest: dict[str, Any]) -> list[str]:
    """The last lines: where every document went, tokens per source, and where it all lies."""
    values: dict[str, Any] = {"files": file_words(manifest["files"]), "classifier": scorer_line(manifest["classifier"])}
    values["samples"] = {name: words for name, s in manifest["sources"].items() if (words := share_words(s))}
    told = html.render("data.txt", manifest=manifest, warnings=warnings(manifest), folder=step.path, **values)
    return told.splitlines()
