"""Texts that a model writes, asked from a server on this machine that answers, fails, stalls and lies; code that it
writes is really run, in real namespaces."""

import hashlib
import itertools
import json
import random
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from chat_server import LIES, serve_many
from data_corpus import SUBJECTS, VERBS, made, make_config, prose
from datatrove.data import Document

from pipeline import clean
from pipeline.corpus import steps
from pipeline.corpus.exercises.confined import FAILED, PASSED, ConfinedRunner
from pipeline.corpus.exercises.exercise import DIFFICULTIES, Exercise
from pipeline.corpus.exercises.isolated import IsolatedRunner, NotIsolated
from pipeline.corpus.exercises.model_exercise import problem_of, verify
from pipeline.corpus.exercises.source import TEMPLATES, Exercises
from pipeline.corpus.exercises.styles import STYLES, plant_bug, program_of, trace
from pipeline.corpus.steps import make_source, named_sources
from pipeline.corpus.synthetic.endpoint import ChatEndpoint, CostCapReached, EndpointError, Price
from pipeline.corpus.synthetic.forms import FORMS, clean_answer, cut, make_seeds, problem
from pipeline.corpus.synthetic.source import Synthetic
from pipeline.corpus.text.documents import Table, read_all_alive, read_records, read_validation
from pipeline.data import data_makers
from pipeline.evaluation.tasks import find_exercises
from pipeline.storage.files import read_json_lines, root
from pipeline.storage.store import build
from pipeline.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ASK = [{"role": "user", "content": "x"}]
TERMS = "output may be used for any purpose"


@pytest.fixture
def serve():
    start = serve_many()
    yield next(start)
    next(start, None)


@pytest.fixture(scope="module")
def isolated():
    try:
        with IsolatedRunner() as runner:
            yield runner
    except NotIsolated as why:
        pytest.skip(f"this machine gives no namespaces: {why}")


def words(draw: random.Random, n: int) -> str:
    """Sentences with the stop words that a rule for prose asks for."""
    found = []
    for _ in range(n // 15 + 1):
        a, b, c = draw.choices(SUBJECTS, k=3)
        found.append(
            f"The {a} {draw.choice(VERBS)} that the {b} of case {draw.randint(1, 9_999)} is with the {c} and more."
        )
    return " ".join(found)


def exercise(name: str = "double", body: str = "return 2 * x", tests=("(2) == 4", "(0) == 0", "(-3) == -6")) -> str:
    asserts = "\n".join(f"assert {name}{t}" for t in tests)
    return (
        f"Write a function `{name}` that takes a number and gives back a number, as the checks below say it must.\n\n"
        f'```python\ndef {name}(x):\n    """From a number to a number."""\n    {body}\n```\n\nIt follows the rule '
        f"that was given.\n\n```python\n{asserts}\n```"
    )


def write(body) -> str:
    """A model that does what it is asked: another text for every request."""
    told = body["messages"][-1]["content"]
    draw = random.Random(json.dumps(body, sort_keys=True))
    if "programming exercise" in told:
        k = draw.randint(2, 9_999)
        return exercise(f"times_{k}", f"return {k} * x", (f"(2) == {2 * k}", "(0) == 0", f"(-1) == {-k}"))
    if "into a table" in told:
        rows = "\n".join(f"| {draw.choice(SUBJECTS)} | {draw.randint(1, 999)} |" for _ in range(4))
        return f"# A table\n\n{words(draw, 30)}\n\n| what | how many |\n|---|---|\n{rows}\n\n{words(draw, 40)}"
    if "into questions" in told:
        return "\n\n".join(f"Q: What is {draw.choice(SUBJECTS)}?\nA: {words(draw, 30)}" for _ in range(4))
    if "into a tutorial" in told:
        return "# How to\n\n" + "\n".join(f"{i}. {words(draw, 50)}" for i in range(1, 5))
    if "problems of reasoning" in told:
        one = lambda a, b: f"Problem: {words(draw, 30)} Add {a} and {b}.\n\nSolution: {a} + {b} = {a + b}."  # noqa: E731
        return "\n\n".join(one(draw.randint(1, 99), draw.randint(1, 99)) for _ in range(3))
    return f"# A section\n\n{words(draw, 90)}\n\n{words(draw, 90)}"


def with_synthetic(tmp_path, server, count=30, **options):
    """Own documents in ten groups, and texts made from them and of topics."""
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": prose(i), "domain": f"d{i % 10}"}) + "\n" for i in range(40)))
    mine = {"type": "jsonl", "path": str(path), "group_key": "domain", "license": "MIT"}
    written = {"type": "synthetic", "endpoint": server.url, "model": "writer", "count": count, "license": "CC0-1.0",
               "terms": TERMS, "documents": "mine", "pause_seconds": 0.01, **options}  # fmt: skip
    filters = {"licence": {}, "length": {"min_characters": 50}}
    sources = {"mine": mine, "written": written}
    return make_config(path, data__sources=sources, data__filters=filters, data__validation={"share": 0.2})


def read_step(config):
    return next(s for s in steps.data_step(config).chain() if s.config.get("source") == "written")


def read_folder(config):
    return read_step(config).path


def read(config) -> dict:
    """The texts asked for, checked and written, without the rest of the stage."""
    return build(read_step(config), data_makers(config, steps.data_step(config)), experiment="test")


def documents(config) -> list[dict]:
    return [r for path in sorted((read_folder(config) / "documents").glob("*.jsonl")) for r in read_records(path)]


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "root"))


def test_texts_of_every_form_are_written_checked_and_kept_with_their_origin(tmp_path, serve, isolated):
    begun, two = itertools.count(1), threading.Barrier(2)

    def write_together(body):
        if next(begun) <= 2:
            two.wait(timeout=60)  # the first answer is not there before the second question
        return write(body)

    server = serve(write_together)
    config = with_synthetic(tmp_path, server)
    facts = read(config)["synthetic"]
    found = documents(config)
    assert len(found) == 30 == len(server.requests)
    assert 1 < server.most_running <= 4
    origins = [r["metadata"]["synthetic"] for r in found]
    assert {o["form"] for o in origins} == set(FORMS)
    for origin, record in zip(origins, found, strict=True):
        assert (origin["model"], origin["endpoint"], origin["terms"], origin["seed"]) == (
            "writer",
            "127.0.0.1",
            TERMS,
            0,
        )
        assert re.fullmatch("[0-9a-f]{64}", origin["prompt_hash"])
        rewrite = FORMS[origin["form"]].rewrites
        assert record["metadata"]["license"] == ("MIT" if rewrite else "CC0-1.0")
        assert record["metadata"]["kind"] == ("exercise" if origin["form"] == "exercise" else "prose")
        assert ("document" in origin) == rewrite
    sent = {
        hashlib.sha256(json.dumps(r["messages"], sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        for r in server.requests
    }
    assert {o["prompt_hash"] for o in origins} == sent
    for record in found:  # kept exercises pass again in a clean process
        if record["metadata"]["kind"] == "exercise":
            assert isolated.run(program_of(record["text"])) == [PASSED]
    assert (facts["answered"], facts["failed"], facts["not_asked"]) == (30, 0, 0)
    assert facts["terms"] == TERMS


def test_a_rewrite_is_held_out_with_its_document(tmp_path, serve):
    lies = iter(["I cannot do that.", *[None] * 100])
    server = serve(lambda body: next(lies) or write(body))
    config = with_synthetic(tmp_path, server, count=60, forms=["faq", "tutorial"])
    manifest = made(config)
    assert manifest["reasons"]["synthetic"] == {"refusal": 1}
    assert manifest["documents"]["dropped"]["synthetic"] == 1
    assert manifest["sources"]["written"]["licenses"].keys() == {"MIT"}
    assert (steps.data_step(config).path / "dropped" / "synthetic" / "refusal.jsonl.zst").is_file()
    chain = {s.name: s.path for s in steps.data_step(config).chain()}
    table = Table.load(chain["data-repair"])
    held = read_validation(chain["data-split"], table.tasks)
    alive = read_all_alive(chain["data-exact-dedup"], table.tasks)
    for group in set(table.rows["group"][alive].tolist()):
        rows = alive & (table.rows["group"] == group)
        assert len(set(table.rows["source"][rows].tolist())) == 2  # documents and what was made of them
        assert held[rows].all() or not held[rows].any()
    assert held.any()
    assert not held[alive].all()


def test_nothing_is_asked_twice_and_a_run_that_was_stopped_goes_on(tmp_path, serve):
    down = serve(write, lambda n: "answer" if n <= 12 else 500)
    config = with_synthetic(tmp_path, down, forms=["textbook", "table"], retries=0, concurrency=1)
    with pytest.raises(
        UserError, match=r"the endpoint failed 5 times in a row, last: .*HTTP 500.*same command resumes"
    ):
        read(config)
    down.behave = lambda n: "answer"
    asked = len(down.requests)
    read(config)
    assert len(down.requests) == asked + 30 - 12
    again = with_synthetic(tmp_path, down, count=33, forms=["textbook", "table"], concurrency=8)
    read(again)  # more texts: the cache has the others
    assert len(down.requests) == asked + 30 - 12 + 3
    before, after = ({r["id"]: r["text"] for r in documents(c)} for c in (config, again))
    assert before.items() <= after.items()
    assert {Path(row["path"]).parent.name for row in clean.plan()["folders"]} == {"data-read"}  # never paid answers


LIED = {
    "empty": " \n", "refusal": "I'm sorry, but I can't help with that.", "truncated": "# A\n\n```python\nx = 1",
    "repeats_itself": "# A\n\n" + "the same words are said again and again here, so it is. " * 40,
    "no_heading": words(random.Random(1), 150), "broken_characters": "# A\n\n\ufffd" + words(random.Random(2), 150),
    "too_short": "# A\n\nShort.", "longer_than_asked": "# A\n\n" + words(random.Random(3), 60_000),
}  # fmt: skip


def test_every_lie_is_counted_by_its_reason_and_kept_aside(tmp_path, serve):
    odd = f"# Odd\n\n{words(random.Random(0), 150)} \ud800 half a pair, \u2028 another line, \x85 too."
    lies = iter([*LIED.values(), odd, *[None] * 100])
    server = serve(lambda body: next(lies) or write(body))
    config = with_synthetic(tmp_path, server, forms=["textbook"], concurrency=1)
    manifest = read(config)
    assert manifest["reasons"]["synthetic"] == dict.fromkeys(sorted(LIED), 1)
    assert manifest["dropped"]["synthetic"] == len(LIED)
    aside = [r for p in (read_folder(config) / "set_aside").glob("*") for r in read_records(p)]
    assert {r["cause"] for r in aside} == set(LIED)
    assert len(documents(config)) == 30 - len(LIED)
    assert sum("? half a pair, \u2028 another line" in r["text"] for r in documents(config)) == 1


def test_structures_that_were_not_asked_for_are_named():
    seed = " ".join(f"word{i}" for i in range(300))
    cases = {
        ("table", "no_table"): words(random.Random(4), 80),
        ("table", "broken_table"): "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 2 | 3 |\n| 1 | 2 |\n"
        + words(random.Random(4), 60),
        ("faq", "too_few_questions"): words(random.Random(5), 90),
        ("faq", "question_without_answer"): "Q: What is this?\nQ: What is that?\nQ: And why?\nA: "
        + words(random.Random(6), 90),
        ("tutorial", "too_few_steps"): "# T\n\n1. One.\n2. Two.\n" + words(random.Random(7), 130),
        ("maths", "too_few_problems"): "Problem: add.\n\nSolution: 1 + 1 = 2\n" + words(random.Random(8), 70),
        ("textbook", "copy_of_seed"): "# A\n\n" + seed,
        ("textbook", None): "# A\n\n" + words(random.Random(9), 130),
    }
    for (form, reason), text in cases.items():
        assert problem(text, form, "stop", 1500, seed) == reason, (form, reason)
    assert problem("# A\n\n" + words(random.Random(9), 130), "textbook", "length", 1500, None) == "truncated"
    assert clean_answer("Sure! Here is the table:\n\n# T\nx") == "# T\nx\n"
    assert clean_answer("```markdown\n# T\n```") == "# T\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (exercise(), None),
        (exercise(body="return 3 * x"), "solution_failed"),
        (exercise(body="while True: pass"), "solution_killed"),
        (exercise(tests=("(2) or True", "(1) or True", "(3) or True")), "stub_passed"),
        (exercise(body="import _socket; _socket.socket()"), "forbidden_code"),
        (exercise(body="import os; os._exit(2)"), "forbidden_code"),
        (exercise(body="import random; random._os._exit(2)"), "forbidden_code"),
        (exercise(body="return open('/tmp/x', 'w') and 2 * x"), "solution_blocked"),
        (exercise(body="return open('/etc/passwd') and 2 * x"), "solution_failed"),
        (exercise(body="import random; return 2 * x + random.getrandbits(60)"), "solution_failed"),
        (exercise(tests=("(2) == 4",)), "too_few_assertions"),
        (exercise(body="return 2 *"), "code_does_not_parse"),
        ("No code here at all, only words.", "no_code"),
        ("```python\nx = 1\nassert x\nassert x\nassert x\n```", "no_function"),
    ],
)
def test_code_of_a_model_is_run_in_isolation_and_kept_only_if_its_tests_test(isolated, text, reason):
    assert (problem_of(text) or verify(text, isolated)) == reason


def test_without_namespaces_exercises_of_a_model_are_refused_before_a_word_is_paid(tmp_path, serve, monkeypatch):
    script = tmp_path / "no_namespaces.py"
    script.write_text("print('\"namespaces: Operation not permitted\"', flush=True)")
    monkeypatch.setattr(IsolatedRunner, "server", lambda self, folder: [sys.executable, str(script)])
    server = serve(write)
    with pytest.raises(
        UserError, match=r"run in namespaces only, and this machine gives none .*Operation not permitted"
    ):
        read(with_synthetic(tmp_path, server))
    assert not server.requests


def client(server, tmp_path, **more) -> ChatEndpoint:
    return ChatEndpoint(server.url, "m", tmp_path / "cache.jsonl", **{"pause_seconds": 0.01, **more})


@pytest.mark.parametrize(
    "manner", [*LIES, "huge", "hang up", {"prompt_tokens": float("inf")}, {"prompt_tokens": "many"}]
)
def test_broken_and_huge_answers_are_asked_again(serve, tmp_path, manner):
    server = serve(write, lambda n: manner if n <= 2 else "answer")
    assert client(server, tmp_path).ask(ASK, 50)
    assert len(server.requests) == 3


def test_a_server_that_drips_is_given_up_in_time_and_one_that_says_when_is_waited_for(serve, tmp_path):
    server = serve(write, lambda n: "drip" if n == 1 else "answer")
    started = time.monotonic()
    assert client(server, tmp_path, timeout_seconds=0.3).ask(ASK, 50)
    assert time.monotonic() - started < 2
    later = serve(write, lambda n: (429, 0.7) if n == 1 else "answer")
    assert client(later, tmp_path / "b").ask(ASK, 50)
    assert later.times[1] - later.times[0] >= 0.7


def test_the_cap_holds_with_requests_in_flight_stalls_and_lies_about_usage(tmp_path, serve):
    """Against what the requests can really have cost at most: a token is a byte at least."""
    price = Price(per_million_in=1.0, per_million_out=10.0, max_dollars=0.15)

    def behave(n):
        return {1: "stall", 2: 500, 3: "broken", 4: "hang up"}.get(n % 9, {"prompt_tokens": 0, "completion_tokens": 0})

    server = serve(write, behave)
    options = {"forms": ["textbook"], "price_in": 1.0, "price_out": 10.0, "max_dollars": price.max_dollars,
               "concurrency": 6, "timeout_seconds": 0.3, "max_tokens": 400, "count": 60}  # fmt: skip
    config = with_synthetic(tmp_path, server, **options)
    facts = read(config)["synthetic"]
    assert facts["not_asked"] > 0
    assert facts["answered"] > 5
    sent = [json.dumps(r).encode() for r in server.requests]
    refused = sum(1 for n in range(1, len(sent) + 1) if n % 9 == 2)
    most = [(len(b) * 1.0 + 400 * 10.0) / 1e6 for b in sent]
    cache = next((root() / "artifacts" / ".requests").glob("*/requests.jsonl"))
    again = ChatEndpoint(server.url, "writer", cache, price=price)
    assert 0.1 < again.dollars <= price.max_dollars
    records = read_json_lines(cache)
    assert sum("at_most" in r for r in records) == len(sent)
    assert sum("refused" in r for r in records) == refused
    answered = [r for r in records if "text" in r]
    unknown = len(sent) - refused - len(answered)
    assert unknown > 0
    counted = sum((r["tokens_in"] + 10.0 * r["tokens_out"]) / 1e6 for r in answered)
    assert again.dollars == pytest.approx(counted + unknown * sum(most) / len(most), rel=0.02)
    assert all(r["tokens_out"] == min(len(r["text"].encode()), 400) for r in answered)  # 0 tokens are not believed
    before = len(server.requests)
    assert client(server, tmp_path / "free").ask(ASK, 10)  # the money of others is not touched
    with pytest.raises(CostCapReached):
        again.ask(ASK, 100_000)
    assert len(server.requests) == before + 1


def test_a_request_that_a_kill_cut_off_still_counts(tmp_path, serve):
    server = serve(write)
    first = client(server, tmp_path, price=Price(1.0, 10.0, 1.0))
    first.ask(ASK, 50)
    lines = (tmp_path / "cache.jsonl").read_text().splitlines()
    (tmp_path / "cache.jsonl").write_text(lines[0] + "\n" + lines[1][:30])
    again = client(server, tmp_path, price=Price(1.0, 10.0, 1.0))
    assert again.dollars == pytest.approx(json.loads(lines[0])["at_most"][0] * 1e-6 + 50 * 1e-5)


def test_a_key_goes_to_the_named_address_only_and_into_no_file_or_message(tmp_path, serve, monkeypatch, capsys):
    monkeypatch.setenv("WRITER_KEY", "sk-very-secret")
    server = serve(write, lambda n: 500 if n == 1 else "answer")
    read(with_synthetic(tmp_path, server, count=4, forms=["textbook"], key_variable="WRITER_KEY"))
    assert {h["Authorization"] for h in server.headers} == {"Bearer sk-very-secret"}
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(b"very-secret" in p.read_bytes() for p in files)
    assert "very-secret" not in "".join(capsys.readouterr())
    elsewhere = client(serve(write, lambda n: (302, 0)), tmp_path / "c", key_variable="WRITER_KEY")
    with pytest.raises(EndpointError, match="HTTP 302"):
        elsewhere.ask(ASK, 5)
    monkeypatch.setenv("WRITER_KEY", "sk-very\nsecret")
    with pytest.raises(UserError, match="WRITER_KEY holds characters") as error:
        client(server, tmp_path / "d", key_variable="WRITER_KEY")
    assert "very" not in str(error.value)


def test_private_documents_do_not_leave_this_machine_unasked(tmp_path, serve):
    mine = {"type": "text", "path": str(tmp_path / "notes"), "license": "own", "name": "mine"}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(prose(1, 30))
    common = {"type": "synthetic", "model": "m", "count": 2, "license": "own", "terms": TERMS, "documents": mine,
              "forms": ["faq"], "price_in": 0.0, "price_out": 0.0}  # fmt: skip
    with pytest.raises(UserError, match=r"license: own would be sent to models\.example; .*send_private: true"):
        make_source({"endpoint": "https://models.example/v1", **common}, "written").prepare(tmp_path)
    server = serve(write)
    source = make_source({"endpoint": server.url, **common}, "written")
    source.prepare(tmp_path)
    rewrites = [d for d in source.documents(0, 1) if isinstance(d, Document)]
    assert {d.metadata["license"] for d in rewrites} == {"own"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"price_in": 1.0}, "max_dollars is not set"),
        ({"max_dollars": 1.0}, "the model has no price"),
        ({"endpoint": "https://models.example/v1"}, "price_in and price_out are not set"),
        ({"documents": None, "forms": ["faq"]}, "forms has 'faq', a rewrite; expected `documents`"),
        ({"documents": "theirs"}, r"data\.sources\.written\.documents is 'theirs'; .*there are: mine"),
        ({"forms": ["poem"]}, "forms has 'poem'"),
        ({"topics": "loops"}, "topics is 'loops'; expected a list"),
        ({"count": 0}, "count is 0"),
        ({"endpoint": "localhost:8000"}, "expected an address such as"),
        ({"endpoint": "http://me:secret@localhost:8000/v1"}, "has a name, a password or a query"),
    ],
)
def test_a_mistake_in_the_options_is_one_message(tmp_path, serve, options, message):
    with pytest.raises(UserError, match=message) as error:
        steps.data_step(with_synthetic(tmp_path, serve(write), **options))
    assert "secret" not in str(error.value)


def test_seeds_differ_and_depend_on_nothing_but_the_options():
    doc = Document(
        text="\n\n".join(prose(i, 6) for i in range(8)), id="a", metadata={"path": "a", "group": "g", "license": "MIT"}
    )
    excerpts = list(cut(doc, 1_000))
    assert len(excerpts) > 2
    assert all(200 <= len(e.text) <= 1_000 for e in excerpts)
    given = (
        list(FORMS),
        ["a", "b"],
        ["x", "y", "z"],
        {name: excerpts for name, form in FORMS.items() if form.rewrites},
        1,
    )
    seeds = list(make_seeds(400, *given))
    assert len({json.dumps(s.messages()) for s in seeds}) == len(seeds)
    assert [s.record() for s in seeds] == [s.record() for s in make_seeds(400, *given)]
    assert {s.form for s in seeds[:6]} == set(FORMS)
    assert len([s for s in seeds if s.form == "table"]) == len(excerpts) * 3  # no more that differ
    assert seeds[:50] == list(make_seeds(50, *given))


def test_the_examples_in_documents_and_config_are_accepted():
    page = (ROOT / "docs" / "data" / "synthetic.md").read_text()
    shown = yaml.safe_load(re.findall(r"```yaml\n(data:.*?)```", page, re.DOTALL)[0])["data"]["sources"]
    lines = (ROOT / "configs" / "domain-24gb.yaml").read_text().split("\n")
    start = lines.index("    # rewritten:")
    block = [line.replace("    # ", "", 1) for line in lines[start : start + 8]]
    commented = {"documents": shown["mine"], **yaml.safe_load("\n".join(block))}
    for sources in (shown, commented):
        named = named_sources(make_config(ROOT, data__sources=sources))
        kinds = {type(make_source(options, name)) for name, options in named.items()}
        assert Synthetic in kinds


def test_exercises_come_in_every_style_and_difficulty_and_the_same_whatever_is_left_out():
    source = Exercises(count=99, seed=5)
    found = {d.id: d for d in source.documents(0, 1) if isinstance(d, Document)}
    assert len(found) >= 97
    assert {d.metadata["style"] for d in found.values()} == set(STYLES)
    assert {d.metadata["difficulty"] for d in found.values()} == set(DIFFICULTIES)
    assert len({d.id.split("/")[0] for d in found.values()}) == len(TEMPLATES) >= 15
    shown = [d for d in found.values() if d.metadata["style"] in ("function", "fill", "tests_first")]
    assert len(find_exercises(d.text for d in shown)) == len(shown) > 20
    few = Exercises(count=6, seed=5, templates=["graphs", "clock"], styles=["debugging"], difficulties=["hard"])
    documents = [d for d in few.documents(0, 1) if isinstance(d, Document)]
    assert {d.metadata["group"].split("/")[0] for d in documents} == {"graphs", "clock"}
    assert {d.metadata["style"] for d in documents} <= {"debugging", "function"}
    for options in ({"styles": ["poem"]}, {"templates": "clock"}, {"difficulties": []}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} (has|is) "):
            Exercises(count=1, **options)


def test_a_planted_mistake_fails_a_test_and_a_walk_through_says_what_really_happens():
    text = "total = 0\nfor x in xs:\n    if x > 2:\n        total += x\nreturn total"
    tests = ("assert f([1, 2, 3]) == 3", "assert f([]) == 0")
    made_up = Exercise("t", "v", "f(xs)", "Sum.", (">>> f([1, 2, 3])", "3"), text, tests)
    with ConfinedRunner() as runner:
        for seed in range(6):
            bug = plant_bug(made_up, random.Random(seed), runner)
            if bug is not None:
                assert runner.run(f"{made_up.code(bug.body)}\n{bug.test}") == [FAILED]
        counting = replace(made_up, body="while xs < 9:\n    xs = xs + 1\nreturn xs", tests=("assert f(3) == 9",))
        found = [plant_bug(counting, random.Random(seed), runner) for seed in range(6)]
    assert {bug.right for bug in found if bug} == {"<", "9"}  # steps of 2 end at 9 too, `xs - 1` never
    steps_taken, result = trace(made_up, "f([1, 2, 3])")
    assert result == "3"
    assert steps_taken[0] == ("total = 0", "`total = 0`")
    assert steps_taken[-1] == ("total += x", "`total = 3`")
