"""Sparse training, pruning and further training of ultralytics models.

Ultralytics builds a new network from the YAML of a model whenever it trains: of a pruned model, it would train the
dense network, without a word. `prune` returns a model that trains the slim network; for one that was loaded from a
file, give `SlimTrainer`::

    from bnprune.integrations import ultralytics as pruning

    yolo = YOLO("yolo11n.pt")
    pruning.sparse_training(yolo, target=0.5)
    yolo.train(data="data.yaml", epochs=100)
    slim = pruning.prune(yolo, macs=0.5)
    slim.train(data="data.yaml", epochs=50)
    slim.export(format="onnx")
    YOLO("slim.pt").train(data="data.yaml", trainer=pruning.SlimTrainer)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer

from bnprune.data.unlabelled import Preprocessing, unlabelled_images
from bnprune.errors import ConfigError, PruningError
from bnprune.pruning.calibration import DEFAULT_IMAGES
from bnprune.pruning.pruner import PruningResult
from bnprune.pruning.pruner import prune as prune_network
from bnprune.training.sparsify import Sparsity, sparsify

PREDICTIONS = "0"
"""The output that counts: ultralytics' networks return their predictions first, and then what a loss needs."""
_TRAINING_ENDS = ("on_train_end", "teardown")


def prune(
    yolo: Model,
    *,
    imgsz: int | tuple[int, int] = 640,
    calibrate: str | Path | Iterable[Any] | None = None,
    **request: Any,
) -> Model:
    """Return a model with a slim network, which trains, validates, predicts, exports and saves like any other.

    Args:
        yolo: The model; it is left as it was.
        imgsz: Size of the images, or (height, width).
        calibrate: Images to repair the slim network with, without labels: a folder, or batches as for `bnprune.prune`,
            scaled to [0, 1].
        request: Target and constraints of `bnprune.prune`: `macs`, `ratio`, `round_to`, `exclude`, and so on. By
            default, the predictions are the outputs that count.

    Returns:
        A new model of the same class. Its attribute `pruning` is the `bnprune.PruningResult`.

    Raises:
        ConfigError: The network was fused, so that there are no BatchNorms, or an argument is wrong.
        PruningError: The network cannot be pruned as requested.
        DataError: `calibrate` is a folder that cannot be read.
    """
    network = _unfused(yolo)
    device = next(network.parameters()).device
    shape = (_channels(network), *_size(imgsz))
    if isinstance(calibrate, str | Path):
        read = Preprocessing.of(shape, [0.0] * shape[0], [1.0] * shape[0])
        calibrate = unlabelled_images(Path(calibrate), request.get("calibrate_images", DEFAULT_IMAGES), read)
    request = {"outputs": PREDICTIONS, **request}
    result = prune_network(network, torch.zeros(1, *shape, device=device), calibrate=calibrate, **request)
    return _slim_model(yolo, result)


def sparse_training(yolo: Model, **settings: Any) -> SparseTraining:
    """Add a sparsity penalty to the next trainings of a model: to `yolo.train(...)`, which stays as it is.

    Args:
        yolo: The model.
        settings: Keyword arguments of `bnprune.sparsify`: `target`, `travel` or `lambda_`, `penalty`, `exclude`, and so
            on. The number of steps, the inputs to trace with and the outputs that count are known.

    Returns:
        The callbacks; `penalty` of them is the penalty of the present or the last training.
    """
    callbacks = SparseTraining(settings)
    yolo.add_callback("on_train_start", callbacks.start)
    yolo.add_callback("on_fit_epoch_end", callbacks.log)
    for event in _TRAINING_ENDS:
        yolo.add_callback(event, callbacks.end)
    return callbacks


class SparseTraining:
    """Callbacks that attach `bnprune.sparsify` to the optimizer of a training."""

    penalty: Sparsity | None = None
    """The penalty of the present or the last training."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def start(self, trainer: BaseTrainer) -> None:
        """Attach the penalty."""
        self.end(trainer)  # a training that an error ended has not called it
        network = trainer.model
        settings = {"outputs": PREDICTIONS, **self._settings}
        shape = (_channels(network), *_size(trainer.args.imgsz))
        inputs = torch.zeros(1, *shape, device=trainer.device)
        steps = optimizer_steps(trainer)
        self.penalty = sparsify(network, trainer.optimizer, steps=steps, example_inputs=inputs, **settings)

    def log(self, trainer: BaseTrainer) -> None:
        """Add the share of scale factors near zero to the metrics of the epoch."""
        if self.penalty is not None:
            state = self.penalty.gammas()
            trainer.metrics["gamma/below"] = state.below
            if state.removable is not None:
                trainer.metrics["gamma/removable"] = state.removable

    def end(self, _: BaseTrainer) -> None:
        """Detach the penalty."""
        if self.penalty is not None:
            self.penalty.detach()


def optimizer_steps(trainer: BaseTrainer) -> int:
    """Return the number of optimizer steps of a training: batches are accumulated, fewer of them during warm-up."""
    batches, nominal = len(trainer.train_loader), trainer.accumulate
    epochs = min(trainer.args.warmup_epochs, max(trainer.epochs - 1, 0))
    warmup = round(epochs * batches) if epochs > 0 else 0
    steps, last = 0, -1
    for number in range(batches * (trainer.epochs - trainer.start_epoch)):
        several = nominal
        if warmup and number <= warmup:
            several = max(1, round(float(np.interp(number, [0, warmup], [1, nominal]))))
        if number - last >= several:
            steps, last = steps + 1, number
    return max(1, steps)


class _TrainsSlimNetwork:
    """Overrides of a trainer: it trains the network that it is given, instead of one that it builds from the YAML."""

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Return a copy of the given network.

        Raises:
            ConfigError: There is none, or it has another number of classes than the data.
        """
        if weights is None:
            raise ConfigError("SlimTrainer trains a network that exists: start from a .pt file or a model.")
        network: Any = weights
        classes = getattr(network, "nc", None) or (network.yaml or {}).get("nc")
        if classes is not None and classes != self.data["nc"]:  # type: ignore[attr-defined]
            raise ConfigError(
                f"the slim network has {classes} classes, and the data {self.data['nc']}. "  # type: ignore[attr-defined]
                "Train the dense network on this data first, then prune it."
            )
        network = copy.deepcopy(network).float()
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        return network  # type: ignore[no-any-return]


_TRAINERS: dict[type, type] = {}


def slim_trainer(base: type[BaseTrainer]) -> type[BaseTrainer]:
    """Return a trainer class, made of the trainer of a task, that trains the network it is given."""
    if base not in _TRAINERS:
        _TRAINERS[base] = type(f"Slim{base.__name__}", (_TrainsSlimNetwork, base), {"__module__": __name__})
    return _TRAINERS[base]


def SlimTrainer(overrides: dict[str, Any] | None = None, **arguments: Any) -> BaseTrainer:  # noqa: N802 - a class to its caller
    """Make a trainer of the slim network, for `yolo.train(trainer=SlimTrainer)`, whatever the task is."""
    task, name = (overrides or {}).get("task", "detect"), str((overrides or {}).get("model", ""))
    family = RTDETR if "rtdetr" in name.lower() else YOLO
    trainers = _task_map(family)
    if task not in trainers:
        raise ConfigError(f"ultralytics has no trainer for task '{task}'.")
    return slim_trainer(trainers[task]["trainer"])(overrides=overrides, **arguments)


def _task_map(family: Any) -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = family.task_map.fget(object.__new__(family))
    return tasks


def _slim_model(yolo: Model, result: PruningResult) -> Model:
    """Return a copy of a model around the slim network; its trainer, if none is given, trains that network."""
    slim = copy.copy(yolo)
    slim._modules = {**yolo._modules}  # a model is itself a module; its copy shares this dictionary
    slim.model = result.model
    kept = yolo.ckpt if isinstance(yolo.ckpt, dict) else {}
    slim.ckpt = {"train_args": kept.get("train_args", {}), "model": result.model}  # not its dense `ema` or optimizer
    slim.predictor = slim.trainer = slim.metrics = None
    slim.overrides = dict(yolo.overrides)
    slim.callbacks = {event: [*calls] for event, calls in yolo.callbacks.items()}
    for calls in slim.callbacks.values():  # the slim network is fine-tuned without the penalty
        calls[:] = [call for call in calls if not isinstance(getattr(call, "__self__", None), SparseTraining)]
    slim.pruning = result
    slim.__class__ = _with_slim_trainer(type(yolo))
    return slim


def _with_slim_trainer(family: Any) -> Any:
    def task_map(_: Any) -> dict[str, dict[str, Any]]:
        tasks = _task_map(family)
        return {task: {**entry, "trainer": slim_trainer(entry["trainer"])} for task, entry in tasks.items()}

    return type(family.__name__, (family,), {"task_map": property(task_map), "__module__": family.__module__})


def _unfused(yolo: Model) -> nn.Module:
    network = yolo.model
    if not isinstance(network, nn.Module):
        raise ConfigError(f"the model is an exported file ({network}), and has no network to prune.")
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise ConfigError(
            "the BatchNorms of the network are fused into its convolutions (predict and val do that). Load the model "
            "again, and prune it before."
        )
    return network


def _channels(network: nn.Module) -> int:
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def _size(imgsz: Any) -> tuple[int, int]:
    sizes = [imgsz, imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sizes) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise PruningError(f"imgsz: expected a size, or (height, width) (got {imgsz!r}).")
    return sizes[0], sizes[1]
