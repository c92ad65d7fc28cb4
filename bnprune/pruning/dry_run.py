"""The dry run: run the slim network on meta tensors and compare every operator with the trace.

What the trace could not know shows here: a literal `view(-1, 512)`, hard-coded head counts, `split([8, 8])`, a scale
computed from a width. Channels that enter such an operator are kept, with a reason that names it. An operator that
fails is replaced by an empty tensor of the expected shape, so that one rehearsal finds all of them.
"""

from __future__ import annotations

import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bnprune.channels.control_flow import FORCED_BRANCHES, ForcedBranch, is_real
from bnprune.channels.graph import ChannelGraph, Record, Trace
from bnprune.channels.labels import Label, varying
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
from bnprune.pruning.size_attributes import Attributes

_META = torch.device("meta")


@dataclass(frozen=True)
class DryRun:
    """What one dry run showed."""

    macs: int
    """MACs of the slim network in eval mode."""
    kept: dict[int, Refusal]
    """Further units that must stay after all."""
    sizes: tuple[Count, ...]
    """Attributes that seem to hold a size which must shrink; try them before giving the channels up."""

    misses: tuple[tuple[str, str], ...]
    """(module, what differed) of every operator that did not do as expected."""
    other_code: bool = False
    """Whether operators got other numbers, or other operators ran, than in the trace: by a width, or by chance."""

    @property
    def passed(self) -> bool:
        """Whether the slim network ran as expected."""
        return not self.misses


def dry_run(
    slim: nn.Module,
    graph: ChannelGraph,
    removed: Mask,
    inputs: Inputs,
    kept: Mapping[int, Refusal],
    sizes: Sequence[Count] = (),
    barred: Collection[tuple[str, str]] = (),
    *,
    real: bool = False,
) -> DryRun:
    """Run a slim network once per traced mode and compare it with the trace.

    What the values decided in the trace (indices, masks, branches) is repeated, so that a network that decides on its
    values runs without any, unless its code does more with them than the trace has seen.

    Args:
        slim: The slim network; on the meta device unless `real`.
        graph: The trace of the original.
        removed: Whether each unit was removed, shape (units,).
        inputs: The inputs of the trace.
        kept: Units that stay already, beyond those the graph freezes.
        sizes: Attributes that were changed on suspicion in this slim network.
        barred: Attributes that must not be changed.
        real: Run it on real tensors.
    """
    elsewhere = graph.real and not real
    device = next((t.device for t in tensors(inputs)), torch.device("cpu"))
    found: dict[int, Refusal] = {}
    mends: dict[tuple[str, str], Count] = {}
    known = {(size.module, size.attribute) for size in sizes} | set(barred)
    misses: list[tuple[str, str]] = []
    other_code = False
    macs = {}
    for mode, followed in graph.traces.items():
        stage = _Stage(graph, followed, removed, {*kept, *found}, Attributes(slim, known), real=real)
        args, kwargs = map_tensors(
            # integers keep their values where those have been followed
            lambda t: t.clone() if real or (elsewhere and not is_real(t)) else t.to(_META),
            inputs,
        )
        stage.forced = ForcedBranch(FORCED_BRANCHES[mode]) if mode in FORCED_BRANCHES else None
        resting = temporary_mode(slim, training=mode == "train", norms=False)
        with resting as modules, module_stack(modules) as stage.stack:
            try:
                with stage, _Elsewhere(device) if elsewhere else nullcontext():
                    slim(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the Python code of the model noticed the smaller widths
                stage.stop(error)
        stage.finish(last_resort=not sizes)
        found.update(stage.kept)
        mends.update(stage.mends)
        misses += stage.misses
        other_code |= stage.other_code
        macs[mode] = stage.macs
    return DryRun(macs["eval"], found, tuple(mends.values()), tuple(misses), other_code)


class _Elsewhere(TorchFunctionMode):
    """Lets tensors without values claim to be where those of the trace were: code may branch on `x.device`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.device if func == _DEVICE else func(*args, **kwargs or {})


_DEVICE = torch.Tensor.device.__get__


class _Stage(OperatorMode):
    """Compares operator calls with their records, matched by module and operator in order."""

    def __init__(
        self,
        graph: ChannelGraph,
        followed: Trace,
        removed: Mask,
        settled: set[int],
        attributes: Attributes,
        *,
        real: bool,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.real = real
        self.elsewhere = graph.real and not real
        self.removed = removed
        self._stays = ~removed[graph.unit_of]  # by channel id
        self.settled = settled
        self.attributes = attributes
        self.mends: dict[tuple[str, str], Count] = {}
        self._mended: dict[tuple[str, str], tuple[Record, str]] = {}
        self.stack = [""]
        self.kept: dict[int, Refusal] = {}
        self.misses: list[tuple[str, str]] = []
        self.other_code = False
        self.macs = 0
        self._expected: dict[tuple[str, str], deque[Record]] = defaultdict(deque)
        self._sizes: dict[int, dict[int, int] | None] = {}
        self._past: list[Record] = []
        self._before_first_miss: list[Record] = []
        self.forced: ForcedBranch | None = None
        self._gates = {gate.site for gate in graph.gates}
        self._gated = {f"{site}.norm": site for site in self._gates}
        self._replay = followed.decisions.replay()
        self._valueless: set[OpOverload] = set()  # operators that meta tensors cannot run
        self._records = followed.records
        for record in self._records:
            self._expected[record.site, record.kind if record.kind == "view" else record.op].append(record)

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and compare it with its record."""
        site = self._gated.get(self.stack[-1], self.stack[-1])
        kind = spec_of(func).kind
        queue = self._expected[site, kind if kind == "view" else func.name()]
        record = queue.popleft() if queue else None
        try:
            output = self._run(func, args, kwargs)
        except Exception as error:
            if record is None:
                raise
            self._miss(record, f"relies on a fixed size: {first_line(error)}")
            return self._stand_in(record, args)
        self.macs += macs_of(func, args, kwargs, output)
        if record is not None:
            self._past.append(record)
            if site not in self._gates:  # between BatchNorm and gate widths are the BatchNorm's own
                output = self._compare(record, func, args, kwargs, output)
        elif torch.Tag.pointwise in func.tags and site not in self._gates and self._past and not self.graph.real:
            self.other_code = True
            self._miss(self._past[-1], f"is followed by {func.name()}, which the original does not call")
        return output if self.forced is None else self.forced.invert(output)

    def _run(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and decide as the trace did; on meta tensors, decisions are the only values there are."""
        if self.elsewhere and kwargs.get("device") and any(tensor.is_meta for tensor in operands(args, {})):
            kwargs = {**kwargs, "device": _META}
        if func in self._valueless and self._replay.matches(func, args, kwargs):
            return self._replay.next_output()
        try:
            output = run_kernel(func, args, kwargs, self.generators, meta=not self.real)
        except Exception:
            if self.real or not self._replay.matches(func, args, kwargs):
                raise
            self._valueless.add(func)
            return self._replay.next_output()
        return self._replay.apply(func, args, kwargs, output)

    def _compare(
        self, record: Record, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if numbers_in(func, args, kwargs) != record.numbers:
            self.other_code = True
            self._miss(record, "depends on the number of channels")
        got = operands((output,), {})
        for tensor, (shape, labels) in zip(got, record.outputs, strict=False):
            expected = self._shape(shape, labels)
            if expected is None:
                self._miss(record, "is split into parts of different sizes")
                return self._stand_in(record, args)
            if labels and tuple(tensor.shape) != expected:
                self._miss(record, f"relies on a fixed size: expected {expected}, got {tuple(tensor.shape)}")
                return self._stand_in(record, args)
        return output

    def _shape(self, shape: tuple[int, ...], labels: Iterable[Label]) -> tuple[int, ...] | None:
        """Expected shape after the cut; None where what is left is not a full block."""
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
            return {dims[0]: int(mask.sum())}
        lines = {dim: mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim)) for dim in dims}
        sizes = {dim: int(line.sum()) for dim, line in lines.items()}
        return sizes if int(mask.sum()) == int(np.prod(list(sizes.values()), dtype=np.int64)) else None

    def _stand_in(self, record: Record, args: tuple[Any, ...]) -> Any:
        like = [*operands(args, {}), torch.empty(0, device="cpu" if self.real else _META)]
        made = [like[0].new_zeros(self._shape(shape, labels) or shape) for shape, labels in record.outputs]
        return made[0] if len(made) == 1 and not record.listed else made

    def _miss(self, record: Record, reason: str) -> None:
        """An operator did not do as expected: change the attribute that holds its size, or keep its channels."""
        self._before_first_miss = self._before_first_miss or list(self._past)
        self.misses.append((record.site, f"{record.op} {reason}"))
        mends = self.attributes.holding(record.site, self._shrunk(record), _parts(record))
        contested = [other for mend in mends for other in self._contested(mend)]
        if not mends or contested:
            for other in (*contested, (record, reason)):
                self._keep(*other)
            return
        for mend in mends:
            if self._count(mend.ids) == 0:
                why = Refusal(mend.module, f"its '{mend.attribute}' would become zero; one channel stays", "")
                self.kept.setdefault(int(self.graph.units(mend.ids)[0]), why)
                continue
            self.mends[mend.module, mend.attribute] = mend
            self._mended[mend.module, mend.attribute] = record, reason

    def _contested(self, mend: Count) -> list[tuple[Record, str]]:
        """One attribute cannot hold two sizes: withdraw it, and return the operator that wanted another one."""
        key = mend.module, mend.attribute
        other = self.mends.get(key)
        if other is None or self._count(other.ids) == self._count(mend.ids):
            return []
        del self.mends[key]
        self.attributes.known.add(key)
        return [self._mended[key]]

    def _count(self, ids: Ids) -> int:
        return int(self._stays[ids].sum())

    def _keep(self, record: Record, reason: str) -> None:
        why = Refusal(
            record.site,
            f"{reason} ({record.op})",
            "compute sizes from the tensor's shape in forward(), or exclude the layers before it",
        )
        labels = record.inputs or tuple(f for _, labels in record.outputs for f in labels)
        for label in labels:
            for unit in np.unique(self.graph.units(label.numpy())).tolist():
                if unit != NO_CHANNEL and unit not in self.settled and self.graph.frozen[unit] is None:
                    self.kept.setdefault(unit, why)

    def _shrunk(self, record: Record) -> list[Ids]:
        """Channel ids along every dimension of the operator's tensors that is smaller now, whole tensors first."""
        labels = [*record.inputs, *(label for _, labels in record.outputs for label in labels)]
        lines = [line for label in labels for line in _lines(label)]
        if record.kind == "slice":  # x[:, bound:] is sized by what it leaves out
            lines += [line[~np.isin(line, taken)] for line in lines for taken in lines if len(taken) < len(line)]
        counted = [count.ids for count in self.graph.counts if count.module == record.site]
        return [
            ids for ids in (*lines, *counted) if self._count(ids) < len(ids) and len(set(self.graph.units(ids))) > 1
        ]

    def stop(self, error: Exception) -> None:
        """The forward pass raised outside an operator: keep what the code had in its hands."""
        if not self._past:
            self.misses.append(("", f"{type(error).__name__}: {first_line(error)}"))
        following = self._next_in(_module_of(error))
        if following is not None:
            self._miss(following, f"is entered by code that relies on a fixed size: {first_line(error)}")
        for record in reversed(self._past):  # the nearest operator that saw channels that may still go
            if self.kept or self.mends:
                break
            self._miss(record, f"is followed by code that relies on a fixed size: {first_line(error)}")
        self._expected.clear()

    def _next_in(self, module: nn.Module | None) -> Record | None:
        """The operator that would have come next in a module without children: it has what enters the module."""
        name = next((name for name, other in self.attributes.modules.items() if other is module), None)
        if name is None or any(self.attributes.modules[name].children()):
            return None
        waiting = {id(record) for queue in self._expected.values() for record in queue}
        return next((record for record in self._records if record.site == name and id(record) in waiting), None)

    def finish(self, *, last_resort: bool) -> None:
        """Keep channels whose operators the slim network did not call at all.

        With `last_resort`, something is kept wherever something differed, so that there is an end: where none of the
        channels at that operator may go, the nearest ones before it.
        """
        for queue in self._expected.values():
            for record in queue:
                if record.inputs and record.kind != "copy" and not self.graph.real:  # it copies as strides demand
                    self.other_code = True
                    self._miss(record, "is not called in the slim network: the code branches on a size")
        if not last_resort or not self.misses:
            return
        site, what = self.misses[0]
        for record in reversed(self._before_first_miss):
            if self.kept or self.mends:
                break
            self._keep(record, f"comes before {site or 'forward()'}, where {what}")


def _module_of(error: Exception) -> nn.Module | None:
    """The innermost module whose code raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = (frame.f_locals.get("self") for frame in reversed(frames))
    return next((owner for owner in owners if isinstance(owner, nn.Module)), None)


def _parts(record: Record) -> list[Ids]:
    """Channel ids of each part of a split, along the dimension that is split."""
    if record.kind != "split":
        return []
    lines = [next((line for label in labels for line in _lines(label)), None) for _, labels in record.outputs]
    return [line for line in lines if line is not None]


def _lines(label: Label) -> Iterator[Ids]:
    """Channel ids along each dimension of a label, taken at the start of the others."""
    for dim in varying(label):
        line = label
        for other in varying(label):
            if other != dim:
                line = line.narrow(other, 0, 1)
        yield line.reshape(-1).numpy()
