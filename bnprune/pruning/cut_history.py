"""What a network that was cut remembers: its plans, the shape of its input, and the shapes of its tensors.

The last tell if it was changed since. All are attributes of plain text, so that copies of the network (averaged
weights, a pickle) have them as well, and need no bnprune.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from bnprune.channels.pytrees import as_inputs
from bnprune.pruning.plan import PruningPlan

_PLANS = "_bnprune_plans"
"""Attribute of a slim network: the plans it was cut by, as JSON."""
_SHAPES = "_bnprune_shapes"
"""Attribute: the shapes of its state, as JSON; or a sentence about a change before the last cut."""
_INPUT = "_bnprune_input"
"""Attribute: the shape of one input, without the batch, as JSON."""
Shapes = dict[str, list[int]]


def record_plan(slim: nn.Module, model: nn.Module, plan: PruningPlan) -> None:
    """Store on a slim network the plans it was cut by, the last one being `plan`.

    `bnprune.save` writes them into the checkpoint, also if the network was cut more than once.
    """
    earlier = vars(model).get(_PLANS, ())
    setattr(slim, _PLANS, (*earlier, plan.to_json(indent=None)))
    record_shapes(slim)
    if earlier and (change := change_since(model)):  # the plans do not lead from one network to the next any more
        setattr(slim, _SHAPES, json.dumps(change))


def plans_of(model: nn.Module) -> tuple[PruningPlan, ...]:
    """Return the plans a network was cut by, in order; none for a dense one."""
    return tuple(PruningPlan.from_json(text) for text in vars(model).get(_PLANS, ()))


def record_input(slim: nn.Module, example_inputs: Any) -> None:
    """Store the shape of one input on a slim network.

    Nothing is stored unless the example input is a single floating-point tensor with a batch dimension.
    """
    args, kwargs = as_inputs(example_inputs)
    only = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(only, torch.Tensor) and only.is_floating_point() and only.dim() > 1:
        setattr(slim, _INPUT, json.dumps(list(only.shape[1:])))


def input_of(model: nn.Module) -> tuple[int, ...] | None:
    """Return the recorded shape of one input; None if none was recorded."""
    shape = json.loads(vars(model).get(_INPUT, "null"))
    return None if shape is None else tuple(shape)


def record_shapes(model: nn.Module) -> None:
    """Store the shapes of a network's tensors on it, for `change_since`."""
    setattr(model, _SHAPES, json.dumps(_shapes(model)))


def change_since(model: nn.Module) -> str | None:
    """Return how the tensors differ from those that the network had when they were recorded; None if they do not."""
    recorded: Shapes | str | None = json.loads(vars(model).get(_SHAPES, "null"))
    if recorded is None or isinstance(recorded, str):
        return recorded
    present = _shapes(model)
    for name in [*recorded, *present]:
        old, new = recorded.get(name), present.get(name)
        if old is None:
            return f"{name} is new"
        if new is None:
            return f"{name} is missing"
        if old != new:
            return f"{name} had shape {tuple(old)}, and has {tuple(new)} now"
    return None


def _shapes(model: nn.Module) -> Shapes:
    state = model.state_dict().items()
    return {name: list(tensor.shape) for name, tensor in state if isinstance(tensor, torch.Tensor)}
