"""The speed of training: three ratios, each the median over pairs that are measured in turn in one run.

    python scripts/bench_train.py                   # on a GPU: VGG-16, batch 128, images of CIFAR-10's shape
    python scripts/bench_train.py --threads 1       # on a CPU: VGG-11 of a quarter of the width

(a) `bnprune train` against the shortest hand-written loop: same network, images, augmentation, batches, optimizer and
    penalty. "loop" is an epoch of steps with the run's own log; "epoch" adds what is written at its end (metrics,
    `last`, `best` and the state), for an epoch of 351 steps as CIFAR-10 has them. Both validate on 32 images.
(b) What the penalty adds to a step: ResNet-18, batch 32 at 64x64, (step + penalty) / step.
(c) Images in memory against the usual pipeline (PIL, transforms, DataLoader): seconds for an epoch of batches.

Pixels are random: no time depends on them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from bnprune.cli.render.progress import RichDisplay
from bnprune.config.schema import OptimisationConfig, SparsityConfig, TrainConfig
from bnprune.data import MemorySplit, Splits
from bnprune.data.memory import Augmentation
from bnprune.data.splits import combined_seed
from bnprune.models import ModelSpec
from bnprune.models.zoo import ZOO
from bnprune.runs.checkpoint import Header
from bnprune.runs.directory import RunDirectory, processor
from bnprune.runs.preflight import choose_device
from bnprune.runs.training_log import TrainingLog
from bnprune.training.evaluate import Score, evaluate
from bnprune.training.loop import EpochRecord, TrainingJob, begin, epoch_order, train
from bnprune.training.lr_schedule import learning_rate
from bnprune.training.penalties.gamma import GammaL1, GammaProximal, scale_factors
from bnprune.training.state import State

CIFAR_STEPS = 351
"""45,000 training images in batches of 128."""


class Steps(TrainingLog):
    """The log of a run, less the files at the end of an epoch, which are timed apart."""

    def on_start(self, validation: Score, state: State) -> None:
        pass

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        pass

    def on_state(self, saved: dict[str, Any]) -> None:
        pass

    def files(self, record: EpochRecord, state: State) -> None:
        TrainingLog.on_epoch(self, record, state)
        TrainingLog.on_state(self, state.to_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=None, help="per epoch in (a); default: 8 on a CPU, 100 elsewhere")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    slow = device.type == "cpu"
    name = processor() if slow else torch.cuda.get_device_name(device)
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.pairs} pairs")
    network = ("vgg11", {"width": 0.25}) if slow else ("vgg16", {})
    against_hand_written(*network, device, args.steps or (8 if slow else 100), args.pairs)
    penalty_share(device, args.pairs)
    against_pil(device, args.pairs)


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Measure work, with all that an accelerator still has to do."""
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def pairs(device: torch.device, ours: Callable[[], Any], theirs: Callable[[], Any], count: int) -> list[list[float]]:
    """Measure two pieces of work in turn, each first in every second pair; once before to warm up."""
    taken = []
    for number in range(-1, count):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        found = {work: seconds(device, work) for work in order}
        if number >= 0:
            taken.append([found[ours], found[theirs]])
    return taken


def report(what: str, ratios: list[float], bar: str, detail: str) -> None:
    low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(ratios)
    print(f"{what:42} {middle:8.4f}  quartiles {low:.4f} to {high:.4f}  bar {bar:8} {detail}", flush=True)


# -- (a) ---------------------------------------------------------------------------------------------------------------


def against_hand_written(name: str, kwargs: dict[str, Any], device: torch.device, steps: int, count: int) -> None:
    torch.manual_seed(0)
    kwargs = {"num_classes": 10, "in_channels": 3, **kwargs}
    data = images(128 * steps)
    config = TrainConfig(epochs=1)
    task = TrainingJob(data, 128, config, device, seed=1)
    held = Score(0.0, 0.0, 1)
    with tempfile.TemporaryDirectory() as folder, RichDisplay() as display:
        directory = RunDirectory(Path(folder))
        header = Header(ModelSpec(name, None, kwargs))
        log = Steps(directory, display, "train", config, header, SparsityConfig(), 10)
        # One network for both: where its tensors lie in memory alone makes two differ by a few percent.
        state = begin(ZOO[name](**kwargs), task)
        penalty = GammaL1(state.model, 1e-4)

        def ours() -> None:
            state.progress = type(state.progress)()
            train(state, task, penalty, log, lambda: False)

        found = pairs(device, ours, lambda: by_hand(state, task), count)
        record = EpochRecord(1, 0.1, held, held, is_best=True)
        display.console.quiet = True
        saving = statistics.median(seconds(device, lambda: log.files(record, state)) for _ in range(5))
    each = statistics.median(theirs for _, theirs in found) / steps
    detail = f"{name}, batch 128 at 32x32, {each * 1e3:.1f} ms per step by hand"
    report("(a) loop / hand-written loop", [a / b for a, b in found], "<= 1.03", detail)
    whole = [(a * CIFAR_STEPS / steps + saving) / (b * CIFAR_STEPS / steps) for a, b in found]
    report("(a) epoch with its files / by hand", whole, "<= 1.03", f"{saving * 1e3:.0f} ms to write them")


def by_hand(state: State, task: TrainingJob) -> None:
    """The shortest loop that trains the same."""
    model, optimizer, split = state.model, state.optimizer, task.splits.train
    gammas = scale_factors(model)
    model.train()
    order = epoch_order(len(split), task.batch_size, task.seed, 0)
    for step, (inputs, labels) in enumerate(split.serve(order, task.device, seed=combined_seed(task.seed, 0))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(task.config, step, len(order))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        for gamma in gammas:
            gamma.grad.add_(gamma.detach().sign(), alpha=1e-4)
        optimizer.step()
    evaluate(model, task.splits.validation, task.device)


def images(count: int) -> Splits:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    half = torch.full((3,), 0.5)
    split = MemorySplit(pixels, torch.arange(count) % 10, half, half, Augmentation(shift=4, flip=True))
    few = replace(split, images=pixels[:32], labels=split.labels[:32], augmentation=None)
    return Splits(split, few, few, (3, 32, 32), 10)


# -- (b) ---------------------------------------------------------------------------------------------------------------


def penalty_share(device: torch.device, count: int) -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).to(device).train()
    inputs, labels = torch.randn(32, 3, 64, 64, device=device), (torch.arange(32) % 10).to(device)
    work = TrainingJob(images(32), 32, OptimisationConfig(), device, seed=0)
    optimizer = begin(model, work).optimizer

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    for penalty in (GammaL1(model, 1e-6), GammaL1(model, 1e-6, decoupled=True), GammaProximal(model, 1e-6)):

        def act(penalty: GammaL1 | GammaProximal = penalty) -> None:
            penalty.add_gradients()
            penalty.shrink(0.01)

        found = pairs(device, act, step, count)
        form = ", decoupled" if getattr(penalty, "decoupled", False) else ""
        detail = f"{statistics.median(a for a, _ in found) * 1e6:.0f} us of {found[0][1] * 1e3:.0f} ms"
        name = f"(b) (step + penalty) / step, {type(penalty).__name__}{form}"
        report(name, [(a + b) / b for a, b in found], "<= 1.01", detail)


# -- (c) ---------------------------------------------------------------------------------------------------------------


class Pictures(Dataset[Any]):
    """As torchvision's CIFAR-10: an array of pixels, a PIL image per sample, and its transforms."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self.pixels = pixels
        normalize = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        changes = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*changes, transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), index % 10


def against_pil(device: torch.device, count: int) -> None:
    split = images(12_800).train
    assert isinstance(split, MemorySplit)
    pictures = Pictures(split.images.permute(0, 2, 3, 1).contiguous().numpy())

    def ours() -> None:
        for _ in split.serve(epoch_order(len(split), 128, 0, 0), device, seed=0):
            pass

    for workers in (0, 2):
        loader = DataLoader(pictures, 128, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

        def usual(loader: DataLoader[Any] = loader) -> None:
            for inputs, labels in loader:
                _ = inputs.to(device), labels.to(device)

        found = pairs(device, usual, ours, min(count, 7))
        each = statistics.median(b for _, b in found) / len(split)
        name = f"(c) PIL, {workers} loader processes / in memory"
        report(name, [a / b for a, b in found], "> 1", f"{each * 1e6:.1f} us per image in memory")


if __name__ == "__main__":
    main()
