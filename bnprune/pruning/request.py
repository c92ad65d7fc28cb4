"""The request to prune a network: the target and constraints of `config.prune_options`, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from bnprune.channels.network_outputs import recorded
from bnprune.config.prune_options import TARGETS as TARGETS
from bnprune.config.prune_options import PruneOptions, prune_options
from bnprune.config.prune_options import TargetKind as TargetKind
from bnprune.config.tables import CRITERIA, Criterion
from bnprune.errors import ConfigError
from bnprune.pruning.candidates import Constraints

_ALWAYS_RECORDED = ("min_channels", "criterion", "reduce", "coupling")
"""Constraints that a plan records even if they have their defaults."""


@dataclass(frozen=True, kw_only=True)
class Request(PruneOptions):
    """Targets and constraints of one pruning, with exactly one target. Checked when it is made.

    Raises:
        ConfigError: A value is of the wrong type or out of range, or there is not exactly one target.
    """

    def __post_init__(self) -> None:
        given = [kind for kind in TARGETS if getattr(self, kind) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ConfigError(f"give exactly one of {', '.join(TARGETS)} (got {got}).")
        for name, option in prune_options().items():
            option.check(getattr(self, name))

    @property
    def target(self) -> tuple[TargetKind, float]:
        """The kind of target and its value."""
        return next((kind, getattr(self, kind)) for kind in TARGETS if getattr(self, kind) is not None)

    @property
    def weighs_macs(self) -> bool:
        """True if the selection depends on MACs, which then have to be counted on real values."""
        return self.macs is not None or self.latency_ms is not None or self.criterion == "gamma-per-mac"

    def aimed(self, kind: TargetKind, value: float) -> Request:
        """Return the same request with another target."""
        targets: dict[str, Any] = {**dict.fromkeys(TARGETS), kind: value}
        return replace(self, **targets)

    @property
    def default_cap(self) -> float | None:
        """The cap of the criterion, if `cap` is not given; None if there is none.

        Scores that are compared across layers can be far smaller in some layers than in others, although the
        network does not need these less. Every layer therefore keeps a share (`tables.Criterion.least_width`) of the
        width that it would have if all layers were pruned alike. Example for a share of 0.5: for `ratio` 0.6 this width
        is 0.4, and the cap 1 - 0.5 · 0.4 = 0.8; for `macs` 0.25, it is about √0.25, and the cap 0.75.

        The share 0.5 was chosen on two ordinary ResNet-20 (CIFAR-10 at 16x16), by validation accuracy after
        recalibration at 0.7 / 0.5 / 0.3 of the MACs::

            share        0 (no cap)        0.3               0.5               0.7
            activation   66.5 54.9 29.8    66.5 56.4 35.8    67.0 55.0 36.3    66.6 53.0 31.9
            taylor       56.0 34.8 20.2    60.7 47.6 30.6    62.9 53.1 33.0    63.8 53.5 27.6
            l2           41.4 22.8 14.8    54.8 40.1 26.1    58.7 46.1 29.0    60.9 47.9 24.6
            gamma        53.5 39.8 27.9    53.5 39.8 27.4    53.3 39.8 26.2    52.7 40.3 22.9
        """
        kind, value = self.target
        entry = CRITERIA[self.criterion]
        least = entry.least_width if isinstance(entry, Criterion) else 0.0
        if self.cap is not None or self.layer_ratios or not least or kind == "latency_ms":
            return None
        return 1 - least * (1 - value if kind == "ratio" else math.sqrt(value))

    @property
    def constraints(self) -> Constraints:
        """The constraints that the selection of channels must respect."""
        values = {item.name: getattr(self, item.name) for item in fields(Constraints)}
        values["cap"] = self.cap or self.default_cap or 1.0
        return Constraints(**values | {"layer_ratios": tuple((self.layer_ratios or {}).items())})

    def to_dict(self) -> dict[str, Any]:
        """Return the request as a plan records it: the target, and the constraints that differ from their defaults."""
        kind, value = self.target
        data: dict[str, Any] = {kind: value, **{name: getattr(self, name) for name in _ALWAYS_RECORDED}}
        for name, option in prune_options().items():
            own = getattr(self, name)
            if not option.is_target and name not in (*data, "exclude") and own not in (option.default, {}):
                data[name] = recorded(own) if name == "outputs" else own
        return {**data, "exclude": list(self.exclude)}
