"""Evaluate: accuracy and loss of a network on validation and test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnprune.training.evaluate import Score
from bnprune.training.evaluate import evaluate as evaluate_model
from bnprune.workflows.data_source import open_with_data
from bnprune.workflows.results import EvaluateResult, SplitScore


def evaluate(
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    recipe: str | Path | None = None,
    trust: bool = False,
) -> EvaluateResult:
    """Evaluate a network on validation and test images.

    Args:
        source: A run directory or a checkpoint.
        overrides: `key=value` pairs that replace keys of the recipe.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        recipe: Recipe that names the data; default: the one in the checkpoint.
        trust: Run the code and use the paths that the files name.

    Raises:
        ConfigError: There is no recipe, or the data does not fit the network.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint.
    """
    opened = open_with_data(
        source,
        overrides,
        model=model,
        model_arguments=model_arguments,
        weights=weights,
        pretrained=pretrained,
        recipe=recipe,
        trust=trust,
    )
    network, splits, device = opened.source.model.to(opened.device), opened.splits, opened.device
    validation = evaluate_model(network, splits.validation, device, task=opened.task)
    test = evaluate_model(network, splits.test, device, task=opened.task)
    return EvaluateResult(accuracy=test.value, metric=test.name, validation=_score(validation), test=_score(test))


def _score(score: Score) -> SplitScore:
    loss = score.values.get("loss")
    return SplitScore(top1=score.value, loss=loss, count=score.count, values=dict(score.values))
