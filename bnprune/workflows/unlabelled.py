"""The recipe of a fine-tuning without labels: a folder of images takes the place of the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnprune.config.recipe import amend_data, as_data
from bnprune.config.schema import PipelineConfig
from bnprune.data.unlabelled import Preprocessing
from bnprune.errors import ConfigError
from bnprune.notes import Note
from bnprune.runs.network_source import NetworkSource
from bnprune.workflows.calibration_data import preprocessing_of

_KEPT = ("batch_size", "validation", "augment", "in_memory", "workers")
"""Keys of the `data` section that also apply to the folder."""


def unlabelled_recipe(
    network: NetworkSource, given: PipelineConfig | None, folder: Path, overrides: Sequence[str] = ()
) -> tuple[PipelineConfig, tuple[Note, ...]]:
    """Return a recipe whose data is a folder of images without labels.

    Images are preprocessed as those that the network was trained on, if the recipe's data can be opened; otherwise with
    mean and standard deviation of ImageNet, and a remark says so. The recipe contains both, so that it can be repeated.

    Args:
        network: The network, perhaps with a stored recipe. Without any recipe, all other keys have their defaults.
        given: The recipe that the user gave, with its overrides.
        folder: The folder.
        overrides: `key=value` pairs for the stored recipe.

    Raises:
        ConfigError: The network does not take square images, or an override is wrong.
        CheckpointError: The stored recipe is not valid here.
        UntrustedError: The stored recipe names code or paths that are needed, other than its data.
    """
    used, notes = preprocessing_of(network, given)
    if used.height != used.width:
        raise ConfigError(
            f"fine-tuning reads square images only, and the network takes {used.height}x{used.width}.",
            argument="unlabelled",
        )
    if given is not None:
        return amend_data(_with_folder(as_data(given), folder, used), ()), notes
    header = network.header
    stored = header.config or {"model": header.spec.to_dict()}
    header = replace(header, config=_with_folder(stored, folder, used))
    return replace(network, header=header).given("data").config(overrides), notes


def _with_folder(recipe: Mapping[str, Any], folder: Path, used: Preprocessing) -> dict[str, Any]:
    stored = recipe.get("data")
    kept = {key: stored[key] for key in _KEPT if key in stored} if isinstance(stored, Mapping) else {}
    pixels = {"image_size": used.height, "mean": list(used.mean), "std": list(used.std)}
    return {**recipe, "data": {**kept, "unlabelled": str(folder), **pixels}}
