"""Sensitivity: the accuracy of a trained network after each group of layers is cut alone."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from bnprune.channels.union_find import Ids
from bnprune.config.schema import PruneConfig
from bnprune.data.splits import Splits
from bnprune.errors import PruningError
from bnprune.pruning.draft_plan import DraftPlan, ScoredNetwork, require_cut
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.pruner import carry_out
from bnprune.pruning.request import Request
from bnprune.pruning.scores import measure_statistics
from bnprune.pruning.sensitivity import CutAlone, GroupSensitivity, Sensitivity
from bnprune.pruning.sensitivity_order import cut_group, prunable_groups
from bnprune.pruning.surgery import named_tensors
from bnprune.recovery.recover import Recovery, Score, recover
from bnprune.recovery.training_images import calibration_for

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_RECALIBRATION_IMAGES = 512
"""Images for new BatchNorm statistics, if a recipe turns reconstruction off."""


@dataclass(frozen=True)
class Progress:
    """A measurement in progress."""

    table: Sensitivity
    """With all cuts that have been evaluated."""
    done: int
    """Cuts that have been evaluated, or left out."""
    count: int
    """All cuts."""


def measure_sensitivity(
    model: nn.Module,
    splits: Splits,
    device: torch.device,
    request: Request,
    config: PruneConfig,
    batch_size: int,
    *,
    score: Callable[[nn.Module], Score],
    table: Sensitivity,
) -> Iterator[Progress]:
    """Cut each group of layers alone, by several shares; recover each network, and evaluate it.

    Recovered is by reconstruction or, if the recipe turns it off, by new BatchNorm statistics, as far as that helps. A
    share that removes as many channels as a smaller one is left out; so is one that constraints do not allow.

    Args:
        model: The trained network; left as it was.
        splits: Training images to recover with.
        device: Where to run.
        request: Constraints and criterion, which ranks the channels of a group. Its target, `cap` and `layer_ratios` do
            not count.
        config: The ways of recovery.
        batch_size: Images per batch.
        score: Evaluates a network on `device`, for example on the validation split.
        table: The shares to try, and the cuts that have been evaluated, which are not evaluated again.

    Yields:
        The table with one cut more each time; at first, as it was given.

    Raises:
        PruningError: Nothing can be cut.
    """
    request = replace(request.aimed("ratio", 0.5), cap=1.0, layer_ratios={})
    statistics = measure_statistics(model, request.ranked_by, calibration_for(splits.train, request))
    scored = score_network(model, splits.example, request, statistics=statistics)
    groups = prunable_groups(scored)
    if not groups:
        require_cut(plan_cut(model, splits.example, scored))
    known = {group.layers: group.points for group in table.groups}
    measured = {layers: [*known.get(layers, ())] for layers in groups}
    count = len(groups) * len(table.shares)

    def progress(done: int) -> Progress:
        shown = [GroupSensitivity(key, len(groups[key]), tuple(points)) for key, points in measured.items() if points]
        return Progress(replace(table, groups=tuple(shown)), done, count)

    yield progress(sum(map(len, measured.values())))
    for number, (layers, share) in enumerate(itertools.product(groups, table.shares), 1):
        points = measured[layers]
        before = points[-1].removed if points else 0
        draft = None if points and share <= points[-1].share else _draft(model, splits, scored, groups[layers], share)
        removed = 0 if draft is None else int(draft.removed[groups[layers]].sum())
        if draft is not None and removed > before:
            recovery = _recovered(model, draft, splits, device, config, batch_size, score)
            plain, best = recovery.scores["plain"].value, recovery.scores[recovery.chosen].value
            points.append(CutAlone(share, removed, plain, best))
            yield progress(number)


def _draft(model: nn.Module, splits: Splits, scored: ScoredNetwork, units: Ids, share: float) -> DraftPlan | None:
    """Return the cut of one group; None if nothing of it can go."""
    try:
        draft = plan_cut(model, splits.example, scored, lambda s, c: cut_group(s.graph, c, units, share))
    except PruningError:
        return None
    return draft if draft.plan.cuts else None


def _recovered(
    model: nn.Module,
    draft: DraftPlan,
    splits: Splits,
    device: torch.device,
    config: PruneConfig,
    batch_size: int,
    score: Callable[[nn.Module], Score],
) -> Recovery[Score]:
    cut = carry_out(draft, model, splits.example, proof=False)
    batches = 0 if config.reconstruct else min(config.recalibrate, math.ceil(_RECALIBRATION_IMAGES / batch_size))
    return recover(
        model,
        cut.model,
        cut.plan,
        splits,
        device,
        score=score,
        compensated=False,
        reconstruct_images=config.reconstruct,
        batches=batches,
        batch_size=batch_size,
    )


def start_of(model: nn.Module, device: torch.device, score: Callable[[nn.Module], Score]) -> Score:
    """Return the score of the network before the cuts."""
    return score(copy.deepcopy(model).to(device))


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(model), key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
