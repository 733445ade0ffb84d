"""The report in a real browser: links, values under the pointer, three widths, dark and print."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from data_corpus import make_config
from test_report import INIT, PRETRAIN, _report

from pipeline.reporting.page import collect, render

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium: apt-get install chromium")

LEAST_PIXELS = 11
# Every text that is shown with its size in pixels of the window, charts included, which are scaled.
SMALL_TEXT = """[...document.querySelectorAll("main *")].filter((e) => e.checkVisibility() && [...e.childNodes].some(
  (n) => n.nodeType == 3 && n.data.trim())).map((e) => [parseFloat(getComputedStyle(e).fontSize) *
  (e.ownerSVGElement ? e.ownerSVGElement.getScreenCTM().a : 1), e.textContent]).filter(([size]) => size < %d)"""
# Labels of charts that lie on a point of a curve.
COVERED = """[...document.querySelectorAll("figure svg[data-hover]")].flatMap((chart) => {
  const curves = [...chart.querySelectorAll("polyline")].flatMap((line) => Array.from({length: 400}, (_, i) =>
    line.getPointAtLength(line.getTotalLength() * i / 399)));
  return [...chart.querySelectorAll("text")].map((text) => [text, text.getBBox()]).filter(([text, box]) =>
    !text.hasAttribute("transform") && curves.some((at) => at.x > box.x && at.x < box.x + box.width &&
    at.y > box.y && at.y < box.y + box.height)).map(([text]) => text.textContent); })"""
OVERLAPPING = """[...document.querySelectorAll("figure svg")].flatMap((chart) => {
  const boxes = [...chart.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b, other]) => one.left < other.right - 1 &&
    other.left < one.right - 1 && one.top < other.bottom - 2 && other.top < one.bottom - 2).map(([b]) => [a, b])); })"""


def _rows() -> list[dict[str, float]]:
    rows = []
    for step in range(1, 61):
        row = {"train/loss": 4 - step / 40, "train/lr": 0.0025 * step / 60, "train/grad_norm": 0.5 + (step % 7) / 10,
               "perf/tokens_per_second": 12_000.0 + 10 * step, "perf/peak_memory_bytes": 2.5e9 + 1e6 * step,
               "budget/tokens": 1000.0 * step, "budget/gpu_hours": step / 1000}  # fmt: skip
        if step % 20 == 0:
            row |= {"val/bits_per_byte": 3 - step / 60, "val/a long name of a source/bits_per_byte": 3.2 - step / 60}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pretrain = {**PRETRAIN, "bits_per_byte": {"a long name of a source": 2.2}, "samples": [
        {"prompt": "def f(", "text": "x): return x"}]}  # fmt: skip
    hours = {"stages": [{"stage": "pretrain", "gpu_hours": 0.06}], "price_per_hour": 2.0, "pretrain_lives": 1}
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(_report(pretrain=pretrain, init=INIT, metrics=_rows(), hours=hours)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    with chromium.Chromium() as found:
        yield found


@pytest.mark.parametrize("width", [400, 820, 1400])
def test_every_width_is_readable(browser, page, width):
    browser.open(page, width)
    assert browser.run("document.querySelectorAll('figure svg').length") == 6
    assert browser.run(SMALL_TEXT % LEAST_PIXELS) == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(COVERED) == []
    assert browser.run(OVERLAPPING) == []


def test_a_link_of_the_contents_leads_to_its_heading(browser, page):
    browser.open(page)
    links = browser.run("[...document.querySelectorAll('nav a')].map((a) => [a.textContent, a.getAttribute('href')])")
    assert [words for words, _ in links] == ["Pretraining", "Initialization: random", "Hours", "Samples", "Identity"]
    x, y = browser.run("(({x, y, width, height}) => [x + width / 2, y + height / 2])"
                       "(document.querySelector('nav a[href=\"#samples\"]').getBoundingClientRect())")  # fmt: skip
    browser.point(x, y, click=True)
    assert browser.run("new Promise((done) => requestAnimationFrame(() => done(location.hash)))") == "#samples"
    assert browser.run("scrollY") > 0
    assert browser.run("document.querySelector(':target').textContent") == "Samples"


def test_values_stand_under_the_pointer_and_follow_the_arrow_keys(browser, page):
    browser.open(page)
    browser.run("document.querySelector('figure svg').scrollIntoView()")
    box = browser.run("document.querySelector('figure svg').getBoundingClientRect().toJSON()")
    shown = "document.querySelector('figure .values:not([hidden])')?.innerText ?? ''"
    assert browser.run(shown) == ""
    browser.point(box["right"] - box["width"] * 14 / 370, box["y"] + box["height"] / 2)
    last = json.loads(browser.run("document.querySelector('figure svg').dataset.hover"))["lines"][0]["points"][-1]
    assert browser.run(shown).split("\n") == ["tokens 60.00k", f"train {last[1]:.4g}"]
    inside = browser.run("document.querySelector('.values:not([hidden])').getBoundingClientRect().toJSON()")
    assert inside["left"] >= 0
    assert inside["right"] <= 820
    browser.run("document.querySelector('figure svg').focus()")
    browser.key("ArrowLeft")
    assert browser.run(shown).startswith("tokens 59.00k\n")
    browser.point(1, 1)
    assert browser.run(shown) == ""
    assert browser.errors() == []


def test_dark_mode_and_print(browser, page):
    browser.open(page)
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light = browser.run(colours)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.run(colours)
    assert sum(map(int, light[0][4:-1].split(","))) > 600 > 200 > sum(map(int, dark[0][4:-1].split(",")))
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run(SMALL_TEXT % LEAST_PIXELS) == []
    pdf = base64.b64decode(browser.call("Page.printToPDF")["data"])
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert pdf.startswith(b"%PDF")
    assert 1 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type/Page/") <= 5


@pytest.mark.parametrize("width", [400, 1400])
def test_the_data_part_opens_its_folds_and_says_reasons_in_words(browser, finished, tmp_path, width):
    folder, _ = finished
    path = tmp_path / "report.html"
    path.write_text(render(collect(make_config(folder / "in"), {"data": folder}, tmp_path / "none")), encoding="utf-8")
    browser.open(path, width)
    reasons = browser.run("[...document.querySelectorAll('td.words')].map((cell) => cell.textContent)")
    assert "the same text as another document" in reasons
    assert not [reason for reason in reasons if "_" in reason]
    closed = "[...document.querySelectorAll('details')].filter((each) => !each.open && each.checkVisibility()).length"
    before = browser.run(closed)
    assert before > 0
    browser.run("document.querySelector('details > summary').scrollIntoView({block: 'center'})")
    box = browser.run("document.querySelector('details > summary').getBoundingClientRect().toJSON()")
    browser.point(box["x"] + 20, box["y"] + box["height"] / 2, click=True)
    assert browser.run("document.querySelector('details').open")
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.run(SMALL_TEXT % LEAST_PIXELS) == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(COVERED) == []


def test_nothing_is_loaded_but_the_page(browser, page):
    browser.messages.clear()
    browser.open(page)
    assert browser.requests() == [page.as_uri()]
