"""Own documents end to end, as configs/domain-24gb.yaml has it: a folder of files, a public model with its own
tokenizer, replay against forgetting; and no private name in what leaves the machine."""

import json
from pathlib import Path

import pytest
import yaml
from data_corpus import prose
from processes import hornbook

from pipeline.storage.steps import read_manifest

pytest.importorskip("pypdf")
pytest.importorskip("trafilatura")
ROOT = Path(__file__).resolve().parents[2]
SECRET = "zanzibar"  # in every private name, and in no text
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


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


def _write_public_model(folder: Path) -> None:
    """A Phi folder as the hub has it, with a tokenizer that the data stage would not have trained."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from model.config import ModelConfig
    from model.hf import save_folder
    from model.transformer import Transformer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([prose(n) for n in range(300, 320)], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "own-tokenizer.json"))
    shape = ModelConfig(**SHAPE)
    save_folder(
        folder, Transformer(shape).initialize(1).state_dict(), shape, folder / "own-tokenizer.json", "<|endoftext|>"
    )


def _config(tmp_path: Path, documents: Path) -> Path:
    """The shipped config, its parts made small."""
    replay = tmp_path / "general.jsonl"
    lines = [json.dumps({"text": prose(1000 + n), "domain": f"site{n % 10}"}) for n in range(60)]
    replay.write_text("\n".join(lines))
    near = {"type": "jsonl", "path": str(replay), "group_key": "domain", "license": "MIT", "replay": True}
    values = {
        "base": str(ROOT / "configs" / "domain-24gb.yaml"),
        "name": "domain-test",
        "data": {
            "sources": {"documents": {"path": str(documents)}, "general": None, "nearby": near},
            "filters": {"gopher_repetition": None},  # these sentences are all of one form
            "validation": {"share": 0.2},
            "tasks": 2,
            "workers": 1,
        },
        "model": SHAPE,
        "init": {"source": str(tmp_path / "public-model")},
        "train": {"sequence_length": 64, "global_batch_tokens": 512, "warmup_steps": 3, "device": "cpu",
                  "precision": "32-true", "optimizer": "adamw", "activation_checkpointing": "none",
                  "mix": {"general": 0, "nearby": 0.3}},
        "budget": {"max_gpu_hours": None, "max_tokens": 12_000},
        "sample": {"prompts": ["The "], "max_new_tokens": 4},
    }  # fmt: skip
    path = tmp_path / "domain.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _hornbook(root: Path, *words: str) -> str:
    done = hornbook(*words, root=root, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_own_documents_go_from_files_to_a_model_and_their_names_stay_here(tmp_path):
    documents = tmp_path / f"{SECRET}-documents"
    _write_documents(documents)
    _write_public_model(tmp_path / "public-model")
    config = str(_config(tmp_path, documents))
    for stage in ("data", "init"):
        _hornbook(tmp_path, stage, config)
    output = _hornbook(tmp_path, "pretrain", config)

    run = tmp_path / "runs" / "domain-test"
    data, init, pretrain = (read_manifest(run / stage) for stage in ("data", "init", "pretrain"))
    own = data["sources"]["documents"]
    assert own["licenses"] == {"own": 24}  # all three kinds of file, each read as text
    assert data["documents"]["dropped"]["length"] == 1
    assert data["vocab_size"] == 400  # the public model's, not one trained on these texts
    assert init["function_preserving"] is True
    shares = pretrain["mix"]["stable"] or pretrain["mix"]["decay"]
    assert shares["documents"] == pytest.approx(0.7, abs=0.12)  # of some 130 windows
    replay = pretrain["replay"]["nearby"]
    assert replay["lost"] == pytest.approx(replay["after"] - replay["before"])
    assert f"replay nearby: {replay['before']:.4f} bits per byte before" in output
    assert pretrain["bits_per_byte"]["documents"] < pretrain["initial_bits_per_byte"]["documents"]

    page = (run / "report.html").read_text()
    assert "Kept and lost" in page
    outgoing = [run / "report.html", *(run / "pretrain" / "model").rglob("*"), *(run / "wandb").rglob("*")]
    files = [path for path in outgoing if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    leaks = [path.name for path in files if SECRET.encode() in path.read_bytes() or SECRET in path.name]
    assert leaks == []
