"""The one loader of tokenizers: what other programs left in the file changes no stage, and the file stays as it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from after_model import model_of
from data_corpus import made, make_config, prose, write_corpus
from tokenizers import Tokenizer, models

from pipeline import evaluate, finetune, grow, sample, stages
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import Encoder, load_tokenizer
from pipeline.corpus.tokenizing import _train, copy_tokenizer
from pipeline.evaluation.language_model import HeldOutText
from pipeline.run_stage import run_stage
from pipeline.storage.steps import Folder, read_manifest
from pipeline.system.errors import UserError
from pipeline.tuning.data import encode, read_sources

TRUNCATION = {"max_length": 64, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
PADDING = {
    "strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}  # fmt: skip
LEFT = {"truncation": {"truncation": TRUNCATION}, "padding": {"padding": PADDING}, "dropout": {}}


def leave(path: Path, state: str) -> bytes:
    """Puts into a tokenizer.json what another program leaves there; returns the file's bytes."""
    content = json.loads(path.read_text(encoding="utf-8")) | LEFT[state]
    if state == "dropout":
        content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content), encoding="utf-8")
    return path.read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    _train([prose(n) for n in range(20)], 380, path)
    return path


@pytest.fixture(params=LEFT)
def state(request) -> str:
    return request.param


@pytest.fixture
def left(plain, state, tmp_path) -> Path:
    """The same tokenizer with one kind of state left in its file."""
    path = tmp_path / "left" / "tokenizer.json"
    path.parent.mkdir()
    path.write_bytes(plain.read_bytes())
    leave(path, state)
    return path


def test_ids_are_those_of_the_tokenizer_without_the_state_and_the_file_stays(plain, left):
    before = left.read_bytes()
    clean, texts = load_tokenizer(plain), [prose(1), "short", ""]
    loaded = load_tokenizer(left)
    expected = [clean.encode(text, add_special_tokens=False).ids for text in texts]
    assert [loaded.encode(text, add_special_tokens=False).ids for text in texts] == expected
    assert [e.ids for e in loaded.encode_batch(texts)] == expected
    assert len(expected[0]) > TRUNCATION["max_length"]
    ours = Encoder(loaded, np.dtype("<u2"))
    assert ours.remembers
    assert [np.frombuffer(ours.encode(text), "<u2").tolist() for text in texts] == expected
    assert left.read_bytes() == before


def test_sampling_of_a_unigram_is_cleared(tmp_path):
    path = tmp_path / "tokenizer.json"
    vocabulary = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5)]
    Tokenizer(models.Unigram(vocabulary, unk_id=0, alpha=0.1)).save(str(path))
    loaded = load_tokenizer(path)
    assert len({tuple(loaded.encode("ab" * 20).ids) for _ in range(20)}) == 1


def test_the_data_stage_counts_the_same_tokens_and_hands_the_file_on_as_it_was(root, plain):
    corpus, facts = write_corpus(root / "in"), []
    left = Path(shutil.copyfile(plain, root / "tokenizer.json"))
    for kind in LEFT:
        leave(left, kind)
    for path in (plain, left):
        config = make_config(corpus, tokenizer__path=str(path))
        facts.append(made(config))
        folder = stages.data_step(config).path
        assert (folder / "tokenizer.json").read_bytes() == path.read_bytes()
    assert facts[0]["tokens"] == facts[1]["tokens"]
    assert facts[0]["bytes_per_token"] == facts[1]["bytes_per_token"]
    assert facts[0]["tokens"]["train"] > 1000
    documents = HeldOutText(TokenShards.open(folder)).documents["web"]
    assert all(document.endswith("and more.") for document in documents)


@pytest.fixture
def model(pretrained, tmp_path) -> Path:
    """A copy of the pretrained model, as a stranger's folder."""
    folder = model_of(pretrained()).folder
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_evaluate_scores_the_same_weights_alike(pretrained, model, state):
    scores = []
    for _ in range(2):
        config = pretrained("evaluate.tasks=[bits_per_byte]", f"evaluate.model={model}")
        run_stage("evaluate", config, "small.yaml")
        scores.append(read_manifest(evaluate.evaluate_step(config, "small.yaml").path)["scores"])
        leave(model / "tokenizer.json", state)
    assert scores[0] == scores[1]


def test_finetune_cuts_no_answer(plain, left, tmp_path):
    lines = [{"prompt": f"Tell me about {n}.", "completion": prose(n, 8)} for n in range(6)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = read_sources({"own": {"type": "completion", "path": str(tmp_path / "c.jsonl")}})
    of_plain, of_left = (encode(sources, [], load_tokenizer(p), 0, 4096, 0.2, seed=0) for p in (plain, left))
    assert of_left.length == of_plain.length > 100
    windows = [d.train["own"].windows(np.arange(4)) for d in (of_plain, of_left)]
    assert all((a == b).all() for a, b in zip(*windows, strict=True))


def test_samples_and_growth_read_a_prompt_whole(pretrained, model, state, tmp_path, capsys):
    config = pretrained("sample.temperature=0", f"sample.model={model}")
    prompt, said, windows = "def add(a, b):\n    return a + b\n" * 8, [], []
    (tmp_path / "text.txt").write_text(prompt * 40)
    for _ in range(2):
        sample.run(config, "small.yaml", prompt=prompt)
        said.append(capsys.readouterr().out)
        grown = grow._config(model, str(model), [])
        windows.append(grow._windows(grown, model / "tokenizer.json", str(tmp_path / "text.txt")).input_ids.tolist())
        leave(model / "tokenizer.json", state)
    assert said[0] == said[1]
    assert windows[0] == windows[1]


@pytest.mark.parametrize("state", ["truncation"])
def test_a_tuning_hands_the_file_on_as_it_was(pretrained, model, state):
    config = pretrained(
        "finetune.task=bracket", "finetune.budget.max_tokens=2000", "finetune.measure_memory=false",
        "finetune.items=8", "finetune.method=full", "finetune.train.device=cpu", "finetune.train.precision=32-true",
        "finetune.train.global_batch_tokens=512", f"finetune.model={model}",
    )  # fmt: skip
    left = leave(model / "tokenizer.json", state)
    run_stage("finetune", config, "small.yaml")
    folder = finetune.finetune_step(config, "small.yaml").path
    assert (folder / "model" / "tokenizer.json").read_bytes() == left


BROKEN = {
    "nothing": b"",
    "no object": b"[1]",
    "no model": b"{}",
    "not UTF-8": b"\xff\xfe{",
    "cut": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0',
    "another version": b'{"version":"9"}',
    "merges of no token": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}',
    "empty vocabulary": b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}',
    "impossible dropout": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[],"dropout":7}}',
    "deep": b"[" * 100_000,
    "a long value": b'{"version":"' + b"x" * 10_000 + b'"}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_message(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(BROKEN[name])
    with pytest.raises(UserError, match=r"tokenizer\.path: .*tokenizer\.json") as error:
        load_tokenizer(path, "tokenizer.path")
    assert len(str(error.value)) < 500
    with pytest.raises(UserError, match="no file"):
        load_tokenizer(tmp_path / "gone.json")


def test_a_tokenizer_that_cannot_encode_every_text_is_refused_before_any_work(root):
    words = root / "tokenizer.json"
    Tokenizer(models.WordLevel({"the": 0, "<|endoftext|>": 1}, unk_token="[UNK]")).save(str(words))
    config = make_config(write_corpus(root / "in"), tokenizer__path=str(words))
    with pytest.raises(UserError, match="cannot encode every text"):
        stages.data_step(config)


def test_a_tokenizer_that_drops_characters_is_taken_with_a_warning(plain, tmp_path, capsys):
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz .,0123456789\n")}
    Tokenizer(models.BPE({**letters, "<|endoftext|>": len(letters)}, [])).save(str(tmp_path / "tokenizer.json"))
    for path, warned in ((tmp_path / "tokenizer.json", True), (plain, False)):
        (target := tmp_path / f"out{warned}").mkdir()
        copy_tokenizer(Folder(target, {}), path)
        assert ("WARNING" in capsys.readouterr().out) == warned


def test_a_model_folder_with_a_broken_tokenizer_is_one_message_and_exit_code_2(model, tmp_path):
    (model / "tokenizer.json").write_bytes(BROKEN["cut"])
    words = [sys.executable, "-P", "-m", "pipeline", "sample", str(tmp_path / "small.yaml"), f"sample.model={model}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "tokenizer.json is not readable as JSON" in done.stderr


def test_the_loader_needs_no_torch():
    code = "import sys, pipeline.corpus.text.tokenizer; assert not {'torch', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
