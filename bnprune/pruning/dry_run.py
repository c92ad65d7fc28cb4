"""The dry run: run the slim network on meta tensors and compare every operator call with the trace.

This finds the code that depends on a width in a way the trace cannot see: a literal `view(-1, 512)`, hard-coded head
counts, `split([8, 8])`, a scale computed from a width. Channels that enter such an operator are kept, with a reason
that names it. A failed operator returns zeros of the expected shape, so that one dry run finds all such places.

The two modes of a dry run:

- Without values (the default), all tensors are on the meta device: shapes only, which takes neither memory nor
  arithmetic. If the trace had values because the network decides on them (`graph.real`), the decisions are repeated
  from the trace: indices, masks, `item()`, branches.
- With values, the slim network has its weights and runs on the example inputs. This is the second try for a network
  that failed without values, because its code does more with them than the trace recorded (`tolist()`, say).
"""

from __future__ import annotations

import traceback
import weakref
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bnprune.channels.control_flow import FORCED_BRANCHES, ForcedBranch, is_real
from bnprune.channels.graph import ChannelGraph, Record, Trace
from bnprune.channels.labels import Label, lines, varying
from bnprune.channels.meta_kernels import run_kernel
from bnprune.channels.modules import module_stack, temporary_mode
from bnprune.channels.op_context import Count
from bnprune.channels.operator_mode import OperatorMode
from bnprune.channels.ops.spec import macs_of, numbers_in, spec_of
from bnprune.channels.pytrees import Inputs, map_tensors, operands, tensors
from bnprune.channels.torch_internals import OpOverload
from bnprune.channels.union_find import NO_CHANNEL, Ids, Refusal
from bnprune.errors import first_line
from bnprune.pruning.candidates import Mask
from bnprune.pruning.function_modes import ClaimedDevice, FailingCall
from bnprune.pruning.size_attributes import Attributes

_META = torch.device("meta")


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run."""

    macs: int
    """MACs of the slim network in eval mode."""
    kept: dict[int, Refusal]
    """Further units that must stay, with reasons."""
    sizes: tuple[Count, ...]
    """Attributes that seem to hold a width; with other values, the channels may be removable."""

    mismatches: tuple[tuple[str, str], ...]
    """(module, difference) for every operator whose call or output differs from the trace."""
    other_code: bool = False
    """True if other operators ran than in the trace, or with other numbers: because of a width, or by chance."""

    @property
    def passed(self) -> bool:
        """True if the slim network ran as expected."""
        return not self.mismatches


def dry_run(
    slim: nn.Module,
    graph: ChannelGraph,
    removed: Mask,
    inputs: Inputs,
    kept: Mapping[int, Refusal],
    sizes: Sequence[Count] = (),
    not_sizes: Collection[tuple[str, str]] = (),
    *,
    with_values: bool = False,
) -> DryRun:
    """Run a slim network once per traced mode and compare it with the trace.

    Args:
        slim: The slim network; on the meta device unless `with_values`.
        graph: The trace of the original.
        removed: True for units that were removed, shape (units,).
        inputs: The inputs of the trace.
        kept: Units that earlier dry runs have kept.
        sizes: Attributes that were changed in this slim network because they seem to hold a width.
        not_sizes: (module, attribute) of attributes that must not be changed.
        with_values: True if the slim network has weights and is to run on the inputs.
    """
    newly_kept: dict[int, Refusal] = {}
    new_sizes: dict[tuple[str, str], Count] = {}
    known = {(size.module, size.attribute) for size in sizes} | set(not_sizes)
    mismatches: list[tuple[str, str]] = []
    other_code = False
    macs = {}
    for mode, recorded in graph.traces.items():
        # Units that an earlier mode has kept do not count as kept here: a later mode must explain the same mismatch by
        # the same units, or `end_early` and `end` would keep units further back, which have nothing to do with it.
        compare = partial(_TraceComparison, graph, recorded, removed, kept.keys(), with_values=with_values)
        comparison = compare(Attributes(slim, known), FORCED_BRANCHES.get(mode))
        if _run(slim, comparison, mode, inputs, nullcontext()) is not None:
            calls = FailingCall()
            comparison = compare(Attributes(slim, known), FORCED_BRANCHES.get(mode))
            error = _run(slim, comparison, mode, inputs, calls)
            if error is not None:
                comparison.end_early(error, calls.operands_of(error))
        comparison.end(last_resort=not sizes)
        newly_kept = comparison.kept | newly_kept
        new_sizes.update(comparison.new_sizes)
        mismatches += comparison.mismatches
        other_code |= comparison.other_code
        macs[mode] = comparison.macs
    return DryRun(macs["eval"], newly_kept, tuple(new_sizes.values()), tuple(mismatches), other_code)


def _run(
    slim: nn.Module, comparison: _TraceComparison, mode: str, inputs: Inputs, calls: AbstractContextManager[Any]
) -> Exception | None:
    """Run one mode of a slim network under a comparison; return the error that ended it, if one did."""
    device = next((t.device for t in tensors(inputs)), torch.device("cpu"))
    lacks_values, with_values = comparison.lacks_values, comparison.with_values
    args, kwargs = map_tensors(
        # integers keep their values if the trace had values
        lambda t: t.clone() if with_values or (lacks_values and not is_real(t)) else t.to(_META),
        inputs,
    )
    unchanged = temporary_mode(slim, training=mode == "train", norms=False)
    with unchanged as modules, module_stack(modules) as comparison.stack:
        try:
            with comparison, ClaimedDevice(device) if lacks_values else nullcontext(), calls:
                slim(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the code of the network may raise anything for a smaller width
            return error
    return None


class _TraceComparison(OperatorMode):
    """Compares operator calls with the records of one traced mode.

    The n-th call of an operator in a module is compared with the n-th record of that operator in that module.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        recorded: Trace,
        removed: Mask,
        earlier_kept: Collection[int],
        attributes: Attributes,
        forced: float | None,
        *,
        with_values: bool,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.with_values = with_values
        self.lacks_values = graph.real and not with_values
        """True if the trace had values and this run has none."""
        self.removed = removed
        self._stays = ~removed[graph.unit_of]  # by channel id
        self.earlier_kept = earlier_kept
        """Units that earlier dry runs have kept."""
        self.attributes = attributes
        self.new_sizes: dict[tuple[str, str], Count] = {}
        self._found_at: dict[tuple[str, str], tuple[Record, str]] = {}
        """The operator, and its difference, that each of `new_sizes` was found at."""
        self.stack = [""]
        self.kept: dict[int, Refusal] = {}
        self.mismatches: list[tuple[str, str]] = []
        self.other_code = False
        self.macs = 0
        self._expected: dict[tuple[str, str], deque[Record]] = defaultdict(deque)
        self._sizes: dict[int, dict[int, int] | None] = {}
        self._matched: list[Record] = []
        self._before_first_mismatch: list[Record] = []
        self._forced = None if forced is None else ForcedBranch(forced)
        self._producers: dict[int, tuple[weakref.ref[torch.Tensor], Record]] = {}
        self._gates = {gate.site for gate in graph.gates}
        self._gated = {f"{site}.norm": site for site in self._gates}
        self._replay = recorded.decisions.replay()
        self._no_meta_kernel: set[OpOverload] = set()
        self._records = recorded.records
        for record in self._records:
            self._expected[record.site, record.kind if record.kind == "view" else record.op].append(record)

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and compare it with its record."""
        site = self._gated.get(self.stack[-1], self.stack[-1])
        kind = spec_of(func).kind
        if kind == "copy":  # made if the strides require it, and a width of 1 changes strides
            return self._run_copy(func, args, kwargs)
        queue = self._expected[site, kind if kind == "view" else func.name()]
        record = queue[0] if queue else None
        try:
            output = self._run(func, args, kwargs)
        except Exception as error:
            if record is None:
                raise
            queue.popleft()
            self._add_mismatch(record, f"relies on a fixed size: {first_line(error)}")
            output = self._zeros_as_recorded(record, args)
            self._remember(record, output)
            return output
        self.macs += macs_of(func, args, kwargs, output)
        if record is not None and _same_rank(record, output):
            queue.popleft()
            self._matched.append(record)
            if site not in self._gates:  # between a BatchNorm and its gate, widths differ from the trace
                output = self._compare(record, func, args, kwargs, output)
            self._remember(record, output)
        elif torch.Tag.pointwise in func.tags and site not in self._gates and self._is_extra(args, kwargs):
            self.other_code = True
            self._add_mismatch(self._matched[-1], f"is followed by {func.name()}, which the original does not call")
        return output if self._forced is None else self._forced.invert(output)

    def _run_copy(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = self._run(func, args, kwargs)
        source = self._producers.get(id(args[0]))
        if source is not None and source[0]() is args[0]:
            self._remember(source[1], output)
        return output

    def _is_extra(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True if an operator that the original does not call reads the result of one that it calls.

        Others compute constants, such as anchors that an earlier forward pass of the original has left in a cache.
        """
        if not self._matched or self.graph.real:
            return False
        producers = (self._producers.get(id(tensor)) for tensor in operands(args, kwargs))
        return any(entry is not None and entry[0]() is not None for entry in producers)

    def _remember(self, record: Record, output: Any) -> None:
        for tensor in operands((output,), {}):
            self._producers[id(tensor)] = weakref.ref(tensor), record

    def _run(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and repeat its recorded decision, if it has one; without values, there are no others."""
        if func in self._no_meta_kernel and self._replay.matches(func, args, kwargs):
            return self._replay.next_output()
        try:
            output = run_kernel(func, args, kwargs, self.generators, meta=not self.with_values)
        except Exception:
            if self.with_values or not self._replay.matches(func, args, kwargs):
                raise
            self._no_meta_kernel.add(func)
            return self._replay.next_output()
        return self._replay.apply(func, args, kwargs, output)

    def _compare(
        self, record: Record, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if numbers_in(func, args, kwargs) != record.numbers:
            self.other_code = True
            self._add_mismatch(record, "depends on the number of channels")
        got = operands((output,), {})
        for tensor, (shape, labels) in zip(got, record.outputs, strict=False):
            expected = self._shape(shape, labels)
            if expected is None:
                self._add_mismatch(record, "is split into parts of different sizes")
                return self._zeros_as_recorded(record, args)
            if labels and tuple(tensor.shape) != expected:
                self._add_mismatch(record, f"relies on a fixed size: expected {expected}, got {tuple(tensor.shape)}")
                return self._zeros_as_recorded(record, args)
        return output

    def _shape(self, shape: tuple[int, ...], labels: Iterable[Label]) -> tuple[int, ...] | None:
        """Return the expected shape after the cut; None if the kept elements do not form a rectangular block."""
        sizes = list(shape)
        for label in labels:
            if id(label) not in self._sizes:
                self._sizes[id(label)] = self._kept_sizes(label)
            kept = self._sizes[id(label)]
            if kept is None:
                return None
            for dim, size in kept.items():
                sizes[dim] = size
        return tuple(sizes)

    def _kept_sizes(self, label: Label) -> dict[int, int] | None:
        mask = self._stays[label.numpy()]
        dims = varying(label)
        if not dims:
            return {} if mask.all() else None
        if len(dims) == 1:
            return {dims[0]: int(np.count_nonzero(mask))}
        lines = {dim: mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim)) for dim in dims}
        sizes = {dim: int(line.sum()) for dim, line in lines.items()}
        return sizes if int(mask.sum()) == int(np.prod(list(sizes.values()), dtype=np.int64)) else None

    def _zeros_as_recorded(self, record: Record, args: tuple[Any, ...]) -> Any:
        examples = [*operands(args, {}), torch.empty(0, device="cpu" if self.with_values else _META)]
        zeros = [examples[0].new_zeros(self._shape(shape, labels) or shape) for shape, labels in record.outputs]
        return zeros[0] if len(zeros) == 1 and not record.listed else zeros

    def _add_mismatch(self, record: Record, reason: str) -> None:
        """Record a difference, and change the attribute that holds the size or, without one, keep the channels."""
        self._before_first_mismatch = self._before_first_mismatch or list(self._matched)
        self.mismatches.append((record.site, f"{record.op} {reason}"))
        counts = self.attributes.holding(record.site, self._shrunk(record), _parts(record), self._dims(record.site))
        conflicts = [other for count in counts for other in self._withdraw_conflicting(count)]
        if not counts or conflicts:
            for other in (*conflicts, (record, reason)):
                self._keep(*other)
            return
        for count in counts:
            self.new_sizes[count.module, count.attribute] = count
            self._found_at[count.module, count.attribute] = record, reason

    def _withdraw_conflicting(self, count: Count) -> list[tuple[Record, str]]:
        """Withdraw an attribute that would have to hold two sizes, and return the operator that it was found at."""
        key = count.module, count.attribute
        other = self.new_sizes.get(key)
        if other is None or self._count(other.ids) == self._count(count.ids):
            return []
        del self.new_sizes[key]
        self.attributes.known.add(key)
        return [self._found_at[key]]

    def _count(self, ids: Ids) -> int:
        return int(np.count_nonzero(self._stays[ids]))

    def _keep(self, record: Record, reason: str) -> None:
        why = Refusal(
            record.site,
            f"{reason} ({record.op})",
            "compute sizes from the tensor's shape in forward(), or exclude the layers before it",
        )
        entering = self._open_units(record.inputs)
        leaving = self._open_units([label for _, labels in record.outputs for label in labels])
        for unit in sorted(leaving - entering or entering):  # if there are any, those it made: padding, an index
            self.kept.setdefault(unit, why)

    def _open_units(self, labels: Iterable[Label]) -> set[int]:
        """Return the units among labels that may still be removed."""
        units = {unit for label in labels for unit in np.unique(self.graph.units(label.numpy())).tolist()}
        return {unit for unit in units if self.graph.frozen[unit] is None} - {*self.earlier_kept, NO_CHANNEL}

    def _dims(self, site: str) -> set[int]:
        """Return the sizes before the cut of all tensors that a module makes, and of the channels it reads."""
        here = [record for record in self._records if record.site == site]
        read = (label.shape for record in here for label in record.inputs)
        return {size for shape in (*read, *(shape for r in here for shape, _ in r.outputs)) for size in shape}

    def _shrunk(self, record: Record) -> list[Ids]:
        """Return channel ids along every dimension of the operator's tensors that is smaller now, tensors first."""
        labels = [*record.inputs, *(label for _, labels in record.outputs for label in labels)]
        of_labels = [line for label in labels for _, line in lines(label)]
        if record.kind == "slice":  # x[:, bound:] is sized by what it leaves out
            of_labels += [
                line[~np.isin(line, part)] for line in of_labels for part in of_labels if len(part) < len(line)
            ]
        counted = [count.ids for count in self.graph.counts if count.module == record.site]
        return [
            ids for ids in (*of_labels, *counted) if self._count(ids) < len(ids) and len(set(self.graph.units(ids))) > 1
        ]

    def end_early(self, error: Exception, concerned: Sequence[torch.Tensor]) -> None:
        """Keep channels of the nearest operators after the forward pass has raised an error outside an operator.

        The nearest are those that computed the tensors `concerned` (see `FailingCall`). If their channels stay already,
        those that ran last are tried, though they may belong to another branch.
        """
        if not self._matched:
            self.mismatches.append(("", f"{type(error).__name__}: {first_line(error)}"))
        following = self._next_in(_module_of(error))
        if following is not None:
            self._add_mismatch(following, f"is entered by code that relies on a fixed size: {first_line(error)}")
        for record in self._producers_of(concerned) if following is None else ():
            self._add_mismatch(record, f"is followed by code that relies on a fixed size: {first_line(error)}")
        for record in reversed(self._matched):  # the nearest operator with channels that may still be removed
            if self.kept or self.new_sizes:
                break
            self._add_mismatch(record, f"is followed by code that relies on a fixed size: {first_line(error)}")
        self._expected.clear()

    def _producers_of(self, inputs: Sequence[torch.Tensor]) -> Iterator[Record]:
        for tensor in inputs:
            ref, record = self._producers.get(id(tensor), (None, None))
            if ref is not None and record is not None and ref() is tensor:
                yield record

    def _next_in(self, module: nn.Module | None) -> Record | None:
        """Return the next operator in a module without children, whose inputs are those of the module."""
        name = next((name for name, other in self.attributes.modules.items() if other is module), None)
        if name is None or any(self.attributes.modules[name].children()):
            return None
        waiting = {id(record) for queue in self._expected.values() for record in queue}
        return next((record for record in self._records if record.site == name and id(record) in waiting), None)

    def end(self, *, last_resort: bool) -> None:
        """Keep channels of operators that the slim network has not called.

        With `last_resort`, at least one channel is kept if anything differed, so that the search of the planner ends:
        if all channels at the first difference stay already, the nearest ones before it are kept.
        """
        for queue in self._expected.values():
            for record in queue:
                if record.inputs and record.kind != "copy" and not self.graph.real:
                    self.other_code = True
                    self._add_mismatch(record, "is not called in the slim network: the code branches on a size")
        if not last_resort or not self.mismatches:
            return
        site, difference = self.mismatches[0]
        for record in reversed(self._before_first_mismatch):
            if self.kept or self.new_sizes:
                break
            self._keep(record, f"comes before {site or 'forward()'}, where {difference}")


def _same_rank(record: Record, output: Any) -> bool:
    """True if outputs have as many dimensions as recorded; otherwise it is another call: a cut changes sizes only."""
    recorded = [len(shape) for shape, _ in record.outputs]
    return [tensor.dim() for tensor in operands((output,), {})][: len(recorded)] == recorded or record.listed


def _module_of(error: Exception) -> nn.Module | None:
    """Return the innermost module whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = (frame.f_locals.get("self") for frame in reversed(frames))
    return next((owner for owner in owners if isinstance(owner, nn.Module)), None)


def _parts(record: Record) -> list[Ids]:
    """Return the channel ids of each part of a split, along the dimension that is split."""
    if record.kind != "split":
        return []
    parts = [next((line for label in labels for _, line in lines(label)), None) for _, labels in record.outputs]
    return [line for line in parts if line is not None]
