"""The cliff finder: how far a trained network can be cut before its accuracy falls, in seconds per try."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from bnprune.config.schema import PruneConfig
from bnprune.data.splits import Splits
from bnprune.errors import PruningError
from bnprune.pruning.plan import Cut
from bnprune.pruning.planner import plan_cut, require_cut, score_network
from bnprune.pruning.pruner import PruningResult, carry_out
from bnprune.pruning.request import Request
from bnprune.recovery.recover import recover
from bnprune.training.evaluate import evaluate

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)


@dataclass(frozen=True, slots=True)
class Point:
    """One cut that was tried."""

    asked: float
    """The ratio, or the share of MACs to keep; 0 or 1 for the network as it is."""
    ratio: float
    """Share of the prunable BatchNorm channels that went."""
    macs: float
    """Share of the MACs that is left."""
    params: float
    """Share of the parameters that is left."""
    plain: float
    """Validation accuracy right after the cut."""
    accuracy: float
    """The same after compensation and recalibration, where they help."""


def sweep(
    model: nn.Module,
    splits: Splits,
    device: torch.device,
    request: Request,
    config: PruneConfig,
    batch_size: int,
    *,
    by: Literal["ratio", "macs"] = "ratio",
    values: Sequence[float] = (),
) -> list[Point]:
    """Cut a trained network by more and more, recover and evaluate each; the network itself stays as it is.

    Args:
        model: The trained network.
        splits: Data to recover and validate with.
        device: Where to run.
        request: Constraints and criterion; its target does not count.
        config: What to try after each cut.
        batch_size: Images per batch.
        by: What is varied: the share of channels that goes, or the share of MACs that stays.
        values: Values to try; default: `RATIOS` or `SHARES`. Those out of reach are left out.

    Returns:
        A point for the network as it is, and one per cut, from the mildest on.

    Raises:
        PruningError: Nothing can be cut.
    """
    example = splits.example
    start = evaluate(copy.deepcopy(model).to(device), splits.validation, device).top1
    points = [Point(0.0 if by == "ratio" else 1.0, 0.0, 1.0, 1.0, start, start)]
    tried = sorted(values or (RATIOS if by == "ratio" else SHARES), reverse=by == "macs")
    found = score_network(model, example, request)
    before: tuple[Cut, ...] = ()
    reason: PruningError | None = None
    for value in tried:
        try:
            draft = plan_cut(model, example, replace(found, request=request.aimed(by, value)))
            require_cut(draft)
        except PruningError as error:
            reason = error
            continue
        if draft.plan.cuts == before:  # constraints allow no more
            continue
        before = draft.plan.cuts
        result = carry_out(draft, model, example, proof=False)
        points.append(_point(value, model, result, splits, device, config, batch_size))
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
) -> Point:
    found = recover(
        model,
        cut.model,
        cut.plan,
        splits,
        device,
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
        plain=found.scores["plain"].top1,
        accuracy=found.scores[found.chosen].top1,
    )


def recommend(points: Sequence[Point], tolerance: float) -> Point:
    """Return the knee: the hardest cut before the first that loses more than `tolerance` of validation accuracy.

    Raises:
        PruningError: Even the mildest cut loses more.
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
