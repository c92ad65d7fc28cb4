"""What `validate` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnprune.cli.display import count, print_json
from bnprune.cli.verbosity import say
from bnprune.config.recipe import as_data, load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.errors import printable
from bnprune.exporters.stage import options_of
from bnprune.pruning.cost import cost
from bnprune.runs.directory import dump_config
from bnprune.runs.preflight import Start, prepare
from bnprune.runs.stages import stages_of
from bnprune.training.loop import Task
from bnprune.training.penalties.table import advice, make_penalty


def run_validate(path: Path, overrides: Sequence[str], *, print_config: bool, as_json: bool) -> None:
    """Check everything a run would stumble over, without running it."""
    config = load_recipe(path, overrides)
    if config.export is not None:
        options_of(config.export)
    start = prepare(config, stages_of(config))
    splits, counted = start.splits, cost(start.network[0], start.splits.example)
    facts = {
        "images": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "input": list(splits.shape),
        "classes": splits.classes,
        "params": counted.params,
        "macs": counted.macs,
        "channels": counted.channels,
    }
    if start.prunable is not None:
        facts["prunable"] = start.prunable
    warnings = _too_short(config, start)
    if as_json:
        print_json(
            {"schema": "bnprune.validate/1", "valid": True, **facts, "warnings": warnings, "config": as_data(config)}
        )
        return
    if print_config:
        say(_dumped(config), nl=False)
    notes = "".join(f"\nwarning: {text}" for text in warnings) + "".join(f"\nnote: {note}" for note in splits.notes)
    say(f"{path} is valid.\n{_told(facts)}{notes}", err=print_config)


def _dumped(config: PipelineConfig) -> str:
    """Return a recipe as YAML; in ASCII if it holds something that a terminal would not show."""
    text = dump_config(config)
    return text if text == printable(text) else yaml.safe_dump(as_data(config), sort_keys=False)


def _too_short(config: PipelineConfig, start: Start) -> list[str]:
    """Warn of a training in which no scale factor can reach zero, before it is spent."""
    if config.train is None:
        return []
    task = Task(start.splits, config.data.batch_size, config.train, start.device, config.seed)
    sparsity = config.train.sparsity
    network, example = start.network[0], start.splits.example
    steps = task.updates_per_epoch
    _, budget = make_penalty(network, config.train, sparsity, steps, example_inputs=example, prune=config.prune)
    if budget is None or not budget.strength or budget.enough:
        return []
    return [f"{budget}. {advice(budget, config.train, sparsity)}"]


def _told(facts: Mapping[str, Any]) -> str:
    images, shape = facts["images"], "x".join(map(str, facts["input"]))
    prunable = f", {facts['prunable']} of them prunable" if "prunable" in facts else ""
    return (
        f"  data:    {images['train']} images to train, {images['validation']} to validate, {images['test']} to test; "
        f"{shape}, {facts['classes']} classes\n"
        f"  network: {count(facts['params'])} parameters, {count(facts['macs'])} MACs, "
        f"{facts['channels']} BN channels{prunable}"
    )
