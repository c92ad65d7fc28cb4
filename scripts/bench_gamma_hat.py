"""What γ̂ saves: how much a cut changes the output, with the layers without a BatchNorm ranked by γ̂, and without.

    PYTHONPATH=. python scripts/bench_gamma_hat.py [--ratio 0.3] [--seeds 15] [--input 16] [--width 3] [--timm] [NAME]

Each network gets |γ| drawn uniformly from [0.2, 1] and trained-like weights elsewhere: the filters of a layer differ in
norm (lognormal, σ = 0.5), and running statistics are those of the inputs, which are smooth random images. The change is
the norm of the difference between the outputs of the dense and the slim network on other images, relative to
the norm of the dense one's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.channels.graph import ChannelGraph
from bnprune.config.tables import CRITERIA
from bnprune.pruning import scores
from tests.streams import STREAMS

TIMM = ["starnet_s1", "coatnet_nano_rw_224", "coatnet_bn_0_rw_224", "inception_resnet_v2"]


def gamma_only(graph: ChannelGraph, tensors: scores.Tensors, reduce: scores.Reduce = "max") -> scores.Scores:
    """|γ| alone, without γ̂."""
    return scores.gamma(replace(graph, deviations=()), tensors, reduce)


CRITERIA["gamma-only"] = gamma_only


def images(count: int, size: int, seed: int) -> torch.Tensor:
    """Draw smooth random images, standardised."""
    generator = torch.Generator().manual_seed(seed)
    scales = [
        torch.randn(count, 3, max(size // step, 2), max(size // step, 2), generator=generator) for step in (8, 4, 1)
    ]
    mixed = sum(F.interpolate(noise, (size, size), mode="bilinear") for noise in scales)
    return mixed / mixed.std()


def trained_like(model: nn.Module, seed: int, x: torch.Tensor) -> nn.Module:
    """Set γ, β, filters and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
                module.weight.uniform_(0.2, 1, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.momentum = None
                module.reset_running_stats()
            elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                norm = torch.randn(len(module.weight), generator=generator).mul(0.5).exp()
                weight = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
                module.weight.copy_(weight * norm.view(-1, *[1] * (module.weight.dim() - 1)))
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.eval()
        model(x)
    return model.eval()


def change(model: nn.Module, x: torch.Tensor, ratio: float, criterion: str) -> tuple[float, float]:
    """Cut a network; return the relative change of its output, and the seconds of scoring."""
    started = time.perf_counter()
    slim = bnprune.prune(model, x[:1], ratio=ratio, criterion=criterion, proof=False).model
    seconds = time.perf_counter() - started
    with torch.no_grad():
        before, after = model(x), slim(x)
    return float((after - before).norm() / before.norm()), seconds


def builders(names: list[str], width: int, size: int, *, with_timm: bool) -> dict[str, Callable[[], nn.Module]]:
    """Return the functions that build the networks asked for, by name."""

    def of_timm(name: str) -> Callable[[], nn.Module]:
        import timm

        options = {"img_size": size} if name.startswith("coatnet") else {}
        return lambda: timm.create_model(name, **options)

    if with_timm:
        return {name: of_timm(name) for name in names or TIMM}
    return {name: partial(make, width) for name, make in STREAMS.items() if not names or name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--input", type=int, default=16)
    parser.add_argument("--width", type=int, default=3, help="times the width of the networks in tests/streams.py")
    parser.add_argument("--timm", action="store_true", help="networks of timm instead")
    args: Any = parser.parse_args()
    print(f"{'network':24} {'γ alone':>8} {'with γ̂':>8}  better in  seconds")
    for name, make in builders(args.names, args.width, args.input, with_timm=args.timm).items():
        pairs, took = [], []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            model = trained_like(make(), seed, images(16, args.input, seed))
            x = images(16, args.input, seed + 1000)
            results = [change(model, x, args.ratio, criterion) for criterion in ("gamma-only", "gamma")]
            pairs.append([figure for figure, _ in results])
            took.append([seconds for _, seconds in results])
        before, after = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        better = sum(pair[1] < pair[0] for pair in pairs)
        seconds = " ".join(f"{statistics.median(t[side] for t in took):.2f}" for side in (0, 1))
        print(f"{name:24} {before:8.3f} {after:8.3f}  {better} of {len(pairs)}     {seconds}", flush=True)


if __name__ == "__main__":
    main()
