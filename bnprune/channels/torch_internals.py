"""The private names of PyTorch that tracing and surgery need, each with the reason why no public name suffices.

PyTorch may rename these in any release. No other module in `bnprune.channels` and `bnprune.pruning` uses a private name
of `torch` (`tests/unit/test_torch_internals.py`), so that a change in PyTorch needs a change of this module only.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils import _pytree as pytree  # the tree functions that PyTorch itself uses; `torch.utils.pytree` is newer
from torch.utils._python_dispatch import TorchDispatchMode  # documented with this path; there is no public one

__all__ = ["BatchNorm", "Convolution", "InstanceNorm", "OpOverload", "TorchDispatchMode", "pytree"]

BatchNorm = nn.modules.batchnorm._BatchNorm
"""Base class of BatchNorm1d to 3d and SyncBatchNorm, which have no public one."""

InstanceNorm = nn.modules.instancenorm._InstanceNorm
"""Base class of InstanceNorm1d to 3d."""

Convolution = nn.modules.conv._ConvNd
"""Base class of all convolutions, transposed ones included."""


def convolution_padding(layer: nn.Module) -> tuple[list[int], str]:
    """Return the padding of a convolution as `torch.nn.functional.pad` takes it, and its mode; "same" is resolved."""
    return layer._reversed_padding_repeated_twice, layer.padding_mode  # type: ignore[return-value]


# -- dispatch modes ----------------------------------------------------------------------------------------------------
# `TorchDispatchMode.__enter__` also sets flags of the whole process, which overlapping threads leave wrong:
# torch.compile then compiles nothing any more. The stack of modes itself belongs to the thread.


def push_mode(mode: TorchDispatchMode) -> None:
    """Put a mode on top of this thread's stack of dispatch modes."""
    torch._C._push_on_torch_dispatch_stack(mode)


def pop_mode() -> None:
    """Take the mode on top off this thread's stack of dispatch modes."""
    torch._C._pop_torch_dispatch_stack(None)


def mode_depth() -> int:
    """Return the number of dispatch modes on this thread's stack."""
    return torch._C._len_torch_dispatch_stack()


# -- operators ---------------------------------------------------------------------------------------------------------
# Only the schema of an operator gives the names of its arguments.


def is_composite(op: OpOverload) -> bool:
    """True if PyTorch computes an operator, and its gradient, by calling other operators."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"))


def argument_types(op: OpOverload) -> dict[str, str]:
    """Return the type of each argument of an operator, by name, in order."""
    return {argument.name: str(argument.type) for argument in op._schema.arguments}


def is_view(op: OpOverload) -> bool:
    """Return True if the output of an operator shares memory with an input, and the operator does not write to it."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in op._schema.returns)


def packet_of(op: OpOverload) -> OpOverloadPacket:
    """Return all overloads of an operator, by which PyTorch registers its formulas for FLOPs."""
    return op._overloadpacket


def overloads_of(op: OpOverload) -> list[OpOverload]:
    """Return an operator, followed by all overloads of it."""
    packet = op._overloadpacket
    return [op, *(cast("OpOverload", getattr(packet, name)) for name in packet.overloads())]


# -- tensors and modules -----------------------------------------------------------------------------------------------
# `named_parameters(recurse=False)` and the like leave out None and duplicates, and can be overridden by the user.


def base_of(view: torch.Tensor) -> torch.Tensor | None:
    """Return the tensor of which this one is a view; None if it is none."""
    return view._base


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters of a module itself, without those of its children."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers of a module itself, without those of its children."""
    return module._buffers


TORCH_CONTAINERS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""Attributes in which a module keeps its parameters, buffers, children and hooks."""


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the parameters and buffers of a module itself, without those of its children."""
    return {**module._parameters, **module._buffers}


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children of a module by name; changing the dictionary replaces them."""
    return module._modules


def forward_hooks(module: nn.Module) -> Collection[Any]:
    """Return the hooks that run before and after the `forward` of a module."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def has_stepped_under_schedule(optimizer: torch.optim.Optimizer) -> bool:
    """True if an optimizer took a step while a learning-rate scheduler was made for it; schedulers mark it so."""
    return getattr(optimizer, "_opt_called", False)
