"""The examples of docs/extending.md, run as they stand on the page: each is one file and one line of a table."""

import re
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datatrove.data import Document
from transformers import AutoModelForCausalLM

from data_filters.table import FILTERS
from model.config import ModelConfig
from model.families import FAMILIES
from model.growth import GROWTH
from model.growth.rules import GrowthRefused, apply
from model.hf import load_config, save_folder
from model.optim import OPTIMIZERS, MasterWeights
from model.special_tokens import SpecialTokens
from model.transformer import Transformer
from pipeline.corpus.steps import SOURCES, make_rules, make_source
from pipeline.list_names import show
from pipeline.system.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TABLES = {
    "data_filters/table.py": FILTERS, "model/growth/__init__.py": GROWTH, "model/optim.py": OPTIMIZERS,
    "pipeline/corpus/steps.py": SOURCES, "model/families/__init__.py": FAMILIES,
}  # fmt: skip
SMALL = ModelConfig(64, 16, 32, 2, 2, max_position_embeddings=32)
LARGE = ModelConfig(64, 24, 48, 4, 3, max_position_embeddings=32)


def _examples() -> dict[str, tuple[str, str, str]]:
    """{name in the table: (file, its code, the table's file)}, in pairs as on the page."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return {line.split('"')[1]: (file, code, table) for (file, code), (table, line) in pairs}


EXAMPLES = _examples()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file becomes a module, each line an entry of its table."""
    for name, (file, code, table) in EXAMPLES.items():
        module = types.ModuleType(file.removesuffix(".py").replace("/", "."))
        exec(compile(code, file, "exec"), vars(module))
        line = (ROOT / "docs" / "extending.md").read_text().split(f"# {table}\n")[1].split("\n")[0]
        monkeypatch.setitem(TABLES[table], name, eval(f"{{{line}}}", vars(module))[name])


def test_every_kind_of_part_has_an_example_of_at_most_twelve_lines():
    assert {table for _, _, table in EXAMPLES.values()} == set(TABLES)
    for file, code, table in EXAMPLES.values():
        assert (ROOT / file).parent.is_dir()
        assert not (ROOT / file).exists()
        assert (ROOT / table).is_file()
        assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_names_and_options_are_listed(registered):
    for table, name, option in (
        ("filters", "shouting", "max_share=0.3"),
        ("growth", "bottom", "copy_noise=0.5"),
        ("optimizers", "sgd", "beta1=0.9"),
        ("sources", "counting", "count=100"),
    ):
        shown = show(table)
        assert name in shown.splitlines()
        assert option in shown


def test_the_filter_drops_what_it_says_and_checks_its_option(registered):
    rule = make_rules({"shouting": {"max_share": 0.5}})["shouting"]
    assert rule.decide(Document("A quiet text.", "1", metadata={"kind": "prose"})) is None
    drop = rule.decide(Document("ALL CAPITALS", "2", metadata={"kind": "prose"}))
    assert drop is not None
    assert (drop.reason, drop.value, drop.threshold) == ("shouting", 1.0, 0.5)
    assert rule.decide(Document("ALL = CAPITALS", "3", metadata={"kind": "code"})) is None
    with pytest.raises(UserError, match="max_share"):
        make_rules({"shouting": {"max_share": 2}})
    with pytest.raises(UserError, match=r"data\.filters\.shouting"):
        make_rules({"shouting": {"max_shares": 0.5}})


def test_the_growth_method_makes_every_tensor_and_checks_its_option(registered):
    source = Transformer(SMALL).initialize(0)
    rules = GROWTH["bottom"](SMALL, LARGE)
    grown = dict(apply(rules, source.state_dict(), seed=0))
    assert {name: tuple(tensor.shape) for name, tensor in grown.items()} == LARGE.tensor_shapes()
    sources = {rule.target: rule.sources[0] for rule in rules}
    norms = [sources[f"model.layers.{index}.input_layernorm.weight"].split(".")[2] for index in range(4)]
    assert norms == ["0", "0", "0", "1"]
    with pytest.raises(GrowthRefused, match="noise is unknown"):
        GROWTH["bottom"](SMALL, LARGE, noise=1.0)
    with pytest.raises(GrowthRefused, match="would shrink"):
        GROWTH["bottom"](LARGE, SMALL)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_optimizer_lowers_the_loss(precision, registered):
    network = Transformer(SMALL).initialize(0)
    optimizer = MasterWeights(network, lambda groups: OPTIMIZERS["sgd"](groups, learning_rate=0.1), precision)
    ids = torch.arange(24).view(2, 12) % 7
    losses = []
    for _ in range(12):
        loss_sum, count = network.loss(ids[:, :-1], ids[:, 1:])
        losses.append(float(loss_sum.detach() / count))
        (loss_sum / count).backward()
        optimizer.step(1.0)
    assert losses[-1] < losses[0] - 0.5
    assert any(name.startswith("momentum_buffer/") for name in optimizer.state_dict())
    with pytest.raises(ValueError, match="bf16-mixed"):
        OPTIMIZERS["sgd"]([], learning_rate=0.1, sliced=True)


def test_the_source_gives_its_documents_whatever_the_shards_and_checks_its_options(registered):
    source = make_source({"type": "counting", "count": 25}, "data.sources.numbers")
    shards = [[item.text for item in source.documents(task, 2)] for task in range(2)]
    assert sorted(shards[0] + shards[1]) == sorted(f"{n} and {n + 1}" for n in range(25))
    few = make_source({"type": "counting", "limit_documents": 3}, "data.sources.numbers")
    assert [item.text for item in few.documents(0, 1)] == ["0 and 1", "1 and 2", "2 and 3"]
    with pytest.raises(UserError, match=r"data\.sources\.numbers.*counts"):
        make_source({"type": "counting", "counts": 3}, "data.sources.numbers")


@torch.no_grad()
def test_the_family_computes_and_names_its_files_as_transformers_class(registered, tmp_path):
    shape = ModelConfig(64, 16, 32, 2, 2, 1, 12, family="mistral", max_position_embeddings=32)
    network = Transformer(shape).initialize(0)
    save_folder(tmp_path, network.state_dict(), shape, None, SpecialTokens())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "MistralForCausalLM"
    ids = torch.arange(30)[None]
    assert (theirs(ids).logits - network(ids)).abs().max() < 1e-6
    assert load_config(tmp_path).parameters == shape.parameters
    assert [rule.target for rule in GROWTH["exact"](shape, replace(shape, hidden_size=24))] == list(
        shape.tensor_shapes()
    )
