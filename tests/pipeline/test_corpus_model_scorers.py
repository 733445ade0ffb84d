"""Adapters for scorers that others trained: fastText's format, written here byte by byte; a tiny classifier."""

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data_corpus import made, make_config, write_corpus
from datatrove.data import Document

from pipeline.corpus.scorers.document_scorers import Classifier, FastText, hash_bytes, make_scorer, read_fasttext
from pipeline.system.errors import UserError

WORDS, LABELS, DIM, BUCKETS = ["good", "bad", "</s>", "naïve"], ["__label__hq", "__label__lq"], 3, 7


def write_fasttext(path: Path, *, loss: int = 3, ngrams: int = 2, least: int = 0, most: int = 0, kind: int = 3, **more):
    """The layout of fastText's `saveModel`, version 12."""
    rows = np.random.default_rng(0).normal(size=(len(WORDS) + BUCKETS, DIM)).astype("<f4")
    output = np.random.default_rng(1).normal(size=(len(LABELS), DIM)).astype("<f4")
    head = struct.pack("<ii", more.get("magic", 793712314), 12)
    args = struct.pack("<12id", DIM, 5, 5, 1, 5, ngrams, loss, kind, BUCKETS, least, most, 100, 1e-4)
    counts = struct.pack("<iiiqq", len(WORDS) + len(LABELS), len(WORDS), len(LABELS), 99, -1)
    names = [(word, 0) for word in WORDS] + [(label, 1) for label in LABELS]
    entries = b"".join(name.encode() + b"\0" + struct.pack("<qb", 9, is_label) for name, is_label in names)

    def table(values: np.ndarray) -> bytes:
        return struct.pack("<?qq", more.get("quantized", False), *values.shape) + values.tobytes()

    path.write_bytes(head + args + counts + entries + table(rows) + table(output))
    return rows.astype(np.float64), output.astype(np.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def test_fasttext_words_and_pairs_give_the_probability_worked_out_by_hand(tmp_path):
    rows, output = write_fasttext(tmp_path / "m.bin")
    model = read_fasttext(tmp_path / "m.bin")
    hashes = [int(np.int32(np.uint32(hash_bytes(w.encode())))) for w in ("good", "unseen", "</s>")]
    pairs = [((a * 116049371 + b) % (1 << 64)) % BUCKETS for a, b in pairwise(hashes)]
    hidden = rows[[0, 2, *(len(WORDS) + pair for pair in pairs)]].mean(axis=0)
    expected = softmax(output @ hidden)
    assert model.probability("good\nunseen __label__hq", "__label__hq") == pytest.approx(expected[0], rel=1e-6)
    assert model.probability("good\nunseen", "__label__lq") == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u001f", "\u001c", "\u0085", "\u2028", "\u2003"])
def test_fasttext_cuts_words_at_ascii_white_space_alone(tmp_path, space):
    rows, output = write_fasttext(tmp_path / "m.bin")
    word = f"good{space}bad"  # one word, which the model does not know
    first, end = (int(np.int32(np.uint32(hash_bytes(w.encode())))) for w in (word, "</s>"))
    pair = ((first * 116049371 + end) % (1 << 64)) % BUCKETS
    expected = softmax(output @ rows[[2, len(WORDS) + pair]].mean(axis=0))[0]
    assert read_fasttext(tmp_path / "m.bin").probability(word, "__label__hq") == pytest.approx(expected, rel=1e-6)


def test_fasttext_cuts_at_every_ascii_white_space_and_ends_at_its_mark(tmp_path):
    write_fasttext(tmp_path / "m.bin")
    model = read_fasttext(tmp_path / "m.bin")
    expected = model.probability("good bad", "__label__hq")
    for text in ("good\tbad", "good\vbad\f", "\rgood\0bad", " good\n\nbad ", "good bad </s> good good"):
        assert model.probability(text, "__label__hq") == expected
    assert model.probability("good bad</s> good", "__label__hq") != expected


def test_fasttexts_hash_takes_bytes_as_signed():
    assert hash_bytes(b"") == 2166136261
    assert hash_bytes(b"a") == 0xE40C292C  # FNV-1a, from its authors' table
    value = 2166136261
    for byte in "é".encode():
        value = ((value ^ (byte | 0xFFFFFF00)) * 16777619) % (1 << 32)
    assert hash_bytes("é".encode()) == value


def test_fasttext_one_against_all_single_words_and_characters(tmp_path):
    rows, output = write_fasttext(tmp_path / "m.bin", loss=4, ngrams=1)
    expected = 1 / (1 + np.exp(-(output @ rows[[1, 2]].mean(axis=0))[0]))
    assert read_fasttext(tmp_path / "m.bin").probability("bad", "__label__hq") == pytest.approx(expected, rel=1e-6)
    rows, output = write_fasttext(tmp_path / "m.bin", ngrams=1, least=3, most=4)
    pieces = ["<ba", "<bad", "bad", "bad>", "ad>"]
    ids = [1, *(len(WORDS) + hash_bytes(p.encode()) % BUCKETS for p in pieces), 2]
    expected = softmax(output @ rows[ids].mean(axis=0))[0]
    assert read_fasttext(tmp_path / "m.bin").probability("bad", "__label__hq") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"magic": 5}, r"no fastText model of version 12 \(its head is 5, 12\)"),
        ({"kind": 1}, "holds word vectors"),
        ({"loss": 1}, "loss hs"),
        ({"quantized": True}, "is quantized"),
    ],
)
def test_fasttext_files_that_cannot_be_applied_are_refused(tmp_path, more, message):
    write_fasttext(tmp_path / "m.bin", **more)
    with pytest.raises(UserError, match=message):
        read_fasttext(tmp_path / "m.bin")


def test_a_cut_fasttext_file_is_refused_wherever_it_ends(tmp_path):
    write_fasttext(tmp_path / "m.bin")
    whole = (tmp_path / "m.bin").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "cut.bin").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.bin is no fastText model"):
            read_fasttext(tmp_path / "cut.bin")


def test_a_fasttext_model_scores_a_stage_and_is_in_its_fingerprint(root):
    write_fasttext(root / "m.bin")
    corpus = write_corpus(root / "in")
    scorer = {"type": "fasttext", "path": str(root / "m.bin"), "label": "hq"}
    manifest = made(make_config(corpus, data__scorer=scorer, data__filters={"quality": {"min_score": 0.0}}))
    assert manifest["classifier"]["sources"] == ["exercises", "web"]
    assert manifest["classifier"]["auc"] is None
    assert "probability of __label__hq" in manifest["classifier"]["note"]
    with pytest.raises(UserError, match=r"data.scorer.label is '__label__x'.*expected one of __label__hq, __label__lq"):
        FastText(str(root / "m.bin"), "x").scores([Document(text="a", id="a")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of a few thousand weights, one output, with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

    set_seed(0)
    path = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "good", "bad", "text"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_a_sequence_classifiers_number_is_scaled_and_does_not_depend_on_the_batch(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["good text", "bad " * 40, "text good bad good", ""]
    documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
    scores = Classifier(str(folder), most=0.01, max_tokens=12).scores(documents)
    single = Classifier(str(folder), most=0.01, max_tokens=12, batch=1).scores(documents)
    assert np.abs(scores - single).max() < 2e-3
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    logit = float(model(**tokenizer("good text", return_tensors="pt")).logits.detach()[0, 0])
    assert scores[0] == pytest.approx(min(max(logit, 0), 0.01) / 0.01, abs=1e-3)
    assert scores.dtype == np.float32


def test_dropout_that_training_left_in_a_classifiers_tokenizer_changes_no_score(folder, tmp_path):
    import shutil

    from tokenizers import Tokenizer, models

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    merged = models.BPE({"[PAD]": 0, "g": 1, "o": 2, "go": 3, "goo": 4}, [("g", "o"), ("go", "o")], dropout=0.9)
    Tokenizer(merged).save(str(tmp_path / "tokenizer.json"))
    documents = [Document(text="goo" * 4, id=str(i)) for i in range(12)]
    assert np.ptp(Classifier(str(tmp_path)).scores(documents)) == 0


def test_a_wrong_classifier_is_one_clear_message(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data.scorer.path is 'nowhere'; expected a folder or a hub name"):
        Classifier("nowhere").content()
    with pytest.raises(UserError, match="is no sequence classifier"):
        Classifier(str(tmp_path)).scores([Document(text="a", id="a")])
    assert Classifier(str(folder)).content() != Classifier(str(tmp_path)).content()
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="needs transformers, which is not installed: pip install transformers"):
        make_scorer({"type": "classifier", "path": str(folder)})
