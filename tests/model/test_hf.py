"""Model folders: transformers loads them and agrees; one file, shards and half precision are read, the rest refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.config import ImpossibleShape, ModelConfig, UnreadableModel
from model.hf import WEIGHTS, load_config, load_network, open_model, open_state, save_folder
from model.special_tokens import token_id
from model.transformer import Transformer

END = "<|endoftext|>"
CONFIG = ModelConfig(320, 40, 80, 2, 4, num_key_value_heads=2, partial_rotary_factor=0.6, max_position_embeddings=64)


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["def add(a, b):\n    return a + b\n"] * 20, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def folder(tmp_path: Path, tokenizer_json: Path, network_of) -> Path:
    path = tmp_path / "model"
    save_folder(path, network_of(CONFIG, dtype=torch.float32).state_dict(), CONFIG, tokenizer_json, END, "float32")
    return path


def test_transformers_loads_the_folder_and_computes_the_same_logits(folder: Path) -> None:
    ours, theirs = load_network(folder), AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert type(theirs).__name__ == "PhiForCausalLM"
    assert theirs.dtype == torch.float32
    ids = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_transformers_tokenizes_and_generates_from_the_folder(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    text = "def add(a, b): return a"
    prompt = tokenizer(text, return_tensors="pt")
    assert tokenizer.decode(prompt["input_ids"][0]) == text
    assert tokenizer.eos_token == END
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == 0
    written = theirs.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    ours = list(load_network(folder).generate(prompt["input_ids"][0], 8, temperature=0, eos_token_id=0))
    assert ours == [token for token in written.tolist() if token != 0]


def test_the_folder_holds_what_users_of_the_hub_expect(folder: Path) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert load_config(folder) == CONFIG


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tensors_are_stored_and_read_in_their_dtype(dtype: str, tmp_path: Path, network_of) -> None:
    state = network_of(CONFIG, dtype=torch.float32).state_dict()
    save_folder(tmp_path / "m", iter(state_in_order(state)), CONFIG, None, END, dtype)
    read, theirs = open_state(tmp_path / "m"), load_file(tmp_path / "m" / WEIGHTS)
    assert set(read) == set(theirs) == set(state)
    for name, tensor in state.items():
        assert read[name].dtype == getattr(torch, dtype)
        assert torch.equal(read[name], tensor.to(getattr(torch, dtype)))
        assert torch.equal(read[name], theirs[name])
    assert load_network(tmp_path / "m", torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_a_device_gets_each_tensor_in_its_final_numbers(folder) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class OnDevice(TorchDispatchMode):
        found: list[torch.Tensor]

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function.name().startswith("aten::_to_copy"):
                self.found += [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.device.type == "meta"]
            return out

    with OnDevice() as mode:
        mode.found = []
        network = load_network(folder, torch.bfloat16, device="meta")
    assert len(mode.found) == len(CONFIG.tensor_shapes())
    assert {tensor.dtype for tensor in mode.found} == {torch.bfloat16}
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_a_tied_model_is_stored_once_and_ties_again_wherever_it_is_loaded(tmp_path: Path, network_of) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    network = network_of(config, dtype=torch.float32)
    save_folder(tmp_path / "m", network.state_dict(), config, None, END)
    assert "lm_head.weight" not in load_file(tmp_path / "m" / WEIGHTS)
    ids = torch.arange(20)[None]
    loaded, theirs = load_network(tmp_path / "m"), AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded(ids), network(ids))
        assert theirs(ids).logits.allclose(network(ids), atol=1e-5)


TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)


def tied_folder(folder: Path, network: Transformer) -> dict[str, torch.Tensor]:
    """Writes the folder of a network whose head is its embedding; returns its tensors."""
    save_folder(folder, network.state_dict(), TIED, None, END)
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("names", [("model.embed_tokens.weight", "lm_head.weight"), ("lm_head.weight",)])
def test_a_tied_matrix_is_found_under_both_of_its_names_or_the_heads_alone(
    names: tuple[str, ...], tmp_path: Path, network_of, caplog: pytest.LogCaptureFixture
) -> None:
    """Older transformers store it twice, safetensors' `save_model` under the first name of the alphabet."""
    network = network_of(TIED, dtype=torch.float32)
    state = tied_folder(tmp_path / "m", network)
    matrix = state.pop("model.embed_tokens.weight")
    save_file(state | {name: matrix.clone() for name in names}, tmp_path / "m" / WEIGHTS)
    loaded, theirs = load_network(tmp_path / "m"), AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    config, tensors = open_model(tmp_path / "m")
    assert config == loaded.config == TIED
    assert list(map(len, (tensors, config.tensor_shapes()))) == [len(state) + 1] * 2
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids), network(ids))
        assert theirs(ids).logits.allclose(network(ids), atol=1e-5)
    assert not caplog.records


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("difference", [1.0, 1e-3])
def test_a_tied_config_with_an_own_head_is_read_as_untied_with_one_line(
    difference: float, sharded: bool, tmp_path: Path, network_of, caplog: pytest.LogCaptureFixture
) -> None:
    """What merging an adapter into a tied model leaves (transformers 45156): transformers 5 uses both matrices."""
    folder = tmp_path / "m"
    state = tied_folder(folder, network_of(TIED, dtype=torch.float32))
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["lm_head.weight"][-1, 3] += difference  # the last row of the last piece that is compared
    save_file(state, folder / WEIGHTS)
    if sharded:
        in_shards(folder)
    loaded, theirs = load_network(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert load_config(folder) == loaded.config == CONFIG
    assert torch.equal(loaded.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(loaded.model.embed_tokens.weight, state["model.embed_tokens.weight"])
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert theirs(ids).logits.allclose(loaded(ids), atol=1e-5)
    assert [record.levelname for record in caplog.records if record.name == "model.hf"] == ["WARNING"]
    assert "read as tie_word_embeddings=false" in caplog.text


def test_a_head_that_only_its_dtype_tells_from_the_embedding_is_tied(tmp_path: Path, network_of) -> None:
    state = tied_folder(tmp_path / "m", network_of(TIED, dtype=torch.float32))
    half = state["model.embed_tokens.weight"].half()
    save_file(state | {"model.embed_tokens.weight": half, "lm_head.weight": half.float()}, tmp_path / "m" / WEIGHTS)
    assert load_config(tmp_path / "m").tie_word_embeddings


def test_an_own_head_of_another_shape_is_named(tmp_path: Path, network_of) -> None:
    state = tied_folder(tmp_path / "m", network_of(TIED, dtype=torch.float32))
    save_file(state | {"lm_head.weight": torch.ones(330, 40)}, tmp_path / "m" / WEIGHTS)
    with pytest.raises(UnreadableModel, match=r"lm_head.weight has shape \(330, 40\), but its config says \(320, 40\)"):
        load_network(tmp_path / "m")


@pytest.mark.parametrize("flag", [{"tie_word_embeddings": False}, {}])
def test_a_head_that_an_untied_config_misses_is_an_error_with_the_key(flag: dict, tmp_path: Path, network_of) -> None:
    """Phi's default, where the flag is absent, is false."""
    tied_folder(tmp_path / "m", network_of(TIED, dtype=torch.float32))
    content = json.loads((tmp_path / "m" / "config.json").read_text())
    del content["tie_word_embeddings"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(content | flag))
    with pytest.raises(
        UnreadableModel, match=r"lacks 1 tensors, first 'lm_head.weight' \(tie_word_embeddings is false"
    ):
        open_model(tmp_path / "m")


def state_in_order(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(name, state[name]) for name in CONFIG.tensor_shapes()]


def test_training_a_loaded_network_leaves_its_file_alone(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    network = load_network(folder)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    assert network.lm_head.weight.requires_grad
    assert (folder / WEIGHTS).read_bytes() == before


def in_shards(folder: Path) -> None:
    """Parts the one file of a folder in two, with the index that names them."""
    state, index = load_file(folder / WEIGHTS), {}
    (folder / WEIGHTS).unlink()
    for number, names in enumerate((sorted(state)[:10], sorted(state)[10:])):
        save_file({name: state[name] for name in names}, folder / f"model-{number}.safetensors")
        index |= dict.fromkeys(names, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_shards_with_an_index_are_read(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    in_shards(folder)
    loaded = load_network(folder).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UnreadableModel, match=r"lacks model-1.safetensors"):
        open_state(folder)


def test_a_pickle_checkpoint_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(UnreadableModel, match=r"pytorch_model.bin.*safetensors revision.*save_pretrained"):
        open_state(folder)


def test_another_family_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(ImpossibleShape, match=r"'gemma3'"):
        load_network(folder)


def test_damaged_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnreadableModel, match=r"model.safetensors is damaged"):
        open_state(folder)
    with pytest.raises(UnreadableModel, match=r"no config.json"):
        load_config(tmp_path / "nowhere")


def test_tensors_that_do_not_fit_the_config_are_named(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 3}))
    with pytest.raises(UnreadableModel, match=r"lacks 14 tensors, first 'model.layers.2"):
        load_network(folder)
    (folder / "config.json").write_text(json.dumps(content | {"intermediate_size": 81}))
    with pytest.raises(UnreadableModel, match=r"model.layers.0.mlp.fc1.weight has shape"):
        load_network(folder)


def test_an_interrupted_writer_leaves_no_model(tmp_path: Path, network_of) -> None:
    tensors = state_in_order(network_of(CONFIG).state_dict())
    with pytest.raises(ValueError, match=r"ended before 'lm_head.bias'"):
        save_folder(tmp_path / "m", tensors[:-1], CONFIG, None, END, "float32")
    with pytest.raises(ValueError, match=r"expected 'model.embed_tokens.weight'"):
        save_folder(tmp_path / "m", tensors[1:], CONFIG, None, END, "float32")
    with pytest.raises(UnreadableModel, match=r"neither"):
        open_state(tmp_path / "m")


def test_an_end_of_text_that_the_tokenizer_lacks_is_refused(tmp_path: Path, tokenizer_json: Path, network_of) -> None:
    assert token_id(tokenizer_json, END) == 0
    with pytest.raises(ValueError, match=r"no token '</s>'"):
        save_folder(tmp_path / "m", network_of(CONFIG).state_dict(), CONFIG, tokenizer_json, "</s>", "float32")


def test_a_value_past_the_end_of_float16_is_refused_and_not_stored_as_infinity(tmp_path: Path, network_of) -> None:
    state = dict(network_of(CONFIG).state_dict())
    state["lm_head.bias"] = torch.full_like(state["lm_head.bias"], 70_000.0)
    with pytest.raises(UnreadableModel, match=r"lm_head.bias has a value of 70000, and float16 ends at 65504"):
        save_folder(tmp_path / "m", state, CONFIG, None, "", dtype="float16")
    save_folder(tmp_path / "n", state, CONFIG, None, "", dtype="bfloat16")
    assert open_state(tmp_path / "n")["lm_head.bias"].isfinite().all()
