"""The init stage: what the small model knew is still there, or the stage fails and says why."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from making import build, build_init, made_step

from model.config import UnreadableModel
from pipeline import config as configs
from pipeline import grow, stages
from pipeline.init import source_files
from pipeline.run_stage import run_stage
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import Step
from pipeline.system.errors import UserError

SMALL = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
LARGE = {**SMALL, "hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 4, "partial_rotary_factor": 0.4}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Hugging Face folder of a small random Phi whose gains and biases are not the trivial ones."""
    import torch

    from model.config import ModelConfig
    from model.hf import save_folder
    from model.transformer import Transformer

    shape = ModelConfig(vocab_size=512, max_position_embeddings=64, **SMALL)
    network = Transformer(shape).initialize(7)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "source"
    folder.mkdir()
    save_folder(folder, network.state_dict(), shape, None, "<|endoftext|>")
    return folder


@pytest.fixture
def data(monkeypatch, tmp_path) -> Step:
    """Real token shards of a few standard-library modules in place of the data stage."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("driver", Path(__file__).parent / "pretrain_driver.py")
    assert spec is not None
    assert spec.loader is not None
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "root"))
    step = made_step("data", 1, driver.make_data)
    monkeypatch.setattr("pipeline.stages.data_step", lambda config: step)
    return step


def _config(init: dict, shape: dict | None = None, **sections) -> configs.Config:
    model = {"vocab_size": 512, "max_position_embeddings": 64, **(shape or LARGE)}
    train = {"sequence_length": 64, "global_batch_tokens": 256}
    values = {"name": "test", "model": model, "init": init, "train": train, **sections}
    return configs.from_values(values, where="test")


def _build(config: configs.Config) -> dict:
    return build_init(config)


def test_exact_growth_keeps_the_function_and_the_manifest_says_so(source, data):
    manifest = _build(_config({"method": "exact", "source": str(source)}))
    assert manifest["function_preserving"] is True
    assert manifest["max_rel_logit_diff"] <= 1e-5
    assert manifest["grown_bits_per_byte"] == pytest.approx(manifest["source_bits_per_byte"], abs=1e-4)
    assert manifest["parameters"]["grown"] > manifest["parameters"]["source"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(manifest["outputs"])


def test_growth_gives_the_same_bytes_twice(source, data, monkeypatch, tmp_path):
    config = _config({"method": "exact", "source": str(source)})
    first = _build(config)["content_hash"]
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "second"))
    assert _build(config)["content_hash"] == first


def test_a_method_that_claims_exactness_and_misses_its_tolerance_fails_the_stage(source, data):
    config = _config({"method": "exact", "source": str(source), "tolerance": 1e-30})
    with pytest.raises(UserError, match="claims to keep the function"):
        _build(config)
    assert not stages.init_step(config).finished


def test_fresh_weights_claim_nothing_and_are_measured_all_the_same(data):
    manifest = _build(_config({"method": "random"}))
    assert manifest["function_preserving"] is False
    assert manifest["max_abs_logit_diff"] is None
    assert 2.0 < manifest["grown_bits_per_byte"] < 10.0


def test_another_source_content_is_another_folder(source, data):
    config = _config({"method": "exact", "source": str(source)})
    before = stages.init_step(config).fingerprint
    weights = source / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert stages.init_step(config).fingerprint != before


@pytest.mark.parametrize(
    ("init", "shape", "words"),
    [
        ({"method": "exact"}, LARGE, "init.source"),
        ({"method": "exakt"}, LARGE, "did you mean 'exact'"),
        ({"method": "exact", "source": "./nowhere"}, LARGE, "neither a folder"),
        ({"method": "exact", "options": {"noize": 1}}, LARGE, "noize"),
    ],
)
def test_a_wrong_init_section_is_refused_by_name(data, init, shape, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        _build(_config(init, shape))


def test_what_cannot_be_exact_is_refused_by_name(source, data):
    smaller = {**LARGE, "hidden_size": 24, "head_dim": 8, "partial_rotary_factor": 0.5}
    with pytest.raises(UserError, match="hidden_size"):
        _build(_config({"method": "exact", "source": str(source)}, smaller))


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(data):
    with pytest.raises(UserError, match=r"512.*model\.vocab_size is 300"):
        _build(_config({"method": "random"}, {**LARGE, "vocab_size": 300}))


def test_growth_keeps_the_vocabulary(source, data):
    with pytest.raises(UserError, match=r"model\.vocab_size=512"):
        _build(_config({"method": "exact", "source": str(source)}, {**LARGE, "vocab_size": 600}))


def test_missing_data_is_said_with_the_command(data):
    with pytest.raises(UserError, match=r"hornbook data my\.yaml"):
        run_stage("init", _config({"method": "random"}), "my.yaml")


def test_a_missing_source_experiment_is_said_with_its_price(data, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\nmodel: {vocab_size: 512, hidden_size: 32, intermediate_size: 64, "
                    "num_hidden_layers: 2, num_attention_heads: 4}\nbudget: {max_gpu_hours: 0.5}\n")  # fmt: skip
    build(data, experiment="test")
    with pytest.raises(UserError, match=r"at most 0\.5 GPU-hours.*init\.train_source=true"):
        run_stage("init", _config({"method": "exact", "source": str(path)}), "my.yaml")


def test_a_source_experiment_inherits_data_tokenizer_and_seed(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\nseed: 9\nmodel: {vocab_size: 512, hidden_size: 32, intermediate_size: 64, "
                    "num_hidden_layers: 2, num_attention_heads: 4}\nbudget: {max_gpu_hours: 0.5}\n")  # fmt: skip
    asker = _config(
        {"method": "exact", "source": str(path), "source_overrides": {"budget": {"max_gpu_hours": 0.25}}},
        seed=4,
        data={"tasks": 3},
        tokenizer={"vocab_size": 300},
    )
    source = stages.source_config(asker)
    assert (source.seed, source.data.tasks, source.tokenizer.vocab_size) == (4, 3, 300)
    assert source.budget.max_gpu_hours == 0.25


def test_a_source_finds_its_own_source_beside_itself_and_never_names_itself(tmp_path):
    text = "name: {0}\nmodel: {{vocab_size: 512, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}}\nbudget: {{max_gpu_hours: 0.5}}\n"  # fmt: skip  # noqa: E501
    (tmp_path / "a.yaml").write_text(text.format("a"))
    (tmp_path / "b.yaml").write_text(text.format("b") + "init: {method: exact, source: a.yaml}\n")
    config = _config({"method": "exact", "source": str(tmp_path / "b.yaml")})
    assert stages.source_config(stages.source_config(config)).name == "a"
    (tmp_path / "a.yaml").write_text(text.format("a") + "init: {method: exact, source: a.yaml}\n")
    config = _config({"method": "exact", "source": str(tmp_path / "a.yaml")})
    with pytest.raises(UserError, match="names the file itself"):
        stages.source_config(config)


def test_a_source_has_the_hours_its_config_states_whatever_else_was_trained(data, tmp_path):
    """Another experiment trained the same shape for longer, or the same run was extended: neither is taken."""
    import json

    path = tmp_path / "small.yaml"
    path.write_text("name: small\nseed: 9\nmodel: {vocab_size: 512, hidden_size: 32, intermediate_size: 64, "
                    "num_hidden_layers: 2, num_attention_heads: 4}\nbudget: {max_gpu_hours: 0.02}\n")  # fmt: skip

    def source(hours: float) -> configs.Config:
        overrides = {"budget": {"max_gpu_hours": hours}}
        return stages.source_config(_config({"source": str(path), "source_overrides": overrides}))

    def train(config: configs.Config, hours: float) -> Path:
        folder = stages.pretrain_step(config).path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(
            json.dumps({"inputs": {}, "outputs": {}, "config": {}, "stopped_by": "gpu_hours", "max_gpu_hours": hours})
        )
        return folder

    build(data, experiment="test")
    by_hand = replace(source(0.02), budget=replace(source(0.02).budget, apart=None))
    ours = train(source(0.02), 0.02)
    train(source(0.07), 0.07)
    assert stages.pretrain_step(source(0.02)).path == ours
    assert stages.is_trained(source(0.02))
    shutil.rmtree(ours)
    taken = train(by_hand, 0.02)  # `hornbook pretrain small.yaml`
    assert stages.pretrain_step(source(0.02)).path == taken
    train(by_hand, 0.09)  # and extended since
    assert not stages.is_trained(source(0.02))
    raised = replace(source(0.02), budget=replace(source(0.02).budget, max_gpu_hours=0.05))
    assert stages.pretrain_step(raised).path != stages.pretrain_step(source(0.02)).path


def test_the_stage_leaves_links_and_a_ledger(data, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.reporting.page.write", lambda config: None)  # these shards come without a funnel
    build(data, experiment="test")
    config = _config({"method": "random"})
    run_stage("init", config, "my.yaml")
    experiment = Experiment(config)
    assert experiment.stage_folder("init") == stages.init_step(config).path.resolve()
    assert experiment.ledger_path.is_file()
    assert "next: hornbook pretrain my.yaml" in capsys.readouterr().out
    run_stage("init", config, "my.yaml")
    assert "up to date" in capsys.readouterr().out


def test_grow_works_with_no_experiment_around_it(source, tmp_path, capsys):
    target = tmp_path / "grown"
    words = [f"model.{k}={v}" for k, v in LARGE.items()]
    grow.run(str(source), str(target), words, text_path=None)
    assert (target / "model.safetensors").is_file()
    assert "largest logit difference" in capsys.readouterr().out
    with pytest.raises(UserError, match="not an empty folder"):
        grow.run(str(source), str(target), words, text_path=None)


def test_grow_keeps_an_own_head_of_a_source_that_calls_itself_tied(source, tmp_path):
    """transformers 5 uses both matrices of such a folder; the growth gate alone would compare two wrong models."""
    import json

    import torch
    from transformers import AutoModelForCausalLM

    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))
    grow.run(str(source), str(tmp_path / "grown"), [f"model.{k}={v}" for k, v in LARGE.items()], text_path=None)
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["tie_word_embeddings"] is False
    ids = torch.arange(60)[None]
    with torch.no_grad():
        before, after = (AutoModelForCausalLM.from_pretrained(p)(ids).logits for p in (source, tmp_path / "grown"))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.parametrize("flag", [True, False])
def test_the_gate_notices_a_loader_that_throws_an_own_head_away(flag, source, tmp_path, monkeypatch):
    """The fault that the gate once reported as 0.0, because it compared two equally wrong networks."""
    import json

    monkeypatch.setattr("model.hf._has_own_head", lambda folder: False)
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": flag}))
    words = [f"model.{k}={v}" for k, v in LARGE.items()]
    if flag:
        with pytest.raises(UserError, match=r"claims to keep the function, but logits moved by"):
            grow.run(str(source), str(tmp_path / "grown"), words, text_path=None)
        assert not list(tmp_path.glob("*grown*"))
    else:
        grow.run(str(source), str(tmp_path / "grown"), words, text_path=None)


def test_the_gate_prints_its_cost_and_takes_no_more_text_than_that_allows(source, tmp_path, monkeypatch, capsys):
    words = [f"model.{k}={v}" for k, v in LARGE.items()]
    grow.run(str(source), str(tmp_path / "grown"), words, text_path=None)
    assert "gate: 32 windows of 64 tokens: 0.00" in capsys.readouterr().out
    monkeypatch.setattr("model.growth.gate.MAX_FLOPS", 1e6)
    monkeypatch.setattr("pipeline.system.progress.LINE_EVERY_SECONDS", 0.0)
    grow.run(str(source), str(tmp_path / "again"), words, text_path=None)
    printed, lines = capsys.readouterr()
    assert "gate: 2 windows of 16 tokens (of 32 of 64): " in printed
    assert "of at most 1e-06 TFLOP" in printed
    assert re.search(r"^  gate 100%  .* FLOP/s  0 s to the end$", lines, re.MULTILINE)


def test_grow_that_is_refused_leaves_nothing_behind(source, tmp_path):
    with pytest.raises(UserError):
        grow.run(str(source), str(tmp_path / "grown"), ["model.num_hidden_layers=1"], text_path=None)
    assert not list(tmp_path.glob("*grown*"))


def test_a_growth_that_is_killed_leaves_nothing_that_is_taken_for_a_model(tmp_path):
    import os
    import signal
    import subprocess
    import sys
    import time

    from model.config import ModelConfig
    from model.hf import save_folder
    from model.transformer import Transformer

    shape = ModelConfig(8192, 256, 1024, 4, 4, max_position_embeddings=64)  # large enough to be caught in the act
    (tmp_path / "source").mkdir()
    save_folder(tmp_path / "source", Transformer(shape).initialize(0).state_dict(), shape, None, "<|endoftext|>")
    words = ["model.hidden_size=640", "model.partial_rotary_factor=0.2", "model.num_hidden_layers=9"]
    command = [sys.executable, "-m", "pipeline", "grow", str(tmp_path / "source"), str(tmp_path / "grown"), *words]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not list(tmp_path.glob(".grown.*.part/*.partial")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.glob(".grown.*.part"))  # it was killed while it wrote
    assert not (tmp_path / "grown").exists()
    assert not list(tmp_path.glob(".grown.*.part/model.safetensors"))
    grow.run(str(tmp_path / "source"), str(tmp_path / "grown"), words, text_path=None)
    assert (tmp_path / "grown" / "model.safetensors").is_file()
    assert not list(tmp_path.glob(".grown.*.part"))  # nor do the dead process's gigabytes stay


def test_a_truncated_source_is_refused_by_name_and_nothing_is_left(source, tmp_path):

    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UnreadableModel, match=r"model\.safetensors is damaged"):
        grow.run(str(source), str(tmp_path / "grown"), ["model.num_hidden_layers=4"], text_path=None)
    assert not list(tmp_path.glob("*grown*"))


def test_a_source_grows_from_before_its_decay_where_that_is_asked_for(source, data, monkeypatch, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    from pipeline.storage.files import hash_file, hash_json

    step = made_step("pretrain", 1, lambda folder: {})
    early = step.path / "checkpoints" / "step-00000007"
    early.mkdir(parents=True)
    source.rename(step.path / "model")
    build(step, experiment="small")
    state = load_file(step.path / "model" / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in state.items()}, early / "model.safetensors")
    index = {"files": {"model.safetensors": {"sha256": hash_file(early / "model.safetensors")}}}
    (early / "checkpoint.json").write_text(json.dumps({**index, "sha256": hash_json(index)}))
    decay = {"kind": "decay", "step": 7, "end_step": 10, "progress": 0.0, "bound_by": "tokens"}
    (step.path / "decisions.jsonl").write_text(json.dumps(decay) + "\n")
    monkeypatch.setattr(stages, "pretrain_step", lambda config: step)
    monkeypatch.setattr(stages, "source_config", lambda config: config)
    monkeypatch.setattr("pipeline.init._whole_model", lambda step: step.path / "model")
    made = {
        which: _build(_config({"method": "exact", "source": "small.yaml", "source_checkpoint": which}))
        for which in ("final", "before_decay")
    }
    assert made["before_decay"]["source_checkpoint"] == {"which": "before_decay", "step": 7}
    assert made["final"]["source_checkpoint"] == {"which": "final"}
    assert made["before_decay"]["fingerprint"] != made["final"]["fingerprint"]
    assert made["before_decay"]["source_bits_per_byte"] != made["final"]["source_bits_per_byte"]
    assert all(manifest["max_rel_logit_diff"] <= 1e-5 for manifest in made.values())  # each against its own source
    damaged = _config({"method": "exact", "source": "small.yaml", "source_checkpoint": "before_decay"})
    with open(early / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"is damaged; set init\.source_checkpoint=final"):
        source_files(damaged)
    (early / "checkpoint.json").unlink()
    with pytest.raises(UserError, match=r"lacks its checkpoint of step 7; set init\.source_checkpoint=final"):
        source_files(damaged)


def test_a_folder_has_no_checkpoint_from_before_a_decay(source, data):
    with pytest.raises(UserError, match="needs a source experiment"):
        _build(_config({"method": "exact", "source": str(source), "source_checkpoint": "before_decay"}))


def test_growth_runs_in_one_thread_and_gives_the_others_back(source, tmp_path, monkeypatch):
    import torch

    seen = []
    monkeypatch.setattr("pipeline.system.progress.Progress.advance", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grow.run(str(source), str(tmp_path / "grown"), [f"model.{k}={v}" for k, v in LARGE.items()], text_path=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
