"""The arms of the arena: what each does with a trained network. Each changes one thing in the default."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnprune
from arena import peers
from bnprune.config.schema import PipelineConfig, SparsityConfig
from bnprune.data import Splits
from bnprune.recovery.training_images import training_batches
from bnprune.workflows.sensitivity import sensitivity

CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Bench:
    """What the cells of one network and seed share."""

    config: PipelineConfig
    splits: Splits
    device: torch.device
    base: Path
    """Checkpoint of the trained network that is cut."""


@dataclass(frozen=True)
class Cut:
    """A slim network, before any recovery."""

    network: nn.Module
    seconds: Mapping[str, float]
    plan: bnprune.PruningPlan | None = None
    repaired: nn.Module | None = None
    """The network as `bnprune.prune` repaired it, without labels."""
    details: Mapping[str, Any] = field(default_factory=dict)


CutFunction = Callable[[nn.Module, Bench, float], Cut]
"""(trained network, bench, largest share of its MACs) -> cut."""


@dataclass(frozen=True)
class Arm:
    """A way to a slim network."""

    about: str
    """Completes "NAME: ..." in the table."""
    cut: CutFunction | None = None
    """None for training from scratch."""
    base: str = "sparse"
    recovers: bool = False
    """True for networks to which bnprune's `recover` is applied, and which are then fine-tuned; the others are
    recalibrated."""
    passes: int = 1
    """Rounds of pruning and fine-tuning, which share the epochs."""
    distils: bool = False
    scratch: str | None = None
    """"epochs" or "compute": what is equal, if the slim architecture of the default is trained from new weights."""
    main: bool = False
    """True for an arm that runs with every seed."""


def pruned(
    network: nn.Module,
    bench: Bench,
    share: float,
    *,
    criterion: str | None = None,
    cap: float | None = None,
    calibrated: bool = True,
    measured: bool = False,
) -> Cut:
    """Prune with bnprune, by default as `bnprune prune RUN --macs` does.

    Args:
        network: The trained network.
        bench: Its data.
        share: Largest share of the MACs.
        criterion: The ranking.
        cap: Largest share of its channels that a layer may lose.
        calibrated: True to give training images as calibration data.
        measured: True to share out the cut by a sensitivity table, which is measured on validation images, once for all
            shares.
    """
    options: dict[str, Any] = {"macs": share, "criterion": criterion, "cap": cap}
    seconds = {}
    if calibrated:
        options["calibrate"] = list(training_batches(bench.splits.train, CALIBRATION_IMAGES))
    if measured:
        options["sensitivity"] = table = bench.base.parent.parent / "sensitivity.json"
        started, is_new = time.perf_counter(), not table.exists()
        sensitivity(bench.base, (f"data.root={bench.config.data.root}",), out=table, trust=True)
        if is_new:  # else it was read, or completed after an interruption
            seconds["sensitivity"] = time.perf_counter() - started
    started = time.perf_counter()
    result = bnprune.prune(network, bench.splits.example, **options)
    seconds["prune"] = time.perf_counter() - started
    details = {
        "steps": dict(result.report.seconds),
        "notes": [getattr(note, "code", "") for note in result.report.notes],
    }
    repaired = None if result.repair is None else result.repair.model
    slim = result.model if repaired is None else bnprune.apply(result.plan, network)
    if result.repair is not None:
        details["repair"] = result.repair.chosen
    return Cut(slim, seconds, result.plan, repaired, details)


def cut_by_peer(network: nn.Module, bench: Bench, share: float, *, importance: str) -> Cut:
    """Prune with Torch-Pruning."""
    found = peers.cut(network, bench.splits.example, share, importance, bench.config.model.name or "")
    return Cut(found.network, found.seconds, details={"pruning_ratio": found.ratio, "ignored": found.ignored})


_default = partial(Arm, recovers=True)
_control = partial(Arm, main=True)

ARMS: dict[str, Arm] = {
    "default": _default("bnprune as it is, on the sparse-trained network", pruned, main=True),
    "tp-bn": _control(
        "Torch-Pruning, BNScaleImportance with its default normalizer", partial(cut_by_peer, importance="bn")
    ),
    "tp-bn-none": _control(
        "Torch-Pruning, BNScaleImportance without a normalizer", partial(cut_by_peer, importance="bn-none")
    ),
    "tp-l1": _control("Torch-Pruning, group L1 magnitude", partial(cut_by_peer, importance="l1")),
    "uniform": _control(
        "uniform width, by |γ| within each layer", partial(pruned, criterion="uniform", calibrated=False)
    ),
    "random": _control("channels at random", partial(pruned, criterion="random", calibrated=False)),
    "scratch-epochs": _control(
        "the slim architecture of `default` from new weights, for as many epochs as it had in all", scratch="epochs"
    ),
    "l1": Arm("mean |w| of the filters", partial(pruned, criterion="l1", calibrated=False)),
    "tp-l1-dense": Arm(
        "Torch-Pruning, group L1 magnitude, on the dense network", partial(cut_by_peer, importance="l1"), base="dense"
    ),
    "dense-reconstruct": Arm("default on the dense network, repaired with 512 unlabelled images", pruned, base="dense"),
    "dense-taylor": Arm(
        "the same with criterion `taylor`, which reads the labels of these images",
        partial(pruned, criterion="taylor"),
        base="dense",
    ),
    "gamma": _default("default, with criterion `gamma`", partial(pruned, criterion="gamma")),
    "gamma-paper": _default(
        "default, with one threshold on |γ| for all layers, as in the paper",
        partial(pruned, criterion="gamma", cap=1.0),
    ),
    "gamma-per-mac": _default("default, with criterion `gamma-per-mac`", partial(pruned, criterion="gamma-per-mac")),
    "sensitivity": _default("default, shared out by a sensitivity table", partial(pruned, measured=True)),
    "polarization": _default("default, after training with the penalty `polarization`", pruned, base="polarized"),
    "two-passes": _default("default, in two passes of cut and fine-tuning, each half as long", pruned, passes=2),
    "distillation": _default(
        "default, fine-tuned with the sparse-trained network as teacher", pruned, distils=True, main=True
    ),
    "scratch-compute": Arm(
        "the slim architecture of `default` from new weights, for the same computation", scratch="compute"
    ),
}
"""In the order of the table."""

BASES: dict[str, str] = {
    "sparse": "trained with the penalty of the recipe",
    "dense": "trained without a penalty",
    "polarized": "trained with the penalty `polarization`",
}


def base_recipe(config: PipelineConfig, base: str) -> PipelineConfig:
    """Return the recipe of a base's training. Without a penalty, γ start at 1, as usual."""
    assert config.train is not None
    if base == "sparse":
        return config
    penalty = SparsityConfig(penalty="polarization" if base == "polarized" else "none")
    model = config.model if base == "polarized" else config.model.model_copy(update={"gamma_init": None})
    training = config.train.model_copy(update={"sparsity": penalty})
    return config.model_copy(update={"model": model, "train": training})


def share_of_pass(share: float, number: int, passes: int, total: int, now: int) -> float:
    """Return the share of its MACs that a network keeps in one pass of several; `total` and `now` are MACs."""
    return share ** (number / passes) * total / now
