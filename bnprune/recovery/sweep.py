"""Sweeps: the accuracy of a trained network after cuts of increasing size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import nn

from bnprune.config.schema import PruneConfig
from bnprune.data.splits import Splits
from bnprune.errors import PruningError
from bnprune.pruning.draft_plan import require_cut
from bnprune.pruning.plan import Cut
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.pruner import PruningResult, carry_out
from bnprune.pruning.request import Request
from bnprune.pruning.scores import measure_statistics
from bnprune.recovery.paired import CONFIDENCE, Sampled, loss_bounds
from bnprune.recovery.recover import Recovery, Score, recover
from bnprune.recovery.training_images import calibration_for

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)


class PairedScore(Score, Sampled, Protocol):
    """A score that can be compared with that of another network on the same samples."""


@dataclass(frozen=True, slots=True)
class Point:
    """One cut of a sweep."""

    asked: float
    """The requested ratio (0 for the network as it is), or the requested share of MACs to keep (1 for it)."""
    ratio: float
    """Removed share of the prunable BatchNorm channels."""
    macs: float
    """Share of the MACs that is left."""
    params: float
    """Share of the parameters that is left."""
    plain: float
    """Validation accuracy (the main value of the task) right after the cut."""
    accuracy: float
    """Validation accuracy after recovery: of the network with the best score."""
    lower: float | None = None
    """The accuracy of the network before the cut minus the upper confidence bound of the loss; None if unknown. An
    accuracy stays in [0, 1]."""
    upper: float | None = None
    """The same with the lower confidence bound of the loss."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The networks that were tried, and the samples on which they were compared."""

    points: list[Point]
    """The network as it is, then one point per cut, the smallest cut first."""
    images: int
    """Validation images."""
    candidates: int
    """Largest number of networks among which the best one was chosen after a cut."""
    metric: str = "top1"
    """Name of the main value of the task."""
    answers: bool = True
    """True if a network is right or wrong about each image."""


def sweep(
    model: nn.Module,
    splits: Splits,
    device: torch.device,
    request: Request,
    config: PruneConfig,
    batch_size: int,
    *,
    score: Callable[[nn.Module], PairedScore],
    by: Literal["ratio", "macs"] = "ratio",
    values: Sequence[float] = (),
) -> Sweep:
    """Cut copies of a trained network by increasing amounts; recover each, and compare it with the network as it is.

    The bounds of each point hold with 95% confidence for the network with the best score among those that recovery
    tries: with m of them, each bound is computed for an error of 5%/m (Bonferroni), because the best one was chosen on
    the same images.

    Args:
        model: The trained network; left as it was.
        splits: Training images to recover with.
        device: Device to run on.
        request: Constraints and criterion; its target is replaced by each of the values.
        config: The ways of recovery to try after each cut.
        batch_size: Images per batch.
        score: Evaluates a network on `device`, for example `bnprune.training.evaluate.paired_score`.
        by: The target to vary: the share of channels to remove, or the share of MACs to keep.
        values: Values to try; default: `RATIOS` or `SHARES`. Values that cannot be reached are left out.

    Returns:
        A point for the network as it is, and one per cut.

    Raises:
        PruningError: Nothing can be cut.
    """
    example = splits.example
    start = score(copy.deepcopy(model).to(device))
    points, candidates = [_start(start.value, by)], 1
    tried = sorted(values or (RATIOS if by == "ratio" else SHARES), reverse=by == "macs")
    request = request.aimed(by, tried[0])  # on which the default of the criterion depends
    statistics = measure_statistics(model, request.ranked_by, calibration_for(splits.train, request))
    scored = score_network(model, example, request, statistics=statistics)
    before: tuple[Cut, ...] = ()
    reason: PruningError | None = None
    for value in tried:
        try:
            draft = plan_cut(model, example, replace(scored, request=scored.request.aimed(by, value)))
            require_cut(draft)
        except PruningError as error:
            reason = error
            continue
        if draft.plan.cuts == before:  # the constraints allow no further cuts
            continue
        before = draft.plan.cuts
        result = carry_out(draft, model, example, proof=False)
        recovery = _recovered(model, result, splits, device, config, batch_size, score)
        points.append(_point(value, result, recovery, start))
        candidates = max(candidates, len(recovery.scores))
    if len(points) == 1 and reason is not None:
        raise reason
    answers = start.samples is not None and start.samples.dtype == torch.bool
    return Sweep(points, start.count, candidates, start.name, answers)


def _start(value: float, by: Literal["ratio", "macs"]) -> Point:
    return Point(0.0 if by == "ratio" else 1.0, 0.0, 1.0, 1.0, value, value, value, value)


def _recovered(
    model: nn.Module,
    cut: PruningResult,
    splits: Splits,
    device: torch.device,
    config: PruneConfig,
    batch_size: int,
    score: Callable[[nn.Module], PairedScore],
) -> Recovery[PairedScore]:
    return recover(
        model,
        cut.model,
        cut.plan,
        splits,
        device,
        score=score,
        compensated=config.compensate,
        reconstruct_images=config.reconstruct,
        batches=config.recalibrate,
        batch_size=batch_size,
    )


def _point(asked: float, cut: PruningResult, recovery: Recovery[PairedScore], start: PairedScore) -> Point:
    report, best = cut.report, recovery.scores[recovery.chosen]
    lower, upper = _bounds(start, best, (1 - CONFIDENCE) / len(recovery.scores))
    return Point(
        asked=asked,
        ratio=report.ratio_realised,
        macs=report.macs_after / max(report.macs_before, 1),
        params=report.params_after / report.params_before,
        plain=recovery.scores["plain"].value,
        accuracy=best.value,
        lower=lower,
        upper=upper,
    )


def _bounds(start: PairedScore, after: PairedScore, error: float) -> tuple[float | None, float | None]:
    loss = loss_bounds(start, after, error)
    if loss is None:
        return None, None
    lower, upper = start.value - loss.upper, start.value - loss.lower
    if start.samples is not None and start.samples.dtype == torch.bool:
        return max(lower, 0.0), min(upper, 1.0)
    return lower, upper
