"""The networks before a fine-tuning that starts from a checkpoint: the dense one and the pruned one, for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnprune.runs.results import Change, Pruned, StageResult


def networks_before(dense: Mapping[str, int], pruned: Mapping[str, Any]) -> dict[str, StageResult]:
    """Return the figures of the dense network ("baseline"), whose accuracy is not known, and of the pruned one.

    Args:
        dense: Channels, parameters and MACs.
        pruned: The same of the network that the fine-tuning starts from, and its accuracies.
    """
    changes = {key: Change(before=value, after=pruned[key]) for key, value in dense.items()}
    nothing = {"accuracy": None, "validation_accuracy": None, "loss": None}
    no_file = {"file_bytes": 0, "checkpoint": ""}
    return {
        "baseline": StageResult.model_validate({**nothing, **dense, **no_file}),
        "prune": StageResult.model_validate({**pruned, **no_file, "pruned": Pruned(**changes)}),
    }
