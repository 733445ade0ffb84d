"""An exercise that a model wrote: its form, and its verification.

Its code is never run here: only by an `IsolatedRunner`, in namespaces without network, with limits. It is kept if it
passes twice, each time in a fresh process, and fails once its functions do nothing.
"""

import ast

from data_filters.code import parsed
from pipeline.corpus.exercises.confined import FAILED, PASSED
from pipeline.corpus.exercises.isolated import IMPORTABLE, IsolatedRunner
from pipeline.corpus.exercises.styles import program_of

LEAST_ASSERTIONS = 3
LEAST_WORDS = 12  # of a task, outside the code
MOST_CODE_CHARACTERS = 20_000
# By these a program could end its process with a status of its own choice, which would count as passed.
_ESCAPES = {
    "os", "sys", "_os", "_sys", "posix", "builtins", "exit", "quit", "_exit", "eval", "exec", "compile", "__import__",
    "__builtins__", "__loader__", "__subclasses__", "__globals__", "__spec__", "globals", "SystemExit",
}  # fmt: skip


def problem_of(text: str) -> str | None:
    """What is wrong with the form of an exercise, in a word, or None: code that parses, in ```python blocks, with a
    function or class and assertions outside of them, importing nothing that the isolated process does not have."""
    if text.count("```python\n") < 1 or program_of(text) == text:
        return "no_code"
    program = program_of(text)
    if len(program) > MOST_CODE_CHARACTERS:
        return "too_much_code"
    tree = parsed(program)
    if isinstance(tree, Exception):
        return "code_does_not_parse"
    if not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        return "no_function"
    if sum(isinstance(node, ast.Assert) for node in tree.body) < LEAST_ASSERTIONS:
        return "too_few_assertions"
    if _forbidden(tree):
        return "forbidden_code"
    told = text
    for block in text.split("```")[1::2]:
        told = told.replace(block, " ")
    return "no_task" if len(told.split()) < LEAST_WORDS else None


def verify(text: str, runner: IsolatedRunner) -> str | None:
    """None where the code in `text` passes in two fresh processes and fails when stubbed; else why it is refused."""
    program = program_of(text)
    tree = parsed(program)
    if isinstance(tree, Exception):
        return "code_does_not_parse"
    for again in (False, True):
        [ended] = runner.run(program)
        if ended != PASSED:
            return "not_deterministic" if again else f"solution_{ended}"
    [ended] = runner.run(stubbed(tree))
    return None if ended == FAILED else f"stub_{ended}"


def stubbed(tree: ast.Module) -> str:
    """The program with functions and methods that only return None."""
    return ast.unparse(ast.fix_missing_locations(_Stub().visit(ast.parse(ast.unparse(tree)))))


class _Stub(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Return(ast.Constant(None))]
        return node


def _forbidden(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name not in IMPORTABLE for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module not in IMPORTABLE or names & _ESCAPES:
                return True
        if (getattr(node, "id", None) or getattr(node, "attr", None)) in _ESCAPES:
            return True
    return False
