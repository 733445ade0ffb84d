"""Features that no machine and no tokenizer changes, a scorer that learns, the shipped one, and the rated documents."""

import json
import random
from collections import Counter
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from data_corpus import made, make_config, prose, write_corpus
from datatrove.data import Document
from safetensors.numpy import save

from pipeline import stages
from pipeline.corpus.publishing import arrange
from pipeline.corpus.scorers import fooling
from pipeline.corpus.scorers.document_scorers import SHIPPED, Linear, Shipped, make_scorer
from pipeline.corpus.scorers.features import (
    BUCKETS,
    HEAD_CHARACTERS,
    PHRASES,
    STRUCTURE,
    Sparse,
    documentation_share,
    features,
    in_english,
    split_words,
)
from pipeline.corpus.scorers.labels import (
    LABELS,
    Label,
    find_documents,
    learn,
    read_labels,
    rows_of,
)
from pipeline.corpus.scorers.linear import (
    GOOD,
    auc,
    auc_interval,
    calibrate,
    fold_by_group,
    load_scorer,
    train,
    unseen_logits,
)
from pipeline.run_stage import run_stage
from pipeline.system.errors import UserError

DOCUMENTED = 'def double(x):\n    """Return twice `x`, because one is not enough."""\n    return 2 * x  # twice\n'
TEACHING = (
    'def mean(values):\n    """The mean of the values.\n\n    It is the sum divided by their number, for example\n'
    "    >>> mean([1, 2, 3])\n    2.0\n\n    With no values there is no mean, which is why this raises an error then.\n"
    '    """\n    return sum(values) / len(values)\n'
)


def document(text: str, path: str = "site/p/a.py", kind: str = "code") -> Document:
    return Document(text=text, id=path, metadata={"path": path, "kind": kind, "source": "lib"})


def made_up(n: int, seed: int = 0) -> tuple[list[Document], np.ndarray, list[str]]:
    """Documents that use words of two sets, the second the more the better they are rated; ten groups."""
    draw = np.random.default_rng(seed)
    dull, bright = [f"dull{i}" for i in range(40)], [f"bright{i}" for i in range(40)]
    ratings = draw.integers(0, 6, n)
    texts = [
        " ".join(draw.choice(bright if draw.random() < rating / 6 else dull) for _ in range(60)) for rating in ratings
    ]
    return [document(t, f"d/{i}", "prose") for i, t in enumerate(texts)], ratings, [f"g{i % 10}" for i in range(n)]


def test_words_are_hashed_the_same_in_any_company_and_place():
    alone, _ = split_words([b"return 42 Returns"])
    among, _ = split_words([b"x" * 1000, b"return 42 Returns", "héé ≥ ".encode()])
    assert np.array_equal(among.hashes[among.text == 1], alone.hashes)
    assert len(set(alone.hashes.tolist())) == len(alone.hashes) == 4  # three words and the end of the line
    same, _ = split_words([b"RETURN", b"return", b"1", b"234"])
    first = [same.hashes[same.text == i][0] for i in range(4)]
    assert first[0] == first[1]
    assert first[2] == first[3] != first[0]


def test_a_word_of_documentation_is_another_feature_than_the_same_word_of_code():
    code = "x = WORD;\n" * 9
    texts = [f"/* {word} */\n" + code.replace("WORD", other) for word, other in (("abc", "de"), ("de", "abc"))]
    told = features([document(text) for text in texts])
    first, second = (set(told.ids[told.starts[i] : told.starts[i + 1]].tolist()) for i in range(2))
    assert first - second
    assert second - first


def test_features_of_a_document_do_not_depend_on_its_batch_and_end_with_the_head():
    batch = [document(DOCUMENTED), document("", "site/p/__init__.py"), document(prose(3), "p/x", "prose")]
    together = features(batch)
    for i, doc in enumerate(batch):
        single = features([doc])
        row = slice(together.starts[i], together.starts[i + 1])
        assert np.array_equal(together.ids[row], single.ids)
        assert np.array_equal(together.values[row], single.values)
        assert np.array_equal(together.structure[i], single.structure[0])
    long = DOCUMENTED * 200
    head, whole = features([document(long[:HEAD_CHARACTERS])]), features([document(long)])
    assert np.array_equal(head.ids, whole.ids)
    assert np.array_equal(head.structure, whole.structure)


def test_only_the_text_counts_and_not_what_it_is_called():
    one, other = features([document(TEACHING)]), features([document(TEACHING, "tests/_vendor/test_x.txt", "prose")])
    assert np.array_equal(one.structure, other.structure)
    assert np.array_equal(one.ids, other.ids)


def test_golden_features_that_the_version_guards():
    """If this fails because features changed on purpose: raise `features.VERSION`, run scripts/train_scorer.py, raise
    `steps.VERSIONS["score"]`."""
    rows = features([document(DOCUMENTED, "site/p/tests/_a.py")])
    assert (len(rows.ids), int(rows.ids.sum())) == GOLDEN_IDS
    assert dict(zip(STRUCTURE, rows.structure[0].round(4).tolist(), strict=True)).items() >= GOLDEN_STRUCTURE.items()


GOLDEN_IDS = (46, 404598)
GOLDEN_STRUCTURE = {"is_short": 1.0, "comment_share": 0.0}

C_CODE = "/* Adds two numbers,\n   slowly. */\nint add(int a, int b)\n{\n    return a + b;  // the sum\n}\n" * 3
MANUAL = (
    "To open a file, call the function with its name.\n\n    file = open(name);\n    read(file, 10);\n\n"
    "The call returns when ten bytes were read, or earlier at the end of the file.\n"
) * 3


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("Anything that one can read is an explanation, with or without a heading.\n" * 5, 0.9, 1),
        ("x = [1];\n" * 30, 0, 0.01), (DOCUMENTED, 0.4, 0.85), (C_CODE, 0.3, 0.6), (MANUAL, 0.6, 0.9),
        ("-- the names of all users\nSELECT name FROM users WHERE (id > 3);\n" * 9, 0.3, 0.5),
    ],
)  # fmt: skip
def test_prose_and_code_are_told_apart_within_a_text_in_any_language(text, least, most):
    assert least <= documentation_share(document(text)) <= most


def test_order_repetition_and_names_show_in_the_structure():
    plain = prose(7) * 2
    words = plain.split()
    np.random.default_rng(0).shuffle(words)
    text = "This is the first sentence of a text in which there is nothing to see. It is not the only one.\n"
    rows = features([document(text + plain), document(text * 20), document(" ".join(words))])
    column = dict(zip(STRUCTURE, rows.structure.T, strict=True))
    assert column["repeated_passages"][1] > 0.5
    told = features([document(text), document(" ".join(sorted(text.split())))])
    known = told.structure[:, STRUCTURE.index("known_3_documentation")]
    assert known[0] > known[1]


def test_a_scorer_learns_ratings_twice_the_same_and_is_calibrated(tmp_path):
    documents, ratings, groups = made_up(400)
    rows = rows_of(documents)
    seen, unseen = np.arange(300), np.arange(300, 400)
    scorer, again = train(rows.take(seen), ratings[seen]), train(rows.take(seen), ratings[seen])
    assert np.array_equal(scorer.weights, again.weights)
    good = ratings >= GOOD
    logits = scorer.logits(rows.take(unseen))
    assert auc(logits, good[unseen]) > 0.9
    scores = calibrate(scorer, logits, good[unseen]).scores(rows.take(unseen))
    assert abs(scores.mean() - good[unseen].mean()) < 0.02
    assert scores.min() >= 0
    assert scores.max() <= 1
    learned = learn(documents, ratings, groups, "a test")
    low, high = learned.facts["auc_interval"]
    assert low < learned.facts["auc"] < high
    learned.save(tmp_path / "s.safetensors")
    loaded = load_scorer(tmp_path / "s.safetensors")
    assert np.array_equal(loaded.scores(rows), learned.scores(rows))
    assert loaded.facts["documents"] == 400


def test_too_few_ratings_of_a_kind_are_refused():
    documents, _, groups = made_up(40)
    with pytest.raises(ValueError, match="0 documents are rated 3 or more and 40 below; expected at least 10"):
        learn(documents, [1] * 40, groups, "a test")


def test_a_file_that_is_no_scorer_or_an_old_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no scorer"):
        load_scorer(tmp_path / "bad")
    head = {"features": 2, "structure": list(STRUCTURE), "slope": 1.0, "offset": 0.0, "facts": {}}
    for odd in ("12", "[]", "[" * 100_000, json.dumps({**head, "structure": 5}), json.dumps({**head, "slope": [1]}),
                json.dumps({**head, "facts": None}), json.dumps(head)):  # fmt: skip
        (tmp_path / "odd").write_bytes(save({"weights": np.zeros(9, np.float32)}, metadata={"scorer": odd}))
        with pytest.raises(UserError, match="is no scorer"):
            load_scorer(tmp_path / "odd")
    monkeypatch.setattr("pipeline.corpus.scorers.linear.VERSION", 99)
    with pytest.raises(UserError, match=r"version 2 of the features, this is version 99.*hornbook label"):
        load_scorer(SHIPPED)


def test_auc_counts_ties_half_and_its_interval_resamples_whole_groups():
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0, 1, 0, 1])) == 0.5
    assert auc(np.array([0.1, 0.9]), np.array([0, 1])) == 1.0
    scores, labels = np.tile([0.1, 0.9, 0.5, 0.4], 25), np.tile([0, 1, 0, 1], 25)
    low, high = auc_interval(scores, labels, [str(i % 5) for i in range(100)])
    assert low <= auc(scores, labels) <= high


def test_a_group_is_in_one_fold_and_the_folds_are_of_like_size():
    groups = [f"g{i % 23}" for i in range(500)]
    folds = fold_by_group(groups, 5)
    assert all(len({f for f, g in zip(folds, groups, strict=True) if g == name}) == 1 for name in set(groups))
    assert np.bincount(folds).min() > 60


def test_the_shipped_labels_are_whole_and_name_their_rater():
    labels = read_labels()
    assert len(labels) >= 2_240
    assert len({label.sha256 for label in labels}) == len(labels)
    assert all(label.rater.startswith("a language model with this rubric") for label in labels)
    domains = Counter(label.domain for label in labels)
    assert len(domains) >= 20
    packages = {domain: len({x.distribution for x in labels if x.domain == domain}) for domain in domains}
    assert min(packages.values()) >= 8
    assert {label.score for label in labels} == set(range(6))
    assert len({label.group for label in labels}) >= 30
    assert {label.kind for label in labels} == {"code", "prose", "exercise"}


def test_a_broken_label_is_named_by_its_line(tmp_path):
    line = LABELS.read_text(encoding="utf-8").splitlines()[0]
    path = tmp_path / "labels.jsonl"
    path.write_text(line + "\n" + json.dumps({**json.loads(line), "score": 7}) + "\n")
    with pytest.raises(UserError, match=r"labels.jsonl:2: expected a score of 0 to 5"):
        read_labels(path)
    path.write_text(line + "\n{}\n")
    with pytest.raises(UserError, match=r"labels.jsonl:2 is no label"):
        read_labels(path)


def test_texts_are_found_again_by_content_and_what_is_missing_is_counted(tmp_path):
    labels = [label for label in read_labels() if label.distribution == "networkx"][:6]
    if metadata.version("networkx") != labels[0].version:
        pytest.skip("another networkx is installed")
    changed = Label(**{**labels[0].__dict__, "sha256": "0" * 64})
    gone = Label(**{**labels[1].__dict__, "path": "site/networkx/nowhere.py"})
    other = Label(**{**labels[2].__dict__, "distribution": "no-such-distribution"})
    lines = [json.dumps(label.__dict__) for label in (changed, gone, other, *labels[3:])]
    (tmp_path / "l.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found, missing = find_documents(read_labels(tmp_path / "l.jsonl"))
    assert set(found) == {label.path for label in labels[3:]}
    assert missing == {"distribution_not_installed": 1, "no_such_document": 1, "other_content": 1}


def test_the_shipped_scorer_was_judged_on_packages_it_never_saw_and_is_small():
    shipped = load_scorer(SHIPPED)
    assert shipped.facts["auc"] >= 0.86
    assert shipped.facts["auc"] >= shipped.facts["auc_docstring_share"] + 0.2
    assert len(read_labels()) - shipped.facts["documents"] <= 20  # whose package has another version here
    scores = Shipped().scores([document(TEACHING), document("x = [1, 2, 3]\n" * 40, "site/p/tests/test_x.py")])
    assert scores[0] > 3 * scores[1]
    assert SHIPPED.stat().st_size + PHRASES.stat().st_size < 5_000_000


def shipped_scores(texts):
    return Shipped().scores([document(text) for text in texts])


def test_texts_made_to_fool_do_not_pass_the_cut():
    texts = [MANUAL * 3, C_CODE * 4, TEACHING * 3, DOCUMENTED * 9, *(prose(i) * 3 for i in range(8))]
    made = {kind: [fooling.make(kind, texts, seed) for seed in range(6)] for kind in fooling.KINDS}
    assert made == {kind: [fooling.make(kind, texts, seed) for seed in range(6)] for kind in fooling.KINDS}
    passed = {kind: float((shipped_scores(found) >= 0.5).mean()) for kind, found in made.items()}
    assert sum(passed.values()) / len(passed) <= 0.05, passed


def test_an_adversary_that_changes_what_can_be_seen_lifts_no_nonsense_over_the_cut():
    texts = [MANUAL * 3, C_CODE * 4, TEACHING * 3, *(prose(i) * 3 for i in range(8))]
    reached = [
        fooling.attack(shipped_scores, fooling.make(kind, texts, 3), 25, random.Random(kind))[1]
        for kind in ("shuffled_words", "stuffed_keywords", "repeated_phrase", "word_salad_with_doctests", "garbled")
    ]
    assert max(reached) < 0.5


def test_text_in_another_language_gets_no_opinion():
    german = "Der Hund läuft schnell über die Straße und bellt die Katze an, und dann ist er nicht mehr da. " * 9
    scores = shipped_scores([german, "これは日本語の文章です。" * 30, TEACHING, C_CODE])
    assert np.isnan(scores).tolist() == [True, True, False, False]
    assert in_english(features([document(prose(2))])).all()


def test_a_few_ratings_change_the_scorer_that_they_start_from():
    documents, ratings, groups = made_up(60)
    rows, shipped = rows_of(documents), load_scorer(SHIPPED)
    changed = train(rows, ratings, shipped)
    assert np.array_equal(changed.mean, shipped.mean)
    assert auc(changed.logits(rows), ratings >= GOOD) > auc(shipped.logits(rows), ratings >= GOOD)
    assert 0 < np.abs(changed.weights - shipped.weights).max() < np.abs(train(rows, ratings).weights).max() + 9
    assert unseen_logits(rows, ratings, groups, shipped).shape == (60,)


def test_all_sources_are_scored_by_default_and_only_some_on_request(root, capsys):
    corpus = write_corpus(root / "in")
    library = {"type": "python_library", "distributions": ["idna", "humanize"], "standard_library": False}
    sources = {"web": make_config(corpus).data.sources["web"], "lib": library}
    classifier = made(make_config(corpus, data__sources=sources))["classifier"]
    assert (classifier["sources"], classifier["not_scored"]) == (["lib", "web"], [])
    assert classifier["auc"] >= 0.85
    config = make_config(corpus, data__sources=sources, data__scorer={"sources": ["lib"]})
    run_stage("data", config, "test.yaml")
    assert "data.filters.quality cut nothing of web, which the scorer does not suit" in capsys.readouterr().out
    assert made(config)["classifier"]["not_scored"] == ["web"]
    with pytest.raises(UserError, match=r"data.scorer.sources names 'wbe'; expected some of lib, web"):
        stages.data_step(make_config(corpus, data__sources=sources, data__scorer={"sources": ["wbe"]}))
    assert make_config(corpus, data__scorer=None).data.scorer is None
    assert made(make_config(corpus, data__scorer=None))["classifier"]["note"] == "data.scorer is null: every score is 1"


def test_a_budget_of_tokens_keeps_the_best_scored(root):
    library = {"type": "python_library", "distributions": ["click", "packaging"], "standard_library": False}
    filters = {"length": {}, "quality": {"min_score": 0.0}}
    everything = made(make_config(root, data__sources={"lib": library}, data__filters=filters))
    budget = everything["tokens"]["train"] // 3
    filters["quality"]["keep_tokens"] = budget
    kept = made(make_config(root, data__sources={"lib": library}, data__filters=filters))
    assert 0.3 * budget < kept["tokens"]["train"] <= budget
    assert set(kept["reasons"]["quality"]) == {"beyond_keep_tokens"}
    assert kept["tokens"]["val"] == everything["tokens"]["val"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"data.scorer is \{\}; expected a section such as"),
        ({"type": "shiped"}, r"data.scorer.type: there is no 'shiped' \(did you mean 'shipped'"),
        ({"type": "shipped", "path": "x"}, "data.scorer: unknown option 'path'"),
        ({"type": "shipped", "sources": "web"}, "sources is 'web'; expected a list of names"),
        ({"type": "fasttext", "path": "x"}, "data.scorer: option 'label' has no value"),
    ],
)
def test_a_mistake_in_the_scorers_section_is_said_with_its_key(options, message):
    with pytest.raises(UserError, match=message):
        make_scorer(options)


def test_a_trained_scorer_is_part_of_the_fingerprint_by_content(root):
    corpus = write_corpus(root / "in")
    documents, ratings, groups = made_up(60)
    for name, given in (("a", ratings), ("b", 5 - ratings)):
        learn(documents, given, groups, "a test").save(root / f"{name}.safetensors")

    def fingerprint(name: str) -> str:
        scorer = {"type": "trained", "path": str(root / f"{name}.safetensors")}
        return stages.data_step(make_config(corpus, data__scorer=scorer)).inputs["score"].fingerprint

    first = fingerprint("a")
    (root / "moved").mkdir()
    (root / "a.safetensors").rename(root / "moved" / "a.safetensors")
    assert fingerprint("moved/a") == first != fingerprint("b")
    with pytest.raises(UserError, match=r"no scorer at .*a.safetensors; `hornbook label <config>` trains one"):
        fingerprint("a")
    assert Linear(root / "b.safetensors").scores([]).shape == (0,)
    assert isinstance(rows_of(documents[:1]), Sparse)
    assert BUCKETS == 1 << 14


def test_the_textbook_set_is_held_out_text_of_the_sources_that_were_scored():
    rows = np.zeros(60, dtype=[("source", "u1"), ("digest", "<u8", (2,)), ("bytes", "<u4")])
    rows["digest"][:, 0], rows["bytes"] = np.arange(60) * 7919, 100
    rows["source"][40:] = 1
    held_out = np.arange(60) % 2 == 0
    scores = np.where(np.arange(60) % 10 == 0, 0.9, 0.2).astype(np.float32)
    scores[40:] = 1
    table = SimpleNamespace(sources=("library", "web"), rows=rows)
    for scored, limit, textbook in ((["library"], 400, 4), (["library"], 300, 3), (["library", "web"], 9_999, 14)):
        sets = arrange(table, np.ones(60, dtype=bool), held_out, scores, scored, limit, 0.7, 1)  # type: ignore[arg-type]
        assert set(sets.val["textbook"]) <= {0, 10, 20, 30, *range(40, 60, 2)}
        assert len(sets.val["textbook"]) == textbook
        assert [len(sets.val[name]) for name in table.sources] == [20, 10]
        assert sorted([*sets.all_train(), *sets.all_held_out()]) == list(range(60))
    sets = arrange(table, np.ones(60, dtype=bool), held_out, scores, [], 400, 0.7, 1)  # type: ignore[arg-type]
    assert "textbook" not in sets.val
