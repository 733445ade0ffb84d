"""One rule for end of text, stop ids, pad, bos and chat template: read as transformers does, and carried everywhere."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from after_model import model_of
from chat_checkpoint import CHATML, SHAPE, TOOLS, save_chat_model, save_chat_tokenizer, save_llama3_tokenizer
from data_corpus import made, make_config, write_corpus
from making import build_init
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from model.config import ModelConfig, UnreadableModel
from model.hf import save_folder
from model.special_tokens import SpecialTokens, UnreadableTokenizer, read_special_tokens
from model.transformer import Transformer
from pipeline import export, finetune, grow, quantize, sample, stages
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer, special_tokens
from pipeline.evaluation.language_model import HeldOutText, load_model
from pipeline.release.gguf import write_gguf
from pipeline.run_stage import run_stage
from pipeline.storage.hub import content_of_model
from pipeline.system import signals
from pipeline.system.errors import UserError
from pipeline.training.finish import Writer
from pipeline.tuning.data import TEMPLATE, add_template, require_our_template

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "chat"
    save_chat_model(folder)
    return folder


@pytest.fixture
def chat(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "chat"))


def change(path: Path, **values) -> None:
    """Sets entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in {**content, **values}.items() if v is not None}))


def facts(folder: Path) -> dict:
    """What transformers makes of a folder."""
    tokenizer, generation = AutoTokenizer.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    return {
        "eos": (tokenizer.eos_token, tokenizer.eos_token_id),
        "bos": (tokenizer.bos_token, generation.bos_token_id),
        "pad": (tokenizer.pad_token, tokenizer.pad_token_id, generation.pad_token_id),
        "stop": generation.eos_token_id,
        "model": {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k.endswith("token_id")},
        "template": tokenizer.chat_template,
        "said": tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True),
        "ids": tokenizer("abc <|im_end|> def").input_ids,
    }


def gguf_facts(path: Path) -> dict:
    gguf = pytest.importorskip("gguf")
    prefix = "tokenizer."
    fields = {k.removeprefix(prefix): v for k, v in gguf.GGUFReader(path).fields.items() if k.startswith(prefix)}
    return {k.removeprefix("ggml."): v.contents() for k, v in fields.items() if k != "ggml.tokens"}


# The rule, file by file.


def test_a_chat_checkpoint_of_transformers_5_is_read_as_transformers_reads_it(saved):
    found, tokenizer = read_special_tokens(saved / "tokenizer.json"), AutoTokenizer.from_pretrained(saved)
    assert (found.eos_token, found.eos_token_id) == (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 500)
    assert (found.bos_token, found.bos_token_id) == (tokenizer.bos_token, 498)
    assert (found.pad_token, found.pad_token_id) == (tokenizer.pad_token, 499)
    assert found.stop_ids == (500, 0)
    assert found.chat_templates == {"default": tokenizer.chat_template}
    assert found.unk_token is None is tokenizer.unk_token


NAMED = {"content": "<|tool_end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
SAID = {
    "an object with its flags": ({"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", **NAMED}}}, 501),
    "an old special_tokens_map": ({"special_tokens_map.json": {"eos_token": NAMED}}, 501),
    "the old map alone": (
        {"special_tokens_map.json": {"eos_token": "<|tool_end|>"}, "tokenizer_config.json": {"eos_token": None}}, 501,
    ),
    "a token that is not there": ({"tokenizer_config.json": {"eos_token": "</s>"}}, 500),
    "ids alone": ({"tokenizer_config.json": {"eos_token": None}}, 500),
    "one id": ({"generation_config.json": {"eos_token_id": 0}, "tokenizer_config.json": {"eos_token": None}}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_the_end_of_text_in_every_form(name, chat):
    files, expected = SAID[name]
    for file, values in files.items():
        change(chat / file, **values)
    found = read_special_tokens(chat / "tokenizer.json")
    assert found.eos_token_id == expected
    assert found.eos_token == load_tokenizer(chat / "tokenizer.json").id_to_token(expected)
    assert expected in found.stop_ids
    if name not in ("ids alone", "one id", "a token that is not there"):
        assert AutoTokenizer.from_pretrained(chat).eos_token_id == expected


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ([500, 0], [500, 0], (500, 0)),
        ([0, 500, 501], 500, (0, 500, 501)),
        (500, [500, 0], (500,)),
        (0, None, (0, 500)),  # the tokenizer's own end of text stops too
        (None, [0, 500], (0, 500)),
        (None, None, (500,)),
        ([500, 4000, -1], None, (500,)),  # no tokens
    ],
)
def test_stop_ids_are_those_that_generation_uses(generation, model, expected, chat):
    change(chat / "generation_config.json", eos_token_id=generation)
    change(chat / "config.json", eos_token_id=model)
    assert read_special_tokens(chat / "tokenizer.json").stop_ids == expected


@pytest.mark.parametrize("saver", ["file", "files", "config", "list in config"])
def test_chat_templates_in_every_form(saver, tmp_path):
    templates = {"default": CHATML, "tool_use": TOOLS} if saver in ("files", "list in config") else {"default": CHATML}
    save_chat_tokenizer(tmp_path, templates if len(templates) > 1 else CHATML)
    if "config" in saver:
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "old", save_jinja_files=False)
        assert not list((tmp_path / "old").rglob("*.jinja"))
        tmp_path = tmp_path / "old"
    found = special_tokens(tmp_path / "tokenizer.json")
    assert found.chat_templates == templates
    shutil.copyfile(tmp_path / "tokenizer.json", (target := tmp_path / "again").mkdir() or target / "tokenizer.json")
    found.write(target)
    theirs = AutoTokenizer.from_pretrained(target).chat_template
    assert theirs == (templates if len(templates) > 1 else CHATML)
    for file in target.rglob("*.jinja"):
        file.unlink()  # for programs that read tokenizer_config.json alone
    assert AutoTokenizer.from_pretrained(target).chat_template == theirs


def test_a_file_of_a_template_wins_over_the_config_as_in_transformers(chat):
    change(chat / "tokenizer_config.json", chat_template="old")
    assert read_special_tokens(chat / "tokenizer.json").chat_templates == {"default": CHATML}
    assert AutoTokenizer.from_pretrained(chat).chat_template == CHATML


def test_what_is_not_declared_is_not_invented(chat):
    change(chat / "tokenizer_config.json", bos_token=None, pad_token=None)
    for name in ("config.json", "generation_config.json"):
        change(chat / name, bos_token_id=None, pad_token_id=None)
    found = read_special_tokens(chat / "tokenizer.json")
    assert (found.bos_token, found.bos_token_id) == (None, None)
    assert (found.pad_token, found.pad_token_id) == ("<|im_end|>", 500)


def test_a_config_that_names_no_token_is_read_as_phis(chat):
    (chat / "tokenizer_config.json").write_text('{"tokenizer_class": "CodeGenTokenizer", "model_max_length": 2048}')
    for name in ("config.json", "generation_config.json"):
        change(chat / name, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    found = read_special_tokens(chat / "tokenizer.json")
    assert found == dataclasses.replace(SpecialTokens.only("<|endoftext|>", 0), chat_templates={"default": CHATML})


def test_tokens_that_the_model_has_no_row_for_are_not_written(tmp_path):
    save_chat_tokenizer(tmp_path)
    special = read_special_tokens(tmp_path / "tokenizer.json")
    special = dataclasses.replace(special, stop_ids=(0, 500, 501), bos_token_id=600, pad_token_id=601)
    assert special.within(601) == dataclasses.replace(special, pad_token="<|im_end|>", pad_token_id=500)
    found = special.within(501)
    assert (found.stop_ids, found.bos_token, found.pad_token_id) == ((0, 500), None, 500)
    shape = ModelConfig(**{**SHAPE, "vocab_size": 500})
    with pytest.raises(UnreadableModel, match=r"'<\|im_end\|>' has id 500, outside model.vocab_size=500"):
        save_folder(tmp_path / "m", {}, shape, tmp_path / "tokenizer.json", special)


def test_any_types_in_the_files_are_one_message_or_read(chat):
    """Every value of every file replaced by a value of every type."""
    values = [None, True, -1, 7, 1e300, "", "\ud83d", "x", [], [None], [[1]], {}, {"content": []}, {"name": 3}]
    for name in ("tokenizer_config.json", "generation_config.json", "config.json", "tokenizer.json"):
        content = json.loads((chat / name).read_text())
        for key in (*content, "chat_template", "special"):
            for value in values:
                (chat / name).write_text(json.dumps({**content, key: value}))
                with contextlib.suppress(UnreadableTokenizer):
                    found = read_special_tokens(chat / "tokenizer.json")
                    found.write(chat.parent)
                    assert all(isinstance(i, int) for i in found.stop_ids)
        (chat / name).write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"])
def test_a_tokenizer_alone_is_known_by_the_usual_names(name, tmp_path):
    from chat_checkpoint import tokenizer_with

    tokenizer_with([name, "<|other|>"], 300, ["<|first|>"]).save(str(tmp_path / "tokenizer.json"))
    assert read_special_tokens(tmp_path / "tokenizer.json") == SpecialTokens.only(name, 300)


def test_without_an_end_of_text_there_is_one_message(tmp_path):
    from chat_checkpoint import tokenizer_with

    tokenizer_with(["<|other|>"], 300, []).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer.path: .*eos_token"):
        special_tokens(tmp_path / "tokenizer.json", "tokenizer.path")
    assert special_tokens(tmp_path / "tokenizer.json", need_end=False).eos_token_id is None


WRONG = {
    "tokenizer_config.json": [b"", b"[]", b"{", b"\xff", b'{"eos_token": 3}', b'{"pad_token": {"content": 1}}',
                              b'{"chat_template": 5}', b'{"chat_template": [{"name": "../x", "template": "y"}]}',
                              b'{"chat_template": "\\ud83d"}', b'{"chat_template": ["x"]}',
                              b"[" * 100_000],
    "generation_config.json": [b"{", b'{"eos_token_id": "0"}', b'{"eos_token_id": [500, null]}',
                               b'{"pad_token_id": {}}'],
    "config.json": [b"3"],
    "special_tokens_map.json": [b"null", b'{"eos_token": [1]}'],
    "chat_template.jinja": [b"\xff\xfe"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, cs in WRONG.items() for c in cs])
def test_files_that_hold_something_else_are_one_message(name, content, chat):
    if b"chat_template" in content:
        (chat / "chat_template.jinja").unlink()
    (chat / name).write_bytes(content)
    with pytest.raises(UnreadableTokenizer) as error:
        read_special_tokens(chat / "tokenizer.json")
    assert len(str(error.value)) < 400
    with pytest.raises(UserError):
        special_tokens(chat / "tokenizer.json")


# Carried through every stage.


def test_growth_carries_them(saved, tmp_path):
    grow.run(str(saved), str(tmp_path / "grown"), ["model.num_hidden_layers=3"], None)
    assert facts(tmp_path / "grown") == facts(saved)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "grown").generation_config.eos_token_id == [500, 0]


def test_growth_of_a_folder_without_a_tokenizer_carries_the_ids(chat, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (chat / name).unlink()
    grow.run(str(chat), str(tmp_path / "grown"), ["model.num_hidden_layers=3"], None)
    content = json.loads((tmp_path / "grown" / "generation_config.json").read_text())
    assert (content["eos_token_id"], content["bos_token_id"], content["pad_token_id"]) == ([500, 0], 498, 499)
    assert not (tmp_path / "grown" / "tokenizer_config.json").exists()


def test_data_init_and_pretraining_carry_them_and_end_documents_alike(root, chat):
    config = make_config(
        write_corpus(root / "in"), tokenizer__path=str(chat), model=dict(SHAPE),
        init={"source": str(chat), "method": "exact"},
        train={"sequence_length": 64, "global_batch_tokens": 512, "warmup_steps": 2, "device": "cpu",
               "precision": "32-true"},
        budget={"max_tokens": 4_000}, tracking={"to": "none"}, sample={"prompts": ["abc"], "max_new_tokens": 4},
    )  # fmt: skip
    manifest, step = made(config), stages.data_step(config)
    assert (step.path / "tokenizer.json").read_bytes() == (chat / "tokenizer.json").read_bytes()
    tokens = TokenShards.open(step.path).train["web"]
    assert set(tokens.tokens[(tokens.index["offset"] + tokens.index["length"] - 1).astype(int)].tolist()) == {500}
    assert manifest["eos_token_id"] == 500
    build_init(config)
    init = stages.init_step(config).path
    assert facts(init) == facts(chat)
    try:
        run_stage("pretrain", config, "test.yaml")
    finally:
        signals.defer(False)
    from pipeline.stages import pretrain_step

    assert facts(pretrain_step(config).path / "model") == facts(chat)


@pytest.mark.parametrize("eos", ["<|end_of_text|>", "<|eot_id|>"])
def test_documents_of_a_llama_3_like_tokenizer_end_as_the_init_folder_says(eos, root):
    save_llama3_tokenizer(root / "llama", eos)
    config = make_config(
        write_corpus(root / "in"), tokenizer__path=str(root / "llama"), model=dict(SHAPE), init={"method": "random"},
        train={"sequence_length": 64, "global_batch_tokens": 512},
    )  # fmt: skip
    manifest = made(config)
    tokens = TokenShards.open(stages.data_step(config).path).train["web"]
    assert set(tokens.tokens[tokens.index["length"].cumsum() - 1].tolist()) == {manifest["eos_token_id"]}
    assert set(tokens.tokens[tokens.index["offset"]].tolist()) == {0}  # its bos, as its post-processor says
    text = HeldOutText(TokenShards.open(stages.data_step(config).path))
    assert not any("<|begin_of_text|>" in document for documents in text.documents.values() for document in documents)
    build_init(config)
    init = stages.init_step(config).path
    tokenizer = AutoTokenizer.from_pretrained(init)
    assert tokenizer.eos_token == eos
    assert tokenizer.bos_token == "<|begin_of_text|>"
    end = json.loads((init / "config.json").read_text())["eos_token_id"]
    assert end == tokenizer.eos_token_id == manifest["eos_token_id"] == {"<|end_of_text|>": 1, "<|eot_id|>": 2}[eos]
    assert GenerationConfig.from_pretrained(init).eos_token_id == end


def test_export_and_gguf_carry_them(pretrained, chat):
    config = pretrained(f"export.model={chat}", "export.gguf=[f16]")
    run_stage("export", config, "small.yaml")
    folder = export.export_step(config, "small.yaml").path
    assert facts(folder / "model") == facts(chat)
    found = gguf_facts(folder / "gguf" / "small-f16.gguf")
    ids = [found[f"{kind}_token_id"] for kind in ("eos", "eot", "bos", "padding")]
    assert (ids, found["chat_template"]) == ([500, 0, 498, 499], CHATML)


def small(folder: Path, **special) -> Path:
    """A model with our way of cutting words, which GGUF can say, and these special tokens."""
    from pipeline.corpus.tokenizing import _train

    folder.mkdir()
    _train(["abc def " * 50], 270, folder / "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    size = len(content["model"]["vocab"])
    names = ["<|im_end|>", "<|pad|>", "<|begin|>", "<|stop_a|>", "<|stop_b|>", "<|stop_c|>"]
    content["added_tokens"] += [{"id": size + i, "content": name, **flags} for i, name in enumerate(names)]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    ids = {name: size + i for i, name in enumerate(names)} | {"<|endoftext|>": 0}
    shape = ModelConfig(**{**SHAPE, "vocab_size": 320})
    stop = tuple(ids[name] for name in special.pop("stop", ["<|im_end|>", "<|endoftext|>"]))
    found = SpecialTokens(
        "<|im_end|>", size, stop, "<|begin|>", ids["<|begin|>"], "<|pad|>", ids["<|pad|>"], None,
        special.pop("templates", {"default": CHATML}),
    )  # fmt: skip
    save_folder(folder, Transformer(shape).initialize(0).state_dict(), shape, folder / "tokenizer.json", found)
    assert read_special_tokens(folder / "tokenizer.json") == found
    return folder


def test_a_gguf_file_says_what_stops_begins_and_pads(tmp_path):
    folder = small(tmp_path / "m")
    special = read_special_tokens(folder / "tokenizer.json")
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    found = gguf_facts(tmp_path / "m.gguf")
    assert (found["eos_token_id"], found["eot_token_id"]) == special.stop_ids
    assert (found["bos_token_id"], found["padding_token_id"]) == (special.bos_token_id, special.pad_token_id)
    assert found["chat_template"] == CHATML
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)


def test_a_gguf_file_holds_more_stop_ids_and_templates_or_is_refused(tmp_path):
    stops = ["<|im_end|>", "<|endoftext|>", "<|stop_a|>", "<|stop_b|>"]
    folder = small(tmp_path / "m", stop=stops, templates={"default": CHATML, "tool_use": TOOLS})
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    found, names = gguf_facts(tmp_path / "m.gguf"), load_tokenizer(folder / "tokenizer.json").token_to_id
    assert {found["eot_token_id"], found["eom_token_id"]} == {names("<|stop_a|>"), names("<|stop_b|>")}
    assert (found["chat_template"], found["chat_template.tool_use"]) == (CHATML, TOOLS)
    folder = small(tmp_path / "n", stop=[*stops, "<|stop_c|>"])
    with pytest.raises(UserError, match=r"<\|stop_[abc]\|>"):
        write_gguf(folder, tmp_path / "n.gguf", "f16", "n")
    assert not (tmp_path / "n.gguf").exists()


def test_a_gguf_file_says_that_a_text_begins_with_bos(tmp_path):
    folder = small(tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    bos = read_special_tokens(folder / "tokenizer.json").bos_token_id
    before = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    special = {"<|begin|>": {"id": "<|begin|>", "ids": [bos], "tokens": ["<|begin|>"]}}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [before, *text], "pair": [before, *text], "special_tokens": special,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    assert gguf_facts(tmp_path / "m.gguf")["add_bos_token"] is True


def test_quantize_carries_them(pretrained, chat):
    config = pretrained(f"quantize.model={chat}", "quantize.kinds=[bf16]")
    run_stage("quantize", config, "small.yaml")
    folder = quantize.quantize_step(config, "small.yaml").path / "bf16"
    assert facts(folder) == facts(chat)


TUNING = (
    "finetune.budget.max_tokens=2000", "finetune.measure_memory=false", "finetune.items=8", "finetune.method=full",
    "finetune.train.device=cpu", "finetune.train.precision=32-true", "finetune.train.global_batch_tokens=512",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_a_tuning_carries_them_and_chat_examples_bring_our_template(pretrained, chat, tmp_path, kind):
    messages = [*MESSAGES, {"role": "assistant", "content": "Hello"}]
    line = {"messages": messages} if kind == "chat" else {"prompt": "Hi", "completion": " Hello"}
    (tmp_path / "own.jsonl").write_text("\n".join([json.dumps(line)] * 12))
    own = f"finetune.sources.own={{type: {kind}, path: {tmp_path / 'own.jsonl'}}}"
    config = pretrained(*TUNING, f"finetune.model={chat}", "finetune.task=null", own)
    run_stage("finetune", config, "small.yaml")
    found, source = facts(finetune.finetune_step(config, "small.yaml").path / "model"), facts(chat)
    if kind == "chat":
        assert found["template"] == TEMPLATE
        assert found["said"] == "### user\nHi\n### assistant\n"
        source |= {key: found[key] for key in ("template", "said")}
    assert found == source


def test_our_chat_model_saved_again_by_transformers_is_still_one(pretrained, tmp_path):
    config = pretrained("sample.temperature=0", "sample.max_new_tokens=4")
    ours = tmp_path / "ours"
    shutil.copytree(model_of(config, "sample").folder, ours)
    with pytest.raises(UserError, match="base model"):
        require_our_template(ours)
    add_template(ours)
    AutoTokenizer.from_pretrained(ours).save_pretrained(tmp_path / "again")
    AutoModelForCausalLM.from_pretrained(ours).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "chat_template.jinja").is_file()
    assert "chat_template" not in json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    said = []
    for folder in (ours, tmp_path / "again"):
        config.sample.model = str(folder)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            sample.run(config, "small.yaml", prompt="Hi", chat=True)
        said.append(out.getvalue())
    assert said[0] == said[1]


def test_a_foreign_chat_model_is_told_from_a_base_model(saved):
    with pytest.raises(UserError, match="has a chat template that is not ours"):
        require_our_template(saved)


def test_a_change_of_the_template_or_the_stop_ids_is_another_model(chat):
    found = {content_of_model(str(chat))}
    (chat / "chat_template.jinja").write_text(TOOLS)
    found.add(content_of_model(str(chat)))
    change(chat / "generation_config.json", eos_token_id=[500])
    found.add(content_of_model(str(chat)))
    assert len(found) == 3


# Obeyed where text is written.


@torch.no_grad()
def test_generation_stops_at_any_of_the_stop_ids(chat, pretrained):
    config = pretrained("sample.temperature=0", "sample.max_new_tokens=30", f"sample.model={chat}")
    model = AutoModelForCausalLM.from_pretrained(chat)
    tokenizer = load_tokenizer(chat / "tokenizer.json")
    ids = tokenizer.encode("abc").ids
    likely = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    writer = sample._writer(config, model_of(config, "sample"))
    assert len("".join(writer.stream("abc", 30))) > 0
    change(chat / "generation_config.json", eos_token_id=[500, likely])
    taken = model_of(config, "sample")
    assert "".join(sample._writer(config, taken).stream("abc", 30)) == ""
    assert load_model(config, taken).complete("abc", 30) == ""


def test_a_chat_begins_as_it_was_tuned_and_plain_text_as_the_tokenizer_says(tmp_path):
    save_llama3_tokenizer(tmp_path)
    given = []

    class Network:
        class lm_head:
            weight = torch.zeros(1)

        def generate(self, ids, *arguments, **options):
            given.append(ids.tolist())
            return iter(())

    writer = Writer(Network(), load_tokenizer(tmp_path / "tokenizer.json"), 1)  # type: ignore[arg-type]
    list(writer.stream("abc", 5))
    list(writer.stream("abc", 5, add_special_tokens=False))
    assert given[0] == [0, *given[1]]
