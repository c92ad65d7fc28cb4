"""A slim network as Python source: one file that needs nothing but PyTorch and keeps the names of the state dict.

`torch.fx` traces the network in eval mode. Layers of `torch.nn` become calls of their constructors, gates of ours are
copied with their source, and all other modules are inlined into `forward`.

Covered are networks that `torch.fx` can trace symbolically (no control flow that depends on values or shapes), made of
layers that `layer_source` can write, without hooks, and with all buffers in the state dict. Everything else raises a
TraceError, and the export holds the weights alone. Whatever is written is run and compared with the network before it
is used (`export.export_network`), so that an unsupported network costs only the file.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from bnprune.channels.modules import modules_by_name, temporary_mode
from bnprune.errors import TraceError, first_line
from bnprune.exporters.layer_source import proven_construction, zeros
from bnprune.exporters.parity import dtype_of
from bnprune.exporters.variable_names import reuse_names
from bnprune.pruning.gates import ReadGate, WriteGate

_PLAIN = ("torch", "torchvision", "timm", "math", "operator", "builtins")
"""Packages that the generated file may import."""


class _OneInput(nn.Module):
    """Calls a network with one input, so that its optional arguments are not traced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == "network":
            return False
        return isinstance(m, ReadGate | WriteGate) or super().is_leaf_module(m, module_qualified_name)


def to_python(model: nn.Module, title: str, weights: str) -> str:
    """Return the source of a Python module with a class `Network`.

    Args:
        model: Any network; left untouched.
        title: Name of the network, for the first line of the file.
        weights: Name of the file with the state dict, for its docstring.

    Raises:
        TraceError: `torch.fx` cannot trace the network, or a layer cannot be written as source.
    """
    tracer = _Tracer()
    with temporary_mode(model, training=False):
        try:
            graph = tracer.trace(_OneInput(model))
        except Exception as error:
            raise TraceError(f"torch.fx cannot follow the network: {first_line(error)}") from error
    for node in graph.nodes:
        node.type = None  # annotations name types that the generated file does not import
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix("network.")
    code = graph.python_code("self")
    layers = _Layers(model, tracer)
    try:
        tree = ast.parse(textwrap.dedent(code.src))
    except SyntaxError as error:
        raise TraceError(f"a name in the network is a keyword of Python: {(error.text or '').strip()}") from error
    forward = layers.named(tree)
    reuse_names(forward)
    parts = [
        _DOCSTRING.format(
            mark=_MARK, title=re.sub(r"[^\w .,:;()/+-]", "_", title), weights=re.sub(r"[^\w.+-]", "_", weights)
        ),
        "\n".join(_imports({name: code.globals[name] for name in _names(forward) & code.globals.keys()})),
        *(f"\n\n{source}" for source in layers.sources()),
        "\n\nclass Network(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()",
        textwrap.indent("\n".join(layers.constructions()), " " * 8),
        "\n" + textwrap.indent(ast.unparse(forward), " " * 4),
    ]
    return "\n".join(parts) + "\n"


_MARK = "Written by bnprune; needs nothing of it."
_DOCSTRING = '''"""{title}. {mark}

    network = Network()
    network.load_state_dict(load("{weights}"))  # safetensors.torch.load_file, or torch.load
    network.eval()

Code that depends on the mode of the network is as in eval mode; BatchNorm, Dropout and others support train mode.
"""
'''


def is_ours(path: Path) -> bool:
    """Return True if `to_python` wrote the file."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].endswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _imports(names: dict[str, Any]) -> Iterator[str]:
    """Yield the import statements for the names that the traced code uses."""
    yield "import torch"
    yield "from torch import nn"
    for name, value in sorted(names.items()):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(value, float):
            yield f'{name} = float("{value}")'
        elif home is None or home.partition(".")[0] not in _PLAIN:
            raise TraceError(f"'{name}' of {home} is not part of PyTorch")
        elif name != "torch":
            what = f"import {home} as {name}" if isinstance(value, ModuleType) else None
            yield what or f"from {home} import {value.__qualname__} as {name}"


class _Layers:
    """The modules of a network: leaves, which are called as a whole, and containers, which become a `ModuleDict`."""

    def __init__(self, model: nn.Module, tracer: fx.Tracer) -> None:
        self.model = model
        self.leaves: dict[str, nn.Module] = {}
        self.containers: dict[str, nn.Module] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if any(name.startswith(f"{leaf}.") for leaf in _ancestors(name) if leaf in self.leaves):
                continue
            callable_ = type(module).forward is not nn.Module.forward  # false for a ModuleList
            leaf = name and callable_ and tracer.is_leaf_module(module, name)
            where = self.leaves if leaf else self.containers
            where[name] = module

    def sources(self) -> Iterator[str]:
        """Yield the source of each class that is not one of PyTorch."""
        inner = {type(module): None for leaf in self.leaves.values() for module in modules_by_name(leaf).values()}
        yield from (inspect.getsource(kind).rstrip() for kind in inner if not kind.__module__.startswith("torch."))

    def constructions(self) -> Iterator[str]:
        """Yield the statements of `__init__`. A layer that is used under several names is made once."""
        first: dict[int, str] = {}
        later: list[str] = []
        for name, module in self.leaves.items():
            if id(module) in first:
                parent, _, own = name.rpartition(".")
                later.append(f"{self.reference(parent)}.add_module({own!r}, {self.reference(first[id(module)])})")
            first.setdefault(id(module), name)
        shared = {name for name, module in self.leaves.items() if first[id(module)] != name}
        for name, child in self.model._modules.items():
            if child is not None and name not in shared:
                made = self._expression(name, shared)
                yield f"self.{name} = {made}" if name.isidentifier() else f"self.add_module({name!r}, {made})"
        yield from later
        for name, module in self.containers.items():
            yield from _tensors(module, self.reference(name))
        if dtype_of(self.model) != torch.float32:
            yield f"self.to({dtype_of(self.model)})"

    def _expression(self, name: str, shared: set[str], depth: int = 1) -> str:
        if name in self.leaves:
            return proven_construction(self.leaves[name])
        children = [
            (child, f"{name}.{child}")
            for child, module in self.containers[name]._modules.items()
            if module is not None and f"{name}.{child}" not in shared
        ]
        for child, path in children:
            if hasattr(nn.ModuleDict, child):
                raise TraceError(f"'{path}' has a name that no ModuleDict can hold")
        lines = [
            f"{' ' * 4 * depth}{child!r}: {self._expression(path, shared, depth + 1)},\n" for child, path in children
        ]
        return f"nn.ModuleDict({{\n{''.join(lines)}{' ' * 4 * (depth - 1)}}})" if lines else "nn.ModuleDict()"

    def reference(self, path: str) -> str:
        """Return the expression for a module or tensor: that for layer1.0.conv1 is self.layer1["0"]["conv1"]."""
        text, walked, owner = "self", "", self.model
        for part in path.split(".") if path else []:
            if not hasattr(owner, part):
                raise TraceError(f"'{path}' is created while the network runs")
            owner = getattr(owner, part)
            below, walked = walked, f"{walked}.{part}".lstrip(".")
            if below and below in self.containers and (walked in self.leaves or walked in self.containers):
                text += f'["{part}"]'
            else:
                text = f"{text}.{part}" if part.isidentifier() else f"getattr({text}, {part!r})"
        return text

    def named(self, tree: ast.Module) -> ast.FunctionDef:
        """Return the traced `forward`, with modules and tensors written as `reference` writes them."""
        layers = self

        class Rewrite(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST:
                path = _path(node)
                if path:
                    return ast.parse(layers.reference(path), mode="eval").body
                return self.generic_visit(node)

        function = tree.body[-1]
        assert isinstance(function, ast.FunctionDef)
        rewritten = Rewrite().generic_visit(function)
        assert isinstance(rewritten, ast.FunctionDef)
        return rewritten


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _path(node: ast.AST) -> str | None:
    """Return "a.0.b" for `getattr(self.a, "0").b`, "" for `self`, None for anything else."""
    match node:
        case ast.Name(id="self"):
            return ""
        case ast.Attribute(value=owner, attr=name):
            pass
        case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
            pass
        case _:
            return None
    above = _path(owner)
    return None if above is None else f"{above}.{name}".lstrip(".")


def _tensors(module: nn.Module, owner: str) -> Iterator[str]:
    """Yield the statements that register the parameters and buffers of a container."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            grad = "" if parameter.requires_grad else ", requires_grad=False"
            yield f"{owner}.register_parameter({name!r}, nn.Parameter({zeros(parameter)}{grad}))"
    for name, buffer in module._buffers.items():
        if buffer is not None:
            if name in module._non_persistent_buffers_set:
                raise TraceError(f"the buffer '{name}' is not part of the state dict")
            yield f"{owner}.register_buffer({name!r}, {zeros(buffer)})"
