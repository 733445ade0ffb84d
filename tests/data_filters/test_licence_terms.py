"""What may be said of a model's licence, from the licences of its text."""

import pytest

from data_filters.licence import IDENTIFIERS
from data_filters.licence_terms import KINDS, terms_of, verdict


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("MIT", "permissive"),
        ("CC-BY-4.0", "permissive"),
        ("LGPL-2.1-or-later", "weak copyleft"),
        ("MPL-2.0", "weak copyleft"),
        ("CC-BY-SA-4.0", "share-alike"),
        ("GPL-3.0-only WITH GCC-exception-3.1", "copyleft"),
        ("AGPL-3.0-or-later", "copyleft"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("CC-BY-NC-SA-4.0", "non-commercial"),
        ("CC-BY-NC-ND-4.0", "no derivatives"),
        ("BUSL-1.1", "restricted use"),
        ("own", "private"),
        ("unknown", "unknown"),
        (None, "unknown"),
        ("MIT OR GPL-3.0-only", "permissive"),
        ("MIT AND GPL-3.0-only", "copyleft"),
        ("Apache-2.0 AND (MIT OR GPL-2.0-only)", "permissive"),
    ],
)
def test_of_an_or_the_freest_counts_and_of_an_and_the_tightest(licence, kind):
    assert terms_of(licence) == kind


def test_every_known_licence_has_a_kind_and_every_prefix_a_licence():
    kinds = {terms_of(name) for name in IDENTIFIERS.values()}
    assert kinds == {terms.name for terms in KINDS} - {"unknown"}
    for prefix in (prefix for terms in KINDS for prefix in terms.prefixes):
        assert any(name.startswith(prefix) for name in IDENTIFIERS.values()), prefix


def _row(source: str, licence: str | None, tokens: int, package: str = "") -> dict:
    return {"source": source, "package": package, "licence": licence, "documents": 1, "tokens": tokens}


def test_permissive_text_leaves_the_choice_and_names_no_culprit():
    found = verdict([_row("a", "MIT", 60), _row("b", "Apache-2.0", 40)])
    assert found["headline"] == "The model may carry any licence."
    assert found["terms"][0]["causes"] == []
    assert found["terms"][0]["share"] == 1


def test_the_tightest_terms_decide_and_their_sources_are_named():
    rows = [_row("a", "MIT", 90), _row("b", "GPL-3.0-only", 8, "tool"), _row("c", "CC-BY-NC-4.0", 2)]
    found = verdict(rows)
    assert found["kind"] == "non-commercial"
    assert [terms["kind"] for terms in found["terms"]] == ["non-commercial", "copyleft", "permissive"]
    assert found["terms"][1]["causes"] == [{"source": "b", "package": "tool", "licence": "GPL-3.0-only"}]
    assert [terms["share"] for terms in found["terms"]] == [0.02, 0.08, 0.9]
    assert "any licence" not in found["headline"]


def test_a_long_list_of_culprits_is_cut_and_counted():
    found = verdict([_row(f"s{i}", None, 1) for i in range(20)])
    assert found["kind"] == "unknown"
    assert len(found["terms"][0]["causes"]) + found["terms"][0]["more_causes"] == 20
