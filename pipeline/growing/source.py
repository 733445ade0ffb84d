"""What `init.source` names: a smaller experiment (a .yaml), a model folder, a hub name. Trains and fetches nothing."""

from pathlib import Path

from pipeline import config as configs
from pipeline.config import Config
from pipeline.storage.hub import check_model
from pipeline.system.errors import UserError
from pipeline.training.identity import at_stated_budget


def source_is_experiment(config: Config) -> bool:
    return config.init.source is not None and config.init.source.endswith((".yaml", ".yml"))


def source_config(config: Config) -> Config:
    """The source experiment: its own file, with data, tokenizer and seed of the experiment that asks for it.

    It has the hours that its config states. Another experiment may train the same shape for longer, and a run can be
    extended; neither changes what this one grows from.
    """
    path = Path(config.init.source or "")
    values = configs.merge(configs.read_with_base(path), config.init.source_overrides)
    configs.resolve_source_path(values, path)
    if (values.get("init") or {}).get("source") == config.init.source:
        raise UserError(f"{path}: init.source names the file itself; name a smaller experiment, or set it to null")
    asker = configs.to_values(config)
    for key in ("data", "tokenizer", "seed"):
        values[key] = asker[key]
    return at_stated_budget(configs.from_values(values, where=str(path)))


def check_source(config: Config) -> None:
    """What the model is to grow from is there and can be read, as far as that is known without training or fetching.
    Raises `UserError`."""
    if source_is_experiment(config):
        check_source(source_config(config))
    elif config.init.source is not None:
        check_model(config.init.source, "init.source")
