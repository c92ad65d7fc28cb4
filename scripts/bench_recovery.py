"""Accuracy right after the cut, without fine-tuning: as it is, and with every way of recovery.

    python scripts/bench_recovery.py configs/digits.yaml --out runs/recovery-digits
    python scripts/bench_recovery.py configs/cifar10-vgg11.yaml data.root=CIFAR10 train.epochs=10 \
        --out runs/recovery-cifar
    python scripts/bench_recovery.py --ordinary RUN [RUN ...] --out ordinary.json
    python scripts/bench_recovery.py --zoo [NETWORK ...] --out zoo.json

With a recipe: trains with sparsity as the recipe says (or takes the trained network that is in --out already), cuts it
at several ratios, and prints test accuracy. Means and statistics come from training images. Seeds are the recipe's:
`seed=1` on the command line for another.

With --ordinary: run directories of one network trained without a penalty, with different seeds. Each is cut by several
criteria to several shares of its MACs; mean test accuracies over the seeds are printed. Reconstruction, compensation
and statistics use the same unlabelled training images. The network without and with new statistics after
reconstruction, whichever is better on validation images, is compared with recalibration alone: the share of the lost
accuracy that it brings back, and the difference with its 95% interval over test images (of each image, the mean over
the seeds is taken; the images are paired). With --finetune, the same short fine-tuning follows a recalibrated and a
reconstructed network (both with new statistics), and these are compared.

With --zoo: torchvision networks with random weights on images of noise. The error of the outputs after the cut and
after reconstruction; the CPU time of `reconstruct`, in forward passes of the dense network over the same images; the
same for 512 images, from a part per network and a part per image; and its peak memory. The exit status is 1 if the
error grows or a limit is exceeded (4 passes for 512 images, 2 GB above the networks).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnprune
from bnprune.cli.render.progress import RichDisplay
from bnprune.cli.render.tables import show_rows
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import FinetuneConfig
from bnprune.config.tables import CRITERIA
from bnprune.data import Split, load_data
from bnprune.recovery.compensate import compensate
from bnprune.recovery.reconstruct import Reconstruction, reconstruct, reconstruct_layers
from bnprune.recovery.recover import recover
from bnprune.runs.directory import RunDirectory
from bnprune.runs.pipeline import execute
from bnprune.runs.preflight import choose_device, load_stage
from bnprune.runs.training_stage import NoLog
from bnprune.training.evaluate import evaluate, validation_score
from bnprune.training.loop import TrainingJob, begin, train

NAMES = ("plain", "compensated", "recalibrated", "compensated + recalibrated")
WAYS = ("plain", "compensated", "recalibrated", "reconstructed", "reconstructed+recalibrated")
RANKINGS = [name for name in ("gamma", "activation", "taylor", "uniform", "l2") if name in CRITERIA]
NEEDS_DATA = ("activation", "taylor")
ZOO = (
    *("resnet18", "resnet50", "vgg11_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x1_0", "googlenet", "regnet_y_400mf", "efficientnet_b0"),
)
MOST_PASSES, MOST_MEMORY = 4.0, 2e9
ZOO_BATCH, DEFAULT_IMAGES = 32, 512
Images = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="run directory; else, JSON file")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.85, 0.9])
    parser.add_argument("--ordinary", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.7, 0.5, 0.3, 0.15])
    parser.add_argument("--criteria", nargs="+", default=RANKINGS, choices=RANKINGS)
    parser.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="with --ordinary: compare after it")
    parser.add_argument("--images", type=int, help="unlabelled images [default: 2048; 128 with --zoo]")
    parser.add_argument("--zoo", nargs="*", metavar="NETWORK")
    parser.add_argument("--pixels", type=int, default=224, help="height and width of images with --zoo [default: 224]")
    args = parser.parse_intermixed_args()
    if args.zoo is not None:
        raise SystemExit(zoo(args.zoo or ZOO, args.images or 128, args.pixels, args.out))
    if args.ordinary:
        ordinary(args.ordinary, args.criteria, args.macs, args.images or 2048, args.finetune, args.out)
    elif args.recipe is None:
        parser.error("give a recipe, --ordinary or --zoo")
    else:
        sparse(args)


def sparse(args: argparse.Namespace) -> None:
    """Train with sparsity, cut at several ratios, and print accuracies."""
    config = load_recipe(args.recipe, args.overrides)
    resumed = (args.out / "config.yaml").exists()
    directory = RunDirectory.resume(args.out, config) if resumed else RunDirectory.new(args.out, force=False)
    with RichDisplay() as display:
        execute(config, directory, display, lambda: False, ["train"])
    device, splits = choose_device(config.device), load_data(config.data)
    dense = load_stage(config, directory.checkpoint("train"))[0].to(device)
    start = evaluate(dense, splits.test, device).value
    found: dict[str, dict[str, float]] = {}
    rows = []
    for ratio in args.ratios:
        result = bnprune.prune(dense, splits.example.to(device), ratio=ratio)
        score = validation_score(splits, device)
        tried = recover(
            dense, result.model, result.plan, splits, device, score=score, batch_size=config.data.batch_size
        )
        scores = {name: evaluate(tried.networks[name], splits.test, device).value for name in NAMES}
        found[f"{ratio:g}"] = {"macs": result.report.macs_after / result.report.macs_before, **scores}
        rows.append((f"{ratio:.0%}", f"{found[f'{ratio:g}']['macs']:.1%}", *(f"{scores[name]:.2%}" for name in NAMES)))
    show_rows(["channels removed", "MACs left", *NAMES], rows)
    print(f"sparse-trained: {start:.2%} test accuracy; {len(splits.test)} images, seed {config.seed}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    (args.out / "recovery.json").write_text(json.dumps({"sparse": start, "after": found}, indent=1))


# -- networks trained without a penalty --------------------------------------------------------------------------------


def ordinary(
    runs: Sequence[Path], criteria: Sequence[str], shares: Sequence[float], count: int, epochs: int, out: Path
) -> None:
    """Cut networks trained without a penalty, recover them, and print mean accuracies over the runs."""
    beds = [Bed(run, count) for run in runs]
    cells: list[dict[str, Any]] = []
    document = {"runs": len(runs), "dense": [bed.dense_accuracy for bed in beds], "images": count, "cells": cells}
    for criterion in criteria:
        for share in shares:
            cells.append(tuned_cell(criterion, share, beds, epochs) if epochs else cell(criterion, share, beds))
            out.write_text(json.dumps(document, indent=1))
            print(f"{criterion} {share:g}: {cells[-1]}", flush=True)
    if epochs:
        return
    columns = ["criterion", "MACs left", *WAYS, "brought back", "chosen - recalibrated"]
    show_rows(columns, [row(entry) for entry in cells])
    print("dense: " + ", ".join(f"{bed.dense_accuracy:.2%}" for bed in beds) +
          f"; {len(beds[0].test[1])} test images, {count} unlabelled training images, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip


class Bed:
    """One trained network, its images, and its accuracy."""

    def __init__(self, run: Path, count: int) -> None:
        config = load_recipe(run / "config.yaml", [])
        splits = load_data(config.data)
        self.config, self.splits = config, splits
        self.dense = bnprune.load(run / "checkpoints" / "train.safetensors")
        self.example = splits.example
        self.validation, self.test = collected(splits.validation), collected(splits.test)
        chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:count]
        self.batches = list(splits.train.serve(chosen.split(128), torch.device("cpu")))
        self.dense_accuracy = float(hits(self.dense, self.test).mean())

    def plan(self, criterion: str, share: float) -> bnprune.PruningPlan:
        data: dict[str, Any] = {"calibrate": self.batches} if criterion in NEEDS_DATA else {}
        return bnprune.plan(self.dense, self.example, macs=share, criterion=criterion, **data)

    def recovered(self, plan: bnprune.PruningPlan) -> Iterator[tuple[str, nn.Module]]:
        """Yield the slim network recovered in every way."""
        slim = bnprune.apply(plan, self.dense)
        images = [batch for batch, _ in self.batches]
        yield "plain", slim
        compensated = copy.deepcopy(slim)
        compensate(self.dense, compensated, plan, self.example, batches=images[:4])
        yield "compensated", compensated
        yield "recalibrated", bnprune.recalibrate(copy.deepcopy(slim), images)
        reconstructed = reconstruct(self.dense, copy.deepcopy(slim), plan, images)
        yield "reconstructed", reconstructed
        yield "reconstructed+recalibrated", bnprune.recalibrate(copy.deepcopy(reconstructed), images)


def cell(criterion: str, share: float, beds: Sequence[Bed]) -> dict[str, Any]:
    """Return what one criterion and one share of the MACs give: mean accuracies, and the comparison."""
    correct: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
    chosen, best = [], []
    for bed in beds:
        validation = {}
        for way, network in bed.recovered(bed.plan(criterion, share)):
            correct[way].append(hits(network, bed.test))
            if way.startswith("reconstructed"):
                validation[way] = float(hits(network, bed.validation).mean())
        chosen.append(max(validation, key=lambda way: validation[way]))
        best.append(correct[chosen[-1]][-1])
    means = {way: float(torch.stack(found).mean()) for way, found in correct.items()}
    difference = torch.stack(best).mean(0) - torch.stack(correct["recalibrated"]).mean(0)
    margin = 1.96 * float(difference.std()) / math.sqrt(len(difference))
    dense, got = sum(bed.dense_accuracy for bed in beds) / len(beds), float(torch.stack(best).mean())
    lost = dense - means["recalibrated"]
    back = (got - means["recalibrated"]) / lost if lost > 0 else None
    return {
        "criterion": criterion,
        "macs": share,
        "accuracy": means,
        "by_seed": by_seed(correct),
        "chosen": chosen,
        "brought_back": back,
        "difference": float(difference.mean()),
        "margin": margin,
        "significantly_behind": float(difference.mean()) + margin < 0,
    }


def finetuned(bed: Bed, network: nn.Module, epochs: int) -> nn.Module:
    """Return a network after a short fine-tuning, the same for every way of recovery."""
    settings = FinetuneConfig(epochs=epochs, lr=0.01)
    job = TrainingJob(bed.splits, bed.config.data.batch_size, settings, torch.device("cpu"), bed.config.seed)
    state = begin(copy.deepcopy(network), job)
    train(state, job, None, NoLog(), lambda: False)
    return state.network


def tuned_cell(criterion: str, share: float, beds: Sequence[Bed], epochs: int) -> dict[str, Any]:
    """Return accuracies before and after the same fine-tuning, from a recalibrated and from a reconstructed network."""
    ways = ("recalibrated", "reconstructed+recalibrated")
    before: dict[str, list[torch.Tensor]] = {way: [] for way in ways}
    after: dict[str, list[torch.Tensor]] = {way: [] for way in ways}
    for bed in beds:
        for way, network in bed.recovered(bed.plan(criterion, share)):
            if way in ways:
                before[way].append(hits(network, bed.test))
                after[way].append(hits(finetuned(bed, network, epochs), bed.test))
    difference = torch.stack(after[ways[1]]).mean(0) - torch.stack(after[ways[0]]).mean(0)
    margin = 1.96 * float(difference.std()) / math.sqrt(len(difference))
    return {
        "criterion": criterion,
        "macs": share,
        "epochs": epochs,
        "before": by_seed(before),
        "after": by_seed(after),
        "difference": float(difference.mean()),
        "margin": margin,
    }


def by_seed(correct: dict[str, list[torch.Tensor]]) -> dict[str, list[float]]:
    return {way: [float(found.mean()) for found in networks] for way, networks in correct.items()}


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    back = "" if entry["brought_back"] is None else f"{entry['brought_back']:.0%}"
    interval = f"{100 * entry['difference']:+.1f} ± {100 * entry['margin']:.1f}"
    accuracies = (f"{100 * entry['accuracy'][way]:.1f}" for way in WAYS)
    return entry["criterion"], f"{entry['macs']:g}", *accuracies, back, interval


def collected(split: Split) -> Images:
    """Return all images of a split, which are evaluated many times."""
    parts = list(split.serve(torch.arange(len(split)).split(256), torch.device("cpu")))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def hits(model: nn.Module, data: Images) -> torch.Tensor:
    """Return 1 for every image that is classified correctly, 0 for the others, in float64."""
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(images).argmax(1) for images in data[0].split(256)])
    return (guesses == data[1]).double()


# -- networks with random weights --------------------------------------------------------------------------------------


def zoo(names: Sequence[str], count: int, pixels: int, out: Path) -> int:
    """Measure errors, time and memory on torchvision networks; return the exit status."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = measured(name, count, pixels)
        print(f"{name}: {found[name]}", flush=True)
        out.write_text(json.dumps(found, indent=1))
    columns = ["network", "error: plain", "reconstructed", "refitted", "passes", "of 512", "peak, MB", "limits"]
    show_rows(columns, [
        (name, f"{f['plain']:.3f}", f"{f['reconstructed']:.3f}", f"{f['refitted']} of {f['layers']}",
         f"{f['passes']:.1f}", f"{f['passes_of_512']:.1f}", f"{f['peak_bytes'] / 1e6:.0f}",
         "met" if f["met"] else "not met")
        for name, f in found.items()
    ])  # fmt: skip
    print(f"{count} images of noise, {pixels}x{pixels}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    return 0 if all(f["met"] for f in found.values()) else 1


def measured(name: str, count: int, pixels: int) -> dict[str, Any]:
    """Reconstruct half of the MACs of one network with random weights and random γ in [0.2, 1]."""
    torch.manual_seed(0)
    dense = bnprune.build(bnprune.ModelSpec(f"torchvision/{name}")).eval()
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1)
    batches = list(torch.randn(max(count, 2 * ZOO_BATCH), 3, pixels, pixels).split(ZOO_BATCH))
    bnprune.recalibrate(dense, batches)  # else, activations of random weights vanish or overflow
    result = bnprune.prune(dense, batches[0][:1], macs=0.5, criterion="uniform", proof=False)
    slim, expected = result.model.eval(), run(dense, batches)
    plain = error(slim, batches, expected)
    dense_s = cpu_seconds(lambda: run(dense, batches))
    half = len(batches) // 2
    half_s = cpu_seconds(lambda: reconstruct(dense, copy.deepcopy(slim), result.plan, batches[:half]))
    before = reset_peak()
    layers: list[Reconstruction] = []
    seconds = cpu_seconds(lambda: layers.extend(reconstruct_layers(dense, slim, result.plan, batches)))
    peak, after = resident("VmHWM") - before, error(slim, batches, expected)
    per_batch = max(0.0, seconds - half_s) / (len(batches) - half)
    full = DEFAULT_IMAGES / ZOO_BATCH
    passes_of_512 = (seconds + (full - len(batches)) * per_batch) / (dense_s / len(batches) * full)
    met = after < plain and passes_of_512 <= MOST_PASSES and peak <= MOST_MEMORY
    return {
        "plain": plain,
        "reconstructed": after,
        "passes": seconds / dense_s,
        "passes_of_512": passes_of_512,
        "peak_bytes": peak,
        "seconds": seconds,
        "dense_seconds": dense_s,
        "layers": len(layers),
        "refitted": sum(not layer.reason for layer in layers),
        "met": met,
        "reasons": {layer.site: layer.reason for layer in layers if layer.reason},
    }


def run(model: nn.Module, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of a call, which other programs disturb less than its duration."""
    start = time.process_time()
    function()
    return time.process_time() - start


def error(model: nn.Module, batches: Sequence[torch.Tensor], expected: torch.Tensor) -> float:
    """Return the mean square error of the outputs over their variance."""
    return float((run(model, batches) - expected).square().mean() / expected.var(0, unbiased=False).mean())


def reset_peak() -> int:
    """Start a new peak of resident memory; return what is resident now, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """Return a figure of the kernel about this process, in bytes."""
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[1]) * 1024


if __name__ == "__main__":
    main()
