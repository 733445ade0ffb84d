"""Rating one's own documents: at a terminal, and by a server on this machine that answers, fails, stalls and lies."""

import json

import pytest
from chat_server import serve_many
from data_corpus import made, make_config, prose

from pipeline import __main__ as command
from pipeline import config as configs
from pipeline import label
from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.labels import Person, StopRating, excerpt, parse_answer
from pipeline.corpus.synthetic.endpoint import ChatEndpoint, CostCapReached, EndpointError, Price
from pipeline.system.errors import UserError

ASK = [{"role": "user", "content": "x"}]


def rate(body):
    """Texts with the word LESSON get 4, others 1."""
    user = next(m["content"] for m in body["messages"] if m["role"] == "user")
    return json.dumps({"score": 4 if "LESSON" in user else 1, "rationale": "by rule"})


def rate_as(manners):
    """Rates, but some requests in another form: `manners[n]` is a function of the rating's text."""
    count = iter(range(1, 10_000))
    return lambda body: manners.get(next(count), str)(rate(body))


@pytest.fixture
def serve():
    start_any = serve_many()
    start = next(start_any)
    yield lambda behave=lambda n: "answer", write=rate: start(write, behave)
    next(start_any, None)


def endpoint(server, folder, **more):
    return ChatEndpoint(server.url, "rater", folder / "cache.jsonl", **{"pause_seconds": 0.01, **more})


@pytest.mark.parametrize("manner", [429, 500, 503, "broken", "empty", "null"])
def test_a_request_that_fails_is_asked_again(serve, tmp_path, manner):
    server = serve(lambda n: manner if n <= 2 else "answer")
    assert "score" in endpoint(server, tmp_path).ask(ASK, 50)
    assert len(server.requests) == 3


def test_a_stalling_server_times_out_and_a_dead_one_is_named(serve, tmp_path):
    server = serve(lambda n: "stall" if n == 1 else "answer")
    assert "score" in endpoint(server, tmp_path, timeout_seconds=0.2).ask(ASK, 50)
    with pytest.raises(EndpointError, match=r"/chat/completions: HTTP 401"):
        endpoint(serve(lambda n: 401), tmp_path / "b").ask(ASK, 50)
    dead = ChatEndpoint("http://127.0.0.1:9/v1", "m", tmp_path / "c" / "cache", retries=1, pause_seconds=0.01)
    with pytest.raises(EndpointError, match="refused"):
        dead.ask(ASK, 50)


def test_an_answer_is_cached_even_past_a_line_that_was_cut_off(serve, tmp_path):
    server = serve()
    first = endpoint(server, tmp_path).ask(ASK, 50)
    with open(tmp_path / "cache.jsonl", "a") as file:
        file.write('{"key": "cut')
    again = endpoint(server, tmp_path)
    assert again.ask(ASK, 50) == first
    again.ask(ASK, 51)
    assert endpoint(server, tmp_path).ask(ASK, 51)
    assert len(server.requests) == 2


def test_the_cost_cap_holds_over_runs_and_before_the_request(serve, tmp_path):
    server = serve()
    price = Price(per_million_in=1.0, per_million_out=10.0, max_dollars=0.003)
    client = endpoint(server, tmp_path, price=price)
    client.ask(ASK, 50)  # 900 in, 20 out: $0.0011
    assert client.dollars == pytest.approx(0.0011)
    client = endpoint(server, tmp_path, price=price)
    client.ask([{"role": "user", "content": "y"}], 50)
    with pytest.raises(CostCapReached, match=r"\$0.0022 spent of 0.003"):
        client.ask([{"role": "user", "content": "z"}], 100)
    assert len(server.requests) == 2


def test_the_key_is_sent_and_never_written(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-thing")
    server = serve()
    endpoint(server, tmp_path).ask(ASK, 50)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-thing"
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()


@pytest.mark.parametrize("odd", [
    "[" * 100_000, "[1]", '{"key": []}', '{"key": "k", "text": "t", "tokens_in": Infinity, "tokens_out": 1}',
    '{"key": "k", "at_most": [1e999, 1]}', '{"key": "k", "at_most": 5}',
])  # fmt: skip
def test_a_damaged_line_of_the_answers_kept_is_passed_over(odd, serve, tmp_path):
    server = serve()
    first = endpoint(server, tmp_path).ask(ASK, 50)
    with open(tmp_path / "cache.jsonl", "a") as file:
        file.write(odd + "\n")
    again = endpoint(server, tmp_path)
    assert again.ask(ASK, 50) == first
    assert again.asked == 0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 3, "rationale": "teaches"}', 3), ('Sure!\n```json\n{"score": 0, "rationale": "empty"}\n```', 0),
        ('{"score": 9, "rationale": "x"}', None), ('{"score": true, "rationale": "x"}', None), ("4", None),
        ('{"score": 3.5, "rationale": "x"}', None), ('{"score": 3}', None), ('{"score": 3, "rationale": " "}', None),
        ("[]", None), ("{", None), ("", None), ('{"score": ' + "[" * 100_000 + "}", None),
        ('{"score": [3], "rationale": "x"}', None), ('{"score": Infinity, "rationale": "x"}', None),
    ],
)  # fmt: skip
def test_only_a_rating_in_the_form_asked_for_is_taken(answer, score):
    rating = parse_answer(answer)
    assert (rating.score if rating else None) == score


def own_texts(root, n: int = 60):
    """Two thirds of them lessons, in ten groups."""
    path = root / "mine.jsonl"
    texts = [
        ("LESSON " * 3 if i % 3 else "") + prose(i) + (" This is so because it must." * 5 if i % 3 else "")
        for i in range(n)
    ]
    path.write_text("".join(json.dumps({"text": t, "domain": f"d{i % 10}"}) + "\n" for i, t in enumerate(texts)))
    source = {"type": "jsonl", "path": str(path), "group_key": "domain", "license": "own"}
    return make_config(path, data__sources={"mine": source}, data__filters={"length": {}, "quality": {}})


def test_an_endpoint_rates_and_the_scorer_it_taught_cuts_that_configs_data(root, serve, capsys):
    def behave(n):
        return {3: 500, 14: "broken"}.get(n, "answer")

    manners = {
        5: lambda rating: '{"score": 9, "rationale": "best ever"}',
        22: lambda rating: "I would say 4.",
        40: lambda rating: f"```json\n{rating}\n```",
    }
    config, server = own_texts(root), serve(behave, rate_as(manners))
    folder = root / "runs" / "test"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected at least 10 of each. Rate more: hornbook label test.yaml"):
        label.run(config, "test.yaml", label.Choice(12), endpoint(server, folder))
    label.run(config, "test.yaml", label.Choice(50), endpoint(server, folder))
    said = capsys.readouterr().out
    assert "label: scorer of 50 ratings" in said
    records = [json.loads(line) for line in (folder / label.LABELS).read_text().splitlines()]
    assert len({r["sha256"] for r in records}) == len(records) == 50
    assert {r["rater"] for r in records} == {"rater with this rubric"}
    assert {r["score"] for r in records} == {1, 4}
    asked = len(server.requests)
    label.run(config, "test.yaml", label.Choice(50), endpoint(server, folder))
    assert len(server.requests) == asked  # nothing is asked twice
    assert "50 documents, 50 of them rated already" in capsys.readouterr().out
    assert (folder / SHIPPED.name).is_file()
    manifest = made(make_config(config.data.sources["mine"]["path"], data__sources=config.data.sources,
                                data__filters=config.data.filters, data__scorer={"type": "trained"}))  # fmt: skip
    assert manifest["classifier"]["auc"] > 0.95
    assert manifest["classifier"]["labels"] == "rater with this rubric"
    assert 0.2 < manifest["documents"]["dropped"]["quality"] / 60 < 0.45


def test_an_endpoint_that_only_fails_stops_the_command_and_keeps_what_is_rated(root, serve, capsys):
    config, folder = own_texts(root), root / "runs" / "test"
    folder.mkdir(parents=True)
    server = serve(lambda n: "answer" if n <= 6 else 500)
    with pytest.raises(UserError, match=r"the endpoint failed 5 times in a row.*the same command resumes"):
        label.run(config, "c", label.Choice(30, concurrency=1), endpoint(server, folder, retries=0))
    assert len((folder / label.LABELS).read_text().splitlines()) == 6
    capped = Price(1.0, 10.0, max_dollars=6 * 0.0011 + 0.02)
    with pytest.raises(UserError, match="expected at least 10 of each"):
        label.run(config, "c", label.Choice(30, concurrency=1), endpoint(serve(), folder, price=capped))
    assert "stopped at the cost cap" in capsys.readouterr().out


def test_a_person_rates_passes_over_asks_for_the_rubric_and_stops(root, monkeypatch, capsys):
    config = own_texts(root)
    answers = iter(["?", "7", "4", "clear", "s", "2", "", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    with pytest.raises(UserError, match="1 documents are rated 3 or more and 1 below"):
        label.run(config, "test.yaml", label.Choice(20), None)
    said = capsys.readouterr().out
    assert "Educational value, 0 to 5" in said
    assert "'7' is no score; expected 0 to 5, s, q or ?" in said
    records = [json.loads(line) for line in (root / "runs" / "test" / label.LABELS).read_text().splitlines()]
    assert [(r["score"], r["rationale"]) for r in records] == [(4, "clear"), (2, "no reason given")]
    assert {r["rater"] for r in records} == {"a person at a terminal"}
    documents = label.sample(config, 20)
    assert [d.id for d in documents] == [d.id for d in label.sample(config, 20)]
    assert len({d.metadata["group"] for d in documents}) >= 8

    def closed(prompt):
        raise EOFError

    with pytest.raises(StopRating):
        Person(closed, print).rate(documents[0])


def test_an_excerpt_leaves_the_licence_out_and_shows_the_middle():
    from datatrove.data import Document

    header = "# Licensed under the Apache License\n" * 8
    text = header + "import x\n" + "a" * 3_000 + "MIDDLE" + "b" * 3_000
    shown = excerpt(Document(text=text, id="p", metadata={"path": "p.py", "kind": "code"}))
    assert shown.startswith("p.py (6,")
    assert "Licensed" not in shown
    assert "MIDDLE" in shown
    assert len(shown) < 2_600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint", "http://x/v1"], "--endpoint and --model go together"),
        (["--max-dollars", "1"], "needs the model's prices"),
        (["--endpoint", "x", "--model", "m"], "expected an address such as"),
        (["--documents", "0"], "expected at least 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(root, capsys, words, message):
    path = root / "test.yaml"
    path.write_text(configs.to_yaml(own_texts(root)))
    assert command.run_guarded(command.parse(["label", str(path), *words])) == 2
    assert message in capsys.readouterr().err
