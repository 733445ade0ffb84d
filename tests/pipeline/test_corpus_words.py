"""Words, n-grams and token ids: the fast ways against the plain ones, on texts made to break them."""

import copy

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.corpus import tokenizing
from pipeline.corpus.contamination import Index, Item
from pipeline.corpus.duplicates import WordHashes, ngrams, plain_words, symbols, without_numbers
from pipeline.corpus.text.tokenizer import Encoder, load_tokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't (really)!", ["don", "t", "really"]),
        ("“Quoted” — and…dashed", ["quoted", "and", "dashed"]),
        ("ÉCOLE naïve", ["école", "naïve"]),
        ("漢字 かな", ["漢", "字", "か", "な"]),
        ("a\x00b\tc\x7fd", ["a", "b", "c", "d"]),
        ("soft\u00adware and zero\u200bwidth", ["software", "and", "zerowidth"]),
        ("soft\u00ad\nware, \uff57ide, \ufb01ne\u00a0print", ["software", "wide", "fine", "print"]),
        ("", []),
    ],
)
def test_words_are_lower_case_without_punctuation_in_any_script(text, words):
    assert [w.decode() for w in plain_words(text)] == words


def test_near_dedup_takes_every_number_for_the_same_and_no_accents():
    hashes = WordHashes(without_numbers)
    assert hashes.hashes([b"day12", "café".encode()]).tolist() == hashes.hashes([b"day7", b"cafe"]).tolist()
    assert hashes.hashes([b"day12"]) != hashes.hashes([b"night12"])


def test_exercises_differ_by_a_number_or_a_sign():
    assert symbols("f(3) == -1") == [b"f", b"(", b"3", b")", b"=", b"=", b"-", b"1"]
    assert symbols("f(3) == -1") != symbols("f(3) == +1")


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_ngrams_are_equal_where_the_words_are_and_only_there(n):
    words = np.random.default_rng(n).integers(0, 6, 400)
    hashes = WordHashes().hashes([str(w).encode() for w in words])
    found = ngrams(hashes, n)
    plain = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert len(found) == len(plain)
    assert len(set(found.tolist())) == len(set(plain))
    assert len(set(zip(found.tolist(), plain, strict=True))) == len(set(plain))


def test_ngrams_of_a_short_text_are_one_and_of_none_none():
    hashes = WordHashes().hashes([b"a", b"b"])
    assert len(ngrams(hashes, 5)) == 1
    assert len(ngrams(hashes[:0], 5)) == 0


@pytest.fixture(scope="module")
def gpt2_like() -> Tokenizer:
    """As Phi's: GPT-2's cutting, and runs of spaces and tabs as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat's 123 hats aren't for the other cats  \n\n    return x"] * 20, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in range(2, 8)])
    tokenizer.add_tokens([AddedToken("\t" * n, normalized=False) for n in range(2, 5)])
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def ids(found: bytes) -> list[int]:
    return np.frombuffer(found, dtype="<u2").tolist()


def test_ids_of_a_tokenizer_with_added_runs_of_space_are_its_own(gpt2_like):
    ours = Encoder(gpt2_like, np.dtype("<u2"))
    assert ours.remembers
    draw = np.random.default_rng(0)
    parts = ["the", " cat", "'s", " 123", "\n", "  ", "       ", "\t\t\t", "  \n", "é", "<|endoftext|>", "--", " "]
    for _ in range(300):
        text = "".join(draw.choice(parts, draw.integers(1, 30)))
        assert ids(ours.encode(text)) == gpt2_like.encode(text, add_special_tokens=False).ids, repr(text)


def test_a_long_text_is_encoded_in_pieces_to_the_same_ids(gpt2_like, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.text.tokenizer.PIECE_CHARACTERS", 50)
    ours = Encoder(gpt2_like, np.dtype("<u2"))
    draw = np.random.default_rng(1)
    one_line = " ".join(draw.choice(["the", "cat's", "12", "hats", "x" * 70, "  "], 400))
    lines = "\n".join(draw.choice(["the cat", "    return x", "", "café", "a\tb"], 400))
    for text in (one_line, lines, "x" * 500, " " * 500):
        assert ids(ours.encode(text)) == gpt2_like.encode(text, add_special_tokens=False).ids


@pytest.mark.timeout(60)
def test_a_run_without_a_break_stops_neither_the_training_nor_the_encoding(tmp_path):
    hostile = ["x" * 900_000, "-" * 300_000, "the cat " * 50]
    tokenizing._train(hostile, 300, tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    found = ids(Encoder(tokenizer, np.dtype("<u2")).encode(hostile[0][:50_000]))
    assert found == tokenizer.encode(hostile[0][:50_000]).ids


def test_a_tokenizer_that_cuts_otherwise_goes_through_the_library(gpt2_like):
    other = copy.deepcopy(gpt2_like)
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)])
    ours = Encoder(other, np.dtype("<u2"))
    assert not ours.remembers
    assert ids(ours.encode("the cat's 123 hats")) == other.encode("the cat's 123 hats").ids


UNSPACED = {
    "Khmer": "តើរាជធានីនៃព្រះរាជាណាចក្រកម្ពុជាមានឈ្មោះអ្វី",
    "Burmese": "မြန်မာနိုင်ငံ၏မြို့တော်သည်အဘယ်မြို့ဖြစ်သနည်း",
    "Lao": "ນະຄອນຫຼວງຂອງປະເທດລາວແມ່ນເມືອງໃດ",
    "Thai": "เมืองหลวงของประเทศไทยคือเมืองอะไร",
    "Tibetan": "བོད་ཀྱི་རྒྱལ་ས་གང་ཡིན་པ་བརྗོད་པར་བྱའོ།",
    "Chinese": "中华人民共和国的首都是哪一座城市",
    "CJK extension B": "".join(map(chr, range(0x20000, 0x20014))),
    "CJK extension G": "".join(map(chr, range(0x30000, 0x30014))),
    "compatibility": "豈更車賈滑串句龜龜契金喇奈懶癩羅蘿螺",
    "kana": "ニホンノシュトハドコデスカオシエテクダサイ",
    "Yi": "".join(map(chr, range(0xA000, 0xA014))),
    "Javanese": "ꦱꦧꦼꦤ꧀ꦮꦺꦴꦁꦏꦭꦲꦶꦂꦫꦏꦺꦏꦤ꧀ꦛꦶꦩꦫꦢꦶꦏ",
}


@pytest.mark.parametrize("script", UNSPACED)
def test_an_item_in_a_script_without_spaces_is_found_inside_a_document(script):
    item = Item("x", tuple(plain_words(UNSPACED[script])))
    assert len(item.words) >= 8
    index = Index([item], ngram_words=13, min_words=8)
    assert index.too_short == 0
    around = UNSPACED[script][::-1]  # as letters, another text
    found = index.match(f"An answer: {around} {UNSPACED[script]}, {around}")
    assert found is not None
    assert found[0] is item
    assert index.match(f"An answer: {around} {around}") is None


def test_signs_stay_with_their_letter_and_invisible_ones_do_not_count():
    assert [w.decode() for w in plain_words("ភ្នំពេញ")] == ["ភ្នំ", "ពេ", "ញ"]
    assert [w.decode() for w in plain_words("ที่นี่")] == ["ที่", "นี่"]
    assert [w.decode() for w in plain_words("བོད་ཡིག")] == ["བོད", "ཡིག"]
    assert plain_words("葛\U000e0100城") == plain_words("葛城")
    assert plain_words("한국의 수도는") == ["한국의".encode(), "수도는".encode()]  # Korean has spaces
