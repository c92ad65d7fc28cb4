"""Sensitivity tables and latency profiles for a cut: read, and compared with the network and the request.

The command line, recipes and `bnprune.prune` all call `layer_measurements`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from bnprune.errors import ConfigError
from bnprune.pruning.latency_profile import LatencyProfile
from bnprune.pruning.layer_measurements import LayerMeasurements, ProfileSource, SensitivitySource
from bnprune.pruning.request import Request
from bnprune.pruning.sensitivity import Sensitivity
from bnprune.workflows.profile import fitting_profile, read_profile
from bnprune.workflows.sensitivity import fitting_table, read_table


def layer_measurements(
    model: nn.Module,
    example_inputs: Any,
    request: Request | None,
    *,
    sensitivity: SensitivitySource | None = None,
    profile: ProfileSource | None = None,
) -> LayerMeasurements:
    """Read a sensitivity table or a latency profile, and check that it fits.

    Args:
        model: The network to prune.
        example_inputs: As for `bnprune.prune`.
        request: The target and the constraints; None if a plan is replayed.
        sensitivity: The table; None for none.
        profile: The profile; None for none.

    Raises:
        ConfigError: The request cannot use it, or the profile was made with another number of threads or a backend that
            is not installed.
        CheckpointError: The file cannot be read, or was made for another network.
    """
    if profile is not None and (request is None or request.latency_ms is None):
        message = "a latency profile serves a target in milliseconds. Give one, or leave the profile out."
        raise ConfigError(message, argument="profile")
    if sensitivity is not None:
        if request is None:
            message = "a plan says which channels go. Leave the sensitivity table out."
            raise ConfigError(message, argument="sensitivity")
        if profile is not None:
            message = "a sensitivity table and a latency profile both decide how much each layer loses. Give one."
            raise ConfigError(message, argument="sensitivity")
        if isinstance(sensitivity, Sensitivity):
            table, label = sensitivity, "the sensitivity table given"
        else:
            path = _path(sensitivity, "sensitivity")
            table, label = read_table(path, "sensitivity"), f"'{path}'"
        return LayerMeasurements(sensitivity=table, notes=fitting_table(table, label, model))
    if profile is not None:
        if isinstance(profile, LatencyProfile):
            made, label = profile, "the latency profile given"
        else:
            path = _path(profile, "profile")
            made, label = read_profile(path), f"'{path}'"
        known, notes = fitting_profile(made, label, model, example_inputs)
        return LayerMeasurements(latency=known, notes=notes)
    return LayerMeasurements()


def _path(source: Any, argument: str) -> Path:
    """Return the file: the one given, or the one that a result names."""
    found = source if isinstance(source, str | PathLike) else getattr(source, "out", None)
    if not isinstance(found, str | PathLike):
        message = f"{argument}: expected a file, or what it holds, got {type(source).__name__}."
        raise ConfigError(message, argument=argument)
    return Path(found)
