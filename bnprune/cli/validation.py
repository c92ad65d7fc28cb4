"""What `validate` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from bnprune.cli.display import count, print_json
from bnprune.export.stage import wishes
from bnprune.pruning.cost import cost
from bnprune.recipe import as_data, load_recipe
from bnprune.runs.directory import dump_config
from bnprune.runs.stages import stages_of
from bnprune.runs.start import prepare


def run_validate(path: Path, overrides: Sequence[str], *, print_config: bool, as_json: bool) -> None:
    """Check everything a run would stumble over, without running it."""
    config = load_recipe(path, overrides)
    if config.export is not None:
        wishes(config.export)
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
    if as_json:
        print_json({"schema": "bnprune.validate/1", "valid": True, **facts, "config": as_data(config)})
        return
    if print_config:
        typer.echo(dump_config(config), nl=False)
    notes = "".join(f"\nnote: {note}" for note in splits.notes)
    typer.echo(f"{path} is valid.\n{_told(facts)}{notes}", err=print_config)


def _told(facts: Mapping[str, Any]) -> str:
    images, shape = facts["images"], "x".join(map(str, facts["input"]))
    prunable = f", {facts['prunable']} of them prunable" if "prunable" in facts else ""
    return (
        f"  data:    {images['train']} images to train, {images['validation']} to validate, {images['test']} to test; "
        f"{shape}, {facts['classes']} classes\n"
        f"  network: {count(facts['params'])} parameters, {count(facts['macs'])} MACs, "
        f"{facts['channels']} BN channels{prunable}"
    )
