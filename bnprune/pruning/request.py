"""The request to prune a network: the target and constraints of `config.prune_options`, checked."""

from __future__ import annotations

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
            raise ConfigError(
                f"give exactly one of {', '.join(TARGETS)} (got {got}). For example, ratio=0.5 removes half of the "
                "prunable channels, and macs=0.5 keeps half of the multiply-accumulates."
            )
        for name, option in prune_options().items():
            option.check(getattr(self, name))

    @property
    def target(self) -> tuple[TargetKind, float]:
        """The kind of target and its value."""
        return next((kind, getattr(self, kind)) for kind in TARGETS if getattr(self, kind) is not None)

    @property
    def ranked_by(self) -> str:
        """The name of the criterion: the one that is given or, without one, the default for the target.

        The default is `gamma` for a ratio, as in Liu et al., ICCV 2017, and for a latency, where scores are weighed
        against milliseconds. For MACs and parameters it is `auto`.
        """
        by_cost = self.macs is not None or self.params is not None
        return self.criterion or ("auto" if by_cost else "gamma")

    @property
    def weighs_macs(self) -> bool:
        """True if the selection depends on MACs, which then have to be counted on real values."""
        return self.macs is not None or self.latency_ms is not None or self.ranked_by == "gamma-per-mac"

    def aimed(self, kind: TargetKind, value: float) -> Request:
        """Return the same request with another target."""
        targets: dict[str, Any] = {**dict.fromkeys(TARGETS), kind: value}
        return replace(self, **targets)

    @property
    def least_width(self) -> float:
        """Share of the width under equal pruning that every layer keeps; 0 for no limit. See `pruning.least_widths`.

        It is 0 for a latency: no formula says how wide layers would be if all were cut alike.
        """
        kind, _ = self.target
        entry = CRITERIA[self.ranked_by]
        if self.cap is not None or self.layer_ratios or not isinstance(entry, Criterion) or kind == "latency_ms":
            return 0.0
        return entry.least_width if entry.limits_ratio or kind != "ratio" else 0.0

    @property
    def constraints(self) -> Constraints:
        """The constraints that the selection of channels must respect."""
        values = {item.name: getattr(self, item.name) for item in fields(Constraints)}
        values["cap"] = self.cap or 1.0
        return Constraints(**values | {"layer_ratios": tuple((self.layer_ratios or {}).items())})

    def to_dict(self) -> dict[str, Any]:
        """Return the request as a plan records it: the target, and the constraints that differ from their defaults."""
        kind, value = self.target
        data: dict[str, Any] = {kind: value, **{name: getattr(self, name) for name in _ALWAYS_RECORDED}}
        data["criterion"] = self.ranked_by
        for name, option in prune_options().items():
            own = getattr(self, name)
            if not option.is_target and name not in (*data, "exclude") and own not in (option.default, {}):
                data[name] = recorded(own) if name == "outputs" else own
        return {**data, "exclude": list(self.exclude)}
