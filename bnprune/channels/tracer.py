"""Tracer: traces one forward pass, operator by operator, and carries labels beside the tensors.

It is a dispatch mode, so it receives every ATen operator. For each activation it keeps labels, which name the channel
of each element (`labels`). For each operator it calls the rule in `ops`, which states facts about channels; the
`ChannelGraph` is their solution. Which passes to trace, and with which values, is decided in `trace_network`::

    conv(x)       new labels  [1 2 3 4]
    relu          same labels [1 2 3 4]
    + shortcut    labels      [5 6 7 8]: unite 1-5, 2-6, 3-7, 4-8
    fc(flatten)   the weight's columns get the labels of its input
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnprune.channels.control_flow import Decisions, ForcedBranch
from bnprune.channels.forward_pass import forward_error
from bnprune.channels.gate_sites import GateKind, Gates, Producer, useful_gates
from bnprune.channels.graph import ChannelGraph, EarlierPass, GatedNorm, Operand, Record, Trace
from bnprune.channels.head_units import HeadSites, head_counts, tie_widths
from bnprune.channels.labels import NONE, Label, Labels, along, varying
from bnprune.channels.meta_kernels import run_kernel
from bnprune.channels.modules import module_stack, modules_by_name, temporary_mode
from bnprune.channels.network_outputs import OutputChannels
from bnprune.channels.op_context import Count, OpContext, TraceFacts, constant
from bnprune.channels.operator_mode import OperatorMode, OwnGenerators
from bnprune.channels.ops import spec_of
from bnprune.channels.ops.spec import OpSpec, macs_of, numbers_in
from bnprune.channels.pytrees import Inputs, map_tensors, operands, tensors
from bnprune.channels.structural_copy import copy_with_tensors, wrap_like
from bnprune.channels.surrogate_ops import SurrogateOps
from bnprune.channels.torch_internals import OpOverload, base_of
from bnprune.channels.traced_layers import buffer_gammas, layers_of
from bnprune.channels.union_find import NO_CHANNEL, Refusal
from bnprune.channels.view_writes import USE_CAT
from bnprune.config.prune_options import Outputs
from bnprune.errors import TraceError
from bnprune.notes import Note

_AS_ONE = (
    "its channels can only be removed all together, and a layer keeps at least one",
    "remove the shuffle, reshape or product across channels that couples them",
)
Values = Literal["none", "surrogate", "exact"]
"""Values of a forward pass: none (shapes on the meta device), those of surrogates, or those of the network."""


class Tracer(OperatorMode):
    """Traces forward passes of a copy of the network."""

    def __init__(
        self, model: nn.Module, values: Values, gates: Gates, heads: HeadSites, outputs: Outputs | None = None
    ) -> None:
        super().__init__()
        self._heads = heads
        self.values = values
        self.real = values != "none"
        self.facts = TraceFacts(gates=gates, whole_heads=frozenset(site for site in heads if heads[site].whole))
        self._output_channels = OutputChannels(self.facts.ids, outputs)
        self.aliases: dict[str, str] = {}
        self._originals: dict[int, str] = {}
        self.model = copy_with_tensors(model, self._replacements(model))
        self.facts.modules = modules_by_name(self.model)
        self._used: set[str] = set()
        self._labels: dict[int, tuple[weakref.ref[torch.Tensor], Labels]] = {}
        self._producers: dict[int, tuple[weakref.ref[torch.Tensor], Producer]] = {}
        self._records: list[Record] = []
        self._decisions = Decisions(keep_operands=False)
        self._forced: ForcedBranch | None = None
        self._surrogate: SurrogateOps | None = None
        self._earlier: EarlierPass | None = None
        self._macs_vary = False
        self._stack: list[str] = [""]
        self._failed_in = ""

    def _replacements(self, model: nn.Module) -> dict[int, torch.Tensor]:
        """Return the copies of parameters and buffers by `id` (on meta, or real with buffers copied), and name them."""
        replacements: dict[int, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._parameter_names: set[str] = set()
        for name, tensor in [*parameters.items(), *model.named_buffers(remove_duplicate=False)]:
            if id(tensor) in replacements:
                self.aliases[name] = self._originals[id(tensor)]
                continue
            if not self.real:  # same requires_grad: matmul chooses its decomposition by it
                replacement = torch.empty_like(tensor, device="meta")
            else:
                replacement = tensor.detach()
                replacement = replacement if name in parameters and not tensor.is_inference() else replacement.clone()
            replacements[id(tensor)] = replacement = wrap_like(tensor, replacement)
            if name in parameters:
                self._parameter_names.add(name)
            self.facts.names[id(replacement)] = self._originals[id(tensor)] = name
            self.shapes[name] = tuple(tensor.shape)
        self._alive = [*replacements.values()]  # so that no other tensor gets the id of one
        return replacements

    def unused(self) -> set[str]:
        """Return the names of parameters that no operator has read."""
        return self._parameter_names - self._used

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        inputs: Inputs,
        *,
        training: bool,
        forced: ForcedBranch | None = None,
        after: Trace | None = None,
        surrogate: bool | None = None,
    ) -> Trace:
        """Run the forward pass once.

        Args:
            inputs: Positional and keyword arguments of the network.
            training: True for train mode.
            forced: Inverts what the code reads from tensors.
            after: A forward pass that runs the same operators until the first inverted value. Its labels are taken over
                up to there.
            surrogate: True to compute surrogates; by default, as `values` says.
        """
        args, kwargs = map_tensors(lambda t: t.detach().clone() if self.real else t.to("meta"), inputs)
        self._records, self._decisions, self._forced = [], Decisions(keep_operands=False), forced
        self._earlier = None if after is None else EarlierPass(after)
        surrogate = self.values == "surrogate" if surrogate is None else surrogate
        self._surrogate = SurrogateOps(self.model.parameters()) if surrogate else None
        self._macs_vary, self.generators = False, OwnGenerators()
        earlier = len(self.facts.work), len(self.facts.gate_sites)
        why = Refusal("input", "is combined with an input of the network", "")
        for tensor in tensors((args, kwargs)):
            labels = constant(self.facts.ids, tensor, why)
            self._remember(tensor, tuple(label for label in labels if varying(label) != (0,)))
        in_other_threads: list[str] = []
        mode = temporary_mode(self.model, training=training, norms=False)
        with mode as modules, module_stack(modules, in_other_threads) as self._stack:
            try:
                with self:
                    output = self.model(*args, **kwargs)
            except TraceError:
                raise
            except Exception as error:
                if self.values != "exact" or training:
                    raise
                raise forward_error(error, self._failed_in, inputs) from error
        if in_other_threads:
            raise TraceError(
                f"{in_other_threads[0]}: the module runs in another thread than the one that called forward(), and "
                "bnprune traces that thread only. Call the module without a thread (threading, concurrent.futures)."
            )
        if not any(True for _ in tensors(output)) and not training and forced is None:
            raise TraceError(
                f"the forward pass returns no tensor that can be traced (got {type(output).__name__}). "
                "Return tensors, also inside lists, dictionaries or objects."
            )
        self._output_channels.freeze(output, self._labels_of, training=training, forced=forced is not None)
        work, gate_sites = tuple(self.facts.work[earlier[0] :]), tuple(self.facts.gate_sites[earlier[1] :])
        return Trace(tuple(self._records), self._decisions, work, gate_sites, self._macs_vary)

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and label its output."""
        try:
            output = self._run(func, args, kwargs)
        except Exception:
            self._failed_in = self._stack[-1]
            raise
        if self._earlier is not None:
            output = self._earlier.replay.apply(func, args, kwargs, output)
        if self.real:
            self._decisions.record(func, args, kwargs, output)
        if self._earlier is None or not self._take_over(func, args, kwargs, output):
            self._label(func, args, kwargs, output)
        if self._forced is None:
            return output
        inverted = self._forced.invert(output)
        if inverted is not output:
            self._earlier = None
        return inverted

    def _run(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._surrogate is None:
            return run_kernel(func, args, kwargs, self.generators, meta=not self.real)
        output: Any = None if kwargs else self._surrogate.run(func, args)
        if output is None:
            output = self.generators.run(func, args, kwargs)
        self._surrogate.count_read(output)
        return output

    def _take_over(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        """Take the labels of an operator call from the earlier pass; False if it was another call."""
        assert self._earlier is not None
        entering, results = operands(args, kwargs), operands((output,), {})
        record = self._earlier.next_record(func.name(), self._stack[-1], results)
        writes = any(base_of(result) is not None for result in results if any(result is other for other in entering))
        if record is None or writes:
            self._earlier = None
            return False
        producer = self._producer(spec_of(func), args, entering)
        for result, (_, labels) in zip(results, record.outputs, strict=True):
            self._producers[id(result)] = weakref.ref(result), producer
            self._remember(result, labels)
        self._records.append(record)
        return True

    # -- labelling -------------------------------------------------------------------------------------------------

    def _labels_of(self, tensor: torch.Tensor) -> Labels:
        key = id(tensor)
        known = self._labels.get(key)
        if known is not None and known[0]() is tensor:
            return known[1]
        name = self.facts.names.get(key)
        if name is not None:
            labels = self._labels_of_named(name, tensor)
        else:
            why = Refusal(self._stack[-1], "is combined with a constant tensor", "register the tensor as a buffer")
            labels = constant(self.facts.ids, tensor, why)
        self._remember(tensor, labels)
        return labels

    def _labels_of_named(self, name: str, tensor: torch.Tensor) -> Labels:
        labels = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                ids = self.facts.axes.get((name, dim))
                if ids is None:
                    ids = self.facts.axes[name, dim] = self.facts.ids.new(size)
                labels.append(along(ids, dim, tensor.dim()))
        return tuple(labels)

    def _producer_of(self, tensor: torch.Tensor) -> Producer | None:
        ref, producer = self._producers.get(id(tensor), (None, None))
        return producer if ref is not None and ref() is tensor else None

    def _source_of(self, tensor: torch.Tensor) -> int | str | None:
        producer = self._producer_of(tensor)
        return self.facts.names.get(id(tensor)) if producer is None else producer.record

    def _producer(self, spec: OpSpec, args: tuple[Any, ...], entering: Sequence[torch.Tensor]) -> Producer:
        zeros = [self.facts.is_zero(operand, self._producer_of(operand)) for operand in entering]
        constants = [made is not None and made.constant for made in map(self._producer_of, entering)]
        return Producer.of(spec, args, zeros, constants, len(self._records))

    def _remember(self, tensor: torch.Tensor, labels: Labels) -> None:
        self._labels[id(tensor)] = weakref.ref(tensor), labels

    def _label(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entering = operands(args, kwargs)
        results = operands((output,), {})
        self._output_channels.note_read(entering)
        for operand in entering:
            name = self.facts.names.get(id(operand))
            if name is not None:
                self._used.add(name)
            elif id(operand) in self._originals:
                raise _original_still_runs(self._originals[id(operand)])
        site = self._stack[-1]
        spec = spec_of(func)
        call = OpContext(func.name(), site, output, self.facts, self._labels_of, self._producer_of, spec.kind)
        try:
            if torch.Tag.inplace_view in func.tags and len(entering) == 1:  # `x.set_(y)` is not reshaped
                call.freeze(self._all_labels(entering), "is reshaped in place", "use the operator without underscore")
                labels_out: Labels | list[Labels] = NONE
            else:
                labels_out = spec.labels(call, *args, **kwargs)
        except Exception as error:
            raise TraceError(f"{site or 'the network'}: the rule of {func.name()} failed: {error}") from error
        entered = tuple(Operand(self._source_of(operand), self._labels_of(operand)) for operand in entering)
        per_output = labels_out if isinstance(labels_out, list) else [labels_out]
        outputs = []
        producer = self._producer(spec, args, entering)
        for position, result in enumerate(results):
            self._producers[id(result)] = weakref.ref(result), producer
            labels = per_output[position] if position < len(per_output) else NONE
            self._set(call, result, labels, mutated=any(result is operand for operand in entering))
            outputs.append((tuple(result.shape), labels))
        macs = macs_of(func, args, kwargs, output)
        self._macs_vary |= bool(macs) and self._decisions.any
        self._records.append(
            Record(
                op=func.name(),
                site=site,
                numbers=numbers_in(func, args, kwargs),
                operands=entered,
                outputs=tuple(outputs),
                listed=isinstance(output, list | tuple),
                macs=macs,
                kind=spec.kind,
                zero=producer.zero,
            )
        )

    def _all_labels(self, entering: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [label for operand in entering for label in self._labels_of(operand)]

    def _set(self, call: OpContext, result: torch.Tensor, labels: Labels, *, mutated: bool) -> None:
        """Store the labels of an output.

        If an operator writes into a view (`out[:, :4] = x`), the channels that the whole tensor held so far and the
        new ones are removed together, or stay.
        """
        base = base_of(result) if mutated else None
        if base is not None:
            whole = self._labels_of(base)
            if not whole and all(_spans(label, result, base) for label in labels):
                self._remember(base, labels)
            else:
                labels = self._write(call, base, result, labels)
            self._producers.pop(id(base), None)
        self._remember(result, labels)

    def _write(self, call: OpContext, base: torch.Tensor, part: torch.Tensor, labels: Labels) -> Labels:
        """Store the labels of a tensor of which a part is overwritten, and return those of the part."""
        before, whole, writes = self._labels_of(part), self._labels_of(base), self.facts.writes
        if writes.has_parts(base) or (call.is_constant(base) and not whole):
            written = writes.write(call, base, whole, part, labels)
            if written is not None:
                self._remember(base, written)
                return labels
        elif [label.shape for label in before] == [label.shape for label in labels]:
            return call.join([before, labels], part.dim())
        why = "is written into a part of another tensor"
        call.freeze([*before, *labels, *whole], why, USE_CAT)
        self._remember(base, constant(self.facts.ids, base, call.refusal(why, USE_CAT)))
        return NONE

    # -- results ---------------------------------------------------------------------------------------------------

    def gates(self, trace: Trace) -> dict[str, GateKind]:
        """Choose the BatchNorms to decouple, after a first forward pass."""
        self._merge_split_dimensions()
        unit_of, frozen = self.facts.ids.units()
        must_stay = np.array([why is not None for why in frozen])
        must_stay[NO_CHANNEL] = False
        operators = trace.op_kinds_in({gate_site.site for gate_site in trace.gate_sites})
        return useful_gates(trace.gate_sites, unit_of, must_stay, self.facts.modules, operators)

    def graph(self, traces: dict[str, Trace], notes: Sequence[Note]) -> ChannelGraph:
        """Solve the facts that the rules have stated."""
        ids = self.facts.ids
        records = [record for trace in traces.values() for record in trace.records]
        for site, units in self._heads.items():
            if units.tied != "none":
                tie_widths(ids, records, site, units)
        self._merge_split_dimensions()
        for site, units in self._heads.items():
            if units.whole:
                self.facts.counts.extend(head_counts(ids, records, site, self.facts.modules[site]))
        unit_of, frozen = ids.units()
        layers = tuple(layers_of(self.facts, self.shapes))
        for layer in layers:
            written = unit_of[layer.ids]
            if frozen[written[0]] is None and (written == written[0]).all():
                frozen[written[0]] = Refusal(layer.name, *_AS_ONE)
        axes = {key: axis.numpy() for key, axis in self.facts.axes.items()}
        return ChannelGraph(
            unit_of=unit_of,
            frozen=tuple(frozen),
            axes=axes,
            gammas={**self.facts.gammas, **buffer_gammas(self.facts.modules, self.shapes)},
            layers=layers,
            counts=self._counts(np.array([why is None for why in frozen])[unit_of]),
            shapes=self.shapes,
            aliases=self.aliases,
            traces=traces,
            real=self.real,
            notes=tuple(notes),
            gates=tuple(
                GatedNorm(site, self.facts.gates[site], stream.numpy(), own.numpy())
                for site, (stream, own) in self.facts.implied.items()
            ),
        )

    def _counts(self, free: NDArray[np.bool_]) -> tuple[Count, ...]:
        """Keep one count per attribute and size; of several (a recurrent layer's input and state) one that may shrink.

        `free` is true for channels that may be removed, shape (ids,).
        """
        last = sorted(self.facts.counts, key=lambda count: bool(free[count.ids].any()))
        return tuple({(count.module, count.attribute, len(count.ids)): count for count in last}.values())

    def _merge_split_dimensions(self) -> None:
        """Remove whole columns of split dimensions: in C -> (g, C/g), all g groups lose the same positions.

        With whole heads as units, remove rows instead: some of the g groups are removed, the others stay as they are.
        """
        for label, site in self.facts.views:
            call = OpContext("view", site, None, self.facts, self._labels_of)
            dims = varying(call.canonical(label))
            if len(dims) > 1:
                call.merge(label, [*dims[:-2], dims[-1]] if call.whole_heads else dims[:-1])


def _original_still_runs(tensor: str) -> TraceError:
    return TraceError(
        f"{tensor.rpartition('.')[0] or 'the network'}: a copy of the network still runs this module of the original, "
        "because some code holds on to it (a lambda, or a patched forward). Refer to it through `self` in a method."
    )


def _spans(label: Label, part: torch.Tensor, whole: torch.Tensor) -> bool:
    """True if a view covers its base along all dimensions in which the label varies, in the same layout."""
    same_order = part.stride() == whole.stride()
    return same_order and all(part.shape[dim] == whole.shape[dim] for dim in varying(label))
