"""Compensation: what removed channels still said goes into the biases behind them.

A channel with γ = 0 writes act(β), a constant, into whatever reads it. Cutting it off takes W · act(β) away from every
output of the next layer, which is why accuracies collapse right after a cut (Liu et al., ICCV 2017, set β aside). The
constant is found by running the network, so residual adds, concatenations and pooling need no rules: a channel that
arrives as one number wherever it is read can be made up for, and one that does not (multiplied by a gate) cannot.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.modules import set_mode, still, walk
from bnprune.channels.trees import as_inputs
from bnprune.pruning.float64 import feeds, run
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import named_tensors

Outcome = Literal["exact", "interior", "mean", "none"]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EQUAL = 1e-9
"""Relative difference below which values count as the same constant."""
_MOST = 0.5
"""Share of positions that must hold the constant; the others are borders."""


@dataclass(frozen=True, slots=True)
class Compensation:
    """What was done for one layer that lost input channels."""

    site: str
    """Name of the convolution or linear layer."""
    channels: int
    """Input channels it lost."""
    made_up: int
    """Those whose contribution is in the bias now."""
    outcome: Outcome
    """"exact": everywhere, were γ of the removed channels 0; "interior": everywhere but where zero padding or a border
    reaches; "mean": on average over the batches given; "none": not at all."""
    reason: str = ""
    """Why not, or not everywhere."""


@dataclass
class _Reading:
    """What one layer was given in the channels it loses."""

    layer: nn.Module
    removed: list[int]
    values: list[torch.Tensor] = field(default_factory=list)
    """Per call: (removed channels, positions), or their (sum, count) over data."""
    follower: str | None = None
    """BatchNorm that normalises the layer's output."""
    problem: str = ""


def compensate(
    model: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    batches: Iterable[Any] | None = None,
) -> tuple[Compensation, ...]:
    """Add what removed channels contributed to the biases of the slim network, in place.

    Where a layer has no bias, the running mean of the BatchNorm right behind it takes the contribution instead.
    Everything is computed in float64, from the dense network.

    Args:
        model: The dense network; it is left as it was.
        slim: The network that `plan` made of it.
        plan: What was cut.
        example_inputs: As for `bnprune.prune`.
        batches: Inputs of the network, or (inputs, ...) pairs as a DataLoader yields them. With them, the mean of what
            each removed channel really carried is used; without, γ of removed channels is taken to be 0.

    Returns:
        What was done, per layer that lost inputs.
    """
    reference = copy.deepcopy(model).double()
    readings = {site: _Reading(layer, removed) for site, layer, removed in _losing(reference, plan)}
    if batches is None:
        silence(reference, plan)
        for inputs in list(feeds(as_inputs(example_inputs), seed=0))[:2]:
            with _reading(reference, readings), suppress(Exception):  # noise may be nothing the network can digest
                run(reference, inputs, 0, lambda func, args, kwargs, output: output)
    else:
        with _reading(reference, readings, summed=True):
            _forward(reference, batches)
    gated = {gate.at for gate in plan.gates}
    rows = {name: cut.keep for cut in plan.cuts for name, dim in cut.at if dim == 0}
    return tuple(
        _make_up(site, reading, slim, gated, rows.get(f"{site}.weight".removeprefix(".")), exact=batches is None)
        for site, reading in readings.items()
    )


def silence(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Set γ of removed channels to 0 and keep β, in place: the network that compensation is exact for."""
    named, modules = dict(named_tensors(model)), walk(model)
    with torch.no_grad():
        for cut in plan.cuts:
            for name, dim in cut.at:
                owner, _, leaf = name.rpartition(".")
                if dim == 0 and leaf == "weight" and hasattr(modules[owner], "running_mean"):
                    named[name][cut.removed] = 0
    return model


def _losing(model: nn.Module, plan: PruningPlan) -> Iterator[tuple[str, nn.Module, list[int]]]:
    """Yield the layers that lose inputs, and which positions of the weight's input side."""
    modules = walk(model)
    for cut in plan.cuts:
        for name, dim in cut.at:
            site, _, leaf = name.rpartition(".")
            layer = modules.get(site)
            transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            if leaf == "weight" and dim == (0 if transposed else 1) and isinstance(layer, nn.Linear | _CONV):
                yield site, layer, cut.removed


_CONV = nn.modules.conv._ConvNd


@contextmanager
def _reading(model: nn.Module, readings: Mapping[str, _Reading], *, summed: bool = False) -> Iterator[None]:
    """Note what layers are given, and which BatchNorm takes their output."""
    names = {id(module): name for name, module in walk(model).items()}
    outputs: dict[int, tuple[torch.Tensor, str]] = {}
    hooks = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        reading = readings[names[id(module)]]
        taken = _channels(reading.layer, args[0], reading.removed)
        if summed:
            taken = torch.stack([taken.sum(1), torch.full_like(taken[:, 0], taken.shape[1])], 1)
        reading.values.append(taken)

    def behind(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        outputs[id(output)] = output, names[id(module)]

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        _, site = outputs.get(id(args[0]), (None, ""))
        if site in readings and getattr(module, "running_mean", None) is not None:
            readings[site].follower = names[id(module)]

    for module in walk(model).values():
        if names[id(module)] in readings:
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(behind)]
        elif hasattr(module, "running_mean"):
            hooks.append(module.register_forward_pre_hook(enter))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _channels(layer: nn.Module, x: torch.Tensor, removed: Sequence[int]) -> torch.Tensor:
    """Return what arrives in removed channels, shape (channels, positions), every group of a grouped layer included."""
    rows = x.reshape(-1, x.shape[-1]).t() if isinstance(layer, nn.Linear) else x.transpose(0, 1).flatten(1)
    return rows[_everywhere(layer, removed)].detach().double()


def _everywhere(layer: nn.Module, removed: Sequence[int]) -> list[int]:
    """Input channels of all groups whose position in the group is removed."""
    groups = getattr(layer, "groups", 1)
    each = getattr(layer, "in_channels", 0) // groups
    return [group * each + position for group in range(groups) for position in removed]


def _forward(model: nn.Module, batches: Iterable[Any]) -> None:
    with still(model):
        set_mode(model, training=False)
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            model(inputs.double() if inputs.is_floating_point() else inputs)


def _make_up(
    site: str, reading: _Reading, slim: nn.Module, gated: set[str], rows: Sequence[int] | None, *, exact: bool
) -> Compensation:
    lost = len(reading.removed)
    layer = reading.layer
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return Compensation(site, lost, 0, "none", "a transposed convolution adds another sum at every position")
    if not reading.values:
        return Compensation(site, lost, 0, "none", "it did not run as a layer")
    values, steady, border = _constants(reading.values) if exact else _means(reading.values)
    if not steady.any():
        return Compensation(site, lost, 0, "none", "what it lost is not constant: it is multiplied by something")
    offset = _offset(layer, reading.removed, torch.where(steady, values, 0.0))
    offset = offset if rows is None else offset[list(rows)]
    target = slim.get_submodule(gated_name(site, gated))
    taker: Any = slim.get_submodule(gated_name(reading.follower, gated)) if reading.follower else None
    tensor, sign = (target.bias, 1) if target.bias is not None else (getattr(taker, "running_mean", None), -1)
    if isinstance(tensor, torch.Tensor):
        with torch.no_grad():
            tensor += sign * offset.to(tensor.device, tensor.dtype)
    elif offset.any():
        return Compensation(site, lost, 0, "none", "it has no bias, and no BatchNorm is right behind it")
    made_up, whole = int(steady.sum()) // getattr(layer, "groups", 1), bool(steady.all())
    if exact and whole and not values.any():
        return Compensation(site, lost, made_up, "exact", "what it lost was zero")
    return Compensation(site, lost, made_up, *_outcome(layer, whole=whole, border=border, exact=exact))


def _constants(calls: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return each channel's constant, whether it is one, and whether some of them are another number at borders."""
    seen = torch.cat(list(calls), 1)
    middle = seen.median(1).values
    near = (seen - middle[:, None]).abs() <= _EQUAL * middle.abs().clamp(min=1.0)[:, None]
    per_call = torch.stack([part.double().mean(1) for part in near.split([call.shape[1] for call in calls], 1)])
    steady = (per_call > _MOST).all(0)
    return middle, steady, bool((steady & ~near.all(1)).any())


def _means(sums: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, bool]:
    total = torch.stack(list(sums)).sum(0)
    return total[:, 0] / total[:, 1], torch.ones(len(total), dtype=torch.bool), False


def _offset(layer: nn.Module, removed: Sequence[int], constants: torch.Tensor) -> torch.Tensor:
    """Return what constant inputs in removed channels add to each output, away from borders; shape (outputs,)."""
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        return weight.detach()[:, list(removed)] @ constants
    assert isinstance(layer, _CONVOLUTIONS)
    image = torch.zeros(layer.in_channels, dtype=torch.float64)
    image[_everywhere(layer, removed)] = constants
    extent = [dilation * (size - 1) + 1 for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    field_of_view = image.view(1, -1, *[1] * len(extent)).expand(1, -1, *extent)
    convolve = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}[
        next(kind for kind in _CONVOLUTIONS if isinstance(layer, kind))
    ]
    return convolve(field_of_view, weight.detach(), None, 1, 0, layer.dilation, layer.groups).flatten()


def _outcome(layer: nn.Module, *, whole: bool, border: bool, exact: bool) -> tuple[Outcome, str]:
    if not exact:
        return "mean", ""
    if not whole:
        return "interior", "some of what it lost is not constant: it is multiplied by something"
    if _pads_with_zeros(layer):
        return "interior", "zero padding: at the border, fewer of the inputs it lost were not zero"
    return ("interior", "a border before it changes the constant there") if border else ("exact", "")


def _pads_with_zeros(layer: nn.Module) -> bool:
    if not isinstance(layer, _CONVOLUTIONS) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return max(layer.kernel_size) > 1 if layer.padding == "same" else any(size != 0 for size in layer.padding)
