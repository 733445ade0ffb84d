"""Sources as they lie on the hub: the layouts of microsoft/phi-1, phi-1_5 and phi-2, in fp16, with their tokenizer."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from growth_checks import compare
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.config import ImpossibleShape, ModelConfig, UnreadableModel
from model.growth import GROWTH
from model.growth.rules import stream
from model.hf import load_config, load_network, open_state, save_folder

END = "<|endoftext|>"
VOCABULARY = 320  # rows of the embedding; the tokenizer has fewer entries, as Phi's (50,295 of 51,200)

# The keys and their old-style values as in the released config.json files; sizes are small here.
COMMON = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "hidden_act": "gelu_new",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "qk_layernorm": False,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.37.0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
LAYOUTS = {
    "phi-1": COMMON
    | {"_name_or_path": "microsoft/phi-1", "bos_token_id": None, "eos_token_id": None, "resid_pdrop": 0.0}
    | {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
    | {"num_key_value_heads": None, "partial_rotary_factor": 0.5},
    "phi-1_5": COMMON
    | {"_name_or_path": "microsoft/phi-1_5", "bos_token_id": None, "eos_token_id": None, "resid_pdrop": 0.0}
    | {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
    | {"num_key_value_heads": None, "partial_rotary_factor": 0.5},
    "phi-2": COMMON
    | {"_name_or_path": "microsoft/phi-2", "bos_token_id": 256, "eos_token_id": 256, "resid_pdrop": 0.1}
    | {"hidden_size": 40, "intermediate_size": 160, "num_attention_heads": 4, "num_hidden_layers": 4}
    | {"num_key_value_heads": 4, "partial_rotary_factor": 0.4},
}


def write_tokenizer(folder: Path) -> None:
    """Bytes, the end of text, and runs of spaces as added tokens: how Phi's tokenizer is made from GPT-2's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    runs = [" " * length for length in range(31, 1, -1)] + ["\t" * length for length in range(9, 1, -1)]
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "CodeGenTokenizer", "bos_token": END, "eos_token": END, "unk_token": END}
    settings |= {"add_prefix_space": False, "model_max_length": 2048}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ends = {"bos_token": END, "eos_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(ends))
    added = {run: len(alphabet) + 1 + index for index, run in enumerate(runs)}
    (folder / "added_tokens.json").write_text(json.dumps(added))


@pytest.fixture(params=LAYOUTS)
def released(request: pytest.FixtureRequest, tmp_path: Path, network_of) -> Path:
    """A folder with the files of a released Phi: phi-2 in two shards with an index, the others in one file."""
    folder = tmp_path / request.param
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LAYOUTS[request.param], indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True}))
    write_tokenizer(folder)
    state = {name: tensor.half() for name, tensor in network_of(load_config(folder)).state_dict().items()}
    if request.param == "phi-2":
        names, index = sorted(state), {}
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(part, file)
        total = sum(tensor.numel() * 2 for tensor in state.values())
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def larger(config: ModelConfig) -> ModelConfig:
    heads = config.head_size * 5 // 4
    width = config.num_attention_heads * heads
    return dataclasses.replace(
        config,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=config.num_hidden_layers + 1,
        partial_rotary_factor=config.rotary_dim / heads + 1e-9,
    )


def grow_folder(source: Path, target: Path) -> None:
    config = larger(load_config(source))
    pieces = stream(GROWTH["exact"](load_config(source), config), open_state(source), seed=0)
    save_folder(target, pieces, config, source / "tokenizer.json", END)


def test_a_released_phi_grows_and_transformers_agrees_on_both(released: Path, tmp_path: Path) -> None:
    grow_folder(released, tmp_path / "grown")
    before, after = load_network(released), load_network(tmp_path / "grown")
    ids = torch.randint(0, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))
    assert compare(before, after, ids).max_rel_logit_diff <= 1e-5
    with torch.no_grad():
        source = AutoModelForCausalLM.from_pretrained(released, dtype=torch.float32)
        grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float32)
        assert source(ids).logits.allclose(before(ids), atol=1e-4)
        assert (grown(ids).logits - source(ids).logits).abs().max() <= 1e-5 * source(ids).logits.abs().max()
    assert grown.model.rotary_emb.inv_freq.equal(source.model.rotary_emb.inv_freq)


def test_fp16_weights_reach_the_grown_model_without_a_detour_through_bf16(released: Path, tmp_path: Path) -> None:
    state = open_state(released)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    grow_folder(released, tmp_path / "grown")
    kept = open_state(tmp_path / "grown")["lm_head.weight"][:, : load_config(released).hidden_size]
    assert kept.equal(state["lm_head.weight"].float())
    assert not kept.equal(state["lm_head.weight"].bfloat16().float())


def test_the_tokenizer_comes_along_and_is_smaller_than_the_embedding(released: Path, tmp_path: Path) -> None:
    grow_folder(released, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert len(tokenizer) == 256 + 1 + 38 < VOCABULARY == load_config(tmp_path / "grown").vocab_size
    assert tokenizer.eos_token == END
    assert tokenizer.eos_token_id == json.loads((tmp_path / "grown" / "config.json").read_text())["eos_token_id"] == 256
    text = "def f(x):\n        return x\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_pickle_beside_no_safetensors_and_another_family_are_refused_by_name(released: Path) -> None:
    content = json.loads((released / "config.json").read_text())
    (released / "config.json").write_text(json.dumps(content | {"model_type": "phi3"}))
    with pytest.raises(ImpossibleShape, match=r"family 'phi3'.*microsoft/phi-1_5"):
        load_config(released)
    for file in released.glob("*.safetensors*"):
        file.unlink()
    (released / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnreadableModel, match=r"pytorch_model.bin.*can run code.*save_pretrained"):
        open_state(released)


def test_an_index_that_is_wrong_is_named_before_anything_is_grown(tmp_path: Path, network_of) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LAYOUTS["phi-2"]))
    state = network_of(load_config(tmp_path), dtype=torch.float32).state_dict()
    save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.wait": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(UnreadableModel, match=r"lacks 'lm_head.wait', which model.safetensors.index.json places there"):
        open_state(tmp_path)
    index.write_text(json.dumps({"weights": {}}))
    with pytest.raises(UnreadableModel, match=r"is no index of shards"):
        open_state(tmp_path)


def test_growth_that_breaks_off_leaves_nothing_that_loads(released: Path, tmp_path: Path) -> None:
    config = larger(load_config(released))

    def broken_off():
        for name, piece in stream(GROWTH["exact"](load_config(released), config), open_state(released), seed=0):
            if name == "model.final_layernorm.weight":
                raise KeyboardInterrupt
            yield name, piece

    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path / "grown", broken_off(), config, released / "tokenizer.json", END)
    with pytest.raises(UnreadableModel, match=r"neither model.safetensors"):
        load_network(tmp_path / "grown")
    grow_folder(released, tmp_path / "grown")
    assert load_network(tmp_path / "grown").config == load_config(tmp_path / "grown")
    assert not list((tmp_path / "grown").glob("*.partial"))
