"""Criteria that need calibration data: statistics measured on the dense network, and scores computed from them.

Each criterion has two functions: one measures a statistic per channel in one pass over the batches, the other combines
the statistics of the channels of a unit. The first depends on the network only, so it runs once, however often the
channels are scored (for gates, for other units of attention heads, for several targets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.modules import temporary_mode
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.ops.convolution import prunes_whole_groups
from bnprune.channels.torch_internals import BatchNorm, Convolution
from bnprune.channels.union_find import Ids
from bnprune.errors import ConfigError, PruningError, first_line
from bnprune.pruning.calibration import Calibration, device_of, forward_batches, forward_errors, inputs_of, labels_of
from bnprune.pruning.scores import Reduce, Scores, Statistics, Tensors, reduce_by_unit

# -- activation --------------------------------------------------------------------------------------------------------


@preserve_thread_state
def read_variances(model: nn.Module, calibration: Calibration) -> Statistics:
    """Return the variance that each input channel contributes to the output of the layers that read it.

    For channel c of a convolution or linear layer with weight W, it is Var[x_c]·‖W[:, c]‖², with the variance over
    images, positions, and calls of the layer. Channels of one position in every group, or of a whole group, count
    together.

    Raises:
        PruningError: An activation is not finite.
    """
    moments: dict[str, RunningMoments] = {}
    with temporary_mode(model, training=False) as modules, _measured_inputs(modules, moments):
        for _ in forward_batches(model, calibration.batches):
            pass
    return dict(_contributions(name, modules[name], measured.variances(name)) for name, measured in moments.items())


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of each channel over the values seen so far, float64 on the CPU."""

    count: int
    mean: torch.Tensor
    """Shape (Ci,)."""
    deviations: torch.Tensor
    """Sums of squared deviations from the mean, shape (Ci,)."""

    @classmethod
    def of(cls, channels: torch.Tensor) -> RunningMoments:
        """Return the moments of values (Ci, values)."""
        if not channels.shape[1]:  # a layer that was given no regions, say
            nothing = torch.zeros(len(channels), dtype=torch.float64)
            return cls(0, nothing, nothing)
        wide = channels if channels.dtype == torch.float64 else channels.float()
        variance, mean = torch.var_mean(wide, 1, correction=0)
        count = channels.shape[1]
        return cls(count, mean.double().cpu(), variance.double().cpu() * count)

    def __add__(self, other: RunningMoments) -> RunningMoments:
        """Return the moments over both sets of values (Chan, Golub & LeVeque 1983), without loss of precision."""
        count, apart = max(self.count + other.count, 1), other.mean - self.mean
        between = apart.square() * (self.count * other.count / count)
        return RunningMoments(
            count, self.mean + apart * (other.count / count), self.deviations + other.deviations + between
        )

    def variances(self, layer: str) -> torch.Tensor:
        """Return the variance of each channel, shape (Ci,).

        Raises:
            PruningError: A value was not finite.
        """
        if not self.deviations.isfinite().all():
            raise PruningError(f"{layer}: not all activations are finite on the calibration data.")
        return self.deviations / max(self.count, 1)


@contextmanager
def _measured_inputs(modules: Mapping[str, nn.Module], moments: dict[str, RunningMoments]) -> Iterator[None]:
    """Add up the moments of the inputs of each layer in every forward pass."""
    handles = []
    for name, layer in modules.items():
        if not isinstance(layer, nn.Linear | Convolution):
            continue

        def add(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            measured = RunningMoments.of(_channels_first(layer, args[0] if args else kwargs["input"]))
            moments[name] = moments[name] + measured if name in moments else measured

        handles.append(layer.register_forward_pre_hook(add, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _channels_first(layer: nn.Linear | Convolution, x: torch.Tensor) -> torch.Tensor:
    """Return an input as (Ci, values); an input without a batch dimension is a batch of one."""
    if isinstance(layer, nn.Linear):
        return x.detach().reshape(-1, x.shape[-1]).T
    dims = len(layer.kernel_size) + 2
    batched = x if x.dim() == dims else x[None]
    return batched.detach().transpose(0, 1).flatten(1)


def _contributions(name: str, layer: Any, variances: torch.Tensor) -> tuple[tuple[str, int], torch.Tensor]:
    """Return Var[x_c]·‖W[:, c]‖² along the dimension of the weight that is cut if input channels are removed."""
    weight: torch.Tensor = layer.weight.detach().double().cpu()
    tensor = f"{name}.weight".removeprefix(".")
    if getattr(layer, "transposed", False):  # (Ci, Co/g, K...)
        return (tensor, 0), variances * weight.square().flatten(1).sum(1)
    groups = getattr(layer, "groups", 1)
    squares = weight.square().flatten(2).sum(2) if weight.dim() > 2 else weight.square()  # (Co, Ci/g)
    by_group = variances.view(groups, -1) * squares.view(groups, -1, squares.shape[1]).sum(1)  # (g, Ci/g)
    outputs = squares.shape[0] // groups
    if groups > 1 and prunes_whole_groups(groups, squares.shape[1], outputs):
        return (tensor, 0), (by_group.sum(1) / outputs).repeat_interleave(outputs)
    return (tensor, 1), by_group.sum(0)


def activation(graph: ChannelGraph, tensors: Tensors, reduce: Reduce, statistics: Statistics) -> Scores:
    """Score a unit by the standard deviation that it contributes to the output of the layers that read it.

    A layer y = W x loses a part of variance σ²·‖W[:, c]‖² of its output if channel c, of standard deviation σ over the
    data, is removed; its mean can be compensated. If several layers read a unit, `reduce` combines their scores.
    """
    values = [_deviations(graph, axis, contributed) for axis, contributed in statistics.items() if axis in graph.axes]
    return np.where(graph.gamma_count > 0, reduce_by_unit(graph, values, reduce), np.inf)


def _deviations(
    graph: ChannelGraph, axis: tuple[str, int], contributed: torch.Tensor
) -> tuple[Ids, NDArray[np.float64]]:
    """Return the units along a dimension of a weight, each once, and their scores for this layer."""
    by_unit = np.zeros(graph.unit_count)
    units = graph.units(graph.axes[axis])
    np.add.at(by_unit, units, contributed.numpy())
    read = np.unique(units)
    return read, np.sqrt(by_unit[read])


# -- taylor ------------------------------------------------------------------------------------------------------------


@preserve_thread_state
def gate_gradients(model: nn.Module, calibration: Calibration) -> Statistics:
    """Return sqrt(E[(γ·∂L/∂γ + β·∂L/∂β)²]) of each BatchNorm channel, the mean over batches.

    It estimates to first order by how much the loss L changes if γ and β become zero: Molchanov et al., "Importance
    Estimation for Neural Network Pruning", CVPR 2019, equations 8 and 9, on the scale and shift of BatchNorms. L is the
    mean loss of a batch in eval mode.

    Raises:
        ConfigError: The batches have no labels, or the loss does not fit the outputs.
        PruningError: A gradient is not finite.
    """
    squares: dict[str, torch.Tensor] = {}
    with temporary_mode(model, training=False) as modules:
        norms = {name: norm for name, norm in modules.items() if isinstance(norm, BatchNorm) and norm.affine}
        for batch in calibration.batches:
            for name, effect in _effects(model, norms, batch, calibration.loss).items():
                squares[name] = squares.get(name, torch.zeros(())) + effect.square()
    return {
        (f"{name}.weight".removeprefix("."), 0): _root_mean(name, total, calibration) for name, total in squares.items()
    }


def _effects(
    model: nn.Module, norms: Mapping[str, nn.Module], batch: Any, loss: Callable[[Any, Any], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return γ·∂L/∂γ + β·∂L/∂β of each channel that takes part in the loss of a batch."""
    device = device_of(model)
    labels = labels_of(batch)
    if labels is None:
        raise ConfigError("criterion: 'taylor' needs labels: give batches of (inputs, labels).", argument="calibrate")
    copies = {
        f"{name}.{leaf}".removeprefix("."): getattr(norm, leaf).detach().clone().requires_grad_()
        for name, norm in norms.items()
        for leaf in ("weight", "bias")
    }
    args, kwargs = inputs_of(batch, device)
    with torch.enable_grad():
        with forward_errors():
            output = torch.func.functional_call(model, copies, args, kwargs)
        value = _loss(loss, output, labels.to(device) if isinstance(labels, torch.Tensor) else labels)
        gradients = torch.autograd.grad(value, list(copies.values()), allow_unused=True)
    terms = {
        key: (copy * gradient).detach().double().cpu()
        for (key, copy), gradient in zip(copies.items(), gradients, strict=True)
        if gradient is not None
    }
    sums: dict[str, torch.Tensor] = {}
    for key, term in terms.items():
        name = key.rpartition(".")[0]
        sums[name] = sums[name] + term if name in sums else term
    return sums


def _loss(loss: Callable[[Any, Any], torch.Tensor], output: Any, labels: Any) -> torch.Tensor:
    """Return the mean loss of a batch.

    Raises:
        ConfigError: It fails, or is no scalar with a gradient.
    """
    try:
        value = loss(output, labels)
    except Exception as error:
        raise ConfigError(
            f"criterion: the loss of the calibration data fails: {first_line(error)}", argument="calibrate"
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ConfigError("criterion: the loss must return one number with a gradient.", argument="calibrate")
    return value.reshape(())


def _root_mean(name: str, total: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    if not total.isfinite().all():
        raise PruningError(f"{name}: not all gradients are finite on the calibration data.")
    return (total / len(calibration.batches)).sqrt()


def taylor(graph: ChannelGraph, tensors: Tensors, reduce: Reduce, statistics: Statistics) -> Scores:
    """Score a unit by the change of the loss if the γ and β of its BatchNorm channels become zero, to first order."""
    values = [
        (graph.gamma_units[name], number.numpy())
        for (name, _), number in statistics.items()
        if name in graph.gamma_units
    ]
    return reduce_by_unit(graph, values, reduce)
