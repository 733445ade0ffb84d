"""Tuning: adapters that change little and learn, the same cap and resume as pretraining, mistakes named."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from after_model import model_of
from json_schema import report_of
from page_text import rows
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from model.adapters import Merged, add_adapters, is_packed, quantize_base, trainable_share
from model.hf import load_network, save_folder
from model.optim import MasterWeights, trained_parameters
from pipeline import config as configs
from pipeline import export, finetune
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.release.formats import no_memory_saved
from pipeline.run_stage import describe, run_stage, step_of
from pipeline.storage.steps import read_manifest
from pipeline.storage.store import Command, Store
from pipeline.system.errors import Stopped, UserError
from pipeline.tuning.data import TARGETS, are_texts, encode, make_target, read_sources

pytest.importorskip("peft")
SHORT = (
    "finetune.task=bracket", "finetune.budget.max_tokens=20000", "finetune.measure_memory=false", "finetune.items=60",
    "finetune.train.device=cpu", "finetune.train.precision=32-true", "finetune.train.learning_rate=1e-2",
    "finetune.train.global_batch_tokens=512",
)  # fmt: skip


def base_folder(pretrained) -> Path:
    return model_of(pretrained()).folder


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_changes_nothing_at_first_and_merges_to_the_same_function(pretrained, packed):
    network, ids = load_network(base_folder(pretrained)), torch.arange(1, 80)[None]
    if packed:
        pytest.importorskip("torchao")
        quantize_base(network)
        assert is_packed(network.model.layers[0].mlp.fc1.weight)
    before = network(ids)
    add_adapters(network, ["q_proj", "fc1"], rank=4, alpha=8, dropout=0.0, seed=1)
    assert torch.allclose(network(ids), before, atol=1e-5)
    trained = trained_parameters(network)
    assert all("lora_" in name for name in trained)
    assert trainable_share(network) == pytest.approx(
        sum(p.numel() for p in trained.values()) / network.config.parameters
    )
    for parameter in trained.values():
        parameter.normal_(std=0.2)
    after = network(ids)
    whole = load_network(base_folder(pretrained))
    whole.load_state_dict(Merged(network, trained))
    assert (whole(ids) - after).abs().max() / after.abs().max() < 1e-5
    assert (after - before).abs().max() > 0.01


@torch.no_grad()
def test_an_adapter_of_a_model_that_calls_itself_tied_merges_beside_its_own_head(pretrained, tmp_path):
    folder = shutil.copytree(base_folder(pretrained), tmp_path / "own_head")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))
    network, ids = load_network(folder), torch.arange(1, 80)[None]
    add_adapters(network, ["fc2"], rank=4, alpha=8, dropout=0.0, seed=1)
    trained = trained_parameters(network)
    for parameter in trained.values():
        parameter.normal_(std=0.2)
    save_folder(tmp_path / "merged", Merged(network, trained), network.config, None, "")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert theirs.config.tie_word_embeddings is False
    assert (theirs(ids).logits - network(ids)).abs().max() < 1e-4


def test_only_the_adapter_has_masters_gradients_and_moments(pretrained):
    network = load_network(base_folder(pretrained))
    add_adapters(network, ["fc1"], rank=2, alpha=4, dropout=0.0, seed=0)
    optimizer = MasterWeights(network, lambda groups: torch.optim.AdamW(groups, lr=1e-2), precision="32-true")
    frozen = network.model.layers[0].mlp.fc1.base_layer.weight.clone()
    ids = torch.arange(1, 65)[None]
    network.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    optimizer.step(1.0)
    assert set(optimizer.names) == {n for n, _ in network.named_parameters() if "lora_" in n}
    assert torch.equal(network.model.layers[0].mlp.fc1.base_layer.weight, frozen)
    assert bool(network.model.layers[0].mlp.fc1.lora_B.default.weight.any())
    assert len(optimizer.optimizer.state) == len(optimizer.names)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks transformers so
def test_lora_learns_the_task_and_says_what_it_gained(pretrained, capsys):
    config = pretrained(*SHORT)
    run_stage("finetune", config, "small.yaml")
    said = capsys.readouterr().out
    assert "tuning is likely to pay" in said  # the base is little better than guessing
    folder = finetune.finetune_step(config, "small.yaml").path
    manifest = read_manifest(folder)
    target = manifest["target"]
    assert target["before"] < 0.5
    assert target["after"] > target["before"] + 2 * target["standard_error"]
    assert 0 < manifest["trainable_share"] < 0.5
    assert manifest["gpu_hours"] > 0
    assert manifest["annealed"]
    found, page = report_of("small")
    assert found["finetune"]["target"] == target
    [(_, before, after)] = [row for row in rows(page) if row[0].startswith(target["name"])]
    assert (before, after.split(" ± ")[0]) == (f"{target['before']:.1%}", f"{target['after']:.1%}")
    run_stage("finetune", config, "small.yaml")
    assert "up to date" in capsys.readouterr().out
    config.export.model = str(folder / "model")
    run_stage("export", config, "small.yaml")
    card = (export.export_step(config, "small.yaml").path / "model" / "README.md").read_text()
    for word in ("**Fine-tuning**", "**Pretraining**", "**Data**", "Target task (bracket)", "narrow set"):
        assert word in card

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(base_folder(pretrained))
        theirs = PeftModel.from_pretrained(base, folder / "adapter")(ids).logits
        ours = load_network(folder / "model")(ids)
        whole = AutoModelForCausalLM.from_pretrained(folder / "model")(ids).logits
    assert (theirs - ours).abs().max() / ours.abs().max() < 1e-4
    assert (whole - ours).abs().max() / ours.abs().max() < 1e-4


def test_a_stopped_tuning_goes_on_where_it_was(pretrained, monkeypatch):
    from pipeline.system import signals
    from pipeline.training.control import Control

    whole = pretrained(*SHORT, "finetune.budget.max_tokens=6000")
    run_stage("finetune", whole, "small.yaml")
    expected = read_manifest(finetune.finetune_step(whole, "small.yaml").path)
    again = pretrained(*SHORT, "finetune.budget.max_tokens=6000", "finetune.train.clip_norm=0.999999")
    original = Control._stop_if_asked

    def stop_at_4(self, trainer):
        if self.module.step == 4:
            monkeypatch.setattr(signals, "stop_requested", lambda: "SIGTERM")
        original(self, trainer)

    monkeypatch.setattr(Control, "_stop_if_asked", stop_at_4)
    with pytest.raises(Stopped):
        run_stage("finetune", again, "small.yaml")
    monkeypatch.setattr(signals, "stop_requested", lambda: None)
    monkeypatch.setattr(Control, "_stop_if_asked", original)
    run_stage("finetune", again, "small.yaml")
    found = read_manifest(finetune.finetune_step(again, "small.yaml").path)
    assert found["lives"] == 2
    assert found["steps"] == expected["steps"]
    assert found["val_bits_per_byte"] == pytest.approx(expected["val_bits_per_byte"], rel=1e-3)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_other_methods_train_and_export(pretrained, method):
    if method == "qlora":
        pytest.importorskip("torchao")
    config = pretrained(*SHORT, f"finetune.method={method}", "finetune.budget.max_tokens=3000")
    run_stage("finetune", config, "small.yaml")
    folder = finetune.finetune_step(config, "small.yaml").path
    manifest = read_manifest(folder)
    assert (manifest["trainable_share"] == 1) == (method == "full")
    assert (folder / "adapter").is_dir() == (method == "qlora")
    assert load_network(folder / "model").config.parameters == manifest["parameters"]


def test_examples_learn_the_completion_alone(tmp_path, pretrained):
    tokenizer = load_tokenizer(base_folder(pretrained) / "tokenizer.json")
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) for i in range(10)))
    sources = read_sources({"sums": {"type": "completion", "path": str(path)}})
    data = encode(sources, [], tokenizer, 0, 64, 0.2, seed=0)
    assert data.length % 8 == 0
    assert (data.train["sums"].count, data.val["sums"].count) == (8, 2)
    inputs, labels = data.train["sums"].windows(torch.arange(8).numpy())
    for ids, learnt in zip(inputs, labels, strict=True):
        said = tokenizer.decode([i for i in learnt.tolist() if i > 0], skip_special_tokens=False)
        read = tokenizer.decode(ids.tolist())
        number = int(said)
        assert read.startswith(f"{number - 1} + 1 = {number}")
        assert learnt[learnt != -100][-1] == 0  # the end of text is learnt too


def test_every_example_begins_with_what_the_tokenizer_puts_before_a_text(tmp_path, pretrained):
    """As every document did that the model has read; it is not learnt."""
    tokenizer = load_tokenizer(base_folder(pretrained) / "tokenizer.json")
    first = tokenizer.id_to_token(7)
    tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 7)])
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) for i in range(10)))
    examples = encode(read_sources({"sums": {"path": str(path)}}), [], tokenizer, 0, 64, 0.2, seed=0).train["sums"]
    inputs, labels = examples.windows(torch.arange(8).numpy())
    assert (inputs[:, 0] == 7).all()
    assert not (inputs[:, 1] == 7).any()
    assert (labels[:, 0] == -100).all()
    texts = encode({"notes": [[("one two", True), ("", True)]] * 5}, ["notes"], tokenizer, 0, 8, 0.2, seed=0)
    stream = texts.train["notes"]
    assert [stream.tokens[start] for start in stream.index["offset"]] == [7] * 4


ANSWERED = [("### user\n", False), ("Add.\n\n1 2\n", False), ("### assistant\n", False), ("3\0", True), ("\n", False)]
FORMATS = {
    "messages": {"messages": [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Add.\n\n1 2"}, {"from": "gpt", "value": "3"}], "id": 1},
    "Alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "Alpaca without input": {"instruction": "Add.\n\n1 2", "input": "", "output": "3"},
}


@pytest.mark.parametrize("kind", ["auto", "chat", "completion"])
def test_the_format_of_each_record_is_told_from_its_fields(tmp_path, kind, capsys):
    lines = [json.dumps(record) for record in FORMATS.values()]
    (tmp_path / "mixed.jsonl").write_text("\n".join([*lines, "{broken", '{"prompt": "1 + 2 =", "completion": " 3"}']))
    found = read_sources({"own": {"type": kind, "path": str(tmp_path / "mixed.jsonl")}})["own"]
    assert found == [ANSWERED] * 4 + [[("1 + 2 =", False), (" 3", True), ("", True)]]
    said = capsys.readouterr().err
    assert "1 of 6 records cannot be read" in said
    assert "mixed.jsonl, line 5 is not JSON" in said
    (tmp_path / "array.json").write_text(json.dumps(list(FORMATS.values()), indent=1))
    assert read_sources({"own": {"type": kind, "path": str(tmp_path / "array.json")}})["own"] == [ANSWERED] * 4


def test_plain_text_files_are_running_text_without_a_type(tmp_path):
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text(f"Text of {name}.")
    options = {"path": str(tmp_path / "*")}
    assert are_texts("own", options)
    assert read_sources({"own": options})["own"] == [[("Text of a.txt.", True)], [("Text of b.md.", True)]]


def test_records_that_are_all_bad_are_one_error(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(UserError, match=r"2 of 2 records.*x.jsonl, line 1 has the fields a.*None is left"):
        read_sources({"own": {"path": str(tmp_path / "x.jsonl")}})
    assert capsys.readouterr().err == ""


def test_chat_examples_learn_what_the_assistant_says_and_the_model_gets_the_template(tmp_path, pretrained, capsys):
    from pipeline.tuning.data import TEMPLATE

    path = tmp_path / "chat.jsonl"
    line = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    path.write_text("\n".join([json.dumps(line)] * 12))
    config = pretrained(
        *SHORT[1:], f"finetune.sources.talk={{path: {path}}}",
        "finetune.method=full", "sample.temperature=0",
    )  # fmt: skip
    run_stage("finetune", config, "small.yaml")
    said = capsys.readouterr().out
    assert "sentiment" not in said  # own text is measured on its own held-out examples
    assert "bits per byte learnt, talk:" in said
    assert "talk: 11 examples to learn from, 1 of your own held out to test on" in said
    folder = finetune.finetune_step(config, "small.yaml").path / "model"
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    from pipeline import sample

    config.sample.model = str(folder)
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        sample.run(config, "small.yaml", prompt="Hi", chat=True)
    assert out.getvalue().strip() == "Hello"
    config.sample.model = None
    with pytest.raises(UserError, match="base model"):
        sample.run(config, "small.yaml", prompt="Hi", chat=True)


def test_a_method_that_takes_as_much_memory_as_full_tuning_is_named():
    found = {"method": "lora", "memory_bytes": {"lora": 30, "full": 30}}
    assert no_memory_saved(found) == ": lora saves no memory here"
    assert no_memory_saved({**found, "memory_bytes": {"lora": 29, "full": 30}}) == ""
    assert no_memory_saved({**found, "memory_bytes": None}) == ""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_ready_task_tests_on_other_texts_than_it_trains_on(name):
    target = make_target(name, 2000, 100, seed=3)
    assert not {text for text, _ in target.train} & {text for text, _ in target.test}
    counts = [sum(label == own for _, label in target.test) for own in target.labels]
    assert max(counts) - min(counts) <= 1
    assert make_target(name, 2000, 100, seed=3) == target


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ('{"prompt": "a"}', "completion", "line 1 has no text in 'completion'"),
        ('{"prompt": 3, "completion": "b"}', "completion", "no text in 'prompt'"),
        ("{", "completion", "is not JSON"),
        ("[1]", "completion", "expected an object"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', "chat", "role must be of"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "chat", "no message of the assistant"),
        ('{"text": "x"}', "chat", "has the fields text; expected one of {messages"),
        ('{"from": "human"}', "auto", "has the fields from; expected one of .*ShareGPT.*Alpaca"),
        ('{"conversations": [{"from": "dog", "value": "x"}]}', "auto", "role must be of"),
        ('{"instruction": "x"}', "auto", "no text in 'response'"),
        ('{"text": "x"}', "caht", "chat"),
    ],
)
def test_a_bad_line_is_named_with_its_place(tmp_path, line, kind, expected):
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=expected):
        read_sources({"own": {"type": kind, "path": str(path)}})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["finetune.task=sentimental"], "sentiment"),
        (["finetune.task=null"], "nothing to learn from"),
        (["finetune.budget.max_tokens=null"], "sets no end"),
        (["finetune.method=lorra"], "lora"),
        (["finetune.targets=[fc3]"], "fc"),
        (["finetune.sources.x={type: text, path: nowhere.txt}"], "no file matches"),
        (["finetune.sources.x={type: text, path: .}"], r"no file matches '\.'; it is a folder"),
        (["finetune.sources.x={type: text, path: ''}"], "no file matches"),
        (["finetune.sources.x={type: text, path: 12}"], "path is 12; expected the text"),
        (["finetune.sources.x={type: text, path: [a, b]}"], "expected the text"),
        (["finetune.sources.x=nowhere.jsonl"], "expected {type"),
        (["finetune.sources.x={type: [chat], path: x}"], r"type is '\['chat'\]'"),
    ],
)
def test_mistakes_are_named_in_dry_runs_too(pretrained, overrides, expected):
    with pytest.raises(UserError, match=expected):
        run_stage("finetune", pretrained(*SHORT, *overrides), "small.yaml")
    with pytest.raises(UserError, match=expected):
        describe(pretrained(*SHORT, *overrides), "finetune")


@pytest.mark.parametrize(
    ("stage", "override", "expected"),
    [
        ("evaluate", "evaluate.sets={x: nowhere.jsonl}", "evaluate.sets.x is nowhere.jsonl"),
        ("evaluate", "evaluate.sets={x: /}", "evaluate.sets.x is /"),
        ("evaluate", "evaluate.tasks=[cloz]", "cloze"),
        ("quantize", "quantize.kinds=[int3]", "int4"),
        ("quantize", "quantize.tasks=[cloz]", "cloze"),
    ],
)
def test_a_stage_after_pretraining_refuses_its_options_in_dry_runs_and_as_a_step(pretrained, stage, override, expected):
    config = pretrained(override)
    with pytest.raises(UserError, match=expected):
        describe(config, stage)
    if "sets" in override:
        with pytest.raises(UserError, match=expected):
            step_of(config, stage)


def test_models_that_cannot_be_tuned_are_refused(pretrained, tmp_path):
    import shutil

    good = base_folder(pretrained)

    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(good, folder)
        change(folder)
        return f"finetune.model={folder}"

    def cut(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])

    def pickle(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def other(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "model_type": "llama", "auto_map": {"x": "run.py"}}))

    def quantized(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "quantization_config": {"quant_method": "torchao"}}))

    for name, change, expected in (
        ("cut", cut, "damaged"),
        ("pickle", pickle, "pickle"),
        ("other", other, "family"),
        ("quantized", quantized, "quantized model"),
        ("nothing", lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ):
        with pytest.raises(UserError, match=expected):
            run_stage("finetune", pretrained(*SHORT, broken(name, change), "finetune.method=full"), "small.yaml")


def test_a_finished_tuning_is_handed_to_the_store(pretrained):
    class Seen(Store):
        pushed: list[Path] = []  # noqa: RUF012

        def push(self, folder: Path) -> None:
            self.pushed.append(folder)

    config = pretrained(*SHORT, "finetune.budget.max_tokens=3000", "finetune.method=full")
    step = finetune.finetune_step(config, "small.yaml")
    finetune.run(config, step, Command("small.yaml", Seen()))
    assert Seen.pushed == [step.path]


@pytest.mark.slow
def test_memory_of_a_step_is_measured_for_the_method_and_for_full_tuning(pretrained):
    config = pretrained(*SHORT, "finetune.measure_memory=true", "finetune.budget.max_tokens=2000")
    run_stage("finetune", config, "small.yaml")
    found = read_manifest(finetune.finetune_step(config, "small.yaml").path)["memory_bytes"]
    assert set(found) == {"lora", "full"}
    assert all(value and math.isfinite(value) and value > 0 for value in found.values())


def test_a_tuning_that_fails_on_its_input_leaves_the_link_where_it_was(pretrained, tmp_path):
    done = pretrained(*SHORT, "finetune.budget.max_tokens=3000", "finetune.measure_memory=false")
    run_stage("finetune", done, "small.yaml")
    folder = finetune.finetune_step(done, "small.yaml").path.resolve()
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')  # one example: none is left to train on
    own = f"finetune.sources.own={{type: completion, path: {path}}}"
    with pytest.raises(UserError):
        run_stage("finetune", pretrained(*SHORT, own), "small.yaml")
    assert (tmp_path / "runs" / "small" / "finetune").resolve() == folder


def test_the_finetune_of_tiny_has_an_end_and_needs_no_extra(monkeypatch):
    """`make finetune` is a command of the README."""
    config = configs.load(Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml")
    assert finetune.tuning_config(config).budget.max_tokens == 200_000
    monkeypatch.setattr(finetune, "find_spec", lambda name: None)
    finetune._check_packages(config.finetune.method)
