"""Repair: recover accuracy after a cut with calibration data, without labels.

Several methods are tried on copies of the slim network. The copy whose outputs on held-out images are closest to those
of the dense network is kept. The unchanged slim network is one of the candidates, so that the result is never worse by
this measure.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import temporary_mode
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import map_tensors, tensors
from bnprune.channels.torch_internals import BatchNorm
from bnprune.errors import first_line
from bnprune.notes import Note
from bnprune.pruning.calibration import Calibration, batch_size, device_of, forward_batches
from bnprune.pruning.plan import PruningPlan
from bnprune.recovery.compensate import Compensation, compensate
from bnprune.recovery.recalibrate import recalibrate
from bnprune.recovery.reconstruct import reconstruct

_HELD_OUT = 0.25
"""Share of the calibration images on which the repair methods are compared."""


@dataclass(frozen=True)
class Repair:
    """The repair methods that were tried, and the network that was kept."""

    model: nn.Module
    """The network whose outputs are closest to those of the dense one."""
    chosen: str
    """"plain", "compensated" or "reconstructed", each also " + recalibrated"; or "recalibrated"."""
    distances: dict[str, float]
    """Distance of the outputs to those of the dense network on held-out images, relative to their norm, by method."""
    images: int
    """Images that the repair used, without those held out."""
    held_out: int
    compensation: tuple[Compensation, ...] = ()
    """The result of each layer that lost inputs, if the chosen network is compensated."""
    notes: tuple[Note, ...] = ()
    """Repair methods that failed."""


@preserve_thread_state
def repair(
    model: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    calibration: Calibration,
    *,
    compensated: bool = True,
) -> Repair:
    """Repair copies of a slim network by several methods, and return the best.

    Args:
        model: The network before the cut; left as it was, like the next.
        slim: The network after the cut.
        plan: The cut.
        example_inputs: As for `bnprune.prune`.
        calibration: Images; a quarter of them is held out.
        compensated: True to change weights and biases; otherwise only BatchNorm statistics are re-estimated.

    Raises:
        ForwardError: The dense network fails on the images.
    """
    device = device_of(slim)
    fit, held = (
        [map_tensors(lambda t: t.to(device), batch) for batch in part] for part in calibration.parts(_HELD_OUT)
    )
    networks = {"plain": slim}
    compensation: tuple[Compensation, ...] = ()
    notes: list[Note] = []
    if compensated:
        with _failure_noted("compensated", notes):
            changed = copy.deepcopy(slim)
            compensation = compensate(model, changed, plan, example_inputs, batches=fit)
            networks["compensated"] = changed
        with _failure_noted("reconstructed", notes):
            networks["reconstructed"] = reconstruct(model, copy.deepcopy(slim), plan, fit)
    for name, network in [*networks.items()]:
        if _has_statistics(network):
            with _failure_noted("recalibrated", notes):
                method = "recalibrated" if name == "plain" else f"{name} + recalibrated"
                networks[method] = recalibrate(copy.deepcopy(network), fit)
    distances = {name: output_distance(model, network, held) for name, network in networks.items()}
    chosen = min(distances, key=distances.__getitem__)
    return Repair(
        model=networks[chosen],
        chosen=chosen,
        distances=distances,
        images=sum(map(batch_size, fit)),
        held_out=sum(map(batch_size, held)),
        compensation=compensation if chosen.startswith("compensated") else (),
        notes=tuple(notes),
    )


@contextmanager
def _failure_noted(method: str, notes: list[Note]) -> Iterator[None]:
    """Turn an error of one repair method into a note: the others remain."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the code of the network may raise anything
        notes.append(Note("repair.failed", "note", f"the network is not {method}: {first_line(error)}"))


def output_distance(dense: nn.Module, slim: nn.Module, batches: Iterable[Any]) -> float:
    """Return ‖slim(x) - dense(x)‖ / ‖dense(x)‖ over the outputs of real numbers that have one shape in both networks.

    It is infinity if no output has.

    Raises:
        ForwardError: A forward pass fails.
    """
    given = list(batches)
    difference = size = 0.0
    with temporary_mode(dense, training=False), temporary_mode(slim, training=False):
        for slim_output, dense_output in zip(forward_batches(slim, given), forward_batches(dense, given), strict=True):
            pairs = [*zip(_numbers(slim_output), _numbers(dense_output), strict=False)]
            pairs = [(a, b) for a, b in pairs if a.shape == b.shape]  # outputs that do not count may lose channels
            if not pairs:
                return math.inf
            difference += sum(float((a - b).square().sum()) for a, b in pairs)
            size += sum(float(b.square().sum()) for _, b in pairs)
    distance = math.sqrt(difference / size) if size else math.inf
    return distance if math.isfinite(distance) else math.inf


def _numbers(output: Any) -> list[torch.Tensor]:
    return [tensor.double() for tensor in tensors(output) if tensor.is_floating_point()]


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm) and module.track_running_stats for module in model.modules())
