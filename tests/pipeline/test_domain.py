"""Own documents end to end, as configs/domain-24gb.yaml and domain-smol.yaml have it: a folder of files, a public model
with its own tokenizer, replay against forgetting; and no private name in what leaves the machine. And a public model
grown, as configs/smol-360m.yaml has it. The models are small random ones of the configs' families."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_corpus import prose
from processes import hornbook
from public_model import TOKENS, write_public_model

from model.hf import load_config
from pipeline import config as configs
from pipeline.storage.steps import read_manifest

pytest.importorskip("pypdf")
pytest.importorskip("trafilatura")
ROOT = Path(__file__).resolve().parents[2]
SECRET = "zanzibar"  # in every private name, and in no text
SMALL = {"vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 128}
SHAPES = {  # of the public models
    "domain-24gb": {**SMALL, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "head_dim": 16},
    "domain-smol": {**SMALL, "hidden_size": 36, "intermediate_size": 64, "num_attention_heads": 3,
                    "num_key_value_heads": 1, "head_dim": 12},
    "smol-360m": {**SMALL, "hidden_size": 36, "intermediate_size": 96, "num_attention_heads": 9,
                  "num_key_value_heads": 3},
}  # fmt: skip
GROWN = {"hidden_size": 60, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 15,
         "num_key_value_heads": 5}  # fmt: skip
TRAIN = {"sequence_length": 64, "global_batch_tokens": 512, "warmup_steps": 3, "device": "cpu", "precision": "32-true",
         "optimizer": "adamw", "activation_checkpointing": "none"}  # fmt: skip


def _pdf(text: str) -> bytes:
    import io

    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(612, 792)
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = DictionaryObject(
        {NameObject("/F1"): DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})}
    )
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    lines = " ".join(f"({line}) Tj 0 -14 Td" for line in text.splitlines())
    content = DecodedStreamObject()
    content.set_data(f"BT /F1 9 Tf 40 760 Td {lines} ET".encode())
    page[NameObject("/Contents")] = writer._add_object(content)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def _write_documents(folder: Path) -> None:
    for number in range(8):
        group = folder / f"{SECRET}-project-{number}"
        group.mkdir(parents=True)
        (group / f"{SECRET}-plan.md").write_text(f"# Plan {number}\n\n{prose(number, 20)}\n")
        paragraphs = "".join(f"<p>{line}</p>" for line in prose(100 + number, 20).splitlines())
        page = (
            f"<html><head><title>Notes</title></head><body><article><h1>Notes</h1>{paragraphs}</article></body></html>"
        )
        (group / f"{SECRET}-notes.html").write_text(page)
        (group / f"{SECRET}-paper.pdf").write_bytes(_pdf(prose(200 + number, 20)))
    (folder / f"{SECRET}-project-0" / f"{SECRET}-short.md").write_text("Too short.")


def _public_model(folder: Path, name: str) -> str:
    """A stand-in for what the shipped config starts from: the same family and settings, few parameters."""
    shape = dataclasses.asdict(configs.load(ROOT / "configs" / f"{name}.yaml").model)
    write_public_model(folder, shape | SHAPES[name])
    return str(folder)


def _general(path: Path) -> dict[str, Any]:
    lines = [json.dumps({"text": prose(1000 + n), "domain": f"site{n % 10}"}) for n in range(60)]
    path.write_text("\n".join(lines))
    return {"type": "jsonl", "path": str(path), "group_key": "domain", "license": "MIT", "replay": True}


def _config(tmp_path: Path, name: str, documents: Path) -> Path:
    """The shipped config, its parts made small."""
    near = _general(tmp_path / "general.jsonl")
    values = {
        "base": str(ROOT / "configs" / f"{name}.yaml"),
        "name": "domain-test",
        "data": {
            "sources": {"documents": {"path": str(documents)}, "general": None, "nearby": near},
            "filters": {"gopher_repetition": None},  # these sentences are all of one form
            "validation": {"share": 0.2},
            "tasks": 2,
            "workers": 1,
        },
        "model": SHAPES[name],
        "init": {"source": _public_model(tmp_path / "public-model", name)},
        "train": {**TRAIN, "mix": {"general": 0, "nearby": 0.3}},
        "budget": {"max_gpu_hours": None, "max_tokens": 12_000},
        "sample": {"prompts": ["The "], "max_new_tokens": 4},
    }
    path = tmp_path / "domain.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _hornbook(root: Path, *words: str) -> str:
    done = hornbook(*words, root=root, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["domain-24gb", "domain-smol"])
def test_own_documents_go_from_files_to_a_model_and_their_names_stay_here(tmp_path, name):
    documents = tmp_path / f"{SECRET}-documents"
    _write_documents(documents)
    config = str(_config(tmp_path, name, documents))
    for stage in ("data", "init"):
        _hornbook(tmp_path, stage, config)
    output = _hornbook(tmp_path, "pretrain", config)

    run = tmp_path / "runs" / "domain-test"
    data, init, pretrain = (read_manifest(run / stage) for stage in ("data", "init", "pretrain"))
    own = data["sources"]["documents"]
    assert own["licenses"] == {"own": 24}  # all three kinds of file, each read as text
    assert data["documents"]["dropped"]["length"] == 1
    assert data["vocab_size"] == TOKENS  # the public model's, not one trained on these texts
    assert init["function_preserving"] is True
    shares = pretrain["mix"]["stable"] or pretrain["mix"]["decay"]
    assert shares["documents"] == pytest.approx(0.7, abs=0.12)  # of some 130 windows
    replay = pretrain["replay"]["nearby"]
    assert replay["lost"] == pytest.approx(replay["after"] - replay["before"])
    assert f"replay nearby: {replay['before']:.4f} bits per byte before" in output
    assert pretrain["bits_per_byte"]["documents"] < pretrain["initial_bits_per_byte"]["documents"]

    page = (run / "report.html").read_text()
    assert "Kept and lost" in page
    _hornbook(tmp_path, "report", config, "--share")
    outgoing = [
        run / "shared" / "report.html",
        run / "shared" / "report.json",
        *(run / "pretrain" / "model").rglob("*"),
        *(run / "wandb").rglob("*"),
    ]
    files = [path for path in outgoing if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    leaks = [path.name for path in files if SECRET.encode() in path.read_bytes() or SECRET in path.name]
    assert leaks == []


@pytest.mark.slow
def test_a_public_model_is_grown_and_trained_as_smol_360m_has_it(tmp_path):
    values = {
        "base": str(ROOT / "configs" / "smol-360m.yaml"),
        "name": "grown-test",
        "data": {
            "sources": {**dict.fromkeys(("fineweb_edu", "cosmopedia_v2", "python_edu")),
                        "nearby": _general(tmp_path / "general.jsonl")},
            "filters": {"gopher_repetition": None},
            "validation": {"share": 0.2},
            "tasks": 2,
            "workers": 1,
        },
        "model": SHAPES["smol-360m"] | GROWN,
        "init": {"source": _public_model(tmp_path / "public-model", "smol-360m")},
        "train": {**TRAIN, "mix": {"fineweb_edu": 0, "cosmopedia_v2": 0, "python_edu": 0, "nearby": 1}},
        "budget": {"max_gpu_hours": None, "max_tokens": 12_000},
    }  # fmt: skip
    config = tmp_path / "grown.yaml"
    config.write_text(yaml.safe_dump(values))
    for stage in ("data", "init", "pretrain"):
        _hornbook(tmp_path, stage, str(config))
    init, pretrain = (read_manifest(tmp_path / "runs" / "grown-test" / stage) for stage in ("init", "pretrain"))
    assert init["function_preserving"] is True
    assert init["max_rel_logit_diff"] < 1e-4
    assert init["parameters"]["grown"] > 2 * init["parameters"]["source"]
    assert pretrain["bits_per_byte"]["nearby"] < pretrain["initial_bits_per_byte"]["nearby"]
    model = load_config(tmp_path / "runs" / "grown-test" / "pretrain" / "model")
    assert (model.family, model.tie_word_embeddings, model.num_attention_heads) == ("llama", True, 15)
