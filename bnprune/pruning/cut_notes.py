"""Notes on a cut: remarks on scale factors that do not show which channels matter, and on layers that never ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph
from bnprune.notes import Note
from bnprune.pruning.candidates import Candidates, Mask
from bnprune.pruning.scores import Scores

ScaleFactors = Mapping[str, NDArray[np.float64]]
"""|γ| of each BatchNorm, by name of the tensor; shapes as in `ChannelGraph.gamma_units`."""

LIVE_SHARE = 0.01
"""Share of the sum of γ² over the prunable channels that, if removed, counts as channels still in use.

|γ| is the standard deviation of what a channel's BatchNorm writes, so that γ² is its variance. A ratio of medians would
not notice that a few of many removed channels are in use; the sum of γ² does. Validation accuracy of VGG-11 on digits
after the cut, compensated and recalibrated:

    trained with an L1 penalty (70% of γ near zero)     ratio 0.70   share 0.0000   accuracy 100.0% of 100.0%
                                                        ratio 0.72   share 0.0020   accuracy 100.0%
                                                        ratio 0.75   share 0.0105   accuracy  96.5%
                                                        ratio 0.80   share 0.0313   accuracy  49.0%
    trained without a penalty                           ratio 0.10   share 0.0780   accuracy  90.2% of 98.6%
                                                        ratio 0.30   share 0.2562   accuracy  85.3%
"""
_TIED_SHARE = 0.02
"""Smallest share of the prunable units with equal scores at the threshold that is worth a note ..."""
_FEWEST_TIED = 8
"""... and their smallest number: a few equal scores occur in small networks."""
_MOST_NAMED = 4

ON_SCALE_FACTORS = frozenset({"gamma.equal", "cut.live_channels", "cut.ties"})
"""Codes of the notes about the reliability of the scale factors as scores."""


def notes_on_cut(
    graph: ChannelGraph, gammas: ScaleFactors, scores: Scores, candidates: Candidates, removed: Mask
) -> Iterator[Note]:
    """Yield a note if the scores hardly determine which channels are removed, or if removed channels are in use.

    The first of them that applies explains the others: channels with equal γ are in use, and have equal scores.

    Args:
        graph: The trace.
        gammas: |γ| by name of the tensor.
        scores: The scores by which units were chosen, shape (units,).
        candidates: The units to choose from.
        removed: True for units that are removed, shape (units,).
    """
    removed_gammas, kept_gammas = (
        _values(graph, gammas, removed),
        _values(graph, gammas, candidates.prunable & ~removed),
    )
    if removed_gammas.any() and (equal := note_on_equal_gammas(graph, gammas, candidates.prunable)):
        yield equal
        return
    share = _removed_share(removed_gammas, kept_gammas)
    if share <= LIVE_SHARE:
        return
    yield Note(
        "cut.live_channels",
        "warning",
        f"the removed channels are still in use: they have {share:.1%} of the sum of γ² of all prunable channels. "
        "Accuracy may fall. Train with a sparsity penalty before pruning, rank by activations (criterion "
        "'activation', with calibration data), or fine-tune afterwards",
    )
    yield from _note_on_ties(scores, candidates, removed)


def note_on_equal_gammas(graph: ChannelGraph, gammas: ScaleFactors, prunable: Mask) -> Note | None:
    """Return a note if all scale factors are equal, as in a network that has not been trained.

    Zeros are left out: timm starts the last BatchNorm of a residual branch with γ = 0, all others with 1.
    """
    values = _values(graph, gammas, prunable)
    values = values[values > 0]
    if values.size < 2 or np.ptp(values) > 1e-6 * values.max():
        return None
    return Note(
        "gamma.equal",
        "warning",
        f"all scale factors are equal (|γ| = {values[0]:.3g}), as in a network that has not been trained: they do not "
        "show which channels matter. Train the network first, with a sparsity penalty",
    )


def _note_on_ties(scores: Scores, candidates: Candidates, removed: Mask) -> Iterator[Note]:
    """Yield a note if many units have the score of the threshold, of which some are removed and some stay."""
    staying = candidates.order[~removed[candidates.order]]
    removed_units = np.flatnonzero(removed & candidates.prunable)
    tied = np.intersect1d(scores[removed_units], scores[staying])
    removed_ties, kept_ties = (int(np.isin(scores[units], tied).sum()) for units in (removed_units, staying))
    if removed_ties + kept_ties >= max(_FEWEST_TIED, _TIED_SHARE * candidates.prunable.sum()) and tied.size:
        yield Note(
            "cut.ties",
            "note",
            f"{removed_ties} removed sets of channels have the same score as {kept_ties} that stay: their position "
            "decided",
        )


def _values(graph: ChannelGraph, gammas: ScaleFactors, units: Mask) -> NDArray[np.float64]:
    """Return |γ| of the BatchNorm channels in these units, one after the other."""
    parts = [gammas[name][units[of]] for name, of in graph.gamma_units.items()]
    return np.concatenate([*parts, np.zeros(0)])


def _removed_share(removed: NDArray[np.float64], kept: NDArray[np.float64]) -> float:
    """Return the share of the sum of γ² that is removed; 0 if all are zero."""
    largest = max(removed.max(initial=0.0), kept.max(initial=0.0))
    if not largest:
        return 0.0
    sums = [float(np.square(values / largest).sum()) for values in (removed, kept)]  # squares may not underflow
    return sums[0] / sum(sums)


# -- layers that never ran ---------------------------------------------------------------------------------------------


def notes_on_idle_norms(graph: ChannelGraph) -> Iterator[Note]:
    """Yield a note if BatchNorms never ran in a traced forward pass, so that their channels cannot be ranked."""
    idle = _idle_norms(graph)
    if not idle or any(note.code == "trace.unused_layers" for note in graph.notes):  # which names them already
        return
    names = _outermost(idle, [name for name in graph.gammas.values() if name not in idle])
    listed = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")
    yield Note(
        "trace.idle_norms",
        "note",
        f"{sum(idle.values())} of {graph.gamma_count.sum()} BatchNorm channels never ran in the forward pass, so they "
        f"cannot be ranked and stay: {listed}",
    )


def _idle_norms(graph: ChannelGraph) -> dict[str, int]:
    """Return the number of channels of each BatchNorm that no traced forward pass has called, by module."""
    sites = {record.site for passed in graph.traces.values() for record in passed.records}
    return {
        module: graph.shapes[tensor][0]
        for tensor, module in graph.gammas.items()
        if module not in sites and (tensor, 0) not in graph.axes  # its tensors can also be read by another module
    }


def _outermost(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Replace names by the outermost module that contains them and none of the others.

    Example: of "layer4.0.bn1", "layer4.0.bn2" and the others ["bn1", "layer3.0.bn1"], it is "layer4".
    """
    mixed = {prefix for other in others for prefix in _prefixes(other)}
    return list(dict.fromkeys(next((p for p in _prefixes(name) if p not in mixed), name) for name in names))


def _prefixes(name: str) -> Iterator[str]:
    """Yield "a", "a.b", "a.b.c" for "a.b.c"."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
