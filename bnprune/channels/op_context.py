"""One operator call, as a rule sees it: what its tensors' channels are, and what the operator says about them.

A rule reads labels (`labels`, `axis`), states facts (`unite`, `merge`, `freeze`, `bind`) and returns the labels of the
operator's output. It never sees the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from bnprune.channels.gate_sites import Gates, GateSite, Producer
from bnprune.channels.labels import NONE, Label, Labels, along, compact, varying, with_rank
from bnprune.channels.union_find import NO_CHANNEL, ChannelIds, Ids, Refusal

if TYPE_CHECKING:
    from bnprune.channels.ops.spec import OpKind

_KEEP_AWAY = "exclude this layer, or move the operator behind the last prunable layer"


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates of one weighted operator: MACs = factor x kept(axes[0]) x kept(axes[1])."""

    site: str
    factor: int
    """MACs per (input channel, output channel) pair of the weight: batch x positions x kernel elements."""
    inputs: Ids | int
    """Channel ids along the weight's input axis, or its size where that axis cannot shrink."""
    outputs: Ids | int
    """Channel ids along the weight's output axis, or its size."""
    layer: bool
    """Whether this is a layer with a width of its own (convolution, linear), not a product of activations."""


@dataclass(frozen=True, slots=True)
class Count:
    """An integer attribute of a module that must equal the number of kept channels among `ids`."""

    module: str
    attribute: str
    """Its name; "sizes[2]" for an element of a list or tuple."""
    ids: Ids


@dataclass(slots=True)
class Findings:
    """Everything the rules have stated about one network so far."""

    ids: ChannelIds = field(default_factory=ChannelIds)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """The network's modules by name."""
    names: dict[int, str] = field(default_factory=dict)
    """Name of each parameter and buffer, by `id(tensor)`."""
    axes: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    """Channel ids along one dimension of a named tensor, shape (size,)."""
    gammas: dict[str, str] = field(default_factory=dict)
    """BatchNorm scale factors: tensor name -> module name."""
    counts: list[Count] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    gates: Gates = field(default_factory=dict)
    """BatchNorms that are boundaries of their own in this trace."""
    gate_sites: list[GateSite] = field(default_factory=list)
    """BatchNorm calls that could be boundaries."""
    implied: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Per gate: channel ids of the stream and of the BatchNorm; the second must go where the first goes."""
    views: list[tuple[Label, str]] = field(default_factory=list)
    """Labels that change along several dimensions at once, and where they arose."""

    def is_zero(self, tensor: torch.Tensor, producer: Producer | None) -> bool:
        """Tell whether removed channels of a tensor are zero: those of weights are, and what layers make of them."""
        return id(tensor) in self.names if producer is None else producer.zero


def _numpy(label: torch.Tensor) -> Ids:
    array: Ids = label.numpy()
    return array


class OpContext:
    """What a rule may ask and say about one operator call."""

    __slots__ = ("_labels_of", "_producer_of", "findings", "kind", "op", "output", "site")

    def __init__(
        self,
        op: str,
        site: str,
        output: object,
        findings: Findings,
        labels_of: Callable[[torch.Tensor], Labels],
        producer_of: Callable[[torch.Tensor], Producer | None] = lambda _: None,
        kind: OpKind | None = None,
    ) -> None:
        self.op = op
        self.site = site
        self.output = output
        self.findings = findings
        self.kind = kind
        self._labels_of = labels_of
        self._producer_of = producer_of

    # -- reading ---------------------------------------------------------------------------------------------------

    def labels(self, tensor: object) -> Labels:
        """Return the labels of a tensor argument; none for anything that is not a tensor."""
        return self._labels_of(tensor) if isinstance(tensor, torch.Tensor) else NONE

    def canonical(self, label: Label) -> Label:
        """Return the label with united channels written as one id, so that `varying` tells the truth."""
        return compact(torch.from_numpy(self.findings.ids.find(_numpy(label))))

    def axis(self, tensor: torch.Tensor, dim: int, passing: Sequence[int] = ()) -> torch.Tensor | None:
        """Return the channel ids along `dim`, shape (size,), or None where nothing along it can go.

        Labels that change along other dimensions too are merged there; labels that change only elsewhere are frozen,
        except along the dimensions in `passing`.
        """
        name = self.findings.names.get(id(tensor))
        if name is not None:
            return self._named_axis(name, tensor, dim)
        found: torch.Tensor | None = None
        for label in self.labels(tensor):
            dims = varying(label)
            if dims and set(dims) <= set(passing):
                continue
            rest = label if dims == (dim,) else self.merge(label, [d for d in dims if d != dim])
            if rest is None:
                continue
            ids = rest.reshape(-1)
            if found is not None:
                self.unite(found, ids)
            found = ids
        return found

    def side(self, weight: torch.Tensor, dim: int) -> torch.Tensor | None:
        """Return the channel ids along one side of a weight; one that was computed has channels along others, too."""
        if id(weight) in self.findings.names:
            return self.axis(weight, dim)
        return self.axis(weight, dim, passing=[other for other in range(weight.dim()) if other != dim])

    def _named_axis(self, name: str, tensor: torch.Tensor, dim: int) -> torch.Tensor | None:
        if tensor.shape[dim] < 2:
            return None
        ids = self.findings.axes.get((name, dim))
        if ids is None:
            ids = self.findings.axes[name, dim] = self.findings.ids.new(tensor.shape[dim])
        return ids

    # -- stating ---------------------------------------------------------------------------------------------------

    def refusal(self, reason: str, fix: str = _KEEP_AWAY) -> Refusal:
        """Build a refusal that names this call's module and operator."""
        return Refusal(self.site, f"{reason} ({self.op})", fix)

    def unite(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """State that the channels of two broadcastable labels go together, element by element."""
        if left is not right:
            why = self.refusal("is combined with values that belong to no channel")
            self.findings.ids.unite(_numpy(left), _numpy(right), why)

    def freeze(self, labels: Iterable[torch.Tensor | None], reason: str, fix: str = _KEEP_AWAY) -> None:
        """State that these channels must stay."""
        for label in labels:
            if label is not None:
                self.findings.ids.freeze(_numpy(label), self.refusal(reason, fix))

    def merge(self, label: Label, dims: Iterable[int], reason: str = "is mixed across channels") -> Label | None:
        """State that elements along `dims` are mixed: they go all together or not at all.

        Returns what still changes along other dimensions, or None (frozen) where nothing does.
        """
        if len(varying(label)) > 1:
            label = self.canonical(label)
        first = label
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        if first.numel() == label.numel():
            return label
        if varying(first):
            self.unite(label, first)
            rest = self.canonical(first)
            if varying(rest):
                return rest
        self.freeze([label], reason)
        return None

    def bind(self, tensor: torch.Tensor, dim: int, ids: torch.Tensor | None) -> None:
        """State that dimension `dim` of a weight follows the channels `ids`; None means it cannot shrink."""
        name = self.findings.names.get(id(tensor))
        if name is not None and ids is not None and (name, dim) not in self.findings.axes and tensor.shape[dim] > 1:
            self.findings.axes[name, dim] = ids
            return
        own = self.side(tensor, dim)
        if own is None or ids is None:
            self.freeze(
                [own, ids], "meets a dimension that cannot shrink", "exclude this layer, or free the other side"
            )
        else:
            self.unite(own, ids)

    def join(self, operands: Sequence[Labels], rank: int) -> Labels:
        """Return the labels of an elementwise combination: channels that meet are united.

        An operand of size 1 (or without labels) along the dimensions of another's label is broadcast there, and says
        nothing about it.
        """
        joined: dict[tuple[int, ...], Label] = {}
        for label in (with_rank(f, rank) for labels in operands for f in labels):
            dims = varying(label)
            if not dims:
                self.freeze([label], "one channel is combined with every other")
            elif dims in joined:
                self.unite(joined[dims], label)
            else:
                self._join_overlapping(joined, label)
        return tuple(joined.values())

    def _join_overlapping(self, joined: dict[tuple[int, ...], Label], label: Label) -> None:
        for dims in [dims for dims in joined if set(dims) & set(varying(label))]:
            other, label = self.canonical(joined.pop(dims)), self.canonical(label)
            common = set(varying(other)) & set(varying(label))
            if not common:
                joined[varying(other)] = other
                continue
            kept = self.merge(other, set(varying(other)) - common)
            mine = self.merge(label, set(varying(label)) - common)
            if kept is None or mine is None:
                self.freeze([other, label], "is combined across channels")
                return
            self.unite(kept, mine)
            label = self.canonical(mine)
        if varying(label):
            joined[varying(label)] = label

    def keeps_sizes(self, sizes: Sequence[int]) -> bool:
        """Tell whether the running module keeps unequal sizes in attributes, where surgery can change them.

        Equal sizes count only where they stand in a list: a lone integer may as well be what `chunk` computed.
        """
        module = self.findings.modules.get(self.site)
        values = [] if module is None else list(vars(module).values())
        if any(isinstance(value, list | tuple) and list(value) == list(sizes) for value in values):
            return True
        integers = {value for value in values if isinstance(value, int) and not isinstance(value, bool)}
        return len(set(sizes)) > 1 and integers.issuperset(sizes)

    def keeps_bound(self, bound: int) -> bool:
        """Tell whether the running module keeps this bound of a slice in an attribute."""
        module = self.findings.modules.get(self.site)
        values = () if module is None else vars(module).values()
        return any(value == bound for value in values if isinstance(value, int) and not isinstance(value, bool))

    def named(self, tensor: torch.Tensor) -> str | None:
        """Return the name of a parameter or buffer, None for an activation."""
        return self.findings.names.get(id(tensor))

    def is_zero(self, tensor: torch.Tensor) -> bool:
        """Tell whether removed channels of a tensor are zero: those of weights are, and what layers make of them."""
        return self.findings.is_zero(tensor, self._producer_of(tensor))

    def gamma(self, tensor: torch.Tensor) -> None:
        """State that this parameter holds the scale factors of a BatchNorm."""
        name = self.named(tensor)
        if name is not None:
            self.findings.gammas.setdefault(name, self.site)

    def gate_site(self, x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the channel ids of a BatchNorm and of its output, given those of its input `x`; all of shape (C,).

        They are the same unless the BatchNorm has a gate.
        """
        producer = self._producer_of(x)
        if producer is not None:
            self.findings.gate_sites.append(GateSite(self.site, producer.gate, _numpy(ids), producer.grouped))
        kind = self.findings.gates.get(self.site)
        own = self.axis(weight, 0) if kind == "read" else ids
        if kind is None or own is None:
            return ids, ids
        out = own if kind == "read" else self._stream(ids)
        self.findings.implied[self.site] = (ids, own) if kind == "read" else (out, own)
        return own, out

    def _stream(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the ids of the stream this gate writes to: the same in every trace."""
        known = self.findings.implied.get(self.site)
        return self.findings.ids.new(ids.numel()) if known is None else known[0]

    def count(self, attribute: str, ids: torch.Tensor | int | None) -> None:
        """State that an integer attribute of the running module, if it has it, counts the channels `ids`."""
        if isinstance(ids, torch.Tensor):
            self.findings.counts.append(Count(self.site, attribute, _numpy(ids)))

    def work(
        self,
        factor: int,
        inputs: torch.Tensor | int,
        outputs: torch.Tensor | int,
        layer: bool,
    ) -> None:
        """State the multiply-accumulates of this call."""
        pair = [_numpy(axis) if isinstance(axis, torch.Tensor) else axis for axis in (inputs, outputs)]
        self.findings.work.append(Work(self.site, factor, pair[0], pair[1], layer))

    def moved(self, label: torch.Tensor) -> Label:
        """Return a label after data movement, compact, and remember it where it changes along several dimensions."""
        label = compact(label)
        if len(varying(label)) > 1:
            self.findings.views.append((label, self.site))
        return label


def constant(ids: ChannelIds, tensor: torch.Tensor, why: Refusal) -> Labels:
    """Return frozen labels for every dimension of a tensor whose positions have fixed meanings."""
    labels = []
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            fresh = ids.new(size)
            ids.freeze(_numpy(fresh), why)
            labels.append(along(fresh, dim, tensor.dim()))
    return tuple(labels)


__all__ = ["NO_CHANNEL", "Count", "Findings", "OpContext", "Work", "constant"]
