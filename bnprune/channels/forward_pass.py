"""One forward pass that changes nothing: no statistics, modes, caches or random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from bnprune.channels.modules import modules_by_name, temporary_mode
from bnprune.channels.operator_mode import OperatorMode
from bnprune.channels.pytrees import Inputs, map_tensors, tensors
from bnprune.channels.structural_copy import copy_with_tensors, wrap_like
from bnprune.errors import ForwardError, first_line, lacks_memory

Result = TypeVar("Result")


def on_meta_or_cpu(run: Callable[[str], Result]) -> Result:
    """Call `run("meta")`, where nothing is computed; if that fails, `run("cpu")`.

    Networks whose control flow depends on data need real tensors.
    """
    try:
        return run("meta")
    except Exception:  # noqa: BLE001 - if the error has another cause, the run on the CPU raises it again
        return run("cpu")


def copy_on(model: nn.Module, device: str) -> nn.Module:
    """Copy a network with its tensors on another device (or on "meta", where they have shapes only).

    Raises:
        PruningError: The network cannot be copied.
    """
    own = [*model.parameters(), *model.buffers()]
    copies = {id(tensor): wrap_like(tensor, tensor.detach().to(device, copy=True)) for tensor in own}
    for module in modules_by_name(model).values():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:  # of a weight norm, which computes it again
                copies[id(value)] = value.detach().to(device, copy=True)
    return copy_with_tensors(model, copies)


def forward(model: nn.Module, inputs: Inputs, *, device: str, training: bool = False) -> Any:
    """Run a copy of a network.

    Args:
        model: Any network.
        inputs: Positional and keyword arguments.
        device: Device to run on; on "meta" there are shapes only, no memory and no arithmetic.
        training: True for train mode.
    """
    args, kwargs = map_tensors(lambda tensor: tensor.to(device, copy=True), inputs)
    copied = copy_on(model, device)
    with temporary_mode(copied, training=training), OperatorMode():
        return copied(*args, **kwargs)


@contextmanager
def raising_forward_errors(inputs: Inputs) -> Iterator[None]:
    """Turn any error of a network in the `with` block into a ForwardError, except out-of-memory errors."""
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            raise
        raise forward_error(error, "", inputs) from error


def forward_error(error: Exception, module: str, inputs: Inputs) -> ForwardError:
    """Return the error to raise if the forward pass of a network raises one.

    PyTorch's own code raises if shapes do not fit; the message then advises to check the shape of the input. Errors of
    other code get no such advice.

    Args:
        error: The original error.
        module: Name of the module in which an operator failed; empty if there is none.
        inputs: Positional and keyword arguments.
    """
    reason = f"{type(error).__name__}: {first_line(error)[:_QUOTED]}"
    described = ", ".join(
        f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors(inputs)
    )
    advice = f"The network has to run in eval mode on the inputs given ({described or 'none with tensors'})."
    shape = _shape_in(inputs)
    if shape:
        advice = f"The example inputs are a shape, not a tensor: give torch.zeros({', '.join(map(str, shape))})."
    if isinstance(error, NotImplementedError):
        advice = "Give the module whose forward() computes the outputs."
    elif _is_about_shapes(error):
        advice = f"Check the shape of the input and its type (got {described or 'no tensor'})."
        if any(tensor.dim() > 4 and tensor.shape[:2] == (1, 1) for tensor in tensors(inputs)):
            advice += " The shape of one input is given without the batch: 3,32,32, not 1,3,32,32."
    return ForwardError(f"the forward pass of the network fails in {module or 'forward()'}: {reason}. {advice}")


def batch_missing(error: ForwardError, model: nn.Module, inputs: Inputs) -> ForwardError | None:
    """Return the error with the advice to add a batch dimension, if the network runs with one; else None."""
    batched = map_tensors(lambda tensor: tensor[None], inputs)
    try:
        on_meta_or_cpu(lambda device: forward(model, batched, device=device))
    except Exception:  # noqa: BLE001 - that was not the reason
        return None
    shapes = [tuple(tensor.shape) for tensor in tensors(batched)]
    if not shapes:
        return None
    advice = f"The network runs on {', '.join(map(str, shapes))}: add a batch dimension, example_inputs[None]."
    remedy = {"input_shape": ",".join(map(str, shapes[0][1:]))} if len(shapes) == 1 else {}
    return ForwardError(f"{error} {advice}", remedy=remedy)


_QUOTED = 200
"""Number of characters quoted from an error message of other code."""
_SHAPE_ERRORS = (RuntimeError, ValueError, IndexError, AssertionError)


def _is_about_shapes(error: Exception) -> bool:
    """True if code of PyTorch or of a package of networks raised an error of a type that misfitting shapes cause."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = "" if frame is None else str(frame.tb_frame.f_globals.get("__name__", ""))
    known = raised_in.partition(".")[0] in ("torch", "torchvision", "timm", "bnprune")
    return isinstance(error, _SHAPE_ERRORS) and known and not raised_in.startswith("torch.cuda")


def _shape_in(inputs: Any) -> list[int]:
    """Return the numbers of inputs that are a shape where a tensor was meant, such as (1, 3, 224, 224); or none."""
    args, kwargs = inputs
    numbers = list(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else list(args)
    is_shape = len(numbers) > 1 and not kwargs and all(type(number) is int for number in numbers)
    return numbers if is_shape else []
