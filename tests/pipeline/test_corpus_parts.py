"""The parts of the data stage: confined runs, exercises, the library, duplicates, split, encoder."""

import os
import time

import numpy as np
import pytest
from datatrove.data import Document

from pipeline.corpus.duplicates import Sketcher, band_keys, band_rows, clusters
from pipeline.corpus.execute import map_processes
from pipeline.corpus.exercises.confined import BLOCKED, FAILED, KILLED, PASSED, ConfinedRunner
from pipeline.corpus.exercises.exercise import Exercise
from pipeline.corpus.exercises.source import TEMPLATES, Exercises, verify
from pipeline.corpus.exercises.styles import program_of
from pipeline.corpus.sources.python_library import PythonLibrary, long_docstrings
from pipeline.corpus.text.documents import hash_key
from pipeline.corpus.text.tokenizer import Encoder, load_tokenizer
from pipeline.corpus.tokenizing import _train


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "root"))


@pytest.fixture(scope="module")
def runner():
    with ConfinedRunner() as confined:
        yield confined


@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("assert 1 + 1 == 2", PASSED),
        ("assert 1 + 1 == 3", FAILED),
        ("def broken(:", FAILED),
        ("raise SystemExit(0)", FAILED),
        ("while True: pass", KILLED),
        ("import time; time.sleep(60)", KILLED),
        ("x = bytearray(1 << 30)", FAILED),
        ("import os; os.fork()", BLOCKED),
        ("import os\ntry:\n    os.fork()\nexcept BaseException:\n    pass", BLOCKED),
        ("import subprocess; subprocess.run(['true'])", BLOCKED),
        ("import socket; socket.socket()", BLOCKED),
        ("open('/tmp/hornbook-should-not-exist', 'w')", BLOCKED),
        ("import os; assert set(os.environ) <= {'LC_CTYPE'}", PASSED),
    ],
)
def test_a_confined_program_ends_as_it_should(runner, program, ended):
    assert runner.run(program) == [ended]


def test_after_a_killed_program_the_next_one_runs_and_nothing_is_left_behind(runner):
    assert runner.run("while True: pass", "x = 1") == [KILLED, KILLED]
    assert runner.run("assert 'y' not in globals()\ny = 1", "assert 'y' not in globals()") == [PASSED, PASSED]
    assert not os.path.exists("/tmp/hornbook-should-not-exist")


def test_kept_exercises_pass_again_in_a_clean_process_and_their_stubs_fail(runner):
    documents = [d for d in Exercises(count=60).documents(0, 1) if isinstance(d, Document)]
    assert len(documents) >= 58
    assert len({d.text for d in documents}) == len(documents)
    assert {d.metadata["group"].split("/")[0] for d in documents} == set(TEMPLATES)
    assert all(runner.run(program_of(d.text)) == [PASSED] for d in documents)


def test_an_exercise_that_is_wrong_tests_nothing_or_misbehaves_is_not_kept(runner):
    def exercise(body: str, test: str) -> Exercise:
        return Exercise("t", "v", "f(x)", "Return x.", (), body, (test,))

    def refused(wrong: Exercise) -> str | None:
        return verify(wrong.text, wrong, runner)

    assert refused(exercise("return x", "assert f(2) == 2")) is None
    assert refused(exercise("return x + 1", "assert f(2) == 2")) == "solution_failed"
    assert refused(exercise("return x", "assert True")) == "stub_passed"
    assert refused(exercise("while True: pass", "assert f(2) == 2")) == "solution_killed"
    assert refused(exercise("import os\n    os.fork()", "assert f(2) == 2")) == "solution_failed"
    assert refused(exercise("__import__('os').fork()", "assert f(2) == 2")) == "solution_blocked"


def test_exercises_are_the_same_for_any_hash_seed_and_any_split_into_shards():
    whole = {d.id: d.text for d in Exercises(count=12).documents(0, 1) if isinstance(d, Document)}
    parts = {d.id: d.text for t in range(3) for d in Exercises(count=12).documents(t, 3) if isinstance(d, Document)}
    assert whole == parts


def test_the_library_source_reads_modules_descriptions_and_docstrings_of_named_packages():
    source = PythonLibrary(["idna", "humanize", "networkx"], standard_library=False)
    documents = [d for d in source.documents(0, 1) if isinstance(d, Document)]
    assert {d.metadata["group"] for d in documents} == {"idna", "humanize", "networkx"}
    assert {d.metadata["kind"] for d in documents} == {"code", "prose"}
    assert any(d.id.endswith("/METADATA") for d in documents)
    assert any(d.id.endswith("digraph.py:DiGraph") for d in documents)
    assert all(d.metadata["license"] and d.metadata["version"] for d in documents)
    assert (
        source.content_hash() == PythonLibrary(["networkx", "idna", "humanize"], standard_library=False).content_hash()
    )


def test_the_standard_library_is_held_out_by_module_and_has_its_topics():
    source = PythonLibrary([], standard_library=True)
    groups = {f.group for f in source.files}
    assert {"python/asyncio", "python/json", "python/statistics"} <= groups
    documents = [d for d in source.documents(0, 400) if isinstance(d, Document)]
    assert any(d.metadata["group"] == "python/topics" for d in documents)


def test_data_step_on_the_library_is_quick_the_second_time():
    source = PythonLibrary(["networkx", "sympy"])
    source.content_hash()
    started = time.process_time()
    PythonLibrary(["networkx", "sympy"]).content_hash()
    assert time.process_time() - started < 1.0  # 0.15 s on an idle core


def test_only_long_docstrings_become_documents():
    code = f'"""short"""\nclass A:\n    """{"long " * 400}"""\n    class B:\n        """{"deep " * 400}"""\n'
    assert [name for name, _ in long_docstrings(code)] == ["A", "A.B"]


def words(n: int, seed: int) -> list[str]:
    """Made of letters: near dedup takes all numbers for one."""
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("abcdefghij"), 4)) for _ in range(n)]


def _sketch(texts: list[str], kinds: list[str]) -> tuple:
    """In a worker, as the stage does it: threads of the sketches, begun here, would be missing in every later fork."""
    return map_processes(lambda _: Sketcher().sketch(texts, kinds), [None], workers=1)[0]


def near(texts: list[str], kind: str, similarity: float = 0.8) -> np.ndarray:
    """The first member of each text's cluster."""
    values, _ = _sketch(texts, [kind] * len(texts))
    low = values.astype("<u2")

    def alike(left, right):
        return (low[left] == low[right]).mean(axis=1)

    return clusters(band_keys(values, band_rows(similarity)), alike, len(texts), similarity)


def test_planted_near_duplicates_are_found_and_different_texts_are_not():
    texts, planted = [], 40
    for i in range(planted):
        base = words(400, i)
        changed = list(base)
        for at in np.random.default_rng(1000 + i).choice(400, 4, replace=False):  # Jaccard about 0.9
            changed[at] = "new"
        texts += [" ".join(base), " ".join(changed)]
    roots = near(texts, "prose")
    found = sum(roots[2 * i] == roots[2 * i + 1] for i in range(planted))
    assert found >= 0.95 * planted
    assert len(set(roots)) >= planted  # none of the different ones was merged


def test_exercises_that_differ_in_numbers_are_not_duplicates():
    documents = [d for d in Exercises(count=150).documents(0, 1) if isinstance(d, Document)]
    roots = near([d.text for d in documents], "exercise")
    assert len(set(roots)) >= 0.97 * len(documents)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [d.text for d in PythonLibrary(["idna", "humanize"], False).documents(0, 1) if isinstance(d, Document)]
    _train(texts, 600, path)
    return load_tokenizer(path)


def test_fast_ids_are_the_tokenizers_own_on_real_and_on_odd_text(tokenizer):
    encoder = Encoder(tokenizer, np.dtype("<u2"))
    assert encoder.remembers
    odd = [
        "", " ", "\n\n", "a  b", "x\t\ty \n z", "it's we'll 'd 's", "''s", "12 345,6", "a\x1cb\x1f \x0b\x0c c\x85d",
        "héllo wörld ½", "end<|endoftext|>start", "tab\t", "  \n  def f():\r\n    pass", "".join(map(chr, range(128))),
    ]  # fmt: skip
    library = PythonLibrary(["idna", "networkx"], standard_library=False)
    real = [d.text for d in library.documents(0, 8) if isinstance(d, Document)]
    for text in [*odd, *real]:
        found = np.frombuffer(encoder.encode(text), dtype="<u2").tolist()
        assert found == tokenizer.encode(text, add_special_tokens=False).ids, text[:80]


def test_training_a_tokenizer_twice_gives_the_same_file(tmp_path):
    texts = [" ".join(words(300, i)) for i in range(20)]
    _train(texts, 500, tmp_path / "a.json")
    _train(texts, 500, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_golden_outputs_that_step_versions_guard():
    """If this fails because an output changed on purpose, raise that step's number in `steps.VERSIONS`."""
    from pipeline.corpus.reading import digest
    from pipeline.storage.files import hash_json

    text = 'def f(x):\n    """Return twice x, and say so at some length."""\n    return 2 * x  # twice\n'
    exercise = next(d for d in Exercises(count=1).documents(0, 1) if isinstance(d, Document))
    found = {
        "exercise": hash_json(exercise.text)[:12],
        "signature": hash_json(_sketch([text], ["code"])[0].tolist())[:12],
        "digest": digest(text),
        "hash_key": hash_key(0, "source", "group"),
    }
    assert found == {
        "exercise": "425969e8df3e",
        "signature": "81f51d24a681",
        "digest": (8674260626676171473, 2164648386221155802),
        "hash_key": 17045054640266581475,
    }


PROBLEMS = (
    "Tom has {} apples and buys {} more at the market. How many apples does Tom have now?",
    "A train travels {} km in {} hours and then {} km more. How far is it from where it began, and how fast was it?",
    "Anna saves ${} a week. After {} weeks she spends ${} on a bicycle and gives half of what is left to her brother. "
    "How much money does Anna still have?",
    "Maria ate {}/{} of the cake and her brother ate {}/{} of it. How much of the cake is left for the others?",
    "A bag of {}kg and a bag of {}kg are put on a scale beside another one. What do all of them weigh together?",
    "小明有{}个苹果，又买了{}个，然后给了妹妹{}个。他现在一共有多少个苹果？",
)


@pytest.mark.parametrize("form", PROBLEMS)
def test_word_problems_that_differ_in_their_numbers_are_kept(form):
    draw = np.random.default_rng(1)
    texts = {form.format(*draw.integers(2, 400, form.count("{}"))) for _ in range(300)}
    dropped = (near(sorted(texts), "prose") != np.arange(len(texts))).sum()
    assert dropped <= 0.02 * len(texts)


@pytest.mark.parametrize(
    "form",
    [
        "Copyright (c) {} The Authors of this program. All rights are reserved, and no warranty is given.",
        "This is version {}.4.1 of the guide, last changed on {}-03-12 at 10:45. It says how the program is installed.",
        "The {}th of May and the {}rd of June are days of rest, and nobody works in the garden or at the window then.",
        "Changed in {}. The river shows that the stone of the garden is with the window, and the paper explains it.",
    ],
)
def test_a_year_a_date_or_a_version_makes_no_other_text(form):
    texts = [form.format(*[1990 + i] * form.count("{}")) for i in range(30)]
    assert (near(texts, "prose") == 0).all()


def test_a_long_text_with_numbers_is_still_near_its_copy():
    text = " ".join(words(400, 5))
    texts = [f"{text} It cost {i} coins and {i + 1} more." for i in range(2, 12)]
    assert (near(texts, "prose") == 0).all()
