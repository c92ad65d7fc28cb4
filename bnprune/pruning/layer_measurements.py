"""What was measured of the layers of a network, and decides how much each loses: accuracies or latencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bnprune.notes import Note
from bnprune.pruning.latency_profile import LatencyProfile
from bnprune.pruning.latency_search import LatencyKnowledge
from bnprune.pruning.sensitivity import Sensitivity


class Path(Protocol):
    """A `pathlib.Path` or another path; this package reads no files itself."""

    def __fspath__(self) -> str:
        """Return the path as text."""
        ...


class WrittenFile(Protocol):
    """The result of `bnprune.sensitivity`, or another one that names the file that was written."""

    out: str


SensitivitySource = str | Path | WrittenFile | Sensitivity
"""A sensitivity table: a file, the result of `bnprune.sensitivity`, or the table itself."""
ProfileSource = str | Path | WrittenFile | LatencyProfile
"""A latency profile: a file that `bnprune profile` wrote, or the profile itself."""


@dataclass(frozen=True)
class LayerMeasurements:
    """A sensitivity table or a latency profile that fits the network; at most one of them."""

    sensitivity: Sensitivity | None = None
    latency: LatencyKnowledge | None = None
    notes: tuple[Note, ...] = ()
    """Warnings: it was measured with other weights, or with other versions of the packages."""
