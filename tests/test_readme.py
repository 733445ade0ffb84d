"""What the README and the guide print works: their commands name things that exist, the file map is true, the README
stays short."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.config.arguments import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```[a-z]*\n(.*?)```", README, flags=re.S)
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", ROOT / "AGENTS.md", *GUIDE)}
COMMANDS = sorted(
    {
        (page, part.strip())
        for page, path in PAGES.items()
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for line in block.splitlines()
        for part in line.split(" #")[0].split("&&")
    }
)
MAKE = [(page, part) for page, part in COMMANDS if part.startswith("make ")]
HORNBOOK = [(page, part) for page, part in COMMANDS if part.startswith((".venv/bin/hornbook ", "hornbook "))]
OWN = ("my-model/my-model.yaml", "my.yaml")  # what a reader's config is called


def test_it_is_short():
    assert len(README.splitlines()) < 150


def test_an_agent_reads_little():
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize(("page", "command"), MAKE)
def test_a_make_command_names_targets_and_configs_that_exist(page, command):
    targets = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), flags=re.M)
    known = {name for line in targets for name in line.split()}
    words = shlex.split(command)[1:]
    assert {w for w in words if "=" not in w} <= known
    for word in words:
        if word.startswith("CONFIG="):
            assert (ROOT / word.removeprefix("CONFIG=")).is_file()


@pytest.mark.parametrize(("page", "command"), HORNBOOK)
def test_a_hornbook_command_is_understood(page, command):
    arguments = parse(shlex.split(command)[1:])
    named = getattr(arguments, "config", None)
    if named and arguments.verb != "study" and named.endswith((".yaml", ".yml")):
        config = "configs/tiny.yaml" if named in OWN else named
        configs.load(ROOT / config, getattr(arguments, "overrides", []))
    for name, value in vars(arguments).items():  # a study's file, folders of text
        if name in ("config", "words") and isinstance(value, str) and value.startswith("configs/"):
            assert (ROOT / value).is_file()


def test_every_page_of_the_guide_is_linked_and_its_links_lead_somewhere():
    for page, path in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)[)#]", path.read_text(encoding="utf-8")):
            assert target.startswith("http") or (path.parent / target).exists(), (page, target)
    assert not [path.name for path in GUIDE if f"docs/guide/{path.name}" not in README]


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


def test_the_example_of_a_data_section_is_accepted():
    import yaml

    from pipeline.corpus.steps import make_source, named_sources, rules_by_source

    page = (ROOT / "docs" / "guide" / "own-text.md").read_text(encoding="utf-8")
    example = next(b for b in re.findall(r"```yaml\n(.*?)```", page, flags=re.S) if b.startswith("data:"))

    tiny = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    data = {**yaml.safe_load(example)["data"], "validation": tiny["data"]["validation"]}
    config = configs.from_values({**tiny, "data": data}, "README")
    assert all(rules_by_source(config))
    for name, options in named_sources(config).items():
        assert make_source(options, f"data.sources.{name}")


def test_the_reference_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, text in reference.pages().items():
        assert (reference.FOLDER / name).read_text(encoding="utf-8") == text, "run scripts/reference.py"
