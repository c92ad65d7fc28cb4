"""The sensitivity of a network: its accuracy after each group of layers was cut alone, by several shares. Pure data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnprune.config.bounded_reading import items, parse_json, require_shape, table, whole, words
from bnprune.errors import CheckpointError, quoted, shortened

SCHEMA = "bnprune.sensitivity-table/1"
_WIDEST = 1 << 24
"""Channels of a layer."""
_MOST_IMAGES = 1 << 40
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CutAlone:
    """A cut of one group of layers, with all others as they were."""

    share: float
    """Share of the group's channels that was asked for."""
    removed: int
    """Channels that were removed."""
    plain: float
    """Validation accuracy (the main value of the task) right after the cut."""
    accuracy: float
    """The same after recovery."""


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """The accuracy after cuts of layers whose channels go together."""

    layers: tuple[str, ...]
    """Names of the layers, in the order of the network."""
    channels: int
    """Sets of channels that go together: the width of the layers, if each has one channel in every set."""
    points: tuple[CutAlone, ...]
    """The cuts, the smallest first."""

    def losses_at(self, shares: Numbers, start: float) -> Numbers:
        """Return the loss of accuracy for shares of the channels removed, same shape; infinite beyond the largest cut.

        The measured losses are made monotone by isotonic regression: fluctuations of an evaluation average out. In
        between, the loss is interpolated linearly.

        Args:
            shares: Shares in [0, 1].
            start: Accuracy before the cuts.
        """
        cut = np.array([0.0, *(point.removed / self.channels for point in self.points)])
        losses = increasing([0.0, *(start - point.accuracy for point in self.points)])
        return np.where(shares <= cut[-1] + 1e-12, np.interp(shares, cut, losses), np.inf)


def increasing(values: Sequence[float]) -> Numbers:
    """Return the nearest sequence, in the sense of least squares, that never decreases (isotonic regression).

    Neighbours in the wrong order are replaced by their mean until there are none (pool adjacent violators):

        0  3  1  4   ->   0  2  2  4
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (after, more), (before, count) = pools.pop(), pools.pop()
            pools.append(((before * count + after * more) / (count + more), count + more))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools]).astype(np.float64)


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivities of all groups of layers of one network."""

    model: str
    """Class name of the network."""
    digest: str
    """SHA-256 over the names and shapes of its parameters and buffers; see `bnprune.pruning.plan.identity`."""
    weights: str
    """SHA-256 over their values."""
    shape: tuple[int, ...]
    """Shape of one input, without the batch."""
    shares: tuple[float, ...]
    """Shares of the channels that were tried, ascending."""
    settings: Mapping[str, Any]
    """The criterion, the constraints, and the ways of recovery."""
    images: int
    """Validation images."""
    accuracy: float
    """Validation accuracy before the cuts."""
    groups: tuple[GroupSensitivity, ...] = ()
    """In the order of the network."""

    def group(self, layers: tuple[str, ...]) -> GroupSensitivity | None:
        """Return the sensitivity of a group, by the names of its layers; None if it was not measured."""
        return next((group for group in self.groups if group.layers == layers and group.points), None)

    def to_json(self) -> str:
        """Return the table as JSON text; `Sensitivity.from_json` reads it back."""
        data = asdict(self)
        model = {"name": data.pop("model"), "digest": data.pop("digest"), "weights": data.pop("weights")}
        return json.dumps({"schema": SCHEMA, "model": model, "input": data.pop("shape"), **data}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Read a table.

        Raises:
            CheckpointError: The text is not such a table.
        """
        try:
            return _from_data(table(parse_json(text)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"not a sensitivity table: {shortened(reason)}") from error


def _from_data(data: Mapping[str, Any]) -> Sensitivity:
    if data.get("schema") != SCHEMA:
        raise ValueError(f"expected schema '{SCHEMA}', got {quoted(data.get('schema'))}")
    model = table(data["model"])
    return Sensitivity(
        model=words(model["name"]),
        digest=words(model["digest"]),
        weights=words(model["weights"]),
        shape=require_shape(data["input"]),
        shares=tuple(_number(share, 0, 1) for share in items(data["shares"])),
        settings=table(data["settings"]),
        images=whole(data["images"], _MOST_IMAGES),
        accuracy=_number(data["accuracy"]),
        groups=tuple(map(_group_from, items(data["groups"]))),
    )


def _group_from(entry: Any) -> GroupSensitivity:
    data = table(entry)
    channels = whole(data["channels"], _WIDEST, 1)
    points = tuple(_point_from(table(point), channels) for point in items(data["points"]))
    if any(one.removed >= other.removed for one, other in pairwise(points)):
        raise ValueError("expected cuts that remove more and more channels")
    return GroupSensitivity(tuple(map(words, items(data["layers"]))), channels, points)


def _point_from(data: Mapping[str, Any], channels: int) -> CutAlone:
    removed = whole(data["removed"], channels, 1)
    return CutAlone(_number(data["share"], 0, 1), removed, _number(data["plain"]), _number(data["accuracy"]))


def _number(value: Any, least: float = -1e18, most: float = 1e18) -> float:
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(f"expected a number from {least:g} to {most:g}, got {quoted(value)}")
    return float(value)
