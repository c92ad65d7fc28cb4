"""What a network takes and returns, as far as its data set says it."""

from __future__ import annotations

from collections.abc import Sequence

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


def sizing_of(inputs: InputFormat) -> str:
    """Say how an image gets the size of an input, as a clause."""
    height, width = inputs.size
    if not inputs.crop:
        return f"resize to {height}×{width}"
    return f"resize the shorter side to {round(height * 256 / 224)}, crop {height}×{width} from the middle"


def per_channel(values: Sequence[float]) -> str:
    """Write one number per channel, such as a mean: "(0.4850, 0.4560, 0.4060)"."""
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
