"""Micro-batches: chosen by plan, halved where memory runs out; impossible pairs of settings refused."""

from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.transformer import Transformer
from pipeline import config as configs
from pipeline.config import TrainConfig
from pipeline.system.errors import UserError
from pipeline.training.batches import Batch
from pipeline.training.memory import choices, micro_batch_windows, planned_windows
from pipeline.training.module import PretrainModule
from pipeline.training.validation import _token_nats

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"
MODEL = ModelConfig(97, 64, 128, 2, 4, max_position_embeddings=64)
TRAIN = {"sequence_length": 32, "global_batch_tokens": 32 * 8, "clip_norm": 1.0}


def module_of(**changes: object) -> PretrainModule:
    train = TrainConfig(**{**TRAIN, **changes})  # type: ignore[arg-type]
    return PretrainModule(Transformer(MODEL).initialize(0), train, "32-true")


def a_batch() -> Batch:
    ids = torch.randint(0, 97, (8, 33), generator=torch.Generator().manual_seed(3))
    fields = {"input_ids_BT": ids[:, :-1], "labels_BT": ids[:, 1:], "predicted": 8 * 32}
    return Batch(**{name: value for name, value in fields.items() if name in Batch.__annotations__})


def test_where_memory_runs_out_the_step_is_done_in_smaller_passes(monkeypatch, capsys) -> None:
    expected = module_of()
    expected.training_step(a_batch(), 0)
    module = module_of()
    whole = module.network.loss

    def small_card(input_ids_BT, labels_BT):
        if len(input_ids_BT) > 2:
            raise torch.OutOfMemoryError("no memory")
        return whole(input_ids_BT, labels_BT)

    monkeypatch.setattr(module.network, "loss", small_card)
    module.training_step(a_batch(), 0)
    assert (module.windows, module.step) == (2, 1)
    assert "continuing with 4 windows" in (said := capsys.readouterr().out)
    assert "continuing with 2 windows" in said
    torch.testing.assert_close(module.last_loss, expected.last_loss)
    torch.testing.assert_close(module.last_grad_norm, expected.last_grad_norm)


@pytest.mark.parametrize("changes", [{"micro_batch": 4}, {"optimizer_in_backward": True, "clip_norm": 0.0}])
def test_a_micro_batch_that_was_asked_for_is_never_changed(changes, monkeypatch) -> None:
    module = module_of(**changes)

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(module.network, "loss", no_memory)
    with pytest.raises(UserError, match=r"memory ran out with [48] windows.*train\.activation_checkpointing=full"):
        module.training_step(a_batch(), 0)


def test_a_validation_that_finds_no_memory_goes_on_in_halves(monkeypatch) -> None:
    network = Transformer(MODEL).initialize(0)
    ids, whole = a_batch().input_ids_BT[:7], network.token_nats
    expected = whole(ids, ids)

    def small_card(input_ids_BT, labels_BT):
        if len(input_ids_BT) > 2:
            raise torch.OutOfMemoryError("no memory")
        return whole(input_ids_BT, labels_BT)

    monkeypatch.setattr(network, "token_nats", small_card)
    torch.testing.assert_close(_token_nats(network, ids, ids), expected)
    monkeypatch.setattr(network, "token_nats", lambda *_: small_card(torch.zeros(3), None))
    with pytest.raises(torch.OutOfMemoryError):
        _token_nats(network, ids, ids)


def test_a_pass_takes_no_more_windows_than_keep_a_card_busy() -> None:
    assert max(choices(TrainConfig(sequence_length=2048, global_batch_tokens=2048 * 256))) == 16


def test_muon_takes_the_momentum_that_was_asked_for() -> None:
    kept = {}
    for momentum in (0.5, 0.9):  # of the first gradient (1 - momentum) is kept
        module = module_of(optimizer="muon", muon_momentum=momentum)
        module.training_step(a_batch(), 0)
        kept[momentum] = module.optimizer.state_dict()["momentum/model.layers.0.mlp.fc1.weight"]
    assert kept[0.9].norm() > 0
    torch.testing.assert_close(kept[0.5], 5 * kept[0.9])


def test_a_cpu_takes_what_fits_its_caches() -> None:
    train = TrainConfig(sequence_length=1024, global_batch_tokens=1024 * 32)
    assert micro_batch_windows(train, "cpu", MODEL, "32-true") == 8


def test_the_plan_takes_more_windows_on_a_larger_card() -> None:
    train = TrainConfig(sequence_length=64, global_batch_tokens=64 * 48)
    model = ModelConfig(512, 256, 1024, 3, 4)
    overhead = 2**30 * 1.2
    chosen = [planned_windows(train, model, "32-true", int(overhead + room)) for room in (1, 1e8, 1.5e8, 1e9)]
    assert chosen == sorted(chosen)
    assert chosen[0] == 1
    assert 1 < chosen[2] < 48
    assert chosen[-1] == 48


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.clip_norm=1"], r"train\.clip_norm is 1: .*set train\.clip_norm=0"),
        (["train.clip_norm=0", "train.micro_batch=2"], r"train\.micro_batch=2 of the step's 8 windows"),
    ],
)
def test_the_optimizer_in_the_backward_pass_refuses_what_needs_all_gradients(overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        configs.load(TINY, ["train.optimizer_in_backward=true", *overrides])
    configs.load(TINY, ["train.optimizer_in_backward=true", "train.clip_norm=0"])


@pytest.mark.parametrize("compiled", ["auto", "false"])
def test_blocks_are_not_compiled_on_a_cpu_by_themselves(compiled, monkeypatch) -> None:
    monkeypatch.setattr(Transformer, "compile_blocks", lambda self: pytest.fail("compiled"))
    module_of(compile=compiled)
