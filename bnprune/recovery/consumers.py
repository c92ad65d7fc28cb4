"""Consumers of a cut: the convolutions and linear layers that read fewer channels than in the dense network.

Every call of a consumer is turned into samples for a linear regression, in one of two forms. With x the dense input, s
the part of it that the slim layer reads, and y the dense output without its bias, at positions spread over the images:

    direct      y from the windows of s under the kernel      finds a new weight for every position of the kernel
    channels    x from s at the same position                 one matrix B for all positions: the new weight is W B

The first is the better fit. The second serves layers with large windows, transposed convolutions and flattened inputs.
All arrays have the groups of the convolution as their first dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.modules import modules_by_name
from bnprune.channels.torch_internals import Convolution, convolution_padding
from bnprune.pruning.plan import PruningPlan

Keep = tuple[int, ...]
_MOST_POSITIONS = 50
"""Positions of an image that are sampled, spread evenly. With 512 images, 100 gave no better networks."""
_LARGEST_WINDOW = 2304
"""Inputs of the direct form: channels times positions of the kernel. Its matrix of moments then takes 42 MB."""

_MOST_WEIGHTS = 2**24
"""Weights of a layer that are in float64 at the same time: 134 MB."""


@dataclass(frozen=True)
class Flattening:
    """How the input of a linear layer was flattened: channels times positions."""

    positions: int = 1
    """Positions per channel; 1 if it was not flattened."""
    channels_first: bool = True
    """True if the channel is the outer index."""

    def unflatten(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Split dimension `dim` in two: channels and positions."""
        if self.channels_first:
            return torch.unflatten(x, dim, (-1, self.positions))
        return torch.unflatten(x, dim, (self.positions, -1)).transpose(dim, dim + 1)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """Join the last two dimensions, channels and positions, in the order of the layer."""
        return (x if self.channels_first else x.transpose(-1, -2)).flatten(-2)


@dataclass(frozen=True)
class Consumer:
    """A layer that reads fewer channels than before, and what it keeps."""

    site: str
    """Name of the module."""
    layer: Any
    """The layer of the dense network."""
    transposed: bool
    groups: int
    """Groups of the dense layer."""
    group_of: torch.Tensor
    """Groups that stay, shape (g,)."""
    inputs: torch.Tensor
    """Input channels that stay, within their group, shape (g, i)."""
    outputs: torch.Tensor
    """Output channels that stay, within their group, shape (g, o)."""
    flattening: Flattening
    removed: int
    """Input channels that the layer lost."""

    @property
    def key(self) -> int:
        """Identity of the weight: layers that share it are refitted together."""
        return id(self.layer.weight)

    @property
    def direct(self) -> bool:
        """True for the direct form."""
        window = self.inputs.shape[1] * self._grouped_weight().shape[3]
        return not self.transposed and self.flattening.positions == 1 and window <= _LARGEST_WINDOW

    def samples(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is predicted and what from, for one call of the dense layer; (g, samples, n) each."""
        channels = self._by_group(x, self.layer.in_features if self._linear else self.layer.in_channels)
        rows = self.inputs.to(x.device)
        if not self.direct:
            at = _spread(channels)
            predicted = at.permute(0, 1, 3, 2).flatten(1, 2)
            return predicted, predicted.gather(2, rows[:, None].expand(-1, predicted.shape[1], -1))
        kept = channels.gather(2, rows[:, None, :, None].expand(-1, channels.shape[1], -1, channels.shape[3]))
        outer = self._by_group(y, self.layer.out_features if self._linear else self.layer.out_channels)
        outputs = self.outputs.to(y.device)[:, None, :, None].expand(-1, outer.shape[1], -1, outer.shape[3])
        predicted = _spread(outer.gather(2, outputs)).permute(0, 1, 3, 2).flatten(1, 2)
        predicted = predicted - self.bias().to(y)[:, None]  # layers that share a weight can have biases of their own
        if self._linear:
            return predicted, _spread(kept).permute(0, 1, 3, 2).flatten(1, 2)
        spatial = kept.unflatten(3, x.shape[-len(self.layer.kernel_size) :])
        windows = torch.stack([_windows(self.layer, group) for group in spatial])
        return predicted, windows.flatten(1, 2)

    def importance(self) -> torch.Tensor:
        """Return how much errors of each predicted number matter: W^T W for channels, and all alike for outputs."""
        count, outputs = self.outputs.shape
        if self.direct:
            return torch.eye(outputs, dtype=torch.float64, device=self.layer.weight.device).expand(count, -1, -1)
        return torch.stack([torch.einsum("gock,godk->gcd", part, part) for part in self._kept_weight()]).sum(0)

    def plain(self) -> torch.Tensor:
        """Return the matrix that the plain cut amounts to, shape (g, predicted, predicted from)."""
        if self.direct:
            weight = torch.cat([*self._kept_weight()], 1)
            index = self.inputs.to(weight.device)[:, None, :, None].expand(-1, weight.shape[1], -1, weight.shape[3])
            return weight.gather(2, index).flatten(2)
        matrix = F.one_hot(self.inputs, self._grouped_weight().shape[2]).transpose(1, 2)
        return matrix.to(self.layer.weight.device, torch.float64)

    def bias(self) -> torch.Tensor:
        """Return the dense bias of the outputs that stay, shape (g, o); zeros if there is none."""
        bias: torch.Tensor | None = self.layer.bias
        if bias is None:
            return torch.zeros(self.outputs.shape, dtype=torch.float64, device=self.layer.weight.device)
        grouped = bias.detach().double().reshape(self.groups, -1)[self.group_of]
        return grouped.gather(1, self.outputs.to(bias.device))

    def refitted(
        self, matrix: torch.Tensor, offset: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight of the slim layer for a fitted map, and the change of its bias.

        Args:
            matrix: Shape (g, predicted, predicted from).
            offset: Shape (g, predicted).
            like: The slim layer's weight.

        Returns:
            The weight, and what the outputs that stay need in addition to their dense bias.
        """
        if self.direct:
            return matrix.reshape(like.shape), offset.flatten()
        parts = [
            (torch.einsum("gock,gcd->godk", part, matrix).to(like.dtype), torch.einsum("gock,gc->go", part, offset))
            for part in self._kept_weight()
        ]
        new, change = (torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))
        change = change.flatten()
        if self._linear:
            return self.flattening.flatten(new[0]).reshape(like.shape), change
        return (new.transpose(1, 2) if self.transposed else new).reshape(like.shape), change

    @property
    def _linear(self) -> bool:
        return isinstance(self.layer, nn.Linear)

    def _kept_weight(self) -> Iterator[torch.Tensor]:
        """Yield the dense weight of what stays but for its inputs, (g, o, input channels, kernel) in float64.

        A large weight comes in parts of its outputs, so that little of it is in float64 at the same time.
        """
        weight = self._grouped_weight()
        groups, outputs = self.group_of.to(weight.device)[:, None], self.outputs.to(weight.device)
        size = max(1, _MOST_WEIGHTS // max(len(groups) * weight[0, 0].numel(), 1))
        for part in outputs.split(size, 1):
            yield weight[groups, part].double()

    def _grouped_weight(self) -> torch.Tensor:
        """Return the dense weight as (groups, outputs of a group, input channels, kernel), without a copy."""
        weight: torch.Tensor = self.layer.weight.detach()
        if self._linear:
            return self.flattening.unflatten(weight, 1)[None]
        grouped: torch.Tensor = weight.flatten(2).unflatten(0, (self.groups, -1))
        return grouped.transpose(1, 2) if self.transposed else grouped

    def _by_group(self, x: torch.Tensor, channels: int) -> torch.Tensor:
        """Return an input or output as (g, images, channels of a group, positions), for the groups that stay."""
        if self._linear:
            flat = x.reshape(-1, channels)[..., None]
            if channels == self.layer.in_features and self.flattening.positions > 1:
                flat = self.flattening.unflatten(flat[..., 0], 1)
            return flat[None]
        batched = x if x.dim() == len(self.layer.kernel_size) + 2 else x[None]
        grouped = torch.unflatten(batched.flatten(2), 1, (self.groups, -1))
        return grouped.movedim(1, 0)[self.group_of.to(x.device)]


@dataclass(frozen=True)
class Unfit:
    """A layer that loses input channels, but is no `Consumer`."""

    site: str
    removed: int
    reason: str


def find_consumers(model: nn.Module, plan: PruningPlan) -> tuple[list[Consumer], list[Unfit]]:
    """Return the consumers of a cut, and every other layer that loses input channels."""
    modules, cuts = modules_by_name(model), {at: cut.keep for cut in plan.cuts for at in cut.at}
    sizes = {cut.keep: cut.size for cut in plan.cuts}
    consumers: list[Consumer] = []
    unfit: list[Unfit] = []
    for (name, dim), keep in cuts.items():
        site, _, leaf = name.rpartition(".")
        layer = modules.get(site)
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if layer is None or leaf != "weight" or dim != (0 if transposed else 1):
            continue
        if not isinstance(layer, nn.Linear | Convolution):
            unfit.append(Unfit(site, sizes[keep] - len(keep), "it is neither a convolution nor a linear layer"))
        elif not _has_usual_forward(layer):
            unfit.append(Unfit(site, sizes[keep] - len(keep), "it has a forward pass of its own"))
        else:
            sharing = [(other, m) for other, m in modules.items() if m._parameters.get("weight") is layer.weight]
            if any(type(module) is not type(layer) for _, module in sharing):
                unfit.append(Unfit(site, sizes[keep] - len(keep), "its weight belongs to another layer, too"))
                continue
            for consumer in _consumer(site, layer, cuts, keep, sizes, transposed=transposed):
                consumers += [replace(consumer, site=other, layer=module) for other, module in sharing]
    return consumers, unfit


def _has_usual_forward(layer: nn.Module) -> bool:
    bases = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    own = [base for base in bases if isinstance(layer, base) and type(layer).forward is base.forward]
    return bool(own) and "weight" in layer._parameters


def _consumer(
    site: str,
    layer: Any,
    cuts: Mapping[tuple[str, int], Keep],
    keep: Keep,
    sizes: Mapping[Keep, int],
    *,
    transposed: bool,
) -> Iterator[Consumer]:
    shape, groups = layer.weight.shape, int(getattr(layer, "groups", 1))
    rows = cuts.get((f"{site}.weight", 1 if transposed else 0)) or tuple(range(shape[1 if transposed else 0]))
    outer, inner = (keep, rows) if transposed else (rows, keep)
    group_of, by_group = _split(outer, shape[0] // groups)
    same = torch.tensor([list(inner)]).expand(len(group_of), -1)
    inputs, outputs = (by_group, same) if transposed else (same, by_group)
    flattening, channels = _flattening(keep, sizes) if isinstance(layer, nn.Linear) else (Flattening(), keep)
    if flattening.positions > 1:
        inputs = torch.tensor([list(channels)])
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    removed = width - inputs.numel() * flattening.positions
    if inputs.shape[1] < (shape[0] // groups if transposed else shape[1]):  # else whole groups went
        yield Consumer(site, layer, transposed, groups, group_of, inputs, outputs, flattening, removed)


def _split(keep: Keep, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split kept indices into groups of `size`; return the groups that stay, (g,), and what stays of each, (g, n)."""
    indices = torch.tensor(list(keep))
    group_of = (indices // size).unique()
    return group_of, (indices % size).reshape(len(group_of), -1)


def _flattening(keep: Keep, sizes: Mapping[Keep, int]) -> tuple[Flattening, Keep]:
    """Find out how the input of a linear layer was flattened, and which channels stay.

    The channels are cut elsewhere in the plan, too. If 0, 1, 4 and 5 of 6 inputs stay, and a cut of 3 channels keeps 0
    and 2, then there are 2 positions per channel.
    """
    size, kept = sizes[keep], np.asarray(keep)
    for channels, width in sorted(sizes.items(), key=lambda entry: -entry[1]):
        positions = size // width
        if width == size or width * positions != size or len(channels) * positions != len(keep):
            continue
        outer, inner = np.asarray(channels), np.arange(positions)
        if np.array_equal((outer[:, None] * positions + inner).ravel(), kept):
            return Flattening(positions), channels
        if np.array_equal((inner[:, None] * width + outer).ravel(), kept):
            return Flattening(positions, channels_first=False), channels
    return Flattening(), keep


def _spread(maps: torch.Tensor) -> torch.Tensor:
    """Return maps (..., positions) at no more than `_MOST_POSITIONS` of their positions."""
    return maps[..., :: -(-maps.shape[-1] // _MOST_POSITIONS)]


def _windows(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return what a convolution sees of (images, channels, ...) at the sampled positions: (images, positions, n)."""
    padding, mode = convolution_padding(layer)
    padded = F.pad(x, padding, mode="constant" if mode == "zeros" else mode)
    kernel: tuple[int, ...] = layer.kernel_size
    for dim, size in enumerate(kernel):
        dilation, stride = layer.dilation[dim], layer.stride[dim]
        padded = padded.unfold(2 + dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    rank = len(kernel)
    places = torch.arange(int(np.prod(padded.shape[2 : 2 + rank])), device=x.device)
    index = torch.unravel_index(_spread(places), padded.shape[2 : 2 + rank])
    sampled = padded.permute(*range(2, 2 + rank), 0, 1, *range(2 + rank, 2 + 2 * rank))[index]
    return sampled.flatten(2).transpose(0, 1)
