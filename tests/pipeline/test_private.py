"""What leaves the machine holds no private name: the config as W&B gets it, and what a page shows of a document."""

import json
from pathlib import Path

from pipeline import config as configs
from pipeline.data_report import _near_duplicates, _shown
from pipeline.private import shareable_values

ROOT = Path(__file__).resolve().parents[2]


def test_of_a_private_source_and_of_paths_the_names_stay_here():
    words = [
        "data.sources.documents.path=zanzibar/notes",
        "data.sources.documents.endings=[.md]",
        "init.source=/home/zanzibar/models/phi",
        "tokenizer.path=/home/zanzibar/models/phi",
        "data.decontamination.files=[/home/zanzibar/evaluation/items.jsonl]",
    ]
    config = configs.load(ROOT / "configs" / "domain-24gb.yaml", words)
    values = shareable_values(config)
    assert "zanzibar" not in json.dumps(values)
    assert values["data"]["sources"]["documents"] == {
        "type": "text",
        "path": "private",
        "license": "own",
        "filters": "private",
        "endings": "private",
    }
    assert values["init"]["source"] == "phi"
    assert values["data"]["decontamination"]["files"] == ["items.jsonl"]
    public = "HuggingFaceTB/smollm-corpus"
    assert values["data"]["sources"]["general"]["dataset"] == public
    assert config.data.sources["documents"]["path"] == "zanzibar/notes"  # the run itself keeps its config


def test_a_page_shows_of_private_text_what_was_measured_and_no_more():
    record = {"path": "zanzibar/a.md", "text": "zanzibar", "license": "own", "value": 3, "threshold": 50, "detail": "z"}
    assert _shown(record) == {"path": "private text", "value": 3, "threshold": 50}
    assert _shown({**record, "license": "MIT"})["path"] == "zanzibar/a.md"
    near = {"clusters": 1, "cluster_sizes": {"2": 1}, "largest_clusters": [{"path": "zanzibar/a.md", "documents": 2}]}
    for licence, shown in (("own", False), ("MIT", True)):
        page = _near_duplicates({"near_duplicates": near, "sources": {"documents": {"licenses": {licence: 2}}}})
        assert ("zanzibar" in page) is shown
