"""`hornbook new`: five kinds of folder become configs that run through data, init and pretrain; what cannot is refused
in one message that says what to type."""

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from data_corpus import prose
from public_model import write_public_model
from test_domain import _pdf

from model import checkpoints
from pipeline import __main__ as command
from pipeline import config as configs
from pipeline.corpus.inspection import examine
from pipeline.corpus.sources.document_files import split_text
from pipeline.planner import recipe
from pipeline.storage.steps import read_manifest
from pipeline.system import signals
from pipeline.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"family": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
SMALL = ["budget.max_gpu_hours=null", "budget.max_tokens=2048", "data.workers=1", "data.tasks=2", "tracking.to=none",
         "sample.max_new_tokens=2"]  # fmt: skip


@pytest.fixture
def here(root, monkeypatch) -> Path:
    monkeypatch.chdir(root)
    monkeypatch.setattr(signals, "install", lambda: None)  # they belong to the test session
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("public") / "tiny base"
    write_public_model(folder, SHAPE)
    return str(folder)


def hornbook(*words: str) -> int:
    try:
        return command.run_guarded(command.parse(words))
    except SystemExit as stop:  # argparse's own
        return int(stop.code or 0)


def new(capsys, *words: str) -> tuple[Path, str]:
    """The config that was written, and what was printed."""
    assert hornbook("new", *words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    path = Path(re.findall(r"^wrote    (.*) \(\d+ lines\)$", said, flags=re.M)[0])
    assert len(path.read_text().splitlines()) <= 60
    return path, said


def refused(capsys, *words: str) -> str:
    assert hornbook("new", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("hornbook: ")
    assert "Traceback" not in said
    return said


def write_markdown(folder: Path) -> None:
    for number in range(24):
        part = folder / f"part {number % 6}"
        part.mkdir(parents=True, exist_ok=True)
        code = f"```python\nfor i in range({number}):\n    print(i)\n```\n"
        (part / f"page-{number}.md").write_text(f"# Page {number}\n\n{prose(number, 8)}\n\n{code}")
    (folder / "part 0" / "broken.md").write_bytes(b"\xff\xfe\xfa" * 400)


def write_code(folder: Path) -> None:
    for number in range(20):
        part = folder / f"module{number % 5}"
        part.mkdir(parents=True, exist_ok=True)
        names = prose(number, 3).split()
        lines = [f"def {word.strip('.').lower()}_{i}(x):\n    return x + {i}\n" for i, word in enumerate(names)]
        (part / f"m{number}.py").write_text("\n".join(lines))
        lines = [f"function {word.strip('.').lower()}_{i}(x) {{\n  return x + {i};\n}}" for i, word in enumerate(names)]
        (part / f"m{number}.js").write_text("\n".join(lines))
    (folder / "package.json").write_text(json.dumps({"name": "x", "description": prose(1, 4)}))


def write_pdfs(folder: Path) -> None:
    folder.mkdir()
    for number in range(12):
        (folder / f"paper {number}.pdf").write_bytes(_pdf(prose(number, 30)))


def write_dump(folder: Path) -> None:
    folder.mkdir()
    rows = [{"id": n, "body": prose(n, 8), "domain": f"site{n % 9}", "url": f"http://x/{n}"} for n in range(60)]
    lines = [json.dumps(row) for row in rows]
    (folder / "dump.jsonl").write_text("\n".join([*lines, '{"body": "cut off', '{"id": 4}']))


FOLDERS = {"markdown": write_markdown, "code": write_code, "pdfs": write_pdfs, "dump": write_dump, "none": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "continued"), [("markdown", True), ("code", False), ("pdfs", True), ("dump", False), ("none", False)]
)
def test_what_it_writes_runs_through_data_init_and_pretrain(kind, continued, here, base, capsys):
    """`none`: no text is given, and the folder is empty."""
    if kind == "pdfs":
        pytest.importorskip("pypdf")
    folder, words = here / "my new model", ["--base", base if continued else "none", "--card", "cpu", "--hours", "0.01"]
    folder.mkdir()
    if FOLDERS[kind] is not None:
        FOLDERS[kind](here / "my text")
        words += ["--text", str(here / "my text")]
    path, said = new(capsys, str(folder), *words)
    assert path == folder / "my-new-model.yaml"
    small = [*SMALL, f"train.global_batch_tokens={configs.load(path).train.sequence_length}"]
    if kind == "none":
        small.append("data.sources.python_library={type: python_library, distributions: [click], limit_tokens: 40000}")
    elif continued:
        small.append("data.sources.general.distributions=[click]")
    if not continued:
        small += ["model.vocab_size=512"]
    commands = [shlex.split(line.split("#")[0])[1:] for line in said.splitlines() if line.startswith("  hornbook ")]
    assert [words[0] for words in commands] == ["data", "init", "pretrain"]
    for verb, typed in commands:
        code = hornbook(verb, typed, *small)
        assert code == 0, capsys.readouterr()
    manifest = read_manifest(here / "runs" / "my-new-model" / "pretrain")
    assert manifest["tokens_seen"] > 0
    assert manifest["bits_per_byte"]


def test_it_says_what_the_text_is(here, base, capsys):
    write_markdown(here / "docs")
    write_code(here / "code")
    write_dump(here / "dump")
    path, said = new(capsys, "x", "--text", "docs", "code", "dump", "--base", base, "--card", "cpu")
    assert "25 Markdown" in said
    assert all(words in said for words in ("20 Python", "20 JavaScript"))
    assert "1 not_utf8" in said
    assert "prose (en)" in said
    config = configs.load(path)
    sources = config.data.sources
    assert list(sources) == ["docs", "code", "dump", "general"]  # package.json is no dump
    assert (sources["dump"]["text_key"], sources["dump"]["group_key"]) == ("body", "domain")
    assert "gopher_quality" in sources["dump"]["filters"]  # pages of the web
    assert "gopher_quality" not in {**config.data.filters, **sources["docs"].get("filters", {})}  # manuals with code
    assert sources["docs"]["license"] == "own"
    assert sum(config.train.mix.values()) == pytest.approx(1, abs=0.01)
    assert sources["general"]["replay"] is True


def test_a_card_decides_precision_micro_batch_and_replay(here, capsys):
    write_markdown(here / "docs")
    path, said = new(capsys, "a", "--text", "docs", "--base", "smollm2-135m", "--card", "4090", "--hours", "12h")
    config = configs.load(path)
    assert (config.init.method, config.init.source) == ("continue", "HuggingFaceTB/SmolLM2-135M")
    assert (config.train.precision, config.budget.max_gpu_hours) == ("bf16-mixed", 12)
    assert config.train.micro_batch >= 1
    assert config.data.sources["general"]["dataset"] == "HuggingFaceFW/fineweb-edu"
    assert re.search(r"pretrain .* on rtx-4090, .* USD, .* GiB of GPU memory, .* GB of disk", said)
    path, _ = new(capsys, "b", "--text", "docs", "--base", "smollm2-135m", "--card", "t4", "--hours", "30m")
    assert configs.load(path).train.precision == "32-true"


def test_slurm_ends_in_a_submission(here, base, capsys):
    write_markdown(here / "docs")
    _, said = new(capsys, "a", "--text", "docs", "--base", base, "--card", "cpu", "--slurm")
    assert "hornbook submit a/a.yaml --dry-run" in said


def test_more_text_and_hours_make_a_larger_new_model(here, capsys):
    sizes = []
    for name, copies in (("small", 1), ("large", 150)):
        (here / name).mkdir()
        (here / name / "text.txt").write_text(prose(1, 2000) * copies)
        path, _ = new(capsys, f"{name}-model", "--text", name, "--base", "none", "--card", "h100", "--hours", "24")
        sizes.append(configs.load(path).model.parameters)
    assert sizes[1] > 2 * sizes[0]


def test_one_long_text_is_cut_into_documents_so_that_some_can_be_held_out(here, base, capsys):
    Path("input.txt").write_text("\n\n".join(prose(n, 6) for n in range(90)))
    path, said = new(capsys, "x", "--text", "input.txt", "--base", "none", "--card", "cpu")
    assert configs.load(path).data.sources["input"]["split_characters"] == 2000
    assert "cut at blank lines" in said
    assert hornbook("data", str(path), *SMALL, "model.vocab_size=512") == 0
    assert "held out" in capsys.readouterr().out


def test_parts_of_a_text_are_the_text():
    text = "\n\n".join(prose(n, 3) for n in range(40)) + "x" * 50_000
    parts = list(split_text(text, 1000))
    assert "".join(parts) == text
    assert all(1000 <= len(part) <= 4000 for part in parts[:-1])
    assert list(split_text("", 1000)) == [""]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x", "--text", "nowhere"], ["--text nowhere", "no such file or folder"]),
        (["x", "--text", "empty"], ["--text empty", "the folder is empty", ".md"]),
        (["x", "--text", "pictures"], ["holds no text", "2 .png"]),
        (["x", "--text", "broken"], ["none of its text can be read", "not_utf8"]),
        (["x", "--text", "chat.jsonl"], ["no field of text", "messages", "hornbook finetune"]),
        (["x", "--text", "hub:nobody"], ["hub:owner/name"]),
        (["x", "--text", "good.md", "--base", "smolm2-135m"], ["--base smolm2-135m", "did you mean 'smollm2-135m'"]),
        (["x", "--text", "good.md", "--base", "empty"], ["empty", "config.json"]),
        (["x", "--text", "good.md", "--base", "google/gemma-3-270m"], ["gemma"]),
        (["x", "--text", "good.md", "--card", "rtx-9999"], ["--card is 'rtx-9999'", "24gb"]),
        (["x", "--text", "good.md", "--hours", "soon"], ["--hours is 'soon'", "30m"]),
        (["x", "--text", "good.md", "--hours", "0"], ["--hours is '0'"]),
        (["good.md", "--text", "good.md"], ["good.md is a file"]),
        (["x"], ["--text PATH", "--base", "--card", "--hours", "--slurm"]),
        ([], ["required: folder"]),
    ],
)
def test_what_cannot_be_done_is_one_message(words, expected, here, capsys):
    for name in ("empty", "pictures", "broken"):
        (here / name).mkdir()
    for name in ("a.png", "b.png"):
        (here / "pictures" / name).write_bytes(b"\x89PNG")
    (here / "broken" / "a.md").write_bytes(b"\xff\xfe\xfa" * 400)
    (here / "good.md").write_text(prose(1, 40))
    (here / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    assert hornbook("new", *words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert all(word in said for word in expected), said
    assert not (here / "x").exists()


def test_a_config_is_never_written_over(here, base, capsys):
    (here / "good.md").write_text(prose(1, 40))
    words = ["x", "--text", "good.md", "--base", base, "--card", "cpu"]
    path, _ = new(capsys, *words)
    path.write_text("mine")
    assert "x/x.yaml is there already" in refused(capsys, *words)
    assert path.read_text() == "mine"


def test_a_path_with_spaces_quotes_and_brackets_is_read(here, base, capsys):
    odd = here / 'my [new] "texts" é'
    write_markdown(odd)
    path, _ = new(capsys, "x", "--text", str(odd), "--base", base, "--card", "cpu")
    source = next(iter(configs.load(path).data.sources.values()))
    assert Path(source["path"]) == odd
    assert hornbook("data", str(path), "--dry-run") == 0


def test_a_mixed_folder_has_a_source_for_each_kind(folder):
    write_markdown(folder / "docs")
    write_dump(folder / "dump")
    (folder / "records.jsonl.gz").write_bytes(b"")
    found = {text.options["type"]: text for text in examine(str(folder))}
    assert set(found) == {"text", "jsonl"}
    assert found["jsonl"].documents == pytest.approx(61, abs=3)
    with pytest.raises(UserError, match="no such file"):
        examine(str(folder / "nothing"))


def test_on_a_terminal_it_asks_five_questions(here, base, tmp_path):
    (here / "good.md").write_text(prose(1, 40))
    parent, child = pty.openpty()
    words = [sys.executable, "-P", "-m", "pipeline", "new", "asked"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HORNBOOK_ROOT": str(here)}
    with subprocess.Popen(words, stdin=child, stdout=subprocess.PIPE, text=True, cwd=here, env=environment) as asked:
        os.write(parent, f"good.md\n{base}\ncpu\n30m\nn\n".encode())
        said, _ = asked.communicate(timeout=120)
    os.close(parent)
    os.close(child)
    assert asked.returncode == 0
    assert said.count("]: ") == 5
    config = configs.load(here / "asked" / "asked.yaml")
    assert config.budget.max_gpu_hours == 0.5
    assert config.init.source == base


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"), ("qwen3-0.6b", "Qwen/Qwen3-0.6B-Base"),
        ("phi-1_5", "microsoft/phi-1_5"), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("TinyLlama_v1.1", "TinyLlama/TinyLlama_v1.1"),
    ],
)  # fmt: skip
def test_a_base_is_known_by_its_short_name(word, name):
    found = checkpoints.named(word)
    assert found is not None
    assert found[0] == name
    assert checkpoints.named("gpt-2") is None


def test_every_known_checkpoint_becomes_a_model_section_with_its_shape():
    for name, known in checkpoints.known().items():
        values = {"name": "x", "model": recipe.model_values(known.shape)}
        shape = configs.from_values(values, where=name).model
        left_out = {"initializer_range", "head_dim", "num_key_value_heads"}  # the last two where they follow
        assert {k: v for k, v in shape.identity().items() if k not in left_out} == {
            k: v for k, v in known.shape.identity().items() if k not in left_out
        }
        assert (shape.head_size, shape.kv_heads) == (known.shape.head_size, known.shape.kv_heads)
