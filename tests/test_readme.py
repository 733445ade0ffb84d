"""What the README prints works: its commands name things that exist, its file map is true, it stays short."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.arguments import make_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```[a-z]*\n(.*?)```", README, flags=re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()]
MAKE = [part.strip() for line in LINES if line.startswith("make ") for part in line.split("#")[0].split("&&")]
HORNBOOK = [line.split("#")[0].strip() for line in LINES if line.startswith((".venv/bin/hornbook ", "hornbook "))]


def test_it_is_short():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("command", MAKE)
def test_a_make_command_names_targets_and_configs_that_exist(command):
    targets = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), flags=re.M)
    known = {name for line in targets for name in line.split()}
    words = shlex.split(command)[1:]
    assert {w for w in words if "=" not in w} <= known
    for word in words:
        if word.startswith("CONFIG="):
            assert (ROOT / word.removeprefix("CONFIG=")).is_file()


@pytest.mark.parametrize("command", HORNBOOK)
def test_a_hornbook_command_is_understood(command):
    words = shlex.split(command)[1:]
    arguments = make_parser().parse_args(words)
    if hasattr(arguments, "config"):
        configs.load(ROOT / arguments.config, getattr(arguments, "overrides", []))


def test_every_path_of_the_file_map_exists():
    block = next(b for b in BLOCKS if b.startswith("configs/"))
    for line in block.splitlines():
        folder = line.split()[0]
        if folder in ("artifacts/", "runs/"):
            continue
        assert any((base / folder).exists() for base in (ROOT, ROOT / "pipeline")), folder
        for name in re.findall(r"[a-z0-9_-]+\.(?:yaml|py|sh)", line):
            places = [ROOT / folder / name, ROOT / "pipeline" / folder / name]
            assert any(place.exists() for place in places), name


def test_its_example_data_section_is_accepted():
    from pipeline.corpus.steps import make_source, named_sources, rules_by_source

    example = next(b for b in BLOCKS if b.lstrip().startswith("data:"))
    import yaml

    tiny = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    data = {**yaml.safe_load(example)["data"], "validation": tiny["data"]["validation"]}
    config = configs.from_values({**tiny, "data": data}, "README")
    assert all(rules_by_source(config))
    for name, options in named_sources(config).items():
        assert make_source(options, f"data.sources.{name}")


def test_pictures_and_pages_it_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
