"""Carrying out a cell: train a base; or cut, recover, fine-tune and evaluate. Everything continues where it stopped."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnprune
from arena import results
from arena.arms import ARMS, Arm, Bench, Cut, base_recipe, share_of_pass
from arena.cells import Cell
from arena.peers import NotReachedError
from arena.training import Stopping, from_new_weights, train_base, trained
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import DistillConfig, FinetuneConfig, PipelineConfig, SparsityConfig, TrainConfig
from bnprune.data import Splits, load_data
from bnprune.pruning.cost import cost
from bnprune.recovery.recover import recover
from bnprune.recovery.training_images import training_batches
from bnprune.runs.files import write_atomically, write_json, write_text
from bnprune.runs.preflight import choose_device
from bnprune.training.evaluate import evaluate, validation_score

RECIPES = Path(__file__).parent.parent.parent / "configs" / "arena"
RECALIBRATION_IMAGES = 12_800
MOST_SCRATCH_EPOCHS = 100
"""Cap of the arm scratch-compute."""


@dataclass(frozen=True)
class Arena:
    """Where images, networks and results are, and how they were asked for."""

    images: Path
    work: Path
    results: Path
    overrides: tuple[str, ...]
    """`key=value` pairs for every recipe."""
    validation_only: bool
    command: str

    def recipe(self, cell: Cell) -> PipelineConfig:
        """Return the recipe of a cell."""
        fixed = (f"data.root={self.images}", f"seed={cell.seed}")
        return load_recipe(RECIPES / f"{cell.network}.yaml", [*self.overrides, *fixed])

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell's networks."""
        return self.work / ("runs-validation" if self.validation_only else "runs") / cell.name


_splits: dict[str, Splits] = {}


def splits_of(config: PipelineConfig) -> Splits:
    """Load the images, once per process."""
    key = config.data.model_dump_json()
    if key not in _splits:
        _splits[key] = load_data(config.data)
    return _splits[key]


def execute(cell: Cell, arena: Arena, stopping: Stopping) -> None:
    """Carry out a cell, and write its result.

    Raises:
        Interrupted: It was asked to stop; what is done is kept.
    """
    config = arena.recipe(cell)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    if cell.macs is None:
        figures = _base(cell, config, arena, stopping)
        config = base_recipe(config, cell.arm)
    else:
        device = choose_device(config.device)
        base = arena.folder(cell.base) / "checkpoints" / "train.safetensors"
        bench = Bench(config, splits_of(config), device, base)
        figures = _Run(cell, ARMS[cell.arm], bench, arena, stopping).figures()
    results.write(arena.results, cell, config, arena.command, figures)


def _base(cell: Cell, config: PipelineConfig, arena: Arena, stopping: Stopping) -> dict[str, Any]:
    seconds = train_base(config, cell.arm, arena.folder(cell), stopping)
    network = bnprune.load(arena.folder(cell) / "checkpoints" / "train.safetensors")
    splits = splits_of(config)
    found = cost(network, splits.example)
    assert config.train is not None
    measured = _accuracy(network, splits, choose_device(config.device), arena)
    return {
        "accuracy": {"trained": measured},
        "macs": {"after": found.macs, "share": 1.0},
        "params": {"after": found.params},
        "epochs": config.train.epochs,
        "seconds": {"training": seconds},
    }


def _accuracy(network: nn.Module, splits: Splits, device: torch.device, arena: Arena) -> dict[str, float | None]:
    """Evaluate a network on validation and test images: these once, and not at all with --validation-only."""
    network.to(device)
    test = None if arena.validation_only else evaluate(network, splits.test, device).value
    return {"validation": evaluate(network, splits.validation, device).value, "test": test}


@dataclass(frozen=True)
class _Run:
    """One cell of an arm."""

    cell: Cell
    arm: Arm
    bench: Bench
    arena: Arena
    stopping: Stopping

    @property
    def folder(self) -> Path:
        return self.arena.folder(self.cell)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the cell."""
        self.folder.mkdir(parents=True, exist_ok=True)
        total = cost(bnprune.load(self.bench.base), self.bench.splits.example)
        try:
            network, found = self._from_scratch() if self.arm.scratch else self._pruned(total.macs)
        except NotReachedError as error:
            return {"failed": str(error)}
        found["accuracy"]["finetuned"] = self._accuracy(network)
        _save(network.cpu(), self.folder / "final.pt")
        slim = cost(network, self.bench.splits.example)
        return {
            **found,
            "macs": {"before": total.macs, "after": slim.macs, "share": slim.macs / total.macs},
            "params": {"before": total.params, "after": slim.params},
        }

    def _accuracy(self, network: nn.Module) -> dict[str, float | None]:
        return _accuracy(network, self.bench.splits, self.bench.device, self.arena)

    # -- pruned networks -----------------------------------------------------------------------------------------------

    def _pruned(self, total: int) -> tuple[nn.Module, dict[str, Any]]:
        assert self.cell.macs is not None
        network, found, spent, trained_macs = bnprune.load(self.bench.base), {}, 0.0, 0.0
        settings = self._settings()
        for number in range(1, self.arm.passes + 1):
            now = cost(network, self.bench.splits.example).macs
            share = share_of_pass(self.cell.macs, number, self.arm.passes, total, now)
            network, found = self._start(network, share, number)
            trained_macs += settings.epochs * cost(network, self.bench.splits.example).macs / total
            path = self.folder / f"finetune-{number}"
            network, seconds = trained(network, self.bench, "finetune", settings, path, self.stopping, self._teacher())
            network, spent = network.cpu(), spent + seconds
        epochs = settings.epochs * self.arm.passes
        found["seconds"]["training"] = spent
        return network, {**found, "epochs": epochs, "mac_epochs": trained_macs}

    def _settings(self) -> FinetuneConfig:
        """Return the settings of fine-tuning; several passes share its epochs."""
        settings = self.bench.config.finetune or FinetuneConfig()
        changes: dict[str, Any] = {"epochs": max(1, settings.epochs // self.arm.passes)}
        if self.arm.distils:
            changes["distill"] = DistillConfig()
        return settings.model_copy(update=changes)

    def _teacher(self) -> nn.Module | None:
        return bnprune.load(self.bench.base) if self.arm.distils else None

    def _start(self, network: nn.Module, share: float, number: int) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network from which fine-tuning starts, and the figures so far; cut now, or in an earlier run."""
        network_file, figures_file = self.folder / f"start-{number}.pt", self.folder / f"start-{number}.json"
        if not figures_file.exists():
            start, figures = self._cut(network, share)
            _save(start, network_file)
            write_json(figures_file, figures)
        return _load(network_file), json.loads(figures_file.read_text(encoding="utf-8"))

    def _cut(self, network: nn.Module, share: float) -> tuple[nn.Module, dict[str, Any]]:
        assert self.arm.cut is not None
        found = self.arm.cut(network, self.bench, share)
        if found.plan is not None:
            write_text(self.folder / "plan.json", found.plan.to_json())
        accuracy = {"cut": self._accuracy(found.network)}
        started = time.perf_counter()
        recalibrated = self._recalibrated(found.network.cpu())
        taken = time.perf_counter() - started
        accuracy["recalibrated"] = self._accuracy(recalibrated)
        started = time.perf_counter()
        start, chosen = self._recovered(network, found)
        seconds = {**found.seconds, "recalibrate": taken, "recover": time.perf_counter() - started}
        details = dict(found.details)
        if start is not None:
            accuracy["recovered"] = self._accuracy(start)
            details["recovery"] = chosen
        figures = {"accuracy": accuracy, "seconds": seconds, "details": details}
        return (recalibrated if start is None else start).cpu(), figures

    def _recalibrated(self, network: nn.Module) -> nn.Module:
        """Return a copy with new BatchNorm statistics: the same recovery for every arm."""
        copied = copy.deepcopy(network).to(self.bench.device)
        images = training_batches(self.bench.splits.train, RECALIBRATION_IMAGES)
        return bnprune.recalibrate(copied, (batch.to(self.bench.device) for batch, _ in images))

    def _recovered(self, network: nn.Module, found: Cut) -> tuple[nn.Module | None, str]:
        """Return the network as bnprune recovers it by default; None for arms that are recalibrated alone."""
        if found.repaired is not None and not self.arm.recovers:
            return found.repaired, str(found.details["repair"])
        if not self.arm.recovers or found.plan is None:
            return None, ""
        score = validation_score(self.bench.splits, self.bench.device)
        recovery = recover(
            network, found.network, found.plan, self.bench.splits, self.bench.device, score=score,
            batch_size=self.bench.config.data.batch_size,
        )  # fmt: skip
        return recovery.model, recovery.chosen

    # -- from scratch --------------------------------------------------------------------------------------------------

    def _from_scratch(self) -> tuple[nn.Module, dict[str, Any]]:
        """Train the architecture of the default with new weights, like the dense network."""
        config, default = self.bench.config, self.cell.needs[0]
        plan = bnprune.PruningPlan.from_json((self.arena.folder(default) / "plan.json").read_text(encoding="utf-8"))
        network = from_new_weights(config, plan)
        document = results.read(self.arena.results, default)
        assert document is not None
        base, tuned = config.train or TrainConfig(), config.finetune or FinetuneConfig()
        share = document["macs"]["share"]
        epochs: float = base.epochs + tuned.epochs
        if self.arm.scratch == "compute":
            epochs = min(MOST_SCRATCH_EPOCHS, base.epochs / share + tuned.epochs)
        settings = base.model_copy(update={"epochs": round(epochs), "sparsity": SparsityConfig(penalty="none")})
        path = self.folder / "scratch"
        network, seconds = trained(network, self.bench, "scratch", settings, path, self.stopping)
        figures = {"accuracy": {}, "seconds": {"training": seconds}, "details": {}}
        return network.cpu(), {**figures, "epochs": settings.epochs, "mac_epochs": settings.epochs * share}


def _save(network: nn.Module, path: Path) -> None:
    """Save a whole network: no plan of bnprune describes one that Torch-Pruning cut."""
    write_atomically(path, lambda temporary: torch.save(network, temporary))


def _load(path: Path) -> nn.Module:
    """Load a network that this script has saved."""
    network: nn.Module = torch.load(path, weights_only=False)
    return network
