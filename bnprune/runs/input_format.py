"""What a network takes and returns, as far as its data set says it."""

from __future__ import annotations

from bnprune.data.splits import Splits
from bnprune.data.unlabelled import Preprocessing
from bnprune.errors import ConfigError
from bnprune.runs.results import InputFormat


def input_format_of(splits: Splits) -> InputFormat | None:
    """Return how images become inputs, and the names of the classes; None if it is not known."""
    if splits.normalisation is None:
        return None
    try:
        used = Preprocessing.of(splits.shape, *splits.normalisation)
    except ConfigError:  # inputs that are not images with one or three channels
        return None
    return InputFormat(
        size=[used.height, used.width],
        crop=used.crop and splits.targets == "labels",
        mean=list(used.mean),
        std=list(used.std),
        classes=list(splits.class_names),
    )
