"""`carry_over`: the optimizer of a dense network, for the slim network that was cut from it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from bnprune.errors import PruningError
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.pruner import PruningResult
from bnprune.training.optimizer_rates import torch_optimizer


def carry_over(optimizer: Any, result: PruningResult) -> torch.optim.Optimizer:
    """Return an optimizer for the slim network, with the state of the optimizer of the dense network.

    Parameter groups keep their settings, and state of the shape of a parameter (momentum, the averages of Adam) is cut
    like the parameter. State of other shapes (the factors of Adafactor) is dropped, and begins anew.

    Learning-rate schedulers and `bnprune.sparsify` hold on to the old optimizer: make new ones. After a schedule that
    ended at zero, set the learning rate first (`group["lr"]` of each group in `optimizer.param_groups`). An averaged
    copy of the dense network is cut by `bnprune.apply(result.plan, copy)`.

    Example::

        result = bnprune.prune(model, example_inputs, ratio=0.5)
        optimizer = bnprune.carry_over(optimizer, result)
        model = result.model

    Args:
        optimizer: The optimizer of the dense network, which is left as it was. It may be wrapped by accelerate.
        result: The result of pruning this network in the same process.

    Returns:
        A new optimizer of the same class, without hooks.

    Raises:
        PruningError: The optimizer holds parameters of another network, or state that cannot be cut.
    """
    old = torch_optimizer(optimizer)
    slim = dict(result.model.named_parameters())
    gates = {gate.at for gate in result.plan.gates}
    cuts = _cuts(result.plan)
    new = copy.copy(old)  # made from its state, as from a pickle: hooks are left behind
    if lost := [name for name, value in vars(old).items() if name not in vars(new) and _holds_parameters(value)]:
        raise PruningError(
            f"carry_over: {type(old).__name__} has state of its own ({', '.join(sorted(lost))}) that cannot be cut. "
            "Build a new optimizer for the slim network."
        )
    new.state = defaultdict(dict)
    new.param_groups = []
    for group in old.param_groups:
        entry = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", *_OF_SCHEDULES)}
        entry["params"] = []
        names = []
        for parameter in group["params"]:
            name = _name_of(parameter, result)
            slim_name = gated_name(name, gates)
            if slim_name not in slim:  # a bias that was folded away
                continue
            target = slim[slim_name]
            entry["params"].append(target)
            names.append(slim_name)
            if parameter in old.state:
                new.state[target] = _cut_state(old.state[parameter], parameter, target, cuts.get(name, {}))
        if "param_names" in group:
            entry["param_names"] = names
        new.param_groups.append(entry)
    return new


def _holds_parameters(value: Any) -> bool:
    """True for attributes that refer to the dense network: parameters, or another optimizer."""
    items = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(item, torch.Tensor | torch.optim.Optimizer) for item in items)


_OF_SCHEDULES = ("initial_lr", "max_lr", "min_lr")
"""Settings that a learning-rate scheduler left behind; a new one starts from the present learning rate."""


def _name_of(parameter: torch.Tensor, result: PruningResult) -> str:
    name = result.dense_parameters.get(id(parameter))
    if name is None:
        raise PruningError(
            "carry_over: the optimizer holds parameters that are not of the network that was pruned. Give the "
            "optimizer of that network, and a result from the same process."
        )
    return name


def _cuts(plan: PruningPlan) -> dict[str, dict[int, torch.Tensor]]:
    """Return the kept indices of each tensor that is cut, by dimension."""
    kept: dict[str, dict[int, torch.Tensor]] = {}
    for cut in plan.cuts:
        for name, dim in cut.at:
            kept.setdefault(name, {})[dim] = torch.tensor(cut.keep)
    return kept


def _cut_state(
    state: Mapping[str, Any], parameter: torch.Tensor, target: torch.Tensor, cuts: Mapping[int, torch.Tensor]
) -> dict[str, Any]:
    cut: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            cut[key] = copy.deepcopy(value)
        elif value.shape == parameter.shape:
            cut[key] = _sliced(value, cuts)
            if cut[key].shape != target.shape:
                raise PruningError("carry_over: the slim network has other shapes than after the cut.")
        elif value.numel() == 1:  # the number of steps
            cut[key] = value.clone()
        else:
            return {}
    return cut


def _sliced(value: torch.Tensor, cuts: Mapping[int, torch.Tensor]) -> torch.Tensor:
    for dim, keep in cuts.items():
        value = value.index_select(dim, keep.to(value.device))
    return value.clone(memory_format=torch.preserve_format)
