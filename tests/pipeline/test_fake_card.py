"""The step of every shipped config for a GPU on a card that is not there: no host read, no mixed devices, no copies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("fake_card.py")
CASES = (
    "day", "day-source", "phi1", "phi2", "phi2-24gb", "domain-24gb", "domain-smol", "smol-360m",
    "phi2-24gb in backward", "phi2 4 bits", "day muon", "day masked", "day fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def fake_card() -> dict[str, dict]:
    """Facts of each case, from one process."""
    done = subprocess.run([sys.executable, "-P", str(SCRIPT), *CASES], capture_output=True, text=True, cwd=REPOSITORY)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {row.pop("name"): row for row in rows}
    assert set(found) == set(CASES), done.stderr[-3000:]
    return found


def test_fake_card_takes_every_config_of_a_gpu() -> None:
    shipped = {path.stem for path in (REPOSITORY / "configs").glob("*.yaml")}
    cpu = {"tiny", "tiny-source", "real-cpu"}
    assert shipped - cpu - {"gpus"} == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_fake_card_takes_steps_that_the_host_neither_waits_for_nor_copies_in(fake_card, name: str) -> None:
    """Steps are those of PretrainModule with optimizer, clipping and spike rule, and what Control does behind each."""
    facts = fake_card[name]
    assert "error" not in facts, facts
    assert facts["steps"] == 3
    assert facts["copies"] == []
    assert facts["devices"] == ["card"]


@pytest.mark.parametrize("name", CASES)
def test_fake_card_saves_and_exports_without_a_copy_of_the_model(fake_card, name: str) -> None:
    facts = fake_card[name]
    assert 0 < facts["save_extra_bytes"] <= 2 * facts["largest_bytes"], facts
