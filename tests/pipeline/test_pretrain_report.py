"""The page at the end of a run: inside the cap however long it takes, or left out with a word."""

import time

import pytest
from test_pretrain import Small, hours, small, small_inputs  # noqa: F401 - fixtures

from pipeline.reporting import page
from pipeline.storage import ledger
from pipeline.training import finish

CAP_SECONDS = 16.0
REPORT_SECONDS = 2.5


@pytest.fixture
def slow_report(monkeypatch: pytest.MonkeyPatch) -> None:
    write = page.write

    def slowly(config):
        time.sleep(REPORT_SECONDS)
        return write(config)

    monkeypatch.setattr(page, "write", slowly)


def spent_seconds(small: Small) -> float:  # noqa: F811
    return 3600 * ledger.spent_hours(small.root / "runs/small/ledger.jsonl")["pretrain"]


def test_a_report_that_takes_seconds_is_inside_the_cap(small: Small, slow_report: None) -> None:  # noqa: F811
    manifest = small.run_here(hours(CAP_SECONDS))
    assert manifest["annealed"]
    assert "annealed" in (small.root / "runs/small/report.html").read_text()
    assert spent_seconds(small) <= CAP_SECONDS


def test_where_the_end_took_too_long_the_report_is_left_out_and_not_the_cap_overrun(
    small: Small,  # noqa: F811
    slow_report: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    write_card = finish.write_card

    def stalled(path, config, control, facts):
        time.sleep(max(0.0, control.budget.remaining_seconds() - REPORT_SECONDS + 0.1))
        write_card(path, config, control, facts)

    monkeypatch.setattr(finish, "write_card", stalled)
    manifest = small.run_here(hours(CAP_SECONDS))
    assert manifest["annealed"]
    assert "report: the cap left no time for it; run: hornbook report" in capsys.readouterr().out
    assert "annealed" not in (small.root / "runs/small/report.html").read_text()  # as it was at the start
    assert spent_seconds(small) <= CAP_SECONDS
