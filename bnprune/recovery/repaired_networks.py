"""The networks that the repair methods make of a slim network: the candidates of `recover` and `repair`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnprune.channels.torch_internals import BatchNorm
from bnprune.pruning.plan import PruningPlan
from bnprune.recovery.compensate import Compensation, compensate
from bnprune.recovery.recalibrate import recalibrate
from bnprune.recovery.reconstruct import reconstruct

Batches = Callable[[], Iterable[Any]]
"""Returns batches of inputs, or of (inputs, ...) pairs; every call starts with the first batch."""

Attempt = Callable[[str], AbstractContextManager[None]]
"""Returns a context, given "compensated", "reconstructed" or "recalibrated", in which that method runs."""


def _no_context(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class RepairedNetworks:
    """Copies of a slim network, each repaired in another way, and the slim network itself."""

    networks: dict[str, nn.Module]
    """"plain", "compensated", "reconstructed", and the same with new BatchNorm statistics: "recalibrated",
    "compensated + recalibrated", "reconstructed + recalibrated"; only those that were made."""
    compensation: tuple[Compensation, ...]
    """The result of compensation for each layer that lost inputs."""


def repaired_networks(
    dense: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    compensate_with: Batches | None,
    reconstruct_with: Batches | None,
    recalibrate_with: Batches | None,
    attempt: Attempt = _no_context,
) -> RepairedNetworks:
    """Return copies of a slim network, repaired by each method and by each combination that makes sense.

    Args:
        dense: The network before the cut; left as it was, like the next.
        slim: The network after the cut.
        plan: The cut.
        example_inputs: As for `bnprune.prune`.
        compensate_with: Data for `bnprune.recovery.compensate`; None to leave a method out.
        reconstruct_with: Data for `bnprune.reconstruct`.
        recalibrate_with: Data for `bnprune.recalibrate`. A network without BatchNorm statistics needs none.
        attempt: Each method runs in the context that this returns, which may suppress its error.
    """
    networks = {"plain": slim}
    compensation: tuple[Compensation, ...] = ()
    if compensate_with is not None:
        with attempt("compensated"):
            changed = copy.deepcopy(slim)
            compensation = compensate(dense, changed, plan, example_inputs, batches=compensate_with())
            networks["compensated"] = changed
    if reconstruct_with is not None:
        with attempt("reconstructed"):
            networks["reconstructed"] = reconstruct(dense, copy.deepcopy(slim), plan, reconstruct_with())
    if recalibrate_with is not None and _has_statistics(slim):
        for name, network in [*networks.items()]:
            with attempt("recalibrated"):
                new = recalibrate(copy.deepcopy(network), recalibrate_with())
                networks["recalibrated" if name == "plain" else f"{name} + recalibrated"] = new
    return RepairedNetworks(networks, compensation)


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm) and module.track_running_stats for module in model.modules())
