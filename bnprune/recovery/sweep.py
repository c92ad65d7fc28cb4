"""Sweeps: the accuracy of a trained network after cuts of increasing size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
from bnprune.recovery.recover import Score, recover
from bnprune.recovery.training_images import calibration_for

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)


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
    """Validation accuracy right after the cut."""
    accuracy: float
    """Validation accuracy after compensation and recalibration, as far as they help."""


def sweep(
    model: nn.Module,
    splits: Splits,
    device: torch.device,
    request: Request,
    config: PruneConfig,
    batch_size: int,
    *,
    score: Callable[[nn.Module], Score],
    by: Literal["ratio", "macs"] = "ratio",
    values: Sequence[float] = (),
) -> list[Point]:
    """Cut copies of a trained network by increasing amounts; recover and evaluate each.

    Args:
        model: The trained network; left as it was.
        splits: Training images to recover with.
        device: Where to run.
        request: Constraints and criterion; its target is replaced by each of the values.
        config: The ways of recovery to try after each cut.
        batch_size: Images per batch.
        score: Evaluates a network on `device`, as for `bnprune.recovery.recover.recover`.
        by: The target to vary: the share of channels to remove, or the share of MACs to keep.
        values: Values to try; default: `RATIOS` or `SHARES`. Values that cannot be reached are left out.

    Returns:
        A point for the network as it is, and one per cut, the smallest cut first.

    Raises:
        PruningError: Nothing can be cut.
    """
    example = splits.example
    start = score(copy.deepcopy(model).to(device)).top1
    points = [Point(0.0 if by == "ratio" else 1.0, 0.0, 1.0, 1.0, start, start)]
    tried = sorted(values or (RATIOS if by == "ratio" else SHARES), reverse=by == "macs")
    statistics = measure_statistics(model, request.criterion, calibration_for(splits.train, request))
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
        if draft.plan.cuts == before:  # constraints allow no more
            continue
        before = draft.plan.cuts
        result = carry_out(draft, model, example, proof=False)
        points.append(_point(value, model, result, splits, device, config, batch_size, score))
    if len(points) == 1 and reason is not None:
        raise reason
    return points


def _point(
    asked: float,
    model: nn.Module,
    cut: PruningResult,
    splits: Splits,
    device: torch.device,
    config: PruneConfig,
    batch_size: int,
    score: Callable[[nn.Module], Score],
) -> Point:
    recovery = recover(
        model,
        cut.model,
        cut.plan,
        splits,
        device,
        score=score,
        compensated=config.compensate,
        batches=config.recalibrate,
        batch_size=batch_size,
    )
    report = cut.report
    return Point(
        asked=asked,
        ratio=report.ratio_realised,
        macs=report.macs_after / max(report.macs_before, 1),
        params=report.params_after / report.params_before,
        plain=recovery.scores["plain"].top1,
        accuracy=recovery.scores[recovery.chosen].top1,
    )


def recommend(points: Sequence[Point], tolerance: float) -> Point:
    """Return the largest cut before the first one that loses more than `tolerance` of validation accuracy.

    Raises:
        PruningError: Even the smallest cut loses more.
    """
    start, best = points[0].accuracy, points[0]
    for point in points[1:]:
        if point.accuracy < start - tolerance - math.ulp(1.0):
            break
        best = point
    if best is points[0]:
        raise PruningError(
            f"no cut keeps validation accuracy within {tolerance:.1%} of {start:.2%}: "
            "train with more sparsity, allow more loss (tolerance), or give a ratio and fine-tune."
        )
    return best
