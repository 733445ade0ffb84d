"""One YAML file is one experiment: its keys (`schema`), reading them (`loading`, `yaml_values`), what they may not say
(`checks`). May import `pipeline.system` and `model.config`."""

from pipeline.config.checks import check_end, validate
from pipeline.config.loading import (
    PREVIEW,
    flat,
    from_values,
    load,
    merge,
    parse_overrides,
    preview,
    read_with_base,
    read_yaml,
    resolve_source_path,
    to_values,
    to_yaml,
)
from pipeline.config.schema import (
    PRETRAINING,
    RUNTIME,
    STAGES,
    BudgetConfig,
    Config,
    DataConfig,
    FinetuneConfig,
    InitConfig,
    SampleConfig,
    TrainConfig,
    identity,
    key_kinds,
    nearest,
)
