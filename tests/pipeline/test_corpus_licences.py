"""A record's own licence, in every form that hubs and packages write it in; what is not understood is unknown."""

import json

import pytest
from data_corpus import items, made, make_config, prose

from data_filters.licence import normalise
from pipeline.corpus.sources.records import HuggingFace, Jsonl, Parquet, own_license

pytestmark = pytest.mark.usefixtures("root")

GITHUB = {
    "key": "gpl-3.0", "name": "GNU General Public License v3.0", "spdx_id": "GPL-3.0", "node_id": "MDc6",
    "url": "https://api.github.com/licenses/gpl-3.0",
}  # fmt: skip
DEEP: dict = {"license": "MIT"}
for _ in range(1000):
    DEEP = {"license": DEEP}
GPL3, GPL3_LATER = "GPL-3.0-only", "GPL-3.0-or-later"
STATED = [
    ({"license": "GPL-3.0-only"}, GPL3),
    ({"license": {"spdx_id": "GPL-3.0-only"}}, GPL3),
    ({"license": {"spdx": "GPL-3.0-only"}}, GPL3),
    ({"license": {"SPDX-ID": "GPL-3.0-only"}}, GPL3),
    ({"license": {"key": "gpl-3.0"}}, GPL3),
    ({"license": {"name": "GNU General Public License v3.0", "key": None}}, GPL3),
    ({"license": {"id": "gpl-3.0-only", "title": {"en": "x"}}}, GPL3),
    ({"license": {"id": 13, "name": "MIT License"}}, "MIT"),
    ({"license": {"type": "MIT", "url": "https://x.org/LICENSE"}}, "MIT"),
    ({"license": {"@type": "CreativeWork", "url": "https://opensource.org/licenses/MIT"}}, "MIT"),
    ({"license": {"url": "https://www.gnu.org/licenses/gpl-3.0.html"}}, GPL3),
    ({"license": {"url": "https://api.github.com/licenses/mit"}}, "MIT"),
    ({"license": {"@id": "https://spdx.org/licenses/MIT"}}, "MIT"),
    ({"license": {"text": "MIT"}}, "MIT"),
    ({"license": {"license": {"id": "MIT"}}}, "MIT"),
    ({"licenses": [{"license": {"id": "MIT"}}, {"expression": "GPL-3.0-or-later"}]}, f"MIT AND {GPL3_LATER}"),
    ({"license": GITHUB}, GPL3),
    ({"license": ["MIT", "GPL-3.0-only"]}, f"MIT AND {GPL3}"),
    ({"license": ["mit", None]}, "MIT"),
    ({"license": [None, {"spdx_id": "GPL-3.0-only"}, ""]}, GPL3),
    ({"license": [["MIT"], [["GPL-3.0-only"]]]}, f"MIT AND {GPL3}"),
    ({"license": [{"type": "MIT"}, {"type": "GPL-3.0-only"}]}, f"MIT AND {GPL3}"),
    ({"license": ["MIT OR GPL-3.0-only", "BSD-3-Clause"]}, f"(MIT OR {GPL3}) AND BSD-3-Clause"),
    ({"license": "MIT OR GPL-3.0-only"}, f"MIT OR {GPL3}"),
    ({"license": "(MIT AND GPL-3.0-only)"}, f"MIT AND {GPL3}"),
    ({"license": "GPL-2.0-only WITH Classpath-exception-2.0"}, "GPL-2.0-only WITH Classpath-exception-2.0"),
    ({"license": json.dumps(GITHUB)}, GPL3),
    ({"license": '["mit", null, "gpl-3.0"]'}, f"MIT AND {GPL3}"),
    ({"license": '"GPL-3.0-only"'}, GPL3),
    ({"license": "['mit', 'gpl-3.0']"}, f"MIT AND {GPL3}"),
    ({"licence": "GPL-3.0-only"}, GPL3),
    ({"License": "GPL-3.0-only"}, GPL3),
    ({"LICENSE": ["MIT", None], "License": {"spdx_id": "GPL-3.0-only"}}, f"MIT AND {GPL3}"),
    ({"Metadata": {"Licence": "GPL-3.0-only"}}, GPL3),
    ({"metadata": '{"license": {"spdx_id": "GPL-3.0-only"}}'}, GPL3),
    ({"meta": "{'license': broken", "license": "MIT"}, "MIT"),
    ({"max_stars_repo_licenses": ["MIT", "GPL-3.0-only"]}, f"MIT AND {GPL3}"),
    ({"detected_licenses": ["GPL-3.0-only"], "license_type": "no_license"}, GPL3),
    ({"licenses": ["GPL-3.0-only"]}, GPL3),
    ({"licences": [{"name": "GPL-3.0-only"}]}, GPL3),
    ({"license": None, "licenses": ["GPL-3.0-only"]}, GPL3),
    ({"license": "MIT", "licenses": ["GPL-3.0-only"]}, f"MIT AND {GPL3}"),
    ({"license_expression": "MIT AND GPL-3.0-only"}, f"MIT AND {GPL3}"),
    ({"spdx_id": "GPL-3.0-only"}, GPL3),
    ({"license_name": "GPL-3.0-only"}, GPL3),
    ({"metadata": {"license": "GPL-3.0-only"}}, GPL3),
    ({"meta": {"licenses": [{"key": "gpl-3.0"}]}}, GPL3),
    ({"license": "", "license_url": "https://creativecommons.org/licenses/by-sa/4.0/"}, "CC-BY-SA-4.0"),
]  # fmt: skip
NOT_UNDERSTOOD = [
    7, True, False, 1.5, {"foo": "bar"}, {"spdx_id": "NOASSERTION", "key": "other", "name": "Other"}, "other", "NONE",
    "null", "unknown", "SEE LICENSE IN LICENSE.md", {"file": "LICENSE"}, ["MIT", {"foo": 1}], ["MIT", 7], ["MIT", "?"],
    [["MIT", ["my own"]]], '{"foo": 1}', "[1, 2]", "{broken", {"text": "Permission is hereby granted " * 200},
    "MIT AND " * 2_000 + "GPL-3.0-only", ["MIT"] + [f"LicenseRef-{i}" for i in range(500)], DEEP, b"MIT",
    {"spdx_id": "LicenseRef-mine", "name": "MIT"}, "MIT (and others", ["MIT)", "(MIT"], "unknown: MIT",
]  # fmt: skip
NOTHING = [None, "", "  ", [], {}, [None], [""], {"spdx_id": None, "name": ""}, float("nan"), "[]"]


@pytest.mark.parametrize(("record", "expected"), STATED, ids=lambda v: str(v)[:60])
def test_a_licence_is_read_in_every_usual_form(record, expected) -> None:
    assert normalise(own_license(record)) == expected


@pytest.mark.parametrize("value", NOT_UNDERSTOOD, ids=lambda v: repr(type(v)))
@pytest.mark.parametrize("key", ["license", "licenses"])
def test_a_form_that_is_not_understood_is_unknown(key, value) -> None:
    stated = own_license({"text": "x", key: value})
    assert stated
    assert normalise(stated) is None


@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_a_record_that_states_nothing_has_none_of_its_own(value) -> None:
    assert own_license({"text": "x", "license": value}) is None


def test_every_source_of_records_reads_them_alike(folder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    forms = [None, {"spdx_id": "GPL-3.0-only", "name": None}, {"spdx_id": None, "name": "strange"}]
    forms.append({"spdx_id": None, "name": None})
    records = [{"text": f"t{i}", "license": value} for i, value in enumerate(forms)]
    (folder / "lines").mkdir()
    (folder / "table").mkdir()
    (folder / "lines" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pq.write_table(pa.Table.from_pylist(records), folder / "table" / "train.parquet")
    for source in (
        Jsonl(str(folder / "lines"), license="MIT"), Parquet(str(folder / "table"), license="MIT"),
        HuggingFace(str(folder / "table"), license="MIT"), HuggingFace(str(folder / "lines"), license="MIT"),
    ):  # fmt: skip
        found = {d.text: normalise(d.metadata["license"]) for d in items(source)[0]}
        assert found == {"t0": "MIT", "t1": "GPL-3.0-only", "t2": None, "t3": "MIT"}


def test_columns_of_licences_are_found_in_tables(folder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, column in {
        "a": {"licenses": [["GPL-3.0-only"]]},
        "b": {"metadata": [{"license": "GPL-3.0-only"}]},
        "c": {"License": ["GPL-3.0-only"]},
    }.items():
        pq.write_table(pa.table({"text": [name], **column}), folder / f"{name}.parquet")
    documents, _ = items(Parquet(str(folder), license="MIT"))
    assert {d.metadata["license"] for d in documents} == {"GPL-3.0-only"}


def test_records_under_a_licence_of_their_own_are_dropped_by_it(folder) -> None:
    forms = [{"spdx_id": "GPL-3.0-only"}, ["MIT", {"key": "gpl-3.0"}], {"strange": 1}, None]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": prose(i), "license": forms[i % 4]}) + "\n" for i in range(80)))
    sources = {"web": {"type": "jsonl", "path": str(path), "license": "MIT"}}
    config = make_config(folder, data={"sources": sources, "filters": {"licence": {}}, "tasks": 2})
    manifest = made(config)
    assert manifest["reasons"]["licence"] == {"not_allowed": 40, "unknown": 20}
    assert set(manifest["sources"]["web"]["licenses"]) == {"MIT"}
