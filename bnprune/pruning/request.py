"""What is asked for when a network is pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bnprune.channels.trace_modes import Coupling
from bnprune.errors import ConfigError, quoted, shortened
from bnprune.pruning.candidates import Constraints
from bnprune.pruning.scores import CRITERIA, Reduce

TargetKind = Literal["ratio", "macs", "params", "latency_ms"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)


@dataclass(frozen=True, slots=True)
class Request:
    """How much to remove, by which measure, and what must stay. Checked when it is made.

    Exactly one of the targets `ratio`, `macs`, `params` and `latency_ms` is given.

    Raises:
        ConfigError: A value is out of range.
    """

    ratio: float | None = None
    """Share of the prunable BatchNorm channels to remove, in (0, 1)."""
    macs: float | None = None
    """Share of the MACs to keep at most, in (0, 1)."""
    params: float | None = None
    """Share of the parameters to keep at most, in (0, 1)."""
    latency_ms: float | None = None
    """Milliseconds a forward pass may take on this machine, with the example inputs as the batch."""
    min_channels: int = 1
    """Channels every layer keeps at least."""
    cap: float = 1.0
    """Largest share of a layer's channels that goes."""
    round_to: int = 1
    """Widths that are a multiple of this stay multiples of it."""
    exclude: tuple[str, ...] = ()
    """Layers whose width stays: module names, names of parents, or globs."""
    layer_ratios: Mapping[str, float] | None = None
    """Share of the channels that goes in layers with a ratio of their own, by name pattern; 0 keeps them whole."""
    criterion: str = "gamma"
    reduce: Reduce = "max"
    coupling: Coupling = "shared"
    fold_bias: bool = False
    """Whether biases that a following BatchNorm makes redundant go as well."""

    def __post_init__(self) -> None:
        given = [kind for kind in TARGETS if getattr(self, kind) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ConfigError(f"give exactly one of {', '.join(TARGETS)} (got {got}).")
        self._require_target(*given)
        for name in ("min_channels", "round_to"):
            _require_count(name, getattr(self, name))
        _require_number("cap", self.cap)
        if not 0 < self.cap <= 1:
            raise ConfigError(
                f"cap: must be above 0 and at most 1 (got {quoted(self.cap)}). 0.5 keeps half of every layer."
            )
        if not all(isinstance(pattern, str) for pattern in self.exclude):
            raise ConfigError(f"exclude: must be a list of patterns (got {quoted(self.exclude)}).")
        if not isinstance(self.layer_ratios, Mapping | None):
            raise ConfigError(f"layer_ratios: must map patterns to ratios (got {quoted(self.layer_ratios)}).")
        for pattern, ratio in (self.layer_ratios or {}).items():
            _require_number(f"layer_ratios: {shortened(str(pattern))}", ratio)
            if not 0 <= ratio <= 1:
                raise ConfigError(
                    f"layer_ratios: {shortened(str(pattern))}: must be between 0 and 1 (got {quoted(ratio)})."
                )
        _require_choice("criterion", self.criterion, tuple(CRITERIA))
        _require_choice("reduce", self.reduce, get_args(Reduce))
        _require_choice("coupling", self.coupling, get_args(Coupling))

    def _require_target(self, kind: str) -> None:
        value = getattr(self, kind)
        _require_number(kind, value)
        if kind == "latency_ms":
            if not 0 < value <= 1e6:  # also false for NaN
                raise ConfigError(f"latency_ms: must be above 0, and at most 1e6 (got {quoted(value)}).")
        elif not 0 < value < 1:  # also false for NaN
            example = "removes half" if kind == "ratio" else "keeps half"
            raise ConfigError(f"{kind}: must be between 0 and 1, both excluded (got {quoted(value)}). 0.5 {example}.")

    @property
    def target(self) -> tuple[TargetKind, float]:
        """The kind of target and its value."""
        return next((kind, getattr(self, kind)) for kind in TARGETS if getattr(self, kind) is not None)

    @property
    def weighs_macs(self) -> bool:
        """Whether what goes depends on MACs, which then have to be real ones."""
        return self.macs is not None or self.latency_ms is not None or self.criterion == "gamma-per-mac"

    def aimed(self, kind: TargetKind, value: float) -> Request:
        """Return the same request with another target."""
        targets: dict[str, Any] = {**dict.fromkeys(TARGETS), kind: value}
        return replace(self, **targets)

    @property
    def constraints(self) -> Constraints:
        """What the selection must respect."""
        own = tuple((self.layer_ratios or {}).items())
        return Constraints(self.min_channels, self.cap, self.round_to, self.exclude, own)

    def to_dict(self) -> dict[str, Any]:
        """Return the request as the plan records it: the target, and what differs from a plain request."""
        plain = {name: field.default for name, field in self.__dataclass_fields__.items()}
        kind, value = self.target
        always = ("min_channels", "criterion", "reduce", "coupling")
        data: dict[str, Any] = {kind: value, **{name: getattr(self, name) for name in always}}
        more = {name: getattr(self, name) for name in ("cap", "round_to", "layer_ratios", "fold_bias")}
        data |= {name: value for name, value in more.items() if value not in (plain[name], {})}
        return {**data, "exclude": list(self.exclude)}


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: must be a number (got {quoted(value)}).")


def _require_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}: must be a whole number (got {quoted(value)}).")
    if value < 1:
        raise ConfigError(f"{name}: must be at least 1 (got {quoted(value)}).")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: {quoted(value)} is unknown. Choose one of: {', '.join(choices)}.")
