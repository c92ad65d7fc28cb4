"""The input and the output of an export format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from bnprune.exporters.parity import Runner


@dataclass(frozen=True)
class ExportRequest:
    """One network to be written in one format."""

    model: nn.Module
    shape: tuple[int, ...]
    """Shape of one input, without the batch dimension."""
    suffix: str
    """Suffix of the main file."""
    batch: int | None = None
    """The only batch size; None for any."""
    title: str = "network"
    """Name of the network in files that people read."""
    stem: str = "network"
    """Name of the files, without suffix."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Entries for the metadata of a file, in formats that have any."""


@dataclass(frozen=True)
class ExportedFiles:
    """The files of one export, not yet on disk."""

    content: dict[str, bytes]
    """Content by suffix."""
    load: Callable[[], Runner] | None
    """Loads the files, so that their outputs can be compared with the network's; None if they cannot be run."""
    notes: tuple[str, ...] = ()
