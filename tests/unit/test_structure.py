"""The structure of the code: the direction of imports, public names, sizes, and the imports of the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bnprune

PACKAGE = Path(bnprune.__file__).parent
# Lower floors first: a module imports from its own floor and those below. `data` and `models` stand beside training.
_ORDER = (
    "errors notes config channels pruning models data recovery training runs exporters timing reporting workflows "
    "integrations cli"
)
FLOORS = {name: floor for floor, name in enumerate(_ORDER.split())}
PURE = ("channels", "pruning")


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name not in ("__init__", "__main__"):
            found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "bnprune":
                found |= {f"bnprune.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("name", "tree"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_run_one_way(name: str, tree: ast.Module) -> None:
    floor = FLOORS[name.split(".")[0]]
    for imported in imports(tree):
        if imported.startswith("bnprune.") and imported != "bnprune.__version__":
            above = FLOORS[imported.split(".")[1]]
            assert above <= floor, f"bnprune.{name} imports {imported}, which is above it"


CORE = [(name, tree) for name, tree in modules() if name.startswith(PURE)]


@pytest.mark.parametrize(("name", "tree"), CORE, ids=lambda value: value if isinstance(value, str) else "")
def test_the_core_neither_prints_nor_reads_files(name: str, tree: ast.Module) -> None:
    assert not imports(tree) & {"torchvision", "rich", "typer", "pathlib", "os", "logging", "yaml"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"print", "open", "input"}


def test_public_names_are_sorted_complete_and_there() -> None:
    assert bnprune.__all__ == sorted(bnprune.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in bnprune.__all__:
        assert getattr(bnprune, name).__doc__, name
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(bnprune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'prun'"):
        _ = bnprune.prun


@pytest.mark.parametrize("statement", ["import bnprune", "import bnprune.cli"])
def test_torch_is_imported_only_when_needed(statement: str) -> None:
    heavy = "('torch', 'torchvision', 'pydantic', 'numpy')"
    code = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SCREEN = 50
"""Lines that are seen at once."""
FILE = 7 * SCREEN
"""A module has one subject. Explanations do not count, so that nobody saves them."""


def code_lines(tree: ast.Module, lines: list[str]) -> set[int]:
    """Return the numbers of lines that hold code: no docstrings, comments or blank lines."""
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    explained = {number for n in texts for number in range(n.lineno, (n.end_lineno or 0) + 1)}
    return {k for k, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"} - explained


def test_what_counts_as_code() -> None:
    text = '"""Text."""\n\n\ndef f(x):\n    """Text,\n    more."""\n    # why\n    return x  # it\n'
    assert code_lines(ast.parse(text), text.splitlines()) == {4, 8}


def test_a_file_has_one_subject_and_a_function_fits_on_a_screen() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        code = code_lines(tree, text.splitlines())
        assert len(code) <= FILE, f"{path} has {len(code)} lines of code"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                size = len(code & set(range(node.body[0].lineno, (node.end_lineno or 0) + 1)))
                assert size <= SCREEN, f"{path}: {node.name} has {size} lines of code"
