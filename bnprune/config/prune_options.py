"""The targets and constraints of pruning: the one definition of each, with its default, bounds, sentence and flag.

Everything else follows from it:

- the flags of `bnprune prune` and `bnprune inspect` (`cli/options.py`),
- the recipe keys of `prune:` (`config/schema.py`) and the reference in README.md,
- the checks and messages of the Python API (`pruning/request.py`).

The signatures of the Python API (`bnprune.prune` and others) are written out, because editors and type checkers read
them; a test compares their names and defaults with this definition.

To add an option, add a field to `PruneOptions`, and use it in the code that it changes: there, it is an attribute of
the request. A field of `pruning.candidates.Constraints` of the same name is filled automatically.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from bnprune.config.tables import CRITERIA, listed, sentences
from bnprune.errors import ConfigError, quoted, shortened

TargetKind = Literal["ratio", "macs", "params", "latency_ms"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
"""The options that say how much to remove; exactly one of them is given."""
Reduce = Literal["max", "mean", "sum"]
Coupling = Literal["shared", "gates"]
Outputs = str | int | Callable[[Any], Any]
"""Names outputs of a network: a path of indices, keys and attributes such as "0.1", or a function of the output."""
Kind = Literal["number", "count", "switch", "choice", "patterns", "ratios", "path"]

DEFAULT_RATIO = 0.5
"""The target, if none is given."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One target or constraint. Its name, type and default are those of the field of `PruneOptions`."""

    name: str = ""
    default: Any = None
    kind: Kind
    sentence: str
    flag: str | None = None
    """The name on the command line; None for an option of recipes and Python only."""
    metavar: str | None = None
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: Callable[[], Mapping[str, str]] = dict
    """Returns the allowed names of a choice, with a sentence each; called anew, because users can register names."""
    extensible: bool = False
    """True if users can register names. Recipes then accept every name, so that a checkpoint whose recipe has a
    registered one can also be read by a program that has not registered it; the request checks it."""
    recipe_words: Mapping[str, str] = field(default_factory=dict)
    """Words that are allowed in a recipe in place of a value, with a sentence each."""
    default_text: str = ""
    """The default in words, if it is not a value."""
    example: str = ""
    """Last sentence of the message about a value that is out of range."""

    @property
    def is_target(self) -> bool:
        """True if it says how much to remove."""
        return self.name in TARGETS

    def check(self, value: Any) -> None:
        """Check the type and the bounds of a value.

        Raises:
            ConfigError: It is not allowed.
        """
        if value is not None or self.default is not None:
            _CHECKS[self.kind](self, value)

    def description(self, quote: str = "", *, recipe: bool = True) -> str:
        """Return the sentence and the choices.

        Args:
            quote: Text to put around names, such as a backtick.
            recipe: Include the words that only a recipe allows.
        """
        words = {**self.choices(), **(self.recipe_words if recipe else {})}
        return f"{self.sentence} {listed(words, quote)}." if any(words.values()) else self.sentence

    def interval(self) -> str:
        """Return the bounds as "(0, 1]"; empty if there are not two, or the upper one excludes nothing sensible."""
        low, high = (self.gt, self.ge), (self.lt, self.le)
        if low == (None, None) or high == (None, None) or (self.le or 0) > 1000:
            return ""
        left = f"({self.gt:g}" if self.gt is not None else f"[{self.ge:g}"
        return f"{left}, " + (f"{self.lt:g})" if self.lt is not None else f"{self.le:g}]")

    def bounds(self) -> dict[str, Any]:
        """Return the bounds that are given, under pydantic's names."""
        return {name: bound for name in ("gt", "ge", "lt", "le") if (bound := getattr(self, name)) is not None}


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_number(option: Option, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{option.name}: must be a number (got {quoted(value)}).", where=option.name)
    _check_bounds(option, option.name, value)


def _check_count(option: Option, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{option.name}: must be a whole number (got {quoted(value)}).", where=option.name)
    _check_bounds(option, option.name, value)


def _check_switch(option: Option, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{option.name}: must be True or False (got {quoted(value)}).", where=option.name)


def _check_choice(option: Option, value: Any) -> None:
    if value not in option.choices():
        raise ConfigError(
            f"{option.name}: {quoted(value)} is unknown. Choose one of: {', '.join(option.choices())}.",
            where=option.name,
        )


def _check_patterns(option: Option, value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(pattern, str) for pattern in value):
        raise ConfigError(f"{option.name}: must be a list of patterns (got {quoted(value)}).", where=option.name)


def _check_ratios(option: Option, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{option.name}: must map patterns to ratios (got {quoted(value)}).", where=option.name)
    for pattern, ratio in value.items():
        where = f"{option.name}: {shortened(str(pattern))}"
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise ConfigError(f"{where}: must be a number (got {quoted(ratio)}).", where=option.name)
        _check_bounds(option, where, ratio)


def _check_path(option: Option, value: Any) -> None:
    problem = "" if callable(value) else path_problem(value)
    if problem:
        raise ConfigError(f"{option.name}: {problem} (got {quoted(value)}).", where=option.name)


def path_problem(value: Any) -> str:
    """Return why a value is no path of indices, keys and attributes; empty if it is one."""
    if isinstance(value, float):  # 1.1 and 1.10 are one number, but two paths
        return f"a path with a dot must be in quotes: '{value}'"
    text = "" if isinstance(value, bool) or not isinstance(value, int | str) else str(value)
    is_path = len(text) <= _LONGEST_PATH and all(key.strip() for path in text.split(",") for key in path.split("."))
    return "" if is_path else "must be a path such as 0, '0.1' or preds.0"


_LONGEST_PATH = 500


_CHECKS: dict[Kind, Callable[[Option, Any], None]] = {
    "number": _check_number,
    "count": _check_count,
    "switch": _check_switch,
    "choice": _check_choice,
    "patterns": _check_patterns,
    "ratios": _check_ratios,
    "path": _check_path,
}


def _check_bounds(option: Option, where: str, value: float) -> None:
    low = value > option.gt if option.gt is not None else option.ge is None or value >= option.ge
    high = value < option.lt if option.lt is not None else option.le is None or value <= option.le
    if not (low and high):  # NaN is on neither side
        example = f" {option.example}" if option.example else ""
        raise ConfigError(f"{where}: must be {_range(option)} (got {quoted(value)}).{example}", where=option.name)


def _range(option: Option) -> str:
    if option.gt is not None and option.lt is not None:
        return f"between {option.gt:g} and {option.lt:g}, both excluded"
    if option.ge is not None and option.le is not None:
        return f"between {option.ge:g} and {option.le:g}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return " and ".join(f"{words[name]} {bound:g}" for name, bound in option.bounds().items())


# -- the definition ----------------------------------------------------------------------------------------------------


def about(
    kind: Kind, sentence: str, flag: str | None = None, metavar: str | None = None, **more: Any
) -> dict[str, Any]:
    """Return the metadata of a field that is an option."""
    return {"option": Option(kind=kind, sentence=sentence, flag=flag, metavar=metavar, **more)}


_TO_REMOVE: dict[str, Any] = {"gt": 0, "lt": 1, "example": "0.5 removes half."}
_TO_KEEP: dict[str, Any] = {"gt": 0, "lt": 1, "example": "0.5 keeps half."}


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """The targets and constraints of one pruning, with their defaults; not checked (see `pruning.request.Request`)."""

    ratio: float | None = field(
        default=None,
        metadata=about(
            "number",
            "Share of the prunable BatchNorm channels to remove.",
            "--ratio",
            "R",
            recipe_words={
                "auto": "the largest ratio that loses at most `tolerance` of accuracy, if possible with "
                "95% confidence, found by trying (see `bnprune sweep`)"
            },
            default_text=f"{DEFAULT_RATIO}, if no other target is given",
            **_TO_REMOVE,
        ),
    )
    macs: float | None = field(
        default=None, metadata=about("number", "Largest share of the MACs to keep.", "--macs", "F", **_TO_KEEP)
    )
    params: float | None = field(
        default=None, metadata=about("number", "Largest share of the parameters to keep.", "--params", "F", **_TO_KEEP)
    )
    latency_ms: float | None = field(
        default=None,
        metadata=about(
            "number",
            "Longest time that a forward pass of one input may take on this machine, in milliseconds (measured).",
            "--latency",
            "MS",
            gt=0,
            le=1e6,
        ),
    )
    min_channels: int = field(
        default=1,
        metadata=about("count", "Smallest number of channels that a layer keeps.", "--min-channels", "N", ge=1),
    )
    cap: float | None = field(
        default=None,
        metadata=about(
            "number",
            "Largest share of its channels that a layer may lose in one pass.",
            "--cap",
            "F",
            gt=0,
            le=1,
            default_text="none; instead, for macs and params, and for l1, l2, activation and taylor, no layer becomes "
            "far narrower than if all were cut alike",
            example="0.5 keeps half of every layer.",
        ),
    )
    round_to: int = field(
        default=1,
        metadata=about(
            "count", "Widths that are a multiple of this number stay multiples of it.", "--round-to", "N", ge=1
        ),
    )
    exclude: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "patterns",
            "Layers not to prune: names of modules, names of their parents, or glob patterns.",
            "--exclude",
            "PATTERN",
        ),
    )
    include: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "patterns",
            "If given, the only layers to prune, with those that share their channels; patterns as in `exclude`.",
            "--include",
            "PATTERN",
        ),
    )
    layer_ratios: Mapping[str, float] | None = field(
        default=None,
        metadata=about(
            "ratios",
            "Share of the channels to remove from single layers, by name pattern as in `exclude`; 0 removes none.",
            ge=0,
            le=1,
        ),
    )
    criterion: str | None = field(
        default=None,
        metadata=about(
            "choice",
            "How channels are ranked; the lowest-ranked are removed.",
            "--criterion",
            "NAME",
            choices=lambda: sentences(CRITERIA),
            extensible=True,
            default_text="auto for macs and params, gamma for other targets",
        ),
    )
    reduce: Reduce = field(
        default="max",
        metadata=about(
            "choice",
            "How the scores of channels that must go together are combined into one.",
            choices=lambda: dict.fromkeys(get_args(Reduce), ""),
        ),
    )
    coupling: Coupling = field(
        default="shared",
        metadata=about(
            "choice",
            "How layers that share channels, such as those of a residual stream, are pruned.",
            "--coupling",
            "HOW",
            choices=lambda: {
                "shared": "all lose the same channels",
                "gates": "each loses its own, behind small modules that select or fill channels",
            },
        ),
    )
    fold_bias: bool = field(
        default=False,
        metadata=about("switch", "Fold biases that the next BatchNorm cancels into its running mean.", "--fold-bias"),
    )
    outputs: Outputs | None = field(
        default=None,
        metadata=about(
            "path",
            "Outputs that count, if not all do: a path of indices and keys such as 0, 0.1 or preds.0; several are "
            "separated by commas. The others may lose channels, and the proof does not compare them.",
            "--outputs",
            "PATH",
        ),
    )
    calibrate_images: int = field(
        default=512,
        metadata=about(
            "count",
            "Largest number of images that are used as calibration data; 0: use no data.",
            "--calibrate-images",
            "N",
            ge=0,
            le=10**6,
        ),
    )


def prune_options() -> dict[str, Option]:
    """Return the options by name, in the order of the definition."""
    return {
        item.name: replace(item.metadata["option"], name=item.name, default=item.default)
        for item in fields(PruneOptions)
    }
