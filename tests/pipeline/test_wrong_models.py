"""A model folder that hornbook cannot read: one sentence and exit code 2 from every verb, in dry runs too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data_corpus import write_corpus
from safetensors.torch import load_file, save_file

from model.config import ImpossibleShape, ModelConfig, UnreadableModel
from model.hf import load_network, open_model, save_folder
from model.transformer import Transformer
from pipeline import __main__ as command
from pipeline.system import signals
from pipeline.system.errors import WRONG_INPUT

SHAPE = ModelConfig(300, 32, 64, 2, 4, max_position_embeddings=64)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A Phi folder with a tokenizer, as it should be."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("models") / "sound"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the river and the stone"] * 9, trainer)
    path = folder.parent / "tokenizer.json"
    tokenizer.save(str(path))
    save_folder(folder, Transformer(SHAPE).initialize(3).state_dict(), SHAPE, path, "<|endoftext|>")
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "model")


def _set(folder: Path, name: str = "config.json", **values) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | values))


def _rename(folder: Path, family: str, architecture: str, names: Callable[[str], str]) -> None:
    """The folder as one of another family: its config and the names of its tensors."""
    _set(folder, model_type=family, architectures=[architecture])
    state = load_file(folder / "model.safetensors")
    save_file({names(name): tensor for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", {"format": "pt"})


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _shards(folder: Path) -> None:
    """Two shards with an index, of which the second is not there."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    held = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, own in held.items():
        save_file({name: state[name] for name in own}, folder / shard, {"format": "pt"})
    index = {"weight_map": {name: shard for shard, own in held.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00002-of-00002.safetensors").unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": ["LORA"]}')


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "Gemma": (
        lambda f: _rename(f, "gemma3", "Gemma3ForCausalLM", lambda n: n.replace("dense", "o_proj")), "family 'gemma3'"
    ),
    "Qwen3 MoE": (
        lambda f: _rename(f, "qwen3_moe", "Qwen3MoeForCausalLM", lambda n: n.replace("fc1", "up_proj")), "'qwen3_moe'"
    ),
    "GPT-2": (lambda f: _rename(f, "gpt2", "GPT2LMHeadModel", lambda n: n.replace("model", "transformer")), "'gpt2'"),
    "another family with Phi's names": (lambda f: _set(f, model_type="phi3"), "family 'phi3'"),
    "no family": (lambda f: _set(f, model_type=None), "family None"),
    "a pickle": (_pickle, "pytorch_model.bin"),
    "not there": (shutil.rmtree, "model"),
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], "config.json"),
    "an adapter": (_adapter, "config.json"),
    "a missing shard": (_shards, "model-00002-of-00002.safetensors"),
    "a missing tensor": (lambda f: _change(f, lambda s: {n: t for n, t in s.items() if "fc2" not in n}), "lacks 4"),
    "another shape": (lambda f: _set(f, intermediate_size=65), "has shape"),
    "another dtype": (lambda f: _change(f, lambda s: {n: t.to(torch.int8) for n, t in s.items()}), "stored as I8"),
    "cut off": (lambda f: _cut(f / "model.safetensors"), "damaged"),
    "config.json is a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "rope_scaling is text": (lambda f: _set(f, rope_parameters=None, rope_scaling="none"), "rope_scaling is 'none'"),
    "hidden_size is text": (lambda f: _set(f, hidden_size="32"), "hidden_size is '32'"),
}  # fmt: skip


@pytest.fixture
def say(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """`say(*words)`: (exit code, what was written to standard error) of the command, run here."""
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(signals, "install", lambda: None)

    def run(*words: str) -> tuple[int, str]:
        code = command.run_guarded(command.parse(words))
        return code, capsys.readouterr().err

    return run


def _config(folder: Path) -> Path:
    path = folder.parent / "mine.yaml"
    shape = "{vocab_size: 300, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 6,\n"
    shape += "  partial_rotary_factor: 0.5, max_position_embeddings: 64}"
    corpus = write_corpus(folder.parent / "in")
    path.write_text(
        f"name: mine\nmodel: {shape}\ninit: {{method: exact, source: {folder}}}\ntrain: {{sequence_length: 64}}\n"
        f"data: {{sources: {{web: {{type: jsonl, path: {corpus}}}}}, tasks: 1}}\nbudget: {{max_tokens: 9000}}\n"
        "finetune: {budget: {max_tokens: 9000}, method: full}\n"
    )
    return path


@pytest.mark.parametrize("name", WRONG)
def test_a_model_folder_that_cannot_be_read_is_refused_by_every_verb(name, folder, tmp_path, say):
    spoil, words = WRONG[name]
    spoil(folder)
    config = str(_config(folder))
    asked = [["data", config], ["init", config], ["plan", config], ["grow", str(folder), str(tmp_path / "grown")]]
    asked += [[verb, config, "--dry-run"] for verb in ("data", "init", "pretrain")]
    for verb in ("export", "finetune"):
        asked += [[verb, config, f"{verb}.model={folder}"], [verb, config, f"{verb}.model={folder}", "--dry-run"]]
    asked += [[verb, config, f"{verb}.model={folder}", "--dry-run"] for verb in ("evaluate", "quantize")]
    asked += [["sample", config, f"sample.model={folder}"]]
    for line in asked:
        code, error = say(*line)
        assert code == WRONG_INPUT, (line, error)
        assert error.count("\n") == 1, (line, error)
        assert words in error, (line, error)
    assert not (tmp_path / "grown").exists()


def test_a_source_that_is_sound_passes_the_same_checks(folder, say):
    config = str(_config(folder))
    for verb in ("data", "init"):
        code, error = say(verb, config, "--dry-run")
        assert code == 0, error


STRANGE = ["x", "32", [32], {"a": 1}, True, float("nan"), float("inf"), -1, 10**400, 1e300, 0.5, None]


@pytest.mark.parametrize("key", [*SHAPE.to_hf(), "rope_scaling"])
def test_any_value_in_config_json_is_read_or_refused_in_one_sentence(key, folder):
    for value in STRANGE:
        _set(folder, **{key: value})
        refused = ""
        try:
            load_network(folder)
        except (UnreadableModel, ImpossibleShape) as error:
            refused = str(error)
        assert len(refused) < 600


@pytest.mark.parametrize("index", [[], {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": None}, {}])
def test_an_index_of_another_type_is_refused(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableModel, match=r"model\.safetensors\.index\.json"):
        open_model(folder)


@pytest.mark.parametrize("size", [65, 97])
def test_a_vocabulary_of_characters_grows(size, tmp_path, say):
    from dataclasses import replace

    shape = replace(SHAPE, vocab_size=size)
    save_folder(tmp_path / "small", Transformer(shape).initialize(3).state_dict(), shape, None, "<|endoftext|>")
    code, error = say("grow", str(tmp_path / "small"), str(tmp_path / "grown"), "model.num_hidden_layers=3")
    assert code == 0, error
    assert open_model(tmp_path / "grown")[0] == replace(shape, num_hidden_layers=3, num_key_value_heads=4)


def test_a_tokenizer_that_is_trained_needs_every_byte(folder, say):
    config = _config(folder)
    config.write_text(config.read_text().replace("init: {method: exact, source:", "init: {method: random} #"))
    code, error = say("data", str(config), "--dry-run", "model.vocab_size=97")
    assert code == WRONG_INPUT
    assert "model.vocab_size is 97; expected at least 257" in error
