"""Open a network together with the data to evaluate it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bnprune.config.overrides import overridden_keys
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.data import Splits, splits_of
from bnprune.errors import ConfigError
from bnprune.runs.network_source import NetworkSource, RecipeNeeds, open_source, refuse_other_model, require_no_recipe
from bnprune.runs.preflight import choose_device, spec_of
from bnprune.training.compatibility import require_fit
from bnprune.training.tasks.factory import make_task
from bnprune.training.tasks.task import Task

_SECTIONS = ("data", "task")
"""Sections of a stored recipe that an evaluation needs."""


@dataclass(frozen=True)
class NetworkWithData:
    """A network, and the data to evaluate it on."""

    source: NetworkSource
    config: PipelineConfig
    splits: Splits
    device: torch.device
    task: Task


def open_with_data(
    source: str | Path | None,
    overrides: Sequence[str],
    *,
    model: str | None,
    model_arguments: Mapping[str, Any] | None,
    weights: str | Path | None,
    pretrained: bool,
    recipe: str | Path | None,
    trust: bool,
) -> NetworkWithData:
    """Open a network, and the data of the given recipe, or else of the recipe that is stored with the network.

    Raises:
        ConfigError: There is no recipe, or the data does not fit the network or the task.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint.
    """
    refuse_other_model(overrides)
    if source is not None:
        require_no_recipe(Path(source))
    given = None if recipe is None else load_recipe(Path(recipe), overrides)
    network = open_source(
        source,
        model=model,
        arguments=model_arguments,
        weights=weights,
        pretrained=pretrained,
        recipe=None if given is None else spec_of(given),
        needs=RecipeNeeds(overridden_keys(overrides), _SECTIONS) if given is None else None,
        trust=trust,
    )
    if given is not None:
        config = given
    elif network.header.config is None:
        message = f"{network.label}: no recipe is stored with it. Give one that names the data."
        raise ConfigError(message, remedy={"recipe": "CONFIG.yaml"})
    else:
        _require_labels(network, overrides)
        config = network.config(overrides, _SECTIONS)
    device = choose_device(config.device)
    splits, task = fitting_data(network, config)
    return NetworkWithData(network, config, splits, device, task)


def fitting_data(network: NetworkSource, config: PipelineConfig) -> tuple[Splits, Task]:
    """Load the data of a recipe for evaluating a network, and make the task.

    Raises:
        ConfigError: Data, task and network do not fit each other.
        DataError: The data cannot be read.
    """
    splits = splits_of(config)
    task = make_task(config.task, splits.classes)
    require_fit(network.model, splits, network.label, task=task)
    return splits, task


def _require_labels(network: NetworkSource, overrides: Sequence[str]) -> None:
    """Refuse the stored recipe of a fine-tuning without labels, before the question whether its file is trusted.

    Raises:
        ConfigError: The recipe has images without labels, and the user names no other data.
    """
    if overridden_keys(overrides) & {"data.name", "data.factory", "data.unlabelled"}:
        return
    data = (network.header.config or {}).get("data")
    stored = isinstance(data, Mapping) and data.get("unlabelled") is not None
    if stored or "data.unlabelled" in network.header.withheld:
        raise ConfigError(
            f"{network.label}: it was fine-tuned on images without labels, and its recipe names no others. Give a "
            "recipe that names a data set with labels.",
            remedy={"recipe": "CONFIG.yaml"},
        )
