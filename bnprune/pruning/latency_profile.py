"""A latency profile: the measured latency of every layer of a network over its widths, on one machine. Pure data."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from bnprune.config.bounded_reading import items, parse_json, require_shape, table, whole, words
from bnprune.errors import CheckpointError, quoted, shortened

SCHEMA = "bnprune.latency-profile/1"
_WIDEST = 1 << 24
"""Channels of a layer."""
_MOST_THREADS, _MOST_BATCH = 1 << 16, 1 << 20


@dataclass(frozen=True, slots=True)
class Steps:
    """The multiples of channels at which the latency of a layer changes; 1 if it changes with every channel."""

    inputs: int = 1
    outputs: int = 1


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one kind of layer for some of its widths; between them, latency is interpolated."""

    inputs: tuple[int, ...]
    """Input widths, ascending; of a grouped convolution, the widths of one group. The last one is that of the layer."""
    outputs: tuple[int, ...]
    """Output widths, ascending."""
    ms: tuple[tuple[float, ...], ...]
    """Milliseconds, shape (inputs, outputs)."""
    steps: Steps = Steps()

    def interpolation(self) -> Callable[[int, int], float]:
        """Return a function (inputs, outputs) -> milliseconds, bilinear between the measured widths.

        A narrower layer may take longer, if it runs in another kernel. Below the smallest measured width the line
        through the two smallest continues, but not below zero.
        """
        values = self.ms

        def latency(inputs: int, outputs: int) -> float:
            row, down = _place(self.inputs, inputs)
            column, right = _place(self.outputs, outputs)
            total = 0.0
            for i, weight in ((row, 1 - down), (row + 1, down)):
                for j, other in ((column, 1 - right), (column + 1, right)):
                    if weight and other:
                        total += weight * other * values[i][j]
            return max(total, 0.0)

        return latency


def _place(widths: Sequence[int], width: int) -> tuple[int, float]:
    """Return the interval that a width lies in, and its position there; both 0 for a width that does not vary."""
    if len(widths) == 1:
        return 0, 0.0
    index = min(max(bisect_right(widths, width) - 1, 0), len(widths) - 2)
    return index, (width - widths[index]) / (widths[index + 1] - widths[index])


@dataclass(frozen=True, slots=True)
class ProfiledLayer:
    """One call of a layer, in the order of the forward pass."""

    name: str
    table: int
    """Index of its table; layers of the same geometry, widths and input size share one."""


@dataclass(frozen=True)
class LatencyProfile:
    """The latencies of the layers of one network, for one input size, batch size, backend and machine."""

    model: str
    """Class name of the network."""
    digest: str
    """SHA-256 over the names and shapes of its parameters and buffers; see `bnprune.pruning.plan.identity`."""
    shape: tuple[int, ...]
    """Shape of one input, without the batch."""
    batch: int
    backend: str
    """"eager" or "onnxruntime"."""
    threads: int
    machine: Mapping[str, str]
    """Name of the processor and of the platform."""
    versions: Mapping[str, str]
    """Of bnprune, torch and, if it is the backend, onnxruntime."""
    total_ms: float
    """Milliseconds of a forward pass of the whole network."""
    layers: tuple[ProfiledLayer, ...]
    tables: tuple[LatencyTable, ...]
    rest: tuple[float, ...] = ()
    """Milliseconds of every other operator that computes something, in the order of the forward pass; empty if they
    were not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain data."""
        data = asdict(self)
        model = {"name": data.pop("model"), "digest": data.pop("digest")}
        return {"schema": SCHEMA, "model": model, "input": list(data.pop("shape")), **data}

    def to_json(self) -> str:
        """Return the profile as JSON text; `LatencyProfile.from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyProfile:
        """Read a profile.

        Raises:
            CheckpointError: The text is not a profile.
        """
        try:
            return _from_data(table(parse_json(text)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"not a latency profile: {shortened(reason)}") from error


def _from_data(data: Mapping[str, Any]) -> LatencyProfile:
    if data.get("schema") != SCHEMA:
        raise ValueError(f"expected schema '{SCHEMA}', got {quoted(data.get('schema'))}")
    tables = tuple(_table_from(entry) for entry in items(data["tables"]))
    return LatencyProfile(
        model=words(data["model"]["name"]),
        digest=words(data["model"]["digest"]),
        shape=require_shape(data["input"]),
        batch=whole(data["batch"], _MOST_BATCH, 1),
        backend=words(data["backend"]),
        threads=whole(data["threads"], _MOST_THREADS, 1),
        machine={words(key): words(value) for key, value in table(data["machine"]).items()},
        versions={words(key): words(value) for key, value in table(data["versions"]).items()},
        total_ms=_milliseconds(data["total_ms"]),
        layers=tuple(
            ProfiledLayer(words(entry["name"]), whole(entry["table"], len(tables) - 1))
            for entry in map(table, items(data["layers"]))
        ),
        tables=tables,
        rest=tuple(map(_milliseconds, items(data["rest"]))),
    )


def _table_from(entry: Any) -> LatencyTable:
    inputs, outputs = (_widths(table(entry)[axis]) for axis in ("inputs", "outputs"))
    rows = tuple(tuple(map(_milliseconds, items(row))) for row in items(entry["ms"]))
    if len(rows) != len(inputs) or any(len(row) != len(outputs) for row in rows):
        raise ValueError(f"expected {len(inputs)} x {len(outputs)} latencies in a table")
    steps = Steps(*(whole(table(entry["steps"])[axis], _WIDEST, 1) for axis in ("inputs", "outputs")))
    return LatencyTable(inputs, outputs, rows, steps)


def _widths(value: Any) -> tuple[int, ...]:
    widths = tuple(whole(width, _WIDEST, 1) for width in items(value))
    if not widths or any(one >= other for one, other in pairwise(widths)):
        raise ValueError(f"expected ascending widths, got {quoted(value)}")
    return widths


def _milliseconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e9:
        raise ValueError(f"expected milliseconds, got {quoted(value)}")
    return float(value)
