"""What makes each step of the data stage, in the order in which they run. steps.py says what a step is and reads."""

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.corpus.contamination import drop_contaminated
from pipeline.corpus.duplicates import drop_exact_duplicates, drop_near_duplicates
from pipeline.corpus.publishing import cut_by_score, publish, score_documents
from pipeline.corpus.reading import apply_rules, read_source, repair_documents
from pipeline.corpus.splitting import split_groups
from pipeline.corpus.steps import make_executor, make_source, named_sources, rules_by_source, scorer_options
from pipeline.corpus.text.tokenizer import check_given_tokenizer
from pipeline.corpus.tokenizing import copy_tokenizer, encode_documents, train_tokenizer
from pipeline.storage.build import Maker
from pipeline.storage.hub import GGUF, TOKENIZER_FILES, is_hub_name, local_folder
from pipeline.storage.steps import Folder, Step


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
            source = make_source(sources[name], f"data.sources.{name}")
            found[step.fingerprint] = partial(
                read_source, name=name, source=source, max_unreadable=data.max_unreadable, executor=executor
            )
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
