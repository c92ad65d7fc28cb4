"""Sweep: how far a trained network can be pruned before its accuracy falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from bnprune.config.prune_options import prune_options
from bnprune.config.schema import PruneConfig
from bnprune.errors import ConfigError
from bnprune.pruning.inspection import inspect
from bnprune.pruning.request import Request
from bnprune.recovery.paired import CONFIDENCE
from bnprune.recovery.sweep import Point
from bnprune.recovery.sweep import sweep as sweep_model
from bnprune.recovery.sweep_choice import choose, why_not_larger
from bnprune.runs.directory import RunDirectory
from bnprune.runs.passes import request_of
from bnprune.runs.stages import TRAINED
from bnprune.training.evaluate import paired_score
from bnprune.workflows.data_source import NetworkWithData, open_with_data
from bnprune.workflows.results import SweepPoint, SweepResult

_MOST_VALUES = 1000


def sweep(
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    recipe: str | Path | None = None,
    trust: bool = False,
    by: Literal["ratio", "macs"] = "ratio",
    values: Sequence[float] = (),
    tolerance: float | None = None,
) -> SweepResult:
    """Prune a trained network to several targets, recover and evaluate each slim network, and recommend one.

    Nothing is fine-tuned or written; accuracies are of validation images. Every slim network is compared with the one
    before pruning image by image, and the recommendation holds with 95% confidence: see
    `bnprune.recovery.sweep_choice.choose`.

    Args:
        source: A run directory (its sparse-trained network) or a checkpoint.
        overrides: `key=value` pairs that replace keys of the recipe.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        recipe: Recipe that names the data; default: the one in the checkpoint.
        trust: Run the code and use the paths that the files name.
        by: Vary the share of the channels to remove ("ratio") or the share of the MACs to keep ("macs").
        values: Shares to try, in (0, 1); default: a dozen.
        tolerance: Loss of validation accuracy that is allowed, in [0, 1); default: that of the recipe.

    Returns:
        One point per network, the first of them before pruning, and the recommended one, if there is any.

    Raises:
        ConfigError: A value is out of range, or there is no recipe.
        PruningError: Nothing can be pruned.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint.

    Example::

        result = bnprune.sweep("runs/digits", values=[0.3, 0.5, 0.7], tolerance=0.01)
        for point in result.points:
            print(f"{point.asked:.0%} of the channels removed: {point.accuracy:.2%}")
        print("none" if result.recommended is None else result.recommended.asked)
    """
    _require_arguments(values, tolerance)
    network = sparse_trained(source)
    opened = open_with_data(
        network,
        overrides,
        model=model,
        model_arguments=model_arguments,
        weights=weights,
        pretrained=pretrained,
        recipe=recipe,
        trust=trust,
    )
    config = opened.config.prune or PruneConfig()
    request = request_of(config)
    swept = sweep_model(
        opened.source.model,
        opened.splits,
        opened.device,
        request,
        config,
        opened.config.data.batch_size,
        score=paired_score(opened.splits, opened.device, opened.task),
        by=by,
        values=values,
    )
    notes = notes_on_network(opened, config)  # every cut is evaluated: what matters besides is about the network
    allowed = config.tolerance if tolerance is None else tolerance
    choice = choose(swept.points, allowed)
    return SweepResult(
        by=by,
        metric=swept.metric,
        tolerance=allowed,
        images=swept.images,
        confidence=CONFIDENCE,
        points=[_point(point) for point in swept.points],
        recommended=_named(choice.recommended),
        reason="" if choice.recommended else why_not_larger(swept, allowed, choice),
        measured=_named(choice.measured),
        knee=_named(choice.knee),
        source=None if network is None else str(network),
        input=list(opened.splits.shape),
        constraints=constraints_of(request),
        notes=notes,
    )


def _require_arguments(values: Sequence[float], tolerance: float | None) -> None:
    require_values(values)
    if tolerance is not None and not 0 <= tolerance < 1:
        message = f"must be at least 0 and below 1 (got {tolerance}). 0.01 is one point."
        raise ConfigError(message, argument="tolerance")


def require_values(values: Sequence[float]) -> None:
    """Refuse too many shares, and shares out of range.

    Raises:
        ConfigError: A share is not in (0, 1), or there are too many.
    """
    if len(values) > _MOST_VALUES:
        raise ConfigError(f"expected at most {_MOST_VALUES} values (got {len(values)}).", argument="values")
    for value in values:
        if not 0 < value < 1:
            raise ConfigError(f"must be between 0 and 1, both excluded (got {value:g}).", argument="values")


def sparse_trained(source: str | Path | None) -> str | Path | None:
    """Return the sparse-trained network of a run: the later ones have been pruned already."""
    return source if source is None or not Path(source).is_dir() else RunDirectory(Path(source)).network(TRAINED)


def notes_on_network(opened: NetworkWithData, config: PruneConfig) -> list[str]:
    """Return the remarks that hold for every cut of a network, under the constraints of a recipe."""
    found = inspect(
        opened.source.model,
        opened.splits.example,
        exclude=config.exclude,
        include=config.include,
        coupling=config.coupling,
        outputs=config.outputs,
    )
    return opened.source.notes_with(found.notes)


def constraints_of(request: Request) -> dict[str, Any]:
    """Return the constraints of a request that differ from their defaults."""
    found = {name: (getattr(request, name), option) for name, option in prune_options().items() if not option.is_target}
    return {name: value for name, (value, option) in found.items() if value and value != option.default}


def _named(point: Point | None) -> SweepPoint | None:
    return None if point is None else _point(point)


def _point(point: Point) -> SweepPoint:
    return SweepPoint(**asdict(point))
