"""A model as others get it: loads without our code, says where it comes from, and llama.cpp computes the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from after_model import model_of
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.config import ModelConfig
from model.gguf import convert
from model.hf import load_config, load_network, save_folder
from model.transformer import Transformer
from pipeline import export
from pipeline.evaluation.model_input import copy_model
from pipeline.release.gguf import TYPES, dequantized, write_gguf
from pipeline.release.model_card import Lineage, model_card, modelfile
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError
from pipeline.tuning.data import TEMPLATE, add_template, render

TEXT = "def add(a, b):\n    return a + b\n"


@pytest.fixture
def exported(pretrained):
    config = pretrained("export.gguf=[f16]", "export.license=apache-2.0")
    run_stage("export", config, "small.yaml")
    return export.export_step(config, "small.yaml").path


def test_the_folder_loads_in_transformers_and_computes_the_same(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    theirs = AutoModelForCausalLM.from_pretrained(exported / "model")(ids).logits
    ours = load_network(exported / "model")(ids)
    assert (theirs - ours).abs().max() < 1e-4
    assert json.loads((exported / "model" / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )


def test_the_model_card_tells_the_lineage(exported):
    card = ModelCard((exported / "model" / "README.md").read_text())
    manifest = read_manifest(exported)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    text = str(card)
    for fingerprint in manifest["lineage"].values():
        assert fingerprint in text
    assert set(manifest["lineage"]) == {"data", "init", "pretrain"}
    for word in (
        "bits per byte",
        "Device-hours",
        "USD at 2 an hour",
        "PSF-2.0",
        "annealed",
        "small-f16.gguf",
        "Limits",
    ):
        assert word.lower() in text.lower()


def _snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def _run_in(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cards_transformers_lines_run_where_it_lies(exported):
    card = (exported / "model" / "README.md").read_text()
    for word in ("**transformers**", "**llama.cpp**", "**Ollama**", "**vLLM**", "vllm serve .", "ollama create small"):
        assert word in card
    (transformers, _) = _snippets(card)
    assert "Once upon a time" in _run_in(exported / "model", transformers)


def test_the_cards_llama_cpp_lines_run_where_it_lies(exported):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it is compiled on installation")
    (_, llama) = _snippets((exported / "model" / "README.md").read_text())
    assert _run_in(exported / "model", llama)


def test_a_modelfile_for_ollama_stands_beside_the_gguf_file_and_carries_the_chat_form(exported, pretrained):
    lines = (exported / "gguf" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./small-f16.gguf"
    assert (exported / "gguf" / "small-f16.gguf").is_file()
    assert 'PARAMETER stop "<|endoftext|>"' in lines
    assert 'TEMPLATE """{{ .Prompt }}"""' in lines
    chat = modelfile("m.gguf", 64, "<end>", "ours")
    form = chat.partition('TEMPLATE """')[2].partition('"""')[0]
    spoken = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    body, _, tail = form.partition("{{ end }}\n{{ end }}")
    one = body.replace("{{ range .Messages }}", "").partition('{{ if eq .Role "assistant" }}')
    said = "".join(
        one[0].replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"])
        + (one[2] if m["role"] == "assistant" else "") + "\n"
        for m in spoken
    )  # fmt: skip
    assert said + tail == render(spoken, "<end>", answer=True)
    assert "TEMPLATE" not in modelfile("m.gguf", 64, "<end>", "other")


def test_the_card_of_a_chat_model_asks_in_its_chat_form_and_one_without_gguf_says_how_to_get_it(exported):
    folder = shutil.copytree(exported / "model", exported.parent / "chat")
    add_template(folder)
    card = model_card(Lineage("m", 10, 64, chat=True))
    assert "export.gguf=[q8_0]" in card
    (transformers,) = _snippets(card)
    assert "### user\nWhat is a river?\n### assistant\n" in _run_in(folder, transformers)


def test_the_data_stages_card_and_attribution_come_along(exported, pretrained):
    from pipeline.stages import input_steps

    data = input_steps(pretrained())["data"].path
    for name, copies in {"data_card.md": ["dataset/README.md"], "ATTRIBUTION.md": ["dataset", "model"]}.items():
        for copy in copies:
            path = exported / copy if copy.endswith(".md") else exported / copy / name
            assert path.read_text() == (data / name).read_text()


def test_hugging_face_reads_the_data_stages_card_and_the_model_card_has_its_verdict(finished):
    folder, manifest = finished
    card = DatasetCard((folder / "data_card.md").read_text())
    assert card.data.license == "other"
    assert "gopher_quality" in str(card)
    assert "documents read" in str(card)
    account = json.loads((folder / "data.report.json").read_text())
    text = model_card(Lineage("m", 10, 8, data=manifest, account=account))
    assert account["licence"]["headline"] in text


def test_an_export_of_the_export_is_the_same_model_and_invents_no_lineage(exported, pretrained):
    config = pretrained(f"export.model={exported / 'model'}", "name=again")
    run_stage("export", config, "small.yaml")
    again = export.export_step(config, "small.yaml").path
    first, second = (load_network(folder / "model").state_dict() for folder in (exported, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dtype_is_what_the_config_asks_for(pretrained):
    config = pretrained("export.dtype=bfloat16")
    run_stage("export", config, "small.yaml")
    folder = export.export_step(config, "small.yaml").path / "model"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@torch.no_grad()
def test_both_matrices_of_a_model_that_calls_itself_tied_reach_every_form(pretrained, tmp_path):
    """What merging an adapter into a tied model leaves: one flag, two matrices. transformers 5 is the judge."""
    source = tmp_path / "merged"
    shutil.copytree(model_of(pretrained()).folder, source)
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))
    ids = torch.arange(1, 100)[None]
    theirs = AutoModelForCausalLM.from_pretrained(source)(ids).logits
    config = pretrained("export.gguf=[f16]", f"export.model={source}", f"quantize.model={source}")
    run_stage("export", config, "small.yaml")
    folder = export.export_step(config, "small.yaml").path
    assert json.loads((folder / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    again = AutoModelForCausalLM.from_pretrained(folder / "model")(ids).logits
    assert (again - theirs).abs().max() < 1e-4
    network = load_network(source)
    network.load_state_dict(dict(dequantized(next((folder / "gguf").iterdir()), network.config)))
    assert (network(ids) - theirs).abs().max() < 1e-2
    copy_model(model_of(config, "quantize"), tmp_path / "frame", "float32")
    assert (AutoModelForCausalLM.from_pretrained(tmp_path / "frame")(ids).logits - theirs).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("kind", "least", "most"), [("f16", 0.0, 1e-3), ("q8_0", 1e-4, 0.03), ("q4_0", 1e-3, 0.4)])
def test_a_gguf_file_holds_the_weights_as_its_kind_can(exported, tmp_path, kind, least, most):
    facts = write_gguf(exported / "model", tmp_path / "m.gguf", kind, "m")
    network, ids = load_network(exported / "model"), torch.arange(1, 100)[None]
    before = network(ids)
    network.load_state_dict(dict(dequantized(tmp_path / "m.gguf", network.config)))
    difference = float((network(ids) - before).abs().max() / before.abs().max())
    assert least <= difference < most
    assert facts["quantized_share"] == pytest.approx(0 if kind == "f16" else 0.98, abs=0.02)
    assert facts["bytes"] == (tmp_path / "m.gguf").stat().st_size


@pytest.mark.parametrize("kind", TYPES)
def test_llama_cpp_computes_the_same_logits(exported, tmp_path, kind):
    llama_cpp = pytest.importorskip("llama_cpp")
    import numpy as np

    write_gguf(exported / "model", tmp_path / "m.gguf", kind, "m")
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, logits_all=True, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    ids = llama.tokenize(TEXT.encode(), add_bos=False)
    assert ids == tokenizer(TEXT).input_ids
    llama.eval(ids)
    theirs = torch.from_numpy(np.array(llama.scores[: len(ids)]))
    network = load_network(exported / "model")
    network.load_state_dict(dict(dequantized(tmp_path / "m.gguf", load_config(exported / "model"))))
    ours = network(torch.tensor([ids]))[0].detach()
    # f16 caches and activations in 8 bits are llama.cpp's own; the weights are the same
    assert (theirs - ours).abs().max() / ours.abs().max() < (0.01 if kind == "f16" else 0.06)


SHAPES = {
    "llama": {"attention_bias": True, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }},
    "qwen2": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "olmo2": {},
    "smollm3": {"tie_word_embeddings": True},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("family", SHAPES)
def test_a_gguf_file_of_every_family_reads_back_and_llama_cpp_computes_its_logits(exported, tmp_path, family):
    shape = ModelConfig(
        load_config(exported / "model").vocab_size, 64, 96, 4, 4, 2, family=family, layer_norm_eps=1e-5,
        max_position_embeddings=256, **SHAPES[family],
    )  # fmt: skip
    network = Transformer(shape).initialize(3)
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_(0, 0.1)
    folder = tmp_path / "model"
    tokenizer_json = exported / "model" / "tokenizer.json"
    save_folder(folder, network.state_dict(), shape, tokenizer_json, "<|endoftext|>")
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    ids = torch.arange(1, 100)[None]
    rounded = load_network(folder)
    rounded.load_state_dict(dict(dequantized(tmp_path / "m.gguf", shape)))
    again = convert(tmp_path / "m.gguf", tmp_path / "again")
    assert (again.rope_scaling, again.tie_word_embeddings) == (shape.rope_scaling, shape.tie_word_embeddings)
    assert torch.equal(load_network(tmp_path / "again")(ids), rounded(ids))
    llama_cpp = pytest.importorskip("llama_cpp")
    import numpy as np

    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, logits_all=True, verbose=False)
    llama.eval(ids[0].tolist())
    theirs, ours = torch.from_numpy(np.array(llama.scores[: ids.shape[1]])), rounded(ids)[0]
    assert (theirs - ours).abs().max() / ours.abs().max() < 0.01


def test_the_chat_template_says_what_our_renderer_says(exported):
    add_template(exported / "model")
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Again"},
    ]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert theirs == render(messages, "<|endoftext|>", answer=True)
    assert tokenizer.chat_template == TEMPLATE


def test_gguf_refuses_a_shape_that_llama_cpp_does_not_know(tmp_path):
    shape = ModelConfig(64, 32, 64, 1, 2, head_dim=8)
    save_folder(tmp_path / "m", Transformer(shape).state_dict(), shape, None, "")
    with pytest.raises(UserError, match="heads x head size"):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", "m")
