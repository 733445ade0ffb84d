"""A config is one file, checked before any work: the message names the key and the nearest right one."""

from pathlib import Path

import pytest
import yaml

from pipeline import config as configs
from pipeline.stages import data_step
from pipeline.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_parsed(path):
    if "model" not in configs.read_with_base(path):
        pytest.skip("a table, not an experiment")
    config = configs.load(path)
    assert config.name == path.stem
    again = configs.from_values(configs.to_values(config), where="round trip")
    assert configs.to_values(again) == configs.to_values(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lerning_rate=1", ["train.lerning_rate", "learning_rate"]),
        ("hidden_size=128", ["hidden_size", "model.hidden_size"]),
        ("trian.seed=1", ["trian", "train"]),
        ("train=3", ["train", "section"]),
        ("model.hidden_size=241", ["hidden_size=241", "num_attention_heads"]),
        ("model.partial_rotary_factor=0.125", ["partial_rotary_factor", "rotary"]),
        ("model.num_key_value_heads=4", ["num_key_value_heads"]),
        ("budget.max_gpu_hours=24h", ["budget.max_gpu_hours", "24h"]),
        ("data.tasks=", ["'data.tasks' is null; expected a whole number"]),
        ("tracking.to=maybe", ["tracking.to is 'maybe'; expected one of wandb, tensorboard, trackio, none"]),
        ("data.decontamination.files=a.json", ["is 'a.json'; expected a list such as [a, b]"]),
        ("train.mix=7", ["'train.mix' is 7; expected a section of named things or null"]),
        ("budget.max_gpu_hours=0", ["budget.max_gpu_hours", "more than 0"]),
        ("train.sequence_length=100000", ["sequence_length", "max_position_embeddings"]),
        ("train.global_batch_tokens=1000", ["global_batch_tokens", "multiple"]),
        ("train.micro_batch=5", ["micro_batch", "divisor"]),
        ("train.precision=fp8", ["train.precision", "bf16-mixed"]),
        ("tokenizer.vocab_size=999999", ["tokenizer.vocab_size", "model.vocab_size"]),
        ("train.mix.nowhere=1", ["train.mix", "data.sources"]),
        ("train.mix.exercises=[1]", ["'train.mix.exercises' is [1]; expected a number"]),
        (
            f"train.learning_rate={'9' * 400}",
            ["'train.learning_rate' is a number of more than 398 digits; expected a number"],
        ),
        (f"data.sources.exercises.weight={'9' * 400}", ["weight", "expected a number of at least 0"]),
        ("name=../escape", ["name"]),
        ("name=js/data", ["names of stages"]),
        ("budget.max_gpu_hours=nan", ["budget.max_gpu_hours"]),
        ("budget.max_gpu_hours=inf", ["budget.max_gpu_hours", "more than 0, and finite"]),
        ("train.beta1=2", ["train.beta1"]),
        ("train.learning_rate=nan", ["train.learning_rate"]),
        ("data.near_dedup_similarity=2", ["data.near_dedup_similarity"]),
        ("data.workers=-1", ["data.workers"]),
        ("model.vocab_size=100", ["model.vocab_size"]),
        ("data.filters=[]", ["data.filters"]),
        ("budget.apart=x", ["'budget.apart' is set by hornbook itself"]),
        ("budget.apar=x", ["unknown key 'budget.apar'"]),
        ("finetune.train.beta1=2", ["finetune.train.beta1 is 2.0; expected 0 to 0.999999"]),
        ("name=???", ["'name' has no value; it must be set"]),
        ("train.beta1=${train.beta3}", ["'train.beta1'", "'train.beta3' not found"]),
        ("no-equals-sign", ["key=value"]),
    ],
)
def test_a_wrong_override_is_one_message_that_names_the_fix(override, words):
    with pytest.raises(UserError) as error:
        configs.load(TINY, [override])
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "a: [1\n", "name: x\n\tb: 1\n", "\xff\xfe"])
def test_a_file_that_is_no_experiment_is_refused(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.yaml"):
        configs.load(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        configs.load(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="is a folder"):
        configs.load(tmp_path)


def test_a_missing_shape_is_named(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\nmodel:\n  hidden_size: 8\n")
    with pytest.raises(UserError, match=r"model\."):
        configs.load(path)


def test_every_wrong_key_stands_in_one_message():
    values = {
        "nam": "x",
        "seed": "much",
        "model": {"hidden_size": 8},
        "train": {"beta1": 3, "precision": "fp8", "x": 1},
    }
    with pytest.raises(UserError) as error:
        configs.from_values(values, "test")
    words = ["unknown key 'nam' (did you mean 'name'?)", "'name' has no value", "'seed' is 'much'; expected a",
             "'model.vocab_size' has no value", "'model.num_attention_heads' has no value", "unknown key 'train.x'",
             "train.beta1 is 3.0; expected 0 to 0.999999", "train.precision is 'fp8'; expected one of"]  # fmt: skip
    assert all(word in str(error.value) for word in words)
    with pytest.raises(UserError, match=r"tiny\.yaml: 2 problems\n  train.z_loss is 7.0.*\n  train.micro_batch is 5"):
        configs.load(TINY, ["train.z_loss=7", "train.micro_batch=5"])


def test_internal_keys_are_kept_where_they_are_set_and_shown_nowhere():
    config = configs.load(TINY)
    assert "apart" not in configs.to_yaml(config)
    assert not {"budget.apart", "budget.branch_of", "finetune.budget.apart"} & set(configs.key_kinds())
    config.budget.apart = "6 tokens"
    assert configs.from_values(configs.to_values(config), "again").budget.apart == "6 tokens"


def test_named_things_are_mappings_that_an_override_changes_or_removes():
    config = configs.load(TINY, ["data.filters.quality.min_score=0.9", "data.filters.length=null"])
    assert config.data.filters["quality"]["min_score"] == 0.9
    assert config.data.filters["length"] is None
    assert config.data.filters["licence"] is not None


def test_a_value_may_be_that_of_another_key():
    config = configs.load(TINY, ["train.beta1=${train.beta2}", "train.beta2=0.5", "sample.top_k=${model.vocab_size}"])
    assert (config.train.beta1, config.sample.top_k) == (0.5, config.model.vocab_size)
    with pytest.raises(UserError, match=r"train\.beta1 is 7\.0; expected 0 to"):
        configs.load(TINY, ["train.beta1=${seed}", "seed=7"])


def test_runtime_and_extendable_keys_never_reach_a_fingerprint():
    base = configs.load(TINY)
    other = configs.load(TINY, ["train.precision=32-true", "budget.max_gpu_hours=9", "data.workers=7", "name=x"])
    assert configs.identity(base) == configs.identity(other)
    assert configs.identity(base) != configs.identity(configs.load(TINY, ["train.learning_rate=0.1"]))


def test_the_source_config_is_found_beside_the_config_that_names_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Path(configs.load(TINY).init.source or "").is_file()


def test_a_source_model_brings_its_tokenizer():
    config = configs.load(TINY, ["init.source=some/model"])
    assert config.tokenizer.path == "some/model"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.decay_min_score=1.5"], "train.decay_min_score is 1.5; expected 0 to 1"),
        (["train.decay_min_score=0.7", "train.max_epochs=2"], "set one of them to null"),
        (["train.z_loss=-1"], "train.z_loss is -1"),
    ],
)
def test_values_of_the_training_recipe_that_cannot_be(overrides, said):
    with pytest.raises(UserError, match=said):
        configs.load(TINY, overrides)


def _write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return folder / "child.yaml"


def test_a_config_laid_over_its_base_is_the_same_as_one_file_with_everything(tmp_path):
    whole = configs.read_yaml(TINY)
    below = {k: v for k, v in whole.items() if k not in ("train", "name")}
    child = _write(
        tmp_path,
        grandparent=yaml.safe_dump({"name": "g", **below, "train": {"sequence_length": 64}}),
        parent="base: grandparent.yaml\nname: p\ntrain: {warmup_steps: 3}\n",
        child=yaml.safe_dump({"base": "parent.yaml", "name": "tiny", "train": whole["train"]}),
    )
    (tmp_path / "tiny-source.yaml").write_text((ROOT / "configs" / "tiny-source.yaml").read_text())
    made, written = configs.load(child), configs.load(TINY)
    assert made.init.source == str(tmp_path / "tiny-source.yaml")  # looked for beside the file that names it
    made.init.source = written.init.source
    assert configs.identity(made) == configs.identity(written)
    assert configs.load(child, ["train.sequence_length=64"]).train.sequence_length == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("base: child.yaml\nname: a", "leads back"),
        ("base: other.yaml\nname: a", "leads back"),
        ("base: nowhere.yaml\nname: a", "nowhere.yaml is not there"),
        ("base: [a, b]\nname: a", "expected the name of another config"),
        ("base: model.yaml", "no name of its own"),
    ],
)
def test_a_base_that_cannot_be_is_one_message(tmp_path, content, said):
    child = _write(tmp_path, child=content, other="base: child.yaml\nname: b", model="name: m\nmodel: {}")
    with pytest.raises(UserError, match=said):
        configs.load(child)


def test_replay_is_a_mark_that_changes_no_fingerprint_of_the_data(tmp_path, monkeypatch):

    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    key = "data.sources.exercises.replay"
    plain, marked = configs.load(TINY), configs.load(TINY, [f"{key}=true"])
    assert data_step(plain).fingerprint == data_step(marked).fingerprint
    with pytest.raises(UserError, match=r"replay is 'much'; expected true or false"):
        configs.load(TINY, [f"{key}=much"])
