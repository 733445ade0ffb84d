"""A page that people pass on shows no name and no text of private documents."""

from pipeline.data_report import _near_duplicates, _shown


def test_a_page_shows_of_private_text_what_was_measured_and_no_more():
    record = {"path": "zanzibar/a.md", "text": "zanzibar", "license": "own", "value": 3, "threshold": 50, "detail": "z"}
    assert _shown(record) == {"path": "private text", "value": 3, "threshold": 50}
    assert _shown({**record, "license": "MIT"})["path"] == "zanzibar/a.md"
    near = {"clusters": 1, "cluster_sizes": {"2": 1}, "largest_clusters": [{"path": "zanzibar/a.md", "documents": 2}]}
    for licence, shown in (("own", False), ("MIT", True)):
        page = _near_duplicates({"near_duplicates": near, "sources": {"documents": {"licenses": {licence: 2}}}})
        assert ("zanzibar" in page) is shown
