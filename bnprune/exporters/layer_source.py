"""A layer as Python source: the call of its constructor, which is tested before it is used.

A layer can be written if its class is one of `torch.nn`, or a gate of ours, and keeps the arguments of its constructor
as attributes of the same names. Most layers do; LSTM and others do not.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import has_hooks, modules_by_name
from bnprune.errors import TraceError, first_line


def zeros(tensor: torch.Tensor) -> str:
    """Return the call that makes a tensor of zeros of the same shape and type."""
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({tuple(tensor.shape)}{dtype})"


def proven_construction(module: nn.Module) -> str:
    """Return the call of a constructor, after checking that it makes a layer like the given one.

    Raises:
        TraceError: It makes a different layer, or the layer has hooks.
    """
    text = construction(module)
    kinds = {type(part).__name__: type(part) for part in modules_by_name(module).values()}
    try:
        with torch.device("meta"):
            made: nn.Module = eval(text, {**kinds, "nn": nn, "torch": torch})
        alike = _are_alike(made, module)
    except Exception as error:
        raise TraceError(
            f"a {type(module).__name__} does not store the arguments of its constructor: {first_line(error)}"
        ) from error
    if not alike:
        raise TraceError(
            f"a {type(module).__name__} does not store the arguments of its constructor: {text} makes another"
        )
    return text


def _are_alike(made: nn.Module, module: nn.Module) -> bool:
    """Return True if two layers agree in class, plain attributes and shapes. Values of tensors may differ."""
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
    """Return the call of a constructor, whose arguments are the attributes of the layer with the same names.

    For `nn.Conv2d(3, 8, kernel_size=(3, 3), padding=(1, 1))` it is "nn.Conv2d(3, 8, (3, 3), padding=(1, 1))": an
    argument equal to its default is left out.

    Raises:
        TraceError: The layer does not keep an argument.
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
            value = value is not None  # `bias` is a tensor or None, and the argument a bool
        if value is parameter.empty:
            raise TraceError(f"a {kind.__name__} does not store its argument '{parameter.name}'")
        if parameter.default is parameter.empty:
            positional.append(_written(value, kind))
        elif value != parameter.default and not _repeats(value, parameter.default):
            named.append(f"{parameter.name}={_written(value, kind)}")
    name = f"nn.{kind.__name__}" if _in_torch(kind) else kind.__name__
    return f"{name}({', '.join(positional + named)})"


def _repeats(value: Any, default: Any) -> bool:
    """Return True for a stride of (1, 1), whose default is 1."""
    return isinstance(value, tuple) and isinstance(default, int) and set(value) == {default}


def _in_torch(kind: type) -> bool:
    return getattr(nn, kind.__name__, None) is kind


def _written(value: Any, kind: type) -> str:
    if isinstance(value, nn.Module):
        return construction(value)
    if isinstance(value, torch.Tensor):
        return zeros(value)
    text = repr(value)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise TraceError(f"an argument of {kind.__name__} has no source form: {text}") from error
    return text
