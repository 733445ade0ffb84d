"""Studies without training: designs, effects on known numbers, fronts, pictures, budgets, and what is refused."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml

from pipeline import study, submit
from pipeline.__main__ import main
from pipeline.corpus.text.intervals import t_quantile
from pipeline.pages.charts import Dot, scatter
from pipeline.slurm import Options
from pipeline.stages import init_identity, pretrain_identity
from pipeline.storage.files import hash_json
from pipeline.studies import design
from pipeline.studies.analysis import at_equal_bytes, corrected, effect, estimate, pareto, sentence, verdicts
from pipeline.studies.design import check_claims
from pipeline.studies.file import read
from pipeline.studies.members import flops_per_token, members, trainings, tuning_flops_per_token
from pipeline.studies.run import choose
from pipeline.system.errors import WRONG_INPUT, UserError

ROOT = Path(__file__).resolve().parents[2]
AXES = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"], "c": ["c0", "c1"]}
BASE = """
name: base
data: {sources: {exercises: {type: exercises, count: 50}}, workers: 1}
model: {vocab_size: 512, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 64}
train: {sequence_length: 64, global_batch_tokens: 256, device: cpu}
tracking: {to: none}
"""
SMALLER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
STUDY = {
    "name": "toy",
    "base": "base.yaml",
    "equal": {"flops": 1e9},
    "seeds": [1, 2],
    "axes": {
        "size": {"large": {}, "small": {f"model.{key}": value for key, value in SMALLER.items()}},
        "form": {"stored": {}, "int8": {"form": "int8"}},
        "start": {
            "scratch": {},
            "grown": {
                "init.method": "exact",
                "init.source": "base.yaml",
                "init.source_overrides": {"model": SMALLER},
                "spend": {"source": 0.25},
            },
        },
        "tuning": {
            "none": {},
            "full": {"finetune.method": "full", "spend": {"finetune": 0.1}},
            "lora": {"finetune.method": "lora", "spend": {"finetune": 0.1}},
        },
    },
    "members": [{"size": ["large", "small"], "form": ["stored", "int8"]}, {"tuning": ["full", "lora"], "seeds": [1]}],
}


def written(folder, **changes):
    (folder / "base.yaml").write_text(BASE)
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**STUDY, **changes}.items() if v is not None}, sort_keys=False))
    return path


def test_designs_have_the_cells_that_they_promise():
    assert len(design.full(AXES)) == 12
    star = design.pairs(AXES, [])
    assert len(star) == 1 + 2 + 1 + 1
    assert all(sum(cell[axis] != levels[0] for axis, levels in AXES.items()) <= 1 for cell in star)
    named = design.pairs(AXES, [["a", "b"]])
    assert {(cell["a"], cell["b"]) for cell in named if cell["c"] == "c0"} == set(
        itertools.product(*list(AXES.values())[:2])
    )
    assert len(named) == 6 + 1
    cells = design.listed(AXES, [{"a": ["a0", "a1"], "b": "b1"}, {"a": "a1", "b": "b1", "seeds": [9]}, {}])
    assert [tuple(cell.values()) for cell, _ in cells] == [("a0", "b1", "c0"), ("a1", "b1", "c0"), ("a0", "b0", "c0")]
    for entry, message in (({"d": "x"}, "unknown axis 'd'"), ({"a": "a3"}, "no level 'a3'"), ("a0", "entry 1 is 'a0'")):
        with pytest.raises(UserError, match=message):
            design.listed(AXES, [entry])


def test_effects_are_what_the_numbers_were_made_of():
    noise = {1: 0.3, 2: -0.1, 3: 0.5}  # of a seed: cancels within it
    wobble = {1: 0.01, 2: 0.0, 3: -0.01}
    rows = [
        {
            "cell": {"x": x, "y": y},
            "seed": seed,
            "loss": 2.0 + noise[seed] + (x == "1") * (-0.2 + wobble[seed]) + (y == "1") * 0.1 + (x == y == "1") * 0.05,
        }
        for x, y, seed in itertools.product("01", "01", (1, 2, 3))
    ]
    main = effect(rows, "loss", ("x", "1", "0"))
    assert main is not None
    assert main.mean == pytest.approx(-0.2 + 0.05 / 2)
    half = 4.3027 * 0.01 / 3**0.5
    assert main.interval == pytest.approx([main.mean - half, main.mean + half], abs=1e-5)
    assert main.p is not None
    assert main.p < 0.01
    assert (main.seeds, main.differences) == (3, 6)
    both = effect(rows, "loss", ("x", "1", "0"), ("y", "1", "0"))
    assert both is not None
    assert both.mean == pytest.approx(0.05)
    assert effect(rows[:3], "loss", ("x", "1", "0")) is None  # all of x = 0
    assert effect(rows[:9], "loss", ("x", "1", "0"), ("y", "1", "0")) is None  # a corner is missing
    one = estimate({1: [1.0, 3.0]})
    assert one is not None
    assert (one.mean, one.interval, one.p) == (2.0, None, None)
    assert [round(t_quantile(n), 3) for n in (1, 2, 3, 10, 30)] == [12.706, 4.303, 3.182, 2.228, 2.042]


def test_a_front_has_whom_nobody_beats_and_equal_bytes_are_read_off_between_sizes():
    rows = [{"cost": c, "loss": q} for c, q in ((3, 1.0), (1, 2.0), (2, 2.5), (2, 1.5), (4, 1.0), (5, None), (1, 1.9))]
    assert [(r["cost"], r["loss"]) for r in pareto(rows, "cost", "loss", True)] == [(1, 1.9), (2, 1.5), (3, 1.0)]
    assert [(r["cost"], r["loss"]) for r in pareto(rows, "cost", "loss", False)] == [(1, 2.0), (2, 2.5)]
    sizes = {"s": (1e6, 3.0), "m": (4e6, 2.0)}
    rows = [
        {"cell": {"size": size, "form": "full"}, "seed": 1, "bits_per_byte": q, "inference_bytes": b}
        for size, (b, q) in sizes.items()
    ]
    rows.append({"cell": {"size": "m", "form": "int8"}, "seed": 1, "bits_per_byte": 2.1, "inference_bytes": 2e6})
    rows.append({"cell": {"size": "s", "form": "int8"}, "seed": 1, "bits_per_byte": 3.1, "inference_bytes": 5e5})
    found = at_equal_bytes(rows, "form", "size", "full")
    assert list(found) == [("int8", "m")]  # nothing full is as small as the other
    assert found["int8", "m"].mean == pytest.approx(2.1 - 2.5)  # half way between the sizes, in the logarithm


def test_the_picture_has_every_dot_and_the_front():
    dots = [Dot(1e6, 2.0, 1.9, 2.1, "a & b", "bf16", True), Dot(4e6, 1.5, 1.4, 1.6, "c", "int8", True),
            Dot(4e6, 1.51, 1.5, 1.6, "d", "int8")]  # fmt: skip
    svg = scatter(dots, x_name="bytes", y_name="loss", format_x=str, logarithmic=True)
    assert svg.count("<circle") == 3 + 2  # and the legend
    assert "a &amp; b" in svg
    assert len(svg.split('points="')[1].split('"')[0].split()) == 2
    far = Dot(2e6, 90.0, 80.0, 95.0, "far", "int8")
    assert "far: 90.00, above" in scatter([*dots, *dots, far], x_name="", y_name="", format_x=str, cut_top=True)
    assert scatter([], x_name="", y_name="", format_x=str) == ""


def test_a_claim_gets_the_verdict_of_its_figure():
    claims = check_claims([{"says": "b1 helps", "kind": "main", "levels": ["b1"]},
                           {"says": "b1 changes nothing", "kind": "main", "levels": ["b1"], "expect": "same"},
                           {"says": "c1", "kind": "main", "levels": ["c1"]}], AXES, "study")  # fmt: skip
    found = {"kind": "main", "measure": "bits_per_byte", "changes": [{"level": "b1"}], "seeds": 3}
    for mean, half, clear, words in (
        (-0.1, 0.02, True, ("holds here, with 3 seeds", "does not hold here: better, with 3 seeds")),
        (0.1, 0.02, True, ("does not hold here: worse, with 3 seeds", "does not hold here: worse, with 3 seeds")),
        (0.1, 0.2, False, ("not shown by 3 seeds", "not shown by 3 seeds")),
        (0.001, 0.004, False, ("not shown by 3 seeds", "holds here within 0.0100, with 3 seeds")),
    ):
        entry = {**found, "mean": mean, "clear": clear, "interval": [mean - half, mean + half]}
        said = [v["verdict"] for v in verdicts(claims, [entry])]
        assert said == [*words, "not measured yet"]
    for claim, message in (({"says": "x"}, "expected the keys"), ({**claims[0], "levels": ["b2"]}, "has 'b2'.*'b1'"),
                           ({**claims[0], "expect": "bigger"}, "expect is 'bigger'")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            check_claims([claim], AXES, "study")


def an_effect(level: str, p: float | None, mean: float = 0.1, kind: str = "main") -> dict:
    changes = [{"axis": "b", "level": level, "reference": "b0"}]
    changes += [{"axis": "c", "level": "c1", "reference": "c0"}] if kind == "interaction" else []
    return {"kind": kind, "measure": "bits_per_byte", "changes": changes, "mean": mean, "seeds": 3, "differences": 3,
            "interval": None if p is None else [mean - 0.05, mean + 0.05], "p": p}  # fmt: skip


def test_many_differences_are_tested_together_and_claims_apart_from_the_rest():
    entries = [an_effect(level, p) for level, p in (("1", 0.02), ("2", 0.001), ("3", 0.03), ("4", 0.04), ("5", None))]
    assert [e["clear"] for e in corrected(entries, [])] == [False, True, False, False, False]  # 0.02 > 0.05 / 3
    claims = [{"kind": "main", "measure": "bits_per_byte", "levels": [level]} for level in ("1", "3")]
    found = corrected(entries, claims)
    assert [e["clear"] for e in found] == [True, True, True, True, False]  # 0.02 < 0.05 / 2, then 0.03 < 0.05
    widths = [e["interval_holm"][1] - e["interval_holm"][0] for e in found[:4]]
    assert widths[2] == widths[3] == pytest.approx(0.1)
    assert widths[0] == pytest.approx(0.1 * t_quantile(2, 0.975) / t_quantile(2))
    assert found[4]["interval_holm"] is None


def test_changes_are_said_to_add_up_only_within_the_margin():
    wide, narrow = an_effect("b1", 0.6, 0.001, "interaction"), an_effect("b1", 0.6, 0.001, "interaction")
    narrow["interval"] = [-0.004, 0.006]
    assert sentence({**wide, "clear": False}).endswith("3 seeds do not show whether they add up.")
    assert sentence({**narrow, "clear": False}).endswith("they add up, within 0.0100.")
    assert "less than the sum" in sentence({**narrow, "clear": True})


def test_losers_are_the_worse_share_by_their_mean():
    losses = {"a": [2.0, 2.2], "b": [1.0], "c": [1.9, 2.5], "d": [3.0]}
    assert choose(losses, 0.5) == ["b", "a"]
    assert choose(losses, 0.1) == ["b"]


def test_members_share_experiments_and_spend_the_same(root, folder):
    study = read(written(folder))
    found = members(study)
    assert len(found) == 2 * 4 + 2
    trained = trainings(found)
    assert len(trained) == 2 * 2 + 2
    assert [m.seed for m in found] == sorted(m.seed for m in found)  # whole rounds first
    assert trained[0].config.quantize.kinds == ["int8"]
    by_name = {one.name.split("/")[1]: one for one in trained}
    for one in trained:
        tokens = one.config.budget.max_tokens
        assert tokens is not None
        spent = tokens * flops_per_token(one.config)
        if one.tuned:
            tuning = one.config.finetune.budget.max_tokens
            assert tuning is not None
            spent += tuning * tuning_flops_per_token(one.config)
        assert spent == pytest.approx(1e9, rel=0.02)
    lora, full = by_name["large-scratch-lora-s1"].config, by_name["large-scratch-full-s1"].config
    assert pretrain_identity(lora) == pretrain_identity(full)  # one pretraining
    untuned = by_name["large-scratch-none-s1"].config
    assert pretrain_identity(lora) != pretrain_identity(untuned)  # which has more tokens: it must not be taken
    assert (lora.finetune.budget.max_tokens or 0) > (full.finetune.budget.max_tokens or 0)
    grown = read(written(folder, equal={"gpu_hours": 2}, members=[{"start": "grown", "tuning": "lora"}], seeds=[1]))
    [one] = trainings(members(grown))
    assert one.config.budget.max_gpu_hours == pytest.approx(1.8)  # of which the source, charged to it, has 0.5
    assert one.config.budget.count_source
    assert one.config.init.source_overrides["budget"]["max_gpu_hours"] == 0.5
    assert one.config.finetune.budget.max_gpu_hours == pytest.approx(0.2)


def test_members_that_differ_in_runtime_keys_alone_are_runs_of_their_own(root, folder):
    axes = {"precision": {"full": {"train.precision": "32-true"}, "mixed": {"train.precision": "bf16-mixed"}}}
    study = read(written(folder, axes=axes, members=None, seeds=[1]))
    one, other = (pretrain_identity(t.config) for t in trainings(members(study)))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "none.yaml"}, "base: none.yaml is not there"),
        ({"base": None}, "base is None"),
        ({"equal": None}, "members need equal budgets"),
        ({"equal": {"flops": 0}}, "members need equal budgets"),
        ({"equal": {"flops": 1e9, "gpu_hours": 1}}, "members need equal budgets"),
        (
            {"axes": {"a": {"b": {"train.learning_rat": 1}}}, "members": None},
            "unknown key 'train.learning_rat'.*did you mean 'learning_rate'",
        ),
        ({"axes": {"a": {"b": {"budget.max_tokens": 5}}}, "members": None}, "would not have equal budgets"),
        ({"set": {"finetune": {"budget": {"max_tokens": 5}}}}, "would not have equal budgets"),
        ({"axes": {"a": {"b": {"form": "int7"}}}, "members": None}, "a.b.form has 'int7'.*did you mean"),
        ({"axes": {"a": {"b": {"spend": {"sauce": 0.1}}}}, "members": None}, "spend is .*shares of the budget"),
        ({"axes": {"a": {"b": {"spend": {"source": 0.1}}}}, "members": None}, "has no source to train"),
        ({"axes": {"a": {True: {}}}, "members": None}, "a level's name is letters"),
        ({"axes": {}, "members": None}, "expected axis -> level"),
        ({"measures": ["perplexity"]}, "measures has 'perplexity'"),
        ({"measures": [{"perplexity": 1}]}, "measures has '{'perplexity': 1}'"),
        ({"members": [{"sise": "small"}]}, "unknown axis 'sise'.*did you mean 'size'"),
        ({"pairs": 5}, "a key holds a value of another kind: 'int' object is not iterable"),
        ({"pairs": [[["size"], "form"]]}, "a key holds a value of another kind: unhashable type"),
        ({"seeds": [1.5]}, "expected a list of whole numbers"),
        ({"stop": {"at": [0.2, 0.5], "keep": 0.5}}, "expected multiples of the first"),
        ({"pairs": [["size", "shape"]]}, "expected two axes of size"),
        ({"desing": "full"}, "unknown key 'desing'.*did you mean 'design'"),
        ({"set": {"finetune.task": "sentimental"}}, "finetune.task is 'sentimental'.*did you mean 'sentiment'"),
        ({"axes": {"a": {"x": {"seed": 1}}, "b": {"y": {"seed": 2}}}, "members": None}, "both set seed"),
    ],
)
def test_a_wrong_study_is_refused_in_one_message(root, folder, changes, message, capsys, monkeypatch):
    path = written(folder, **changes)
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    main(["study", str(path), "--dry-run"])
    assert codes == [WRONG_INPUT]
    said = capsys.readouterr().err
    assert said.startswith("hornbook: ")
    assert len(said.splitlines()) == 1
    with pytest.raises(UserError, match=message):
        raise UserError(said)


@pytest.mark.parametrize("name", ["combine", "budget", "memory"])
def test_the_shipped_studies_are_whole(root, name):
    study = read(ROOT / "configs" / "studies" / f"{name}.yaml")
    assert study.name == name
    assert all(len(seeds) == 3 for _, seeds in study.cells)
    trained = trainings(members(dataclasses.replace(study, cells=[(cell, (1,)) for cell, _ in study.cells])))
    assert len({t.name for t in trained}) == len(trained) == {"combine": 8, "budget": 8, "memory": 13}[name]
    assert (
        len({hash_json([pretrain_identity(t.config), init_identity(t.config), t.config.data.filters]) for t in trained})
        == {"combine": 7, "budget": 7, "memory": 13}[name]
    )  # LoRA and full tuning share one


def test_an_array_has_every_pretraining_once_and_a_last_job(root, folder, capsys):
    path = written(folder, members=[{"tuning": ["full", "lora"]}], seeds=[1])
    study.submit(str(path), Options(), None, dry_run=True)
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-0" in said  # both tunings are of one pretraining
    assert "verbs=(init pretrain)" in said
    assert "verbs=(study)" in said
    assert "afterany:<array of toy>" in said
    assert submit.JOBS in said
    stopping = written(folder, stop={"at": [0.5], "keep": 0.5})
    with pytest.raises(UserError, match="leave --slurm out"):
        study.submit(str(stopping), Options(), None, dry_run=True)
