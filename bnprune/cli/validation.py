"""What `validate` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from bnprune.cli.display import print_json
from bnprune.data import load_data
from bnprune.pruning.cost import cost
from bnprune.pruning.prune import draft, survey
from bnprune.pruning.select import Constraints, require_prunable
from bnprune.recipe import as_data, load_recipe
from bnprune.runs.directory import dump_config
from bnprune.runs.pipeline import choose_device, fresh
from bnprune.training.sparsity import require_scale_factors


def run_validate(path: Path, overrides: Sequence[str], *, print_config: bool, as_json: bool) -> None:
    """Check everything a run would stumble over, without running it."""
    import torch

    config = load_recipe(path, overrides)
    choose_device(config.device)
    splits = load_data(config.data)
    model = fresh(config)
    inputs = torch.zeros(1, *splits.shape)
    counted = cost(model, inputs)
    facts = {
        "images": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "input": list(splits.shape),
        "params": counted.params,
        "macs": counted.macs,
    }
    if config.train is not None and config.train.sparsity.penalty != "none":
        require_scale_factors(model)
    if config.prune is not None:
        constraints = Constraints(config.prune.min_channels, config.prune.exclude)
        drafted = draft(model, inputs, survey(model, inputs, constraints), config.prune.ratio)
        require_prunable(drafted.survey.graph, drafted.chosen)
        facts["prunable"] = int(drafted.survey.graph.gamma_count[drafted.chosen.prunable].sum())
    if as_json:
        resolved = as_data(config)
        print_json({"schema": "bnprune.validate/1", "valid": True, **facts, "config": resolved})
        return
    if print_config:
        typer.echo(dump_config(config), nl=False)
    typer.echo(f"{path} is valid: {facts}", err=print_config)
