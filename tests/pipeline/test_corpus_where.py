"""`where`: its grammar, the place of what is not understood, and what became of the records it excludes."""

import json
import pickle

import pytest
from data_corpus import items, made, make_config, prose

from pipeline import data, stages
from pipeline.corpus.sources.records import HuggingFace, Jsonl, Parquet
from pipeline.corpus.sources.where import MAX_CHARACTERS, Where
from pipeline.corpus.text.source import make
from pipeline.corpus.text.user_files import Unreadable
from pipeline.system.errors import UserError

pytestmark = pytest.mark.usefixtures("root")

RECORD = {
    "source": "web", "score": 2.5, "n": 7, "ok": True, "none": None, "tag": "a and b", "quote": "it's", "minus": -1.5,
    "meta": {"url": "u", "deep": {"x": 1}, "content-type": "html"}, "a.b": 1, "class": "c", "my field": "m", "AND": 1,
    "content-length": 3, "größe": 2, "n@me": "x", "tick": 'say "hi" or \'ho\'', "big": 2**60 + 1,
}  # fmt: skip
TRUE = [
    "score >= 2.5", "score>-1", "score == 2.5 and n == 7", "n != 8", "n<8", "n <= 7.0", "minus == -1.5", "minus < -1e0",
    "n == 0.7e1", "n == 7_000e-3", "minus == -1.5 and n > +6", "2 < n", "2 < score <= 3 < n", "1 <= n < 10",
    "source != 'spam' AND score >= 1", "source == 'spam' or score >= 1", "source == 'spam' OR n == 7",
    "not source == 'spam'", "NOT (source == 'spam' Or n == 8)", "not not n == 7", "n == 8 and n == 9 or n == 7",
    "n == 7 or n == 8 and n == 9", "not n == 8 and n == 7", "(((n == 7)))", "tag == 'a and b'", "tag == \"a and b\"",
    r"quote == 'it\'s'", "quote == \"it's\"", r"""tick == "say \"hi\" or 'ho'" """, "ok == true", "ok == True",
    "ok != FALSE", "none is null", "absent is null", "n is not null", "meta.nothing IS NULL", "meta.url == 'u'",
    "meta.deep.x >= 1", "meta.content-type == 'html'", "meta.`content-type` == 'html'", "`meta`.url in ('u')",
    "a.b == 1", "`a.b` == 1", "class == 'c'", "`my field` == 'm'", "`AND` == 1", "content-length == 3", "größe == 2",
    "`n@me` == 'x'", "source in ('web', 'books')", "source in [\"web\"]", "n in (1, 7,)", "n not in (1, 2)",
    "source not in ('spam', 3)", "n in ('x', 7)", "n == 7\n  and ok == true", f"big == {2**60 + 1}", f"big != {2**60}",
    "score is null or score >= 1", "none is null and n == 7", "n == 7 or absent == 1", "not (n == 8 and absent == 1)",
    "source > 'a'", r"tag != 'a\\b'", r"tag != 'a\u0020b'", "none is not null and none > 3 or n == 7",
]  # fmt: skip
FALSE = [
    "n == 8", "not n == 7", "n in (1, 2)", "n not in (7)", "none is not null", "none is not null and none > 3",
    "n is null", "absent == 1 and n == 8", "1 <= n < 7", "ok == false", "tag == 'a'", "n == 8 or source == 'spam'",
]  # fmt: skip
UNKNOWN = {
    "none == 1": "no_where_field", "absent != 1": "no_where_field", "not absent == 1": "no_where_field",
    "absent == 1 or n == 8": "no_where_field", "absent == 1 and n == 7": "no_where_field",
    "absent not in (1, 2)": "no_where_field", "meta.deep.x.y > 1": "no_where_field",
    "n != '7'": "where_field_type", "source > 3": "where_field_type", "ok == 1": "where_field_type",
    "not ok in (1, 'true')": "where_field_type", "n == true": "where_field_type", "meta != 'x'": "where_field_type",
}  # fmt: skip
# What is no condition -> the text that the caret stands below, and a part of the message.
WRONG = {
    "source != 'spam' && score >= 1": ("&&", "write `and`"), "a == 1 || b == 2": ("||", "write `or`"),
    "a = 1": ("= 1", "write `==`"), "a <> 1": ("<>", "write `!=`"), "a === 1": ("===", "write `==`"),
    "a => 1": ("=>", "write `>=`"), "a =< 1": ("=<", "write `<=`"), "!(a == 1)": ("!", "write `not`"),
    "a == 1 # all": ("#", "comment"), "a == 1 -- all": ("--", "comment"), "a == 1, b == 2": (", b", "found ','"),
    "a == 1; b == 2": (";", "comment"), "a == 'x": ("'x", "not closed"), "a == ‘x’": ("‘", "straight quotes"),
    "a == b": ("== b", "'b'"), "l == 'a' or 'b'": ("'b'", "expected a comparison"), "score": ("score", "score == true"),
    "a >= 1 and b": ("b", "'b'"), "a >= 1 and": ("", "found 'the end'"), "and a == 1": ("and", "backticks"),
    "a == 1 b == 2": ("b ==", "expected `and`"), "(a == 1": ("", "expected `)`"), "a == 1)": (")", "found ')'"),
    "len(a) > 3": ("(a", "nothing is called"), "a[0] == 1": ("[0", "nothing is called"),
    "a + 1 > 2": ("+ 1", "arithmetic"),
    "a % 2 == 0": ("%", "arithmetic"), "a == 010": ("010", "write 10"), "a == 0x10": ("0x10", "no number"),
    "a == 1e999": ("1e999", "too large"), "a == null": ("null", "is null"), "a is 3": ("3", "expected `null`"),
    "a not null": ("null", "expected `in`"), "a in 'x'": ("'x'", "expected a list"), "a in ()": (")", "found ')'"),
    "a in (b)": ("b)", "'b'"), "a in (null)": ("null", "is null"), "1 == 1": ("== 1", "two values"),
    "a > true": ("> true", "== and !="), "a == 'x''y'": ("'y'", "two texts"), r"a == '\q'": (r"\q", "no escape"),
    "a like 'x%'": ("a like", "nothing is asked"), "a.": ("", "field's name"), "`` == 1": ("``", "backtick"),
    "a ~ 'x'": ("~", "arithmetic"), "lambda: 1": (": 1", "backticks"), "2020_a == 1": ("2020_a", "backticks"),
    "": ("", "expected a field"), "a == 1.2.3": ("1.2.3", "no number"), "a == {1}": ("{", "backticks"),
    "__import__('os')": ("('os'", "nothing is called"),
}  # fmt: skip


@pytest.mark.parametrize("text", TRUE)
def test_a_condition_that_holds(text: str) -> None:
    assert Where(text).holds(RECORD) is True


@pytest.mark.parametrize("text", FALSE)
def test_a_condition_that_does_not_hold(text: str) -> None:
    assert Where(text).holds(RECORD) is False


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_cannot_be_judged_is_named_and_not_let_in(text: str) -> None:
    with pytest.raises(Unreadable) as found:
        Where(text).holds(RECORD)
    assert found.value.cause == UNKNOWN[text]


@pytest.mark.parametrize("text", WRONG)
def test_anything_else_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UserError) as found:
        make(Jsonl, {"path": "x.jsonl", "where": text}, "data.sources.x")
    below, part = WRONG[text]
    message, shown, caret, _ = str(found.value).split("\n")
    at = len(caret) - 1
    assert message.startswith("data.sources.x: where, character ")
    assert caret.strip() == "^"
    assert shown[at : at + len(below)] == below
    assert below or at == max(4, len(shown.rstrip()))
    assert part in message


@pytest.mark.parametrize("text", ["(" * 10_000 + "a == 1", "not " * 2_000 + "a == 1", "a == 1 and " * MAX_CHARACTERS])
def test_a_condition_without_end_is_refused_quickly(text: str) -> None:
    with pytest.raises(ValueError, match=r"levels deep|characters; expected at most"):
        Where(text)


def test_the_place_in_a_long_condition_of_several_lines() -> None:
    text = "a == 1\nand " + " or ".join(f"b == {i}" for i in range(100)) + " or c = 1\nand d == 1"
    with pytest.raises(ValueError, match="character") as found:
        Where(text)
    _, shown, caret, _ = str(found.value).split("\n")
    assert shown[len(caret) - 1 :] == "= 1"
    assert len(shown) < 130


def test_not_a_number_is_not_let_in_by_unequal() -> None:
    with pytest.raises(Unreadable):
        Where("score != 3").holds({"score": float("nan")})


def test_fields_without_which_nothing_is_wanted() -> None:
    assert Where("a == 1 and (b.c > 2 or b.c is null)").needed_fields == ("a",)
    assert Where("a == 1 or b == 2").needed_fields == ()
    assert Where("not (a == 1 or b == 2)").needed_fields == ("a", "b")
    assert Where("a is not null").needed_fields == ("a",)
    assert Where("a == 1 and (b.c > 2 or b.c is null)").fields == ("a", "b.c")


def test_a_condition_travels_to_other_processes() -> None:
    again = pickle.loads(pickle.dumps(Where("n == 7 and not ok == false")))
    assert again.holds(RECORD)


def spam(n: int) -> list[dict]:
    """Three of four are spam; of the others those with a score of at least 1 are wanted."""
    return [
        {"text": prose(i), "source": "spam" if i % 4 else "web", "score": i % 3, "domain": f"d{i}"} for i in range(n)
    ]


def test_every_source_of_records_excludes_the_same(folder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = spam(200)
    (folder / "lines").mkdir()
    (folder / "table").mkdir()
    (folder / "lines" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pq.write_table(pa.Table.from_pylist(records), folder / "table" / "train.parquet")
    where = "source != 'spam' AND score >= 1"
    expected = sum(r["source"] != "spam" and r["score"] >= 1 for r in records)
    for source in (
        Jsonl(str(folder / "lines"), where=where), Parquet(str(folder / "table"), where=where),
        HuggingFace(str(folder / "lines"), where=where), HuggingFace(str(folder / "table"), where=where),
    ):  # fmt: skip
        documents, causes = items(source, 3)
        assert len(documents) == expected
        assert causes == ["where"] * (200 - expected)


def test_a_column_that_may_be_missing_is_read_as_null(folder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "a.b": [1, 2], "m": [{"x.y": 1}, {"x.y": 2}]}), folder / "a.parquet")
    assert len(items(Parquet(str(folder), where="lang is null or lang == 'en'"))[0]) == 2
    assert [d.text for d in items(Parquet(str(folder), where="`a.b` == 2 and m.`x.y` == 2"))[0]] == ["b"]
    assert items(Parquet(str(folder), where="lang == 'en'"))[1] == ["no_where_column"]


def test_what_where_excludes_is_a_row_of_the_funnel_for_each_source(folder) -> None:
    sources = {}
    for name, n in (("one", 200), ("two", 120)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({**r, "text": f"{name} {r['text']}"}) + "\n" for r in spam(n)))
        sources[name] = {"type": "jsonl", "path": str(path), "license": "MIT", "group_key": "domain",
                         "where": "source != 'spam' and score >= 1"}  # fmt: skip
    config = make_config(folder, data={"sources": sources, "filters": {}, "tasks": 3})
    step = stages.data_step(config)
    manifest = made(config)
    excluded = {name: manifest["sources"][name]["excluded"] for name in sources}
    wanted = {"one": sum(r["source"] == "web" and r["score"] >= 1 for r in spam(200)),
              "two": sum(r["source"] == "web" and r["score"] >= 1 for r in spam(120))}  # fmt: skip
    assert excluded == {"one": 200 - wanted["one"], "two": 120 - wanted["two"]}
    documents = manifest["documents"]
    assert documents["read"] == 320 == documents["kept"] + sum(documents["dropped"].values()) + documents["unreadable"]
    assert documents["dropped"]["where"] == sum(excluded.values())
    assert manifest["reasons"]["where"] == excluded
    account = json.loads((step.path / "data.report.json").read_text())
    flow = account["funnel"]
    drops = {d["reason"]: d for d in flow["steps"][0]["drops"] if d["filter"] == "where"}
    assert {name: d["documents"] for name, d in drops.items()} == excluded
    whole = {n: sum(len(f"{n} {r['text']}".encode()) for r in spam(k) if r["source"] == "spam" or r["score"] < 1)
             for n, k in (("one", 200), ("two", 120))}  # fmt: skip
    assert {name: d["bytes"] for name, d in drops.items()} == whole
    assert all(d["tokens"] > d["documents"] and not d["tokens_measured"] for d in drops.values())
    for unit in ("documents", "bytes", "tokens"):
        assert flow["read"][unit] == flow["kept"][unit] + sum(d[unit] for s in flow["steps"] for d in s["drops"])
    lines = data.summary(step, manifest)
    assert any(f"{excluded['one']} outside where" in line for line in lines)
    written = list(step.path.parent.rglob("set_aside/*.jsonl"))
    assert sum(len(path.read_bytes().splitlines()) for path in written) <= 2 * 3 * 3  # samples, not the crawl


def test_a_condition_that_holds_for_nothing_says_so(folder) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in spam(20)))
    source = {"type": "jsonl", "path": str(folder / "a.jsonl"), "where": "source == 'books'"}
    config = make_config(folder, data={"sources": {"web": source}, "filters": {}, "tasks": 2})
    with pytest.raises(UserError, match=r"data\.sources\.web\.where holds for none of 20 records"):
        made(config)
