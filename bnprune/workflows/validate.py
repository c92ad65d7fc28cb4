"""Validate: check everything that could stop a run, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnprune.config.recipe import as_data, load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.errors import Problems
from bnprune.exporters.stage import options_of
from bnprune.pruning.cost import cost
from bnprune.runs.files import plain
from bnprune.runs.preflight import Start, prepare
from bnprune.runs.stages import stages_of
from bnprune.training.loop import TrainingJob
from bnprune.training.penalties.table import make_penalty, shortage
from bnprune.workflows.results import ImageCounts, ValidateResult


def validate(recipe: str | Path, overrides: Sequence[str] = ()) -> ValidateResult:
    """Check a recipe: every key, the network, the data, and the plan of the prune stage.

    Args:
        recipe: The YAML file.
        overrides: `key=value` pairs that replace keys of the recipe.

    Raises:
        ConfigError: The recipe is wrong; all problems at once.
        PruningError: The network cannot be pruned as requested.
        DataError: Data or weights cannot be read.
    """
    config = load_recipe(Path(recipe), overrides)
    problems = Problems()
    with problems.noted():
        if config.export is not None:
            options_of(config.export)
    with problems.noted():
        start = prepare(config, stages_of(config))
    problems.raise_all()
    splits, counted = start.splits, cost(start.network[0], start.splits.example)
    return ValidateResult(
        valid=True,
        images=ImageCounts(train=len(splits.train), validation=len(splits.validation), test=len(splits.test)),
        input=list(splits.shape),
        classes=splits.classes,
        params=counted.params,
        macs=counted.macs,
        channels=counted.channels,
        prunable=start.prunable,
        warnings=_too_short(config, start),
        config=plain(as_data(config)),
        notes=list(start.notes),
    )


def _too_short(config: PipelineConfig, start: Start) -> list[str]:
    """Warn of a training that is too short for its penalty."""
    if config.train is None:
        return []
    job = TrainingJob(start.splits, config.data.batch_size, config.train, start.device, config.seed)
    sparsity = config.train.sparsity
    network, example = start.network[0], start.splits.example
    steps = job.updates_per_epoch
    _, budget = make_penalty(network, config.train, sparsity, steps, example_inputs=example, prune=config.prune)
    found = None if budget is None else shortage(budget, config.train, sparsity)
    return [] if found is None else [found]
