"""The attributes that surgery changes, determined after the channels to remove are chosen.

During the search, a failed dry run changes every attribute that equals the size an operator fails with. Some of these
equal it by chance, and are reset. Others that no dry run depends on are set as well: see `bnprune.pruning.stale_sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.modules import modules_by_name
from bnprune.channels.op_context import Count
from bnprune.notes import Note
from bnprune.pruning.attribute_reads import Attribute
from bnprune.pruning.candidates import Mask
from bnprune.pruning.plan import new_sizes
from bnprune.pruning.stale_sizes import find_stale_sizes, stale_size_notes

Runs = Callable[[Sequence[Count]], bool]
"""Returns True if the slim network passes the dry run with these attributes changed, and no others."""


def settle_sizes(
    model: nn.Module,
    graph: ChannelGraph,
    removed: Mask,
    inputs: Sequence[tuple[int, ...]],
    changed: Sequence[Count],
    reads: Collection[Attribute],
    runs: Runs,
) -> tuple[list[Count], tuple[Note, ...]]:
    """Return the attributes to change, beyond those the trace knows of, and remarks about them.

    Args:
        model: The network.
        graph: The trace.
        removed: True for units to remove, shape (units,).
        inputs: Shapes of the inputs of the trace.
        changed: Attributes with which the slim network passes the dry run.
        reads: Attributes that the traced passes have read; see `bnprune.pruning.stale_sizes.possible_sizes`.
        runs: The dry run of the slim network.
    """
    needed = _needed(model, changed, runs)
    known = {(size.module, size.attribute) for size in (*graph.counts, *needed)}
    for module, values in new_sizes(graph, model, removed, needed).items():
        known |= {(module, attribute) for attribute in values}
    stale = find_stale_sizes(model, graph, removed, inputs, known, reads)
    return [*needed, *(count for size in stale for count in size.counts)], tuple(stale_size_notes(stale))


def _needed(model: nn.Module, changed: Sequence[Count], runs: Runs) -> list[Count]:
    """Return the attributes without whose change the dry run would fail; all modules of a class are tried at once."""
    modules = modules_by_name(model)
    by_attribute: dict[Attribute, list[Count]] = {}
    for size in changed:
        key = type(modules[size.module]), size.attribute.partition("[")[0]
        by_attribute.setdefault(key, []).append(size)
    for tried in [*by_attribute]:
        if runs([size for attribute, sizes in by_attribute.items() if attribute != tried for size in sizes]):
            del by_attribute[tried]
    return [size for sizes in by_attribute.values() for size in sizes]
