"""Gates: small modules around a BatchNorm that has fewer channels than the stream it reads or writes.

A gate takes the BatchNorm's place in the network and holds it as `norm`. The plan lists its channels.

    read gate     stream (C) ── pick K of C ── BatchNorm (K) ── layer
    write gate    layer ── BatchNorm (K) ── add C - K constants ── stream (C)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.gate_sites import GateKind
from bnprune.channels.modules import modules_by_name
from bnprune.channels.torch_internals import children_of
from bnprune.config.bounded_reading import items, whole, words
from bnprune.errors import quoted


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of a plan, in channels of the dense network."""

    at: str
    """Name of the BatchNorm."""
    kind: GateKind
    stream: tuple[int, ...]
    """Kept channels of the stream, ascending."""
    keep: tuple[int, ...]
    """Kept channels of the BatchNorm, ascending; a subset of `stream`."""

    @property
    def filled(self) -> list[int]:
        """Kept channels of the stream that the BatchNorm no longer writes."""
        own = set(self.keep)
        return [channel for channel in self.stream if channel not in own]

    def wrap(self, norm: nn.Module, shift: torch.Tensor) -> nn.Module:
        """Put a gate around the slim BatchNorm; `shift` is β of the dense one, shape (C,)."""
        if self.kind == "read":
            return ReadGate(norm, _places(self.keep, self.stream, shift.device))
        order = _places(self.stream, (*self.keep, *self.filled), shift.device)
        return WriteGate(norm, order, shift[torch.tensor(self.filled, dtype=torch.int64, device=shift.device)])


def _places(channels: Sequence[int], among: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the position of each channel in `among`."""
    place_of = {channel: place for place, channel in enumerate(among)}
    return torch.tensor([place_of[channel] for channel in channels], device=device)


class ReadGate(nn.Module):
    """Pick the channels of a stream that a BatchNorm kept, and normalise them: (N, C, ...) to (N, K, ...)."""

    index: torch.Tensor
    """Positions of the K channels among the C of the stream, int64."""

    def __init__(self, norm: nn.Module, index: torch.Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("index", index)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Gather, then normalise."""
        output: torch.Tensor = self.norm(input.index_select(1, self.index))
        return output


class WriteGate(nn.Module):
    """Normalise, and widen to the stream: (N, K, ...) to (N, C, ...). Removed channels write the constant β."""

    order: torch.Tensor
    """For each of the C channels of the stream, its position among the K own ones followed by the filled, int64."""
    fill: torch.Tensor
    """β of the removed channels, shape (C - K,)."""

    def __init__(self, norm: nn.Module, order: torch.Tensor, fill: torch.Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("order", order)
        self.register_buffer("fill", fill)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise, then scatter."""
        own: torch.Tensor = self.norm(input)
        rest = self.fill.to(own.dtype).view(1, -1, *[1] * (own.dim() - 2)).expand(own.shape[0], -1, *own.shape[2:])
        return torch.cat([own, rest], 1).index_select(1, self.order)


def gated_name(name: str, gates: Collection[str]) -> str:
    """Return the name that a module or tensor of the dense network has in the slim one, given the gated BatchNorms."""
    if name in gates:
        return f"{name}.norm"
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.norm.{leaf}" if owner in gates else name


def install(gates: Sequence[Gate], slim: nn.Module, dense: nn.Module) -> None:
    """Replace BatchNorms of a slim network by gates around them; gates that are there already are made again."""
    if not gates:
        return
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in modules_by_name(slim).values():
        for name, child in children_of(parent).items():
            owners[id(child)].append((parent, name))
    for gate in gates:
        module = slim.get_submodule(gate.at)
        norm = without_gate(module)
        shift, scale = dense.get_submodule(gate.at).bias, norm.weight
        assert isinstance(shift, torch.Tensor)
        assert isinstance(scale, torch.Tensor)
        wrapped = gate.wrap(norm, shift.detach().to(scale.device))
        wrapped.training = norm.training
        for parent, name in owners[id(module)]:  # under every name it has
            setattr(parent, name, wrapped)


def without_gate(module: nn.Module) -> nn.Module:
    """Return the BatchNorm in a gate, and any other module itself."""
    return module.norm if isinstance(module, ReadGate | WriteGate) else module


def to_data(gates: Iterable[Gate]) -> list[dict[str, Any]]:
    """Return gates as plain data."""
    return [{"at": g.at, "kind": g.kind, "stream": list(g.stream), "keep": list(g.keep)} for g in gates]


def from_data(entries: Any) -> tuple[Gate, ...]:
    """Read gates from plain data, checking them.

    Raises:
        ValueError: An entry is no gate, or there are two for one BatchNorm.
        KeyError: An entry lacks something.
    """
    gates = tuple(map(_gate_from, items(entries)))
    if len({gate.at for gate in gates}) < len(gates):
        raise ValueError("a BatchNorm has two gates")
    return gates


def _gate_from(entry: Any) -> Gate:
    at, kind = words(entry["at"]), entry["kind"]
    stream, keep = (tuple(whole(channel, 1 << 24) for channel in items(entry[key])) for key in ("stream", "keep"))
    if kind not in ("read", "write"):
        raise ValueError(f"{quoted(kind)} is no kind of gate")
    if not keep or not set(keep) <= set(stream):
        raise ValueError(f"gate at '{at}': 'keep' must be some of 'stream'")
    return Gate(at, kind, stream, keep)
