"""The table of operators: all properties of an ATen operator that bnprune uses are in one `OpSpec`.

Adding an operator is one `rule` in the family where it belongs (`movement`, `elementwise`, ...), and one test::

    @rule("flip", keeps_zero="first")
    def flip(ctx, x, dims):
        return tuple(label.flip(list(dims)) for label in ctx.labels(x))

The function returns the channel labels of the output (see `bnprune.OpContext`); the keyword arguments state the other
properties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch.utils.flop_counter import flop_registry

from bnprune.channels.labels import NONE, Labels
from bnprune.channels.torch_internals import OpOverload, packet_of, pytree

if TYPE_CHECKING:
    from bnprune.channels.op_context import OpContext

LabelRule = Callable[..., Labels | list[Labels]]
LabelRuleT = TypeVar("LabelRuleT", bound=LabelRule)

OpKind = Literal["convolution", "linear", "batch_norm", "view", "split", "slice", "copy", "allocation", "constant"]
"""Families of operators that other code treats alike: layers, reshaping, ..."""

ZeroRule = Literal["first", "any", "all"] | Callable[[Sequence[bool], Sequence[Any]], bool]
"""Condition under which an operator gives zero: its first operand is zero, any is, or all are; or a function of (zeros,
arguments)."""


def zero_if_weights_are(zeros: Sequence[bool], _: Sequence[Any]) -> bool:
    """A `ZeroRule` of layers: the output is zero if weight and bias are, whose operands follow the input."""
    return all(zeros[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """The properties of an operator."""

    labels: LabelRule
    """Called with an `OpContext` and the operator's own arguments; returns the labels of the output, or a list with
    the labels of each output."""
    keeps_zero: ZeroRule | None = None
    """Condition under which the output is zero for a channel, given that operands are zero for it; None: never.

    A removed channel is a channel of zeros in the output of the layer or BatchNorm that wrote it. Weights that read it
    are cut, so it rarely matters that sigmoid(0) = 0.5. If two activations are multiplied and summed over channels, no
    weight is cut, and the sum stays the same only if one of the two is still zero.
    """
    kind: OpKind | None = None
    """The family it belongs to, if other code treats that differently."""
    weight: int | None = None
    """Position of the weight among the arguments; for operators with a `surrogate`."""
    numbers: Callable[..., Iterable[float]] | None = None
    """Called with the operator's arguments; returns the numbers among them that must not depend on a width, such as
    the 64 in `x / 64`. Default: all numbers for operators that PyTorch tags as pointwise, none for others."""
    macs: Callable[..., int] | None = None
    """Called with the operator's arguments and `out_val`, the output; returns its multiply-accumulates. Default: half
    of PyTorch's own FLOP count (`torch.utils.flop_counter`), or 0 if it has none."""
    constant_draw: Callable[[torch.Tensor, float, Sequence[Any]], torch.Tensor] | None = None
    """For random operators: called with a drawn output, a random number, and the arguments; fills the output with one
    number, so that networks of different widths draw the same."""
    meta: Callable[..., Any] | None = None
    """Called with the arguments on the meta device; returns the output, or None to let PyTorch compute it. Only for
    operators whose own meta kernel is slow enough to matter (decompositions written in Python)."""
    surrogate: Callable[..., torch.Tensor | None] | None = None
    """Called with the arguments; returns a cheap substitute for the output of a layer (see `surrogate_ops`)."""

    def gives_zero(self, zeros: Sequence[bool], args: Sequence[Any] = ()) -> bool:
        """True if the output is zero for removed channels, given which of the operands are.

        With "all", a single operand does not suffice: the other term of the sum is a number.
        """
        match self.keeps_zero:
            case "first":
                return any(zeros[:1])
            case "any":
                return any(zeros)
            case "all":
                return len(zeros) > 1 and all(zeros)
            case None:
                return False
            case function:
                return function(zeros, args)


_SPECS: dict[str, OpSpec] = {}

POINTWISE = "bnprune::pointwise"
"""The entry of all operators that have none of their own and that PyTorch tags as pointwise."""


def rule(
    *names: str,
    keeps_zero: ZeroRule | None = None,
    kind: OpKind | None = None,
    weight: int | None = None,
    numbers: Callable[..., Iterable[float]] | None = None,
    macs: Callable[..., int] | None = None,
    constant_draw: Callable[[torch.Tensor, float, Sequence[Any]], torch.Tensor] | None = None,
    meta: Callable[..., Any] | None = None,
    surrogate: Callable[..., torch.Tensor | None] | None = None,
) -> Callable[[LabelRuleT], LabelRuleT]:
    """Register a function that returns the channels of an operator's output, given those of its inputs.

    It is needed for operators of your own (`torch.library`), whose inputs keep all their channels otherwise. The
    function is called with an `OpContext` and the operator's arguments, while the network is traced.

    Args:
        names: Qualified names, for all overloads ("mylib::scale") or one ("mylib::scale.Tensor"). A name without "::"
            is one of PyTorch's own ("add" for "aten::add"). An earlier entry of that name is replaced. The entry of
            "aten::add" holds for the in-place "aten::add_", too, unless that has its own.
        keeps_zero: Condition under which channels of zeros stay zeros: if the "first", "any" or "all" of the tensors
            are zero there, or a function of (which tensors are zero, arguments). Needed only before products of two
            activations.
        kind: "convolution", "linear" or "batch_norm" for operators that compute such a layer, ...; see `OpKind`.
        weight: Position of the weight among the arguments of a layer.
        numbers: Returns the numeric arguments that must not depend on a width.
        macs: Returns the multiply-accumulates, called with the arguments and `out_val`, the output.
        constant_draw: Fills the output of a random operator with one number.
        meta: Computes the output on the meta device.
        surrogate: Computes a cheap substitute for the output.

    Returns:
        A decorator, which returns the function as it is.

    Example::

        @bnprune.rule("mylib::scale", keeps_zero="first")
        def scale(ctx, x, factor):
            return ctx.labels(x)  # the output's channels are the input's
    """

    def register(function: LabelRuleT) -> LabelRuleT:
        spec = OpSpec(
            labels=function,
            keeps_zero=keeps_zero,
            kind=kind,
            weight=weight,
            numbers=numbers,
            macs=macs,
            constant_draw=constant_draw,
            meta=meta,
            surrogate=surrogate,
        )
        for name in names:
            _SPECS[name if "::" in name else f"aten::{name}"] = spec
        return function

    return register


def spec_of(op: OpOverload) -> OpSpec:
    """Return the entry of an operator: by overload, by name, by the tag "pointwise"; or that of unknown operators.

    "aten::add_.Tensor" is looked up as "aten::add_.Tensor", "aten::add_" and "aten::add".
    """
    overload = op.name()
    name = overload.partition(".")[0]
    for key in (overload, name, name.removesuffix("_")):
        if key in _SPECS:
            return _SPECS[key]
    return _SPECS[POINTWISE] if torch.Tag.pointwise in op.tags else UNKNOWN


def unknown(ctx: OpContext, *args: Any, **kwargs: Any) -> Labels:
    """Freeze everything that enters an operator without a rule."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        ctx.freeze(
            ctx.labels(leaf),
            "enters an operator without a rule",
            f"register a rule for {ctx.op} (see bnprune.rule), or exclude this layer",
        )
    return NONE


UNKNOWN = OpSpec(labels=unknown)


def numbers_in(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the numbers in an operator call that would be wrong in a slim network if they depended on a width."""
    numbers = spec_of(op).numbers
    if numbers is None and torch.Tag.pointwise not in op.tags:
        return ()
    values = (numbers or numeric_arguments)(*args, **kwargs)
    return tuple(math.nan if math.isnan(value) else value for value in values)  # one NaN, which equals itself


def numeric_arguments(*args: Any, **kwargs: Any) -> Iterable[float]:
    """Return all numbers among the arguments of an operator."""
    return (float(value) for value in (*args, *kwargs.values()) if isinstance(value, int | float))


def macs_of(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Return the multiply-accumulates of convolutions, matrix products and attention; 0 for everything else."""
    macs = spec_of(op).macs
    if macs is not None:
        return macs(*args, **kwargs, out_val=output)
    flops = flop_registry.get(packet_of(op))  # counts two per multiply-accumulate
    return 0 if flops is None else int(flops(*args, **kwargs, out_val=output)) // 2
