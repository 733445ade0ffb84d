"""Sources whose input is tables: Parquet files, and Hugging Face datasets in local folders of every layout."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_corpus import items

from pipeline.corpus.sources import records
from pipeline.corpus.sources.records import HuggingFace, Parquet
from pipeline.corpus.text.documents import SetAside
from pipeline.evaluation import benchmarks
from pipeline.system.errors import UserError

pytestmark = pytest.mark.usefixtures("root")


def write(path, rows: dict, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path, **options)


def write_lines(path, texts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


def names(start: int, n: int) -> list[str]:
    return [f"text {i:03d}" for i in range(start, start + n)]


def test_rows_become_documents_once_for_any_number_of_shards_and_row_groups(folder):
    write(folder / "a.parquet", {"text": names(0, 100), "url": names(0, 100), "unused": [b"x" * 99] * 100})
    write(folder / "b.parquet", {"text": names(100, 75)}, row_group_size=40)
    for tasks in (1, 2, 3, 8):
        documents, causes = items(Parquet(str(folder), metadata_keys=["url"]), tasks)
        assert causes == []
        assert sorted(d.text for d in documents) == names(0, 175)
        assert len({d.id for d in documents}) == 175
    by_id = {d.id: d for d in documents}
    assert by_id["a.parquet:8"].metadata["record"] == {"url": "text 007"}
    assert by_id["b.parquet:75"].text == "text 174"
    assert len(items(Parquet(str(folder / "*.parquet"), limit_documents=5), 3)[0]) == 5


@pytest.mark.parametrize("kind", [
    pa.timestamp("us"), pa.timestamp("ns", "nowhere"), pa.date64(), pa.date32(), pa.duration("s"), pa.time64("us"),
], ids=str)  # fmt: skip
def test_a_time_that_python_cannot_name_costs_no_text_and_stops_nothing(kind, folder):
    number = 2**30 if kind == pa.date32() else 2**62
    odd, nested = pa.array([number] * 2, kind), pa.StructArray.from_arrays([pa.array([number] * 2, kind)], ["at"])
    write(folder / "a.parquet", {"text": names(0, 2), "when": odd, "meta": nested, "license": odd})
    documents, causes = items(Parquet(str(folder), metadata_keys=["when", "meta"]))
    assert causes == []
    assert sorted(d.text for d in documents) == names(0, 2)
    (folder / "a.parquet").unlink()
    write(folder / "set.parquet", {"prompt": ["a"], "options": [["b", "c"]], "right": [1], "when": odd[:1]})
    assert [q.prompt for q in benchmarks._read(folder / "set.parquet", "set").made] == ["a"]


def test_only_wanted_rows_and_fields_of_structs(folder):
    records = [{"body": f"b{i}", "score": i % 5} for i in range(20)]
    write(folder / "a.parquet", {"page": records, "language": ["en", "de"] * 10, "license": [["MIT", "BSD"]] * 20})
    source = Parquet(
        str(folder), text_key="page.body", where="page.score >= 3 and language == 'en'", group_key="language"
    )
    documents, causes = items(source)
    assert causes == ["where"] * 16
    assert sorted(d.text for d in documents) == ["b14", "b18", "b4", "b8"]
    assert {(d.metadata["license"], d.metadata["group"]) for d in documents} == {("MIT AND BSD", "en")}


def test_bad_tables_and_rows_are_counted_by_name_and_the_others_go_on(folder):
    write(folder / "good.parquet", {"text": ["good", None, "fine"]})
    write(folder / "wrong.parquet", {"body": ["x"], "title": ["y"]})
    write(folder / "numbers.parquet", {"text": [1, 2, 3]})
    write(folder / "bytes.parquet", {"text": [b"as bytes", b"\xff\xfe"]})
    write(folder / "words.parquet", {"text": pa.array(["one", "one"]).dictionary_encode()})
    (folder / "damaged.parquet").write_bytes((folder / "good.parquet").read_bytes()[:-20])
    (folder / "empty.parquet").write_bytes(b"")
    for tasks in (1, 2, 20):
        documents, causes = items(Parquet(str(folder)), tasks)
        assert sorted(d.text for d in documents) == ["as bytes", "fine", "good", "one", "one"]
        assert causes == sorted(
            ["text_is_not_text", "no_text_column", "text_is_not_text", "not_utf8", "damaged_file", "damaged_file"]
        )
    (wrong,) = Parquet(str(folder / "wrong.parquet")).documents(0, 1)
    assert isinstance(wrong, SetAside)
    assert wrong.sample == "text; columns: body, title"
    (without,) = Parquet(str(folder / "wrong.parquet"), text_key="body", where="score > 1").documents(0, 1)
    assert isinstance(without, SetAside)
    assert without.cause == "no_where_column"


def test_damage_inside_a_table_keeps_the_rows_before_it(folder):
    path = folder / "a.parquet"
    write(path, {"text": [f"{i} " + "x" * 200 for i in range(4000)]}, row_group_size=500, use_dictionary=False)
    data = bytearray(path.read_bytes())
    second_half = pq.ParquetFile(path).metadata.row_group(4).column(0).data_page_offset
    data[second_half : second_half + 200] = bytes(200)
    path.write_bytes(data)
    documents, causes = items(Parquet(str(path)), 3)
    assert len(documents) == 2000
    assert causes == ["damaged_file"]


def test_a_table_that_would_grow_without_end_is_stopped(folder, monkeypatch):
    monkeypatch.setattr(records, "BOMB_BYTES", 20_000_000)
    write(folder / "a.parquet", {"text": ["x" * 1_000_000] * 30}, use_dictionary=False, compression="zstd")
    assert items(Parquet(str(folder))) == ([], ["bomb"])


# Hugging Face


def test_a_local_parquet_folder_is_read_through_datasets_with_a_condition(folder):
    write(
        folder / "train-00000.parquet", {"text": [*names(0, 20), None], "int_score": [i % 5 for i in range(20)] + [4]}
    )
    source = HuggingFace(str(folder), where="int_score >= 3", license="odc-by")
    for tasks in (1, 2, 5):
        documents, causes = items(source, tasks)
        assert sorted(d.text for d in documents) == [n for i, n in enumerate(names(0, 20)) if i % 5 >= 3]
        assert causes == ["text_is_not_text", *["where"] * 12]
    assert len(items(HuggingFace(str(folder), limit_documents=4))[0]) == 4
    before = source.content_hash()
    write(folder / "train-00000.parquet", {"text": ["other"], "int_score": [5]})
    assert source.content_hash() != before


def test_splits_and_configs_of_local_layouts(folder):
    write(folder / "plain" / "train-00000-of-00002.parquet", {"text": ["a"]})
    write(folder / "plain" / "train-00001-of-00002.parquet", {"text": ["b"]})
    write(folder / "plain" / "test-00000-of-00001.parquet", {"text": ["c"]})
    write_lines(folder / "lines" / "data" / "train.jsonl", ["d"])
    write_lines(folder / "lines" / "data" / "validation.jsonl", ["e"])
    write(folder / "configs" / "en" / "x.parquet", {"text": ["f"]})
    write(folder / "configs" / "de" / "x.parquet", {"text": ["g"]})
    (folder / "configs" / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en/*.parquet\n"
        "- config_name: de\n  data_files:\n  - split: held\n    path: de/*.parquet\n---\n"
    )

    def texts(name: str, *where) -> list[str]:
        documents, causes = items(HuggingFace(str(folder / name), *where))
        assert causes == []
        return sorted(d.text for d in documents)

    assert texts("plain") == ["a", "b"]
    assert texts("plain", None, "test") == ["c"]
    assert texts("lines") == ["d"]
    assert texts("lines", None, "validation") == ["e"]
    assert texts("configs", "en") == ["f"]
    assert texts("configs", "de", "held") == ["g"]
    with pytest.raises(UserError, match="split nothing"):
        texts("plain", None, "nothing")
    with pytest.raises(UserError, match="config fr"):
        texts("configs", "fr")


def test_a_damaged_part_of_a_dataset_is_said_once_and_the_other_parts_go_on(folder):
    for i in range(4):
        write(folder / f"train-{i}.parquet", {"text": names(10 * i, 10)})
    path = folder / "train-2.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    for tasks in (1, 2, 8):
        documents, causes = items(HuggingFace(str(folder)), tasks)
        assert sorted(d.text for d in documents) == [*names(0, 20), *names(30, 10)]
        assert causes == ["damaged_file"]


def test_a_hub_dataset_needs_no_network_for_its_fingerprint():
    hashes = {
        HuggingFace("owner/name", revision=r, config=c).content_hash()
        for r, c in ((None, None), ("a", None), ("a", "x"))
    }
    assert len(hashes) == 3
    with pytest.raises(UserError, match="is not a folder"):
        HuggingFace("./nowhere").content_hash()
