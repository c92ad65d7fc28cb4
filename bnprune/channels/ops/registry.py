"""The table of rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from bnprune.channels.labels import NONE, Labels
from bnprune.channels.op_context import OpContext

Rule = Callable[..., Labels | list[Labels]]
RuleT = TypeVar("RuleT", bound=Rule)

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[RuleT], RuleT]:
    """Register a rule for operators, by qualified name with ("aten::max.dim") or without ("aten::add") overload."""

    def register(function: RuleT) -> RuleT:
        for name in names:
            _RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return register


def look_up(op: torch._ops.OpOverload) -> Rule:
    """Return the rule of an operator: by overload, by name, the elementwise rule by its tag, or `unknown`."""
    packet = op._schema.name
    overload = op._schema.overload_name
    for name in (f"{packet}.{overload}", packet, packet.removesuffix("_")):
        if name in _RULES:
            return _RULES[name]
    if torch.Tag.pointwise in op.tags:
        return _RULES["elementwise::any"]
    return unknown


def unknown(ctx: OpContext, *args: Any, **kwargs: Any) -> Labels:
    """Freeze everything that enters an operator nobody has written a rule for."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        ctx.freeze(
            ctx.labels(leaf),
            "enters an operator without a rule",
            f"register a rule for {ctx.op} (see bnprune.rule), or exclude this layer",
        )
    return NONE
