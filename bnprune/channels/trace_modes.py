"""Run a network once and follow its channels.

The forward pass runs on the meta device: no memory, no arithmetic. Networks whose control flow depends on values run on
real tensors, with values that are cheap to have (`sketch`) unless they are asked for in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from bnprune.channels.control_flow import FORCED_BRANCHES, ForcedBranch
from bnprune.channels.gate_sites import Gates
from bnprune.channels.graph import ChannelGraph, Trace
from bnprune.channels.modules import mode_matters, suppresses_boxes, walk
from bnprune.channels.operator_mode import contained
from bnprune.channels.pytrees import Inputs, as_inputs
from bnprune.channels.surrogate_ops import EndlessLoopError
from bnprune.channels.tracer import Tracer, Values
from bnprune.config import prune_options
from bnprune.errors import TraceError
from bnprune.notes import Note

MADE_UP = Note(
    "macs.made_up", "note", "MACs depend on data (how many boxes, say): they are those of a made-up forward pass"
)
"""Note of a trace whose MACs are no more than a guess."""

Coupling = prune_options.Coupling
"""How layers that share channels are pruned: "shared": all lose the same; "gates": each its own, behind gates."""


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
            values do no more than steer the control flow, and are sketched (`bnprune.channels.surrogate_ops`).
        coupling: "gates" sets BatchNorms free that share a stream of channels (`bnprune.channels.gate_sites`).
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
        scout = Tracer(model, values, gates)
        gates = {**scout.gates(scout.run(inputs, training=False)), **gates}
    follower = Tracer(model, values, gates)
    traces = {"eval": follower.run(inputs, training=False)}
    notes: list[Note] = []
    if follower.unused() or mode_matters(model):
        try:
            traces["train"] = follower.run(inputs, training=True)
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - e.g. BatchNorm over a single value, or missing targets
            text = f"the forward pass in train mode was not traced: {type(error).__name__}: {error}"
            notes.append(Note("trace.train_mode", "note", text))
    if values == "sketched" and follower.unused():
        raise EndlessLoopError("on sketched values the code never came to some layers")
    if values != "none":
        traces |= _forced_branches(follower, inputs, traces["eval"])
        notes += _remarks(follower, traces["eval"], values)
    return follower.graph(traces, notes)


def _forced_branches(follower: Tracer, inputs: Inputs, straight: Trace) -> dict[str, Trace]:
    """Follow the branches other inputs would have taken, on sketched values if they will do.

    What fails, say in an assertion about the data, is not a way the network goes.
    """
    found: dict[str, Trace] = {}
    for mode, number in FORCED_BRANCHES.items():
        if not follower.unused() and not straight.decisions.asked:
            break
        for surrogate in (True, False):
            forced, infinite = ForcedBranch(number), False
            try:
                found[mode] = follower.run(inputs, training=False, forced=forced, after=straight, surrogate=surrogate)
                break
            except Exception as error:  # noqa: BLE001 - see above
                infinite = isinstance(error.__cause__ or error, OverflowError)  # neither infinity makes an integer
                if forced.is_stuck or not follower.unused():
                    break
        if infinite or not forced.gave_number:
            break
    return found


def _remarks(follower: Tracer, straight: Trace, values: Values) -> Iterator[Note]:
    unused = sorted({name.rpartition(".")[0] for name in follower.unused()})
    if unused:
        text = f"on these inputs the code, which depends on data, never came to: {', '.join(unused)}"
        yield Note("trace.unused_layers", "note", text)
    if values == "sketched" and straight.macs_vary:
        yield MADE_UP
