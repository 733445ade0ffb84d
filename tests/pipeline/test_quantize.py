"""Smaller forms of a model: truly smaller, as measured, close to the original, and honest about what cannot be run."""

import json

import pytest
import torch
from after_model import model_of
from json_schema import report_of
from page_text import rows as page_rows

from model.hf import load_network
from pipeline import quantize
from pipeline.release import formats
from pipeline.release.formats import FORMATS, no_better_than, no_saving_lines
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError

pytest.importorskip("torchao")
KINDS = "quantize.kinds=[bf16,int8,int4,fp8,gguf-q4_0]"


@pytest.fixture
def network(pretrained):
    return load_network(model_of(pretrained()).folder)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "bits", "tolerance"), [("int8", 8.7, 0.03), ("int8-dynamic", 8.7, 0.05), ("int4", 6.1, 0.3)]
)
def test_a_format_takes_the_bytes_that_it_says_and_keeps_the_function(network, name, bits, tolerance, tmp_path):
    formats.torchao()
    ids = torch.arange(1, 65)[None]
    before = network(ids)
    matrices = sum(m.weight.numel() for n, m in network.named_modules() if formats.in_blocks(m, n))
    rest = formats.memory_bytes(network) - 4 * matrices
    FORMATS[name].apply(network, 32)
    assert (formats.memory_bytes(network) - rest) * 8 / matrices <= bits
    assert formats.quantized_share(network) == pytest.approx(matrices / network.config.parameters, rel=1e-6)
    after = network(ids)
    assert 0 < (after - before).abs().max() / before.abs().max() < tolerance
    (tmp_path / "config.json").write_text("{}")
    saved = formats.save(network, tmp_path, FORMATS[name], 32)
    assert saved == pytest.approx(formats.memory_bytes(network), rel=0.15)
    again = _load_state(tmp_path)
    network.load_state_dict(again, assign=True)
    assert torch.equal(network(ids), after)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"


def _load_state(folder):
    """The tensors that `formats.save` wrote, read by torchao."""
    from safetensors import safe_open
    from safetensors.torch import load_file
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = dict(file.metadata() or {})
    return unflatten_tensor_state_dict(load_file(folder / "model.safetensors"), metadata)[0]


def test_the_report_compares_every_format_and_names_what_cannot_be_run(pretrained, capsys):
    config = pretrained(KINDS)
    run_stage("quantize", config, "small.yaml")
    folder = quantize.quantize_step(config, "small.yaml").path
    manifest = read_manifest(folder)
    rows = {row["kind"]: row for row in manifest["rows"]}
    assert set(rows) == {quantize.BASE, *config.quantize.kinds}
    assert "fp8" in rows["fp8"]["unavailable"]
    assert "int8 runs here" in rows["fp8"]["unavailable"]
    base = rows[quantize.BASE]
    for name in ("bf16", "int8", "int4", "gguf-q4_0"):
        assert rows[name]["memory_bytes"] < base["memory_bytes"]
        assert rows[name]["disk_bytes"] < base["disk_bytes"]
        for task, score in base["scores"].items():
            if task.startswith("bits_per_byte"):
                assert rows[name]["scores"][task]["score"] == pytest.approx(score["score"], rel=0.1)
    assert base["cost_per_million_tokens"] == pytest.approx(1e6 / base["tokens_per_second"] / 3600 * 2.0, rel=1e-3)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder / "int8")
    assert type(theirs.model.layers[0].mlp.fc1.weight).__name__ == "Int8Tensor"
    text = (folder / "report.md").read_text()
    assert "| gguf-q4_0 |" in text
    assert "fp8" in text
    assert "not here" in capsys.readouterr().out
    found, page = report_of("small")
    assert found["quantize"]["rows"] == manifest["rows"]
    assert ("int8", f"{rows['int8']['disk_bytes'] / 1e6:.3f}") in [row[:2] for row in page_rows(page)]
    assert f"{rows['int8']['disk_bytes'] / base['disk_bytes']:.2f}x" in page
    with pytest.raises(UserError, match="quantized model"):
        run_stage("quantize", pretrained(f"quantize.model={folder / 'int8'}"), "small.yaml")


def test_an_unknown_format_is_named(pretrained):
    with pytest.raises(UserError, match="int8"):
        run_stage("quantize", pretrained("quantize.kinds=[int9]"), "small.yaml")


def test_a_format_that_another_beats_in_every_figure_is_named():
    def row(kind: str, disk: int, memory: int, speed: float | None, bits: float) -> dict:
        scores = {"bits_per_byte/code": {"score": bits}}
        return {"kind": kind, "disk_bytes": disk, "memory_bytes": memory, "tokens_per_second": speed, "scores": scores}

    rows = [row("as stored", 40, 40, 100.0, 1.0), row("bf16", 20, 20, 100.0, 1.0), row("int8", 21, 20, 60.0, 1.001),
            row("int4", 12, 12, 30.0, 1.1), {"kind": "fp8", "unavailable": "no card"}]  # fmt: skip
    for each in rows:
        each["no_better_than"] = no_better_than(each, rows)
    assert [each["no_better_than"] for each in rows] == ["bf16", None, "bf16", None, None]
    assert no_saving_lines(rows[1:]) == ["int8 saves nothing here: bf16 is no larger, no slower and no worse"]
