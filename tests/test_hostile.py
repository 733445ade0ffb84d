"""What a stranger may have made: texts, tables, configs, model folders, tokenizers and programs that mean harm.

One table: a name, what is written into a folder, and what must come of it. Nothing is executed outside the sandbox, no
stage crashes, memory stays bounded (the whole table is run under a limit on memory), each is counted with a reason.
"""

import io
import itertools
import json
import os
import pickle
import re
import resource
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.config import UnreadableModel
from pipeline.stages import data_step

sys.path.insert(0, str(Path(__file__).parent / "pipeline"))  # helpers of the stages' tests

from data_corpus import items

from model.config import ImpossibleShape
from model.hf import load_network, save_folder
from pipeline import config as configs
from pipeline.corpus.sources.document_files import TextFolder, Warc
from pipeline.corpus.sources.records import Jsonl, Parquet
from pipeline.system.errors import UserError

EXTRA_MEMORY_BYTES = 3 << 30  # beside what the libraries map at import
GOOD = json.dumps({"text": "kept"}).encode() + b"\n"


@pytest.fixture(autouse=True)
def little_memory(tmp_path, monkeypatch) -> Iterator[None]:
    """A limit that a bomb which is believed would hit."""
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "root"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + EXTRA_MEMORY_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Marks:
    """Unpickling it leaves a file: the sign that code was run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (os.mkdir, (str(self.path),))


def docx(document: bytes, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", document)
        for name, data in more.items():
            archive.writestr(name, data)
    return file.getvalue()


ENTITIES = b'<!DOCTYPE d [<!ENTITY a "' + b"ha" * 50 + b'">' + b"".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 20}">'.encode() for i in range(12)
) + b"]><d>&m;</d>"  # fmt: skip
READS_A_FILE = b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><d>&x;</d>'

# name -> (file, its bytes, how it is read, causes it may be counted by; "text" = it is read, as plain text)
TEXTS: dict[str, tuple[str, Callable[[], bytes], Callable[[str], Any], set[str]]] = {
    "a gzip that is none": ("a.jsonl.gz", lambda: os.urandom(5000), Jsonl, {"damaged_file"}),
    "JSON of 100,000 levels": ("a.jsonl", lambda: GOOD + b'{"text": ' + b"[" * 100_000 + b"\n", Jsonl, {"broken_json"}),
    "JSON of 100,000 objects": (
        "a.jsonl", lambda: GOOD + b'{"text": ' + b'{"a":' * 100_000 + b"\n", Jsonl, {"broken_json"}
    ),
    "a number of a million digits": (
        "a.jsonl", lambda: GOOD + b'{"text": ' + b"9" * 1_000_000 + b"}\n", Jsonl, {"broken_json", "text_is_not_text"}
    ),
    "a key a million times": (
        "a.jsonl", lambda: GOOD + b'{"text": "x"' + b',"k":1' * 500_000 + b"}\n", Jsonl, {"text"}
    ),
    "not a number": ("a.jsonl", lambda: GOOD + b'{"text": NaN}\n', Jsonl, {"broken_json", "text_is_not_text"}),
    "lone surrogates": (
        "a.jsonl", lambda: GOOD + b'{"text": "\\ud800\\udfff\\ud800"}\n', Jsonl, {"broken_json", "text"}
    ),
    "bytes that are no UTF-8": ("a.jsonl", lambda: GOOD + b'{"text": "\xff\xfe"}\n', Jsonl, {"not_utf8"}),
    "a name that climbs out": (
        "a.jsonl", lambda: GOOD + b'{"text": "x", "id": "../../../etc/cron.d/x", "path": "/etc/x"}\n', Jsonl, {"text"}
    ),
    "a line of 60 MB": ("a.jsonl", lambda: GOOD + b'{"text": "' + b"x" * 60_000_000 + b'"}\n', Jsonl, {"too_large"}),
    "terminal escapes": ("a.txt", lambda: b"\x1b]0;owned\x07\x1b[2Jkept", TextFolder, {"text"}),
    "zeros": ("a.txt", lambda: bytes(1_000_000), TextFolder, {"binary", "text"}),
    "a page of 200,000 levels": ("a.html", lambda: b"<div>" * 200_000, TextFolder, {"no_main_text", "too_deep"}),
    "a page of entities": ("a.html", lambda: ENTITIES, TextFolder, {"no_main_text", "cannot_parse"}),
    "a page that names a file": ("a.html", lambda: READS_A_FILE, TextFolder, {"no_main_text", "cannot_parse"}),
    "a page of one attribute": (
        "a.html", lambda: b"<p a='" + b"x" * 5_000_000, TextFolder, {"no_main_text", "cannot_parse", "too_large"}
    ),
    "a Word file of entities": ("a.docx", lambda: docx(ENTITIES), TextFolder, {"damaged_file", "cannot_parse", "bomb"}),
    "a Word file that names a file": (
        "a.docx", lambda: docx(READS_A_FILE), TextFolder, {"damaged_file", "cannot_parse"}
    ),
    "a Word file that is a bomb": (
        "a.docx", lambda: docx(bytes(200_000_000)), TextFolder, {"bomb", "damaged_file", "cannot_parse"}
    ),
    "a Word file with names that climb out": (
        "a.docx", lambda: docx(b"<x/>", **{"../../../tmp/x": b"x"}), TextFolder, {"damaged_file", "cannot_parse"}
    ),
    "a PDF that is none": (
        "a.pdf", lambda: b"%PDF-1.7\n" + os.urandom(20_000), TextFolder, {"cannot_parse", "damaged_file"}
    ),
    "a PDF that refers to itself": (
        "a.pdf",
        lambda: b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 1 0 R/Kids[1 0 R 1 0 R]/Count 9999999>>endobj\n"
        b"trailer<</Root 1 0 R/Size 2>>\n%%EOF",
        TextFolder,
        {"cannot_parse", "damaged_file", "no_text", "too_large"},
    ),
    "a web archive of rubbish": (
        "a.warc", lambda: b"WARC/1.0\r\n" + os.urandom(9000), Warc, {"damaged_file", "broken_record"}
    ),
    "a web archive that lies about a length": (
        "a.warc",
        lambda: b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999999999\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx",
        Warc,
        {"damaged_file", "broken_record"},
    ),
    "a Parquet file that is none": (
        "a.parquet", lambda: b"PAR1" + os.urandom(9000) + b"PAR1", Parquet, {"damaged_file"}
    ),
    "a Parquet file with a footer of 4 GB": (
        "a.parquet", lambda: b"PAR1" + bytes(99) + b"\xff\xff\xff\x7fPAR1", Parquet, {"damaged_file"}
    ),
    "a pickle named as text": (
        "a.txt", lambda: pickle.dumps(Marks(Path("marked"))), TextFolder, {"not_utf8", "text", "binary"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text_is_counted_with_a_reason(name, tmp_path, monkeypatch):
    file, make, source, allowed = TEXTS[name]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    data = make()
    (folder / file).write_bytes(data)
    documents, causes = items(source(str(folder) if source is TextFolder else str(folder / file)))
    read = [d for d in documents if d.text != "kept"]
    assert len(documents) + len(causes) >= 1
    assert set(causes) <= allowed - {"text"}, causes
    assert not read or "text" in allowed, [d.text[:80] for d in read]
    assert not data.startswith(GOOD) or len(documents) - len(read) == 1, "the good line before it is kept"
    assert all("root:" not in d.text for d in documents), "no file of this machine gets in"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"], "nothing is written"
    assert all(re.fullmatch(r"[\w.:/ -]+", str(d.id)) and ".." not in str(d.id) for d in documents)


@pytest.mark.parametrize("kind", ["link out", "loop", "pipe", "device"])
def test_what_is_no_file_of_the_folder_is_not_read(kind, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("kept")
    (tmp_path / "secret.txt").write_text("secret")
    bad = folder / "bad.txt"
    if kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to({"link out": tmp_path / "secret.txt", "loop": bad, "device": Path("/dev/zero")}[kind])
    documents, causes = items(TextFolder(str(folder)))
    assert [d.text for d in documents] == ["kept"]
    assert len(causes) == 1


LETTERS = "abcdefghijklmnopqrstuvwxyz"
DOUBLING = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in itertools.pairwise(LETTERS))
CONFIGS = {
    "a tag that makes an object": "name: !!python/object/apply:os.mkdir ['marked']\n",
    "a tag that runs a command": "name: !!python/object/new:os.system ['mkdir marked']\n",
    "aliases that double": DOUBLING,
    "100,000 levels": "name: " + "[" * 100_000,
    "a list that holds itself": "name: x\ndata: &a [*a]\n",
    "an interpolation of itself": "name: ${name}\n",
    "numbers of a million digits": "name: x\nseed: " + "9" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_one_message(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.yaml"
    path.write_text(CONFIGS[name])
    with pytest.raises(UserError) as error:
        configs.load(path)
    assert len(str(error.value)) < 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile.yaml"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound model folder."""
    from model.config import ModelConfig
    from model.transformer import Transformer

    shape = ModelConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    path = tmp_path / "model"
    save_folder(path, Transformer(shape).initialize(0).state_dict(), shape, None, "<|endoftext|>")
    return path


def header(path: Path, change: Callable[[dict], Any]) -> None:
    """Writes a safetensors file again with another header."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    content = json.loads(data[8 : 8 + size])
    changed = change(content)
    text = json.dumps(content if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def _first(content: dict) -> dict:
    return next(value for name, value in content.items() if name != "__metadata__")


MODELS: dict[str, Callable[[Path], Any]] = {
    "a pickle as weights": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "a pickle named safetensors": lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Marks(f / "marked"))),
    "a header of 2^60 bytes": lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "a header that is no JSON": lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"[[[[[[[["),
    "tensors that overlap": lambda f: header(f / "model.safetensors", lambda c: _first(c).update(data_offsets=[0, 4])),
    "a tensor of 2^60 numbers": lambda f: header(
        f / "model.safetensors", lambda c: _first(c).update(shape=[2**30, 2**30])
    ),
    "a negative shape": lambda f: header(f / "model.safetensors", lambda c: _first(c).update(shape=[-1, 16])),
    "a header of 100,000 tensors": lambda f: header(
        f / "model.safetensors",
        lambda c: c | {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)},
    ),
    "an index of a name that no file can have": lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 5_000}})),
    ),
    "an index that climbs out": lambda f: _outside(f),
    "a config of 2^40 layers": lambda f: _set(f, num_hidden_layers=2**40),
    "a config of a million heads": lambda f: _set(f, num_attention_heads=10**6),
    "a config that is a list": lambda f: (f / "config.json").write_text("[]"),
    "a config of 100,000 levels": lambda f: (f / "config.json").write_text("[" * 100_000),
    "another family with code of its own": lambda f: (
        _set(f, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
        (f / "modeling_mine.py").write_text("import os; os.mkdir('marked')"),
    ),
}  # fmt: skip


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def _outside(folder: Path) -> None:
    """Moves the weights out of the folder, and names them from within."""
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    index = {"weight_map": dict.fromkeys(_names(outside), "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _set(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_folder_is_refused_in_one_sentence_and_runs_nothing(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MODELS[name](folder)
    with pytest.raises((UnreadableModel, ImpossibleShape)) as error:
        load_network(folder)
    assert len(str(error.value)) < 1000
    assert not list(tmp_path.rglob("marked"))


def test_code_beside_a_sound_model_is_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _set(folder, auto_map={"AutoModelForCausalLM": "modeling_phi.Mine"})
    (folder / "modeling_phi.py").write_text("import os; os.mkdir('marked')")
    (folder / "sitecustomize.py").write_text("import os; os.mkdir('marked')")
    assert load_network(folder).config.num_hidden_layers == 1
    assert not list(tmp_path.rglob("marked"))


TOKENIZERS = {
    "2 GB": lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_RDWR), 2 << 30),
    "100,000 levels": lambda p: p.write_text("[" * 100_000),
    "no JSON": lambda p: p.write_bytes(os.urandom(1000)),
    "another model": lambda p: p.write_text(json.dumps({"version": "1.0", "model": {"type": "Nothing"}})),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_tokenizer_is_one_message(name, tmp_path, monkeypatch):

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tokenizer.json"
    TOKENIZERS[name](path)
    (tmp_path / "a.txt").write_text("text")
    values = {
        "name": "x",
        "model": {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "max_position_embeddings": 256},
        "data": {"sources": {"notes": {"type": "text", "path": "a.txt", "license": "own"}}},
        "tokenizer": {"path": str(path)},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"tokenizer") as error:
        data_step(configs.from_values(values, "x"))
    assert len(str(error.value)) < 1000


# Programs that a model wrote: what each tries, by ways that an audit hook alone would not see.
PROGRAMS = {
    "forks": "import os\nwhile True:\n    os.fork()",
    "forks behind the hook": "import _posixsubprocess, os\n"
    "_posixsubprocess.fork_exec([b'/bin/sh'], [b'/bin/sh'], True, (), None, None, -1, -1, -1, -1, -1, -1, -1, -1,\n"
    "    False, False, -1, None, None, None, -1, None, False)",
    "fills the disk": "f = open('/big', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))",
    "opens a socket": "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)",
    "opens a socket behind the hook": "import _socket\n_socket.socket().connect(('127.0.0.1', 22))",
    "reads the home folder": "import os\nassert not os.listdir(os.path.expanduser('~'))\nopen('/etc/passwd').read()",
    "reads its environment": "import os\nassert os.environ.get('SECRET') is not None",
    "eats memory": "x = []\nwhile True:\n    x.append(bytes(1 << 24))",
    "never ends": "while True: pass",
    "walks out of its root": "import posix\nposix.chroot('dev')\nfor _ in range(9):\n    posix.chdir('..')\n"
    "posix.chroot('.')\nopen('/etc/passwd').read()",
    "changes its root": "import posix\nposix.chroot('dev')",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
}


@pytest.fixture(scope="module", params=["namespaces", "bubblewrap"])
def isolated(request):
    from pipeline.corpus.exercises.isolated import IsolatedRunner, NotIsolated

    os.environ["SECRET"] = "planted"
    try:
        runner = IsolatedRunner()
        runner.ways = (request.param,)
        with runner:
            yield runner
    except NotIsolated as why:
        pytest.skip(f"this machine gives no namespaces: {why}")
    finally:
        del os.environ["SECRET"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_ended_and_the_next_one_still_runs(name, isolated):
    assert isolated.run(PROGRAMS[name])[0] in ("failed", "blocked", "killed")
    assert isolated.run("assert 1 + 1 == 2") == ["passed"]
