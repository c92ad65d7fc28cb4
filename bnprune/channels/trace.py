"""Run a network once and follow its channels.

The forward pass runs on the meta device: no memory, no arithmetic. Networks whose control flow depends on values run on
real tensors, with values that are cheap to have (`sketch`) unless they are asked for in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from bnprune.channels.boundaries import Gates
from bnprune.channels.decisions import DETOURS, Detour
from bnprune.channels.follow import Follower, Values
from bnprune.channels.graph import ChannelGraph, Trace
from bnprune.channels.mode import contained
from bnprune.channels.modules import mode_matters, suppresses_boxes, walk
from bnprune.channels.sketch import LostError
from bnprune.channels.trees import Inputs, as_inputs
from bnprune.errors import TraceError

MADE_UP = "MACs depend on data (how many boxes, say): they are those of a made-up forward pass"
"""Note of a trace whose MACs are no more than a guess."""

Coupling = Literal["shared", "gates"]
"""Whether layers that share a stream of channels lose the same ones, or each its own behind gates."""


@contained
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    real: bool = False,
    exact: bool = False,
    coupling: Coupling = "shared",
    gates: Gates | None = None,
) -> ChannelGraph:
    """Follow the channels of a network through one forward pass.

    Args:
        model: Any module that runs a forward pass. It is left as it was.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments.
        real: Run on real tensors at once, for networks whose control flow depends on data. Otherwise they are the
            fallback where the meta device will not do.
        exact: Compute real values in full, so that MACs that depend on data are those of these inputs. Otherwise
            values do no more than steer the control flow, and are sketched (`bnprune.channels.sketch`).
        coupling: "gates" sets BatchNorms free that share a stream of channels (`bnprune.channels.boundaries`).
        gates: BatchNorms that are set free in any case.

    Raises:
        ForwardError: The forward pass fails on these inputs.
        TraceError: A rule fails.
    """
    inputs = as_inputs(example_inputs)
    _require_traceable(model)
    for values in _ladder(model, real=real, exact=exact):
        try:
            return _trace(model, inputs, coupling, values, gates or {})
        except TraceError:
            raise
        except Exception:  # noqa: BLE001 - whatever cheap values cannot do, real ones may
            pass
    return _trace(model, inputs, coupling, "exact", gates or {})


def require_repeatable(before: ChannelGraph, again: ChannelGraph) -> None:
    """Compare two traces of one network on the same inputs.

    Raises:
        TraceError: The second forward pass did something else.
    """
    site = before.traces["eval"].differs_from(again.traces["eval"])
    if site is not None:
        raise TraceError(
            f"{site or 'the network'}: on equal inputs, the forward pass computes with other numbers each time (it "
            "draws from random or numpy, or reads a clock or a counter). Draw with torch, or not in eval mode."
        )


def _ladder(model: nn.Module, *, real: bool, exact: bool) -> Iterator[Values]:
    """Yield what to try before the exact values."""
    if not real and not suppresses_boxes(model):
        yield "none"
    if not exact:
        yield "sketched"


def _require_traceable(model: nn.Module) -> None:
    for name, module in walk(model).items():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                raise TraceError(
                    f"{name or 'the network'}: the module is lazy and not yet built. Run one forward pass first."
                )


def _trace(model: nn.Module, inputs: Inputs, coupling: Coupling, values: Values, gates: Gates) -> ChannelGraph:
    if coupling == "gates":
        scout = Follower(model, values, gates)
        gates = {**scout.gates(scout.run(inputs, training=False)), **gates}
    follower = Follower(model, values, gates)
    traces = {"eval": follower.run(inputs, training=False)}
    notes: list[str] = []
    if follower.unused() or mode_matters(model):
        try:
            traces["train"] = follower.run(inputs, training=True)
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - e.g. BatchNorm over a single value, or missing targets
            notes.append(f"the forward pass in train mode was not followed: {type(error).__name__}: {error}")
    if values == "sketched" and follower.unused():
        raise LostError("on sketched values the code never came to some layers")
    if values != "none":
        traces |= _detours(follower, inputs, traces["eval"])
        notes += _remarks(follower, traces["eval"], values)
    return follower.graph(traces, notes)


def _detours(follower: Follower, inputs: Inputs, straight: Trace) -> dict[str, Trace]:
    """Follow the branches other inputs would have taken, on sketched values if they will do.

    What fails, say in an assertion about the data, is not a way the network goes.
    """
    found: dict[str, Trace] = {}
    for mode, number in DETOURS.items():
        if not follower.unused() and not straight.decisions.asked:
            break
        for sketched in (True, False):
            detour, infinite = Detour(number), False
            try:
                found[mode] = follower.run(inputs, training=False, detour=detour, after=straight, sketched=sketched)
                break
            except Exception as error:  # noqa: BLE001 - see above
                infinite = isinstance(error.__cause__ or error, OverflowError)  # neither infinity makes an integer
                if detour.is_stuck or not follower.unused():
                    break
        if infinite or not detour.gave_number:
            break
    return found


def _remarks(follower: Follower, straight: Trace, values: Values) -> Iterator[str]:
    unused = sorted({name.rpartition(".")[0] for name in follower.unused()})
    if unused:
        yield f"on these inputs the code, which depends on data, never came to: {', '.join(unused)}"
    if values == "sketched" and straight.macs_vary:
        yield MADE_UP
