"""Repair: recover accuracy after a cut with calibration data, without labels.

Several methods are tried on copies of the slim network. The copy whose outputs on held-out images are closest to those
of the dense network is kept. The unchanged slim network is one of the candidates, so that the result is never worse by
this measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import map_tensors
from bnprune.errors import first_line
from bnprune.notes import Note
from bnprune.pruning.calibration import Calibration, batch_size, device_of
from bnprune.pruning.plan import PruningPlan
from bnprune.recovery.compensate import Compensation
from bnprune.recovery.input_statistics import unlike_training
from bnprune.recovery.output_distance import output_distance
from bnprune.recovery.repaired_networks import repaired_networks

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
    """Repair methods that failed, and what is wrong with the images."""


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
    notes = [note for note in (unlike_training(model, [*fit, *held]),) if note]
    made = repaired_networks(
        model,
        slim,
        plan,
        example_inputs,
        compensate_with=(lambda: fit) if compensated else None,
        reconstruct_with=(lambda: fit) if compensated else None,
        recalibrate_with=lambda: fit,
        attempt=lambda method: _failure_noted(method, notes),
    )
    distances = {name: output_distance(model, network, held) for name, network in made.networks.items()}
    chosen = min(distances, key=distances.__getitem__)
    return Repair(
        model=made.networks[chosen],
        chosen=chosen,
        distances=distances,
        images=sum(map(batch_size, fit)),
        held_out=sum(map(batch_size, held)),
        compensation=made.compensation if chosen.startswith("compensated") else (),
        notes=tuple(notes),
    )


@contextmanager
def _failure_noted(method: str, notes: list[Note]) -> Iterator[None]:
    """Turn an error of one repair method into a note: the others remain."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the code of the network may raise anything
        notes.append(Note("repair.failed", "note", f"the network is not {method}: {first_line(error)}"))
