"""`make` on a machine that lacks something says what, in one line, and how to mend it."""

import os
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "cksum", "cut", "env", "grep", "mkdir", "touch", "dirname", "make", "sh")
OLD = "#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2 || exit 1\n"
NO_VENV = '#!/bin/sh\ncase "$*" in *"import venv"*) exit 1;; *) exit 0;; esac\n'


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout without .venv, and `bin/` with nothing but what a bare machine has."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def _make(bare: Path, **environment: str) -> tuple[int, str]:
    clean = {"PATH": str(bare / "bin"), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [str(bare / "bin" / "make"), "data"], cwd=bare, env={**clean, **environment}, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


@pytest.mark.parametrize(
    ("python3", "words"),
    [
        (None, ["no Python 3.11", "missing", "make PYTHON="]),
        (OLD, ["no Python 3.11", "Python 3.9.2", "make PYTHON="]),
        (NO_VENV, ["cannot make virtual environments", "apt install python3-venv"]),
    ],
)
def test_a_missing_python_or_venv_is_one_clear_error(bare, python3, words):
    if python3 is not None:
        (bare / "bin" / "python3").write_text(python3)
        (bare / "bin" / "python3").chmod(0o755)
    code, line = _make(bare)
    assert code == 2
    for word in words:
        assert word in line


def test_a_named_python_without_the_packages_is_told_how_to_get_them(bare):
    (bare / "bin" / "python3").write_text(OLD)
    (bare / "bin" / "python3").chmod(0o755)
    assert "pip install -e" in _make(bare, HORNBOOK_PYTHON=str(bare / "bin" / "python3"))[1]
    assert "not an executable" in _make(bare, HORNBOOK_PYTHON="/nowhere/python")[1]


def _needed(requirements: list[str]) -> set[str]:
    """Names of these distributions and of all that they need, as installed here; markers and extras obeyed."""
    found: set[str] = set()
    left = [(Requirement(text), "") for text in requirements]
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if f"{name}[{wanted}]" not in found:
                found |= {name, f"{name}[{wanted}]"}
                left += [(Requirement(text), wanted) for text in metadata.requires(name) or []]
    return found


def test_the_default_corpus_reads_nothing_that_only_developers_install():
    needed = _needed(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    tiny = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    read = {canonicalize_name(name) for name in tiny["data"]["sources"]["python_library"]["distributions"]}
    assert read
    assert read - needed == set()
