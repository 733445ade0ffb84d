"""The rules that a machine can check: who imports whom, how long functions are, whose `model` it is."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "model", "data_filters")
FORBIDDEN = {
    "model": {"pipeline", "data_filters", "lightning", "datatrove", "wandb", "datasets", "tests", "scripts"},
    "data_filters": {"pipeline", "model", "torch", "lightning", "wandb", "tests", "scripts"},
    "pipeline": {"tests", "scripts"},
}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


# From the lowest layer to the highest: a module imports from its own folder and from layers below (docs/design.md).
# Names of files among them are layers of their own within their folder.
LAYERS = """
data_filters, model
model.growth
pipeline.system
pipeline.config
pipeline.storage
pipeline.pages
pipeline.corpus.text
pipeline.corpus.sources
pipeline.corpus.exercises
pipeline.corpus.synthetic
pipeline.corpus.scorers
pipeline.corpus
pipeline.training
pipeline.stages
pipeline.evaluation
pipeline.growing, pipeline.release
pipeline.tuning
pipeline.planner, pipeline.remote, pipeline.slurm
pipeline.reporting
pipeline
pipeline.run_stage
pipeline.studies
pipeline.study
pipeline.__main__
"""
RANK = {name: rank for rank, line in enumerate(LAYERS.split("\n")) for name in line.split(", ") if name}
MOST_LINES = 80  # of a function


def _modules() -> dict[str, Path]:
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in _files(package)]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in paths}


def _edges() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, inside functions too; not those for type checkers alone."""
    modules = _modules()

    def found(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    edges = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
                names |= {found(f"{node.module}.{alias.name}") for alias in node.names}
            elif isinstance(node, ast.Import) and id(node) not in for_types:
                names |= {found(alias.name) for alias in node.names}
        edges[module] = names - {"", module}
    return edges


def _layer(module: str) -> str:
    while module not in RANK:
        module = module.rpartition(".")[0]
    return module


def test_every_folder_imports_only_from_layers_below():
    wrong = [
        f"{module} imports {other}"
        for module, others in _edges().items()
        for other in sorted(others)
        if _layer(module) != _layer(other) and RANK[_layer(other)] >= RANK[_layer(module)]
    ]
    assert not wrong


def test_no_module_imports_itself_through_others():
    edges = _edges()
    while leaves := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges  # these modules are in a circle, or import one


def test_what_pretraining_loads_stays_small():
    edges, seen, waiting = _edges(), set(), ["pipeline.pretrain"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += edges[module]
    assert len(seen) <= 100


def test_functions_are_short_enough_to_be_read_at_once():
    for package in (*PACKAGES, "scripts", "tests/fuzz", "tests/gpu_check", "tests/soak"):
        for path in _files(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    assert lines <= MOST_LINES, f"{path}: {node.name} has {lines} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    for path in _files(package):
        assert not _imports(path) & FORBIDDEN[package], path


def test_nobody_imports_a_bare_package_that_a_variable_could_shadow():
    for package in (*PACKAGES, "tests", "scripts"):
        for path in _files(package):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    assert not {a.name for a in node.names} & {"model", "pipeline"}, path


def test_one_place_alone_loads_tokenizers():
    """Whoever else loads one would encode with the truncation, padding or dropout that another program left in it."""
    loading = {"from_file", "from_str", "from_buffer", "from_pretrained"}
    found = {
        path.relative_to(ROOT).as_posix()
        for package in (*PACKAGES, "tests", "scripts")
        for path in _files(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in loading
        and ast.unparse(node.value).split(".")[-1] == "Tokenizer"
    }
    assert found == {"pipeline/corpus/text/tokenizer.py"}


def test_every_package_folder_is_listed_for_installation():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        str(init.parent.relative_to(ROOT)).replace("/", ".")
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found


def test_every_data_file_is_listed_for_installation():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = (path for package, patterns in listed.items() for name in patterns for path in (ROOT / package).glob(name))
    shipped = {path for path in found if path.is_file()}  # not the folder of compiled templates
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts} == shipped


def test_no_file_is_called_utils():
    for package in (*PACKAGES, "tests", "scripts"):
        for path in _files(package):
            assert path.stem not in {"utils", "misc", "helpers", "common"}, path


def test_the_modules_are_ours_even_beside_files_of_the_same_name(tmp_path):
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module was imported')")
    code = "import model, pipeline, data_filters; print(model.__file__, pipeline.__file__, data_filters.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(Path(word).is_relative_to(ROOT) for word in done.stdout.split())


def test_the_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
    ]
    for extra in ("docs", "eval", "gguf", "quantize", "finetune"):
        wanted += project["optional-dependencies"][extra]
    names = {re.split(r"[\[><=,]", name)[0].lower().replace("_", "-") for name in wanted}
    assert names - {"hornbook"} <= pinned  # dev takes other extras along by its own name
