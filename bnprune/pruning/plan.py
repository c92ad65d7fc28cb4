"""The pruning plan: all changes of surgery to a network, as readable data without tensors or code."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from bnprune import __version__
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import Refusal
from bnprune.config.bounded_reading import items, parse_json, require_shallow, table, whole, words
from bnprune.config.prune_options import path_problem
from bnprune.errors import CheckpointError, quoted, shortened
from bnprune.notes import Note
from bnprune.pruning import bias_folding as folding
from bnprune.pruning.bias_folding import Fold
from bnprune.pruning.candidates import Mask
from bnprune.pruning.gates import Gate, from_data, to_data
from bnprune.pruning.result_tables import CHANGES, Row, change_row, html_lines, html_table, text_table

SCHEMA = "bnprune.plan/1"


Size = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """One set of channels and every place it is sliced at."""

    size: int
    """Channels before the cut."""
    keep: tuple[int, ...]
    """Indices that stay, ascending."""
    at: tuple[tuple[str, int], ...]
    """(tensor name, dimension) pairs."""

    @property
    def removed(self) -> list[int]:
        """Indices that are removed, ascending."""
        is_removed = np.ones(self.size, dtype=np.bool_)
        is_removed[list(self.keep)] = False
        indices: list[int] = np.flatnonzero(is_removed).tolist()
        return indices


@dataclass(frozen=True)
class PruningPlan:
    """All changes of pruning to a network: the kept indices per tensor and dimension, new sizes, and the request.

    A plan is data: it holds no tensor and no code, cannot be changed, and converts to and from JSON. `bnprune.plan` and
    `bnprune.prune` make plans, `bnprune.apply` carries them out, and checkpoints of slim networks hold them.

    Example::

        plan = bnprune.plan(model, example_inputs, macs=0.5)
        for cut in plan.cuts:
            print(f"{len(cut.keep)} of {cut.size} channels stay in {', '.join(name for name, _ in cut.at)}")
        again = bnprune.PruningPlan.from_json(plan.to_json())
        slim = bnprune.apply(again, model)
    """

    model: str
    """Class name of the network the plan was made for."""
    digest: str
    """SHA-256 over the names and shapes of its parameters and buffers."""
    cuts: tuple[Cut, ...]
    """Sets of channels, each with the indices that stay and the places where it is sliced."""
    attributes: Mapping[str, Mapping[str, Size]]
    """Sizes to set, by module name (`out_channels`, `num_features`, `groups`, ...): integers, or lists of them."""
    gates: tuple[Gate, ...] = ()
    """BatchNorms that lose channels although the stream they read or write keeps them."""
    folds: tuple[Fold, ...] = ()
    """Biases that are folded into the running means of the BatchNorms after them."""
    requested: Mapping[str, Any] = field(default_factory=dict)
    """The target and the constraints, by their names in `bnprune.prune`."""
    realised: Mapping[str, Any] = field(default_factory=dict)
    """The value that the target reached, the removed share of the prunable channels ("ratio"), and their number before
    and after ("channels")."""
    refusals: tuple[Refusal, ...] = ()
    """Why channels stay, one entry per place and reason."""
    notes: tuple[Note, ...] = field(default=(), compare=False)
    """Remarks on the cut, for people; not part of the JSON."""
    version: str | None = field(default=__version__, compare=False)
    """Version of bnprune that made the plan; None if the plan was read from a file without it."""

    def __str__(self) -> str:
        return "\n".join([*self._head, *text_table(CHANGES, self._rows)])

    def _repr_html_(self) -> str:
        return html_lines(self._head) + html_table(CHANGES, self._rows)

    @property
    def _head(self) -> list[str]:
        asked = ", ".join(f"{key} {value}" for key, value in self.requested.items() if value not in ([], {}, None))
        return [f"plan for {self.model}: {asked}" if asked else f"plan for {self.model}"]

    @property
    def _rows(self) -> list[Row]:
        return [change_row(cut.at[0][0], cut.size, len(cut.keep)) for cut in self.cuts if cut.at]

    def to_json(self, indent: int | None = 1) -> str:
        """Return the plan as JSON text; `PruningPlan.from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "schema": SCHEMA,
            **({"version": self.version} if self.version else {}),
            "model": {"name": self.model, "digest": self.digest},
            "cuts": [
                {"size": cut.size, "keep": list(cut.keep), "at": [f"{name}:{dim}" for name, dim in cut.at]}
                for cut in self.cuts
            ],
            "attributes": {module: dict(values) for module, values in self.attributes.items()},
            **({"gates": to_data(self.gates)} if self.gates else {}),
            **({"folds": folding.to_data(self.folds)} if self.folds else {}),
            "requested": dict(self.requested),
            "realised": dict(self.realised),
            "refusals": [{"site": r.site, "reason": r.reason, "fix": r.fix} for r in self.refusals],
        }

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read a plan.

        Raises:
            CheckpointError: The text is not a plan.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise CheckpointError(f"not a pruning plan: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """Build a plan from plain data, checking its structure.

        Raises:
            CheckpointError: The data is not a plan.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = quoted(data.get("schema")) if isinstance(data, dict) else type(data).__name__
            raise CheckpointError(f"not a pruning plan: expected schema '{SCHEMA}', got {got}.")
        try:
            return cls(
                model=words(data["model"]["name"]),
                digest=words(data["model"]["digest"]),
                cuts=tuple(_cut_from(entry) for entry in items(data["cuts"])),
                attributes={
                    words(module): {words(key): _size_from(value) for key, value in table(values).items()}
                    for module, values in table(data["attributes"]).items()
                },
                gates=from_data(data.get("gates", ())),
                folds=folding.from_data(data.get("folds", ())),
                requested=_figures_from(data.get("requested", {})),
                realised=_figures_from(data.get("realised", {})),
                refusals=tuple(
                    Refusal(*(words(r[key], 10_000) for key in ("site", "reason", "fix")))
                    for r in items(data.get("refusals", ()))
                ),
                version=words(data["version"], 100) if data.get("version") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"not a pruning plan: {type(error).__name__}: {shortened(str(error))}") from error


MOST_PLANS = 32
"""Largest number of plans by which a network may have been cut; each costs a copy of the network when it is loaded."""


def read_plans(entries: Any) -> tuple[PruningPlan, ...]:
    """Build the plans of a checkpoint from plain data.

    Raises:
        CheckpointError: The data is not a list of plans, or a very long one.
    """
    if not isinstance(entries, list) or len(entries) > MOST_PLANS:
        raise CheckpointError(f"expected a list of at most {MOST_PLANS} pruning plans, got {quoted(entries)}.")
    return tuple(PruningPlan.from_dict(entry) for entry in entries)


_WIDEST = 1 << 24
"""Largest width of a layer that is accepted."""


def _figures_from(value: Any) -> dict[str, Any]:
    """Check the figures that reports read; other entries are for people."""
    figures = dict(table(value))
    require_shallow(figures, 8)
    for target in ("ratio", "macs", "params", "latency_ms"):
        if target in figures:
            figures[target] = _real(figures[target])
    if figures.get("outputs") is not None:
        figures["outputs"] = _outputs_from(figures["outputs"])
    if "channels" in figures:
        figures["channels"] = {when: whole(figures["channels"][when], 1 << 53) for when in ("before", "after")}
    return figures


def _outputs_from(value: Any) -> str | dict[str, str]:
    """Read the outputs that count: a path, or the name of a function, which is not looked up."""
    if isinstance(value, Mapping):
        return {"function": words(value["function"])}
    if path_problem(value):
        raise ValueError(f"outputs: {path_problem(value)}, got {quoted(value)}")
    return str(value)


def _real(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e300:
        raise ValueError(f"expected a number, got {quoted(value)}")
    return float(value)


def _size_from(value: Any) -> Size:
    """Read a size to set; `require_plan_fits` compares it with the network."""
    if isinstance(value, list | tuple):
        return tuple(whole(item, 1 << 31) for item in value)
    return whole(value, 1 << 31)


def _cut_from(entry: Any) -> Cut:
    size = whole(entry["size"], _WIDEST, 1)
    keep = tuple(whole(index, _WIDEST) for index in items(entry["keep"]))
    if not keep or any(a >= b for a, b in itertools.pairwise(keep)) or keep[-1] >= size:
        raise ValueError(f"'keep' must be ascending indices below {size}, at least one")
    return Cut(size, keep, tuple(map(_place_from, items(entry["at"]))))


def _place_from(place: Any) -> tuple[str, int]:
    name, _, dim = words(place).rpartition(":")
    if not re.fullmatch("-?[0-9]{1,2}", dim):
        raise ValueError(f"expected NAME:DIMENSION, got {quoted(place)}")
    return name, int(dim)


def identity(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the digest of a network: names and shapes of its parameters and buffers, in any order."""
    text = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    graph: ChannelGraph,
    model: nn.Module,
    removed: Mask,
    sizes: Sequence[Count] = (),
    *,
    requested: Mapping[str, Any] | None = None,
    realised: Mapping[str, Any] | None = None,
    refusals: tuple[Refusal, ...] = (),
) -> PruningPlan:
    """Return the plan of removing units: the changes to every tensor and attribute of the network.

    Args:
        graph: The trace.
        model: The network.
        removed: True for units to remove, shape (units,).
        sizes: Attributes that hold sizes, beyond those the trace knows of.
        requested: The request.
        realised: The values reached.
        refusals: Why channels stay.
    """
    return PruningPlan(
        model=type(model).__name__,
        digest=identity(graph.shapes),
        cuts=tuple(_cuts(graph, removed)),
        attributes=new_sizes(graph, model, removed, sizes),
        gates=tuple(_gates(graph, removed)),
        requested=requested or {},
        realised=realised or {},
        refusals=refusals,
    )


def _cuts(graph: ChannelGraph, removed: Mask) -> list[Cut]:
    places: dict[bytes, list[tuple[str, int]]] = {}
    masks: dict[bytes, Mask] = {}
    for (name, dim), ids in graph.axes.items():
        kept = ~removed[graph.units(ids)]
        if not kept.all():
            key = kept.tobytes()
            masks[key] = kept
            places.setdefault(key, []).append((name, dim))
    return [Cut(mask.size, tuple(np.flatnonzero(mask).tolist()), tuple(places[key])) for key, mask in masks.items()]


def _gates(graph: ChannelGraph, removed: Mask) -> Iterator[Gate]:
    """Yield the gates that are needed: not those whose BatchNorm and stream keep the same channels."""
    for gated in graph.gates:
        stream, own = (~removed[graph.units(ids)] for ids in (gated.stream, gated.own))
        if (stream != own).any():
            kept = (tuple(np.flatnonzero(mask).tolist()) for mask in (stream, own))
            yield Gate(gated.site, gated.kind, *kept)


_WIDTHS = ("num_features", "num_channels", "num_parameters")
"""Attributes of normalisations and activations that give the length of their one-dimensional tensors."""


def new_sizes(
    graph: ChannelGraph, model: nn.Module, removed: Mask, sizes: Sequence[Count]
) -> dict[str, dict[str, Size]]:
    """Return the new values of attributes that hold sizes, by module and attribute. Arguments as for `make_plan`."""
    changed: dict[str, dict[str, Size]] = {}
    stays = ~removed[graph.unit_of]  # by channel id
    modules = dict(model.named_modules(remove_duplicate=False))
    for count in (*_widths(graph, modules), *graph.counts, *sizes):
        kept = int(np.count_nonzero(stays[count.ids]))
        name, _, index = count.attribute.removesuffix("]").partition("[")
        before = vars(modules[count.module]).get(name)  # surgery sets no attributes of classes
        if kept == len(count.ids):
            continue
        if not index and before == len(count.ids):
            changed.setdefault(count.module, {})[name] = kept
        elif index and isinstance(before, list | tuple) and before[int(index)] == len(count.ids):
            now = changed.setdefault(count.module, {}).get(name, tuple(before))
            assert isinstance(now, tuple)
            changed[count.module][name] = (*now[: int(index)], kept, *now[int(index) + 1 :])
    return changed


def _widths(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> Iterator[Count]:
    for (name, _), ids in graph.axes.items():
        if len(graph.shapes[name]) == 1:
            owner = name.rpartition(".")[0]
            module = modules[owner]
            yield from (Count(owner, attribute, ids) for attribute in _WIDTHS if attribute in vars(module))
