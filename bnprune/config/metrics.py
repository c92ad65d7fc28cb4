"""The metrics that networks are judged by: how they are called and written."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that networks are compared by, the larger the better: its name, and how it is written."""

    label: str
    """Its name in tables and pages, such as "accuracy" or "mIoU"."""
    share: bool
    """True if it lies in [0, 1] and is written in percent."""

    @property
    def title(self) -> str:
        """The name at the start of a heading."""
        return self.label[0].upper() + self.label[1:] if self.label.islower() else self.label

    @property
    def most(self) -> float:
        """The largest value; infinite if it is not known."""
        return 1.0 if self.share else math.inf

    def text_on_axis(self, value: float) -> str:
        """Write a value beside a tick of an axis."""
        return self.text(value, 0)

    def text(self, value: float | None, digits: int = 2) -> str:
        """Write a value: "98.61%" for a metric in [0, 1], "-0.1234" for any other; "-" if the value is not known."""
        if value is None:
            return "-"
        return f"{value:.{digits}%}" if self.share else f"{value:.4g}"

    def difference(self, change: float) -> str:
        """Write a difference of two values: "+0.28 points", or "−0.0012"."""
        if self.share and abs(change) < 5e-5:
            return "±0.00 points"
        return (f"{100 * change:+.2f} points" if self.share else f"{change:+.4g}").replace("-", "−")


METRICS = {
    "top1": Metric("accuracy", share=True),
    "miou": Metric("mIoU", share=True),
    "pixel_accuracy": Metric("pixel accuracy", share=True),
    "map": Metric("mAP", share=True),
    "map50": Metric("mAP50", share=True),
    "agreement": Metric("agreement", share=True),
}
"""The metrics of bnprune's tasks, by the name that a task gives them."""


def metric_of(name: str) -> Metric:
    """Return a metric by name; one of a user's own task is called by its name, and written as a number."""
    return METRICS.get(name) or Metric(name.replace("_", " "), share=False)
