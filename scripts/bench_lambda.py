"""Measure if `lambda: auto` brings the wanted share of scale factors to zero, on digits and (if given) CIFAR-10.

    python scripts/bench_lambda.py                        # vgg11, resnet20 and densenet40 on digits
    python scripts/bench_lambda.py --cifar10 DIR          # and on 1,500 images of DIR/train/CLASS/*, DIR/test/CLASS/*
    python scripts/bench_lambda.py --networks resnet20 --penalties l1 group-lasso --targets 0.5 0.7

Nothing is tuned: all trainings have the same 30 epochs of SGD. Images are 16x16, vgg11 has a quarter of its width,
densenet40 has growth 4. "reached" is the share of the BatchNorm scale factors with |γ| below 0.01, of those whose
channels can go, as "wanted" is; "of all" is their share of all scale factors. "cut" is the test accuracy without
fine-tuning after as large a share of the channels is removed, "recovered" that of the network that `run` would keep:
compensated, recalibrated, both or neither, by validation accuracy. Layers that share a stream of channels lose the same
ones, except in DenseNet, whose layers get gates, as in the paper.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import bnprune
from bnprune.channels.trace_network import trace
from bnprune.channels.union_find import NO_CHANNEL
from bnprune.cli.render.progress import RichDisplay
from bnprune.cli.render.tables import show_rows
from bnprune.config.schema import PipelineConfig, TrainConfig
from bnprune.data import Splits, load_data
from bnprune.models.zoo import ModelSpec, set_gamma
from bnprune.recovery.recover import recover
from bnprune.runs.training_stage import NoLog
from bnprune.training.evaluate import evaluate, validation_score
from bnprune.training.loop import TrainingJob, begin, train
from bnprune.training.penalties.gamma import gamma_statistics, scale_factors
from bnprune.training.penalties.structured import gamma_units
from bnprune.training.penalties.table import make_penalty

KWARGS: dict[str, dict[str, Any]] = {"vgg11": {"width": 0.25}, "resnet20": {}, "densenet40": {"growth": 4}}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """One training, and the cut that follows."""

    data: str
    network: str
    penalty: str
    wanted: float
    reached: float
    of_all: float
    split: bool
    accuracy: float
    cut: float
    recovered: float
    macs: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(KWARGS), choices=list(KWARGS))
    parser.add_argument("--penalties", nargs="+", default=["l1"])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7])
    parser.add_argument("--cifar10", type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets: dict[str, dict[str, Any]] = {"digits": {"name": "digits"}}
    if args.cifar10:
        sets["cifar10"] = {"name": "imagefolder", "root": args.cifar10, "limit": 1500, "image_size": 16}
    found = []
    display = RichDisplay()
    for name, data in sets.items():
        splits = load_data(PipelineConfig.model_validate({"model": {"name": "mlp"}, "data": data}).data)
        for network in args.networks:
            for penalty in args.penalties:
                for target in args.targets:
                    found.append(measure(name, splits, network, penalty, target, args.epochs, args.seed))
                    display.note(str(found[-1]))
                    if args.out:
                        args.out.write_text(json.dumps([asdict(one) for one in found], indent=1))
    columns = ["data", "network", "penalty", "wanted", "reached", "of all", "split", "accuracy", "cut", "recovered"]
    show_rows([*columns, "MACs left"], [shown(one) for one in found])
    print(f"seed {args.seed}, {args.epochs} epochs, torch {torch.__version__}, 1 thread")


def measure(
    data: str, splits: Splits, network: str, penalty: str, target: float, epochs: int, seed: int
) -> Outcome:  # fmt: skip
    started = time.perf_counter()
    coupling = "gates" if network == "densenet40" else "shared"
    config = PipelineConfig.model_validate({
        "model": {"name": network}, "data": {"name": "digits"},
        "train": {"epochs": epochs, "sparsity": {"penalty": penalty}},
        "prune": {"ratio": target, "coupling": coupling},
    })  # fmt: skip
    assert isinstance(config.train, TrainConfig)
    torch.manual_seed(seed)
    kwargs = {"num_classes": splits.classes, "in_channels": splits.shape[0], **KWARGS[network]}
    model = bnprune.build(ModelSpec(name=network, kwargs=kwargs))
    set_gamma(model, 0.5)
    task = TrainingJob(splits, 64, config.train, CPU, seed)
    state = begin(model, task)
    pull, _ = make_penalty(model, config.train, config.train.sparsity, task.updates_per_epoch,
                           example_inputs=splits.example, prune=config.prune)  # fmt: skip
    train(state, task, pull, NoLog(), lambda: False)
    gamma = gamma_statistics(scale_factors(model), config.train.sparsity.epsilon)
    can_go = gamma_units(model, trace(model, splits.example, coupling=coupling)) != NO_CHANNEL
    dead = torch.cat([values.detach().abs() for values in scale_factors(model)]) < config.train.sparsity.epsilon
    result = bnprune.prune(model, splits.example, ratio=target, coupling=coupling)
    cut = evaluate(result.model, splits.test, CPU).value
    recovery = recover(
        model, result.model, result.plan, splits, CPU, score=validation_score(splits, CPU), batch_size=64
    )
    return Outcome(
        data, network, penalty, target, float(dead[can_go].float().mean()), gamma.below, gamma.split,
        evaluate(model, splits.test, CPU).value, cut, evaluate(recovery.model, splits.test, CPU).value,
        result.report.macs_after / result.report.macs_before, time.perf_counter() - started,
    )  # fmt: skip


def shown(one: Outcome) -> list[str]:
    counted = (f"{one.wanted:.0%}", f"{one.reached:.1%}", f"{one.of_all:.1%}", "yes" if one.split else "no")
    shares = (one.accuracy, one.cut, one.recovered, one.macs)
    return [one.data, one.network, one.penalty, *counted, *(f"{share:.1%}" for share in shares)]


if __name__ == "__main__":
    main()
