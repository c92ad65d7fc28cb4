"""Short variable names for generated code. A name is reused once its value is not needed, which also frees memory."""

from __future__ import annotations

import ast
from itertools import chain, count


def reuse_names(function: ast.FunctionDef) -> None:
    """Rename the variables of code without branches, and drop the marks `name = None` that end the life of a variable.

    "conv1 = self.conv1(x)", "relu = F.relu(conv1); conv1 = None" becomes "y = self.conv1(x)", "y = F.relu(y)".
    """
    arguments = [argument.arg for argument in function.args.args]
    taken = {name: name for name in arguments}
    free: list[str] = []
    spare = (name for name in chain("xyzuvw", (f"x{n}" for n in count(1))) if name not in arguments)
    statements: list[ast.stmt] = []
    for statement, ended in _with_ends(function.body):
        _Rename(taken).visit(getattr(statement, "value", None) or ast.Constant(None))
        free += [taken.pop(name) for name in ended if name in taken and taken[name] != "self"]
        free.sort(key=_rank)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            target = statement.targets[0]
            if target.id not in ended:
                taken[target.id] = free.pop(0) if free else next(spare)
            target.id = taken.get(target.id, "_")
        statements.append(statement)
    function.body = statements


def _rank(name: str) -> tuple[int, str]:
    return ("xyzuvw".find(name) % 100, name)


def _with_ends(body: list[ast.stmt]) -> list[tuple[ast.stmt, list[str]]]:
    """Return each statement with the variables that are not used after it."""
    paired: list[tuple[ast.stmt, list[str]]] = []
    for statement in body:
        match statement:
            case ast.Assign(targets=targets, value=ast.Constant(value=None)) if paired:
                paired[-1][1].extend(target.id for target in targets if isinstance(target, ast.Name))
            case _:
                paired.append((statement, []))
    return paired


class _Rename(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self._names.get(node.id, node.id)
        return node
