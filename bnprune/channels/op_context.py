"""OpContext: one operator call, as a rule sees it.

A *label* says which channel each element of a tensor belongs to. It is an integer tensor that broadcasts to the
shape of the tensor, with size 1 along every dimension in which the channel does not change. A rule reads the labels
of the inputs, states facts about their channels, and returns the labels of the output.

A worked example, `conv(3 -> 4) -> conv(4 -> 4) -> mylib::fold_pairs -> conv(2 -> 1)` on an image of 8 x 8. The operator
adds channel 2k+1 to channel 2k: (N, 4, H, W) becomes (N, 2, H, W). Its rule::

    @bnprune.rule("mylib::fold_pairs", keeps_zero="first")
    def fold_pairs(ctx, x):
        ids = ctx.axis(x, 1)                        # channel ids along dimension 1: [11 12 13 14]
        if ids is None:                             # no channel along it can be removed
            return ()
        ctx.unite(ids[1::2], ids[0::2])             # 11 and 12 are removed together, so are 13 and 14
        return (ids[0::2].reshape(1, -1, 1, 1),)    # one label, (1, 2, 1, 1): [11 13]

The labels, before the rule and after::

    x       (1, 4, 8, 8)    label (1, 4, 1, 1)  =  [[[[11]], [[12]], [[13]], [[14]]]]
    output  (1, 2, 8, 8)    label (1, 2, 1, 1)  =  [[[[11]], [[13]]]]

Now removing channel 11 removes row 0 and row 1 of the second convolution, and column 0 of the third. The methods:

========== =====================================================================================
read       `labels`, `axis`, `side`, `named`, `is_zero`, `is_constant`, `keeps_sizes`, `keeps_bound`, `at_seams`,
           `whole_heads`
state      `new`, `unite`, `freeze`, `merge`, `bind`, `contract`, `count`, `work`
return     labels of inputs, or `join` (elementwise), `moved` (after reordering elements), `canonical`
========== =====================================================================================

`gamma`, `gate_site` and `facts` serve the rules of BatchNorm, and may change.
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
from bnprune.channels.view_writes import ViewWrites

if TYPE_CHECKING:
    from bnprune.channels.ops.spec import OpKind

_ZERO = "use an activation that is zero at zero (ReLU, SiLU, GELU, tanh) on one side"
_DEFAULT_FIX = "exclude this layer, or move the operator after the last prunable layer"


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates of one weighted operator: MACs = factor x kept(axes[0]) x kept(axes[1])."""

    site: str
    factor: int
    """MACs per (input channel, output channel) pair of the weight: batch x positions x kernel elements."""
    inputs: Ids | int
    """Channel ids along the weight's input axis, or its size if that cannot shrink."""
    outputs: Ids | int
    """Channel ids along the weight's output axis, or its size if that cannot shrink."""
    layer: bool
    """True for a layer (convolution, linear), false for a product of activations."""


@dataclass(frozen=True, slots=True)
class Count:
    """An integer attribute of a module that must equal the number of kept channels among `ids`."""

    module: str
    attribute: str
    """Its name; "sizes[2]" for an element of a list or tuple."""
    ids: Ids


@dataclass(slots=True)
class TraceFacts:
    """All facts about the channels of one network that the rules have stated so far."""

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
    """BatchNorms that have a gate in this trace."""
    gate_sites: list[GateSite] = field(default_factory=list)
    """BatchNorm calls that could have a gate."""
    implied: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Per gate: channel ids of the stream and of the BatchNorm. If the first is removed, the second is removed."""
    whole_heads: frozenset[str] = frozenset()
    """Modules in which attention heads are removed as a whole; see `bnprune.channels.head_units`."""
    views: list[tuple[Label, str]] = field(default_factory=list)
    """Labels that vary along several dimensions at once, and the module in which they arose."""
    writes: ViewWrites = field(default_factory=ViewWrites)
    """Writes into parts of tensors."""

    def is_zero(self, tensor: torch.Tensor, producer: Producer | None) -> bool:
        """True if removed channels of a tensor are zero; a weight (without a producer) always has zeros there."""
        return id(tensor) in self.names if producer is None else producer.zero


def _numpy(label: torch.Tensor) -> Ids:
    array: Ids = label.numpy()
    return array


class OpContext:
    """One call of an operator, as a rule sees it: the first argument of functions that `bnprune.rule` registers.

    A label says which channel each element of a tensor belongs to. `bnprune.channels.op_context` explains labels with a
    worked example, and lists the methods.

    Attributes:
        op: Name of the operator, such as "aten::add.Tensor".
        kind: Its kind ("convolution", "batch_norm", ...), or None.
        site: Name of the module that is running, such as "layer1.0.conv1".
        output: The operator's output; its shape is often needed.
        facts: All facts stated so far. Internal.

    Example::

        @bnprune.rule("mylib::fold_pairs", keeps_zero="first")
        def fold_pairs(ctx, x):  # adds channel 2k+1 to channel 2k: (N, C, H, W) -> (N, C/2, H, W)
            ids = ctx.axis(x, 1)
            if ids is None:
                return ()
            ctx.unite(ids[1::2], ids[0::2])  # they can only be removed together
            return (ids[0::2].reshape(1, -1, 1, 1),)
    """

    __slots__ = ("_labels_of", "_producer_of", "facts", "kind", "op", "output", "site")

    def __init__(
        self,
        op: str,
        site: str,
        output: object,
        facts: TraceFacts,
        labels_of: Callable[[torch.Tensor], Labels],
        producer_of: Callable[[torch.Tensor], Producer | None] = lambda _: None,
        kind: OpKind | None = None,
    ) -> None:
        self.op = op
        self.site = site
        self.output = output
        self.facts = facts
        self.kind = kind
        self._labels_of = labels_of
        self._producer_of = producer_of

    # -- reading -----------------------------------------------------------------------------------------------------

    def labels(self, tensor: object) -> Labels:
        """Return the labels of a tensor argument; none for anything that is not a tensor."""
        return self._labels_of(tensor) if isinstance(tensor, torch.Tensor) else NONE

    def axis(self, tensor: torch.Tensor, dim: int, passing: Sequence[int] = ()) -> torch.Tensor | None:
        """Return the channel ids along `dim`, shape (size,), or None if no channel along it can be removed.

        Labels that vary along other dimensions too are merged there. Labels that vary only elsewhere are frozen, unless
        all these dimensions are in `passing`: dimensions along which elements are not mixed, such as the batch's.
        """
        name = self.facts.names.get(id(tensor))
        if name is not None:
            return self._named_axis(name, tensor, dim)
        channels: torch.Tensor | None = None
        for label in self.labels(tensor):
            dims = varying(label)
            if dims and set(dims) <= set(passing):
                continue
            rest = label if dims == (dim,) else self.merge(label, [d for d in dims if d != dim])
            if rest is None:
                continue
            ids = rest.reshape(-1)
            if channels is not None:
                self.unite(channels, ids)
            channels = ids
        return channels

    def side(self, weight: torch.Tensor, dim: int) -> torch.Tensor | None:
        """Return the channel ids along one dimension of a weight.

        Like `axis`, without freezing the other dimensions: a weight that is computed in `forward` has channels along
        several.
        """
        if id(weight) in self.facts.names:
            return self.axis(weight, dim)
        return self.axis(weight, dim, passing=[other for other in range(weight.dim()) if other != dim])

    def named(self, tensor: torch.Tensor) -> str | None:
        """Return the name of a parameter or buffer; None for an activation."""
        return self.facts.names.get(id(tensor))

    def is_zero(self, tensor: torch.Tensor) -> bool:
        """True if removed channels of a tensor are zero: in weights, layers, and operators that keep zeros."""
        return self.facts.is_zero(tensor, self._producer_of(tensor))

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """True if a tensor is made of constants only, such as `x.new_zeros(...)`; not for weights."""
        producer = self._producer_of(tensor)
        return producer is not None and producer.constant

    def keeps_sizes(self, sizes: Sequence[int]) -> bool:
        """True if the running module holds these sizes of parts in attributes, which surgery can change.

        Equal sizes count only if they are in a list: a single integer may equal what `chunk` has computed by chance.
        """
        module = self.facts.modules.get(self.site)
        values = [] if module is None else list(vars(module).values())
        if any(isinstance(value, list | tuple) and list(value) == list(sizes) for value in values):
            return True
        integers = {value for value in values if isinstance(value, int) and not isinstance(value, bool)}
        return len(set(sizes)) > 1 and integers.issuperset(sizes)

    def keeps_bound(self, bound: int) -> bool:
        """True if the running module holds this bound of a slice in an integer attribute, which surgery can change."""
        module = self.facts.modules.get(self.site)
        values = () if module is None else vars(module).values()
        return any(value == bound for value in values if isinstance(value, int) and not isinstance(value, bool))

    def at_seams(self, tensor: torch.Tensor, dim: int, start: int, stop: int) -> bool:
        """True if a slice begins and ends at boundaries of parts that were written one by one (`out[:, :4] = x`)."""
        return self.facts.writes.at_seams(tensor, dim, start, stop)

    @property
    def whole_heads(self) -> bool:
        """True if attention heads are removed as a whole in the running module: those that stay keep their width."""
        return self.site in self.facts.whole_heads

    # -- stating -----------------------------------------------------------------------------------------------------

    def refusal(self, reason: str, fix: str = _DEFAULT_FIX) -> Refusal:
        """Return a refusal that names the module and the operator of this call."""
        return Refusal(self.site, f"{reason} ({self.op})", fix)

    def new(self, count: int) -> torch.Tensor:
        """Return ids of new channels, shape (count,), for positions that are removed with other channels, or stay."""
        return self.facts.ids.new(count)

    def unite(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """State that the channels of two labels are removed together, element by element; the shapes broadcast.

        A channel that meets NO_CHANNEL (padding, a constant) is frozen.
        """
        if left is not right:
            why = self.refusal("is combined with values that belong to no channel")
            self.facts.ids.unite(_numpy(left), _numpy(right), why)

    def freeze(self, labels: Iterable[torch.Tensor | None], reason: str, fix: str = _DEFAULT_FIX) -> None:
        """State that these channels must stay, with the reason and the fix that the user reads."""
        for label in labels:
            if label is not None:
                self.facts.ids.freeze(_numpy(label), self.refusal(reason, fix))

    def merge(self, label: Label, dims: Iterable[int], reason: str = "is mixed across channels") -> Label | None:
        """State that elements along `dims` are mixed: they can only be removed all together.

        Returns the remaining label, which varies along other dimensions only. If the label varies along no other, its
        channels are frozen, and the result is None.
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
        name = self.facts.names.get(id(tensor))
        if name is not None and ids is not None and (name, dim) not in self.facts.axes and tensor.shape[dim] > 1:
            self.facts.axes[name, dim] = ids
            return
        own = self.side(tensor, dim)
        if own is None or ids is None:
            self.freeze(
                [own, ids], "meets a dimension that cannot shrink", "exclude this layer, or free the other side"
            )
        else:
            self.unite(own, ids)

    def contract(self, left: torch.Tensor, right: torch.Tensor, labels: Iterable[torch.Tensor | None]) -> None:
        """State that these channels are summed up in a product: they stay if they are zero in neither factor."""
        if not self.is_zero(left) and not self.is_zero(right):
            self.freeze(labels, "is summed up in a product where it is not zero", _ZERO)

    def count(self, attribute: str, ids: torch.Tensor | int | None) -> None:
        """State that an integer attribute of the running module, if it exists, is the number of channels `ids`."""
        if isinstance(ids, torch.Tensor):
            self.facts.counts.append(Count(self.site, attribute, _numpy(ids)))

    def work(
        self,
        factor: int,
        inputs: torch.Tensor | int,
        outputs: torch.Tensor | int,
        layer: bool,
    ) -> None:
        """State the multiply-accumulates of this call: factor x kept inputs x kept outputs; see `Work`."""
        pair = [_numpy(axis) if isinstance(axis, torch.Tensor) else axis for axis in (inputs, outputs)]
        self.facts.work.append(Work(self.site, factor, pair[0], pair[1], layer))

    # -- labels to return --------------------------------------------------------------------------------------------

    def join(self, operands: Sequence[Labels], rank: int) -> Labels:
        """Return the labels of an elementwise combination of tensors: channels that meet are united.

        An operand that has size 1 along the dimensions of another's label is broadcast there, and its channels are not
        united with those::

            features (1, C, 8, 8) * gate (1, C, 1, 1)    united: channel 0 with 0, 1 with 1, ...
            features (1, C, 8, 8) * mask (1, 1, 8, 8)    not united: one mask for all channels

        Args:
            operands: Labels of each operand.
            rank: Number of dimensions of the output.
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

    def moved(self, label: torch.Tensor) -> Label:
        """Return a label in compact form after elements were reordered.

        Call it for every label that a reshape or permutation makes: one that varies along several dimensions at once (C
        split into (g, C/g)) gets further conditions once all unions are known.
        """
        label = compact(label)
        if len(varying(label)) > 1:
            self.facts.views.append((label, self.site))
        return label

    def canonical(self, label: Label) -> Label:
        """Return the label with one id for all channels that are united, so that `varying` sees no difference."""
        return compact(torch.from_numpy(self.facts.ids.find(_numpy(label))))

    # -- internal ----------------------------------------------------------------------------------------------------

    def gamma(self, tensor: torch.Tensor) -> None:
        """State that this parameter holds the scale factors of a BatchNorm."""
        name = self.named(tensor)
        if name is not None:
            self.facts.gammas.setdefault(name, self.site)

    def gate_site(self, x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the channel ids of a BatchNorm and of its output, given those of its input `x`; all of shape (C,).

        All are the same unless the BatchNorm has a gate::

            no gate       ids, ids
            write gate    ids, stream    the BatchNorm has the channels of its input, the output has the stream's
            read gate     own, own       BatchNorm and output have channels of their own, the input has the stream's
        """
        producer = self._producer_of(x)
        if producer is not None:
            self.facts.gate_sites.append(GateSite(self.site, producer.gate, _numpy(ids), producer.grouped))
        kind = self.facts.gates.get(self.site)
        own = self.axis(weight, 0) if kind == "read" else ids
        if kind is None or own is None:
            return ids, ids
        out = own if kind == "read" else self._stream(ids)
        self.facts.implied[self.site] = (ids, own) if kind == "read" else (out, own)
        return own, out

    def _stream(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the ids of the stream this gate writes to: the same in every trace."""
        known = self.facts.implied.get(self.site)
        return self.facts.ids.new(ids.numel()) if known is None else known[0]

    def _named_axis(self, name: str, tensor: torch.Tensor, dim: int) -> torch.Tensor | None:
        if tensor.shape[dim] < 2:
            return None
        ids = self.facts.axes.get((name, dim))
        if ids is None:
            ids = self.facts.axes[name, dim] = self.facts.ids.new(tensor.shape[dim])
        return ids

    def _join_overlapping(self, joined: dict[tuple[int, ...], Label], label: Label) -> None:
        for dims in [dims for dims in joined if set(dims) & set(varying(label))]:
            other, label = self.canonical(joined.pop(dims)), self.canonical(label)
            common = set(varying(other)) & set(varying(label))
            if not common:
                joined[varying(other)] = other
                continue
            other_rest = self.merge(other, set(varying(other)) - common)
            own_rest = self.merge(label, set(varying(label)) - common)
            if other_rest is None or own_rest is None:
                self.freeze([other, label], "is combined across channels")
                return
            self.unite(other_rest, own_rest)
            label = self.canonical(own_rest)
        if varying(label):
            joined[varying(label)] = label


def constant(ids: ChannelIds, tensor: torch.Tensor, why: Refusal) -> Labels:
    """Return frozen labels for every dimension of a tensor whose positions have fixed meanings."""
    labels = []
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            fresh = ids.new(size)
            ids.freeze(_numpy(fresh), why)
            labels.append(along(fresh, dim, tensor.dim()))
    return tuple(labels)


__all__ = ["NO_CHANNEL", "Count", "OpContext", "TraceFacts", "Work", "constant"]
