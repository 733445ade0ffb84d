"""Scores: right on what is known, with errors that mean something, and safe against what a model writes."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from after_model import model_of
from json_schema import report_of
from page_text import rows

from pipeline import evaluate
from pipeline.corpus.exercises.isolated import IsolatedRunner, NotIsolated
from pipeline.corpus.text.shards import TokenSet, TokenShards, write_token_set
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.evaluation import tasks
from pipeline.evaluation.language_model import (
    HeldOutText,
    LanguageModel,
    held_out_bits_per_byte,
    load_model,
    ratio,
    share,
)
from pipeline.evaluation.tasks import exercises, find_exercises
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError


@pytest.fixture
def model(pretrained) -> LanguageModel:
    config = pretrained()
    return load_model(config, model_of(config))


@pytest.fixture
def text(pretrained) -> HeldOutText:
    from pipeline.stages import input_steps

    return HeldOutText(TokenShards.open(input_steps(pretrained())["data"].path))


def test_a_model_is_scored_in_windows_of_the_length_it_was_trained_on(pretrained, model):
    """It has 256 positions and saw 128 of them: with more text before it, it would be worse."""
    assert (model.context_tokens, model.network.config.max_position_embeddings) == (128, 256)
    found = model_of(pretrained())
    assert model_of(pretrained(f"evaluate.model={found.folder}")).context_tokens == 128
    assert replace(found, manifest=None).context_tokens == 256


@torch.no_grad()
def test_nats_are_those_of_the_full_logits(model):
    pairs = [("def add(a, b):", "\n    return a + b"), ("", "import json"), ("x" * 900, " = 1")]
    for (prompt, continuation), found in zip(pairs, model.nats(pairs), strict=True):
        before, after = model.encode(prompt) or [model.eos_token_id], model.encode(continuation)
        ids = torch.tensor((before + after)[-129:])
        logits = model.network(ids[None, :-1])[0].log_softmax(-1)
        expected = -logits[range(len(ids) - 1 - len(after), len(ids) - 1), ids[-len(after) :]].sum()
        assert found == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_bits_per_byte_are_by_byte_whatever_the_batch_and_the_documents_length(model, text):
    found = held_out_bits_per_byte(model, text)
    assert set(found) == {"code", "exercises"}
    documents = text.documents["code"]
    nats = 0.0
    for document in documents:
        ids = [model.eos_token_id, *model.encode(document)]
        for start in range(0, len(ids) - 1, 128):
            piece = torch.tensor([ids[start : start + 129]])
            nats += float(model.network.loss(piece[:, :-1], piece[:, 1:])[0])
    size = sum(len(d.encode()) for d in documents)
    assert found["code"]["score"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert found["code"]["items"] == len(documents)
    assert found["exercises"]["score"] < found["code"]["score"]  # seconds of training are enough to tell


def test_standard_errors_cover_the_truth_as_often_as_they_say():
    draw = random.Random(1)
    inside = 0
    for _ in range(400):
        found = share([draw.random() < 0.3 for _ in range(100)])
        inside += abs(found["score"] - 0.3) < 1.96 * found["standard_error"]
    assert 0.9 < inside / 400 < 0.98
    inside = 0
    for _ in range(400):
        sizes = [draw.uniform(1, 9) for _ in range(60)]
        found = ratio([2 * s + draw.gauss(0, 1) for s in sizes], sizes)
        inside += abs(found["score"] - 2) < 1.96 * found["standard_error"]
    assert 0.9 < inside / 400 < 0.98


def test_the_questions_have_one_right_option_and_depend_on_the_seed_alone(text):
    documents = text.documents["code"]
    first, again, other = (tasks._cloze_questions(documents, 10, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    for question in first:
        assert len(set(question.options)) == tasks.CHOICES
        assert any(question.prompt + question.options[question.right] in document for document in documents)


def test_a_model_that_knows_the_answer_is_right_and_one_that_knows_its_opposite_is_wrong(model):
    class Oracle:
        def __init__(self, sign):
            self.sign = sign

        def nats(self, pairs):
            return [self.sign * (0.0 if option == "right" else 1.0) for _, option in pairs]

    questions = [tasks.Question("?", ("wrong", "right", "wrnog", "worng"), 1)] * 3
    assert tasks.answer(Oracle(1), questions) == [True] * 3
    assert tasks.answer(Oracle(-1), questions) == [False] * 3


def test_held_out_exercises_are_found_and_their_own_solutions_pass(text):
    found = find_exercises(text.documents["exercises"])
    assert len(found) == len(text.documents["exercises"])
    with _runner() as runner:
        for exercise in found:
            assert runner.run(exercise.program(exercise.body), exercise.program("    return None")) == [
                "passed",
                "failed",
            ]


def test_pass_at_1_counts_what_really_passes(model, text, monkeypatch):
    with _runner():
        pass
    known = {e.prompt: e.body for e in find_exercises(text.documents["exercises"])}
    half = set(sorted(known)[::2])
    monkeypatch.setattr(
        LanguageModel, "complete", lambda self, prompt, *_: known[prompt] if prompt in half else "    return None"
    )
    found = exercises(model, text, 100, seed=0)["exercises/pass@1"]
    assert found["score"] == pytest.approx(len(half) / len(known))


@pytest.mark.parametrize(
    "program",
    [
        "open('/etc/hostname').read()",
        "import os\nassert os.listdir('/') != ['dev']",
        "import socket\nsocket.socket().connect(('127.0.0.1', 1))",
        "import os\nos.system('true')",
        "open('/dev/zero').read(1)",
        "while True: pass",
    ],
)
def test_a_program_that_a_model_wrote_reaches_nothing(program):
    with _runner() as runner:
        assert runner.run(program) != ["passed"]
        assert runner.run("import re\nassert re.match('a', 'a')") == ["passed"]


def _runner():
    runner = IsolatedRunner()
    try:
        with runner:
            pass
    except NotIsolated as reason:
        pytest.skip(f"no namespaces here: {reason}")
    return IsolatedRunner()


def test_the_stage_writes_scores_with_errors_and_is_done_the_second_time(pretrained, capsys):
    config = pretrained()
    run_stage("evaluate", config, "small.yaml")
    assert "evaluate: done" in capsys.readouterr().out
    run_stage("evaluate", config, "small.yaml", as_json=True)
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {name.split("/")[0] for name in scores} == {"bits_per_byte", "cloze", "arithmetic", "exercises"}
    assert all(score["standard_error"] is not None for score in scores.values() if score["score"] is not None)
    manifest = read_manifest(evaluate.evaluate_step(config, "small.yaml").path)
    assert manifest["stage"] == "evaluate"
    assert manifest["inputs"]["data"]["fingerprint"]
    assert (Path(config.name) and manifest["outputs"]["scores.json"])["bytes"] > 0
    found, page = report_of("small")
    assert found["evaluate"]["scores"] == scores
    assert set(scores) <= {row[0] for row in rows(page)}


@pytest.mark.parametrize("special", [True, False])
def test_held_out_text_is_what_was_read_whatever_its_special_tokens_are(tmp_path, special):
    import numpy as np
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([AddedToken("</s>"), AddedToken("<|im_end|>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    documents, end = ["a text", "says </s> or <|im_end|>", ""], tokenizer.token_to_id("</s>")
    rows = [(np.array([*tokenizer.encode(text).ids, end]), len(text.encode()), 0.5) for text in documents]
    write_token_set(tmp_path / "val", rows, np.dtype("<u2"))
    index = np.load(tmp_path / "val" / "index.npy")
    tokens = TokenSet("own", np.fromfile(tmp_path / "val" / "tokens.bin", "<u2"), index)
    assert HeldOutText(TokenShards(tmp_path, {}, {"own": tokens}, 258, end)).documents["own"] == documents


def test_another_tokenizer_is_compared_by_the_byte(pretrained, tmp_path, text):
    from pipeline.corpus.tokenizing import _train

    config = pretrained()
    coarse = load_model(config, model_of(config))
    _train(list(text.documents["code"]), 300, tmp_path / "other.json")
    fine = replace(coarse, tokenizer=load_tokenizer(tmp_path / "other.json"))
    found = held_out_bits_per_byte(fine, text)  # nonsense to the network, but every byte is counted once
    assert found["code"]["score"] > held_out_bits_per_byte(coarse, text)["code"]["score"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evaluate.tasks=[cloce]"], "cloze"),
        (["evaluate.model=nowhere"], "nowhere"),
        (["evaluate.lm_eval=[x]", "evaluate.lm_eval_path=nowhere"], "lm"),
    ],
)
def test_mistakes_are_named(pretrained, overrides, expected):
    with pytest.raises(UserError, match=expected):
        run_stage("evaluate", pretrained(*overrides), "small.yaml")


def test_lm_eval_runs_a_local_task_offline_on_the_folder(pretrained, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    items = [{"q": "def add(a, b):\n    return a", "choices": [" + b", " zebra"], "gold": 0}] * 4
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "task.yaml").write_text(
        "task: own_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {folder / 'items.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: gold\n"
        "doc_to_choice: choices\nmetric_list:\n  - metric: acc\n"
    )
    config = pretrained("evaluate.tasks=[]", "evaluate.lm_eval=[own_choice]", f"evaluate.lm_eval_path={folder}")
    run_stage("evaluate", config, "small.yaml")
    scores = read_manifest(evaluate.evaluate_step(config, "small.yaml").path)["scores"]
    assert scores["lm_eval/own_choice/acc"]["items"] == 4
