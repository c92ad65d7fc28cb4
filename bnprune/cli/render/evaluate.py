"""The result of `evaluate`."""

from __future__ import annotations

from bnprune.cli.render.tables import show_rows
from bnprune.config.metrics import metric_of
from bnprune.workflows.results import EvaluateResult


def show_evaluate(result: EvaluateResult) -> None:
    """Print the values of the task on both splits."""
    metrics = {name: metric_of(name) for name in result.test.values if name != "loss"}
    columns = [metric.label for metric in metrics.values()] + ["loss"] * ("loss" in result.test.values)
    rows = [
        (
            split,
            *(metric.text(score.values.get(name)) for name, metric in metrics.items()),
            *([f"{score.values['loss']:.4f}"] if "loss" in score.values else []),
            str(score.count),
        )
        for split, score in (("validation", result.validation), ("test", result.test))
    ]
    show_rows(["split", *columns, "images"], rows)
