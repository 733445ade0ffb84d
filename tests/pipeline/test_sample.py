"""Text from a model: whole characters only, the same text for the same seed, a clear word where there is no model."""

import importlib.util
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline import sample, stages
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.system.errors import UserError
from pipeline.training.finish import Writer

_spec = importlib.util.spec_from_file_location("pretrain_driver", Path(__file__).with_name("pretrain_driver.py"))
assert _spec is not None
assert _spec.loader is not None
driver = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(driver)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> configs.Config:

    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    monkeypatch.setattr(stages, "input_steps", driver.input_steps)
    config = configs.load(driver.config_file(tmp_path))
    driver.make_inputs(config)
    return config


def init_folder(config: configs.Config) -> Path:
    return driver.input_steps(config)["init"].path


def test_pieces_never_end_inside_a_character_and_add_up_to_the_text(config: configs.Config) -> None:
    from model.hf import load_network

    tokenizer = load_tokenizer(init_folder(config) / "tokenizer.json")
    writer = Writer(load_network(init_folder(config)), tokenizer, 0)
    text = "naïve 世界 🙂 = λx"
    pieces = list(writer._decode(iter(tokenizer.encode(text).ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    half = tokenizer.encode("世").ids[:2]
    assert "".join(writer._decode(iter(half))) != ""  # bytes that never become a character are not lost silently


def test_streams_a_continuation_of_the_prompt(config: configs.Config, capsys: pytest.CaptureFixture) -> None:
    config.sample.model = str(init_folder(config))
    sample.run(config, "small.yaml", prompt="def ")
    first = capsys.readouterr().out
    sample.run(config, "small.yaml", prompt="def ")
    assert first.startswith("def ")
    assert len(first) > 6
    assert capsys.readouterr().out == first


def test_says_what_to_run_where_there_is_no_model_yet(config: configs.Config) -> None:
    with pytest.raises(UserError, match=r"run: hornbook pretrain small\.yaml"):
        sample.run(config, "small.yaml")
    config.sample.model = "nowhere"
    with pytest.raises(UserError, match="no model at nowhere"):
        sample.run(config, "small.yaml")


def test_a_prompt_longer_than_the_context_is_refused(config: configs.Config) -> None:
    config.sample.model = str(init_folder(config))
    with pytest.raises(UserError, match="max_position_embeddings"):
        sample.run(config, "small.yaml", prompt="x = 1\n" * 200)
