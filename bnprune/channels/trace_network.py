"""trace(network) -> ChannelGraph: chooses the forward passes to trace, and joins their results.

A pass runs on the meta device: no memory, no arithmetic. If the control flow of the network depends on values, it runs
on real tensors, with cheap values of surrogates (`surrogate_ops`) if they suffice. There are up to four passes::

    eval                     always
    train                    if some layers or branches run in train mode only (auxiliary heads)
    forced branch, +-inf     if the code branches on values: the branches not taken

`tracer` traces one pass, operator by operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from bnprune.channels.control_flow import FORCED_BRANCHES, ForcedBranch
from bnprune.channels.forward_pass import batch_missing
from bnprune.channels.gate_sites import Gates
from bnprune.channels.graph import ChannelGraph, Trace
from bnprune.channels.head_units import HeadSites
from bnprune.channels.modules import modules_by_name, reads_training_flag, uses_nms
from bnprune.channels.network_outputs import note_on
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import Inputs, as_inputs
from bnprune.channels.surrogate_ops import EndlessLoopError
from bnprune.channels.torch_internals import own_tensors
from bnprune.channels.tracer import Tracer, Values
from bnprune.config import prune_options
from bnprune.errors import ConfigError, ForwardError, TraceError
from bnprune.notes import Note

DATA_DEPENDENT_MACS = Note(
    "macs.data_dependent",
    "note",
    "MACs depend on data (on the number of boxes, for example): they were counted on surrogate values",
)
"""Note of a trace whose MACs were counted on surrogate values, and may differ from those of the example inputs."""

Outputs = prune_options.Outputs
Coupling = prune_options.Coupling
"""How layers that share channels are pruned: "shared": all lose the same channels; "gates": each loses its own, and
gates select or fill channels."""


@preserve_thread_state
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    real: bool = False,
    exact: bool = False,
    coupling: Coupling = "shared",
    gates: Gates | None = None,
    heads: HeadSites | None = None,
    outputs: Outputs | None = None,
) -> ChannelGraph:
    """Trace the channels of a network through its forward passes.

    Args:
        model: Any module that runs a forward pass. It is left as it was.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments.
        real: Run on real tensors at once, for networks whose control flow depends on data. By default, they are used
            only if the pass on the meta device fails.
        exact: Compute real values in full, so that MACs that depend on data are those of these inputs. By default,
            layers compute surrogates (`bnprune.channels.surrogate_ops`), whose values are used for the control flow
            only.
        coupling: "gates" decouples BatchNorms that share a stream of channels (`bnprune.channels.gate_sites`).
        gates: BatchNorms that are decoupled in any case.
        heads: Modules in which attention heads have other units than by default (`bnprune.channels.head_units`).
        outputs: The outputs that must keep their channels, as for `bnprune.prune`; by default, all.

    Raises:
        ConfigError: The network does not return `outputs`.
        ForwardError: The forward pass fails on these inputs.
        TraceError: A rule fails.
    """
    inputs = as_inputs(example_inputs)
    _require_traceable(model)
    for values in _values_to_try(model, real=real, exact=exact):
        try:
            return _trace(model, inputs, coupling, values, gates or {}, heads or {}, outputs)
        except (TraceError, ConfigError):
            raise
        except Exception:  # noqa: BLE001 - the exact values may work; if not, their error is the one to report
            pass
    try:
        return _trace(model, inputs, coupling, "exact", gates or {}, heads or {}, outputs)
    except ForwardError as error:
        raise (batch_missing(error, model, inputs) or error) from error.__cause__


def require_repeatable(before: ChannelGraph, again: ChannelGraph) -> None:
    """Compare two traces of one network on the same inputs.

    Raises:
        TraceError: The second forward pass differs from the first.
    """
    site = before.traces["eval"].differs_from(again.traces["eval"])
    if site is not None:
        raise TraceError(
            f"{site or 'the network'}: on equal inputs, the forward pass computes with different numbers each time (it "
            "draws from random or numpy, or reads a clock or a counter). Draw with torch, or not in eval mode."
        )


def _values_to_try(model: nn.Module, *, real: bool, exact: bool) -> Iterator[Values]:
    """Yield the kinds of values to try before the exact ones."""
    if not real and not uses_nms(model):
        yield "none"
    if not exact:
        yield "surrogate"


def _require_traceable(model: nn.Module) -> None:
    for name, module in modules_by_name(model).items():
        for tensor in own_tensors(module).values():
            if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                raise TraceError(
                    f"{name or 'the network'}: the module is lazy and not yet built. Run one forward pass first."
                )


def _trace(
    model: nn.Module,
    inputs: Inputs,
    coupling: Coupling,
    values: Values,
    gates: Gates,
    heads: HeadSites,
    outputs: Outputs | None,
) -> ChannelGraph:
    if coupling == "gates":
        first = Tracer(model, values, gates, heads, outputs)
        gates = {**first.gates(first.run(inputs, training=False)), **gates}
    tracer = Tracer(model, values, gates, heads, outputs)
    traces = {"eval": tracer.run(inputs, training=False)}
    notes = [] if outputs is None else [note_on(outputs)]
    if tracer.unused() or reads_training_flag(model):
        try:
            traces["train"] = tracer.run(inputs, training=True)
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - e.g. BatchNorm over a single value, or missing targets
            text = f"the forward pass in train mode was not traced: {type(error).__name__}: {error}"
            notes.append(Note("trace.train_mode", "note", text))
    if values == "surrogate" and tracer.unused():
        raise EndlessLoopError("on surrogate values the code did not reach some layers")
    if values != "none":
        traces |= _forced_branches(tracer, inputs, traces["eval"])
        notes += _notes(tracer, traces["eval"], values)
    return tracer.graph(traces, notes)


def _forced_branches(tracer: Tracer, inputs: Inputs, normal_pass: Trace) -> dict[str, Trace]:
    """Trace the branches that other inputs would have taken, with surrogate values if they suffice.

    A branch that fails, for example in an assertion about the data, is left out.
    """
    traces: dict[str, Trace] = {}
    for mode, number in FORCED_BRANCHES.items():
        if not tracer.unused() and not normal_pass.decisions.read_by_python:
            break
        for surrogate in (True, False):
            forced, infinite = ForcedBranch(number), False
            try:
                traces[mode] = tracer.run(inputs, training=False, forced=forced, after=normal_pass, surrogate=surrogate)
                break
            except Exception as error:  # noqa: BLE001 - see above
                infinite = isinstance(error.__cause__ or error, OverflowError)  # neither infinity makes an integer
                if forced.is_stuck or not tracer.unused():
                    break
        if infinite or not forced.replaced_number:
            break
    return traces


def _notes(tracer: Tracer, normal_pass: Trace, values: Values) -> Iterator[Note]:
    unused = sorted({name.rpartition(".")[0] for name in tracer.unused()})
    if unused:
        text = f"on these inputs the code, which depends on data, did not reach: {', '.join(unused)}"
        yield Note("trace.unused_layers", "note", text)
    if values == "surrogate" and normal_pass.macs_vary:
        yield DATA_DEPENDENT_MACS
