"""The pictures of growth: the bump where it is, both accountings, every block with where it comes from."""

import dataclasses

from page_text import words

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.rules import block_origins
from pipeline import config as configs
from pipeline.pages import html
from pipeline.pages.charts import block_map
from pipeline.planner import growth
from pipeline.reporting import growth as growth_report

SMALL = ModelConfig(512, 32, 128, 3, 4)
LARGE = ModelConfig(512, 40, 160, 4, 4, partial_rotary_factor=0.4)


def _init(method: str = "exact") -> dict:
    blocks = block_origins(GROWTH[method](SMALL, LARGE))
    return {
        "source_model": dataclasses.asdict(SMALL),
        "blocks": [{"source": source, "silent": silent} for source, silent in blocks],
        "parameters": {"source": SMALL.parameters, "grown": LARGE.parameters},
    }


def _rows(losses: list[float], hours: float) -> list[dict]:
    return [
        {"train/loss": y, "budget/tokens": 1000 * (i + 1), "budget/gpu_hours": hours * (i + 1) / len(losses)}
        for i, y in enumerate(losses)
    ]


def _pictures(config, metrics: list[dict]) -> str:
    view = growth_report.growth_view(growth_report.growth_facts(config, _init()), _init(), metrics)
    return html.render("growth.html", init={**_init(), "method": "exact"}, models=[], growth=view)


def test_the_bump_is_found_where_the_loss_rises_and_nowhere_else():
    assert growth_report.bump([(0, 3.0), (1, 3.4), (2, 3.1), (3, 2.9)]) == (1, 3.4 - 3.0, 3)
    assert growth_report.bump([(0, 3.0), (1, 2.9)])[1:] == (0.0, 0)
    assert growth_report.bump([(0, 3.0), (1, 3.2)])[2] is None  # never back


def test_the_map_names_silent_and_live_copies_and_every_block():
    exact, stack = (block_map(_init(method), LARGE.hidden_size) for method in ("exact", "stack"))
    assert exact.count("silent copy of block 0") == 1
    assert stack.count("live copy of block 0") == 1
    assert exact.count(">block 3<") == 1
    assert "halo" not in exact  # a rim of paper would cover names that are written in paper on a box
    assert exact.count("<line ") == 6  # embedding, four blocks, head


def test_both_accountings_are_drawn_and_said_with_and_without_a_run_from_fresh_weights(monkeypatch):
    model = {f.name: getattr(LARGE, f.name) for f in dataclasses.fields(LARGE)}
    train = {"sequence_length": 64, "global_batch_tokens": 256}
    init = {"method": "exact", "source": "small.yaml"}
    config = configs.from_values({"name": "big", "model": model, "init": init, "train": train}, where="test")
    falling = [8.0 - 0.1 * i for i in range(40)]
    grown = _rows([4.1 - 0.02 * i for i in range(40)], 0.5)
    monkeypatch.setattr(growth_report, "_source_rows", lambda config: _rows(falling, 0.25))
    monkeypatch.setattr(growth_report, "_rows", lambda config: [])
    alone = words(_pictures(config, grown))
    assert "name=big-scratch init.method=random init.source=null" in alone
    assert "no re-warm bump" in alone
    monkeypatch.setattr(growth_report, "_rows", lambda config: _rows(falling, 0.5))
    beside = _pictures(config, grown)
    # scratch ends at the loss that the grown model begins with: nothing but the source's half of the hours is needed
    assert "0.50 of its device-hours with the source counted, 0.00 with the source free" in words(beside)
    assert beside.count("<svg") == 3
    assert "On held-out text" not in beside  # neither has been validated

    def validated(losses: list[float], hours: float, bits: float) -> list[dict]:
        rows = _rows(losses, hours)
        return [*rows[:-1], {**rows[-1], "val/bits_per_byte": bits}]

    monkeypatch.setattr(growth_report, "_rows", lambda config: validated(falling, 0.75, 1.5))
    beside = _pictures(config, validated([4.0 - 0.02 * i for i in range(40)], 0.5, 1.25))
    said = "grown 1.2500 bits per byte after 0.7500 device-hours, the source's counted; scratch 1.5000"
    assert said in words(beside)


def test_a_page_says_what_the_same_flops_would_have_given_without_growth(monkeypatch):
    asked = []
    monkeypatch.setattr(growth, "without_growth", lambda *question: asked.append(question) or "As measured.")
    facts = {"name": "big", "source": _rows([4.0, 3.0], 0.1), "scratch": [], "cost": 0.5, "model": {"hidden_size": 40}}
    view = growth_report.growth_view(facts, _init(), _rows([3.0, 2.9, 2.8], 0.1))
    assert view is not None
    assert view["without"] == "As measured."
    [(parameters, tokens, source)] = asked
    assert (parameters, source) == (LARGE.parameters, SMALL.parameters)
    assert tokens == (3000 + 0.5 * 2000) / LARGE.parameters
    public = growth_report.growth_view({**facts, "source": []}, _init(), _rows([3.0, 2.9], 0.1))
    assert public is not None
    assert public["without"] == growth.NOT_MEASURED


def test_a_page_before_pretraining_has_the_map_alone(monkeypatch):
    facts = {"name": "big", "source": _rows([4.0, 3.0], 0.1), "scratch": [], "cost": 0.5, "model": {"hidden_size": 40}}
    view = growth_report.growth_view(facts, _init(), [])
    page = html.render("growth.html", init={**_init(), "method": "exact"}, models=[], growth=view)
    assert page.count("<svg") == 1
    assert "without growth" not in page


def test_fresh_weights_have_no_pictures_of_growth():
    assert growth_report.growth_facts(configs.Config(), {"blocks": []}) is None
    assert growth_report.growth_view(None, {"blocks": []}, []) is None
