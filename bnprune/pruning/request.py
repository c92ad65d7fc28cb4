"""What is asked for when a network is pruned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from bnprune.channels.trace import Coupling
from bnprune.errors import ConfigError
from bnprune.pruning.score import CRITERIA, Reduce
from bnprune.pruning.select import Constraints


@dataclass(frozen=True, slots=True)
class Request:
    """How much to remove, by which measure, and what must stay. Checked when it is made.

    Raises:
        ConfigError: A value is out of range.
    """

    ratio: float = 0.5
    """Share of the prunable BatchNorm channels to remove, in (0, 1)."""
    min_channels: int = 1
    """Channels every layer keeps at least."""
    exclude: tuple[str, ...] = ()
    """Layers whose width stays: module names, names of parents, or globs."""
    criterion: str = "gamma"
    reduce: Reduce = "max"
    coupling: Coupling = "shared"

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float):
            raise ConfigError(f"ratio: must be a number (got {self.ratio!r}).")
        if isinstance(self.min_channels, bool) or not isinstance(self.min_channels, int):
            raise ConfigError(f"min_channels: must be a whole number (got {self.min_channels!r}).")
        if not all(isinstance(pattern, str) for pattern in self.exclude):
            raise ConfigError(f"exclude: must be a list of patterns (got {self.exclude!r}).")
        if not 0 < self.ratio < 1:  # also false for NaN
            raise ConfigError(f"ratio: must be between 0 and 1, both excluded (got {self.ratio}). 0.5 removes half.")
        if self.min_channels < 1:
            raise ConfigError(f"min_channels: must be at least 1 (got {self.min_channels}).")
        _require_choice("criterion", self.criterion, tuple(CRITERIA))
        _require_choice("reduce", self.reduce, get_args(Reduce))
        _require_choice("coupling", self.coupling, get_args(Coupling))

    @property
    def constraints(self) -> Constraints:
        """What the selection must respect."""
        return Constraints(self.min_channels, self.exclude)

    def to_dict(self) -> dict[str, Any]:
        """Return the request as the plan records it."""
        return {**dataclasses.asdict(self), "exclude": list(self.exclude)}


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: '{value}' is unknown. Choose one of: {', '.join(choices)}.")
