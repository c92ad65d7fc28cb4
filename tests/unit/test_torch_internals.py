"""Private names of PyTorch are used in one file only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import bnprune
from bnprune.channels import torch_internals

PACKAGE = Path(bnprune.__file__).parent
FILES = [
    path
    for folder in ("channels", "pruning")
    for path in sorted((PACKAGE / folder).rglob("*.py"))
    if path.name != "torch_internals.py"
]
PRIVATE = {
    name
    for owner in (torch, torch.Tensor, nn.Module(), torch.ops.aten.add.Tensor, nn.modules.batchnorm, nn.modules.conv)
    for name in dir(owner)
    if name.startswith("_") and not name.endswith("__")
} | {"_C", "_ops", "_pytree", "_python_dispatch", "_base", "_InstanceNorm"}


def own_names(tree: ast.Module) -> set[str]:
    """Attributes that classes of the file define themselves, and functions."""
    stored = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return stored | defined


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_other_file_uses_a_private_name_of_torch(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not (used & PRIVATE) - own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not any(name.startswith("_") for name in names)


def test_every_name_has_its_reason() -> None:
    tree = ast.parse(Path(torch_internals.__file__).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert all(ast.get_docstring(function) for function in functions)


def test_modes_are_on_the_stack_between_push_and_pop() -> None:
    class Mode(torch_internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **kwargs or {})

    depth = torch_internals.mode_depth()
    torch_internals.push_mode(Mode())
    assert torch_internals.mode_depth() == depth + 1
    torch_internals.pop_mode()
    assert torch_internals.mode_depth() == depth


def test_operators_are_described_by_their_schema() -> None:
    op = torch.ops.aten.bernoulli_.float
    assert [*torch_internals.argument_types(op)] == ["self", "p", "generator"]
    assert op in torch_internals.overloads_of(op)
    assert torch_internals.is_composite(torch.ops.aten.batch_norm.default)
    assert not torch_internals.is_composite(torch.ops.aten.native_batch_norm.default)


def test_own_tensors_of_a_module() -> None:
    norm = nn.BatchNorm2d(3, affine=False)
    assert [*torch_internals.own_tensors(nn.Sequential(norm)).values()] == []
    assert torch_internals.own_tensors(norm)["weight"] is None
    assert torch_internals.own_tensors(norm)["running_mean"] is norm.running_mean
