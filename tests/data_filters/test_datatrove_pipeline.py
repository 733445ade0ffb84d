"""Our rules as steps between datatrove's own readers, filters and writers, in processes of their own."""

import gzip
import json

import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from data_filters.language import Language
from data_filters.repetition import GopherRepetition
from data_filters.rule import as_datatrove_filter
from tests.data_filters.test_rules import GOOD_PROSE


def _records(folder):
    return [
        json.loads(line)
        for file in sorted(folder.glob("*.gz"))
        for line in gzip.decompress(file.read_bytes()).splitlines()
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_kept_and_dropped_documents_arrive_with_their_reasons(tmp_path, workers):
    repeated = "This line of plain English stands here again and again.\n" * 30
    texts = [GOOD_PROSE, repeated, "no", "Der Hund läuft über die Straße und bellt laut."]
    (tmp_path / "in").mkdir()
    for task in range(2):
        lines = [
            json.dumps({"text": t, "id": f"{task}/{i}", "metadata": {"kind": "prose"}}) for i, t in enumerate(texts)
        ]
        (tmp_path / "in" / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(tmp_path / "in")),
            LambdaFilter(lambda doc: len(doc.text) > 3),
            as_datatrove_filter(Language(), JsonlWriter(str(tmp_path / "foreign"))),
            as_datatrove_filter(GopherRepetition(), JsonlWriter(str(tmp_path / "dropped"))),
            JsonlWriter(str(tmp_path / "kept")),
        ],
        tasks=2,
        workers=workers,
        logging_dir=str(tmp_path / "log"),
    )
    executor.run()
    assert [r["id"] for r in _records(tmp_path / "kept")] == ["0/0", "1/0"]
    dropped, foreign = _records(tmp_path / "dropped"), _records(tmp_path / "foreign")
    assert [r["text"] for r in dropped] == [repeated] * 2
    for record in dropped:
        facts = {key: record["metadata"][f"filter_{key}"] for key in ("rule", "reason", "value", "threshold")}
        assert facts["value"] > facts["threshold"] == 0.3
        assert (facts["rule"], facts["reason"]) == ("GopherRepetition", "dup_line_frac")
    assert [r["metadata"]["filter_reason"] for r in foreign] == ["other_language"] * 2
    assert foreign[0]["metadata"]["filter_value"].startswith("de ")
