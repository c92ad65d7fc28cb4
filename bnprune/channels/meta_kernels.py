"""Running an operator on meta tensors, which have shapes but no values."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.operator_mode import OwnGenerators
from bnprune.channels.ops.spec import spec_of
from bnprune.channels.pytrees import map_tensors, operands
from bnprune.channels.torch_internals import OpOverload


def run_kernel(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], generators: OwnGenerators, *, meta: bool
) -> Any:
    """Run an operator; with `meta`, tensors of other devices are moved to the meta device if it fails on them.

    A copy of a meta tensor stays on the meta device, whatever device is requested. Example: `x.type_as(self.anchors)`,
    if an earlier forward pass has stored the anchors on the CPU.
    """
    if not meta:
        return generators.run(func, args, kwargs)
    if kwargs.get("device") and any(tensor.is_meta for tensor in operands(args, {})):
        kwargs = {**kwargs, "device": torch.device("meta")}
    output = _run_own_kernel(func, args, kwargs)
    if output is not None:
        return output
    try:
        return generators.run(func, args, kwargs)
    except RuntimeError:
        if not any(tensor.dim() and not tensor.is_meta for tensor in operands(args, kwargs)):
            raise
        moved_args, moved_kwargs = map_tensors(lambda tensor: tensor.to("meta"), (args, kwargs))
        output = generators.run(func, moved_args, moved_kwargs)
        return args[0] if torch.Tag.inplace in func.tags else output


def _run_own_kernel(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kernel = spec_of(func).meta
    if kernel is None or kwargs or not args[0].is_meta:
        return None
    output = kernel(*args)
    return args[0] if torch.Tag.inplace in func.tags and output is not None else output
