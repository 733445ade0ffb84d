"""What GGUF cannot say of a tokenizer or of weights is refused before anything is written, and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_special_tokens import small

from model.hf import load_config
from pipeline.corpus.text.tokenizer import WORD_PATTERN
from pipeline.release.gguf import check_tokenizer, check_values, write_gguf
from pipeline.system.errors import UserError

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORDS = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return small(tmp_path_factory.mktemp("gguf") / "m")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "m")


def _change(folder: Path, **parts) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for name, value in parts.items():
        if name == "added":
            content["added_tokens"][0] |= value
        elif name == "bpe":
            content["model"] |= value
        else:
            content[name] = value
    path.write_text(json.dumps(content))
    return path


def _sequence(*parts) -> dict:
    return {"type": "Sequence", "pretokenizers": list(parts)}


CANNOT = {
    "add_prefix_space": ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "pre_tokenizer"),
    "a prefix space in a sequence": (
        {"pre_tokenizer": _sequence(WORDS, BYTE_LEVEL | {"add_prefix_space": True, "use_regex": False})},
        "pre_tokenizer",
    ),
    "no pre_tokenizer": ({"pre_tokenizer": None}, "pre_tokenizer"),
    "no regex": ({"pre_tokenizer": BYTE_LEVEL | {"use_regex": False}}, "pre_tokenizer"),
    "another regex": ({"pre_tokenizer": _sequence(WORDS | {"pattern": {"Regex": "a"}}, BYTE_LEVEL)}, "pre_tokenizer"),
    "a regex inverted": (
        {"pre_tokenizer": _sequence(WORDS | {"invert": True}, BYTE_LEVEL | {"use_regex": False})}, "pre_tokenizer"
    ),
    "one part more": ({"pre_tokenizer": _sequence(DIGITS, WORDS, BYTE_LEVEL | {"use_regex": False})}, "pre_tokenizer"),
    "digits together": (
        {"pre_tokenizer": _sequence(DIGITS | {"individual_digits": False}, BYTE_LEVEL)}, "pre_tokenizer"
    ),
    "Metaspace": ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "pre_tokenizer"),
    "Lowercase": ({"normalizer": {"type": "Lowercase"}}, r"a normalizer \(Lowercase\)"),
    "NFKC": ({"normalizer": {"type": "NFKC"}}, r"a normalizer \(NFKC\)"),
    "several": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}}, "NFC, Strip"
    ),
    "lstrip": ({"added": {"lstrip": True}}, "lstrip of the added token"),
    "rstrip": ({"added": {"rstrip": True}}, "rstrip of the added token"),
    "single_word": ({"added": {"single_word": True}}, "single_word of the added token"),
    "an id past the rows": ({"added": {"id": 10**6}}, "the token id 1000000"),
    "an id that is text": ({"added": {"id": "3"}}, "the token id '3'"),
    "byte_fallback": ({"bpe": {"byte_fallback": True}}, "byte_fallback"),
    "ignore_merges": ({"bpe": {"ignore_merges": True}}, "ignore_merges"),
    "a suffix": ({"bpe": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
    "a prefix": ({"bpe": {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix"),
    "WordPiece": ({"bpe": {"type": "WordPiece"}}, "a model of type 'WordPiece'"),
    "Unigram": ({"bpe": {"type": "Unigram", "vocab": [["a", 0.5]]}}, "a model of type 'Unigram'"),
    "no merges": ({"bpe": {"merges": None}}, "a model of type 'BPE'"),
    "strange merges": ({"bpe": {"merges": [["a", "b", "c"]]}}, "merges"),
    "merges of another type": ({"bpe": {"merges": "a b"}}, "merges is 'a b'"),
    "another decoder": ({"decoder": {"type": "Metaspace"}}, r"a decoder \(Metaspace\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT)
def test_what_the_format_cannot_say_is_refused_by_name(name, folder):
    parts, words = CANNOT[name]
    path = _change(folder, **parts)
    rows = load_config(folder).vocab_size
    with pytest.raises(UserError, match=rf"gguf: .*{words}"):
        check_tokenizer(path, rows, "gguf")
    with pytest.raises(UserError):
        write_gguf(folder, folder.parent / "m.gguf", "f16", "m")
    assert not list(folder.parent.glob("*gguf*"))


@pytest.mark.parametrize(
    ("cutting", "name"),
    [
        (BYTE_LEVEL, "gpt-2"),
        (_sequence(BYTE_LEVEL), "gpt-2"),
        (_sequence(WORDS, BYTE_LEVEL | {"use_regex": False}), "starcoder"),
        (_sequence(DIGITS, BYTE_LEVEL), "starcoder"),
    ],
)
def test_a_way_to_cut_words_that_has_a_name_is_written(cutting, name, folder):
    path = _change(folder, pre_tokenizer=cutting)
    assert check_tokenizer(path, load_config(folder).vocab_size, "gguf") == name


def test_values_past_the_ends_of_fp16_are_refused(folder):
    for type_, largest in (("F16", 65504.0), ("Q8_0", 65504.0 * 127), ("Q4_0", 65504.0 * 8)):
        check_values(np.full((2, 32), -largest, np.float32), type_, "x")
        for value in (largest * 1.01, float("nan"), float("inf")):
            with pytest.raises(UserError, match=f"x has a value of .* {type_} holds no more"):
                check_values(np.full((2, 32), value, np.float32), type_, "x")
    check_values(np.full(32, 1e9, np.float32), "F32", "x")
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"] = torch.full_like(state["model.embed_tokens.weight"], 1e6)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"embed_tokens\.weight has a value of 1e\+06"):
        write_gguf(folder, folder.parent / "m.gguf", "f16", "m")
    assert not list(folder.parent.glob("*gguf*"))
