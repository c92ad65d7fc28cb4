"""What `evaluate` does, and how a network gets its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bnprune.cli.display import print_json, show_rows
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.data import Splits, load_data
from bnprune.errors import ConfigError
from bnprune.runs.network_source import NetworkSource, open_source, refuse_other_model
from bnprune.runs.preflight import choose_device
from bnprune.training.compatibility import require_fit
from bnprune.training.evaluate import evaluate


@dataclass(frozen=True)
class Subject:
    """What the command line says about a network and its data."""

    path: Path | None
    overrides: Sequence[str]
    model: str | None
    arguments: Sequence[str]
    weights: Path | None
    recipe: Path | None
    trust: bool = False


@dataclass(frozen=True)
class Opened:
    """A network, and the data to evaluate it on."""

    source: NetworkSource
    config: PipelineConfig
    splits: Splits
    device: torch.device


def open_with_data(subject: Subject) -> Opened:
    """Open a network, and the data of its recipe or another.

    Raises:
        ConfigError: There is no recipe, or it does not fit.
    """
    refuse_other_model(subject.overrides)
    source = open_source(
        subject.path, model=subject.model, arguments=subject.arguments, weights=subject.weights, trust=subject.trust
    )
    if subject.recipe is not None:
        config = load_recipe(subject.recipe, subject.overrides)
    elif source.header.config is None:
        raise ConfigError(f"{source.label}: no recipe is stored with it. Say which data: --config CONFIG.yaml")
    else:
        config = source.config(subject.overrides, sections=("data",))
    device = choose_device(config.device)
    splits = load_data(config.data)
    require_fit(source.model, splits, source.label)
    return Opened(source, config, splits, device)


def run_evaluate(subject: Subject, *, as_json: bool) -> None:
    """Evaluate a network on validation and test images."""
    opened = open_with_data(subject)
    network, splits, device = opened.source.model.to(opened.device), opened.splits, opened.device
    scores = {
        "validation": evaluate(network, splits.validation, device),
        "test": evaluate(network, splits.test, device),
    }
    if as_json:
        documents = {
            name: {"top1": score.top1, "loss": score.loss, "count": score.count} for name, score in scores.items()
        }
        print_json({"schema": "bnprune.evaluate/1", "accuracy": scores["test"].top1, **documents})
        return
    rows = [(name, f"{score.top1:.2%}", f"{score.loss:.4f}", str(score.count)) for name, score in scores.items()]
    show_rows(["split", "accuracy", "loss", "images"], rows)
