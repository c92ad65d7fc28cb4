"""Compensation: the constant outputs of removed channels are added to the biases of the layers that read them.

A channel with γ = 0 writes the constant act(β). Removing it removes this constant, times a weight, from every output of
the next layer, which is why accuracy can fall sharply right after a cut (Liu et al., ICCV 2017, do not treat β). For
a linear layer with weight W, bias b and removed inputs R that hold constants c:

    y = W x + b  =  W[:, kept] x[kept] + (b + W[:, R] c)          the last term is the new bias

The contribution W[:, R] c is measured by running the layer with and without its removed inputs
(`bnprune.recovery.input_losses`). So residual additions, concatenations, pooling and layers with their own forward
pass need no rules.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bnprune.channels.modules import modules_by_name
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import Inputs, as_inputs, map_tensors
from bnprune.pruning.bias_folding import sole_norms
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import named_tensors
from bnprune.recovery.input_losses import (
    LayerLoss,
    is_near,
    is_transposed,
    layers_that_lose_inputs,
    measure_constants,
    measure_means,
    run_double,
)

Outcome = Literal["exact", "interior", "mean", "none"]
_NO_CLOSER = "the outputs did not get closer to those of the dense network"
_INTERIOR = 0.5
"""Smallest share of positions with the same loss for them to be the interior of a map, and the others its border."""


@dataclass(frozen=True, slots=True)
class Compensation:
    """The result of `bnprune.compensate` for one layer that lost input channels.

    Example::

        result = bnprune.prune(model, example_inputs, ratio=0.5)
        for layer in bnprune.compensate(model, result.model, result.plan, example_inputs):
            print(f"{layer.site}: {layer.compensated} of {layer.channels}, {layer.outcome}")
    """

    site: str
    """Name of the convolution or linear layer."""
    channels: int
    """Input channels it lost."""
    compensated: int
    """Those of them whose contribution is now in the bias."""
    outcome: Outcome
    """For a network in which γ of the removed channels is 0: "exact": the output is as before; "interior": it is,
    except at the border of the map; "mean": it is right on average over positions or, with data, over the batches;
    "none": nothing was changed."""
    reason: str = ""
    """The reason if nothing, or not everything, was compensated."""


@preserve_thread_state
def compensate(
    model: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    batches: Iterable[Any] | None = None,
) -> tuple[Compensation, ...]:
    """Add the contribution of removed channels to the biases of the slim network, in place.

    If a layer has no bias, the running mean of the BatchNorm that alone reads its output is changed instead. Everything
    is computed in float64, from the dense network. If the outputs do not get closer to those of the dense network, the
    slim network stays as it was.

    Args:
        model: The dense network; left as it was.
        slim: The network that `plan` made of it.
        plan: The cut.
        example_inputs: As for `bnprune.prune`.
        batches: Inputs of the network (a tensor, or a mapping of keyword arguments), or (inputs, ...) pairs as a
            DataLoader yields them. With them, the mean contribution over the batches is used. Without, γ of removed
            channels is taken to be 0.

    Returns:
        One entry per layer that lost inputs.

    Raises:
        ForwardError: Without batches: the network works on fewer than two inputs, of noise and those given.
        ValueError: `batches` is empty.

    Example::

        result = bnprune.prune(model, example_inputs, ratio=0.5)
        bnprune.compensate(model, result.model, result.plan, example_inputs)
    """
    device = torch.device("cpu") if _device_of(model).type == "mps" else _device_of(model)  # mps has no float64
    reference = copy.deepcopy(model).to(device).double()
    losses = dict(layers_that_lose_inputs(reference, plan))
    inputs: Inputs = map_tensors(lambda tensor: tensor.to(device), as_inputs(example_inputs))
    if not losses:
        return ()
    compared: list[Inputs] = []
    if batches is None:
        compared = measure_constants(zero_removed_gammas(reference, plan), inputs, losses)
    else:
        measure_means(reference, batches, device, losses)
    before = copy.deepcopy(slim)
    results = _change_biases(slim, model, plan, inputs, losses, by_mean=batches is not None)
    if _error(reference, slim, compared) > _error(reference, before, compared):
        slim.load_state_dict(before.state_dict())
        results = [Compensation(one.site, one.channels, 0, "none", _NO_CLOSER) for one in results]
    return tuple(results)


def zero_removed_gammas(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Set γ of removed channels to 0 and keep β, in place: for this network, compensation is exact."""
    named, modules = dict(named_tensors(model)), modules_by_name(model)
    with torch.no_grad():
        for cut in plan.cuts:
            for name, dim in cut.at:
                owner, _, leaf = name.rpartition(".")
                if dim == 0 and leaf == "weight" and hasattr(modules[owner], "running_mean"):
                    named[name][cut.removed] = 0
    return model


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))


def _error(reference: nn.Module, slim: nn.Module, compared: Sequence[Inputs]) -> float:
    """Return the mean square difference of the outputs of two networks in float64, summed over inputs."""
    double = copy.deepcopy(slim).to(_device_of(reference)).double() if compared else slim
    pairs = [
        (a, b)
        for inputs in compared
        for a, b in zip(run_double(reference, inputs), run_double(double, inputs), strict=False)
        if a.shape == b.shape and a.is_floating_point() and a.numel()
    ]
    return sum(float((a - b).square().nan_to_num(0, 0, 0).mean()) for a, b in pairs)


# -- how much to add to each output ------------------------------------------------------------------------------------


def _offset(site: str, loss: LayerLoss, *, by_mean: bool) -> tuple[torch.Tensor, Compensation]:
    """Return the number to add to each output of the dense layer, and the resulting `Compensation`."""
    channels = len(loss.removed)
    if not loss.lost:
        return torch.zeros(0, device="cpu"), Compensation(site, channels, 0, "none", "it did not run as a layer")
    if by_mean:
        total, count = loss.lost[0]
        return total / count, Compensation(site, channels, channels, "mean")
    compensated = 0 if loss.is_constant is None else int(loss.is_constant.sum())
    first = loss.lost[0]
    if not compensated:
        return first, Compensation(site, channels, 0, "none", "the removed contribution depends on the input")
    if not all(lost.shape == first.shape and is_near(first, lost).all() for lost in loss.lost):
        return first, Compensation(
            site, channels, 0, "none", "it runs more than once, and the removed contribution differs each time"
        )
    offset, outcome, reason = _over_positions(first)
    if compensated < channels:
        outcome, reason = "mean", "part of the removed contribution depends on the input"
    return offset, Compensation(site, channels, compensated, outcome, reason)


def _over_positions(lost: torch.Tensor) -> tuple[torch.Tensor, Outcome, str]:
    """Return one number per output for a loss at all positions; `lost` is (outputs, positions).

    A padded convolution loses less at the border, where padding replaces some of the removed inputs. The median
    then fits the interior exactly; the mean is taken if the interior is small.
    """
    if is_near(lost[:, :1], lost).all():
        return lost[:, 0], "exact", ""
    middle = lost.median(1).values
    is_closer = (lost - middle[:, None]).square().sum() <= lost.square().sum()  # false if the border dominates
    if is_closer and float(is_near(middle[:, None], lost).all(0).double().mean()) > _INTERIOR:
        return middle, "interior", "the removed contribution differs at the border (padding)"
    return lost.mean(1), "mean", "the removed contribution differs at most positions (padding on a small map, a stride)"


# -- changing biases ---------------------------------------------------------------------------------------------------


def _change_biases(
    slim: nn.Module,
    model: nn.Module,
    plan: PruningPlan,
    inputs: Inputs,
    losses: dict[str, LayerLoss],
    *,
    by_mean: bool,
) -> list[Compensation]:
    norms, shared, gated = sole_norms(model, inputs), _sharing_modules(model), {gate.at for gate in plan.gates}
    results = []
    for site, loss in losses.items():
        offset, result = _offset(site, loss, by_mean=by_mean)
        problem = ""
        if result.compensated and bool(offset.any()):
            norm = gated_name(norms[site], gated) if site in norms else None
            offset = _of_kept_outputs(plan, site, loss.layer, offset)
            problem = _SHARED if site in shared else _add(slim, site, norm, offset, additive=loss.bias_is_additive)
        results.append(Compensation(site, result.channels, 0, "none", problem) if problem else result)
    return results


_SHARED = "its weight or bias belongs to another layer, too"


def _sharing_modules(model: nn.Module) -> set[str]:
    """Return the names of modules that share a weight or bias with another module."""
    modules = modules_by_name(model)
    owners = Counter(id(tensor) for module in modules.values() for tensor in module._parameters.values())
    return {
        name
        for name, module in modules.items()
        if any(tensor is not None and owners[id(tensor)] > 1 for tensor in module._parameters.values())
    }


def _of_kept_outputs(plan: PruningPlan, site: str, layer: nn.Module, offset: torch.Tensor) -> torch.Tensor:
    """Return the offsets of the outputs that the slim layer still has."""
    keeps = {at: cut.keep for cut in plan.cuts for at in cut.at}
    output_dim = 1 if is_transposed(layer) else 0
    kept = keeps.get((f"{site}.bias", 0)) or keeps.get((f"{site}.weight", output_dim))
    return offset if kept is None else offset[list(kept)]


def _add(slim: nn.Module, site: str, norm: str | None, offset: torch.Tensor, *, additive: bool) -> str:
    """Add to the bias of a slim layer, or subtract from the running mean after it; return a reason if neither works.

    BatchNorm subtracts its running mean, so that x + offset with mean m is normalised as x with mean m - offset.
    """
    bias = slim.get_submodule(site).bias
    mean = None if norm is None else getattr(slim.get_submodule(norm), "running_mean", None)
    target, sign = (bias, 1) if isinstance(bias, torch.Tensor) else (mean, -1)
    if not isinstance(target, torch.Tensor):
        return "it has no bias, and its output is not read by a single BatchNorm alone"
    if not additive or target.shape != offset.shape:
        return "adding to its bias does not add the same to its output"
    with torch.no_grad():
        target += sign * offset.to(target.device, target.dtype)
    return ""
