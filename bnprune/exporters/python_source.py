"""A slim network as plain Python: one file that needs nothing but PyTorch, with the state dict's own names.

`torch.fx` follows the network in eval mode. Layers of `torch.nn` are written as calls of their constructors, modules of
ours (gates) with their source, everything else as what it does in `forward`.
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

from bnprune.channels.modules import has_hooks, modules_by_name, temporary_mode
from bnprune.errors import TraceError, first_line
from bnprune.exporters.parity import dtype_of
from bnprune.exporters.variable_names import reuse_names
from bnprune.pruning.gates import ReadGate, WriteGate

_PLAIN = ("torch", "torchvision", "timm", "math", "operator", "builtins")
"""Packages that the file may import."""


class _OneInput(nn.Module):
    """Calls a network with one input, whatever else it may take."""

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
    """Write a network as a Python module with a class `Network`.

    Args:
        model: Any network; left untouched.
        title: What the file is, for its first line.
        weights: Name of the file with the state dict.

    Raises:
        TraceError: `torch.fx` cannot follow the network, or a layer does not tell how it was made.
    """
    tracer = _Tracer()
    with temporary_mode(model, training=False):
        try:
            graph = tracer.trace(_OneInput(model))
        except Exception as error:
            raise TraceError(f"torch.fx cannot follow the network: {first_line(error)}") from error
    for node in graph.nodes:
        node.type = None  # annotations mean something where the model was written
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix("network.")
    code = graph.python_code("self")
    layers = _Layers(model, tracer)
    try:
        tree = ast.parse(textwrap.dedent(code.src))
    except SyntaxError as error:
        raise TraceError(f"a name in the network is a word of Python: {(error.text or '').strip()}") from error
    forward = layers.named(tree)
    reuse_names(forward)
    parts = [
        _DOCSTRING.format(
            mark=_MARK, title=re.sub(r"[^\w .,:;()/+-]", "_", title), weights=re.sub(r"[^\w.+-]", "_", weights)
        ),
        "\n".join(_imports({name: code.globals[name] for name in _names(forward) & code.globals.keys()})),
        *(f"\n\n{source}" for source in layers.sources()),
        "\n\nclass Network(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()",
        textwrap.indent("\n".join(layers.made()), " " * 8),
        "\n" + textwrap.indent(ast.unparse(forward), " " * 4),
    ]
    return "\n".join(parts) + "\n"


_MARK = "Written by bnprune; needs nothing of it."
_DOCSTRING = '''"""{title}. {mark}

    network = Network()
    network.load_state_dict(load("{weights}"))  # safetensors.torch.load_file, or torch.load
    network.eval()

What a network decides from its mode is as in eval mode; layers such as BatchNorm and Dropout know train mode.
"""
'''


def is_ours(path: Path) -> bool:
    """Tell whether a file is one that `to_python` wrote."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].endswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _imports(names: dict[str, Any]) -> Iterator[str]:
    """Yield the imports of what the traced code calls by name."""
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
    """The modules of a network: leaves that are called whole, and containers, which become `ModuleDict`s."""

    def __init__(self, model: nn.Module, tracer: fx.Tracer) -> None:
        self.model = model
        self.leaves: dict[str, nn.Module] = {}
        self.containers: dict[str, nn.Module] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if any(name.startswith(f"{leaf}.") for leaf in _ancestors(name) if leaf in self.leaves):
                continue
            runs = type(module).forward is not nn.Module.forward  # lists and the like do not
            leaf = name and runs and tracer.is_leaf_module(module, name)
            where = self.leaves if leaf else self.containers
            where[name] = module

    def sources(self) -> Iterator[str]:
        """Yield the source of classes that are not PyTorch's."""
        inner = {type(module): None for leaf in self.leaves.values() for module in modules_by_name(leaf).values()}
        yield from (inspect.getsource(kind).rstrip() for kind in inner if not kind.__module__.startswith("torch."))

    def made(self) -> Iterator[str]:
        """Yield the statements that make all layers."""
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
            return _proven(self.leaves[name])
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
        """Return the expression for a module or tensor: layer1.0.conv1 is self.layer1["0"]["conv1"]."""
        text, walked, found = "self", "", self.model
        for part in path.split(".") if path else []:
            if not hasattr(found, part):
                raise TraceError(f"'{path}' is made while the network runs")
            found = getattr(found, part)
            below, walked = walked, f"{walked}.{part}".lstrip(".")
            if below and below in self.containers and (walked in self.leaves or walked in self.containers):
                text += f'["{part}"]'
            else:
                text = f"{text}.{part}" if part.isidentifier() else f"getattr({text}, {part!r})"
        return text

    def named(self, tree: ast.Module) -> ast.FunctionDef:
        """Return the traced `forward`, its references to modules written as `reference` does."""
        layers = self

        class Rewrite(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST:
                path = _path(node)
                if path:
                    return ast.parse(layers.reference(path), mode="eval").body
                return self.generic_visit(node)

        function = tree.body[-1]
        assert isinstance(function, ast.FunctionDef)
        found = Rewrite().generic_visit(function)
        assert isinstance(found, ast.FunctionDef)
        return found


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
    """Yield the statements that make tensors which belong to no layer."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            grad = "" if parameter.requires_grad else ", requires_grad=False"
            yield f"{owner}.register_parameter({name!r}, nn.Parameter({_zeros(parameter)}{grad}))"
    for name, buffer in module._buffers.items():
        if buffer is not None:
            if name in module._non_persistent_buffers_set:
                raise TraceError(f"the buffer '{name}' is not part of the state dict")
            yield f"{owner}.register_buffer({name!r}, {_zeros(buffer)})"


def _zeros(tensor: torch.Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({tuple(tensor.shape)}{dtype})"


def _proven(module: nn.Module) -> str:
    """Write the call of a constructor, and make sure that it makes such a layer.

    Raises:
        TraceError: It does not, or the layer does more than its class says.
    """
    text = construction(module)
    kinds = {type(part).__name__: type(part) for part in modules_by_name(module).values()}
    try:
        with torch.device("meta"):
            made: nn.Module = eval(text, {**kinds, "nn": nn, "torch": torch})
        alike = _are_alike(made, module)
    except Exception as error:
        raise TraceError(f"a {type(module).__name__} does not tell how it was made: {first_line(error)}") from error
    if not alike:
        raise TraceError(f"a {type(module).__name__} does not tell how it was made: {text} makes another")
    return text


def _are_alike(made: nn.Module, module: nn.Module) -> bool:
    """Compare all that a constructor settles but the numbers in tensors."""
    if type(made) is not type(module) or made._modules.keys() != module._modules.keys():
        return False
    settled = [key for key, value in vars(made).items() if isinstance(value, _VALUES) and key != "training"]
    return (
        all(getattr(made, key) == getattr(module, key) for key in settled)
        and _shapes(made) == _shapes(module)
        and all(_are_alike(child, module._modules[name]) for name, child in made._modules.items() if child is not None)  # type: ignore[arg-type]
    )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    tensors = {**module._parameters, **module._buffers}
    return {name: None if tensor is None else tuple(tensor.shape) for name, tensor in tensors.items()}


_VALUES = (bool, int, float, str, tuple, type(None))


def construction(module: nn.Module) -> str:
    """Write the call of a constructor that makes such a layer; arguments are its attributes of the same names.

    Raises:
        TraceError: The layer does not keep them.
    """
    kind = type(module)
    if kind.__module__.startswith("torch.") and not _in_torch(kind):
        raise TraceError(f"a {kind.__name__} is no layer of torch.nn")
    if any(map(has_hooks, modules_by_name(module).values())):
        raise TraceError(f"a {kind.__name__} has hooks, which do more than its class says")
    positional, named = [], []
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name in ("device", "dtype"):
            continue
        value = getattr(module, parameter.name, parameter.default)
        if isinstance(parameter.default, bool) and not isinstance(value, bool):
            value = value is not None  # bias
        if value is parameter.empty:
            raise TraceError(f"a {kind.__name__} does not tell its '{parameter.name}'")
        if parameter.default is parameter.empty:
            positional.append(_written(value, kind))
        elif value != parameter.default and not _repeats(value, parameter.default):
            named.append(f"{parameter.name}={_written(value, kind)}")
    name = f"nn.{kind.__name__}" if _in_torch(kind) else kind.__name__
    return f"{name}({', '.join(positional + named)})"


def _repeats(value: Any, default: Any) -> bool:
    """Tell (1, 1) for a stride of 1."""
    return isinstance(value, tuple) and isinstance(default, int) and set(value) == {default}


def _in_torch(kind: type) -> bool:
    return getattr(nn, kind.__name__, None) is kind


def _written(value: Any, kind: type) -> str:
    if isinstance(value, nn.Module):
        return construction(value)
    if isinstance(value, torch.Tensor):
        return _zeros(value)
    text = repr(value)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise TraceError(f"an argument of {kind.__name__} cannot be written down: {text}") from error
    return text
