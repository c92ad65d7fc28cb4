"""Measuring the contribution of removed input channels to the outputs of the layers that read them.

A layer is run twice on the same input: as it is, and with its removed channels set to zero. The difference of its
outputs is the contribution that the cut removes. Without data, this is done on noise, only for channels that have the
same values for different inputs: constants, such as act(β) of a channel with γ = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import modules_by_name
from bnprune.channels.pytrees import Inputs, map_tensors, tensors
from bnprune.channels.torch_internals import Convolution
from bnprune.errors import ForwardError, first_line
from bnprune.pruning.calibration import inputs_of
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.proof_forward import run, trial_inputs

_EQUAL = 1e-9
"""Largest difference, relative to the first number or to 1, of two numbers that count as equal."""


@dataclass
class LayerLoss:
    """A layer that loses input channels, and the measurements of their contribution."""

    layer: nn.Module
    removed: list[int]
    """Removed input channels; of every group, if the layer has groups."""
    first_values: list[torch.Tensor] = field(default_factory=list)
    """Values in the removed channels in the first pass, per call of the layer."""
    is_constant: torch.Tensor | None = None
    """True for removed channels with the same values in all passes, shape (removed,)."""
    calls: int = 0
    bias_is_additive: bool = True
    """True if adding a number to the bias adds it to the output."""
    lost: list[torch.Tensor] = field(default_factory=list)
    """Contribution to the output, per call: (outputs, positions) or, with data, the sums and counts (2, outputs)."""


def layers_that_lose_inputs(model: nn.Module, plan: PruningPlan) -> Iterator[tuple[str, LayerLoss]]:
    """Yield the name of every convolution and linear layer with removed input channels, and an empty measurement."""
    modules = modules_by_name(model)
    for cut in plan.cuts:
        for name, dim in cut.at:
            site, _, leaf = name.rpartition(".")
            layer = modules.get(site)
            input_dim = 0 if is_transposed(layer) else 1
            if leaf == "weight" and dim == input_dim and isinstance(layer, nn.Linear | Convolution):
                groups = 1 if is_transposed(layer) else getattr(layer, "groups", 1)
                removed = [group * cut.size + position for group in range(groups) for position in cut.removed]
                yield site, LayerLoss(layer, removed)


def is_transposed(layer: nn.Module | None) -> bool:
    """Return True for transposed convolutions, whose weight has the input channels first."""
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def run_double(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Run a network in eval mode and float64; return its output tensors."""
    return run(model, inputs)


def measure_constants(model: nn.Module, inputs: Inputs, losses: Mapping[str, LayerLoss]) -> list[Inputs]:
    """Find constant channels on different inputs, then measure their contribution.

    Returns:
        Two of the inputs on which the network works.

    Raises:
        ForwardError: The network works on fewer than two different inputs.
    """
    worked: list[Inputs] = []
    problem = ""
    for given in _different_inputs(inputs):
        try:
            with _hooked(losses, _compare_values if worked else _record_values):
                run_double(model, given)
            worked.append(given)
        except Exception as error:  # noqa: BLE001 - the code of the network may raise anything
            problem = first_line(error)
            for loss in losses.values() if not worked else ():
                loss.first_values.clear()
    if not any(_differ(worked[0], other) for other in worked[1:]):
        raise ForwardError(
            f"compensation needs two different inputs on which the network works, noise or those given ({problem}). "
            "Give batches, or leave it out."
        )
    with _hooked(losses, _record_constant_loss):
        run_double(model, worked[0])
    return [worked[0], worked[-1]]


def measure_means(
    model: nn.Module, batches: Iterable[Any], device: torch.device, losses: Mapping[str, LayerLoss]
) -> None:
    """Measure the mean contribution of all removed channels over batches.

    Raises:
        ValueError: There are no batches.
    """
    count = 0
    with _hooked(losses, _add_to_sums):
        for batch in batches:
            moved = map_tensors(lambda tensor: tensor.to(device, copy=True), inputs_of(batch))
            double = map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, moved)
            run_double(model, double)
            count += 1
    if not count:
        raise ValueError("compensate: got no batches")


def is_near(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return True for equal numbers, up to rounding."""
    return (left - right).abs() <= _EQUAL * left.abs().clamp(min=1)


def _differ(left: Inputs, right: Inputs) -> bool:
    pairs = zip(tensors(left), tensors(right), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def _different_inputs(inputs: Inputs) -> Iterator[Inputs]:
    """Yield noise with other integers (tokens, classes) in the range of those given or next to it, and the inputs."""
    generator = torch.Generator().manual_seed(0)

    def redrawn(tensor: torch.Tensor, beyond: int) -> torch.Tensor:
        if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
            return tensor
        low, high = int(tensor.min()), int(tensor.max())
        return torch.randint(low, high + 1 + beyond, tensor.shape, generator=generator, device="cpu").to(tensor)

    *noises, given = trial_inputs(inputs, seed=0)
    for noise in noises:
        yield map_tensors(lambda tensor: redrawn(tensor, 0), noise)
    if any(not tensor.is_floating_point() for tensor in tensors(inputs)):
        yield map_tensors(lambda tensor: redrawn(tensor, 1), noises[0])
    yield given


# -- hooks: called with every call of a layer, its input and its output ------------------------------------------------

_Hook = Callable[[LayerLoss, torch.Tensor, torch.Tensor], None]


@contextmanager
def _hooked(losses: Mapping[str, LayerLoss], hook: _Hook) -> Iterator[None]:
    handles = []
    for loss in losses.values():

        def call(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, loss: LayerLoss = loss
        ) -> None:
            x = args[0] if args else kwargs["input"]
            if _has_no_batch(loss.layer, x):
                x, output = x[None], output[None]
            hook(loss, x, output)

        loss.calls = 0
        handles.append(loss.layer.register_forward_hook(call, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_no_batch(layer: Any, x: torch.Tensor) -> bool:
    """True if the layer is called for one image, without a batch dimension."""
    return x.dim() == 1 + (0 if isinstance(layer, nn.Linear) else len(layer.kernel_size))


def _channel_dim(layer: nn.Module, x: torch.Tensor) -> int:
    return x.dim() - 1 if isinstance(layer, nn.Linear) else 1


def _removed_values(loss: LayerLoss, x: torch.Tensor) -> torch.Tensor:
    """Return the values in the removed channels of an input, channels first."""
    return x.detach().movedim(_channel_dim(loss.layer, x), 0)[loss.removed]


def _record_values(loss: LayerLoss, x: torch.Tensor, _: torch.Tensor) -> None:
    loss.first_values.append(_removed_values(loss, x))


def _compare_values(loss: LayerLoss, x: torch.Tensor, _: torch.Tensor) -> None:
    values = _removed_values(loss, x)
    same = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    if loss.calls < len(loss.first_values) and (first := loss.first_values[loss.calls]).shape == values.shape:
        same = is_near(first, values).flatten(1).all(1)
    loss.is_constant = same if loss.is_constant is None else loss.is_constant & same
    loss.calls += 1


def _record_constant_loss(loss: LayerLoss, x: torch.Tensor, output: torch.Tensor) -> None:
    """Record the contribution of the constant channels at every position."""
    if loss.is_constant is None:
        return
    constant = [channel for channel, same in zip(loss.removed, loss.is_constant.tolist(), strict=True) if same]
    maps = _contribution(loss, x, output, constant)
    if maps.dim() > 2:
        loss.lost += list(maps.movedim(_channel_dim(loss.layer, output), 1).flatten(2))
    else:
        loss.lost += list(maps[..., None])


def _add_to_sums(loss: LayerLoss, x: torch.Tensor, output: torch.Tensor) -> None:
    """Add the contribution of all removed channels to the sum over images and positions."""
    maps = _contribution(loss, x, output, loss.removed).movedim(_channel_dim(loss.layer, output), 0).flatten(1)
    total = torch.stack([maps.sum(1), torch.full_like(maps[:, 0], maps.shape[1])])
    loss.lost = [total + loss.lost[0]] if loss.lost else [total]


def _contribution(loss: LayerLoss, x: torch.Tensor, output: torch.Tensor, channels: Sequence[int]) -> torch.Tensor:
    """Return the output minus the output without some input channels; test the bias in the first call."""
    bias = loss.layer.bias
    if isinstance(bias, torch.Tensor) and not loss.lost:
        bias += 1
        loss.bias_is_additive = bool(is_near(output + 1, loss.layer.forward(x)).all())
        bias -= 1
    without = x.detach().clone()
    without.movedim(_channel_dim(loss.layer, x), 0)[list(channels)] = 0
    difference: torch.Tensor = output.detach() - loss.layer.forward(without)
    return difference
