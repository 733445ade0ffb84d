"""`hornbook fetch`: what a config needs from the hub, brought here for machines without a network.

In: a config. Out: the commit of every hub name in `runs/<name>/hub.json`; the models in the cache of huggingface_hub
(HF_HOME); the text of the hub as the finished read steps of the data stage, which hold what its limits, `where` and
columns leave of it, and nothing else. The sources of growth (experiments) are fetched with their own names. A run that
is stopped resumes: shards and files that are whole are not fetched again.
"""

from pathlib import Path

from pipeline.config import Config
from pipeline.config.schema import AFTER
from pipeline.corpus.execute import Executor
from pipeline.corpus.scorers.document_scorers import CLASSIFIER_FILES
from pipeline.corpus.steps import data_step, named_sources, source_reader
from pipeline.stages import source_config, source_is_experiment
from pipeline.storage import pins
from pipeline.storage.experiment import Experiment
from pipeline.storage.hub import MODEL, MODEL_FILES, TOKENIZER_FILES, local_folder
from pipeline.storage.store import build

WANTED = {"tokenizer.path": TOKENIZER_FILES, "data.scorer.path": CLASSIFIER_FILES}


def run(config: Config, words: str) -> None:
    """Prints what was fetched. `words`: as typed after the verb. Raises `UserError` for what the hub refuses."""
    pins.resolve([config], pins.record_path(config), lambda key: True)
    config = pins.recorded(config)
    _models(config)
    if source_is_experiment(config):
        source = source_config(config)
        pins.resolve([source], pins.record_path(source), lambda key: key.partition(".")[0] not in ("data", *AFTER))
        _models(source_config(config))
    _text(config)
    print(f"  next, where there is no network: HF_HUB_OFFLINE=1 hornbook data {words}", flush=True)


def _models(config: Config) -> None:
    for name in pins.hub_names(config):
        if name.kind == MODEL:
            patterns = WANTED.get(name.key, MODEL_FILES + TOKENIZER_FILES)
            folder = local_folder(name.asked, name.key, patterns, classifier=name.key == "data.scorer.path")
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"fetch: {name.asked} ({name.key}), {size / 1e6:.1f} MB in {folder}", flush=True)


def _text(config: Config) -> None:
    """The read steps of hub sources, made here whatever `data.executor` is: its nodes may have no network."""
    experiment = Experiment(config)
    experiment.record()
    data, sources = config.data, named_sources(config)
    executor = Executor(data.tasks, data.workers)
    hub = {name.key.split(".")[2] for name in pins.hub_names(config) if name.key.startswith("data.sources.")}
    for step in data_step(config).chain():
        if step.name != "data-read" or step.config["source"] not in hub:
            continue
        name = step.config["source"]
        reader = source_reader(name, sources[name], data.max_unreadable, executor)
        with experiment.ledger("data", step.fingerprint):
            manifest = build(step, {step.fingerprint: reader}, experiment=config.name)
        print(f"fetch: data.sources.{name}, {manifest['documents']:,} documents in {_short(step.path)}", flush=True)


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
