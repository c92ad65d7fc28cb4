"""From configuration to penalty: λ steered or computed from `travel`, and the form that suits the optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.trace_network import Coupling, Outputs, trace
from bnprune.channels.union_find import NO_CHANNEL, Ids
from bnprune.config import tables
from bnprune.config.schema import OptimisationConfig, PruneConfig, SparsityConfig
from bnprune.config.suggested_numbers import rounded_up
from bnprune.errors import PruningError
from bnprune.notes import Note
from bnprune.pruning.candidates import Constraints, find_candidates
from bnprune.training.penalties.gamma import (
    GammaL1,
    GammaPenalty,
    GammaPolarization,
    GammaProximal,
    Penalty,
    TravelBudget,
    mean_gamma,
    require_scale_factors,
)
from bnprune.training.penalties.lambda_schedule import Scheduled, Steered, TravelSchedule
from bnprune.training.penalties.structured import GammaGroupLasso, GammaMacWeighted, Groups, gamma_units

TRAVEL = 5.0
_STRONGEST_SGD = 0.02
_STRONGEST_ADAPTIVE = 0.3
"""Limits of λ for all channels. A stronger pull beats the loss's gradient on every γ, useful or not: a few times 0.01
for SGD, 1 for adaptive optimizers, which normalise it. Short trainings that would need more cannot become sparse
safely."""
_STEERED_SGD = 0.1
_STEERED_ADAPTIVE = 9.0
"""Limits of λ for channels that will be removed in any case. With adaptive optimizers, λ is the movement of γ per step
in learning rates, so that a few hundred steps with a small learning rate need a large one. Measured on digits, 315
steps, target 60%: with a limit of 1.5, AdamW (lr 0.002) and RMSprop (0.001) bring no γ to zero; with 9, both bring 60%
there, and the pruned networks lose less than half a point of accuracy."""
_FASTEST = 1 / 60
"""Largest share of the scale factors that may go to zero per optimizer step, on average until the deadline: the
weights and the running statistics of BatchNorm have to follow. Measured on digits (VGG-11, SGD, seed 0), points of test
accuracy that a training loses by its target, with new statistics: 32 at 1/24 per step, 21 at 1/36, 10 at 1/47, 5 at
1/59, 3 at 1/81, none at 1/116; with AdamW, 24 at 1/24 and 1.7 at 1/59."""
CLOSE = 0.05
"""A target that is missed by more than this gives a warning."""


PENALTIES = tables.PENALTIES


@dataclass(frozen=True)
class PenaltySetting:
    """The settings of a penalty: the argument of the functions in `config.tables.PENALTIES`."""

    model: nn.Module
    strength: float
    sparsity: SparsityConfig
    sgd: bool
    gain: float
    """1/(1-momentum) for SGD, which amplifies a term in the gradient by it; 1 for decoupled penalties."""
    example_inputs: Any
    coupling: Coupling
    outputs: Outputs | None = None


def l1(setting: PenaltySetting) -> GammaPenalty:
    """Make the penalty of the paper."""
    return GammaL1(setting.model, setting.strength, decoupled=not setting.sgd)


def l1_proximal(setting: PenaltySetting) -> GammaPenalty:
    """Make the proximal form of `l1`."""
    return GammaProximal(setting.model, setting.strength, gain=setting.gain)


def polarization(setting: PenaltySetting) -> GammaPenalty:
    """Make a polarization penalty."""
    return GammaPolarization(
        setting.model, setting.strength, t=setting.sparsity.polarization_t, decoupled=not setting.sgd
    )


def group_lasso(setting: PenaltySetting) -> GammaPenalty:
    """Make a group lasso over coupled channels."""
    return GammaGroupLasso(
        setting.model,
        setting.strength,
        setting.example_inputs,
        gain=setting.gain,
        coupling=setting.coupling,
        outputs=setting.outputs,
    )


def mac_weighted_l1(setting: PenaltySetting) -> GammaPenalty:
    """Make `l1` weighted by MACs."""
    return GammaMacWeighted(
        setting.model,
        setting.strength,
        setting.example_inputs,
        decoupled=not setting.sgd,
        coupling=setting.coupling,
        outputs=setting.outputs,
    )


def make_penalty(
    model: nn.Module,
    config: OptimisationConfig,
    sparsity: SparsityConfig | None,
    steps_per_epoch: int,
    *,
    example_inputs: Any = None,
    prune: PruneConfig | None = None,
) -> tuple[Penalty | None, TravelBudget | None]:
    """Return the penalty of a training and how far it can lower γ; None for both without a penalty.

    Args:
        model: The network as it is before training.
        config: Optimizer and schedule; momentum amplifies a term in the gradient by 1/(1-momentum).
        sparsity: The penalty; None or `penalty: none` for no sparsity.
        steps_per_epoch: Optimizer steps.
        example_inputs: Inputs to trace the network with, if the penalty or a target depends on its channels.
        prune: The later prune stage: its coupling, its constraints and, if there is no other target, its target.

    Raises:
        PruningError: The network has no trainable BatchNorm scale factor.
        ForwardError: The forward pass fails on the example inputs.
    """
    if sparsity is None or sparsity.penalty == "none":
        return None, None
    coupling: Coupling = prune.coupling if prune else "shared"
    outputs = prune.outputs if prune else None
    sgd = config.optimizer == "sgd"
    gain = 1 / (1 - config.momentum) if sgd else 1.0
    start = mean_gamma(require_scale_factors(model))
    travel = TravelSchedule(config, sparsity, steps_per_epoch, gain)
    limit = strongest(sgd=sgd)
    solved = min((sparsity.travel or TRAVEL) * start / travel.reach, limit)
    strength = solved if sparsity.lambda_ == "auto" else sparsity.lambda_
    setting = PenaltySetting(model, strength, sparsity, sgd, gain, example_inputs, coupling, outputs)
    penalty: GammaPenalty = PENALTIES[sparsity.penalty](setting)
    if (wanted := _wanted_share(sparsity, prune)) is not None:
        graph = trace(model, example_inputs, coupling=coupling, outputs=outputs)
        limits = _limits(prune) if prune else None
        units, share = steering_target(model, graph, wanted, limits)
        penalty.gain = gain  # a pull in the gradients would continue in the momentum after λ has changed
        penalty.lambda_at = Steered(
            share, Groups(units), travel, sparsity.epsilon, usual=strength, limit=strongest_steered(sgd=sgd)
        )
        steps = travel.steps_to_deadline
        return penalty, TravelBudget(strongest_steered(sgd=sgd), travel.reach, start, share, steps)
    if sparsity.schedule != "constant":
        penalty.lambda_at = Scheduled(strength, travel)
    return penalty, TravelBudget(strength, travel.reach, start)


def _wanted_share(sparsity: SparsityConfig, prune: PruneConfig | None) -> float | None:
    """Return the share of the prunable channels that λ is steered to bring to zero; None if λ is fixed.

    A training without a target of its own takes it from the later cut. If all widths are multiplied by w, the MACs and
    the parameters are multiplied by about w², so that a share s of them is left by 1 - √s of the channels.
    """
    if sparsity.lambda_ != "auto" or sparsity.travel is not None or sparsity.penalty == "polarization":
        return None  # polarization pulls values above the mean away from zero, whatever the target is
    if sparsity.target is not None or prune is None:
        return sparsity.target
    if isinstance(prune.ratio, float):
        return prune.ratio
    left = prune.params if prune.macs is None else prune.macs
    return None if left is None else 1 - math.sqrt(left)


def steering_target(
    model: nn.Module, graph: ChannelGraph, wanted: float, limits: Constraints | None
) -> tuple[Ids, float]:
    """Return the units of the scale factors that may be removed, and the target as a share of all scale factors.

    Args:
        model: The network.
        graph: Its channels.
        wanted: The target as a share of the prunable channels.
        limits: The constraints of the later cut hold here as well: layers that it excludes are not pulled to zero.

    Raises:
        PruningError: No channel may be removed.
    """
    units = gamma_units(model, graph)
    if limits is None:
        return units, wanted * float(np.mean(units != NO_CHANNEL))
    found = find_candidates(graph, np.where(graph.gamma_count > 0, 0.0, np.inf), limits, {})
    count = np.bincount(units[units != NO_CHANNEL], minlength=graph.unit_count)
    going = min(wanted * count[found.prunable].sum(), count[found.order].sum())
    if not going:
        raise PruningError("no channel may be removed, so λ cannot be steered. Exclude fewer layers, or give λ.")
    return np.where(found.prunable[units], units, NO_CHANNEL), float(going) / len(units)


def _limits(prune: PruneConfig) -> Constraints:
    kept = tuple(pattern for pattern, ratio in prune.layer_ratios.items() if not ratio)
    return Constraints(
        min_channels=prune.min_channels,
        cap=(prune.cap or 1.0) if prune.passes == 1 else 1.0,  # later passes can remove what the cap keeps in this one
        exclude=(*prune.exclude, *kept),
        include=prune.include,
        layer_ratios=tuple(prune.layer_ratios.items()),
    )


def shortage(budget: TravelBudget, config: OptimisationConfig, sparsity: SparsityConfig) -> Note | None:
    """Return a warning, with advice, about a training that is too short for its penalty; None if it is long enough."""
    if not budget.strength:
        return None
    if not budget.enough:
        return Note("sparsity.travel", "warning", f"{budget}. {_advice(budget, config, sparsity)}")
    if budget.target is None or budget.target <= budget.steps * _FASTEST:
        return None
    epochs = math.ceil(config.epochs * budget.target / (max(1, budget.steps - 1) * _FASTEST))  # steps are rounded up
    text = (
        f"λ is steered to bring {budget.target:.0%} of all γ to zero within {budget.steps} optimizer steps: the "
        "weights and the running statistics of BatchNorm cannot follow so fast, and accuracy may collapse. "
        f"Train for {epochs} epochs or more (train.epochs), or lower the target (train.sparsity.target)."
    )
    return Note("sparsity.too_fast", "warning", text)


def _advice(budget: TravelBudget, config: OptimisationConfig, sparsity: SparsityConfig) -> str:
    """Return advice for a budget that is too small to bring the scale factors to zero."""
    needed = budget.start / budget.reach
    if budget.target is not None or needed > strongest(sgd=config.optimizer == "sgd"):
        can_steer = budget.target is None and sparsity.lambda_ == "auto" and sparsity.penalty != "polarization"
        other = (
            " Or give train.sparsity.target: λ for channels that will be removed may be larger." if can_steer else ""
        )
        return f"Train longer (train.epochs), raise train.lr, or let γ start lower (model.gamma_init).{other}"
    if sparsity.lambda_ == "auto":
        return f"Raise train.sparsity.travel above 1 (got {sparsity.travel:g})."
    return f"Raise train.sparsity.lambda above {rounded_up(needed, 2)}, or set it to auto."


def shortfall(budget: TravelBudget, below: float) -> str:
    """Return a sentence about a missed target, with advice; empty if the target was reached.

    Args:
        budget: The target.
        below: Share of scale factors that are near zero after training.
    """
    if budget.target is None or abs(below - budget.target) <= CLOSE:
        return ""
    missed = f"{below:.0%} of γ ended near zero, the target was {budget.target:.0%}"
    if below > budget.target:
        return f"{missed}: the rest of the network needs fewer channels than it has. You can prune more."
    return f"{missed}. Train longer (train.epochs), raise train.lr, lower model.gamma_init, or lower the target."


def strongest(*, sgd: bool) -> float:
    """Return the largest λ for all channels."""
    return _STRONGEST_SGD if sgd else _STRONGEST_ADAPTIVE


def strongest_steered(*, sgd: bool) -> float:
    """Return the largest λ for channels that will be removed in any case."""
    return _STEERED_SGD if sgd else _STEERED_ADAPTIVE
