"""Means, spreads and paired differences over the seeds, from the documents of cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5% quantiles of Student's t, for 1 to 10 degrees of freedom; the last serves for more, on the safe side."""


@dataclass(frozen=True)
class Difference:
    """Of an arm and the default, over the seeds that both have; positive if the arm is better."""

    mean: float
    margin: float | None
    """Half of the 95% interval; None for a single seed."""
    seeds: int

    @property
    def verdict(self) -> str:
        """Return "ahead" or "behind" if zero is outside the interval, else an empty text."""
        if self.margin is None or abs(self.mean) <= self.margin:
            return ""
        return "ahead" if self.mean > 0 else "behind"


def value(document: Document, *keys: str) -> float | None:
    """Return a figure of a document, by the path of its keys; None if it has none."""
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def values(documents: Iterable[Document], *keys: str) -> list[float]:
    """Return a figure of those documents that have it."""
    return [found for document in documents if (found := value(document, *keys)) is not None]


def difference(arm: Sequence[Document], default: Sequence[Document], *keys: str) -> Difference | None:
    """Return the paired difference of a figure over the seeds; None if no seed has both."""
    first, second = ({document["cell"]["seed"]: value(document, *keys) for document in side} for side in (arm, default))
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    found = [own - other for own, other in pairs if own is not None and other is not None]
    if not found:
        return None
    margin = None
    if len(found) > 1:
        margin = _T[min(len(found) - 1, len(_T)) - 1] * statistics.stdev(found) / math.sqrt(len(found))
    return Difference(statistics.mean(found), margin, len(found))


def of_arm(documents: Iterable[Document], network: str, arm: str, share: float | None) -> list[Document]:
    """Return the documents of an arm, or a base, in the order of their seeds."""
    wanted = (network, arm, share)
    found = [
        document
        for document in documents
        if (document["cell"]["network"], document["cell"]["arm"], document["cell"]["macs"]) == wanted
    ]
    return sorted(found, key=lambda document: document["cell"]["seed"])
