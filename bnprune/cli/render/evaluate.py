"""The result of `evaluate`."""

from __future__ import annotations

from bnprune.cli.render.tables import show_rows
from bnprune.workflows.results import EvaluateResult


def show_evaluate(result: EvaluateResult) -> None:
    """Print accuracy and loss on both splits."""
    scores = {"validation": result.validation, "test": result.test}
    rows = [(name, f"{score.top1:.2%}", f"{score.loss:.4f}", str(score.count)) for name, score in scores.items()]
    show_rows(["split", "accuracy", "loss", "images"], rows)
