"""The choice of a criterion: the one that `auto` takes, and advice if the γ do not show which channels matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph
from bnprune.notes import Note
from bnprune.pruning.least_widths import SMALL
from bnprune.pruning.request import Request
from bnprune.pruning.scores import Reduce, Scores, Statistics, Tensors, gamma_values, score_units

_FEWEST_SMALL = 0.05
_MOST_BETWEEN = 0.01


def is_separated(gammas: NDArray[np.float64]) -> bool:
    """Return True if |γ| form two groups, as a sparsity penalty makes them: near zero, and well above.

    At least 5% are near zero (below 3% of the root mean square of all), and at most 1% just above that (up to three
    times as large). This is the rule of `training.penalties.gamma.gamma_statistics` on a relative scale, since networks
    that were not trained by bnprune have γ of any size.
    """
    largest = gammas.max(initial=0.0)
    if not largest:
        return False
    values = gammas / largest
    small = SMALL * float(np.sqrt(np.square(values).mean()))
    below, between = (values < small).mean(), ((values >= small) & (values < 3 * small)).mean()
    return bool(below >= _FEWEST_SMALL and between <= _MOST_BETWEEN)


def choose_criterion(
    request: Request, graph: ChannelGraph, tensors: Tensors, statistics: Statistics | None
) -> tuple[Request, tuple[Note, ...]]:
    """Decide on the criterion: the one given, the default for the target, or what `auto` takes for this network.

    Returns:
        The request with the name of the criterion, and remarks on it.
    """
    request = replace(request, criterion=request.ranked_by)
    if request.criterion not in ("auto", "gamma"):
        return request, ()
    separated = _has_separated_gammas(graph, tensors)
    if request.criterion == "gamma":
        return request, () if separated or not _differ(graph, tensors) else (NOT_SEPARATED,)
    name = _choice(separated=separated, has_data=statistics is not None)
    return replace(request, criterion=name), (Note("criterion.auto", "note", f"criterion auto: {_REASONS[name]}"),)


_REASONS = {
    "gamma": "gamma, because the scale factors form two groups, one near zero, and there is no calibration data",
    "activation": "activation, because there is calibration data",
    "uniform": "uniform, because the scale factors do not form two groups, and there is no calibration data",
}
NOT_SEPARATED = Note(
    "criterion.not_separated",
    "note",
    "the scale factors do not form two groups, as after training with a sparsity penalty: criterion 'activation' (with "
    "calibration data) or 'uniform' usually keeps more accuracy here; 'auto' chooses",
)


def auto(graph: ChannelGraph, tensors: Tensors, reduce: Reduce, statistics: Statistics | None) -> Scores:
    """Score units by the criterion that `auto` takes."""
    name = _choice(separated=_has_separated_gammas(graph, tensors), has_data=statistics is not None)
    return score_units(name, graph, tensors, reduce, statistics)


def _choice(*, separated: bool, has_data: bool) -> str:
    return "activation" if has_data else "gamma" if separated else "uniform"


def _gammas(graph: ChannelGraph, tensors: Tensors) -> NDArray[np.float64]:
    """Return |γ| of all BatchNorm channels in units that may be removed."""
    free = graph.free
    parts = [gamma_values(tensors[name])[free[units]] for name, units in graph.gamma_units.items()]
    return np.concatenate([*parts, np.zeros(0)])


def _has_separated_gammas(graph: ChannelGraph, tensors: Tensors) -> bool:
    return is_separated(_gammas(graph, tensors))


def _differ(graph: ChannelGraph, tensors: Tensors) -> bool:
    """Return True if not all γ are equal, as before training."""
    gammas = _gammas(graph, tensors)
    return bool(np.ptp(gammas) > 1e-6 * gammas.max()) if gammas.size else False
