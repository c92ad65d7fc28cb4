"""Penalties that use the channel graph: which scale factors go to zero together, and the MACs of their channels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.trace_network import Coupling, Outputs, trace
from bnprune.channels.union_find import NO_CHANNEL, Ids
from bnprune.errors import PruningError
from bnprune.pruning.scores import unit_macs
from bnprune.pruning.surgery import named_tensors
from bnprune.training.penalties.gamma import GammaPenalty, scale_factors


def gamma_units(model: nn.Module, graph: ChannelGraph) -> Ids:
    """Return the unit of every scale factor, in the order of `scale_factors`; NO_CHANNEL if it must stay.

    Raises:
        PruningError: No channel can be removed.
    """
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    found = []
    for gamma in scale_factors(model):
        units = graph.gamma_units.get(names[id(gamma)], np.full(gamma.numel(), NO_CHANNEL, dtype=np.int64))
        found.append(np.where(graph.free[units], units, NO_CHANNEL))
    if not any((units != NO_CHANNEL).any() for units in found):
        raise PruningError("no BatchNorm channel of the network can be removed. `bnprune inspect` says why.")
    return np.concatenate(found)


class Groups:
    """Groups of scale factors whose channels must go together.

    Sums over a group are taken in a fixed order, so that all ranks of a distributed training get the same bits.
    """

    sizes: torch.Tensor
    """Size of the group of each scale factor, shape (n,); 0 for those that must stay."""
    count: int
    """Number of scale factors that may go."""

    def __init__(self, units: Ids) -> None:
        free = np.flatnonzero(units != NO_CHANNEL)
        _, group, lengths = np.unique(units[free], return_inverse=True, return_counts=True)
        index = np.full(len(units), len(lengths))
        index[free] = group
        self.count = len(free)
        self._order = torch.from_numpy(free[np.argsort(group, kind="stable")])
        self._lengths = torch.from_numpy(lengths)
        self._index = torch.from_numpy(index)
        self.sizes = torch.from_numpy(np.append(lengths, 0)[index])

    def reduce(self, values: torch.Tensor, how: Literal["sum", "max"]) -> torch.Tensor:
        """Return for each of `values` (n,) the sum or maximum over its group, `inf` for those that must stay."""
        if self._index.device != values.device:
            for name in ("_order", "_lengths", "_index", "sizes"):
                setattr(self, name, getattr(self, name).to(values.device))
        reduced = torch.segment_reduce(values[self._order], how, lengths=self._lengths, unsafe=True)
        return torch.cat([reduced, reduced.new_full((1,), torch.inf)])[self._index]


class GammaGroupLasso(GammaPenalty):
    """Group lasso: λ·Σ √|g|·‖γ_g‖₂ over the scale factors that must go together, so that they reach zero together.

    Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006. Groups are the units of the
    channel graph: in a residual stream, the BatchNorm channels of every layer that writes it. A channel of its own is a
    group of one, for which this is L1. Applied as a proximal step, which gives exact zeros:
    γ_g ← γ_g·max(0, 1 - lr·λ·gain·√|g| / ‖γ_g‖₂). Scale factors of channels that must stay are left alone.

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments, to follow channels with.
        gain: 1/(1-momentum) for SGD, so that λ pulls as hard as a term in the gradient.
        coupling: As for `bnprune.prune`.
        outputs: As for `bnprune.prune`.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor, or none of a channel that can go.
        ForwardError: The forward pass fails on the inputs.

    Example::

        penalty = bnprune.GammaGroupLasso(model, 1e-4, example_inputs, gain=1 / (1 - 0.9))
        loss.backward()
        optimizer.step()
        penalty.shrink(lr=0.1)
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        example_inputs: Any,
        *,
        gain: float = 1.0,
        coupling: Coupling = "shared",
        outputs: Outputs | None = None,
    ) -> None:
        super().__init__(model, strength, gain=gain)
        self.groups = Groups(gamma_units(model, trace(model, example_inputs, coupling=coupling, outputs=outputs)))

    def pull(self, gammas: torch.Tensor) -> torch.Tensor:
        """Return √|g|·γ / ‖γ_g‖₂, and 0 if the norm is 0."""
        norms = self.groups.reduce(gammas.square(), "sum").sqrt_().clamp_min_(torch.finfo(gammas.dtype).tiny)
        directions = (gammas / norms).clamp_(-1.0, 1.0)  # squares of tiny γ underflow
        return directions.mul_(self.groups.sizes.to(gammas.dtype).sqrt())


class GammaMacWeighted(GammaPenalty):
    """L1 weighted by the MACs that are saved by removing the channel of each scale factor; the mean weight is 1.

    Channels that must go together share their MACs, so that Σ w·|γ| is proportional to the MACs of the network. Scale
    factors of channels that must stay have weight 0.

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments, to count MACs with.
        decoupled: Leave gradients alone; shrink after the step, as adaptive optimizers need it.
        coupling: As for `bnprune.prune`.
        outputs: As for `bnprune.prune`.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor, or none of a channel that can go.
        ForwardError: The forward pass fails on the inputs.

    Example::

        penalty = bnprune.GammaMacWeighted(model, 1e-4, example_inputs)
        loss.backward()
        penalty.add_gradients()
        optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        example_inputs: Any,
        *,
        decoupled: bool = False,
        coupling: Coupling = "shared",
        outputs: Outputs | None = None,
    ) -> None:
        super().__init__(model, strength, gain=1.0 if decoupled else None)
        # exact: MACs that depend on data are those of the example inputs.
        graph = trace(model, example_inputs, exact=True, coupling=coupling, outputs=outputs)
        units = gamma_units(model, graph)
        shares = unit_macs(graph) / np.maximum(graph.gamma_count, 1)
        macs = np.where(units != NO_CHANNEL, shares[units], 0.0)
        self.weights = torch.from_numpy(macs / macs.mean())

    def pull(self, gammas: torch.Tensor) -> torch.Tensor:
        """Return w·sign(γ)."""
        self.weights = self.weights.to(gammas)
        return gammas.sign() * self.weights
