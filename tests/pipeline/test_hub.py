"""A model of the hub: its config.json is fetched and judged before its weights are."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from model.config import ModelConfig
from pipeline.corpus.scorers.document_scorers import CLASSIFIER_FILES
from pipeline.storage.hub import MODEL_FILES, TOKENIZER_FILES, is_hub_name, local_folder
from pipeline.system.errors import UserError

LLAMA = ModelConfig(97, 48, 80, 1, 4, family="llama").to_hf()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gives a folder with the config.json that a test names; lists what was asked for."""
    asked: list[list[str]] = []

    def serve(content: dict | None) -> list[list[str]]:
        if content is not None:
            (tmp_path / "config.json").write_text(json.dumps(content))

        def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append(allow_patterns)
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return serve


def test_a_model_that_can_be_read_is_fetched_whole(hub, tmp_path: Path) -> None:
    asked = hub(LLAMA)
    assert local_folder("someone/small", "init.source", MODEL_FILES + TOKENIZER_FILES) == tmp_path
    assert asked == [["config.json"], MODEL_FILES + TOKENIZER_FILES]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (LLAMA | {"model_type": "gemma3"}, "'gemma3'"),
        (LLAMA | {"model_type": "qwen3_moe"}, "'qwen3_moe'"),
        (LLAMA | {"sliding_window": 4096}, "sliding_window"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        (None, "no config.json"),
    ],
)
def test_another_is_refused_by_its_config_alone(hub, content: dict | None, word: str) -> None:
    asked = hub(content)
    with pytest.raises(UserError, match=word):
        local_folder("someone/other", "init.source", MODEL_FILES)
    assert asked == [["config.json"]]


def test_a_name_that_is_known_to_be_of_no_use_is_refused_before_anything_is_fetched(hub, tmp_path: Path) -> None:
    asked = hub(LLAMA)
    with pytest.raises(UserError, match=r"init\.source is 'google/gemma-2-2b@main': .*'gemma'"):
        local_folder("google/gemma-2-2b@main", "init.source", MODEL_FILES)
    assert asked == []
    assert local_folder("google/gemma-2-2b", "tokenizer.path", TOKENIZER_FILES) == tmp_path  # words fit any network


def test_a_classifier_may_be_of_any_family(hub, tmp_path: Path) -> None:
    asked = hub(LLAMA | {"model_type": "roberta"})
    assert local_folder("someone/rater", "data.scorer.path", CLASSIFIER_FILES, classifier=True) == tmp_path
    assert asked == [CLASSIFIER_FILES]


def test_a_gguf_file_is_no_name_of_the_hub(tmp_path: Path) -> None:
    assert not is_hub_name("downloads/model.gguf")
    with pytest.raises(UserError, match="neither a folder here nor a hub name"):
        local_folder(str(tmp_path / "model.gguf"), "init.source", MODEL_FILES)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(UserError, match=r"init\.source: .*model\.gguf"):
        local_folder(str(tmp_path / "model.gguf"), "init.source", MODEL_FILES)
