"""Passes: several rounds of pruning, each with a target of its own, which together reach the target of the recipe."""

from __future__ import annotations

from dataclasses import fields

from bnprune.config.prune_options import DEFAULT_RATIO
from bnprune.config.schema import PruneConfig
from bnprune.errors import PruningError
from bnprune.pruning.request import Request, TargetKind
from bnprune.runs.results import Change, Pruned

_FIELDS = {field.name for field in fields(Request)}
_COUNTED: dict[TargetKind, str] = {"ratio": "channels", "macs": "macs", "params": "params"}
"""For each target, the figure of a finished stage that it is compared with."""


def request_of(
    config: PruneConfig, number: int = 1, first: Pruned | None = None, last: Pruned | None = None
) -> Request:
    """Return the request of one pass: equal factors, corrected by the results of the earlier passes.

    Args:
        config: The recipe's section.
        number: The pass, from 1.
        first: How much the first pass removed.
        last: How much the pass before this one removed.

    Raises:
        PruningError: Earlier passes have reached the target already.
    """
    data = {key: value for key, value in config.model_dump().items() if key in _FIELDS}
    if config.ratio == "auto" or not config.targets:
        data["ratio"] = DEFAULT_RATIO  # for "auto", a start value: the ratio is found by a sweep
    if config.passes == 1:
        return Request(**data)
    own = {pattern: 1 - (1 - ratio) ** (1 / config.passes) for pattern, ratio in config.layer_ratios.items()}
    request = Request(**data | {"layer_ratios": own})
    kind, value = request.target
    share = (1 - value if kind == "ratio" else value) ** (number / config.passes)
    if first is not None and last is not None:
        share *= _counted(first, kind).before / _counted(last, kind).after
    if not 0 < share < 1:
        raise PruningError(f"pass {number}: nothing is left to remove; {kind} {value:g} is reached. Use fewer passes.")
    return request.aimed(kind, 1 - share if kind == "ratio" else share)


def _counted(pruned: Pruned, kind: TargetKind) -> Change:
    change: Change = getattr(pruned, _COUNTED[kind])
    return change
