"""YAML as people read it, in files and on the command line: what YAML 1.1 would change is refused or stays text."""

from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.config import yaml_values
from pipeline.corpus.sources.records import Jsonl
from pipeline.corpus.text.source import make
from pipeline.system.errors import UserError

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"


def loaded(folder: Path, override: str, way: str) -> configs.Config:
    """The tiny config with one key set in a file above it, or on the command line."""
    if way == "command line":
        return configs.load(TINY, [override])
    key, _, value = override.partition("=")
    *sections, last = key.split(".")
    lines = [f"{'  ' * i}{section}:" for i, section in enumerate(sections)]
    name = [] if key == "name" else ["name: other"]
    text = [f"base: {TINY}", *name, *lines, f"{'  ' * len(sections)}{last}: {value}"]
    (folder / "other.yaml").write_text("\n".join(text) + "\n")
    return configs.load(folder / "other.yaml")


def value_of(config: configs.Config, key: str):
    found = config
    for word in key.split("."):
        found = found[word] if isinstance(found, dict) else getattr(found, word)
    return found


@pytest.mark.parametrize("way", ["file", "command line"])
@pytest.mark.parametrize(
    ("override", "write"),
    [
        ("budget.max_gpu_hours=1:30", "1.5"), ("budget.max_gpu_hours=12:00:00", "12"),
        ("budget.max_gpu_hours=010", "10"), ("budget.max_gpu_hours=0:30", "0.5"),
        ("budget.max_gpu_hours='1:30'", "1.5"), ("budget.max_gpu_hours=1:30:36", "1.51"),
        ("finetune.budget.max_gpu_hours=1:30", "1.5"), ("train.checkpoint_every_seconds=1:30", "90"),
        ("train.checkpoint_every_seconds=1:00:00", "3600"), ("train.micro_batch=010", "10"),
        ("train.micro_batch=08", "8"), ("seed=0_12", "12"), ("train.log_every_steps=0b11", "3"),
        ("train.log_every_steps=0o17", "15"), ("train.mix={python_library: 010}", "10"),
        ("budget.max_tokens=0100_000", "100000"), ("budget.max_tokens=1e6", "1_000_000"),
        ("budget.max_gpu_hours=90m", "1.5"), ("budget.max_gpu_hours=1h30m", "1.5"),
        ("budget.max_gpu_hours=2 days", "48"), ("budget.max_gpu_hours=12h", "12"),
        ("train.checkpoint_every_seconds=10min", "600"),
        ("budget.max_tokens=1.5M", "1_500_000"), ("data.tokenizer_train_bytes=20MB", "20_000_000"),
    ],
)  # fmt: skip
def test_a_number_that_yaml_would_change_is_refused_with_the_one_to_write(tmp_path, override, write, way):
    with pytest.raises(UserError, match=rf"{override.partition('=')[0]}.*write {write}$"):
        loaded(tmp_path, override, way)


@pytest.mark.parametrize("way", ["file", "command line"])
@pytest.mark.parametrize("override", ["train.learning_rate=1:30", "budget.gpu_hour_price=1:30", "seed=1:30"])
def test_a_time_where_no_time_belongs_is_refused(tmp_path, override, way):
    with pytest.raises(UserError, match="expected a number"):
        loaded(tmp_path, override, way)


@pytest.mark.parametrize("way", ["file", "command line"])
@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "y", "N", "010", "1_000", "1.10", "1e3", "0x10", "2024-01-01", "true", "True", "12e456",
     "007", "12:30"],
)  # fmt: skip
def test_a_name_stays_the_text_that_was_written(tmp_path, text, way):
    config = loaded(tmp_path, f"name={text}", way)
    assert config.name == text
    assert yaml_values.load(configs.to_yaml(config), configs.Config)["name"] == text
    assert loaded(tmp_path, f"sample.prompts=[{text}, a]", way).sample.prompts == [text, "a"]


@pytest.mark.parametrize("way", ["file", "command line"])
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.max_gpu_hours=1.5", 1.5), ("budget.max_gpu_hours=.5", 0.5), ("budget.max_gpu_hours=+2", 2.0),
        ("budget.max_tokens=1_000_000", 1_000_000), ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate=2.5e-4", 2.5e-4), ("train.log_every_steps=0x10", 16), ("train.mask_documents=yes", True),
        ("train.mask_documents=off", False), ("train.mask_documents=true", True), ("train.compile=true", "true"),
        ("budget.max_gpu_hours=null", None), ("budget.max_tokens=~", None), ("seed=0", 0),
        ("budget.branches=[6h, 500M, 010]", ["6h", "500M", "010"]),
    ],
)  # fmt: skip
def test_plain_values_are_what_they_are(tmp_path, override, expected, way):
    found = value_of(loaded(tmp_path, override, way), override.partition("=")[0])
    assert found == expected
    assert type(found) is type(expected)


def test_free_sections_keep_texts_and_keys():
    text = "a: {no: 1, 010: x, 1: y, 1:30: z}\nb: [no, 12:00:00, 010, 1e3, 1_000, .inf, 2024-01-01, =]"
    assert yaml_values.load(text) == {
        "a": {"no": 1, "010": "x", 1: "y", "1:30": "z"},
        "b": ["no", "12:00:00", "010", 1000.0, 1000, float("inf"), "2024-01-01", "="],
    }
    assert yaml_values.load("x: &a {p: 1}\ny: {<<: *a, q: 2, p: 3}")["y"] == {"p": 3, "q": 2}
    assert yaml_values.load("!!int 010") == 10


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "{no: 1, no: 2}", "a: {b: 1, b: 1}", "? [a]\n: 1", "!!python/name:os.system x", "a: !!timestamp x",
     "a: [", "a: &a [*a]", "a: !!int x", "a: !!int [1]", "a: !!map [1]", "a: !!str {b: 1}", "a: !!bool no",
     "a: !!float {}", "a: !!binary x", "!!set {a, b}", "a: !!seq {b: 1}", "<<: 3"],
)  # fmt: skip
def test_what_is_no_config_is_an_error(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        configs.load(path)


def test_what_is_dumped_is_read_back():
    texts = [
        "no",
        "1e3",
        "1:30",
        "010",
        "1_000",
        "0x1F",
        "0o17",
        "~",
        "",
        "true",
        "2024-01-01",
        ".5",
        "a: b",
        "#x",
        "\u2028",
    ]
    values = {"t": texts, "n": [1, 1.5, 1e-9, 1e300, float("inf"), True, None, -3], **{t: 1 for t in texts}}
    assert yaml_values.load(yaml_values.dump(values)) == values


def test_options_of_sources_name_the_number_to_write():
    with pytest.raises(UserError, match=r"x\.limit_documents is '010'; expected a number: write 10"):
        make(Jsonl, {"path": "a", **yaml_values.load("limit_documents: 010")}, "x")


def test_an_override_may_hold_anything_after_its_first_equals_sign():
    assert configs.parse_overrides(["a.b=x=y", "a.c=1", "d={e: [1, 2]}"]) == {
        "a": {"b": "x=y", "c": 1}, "d": {"e": [1, 2]},
    }  # fmt: skip
    for word in ("a..b=1", "=1", "a", "--a=1", ".a=1"):
        with pytest.raises(UserError, match="is not an override"):
            configs.parse_overrides([word])
