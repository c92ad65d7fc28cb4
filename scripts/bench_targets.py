"""Targets on real networks: are MACs met from below, multiples kept, floors and exclusions held, milliseconds met?

    python scripts/bench_targets.py            # costs and constraints, one thread
    python scripts/bench_targets.py --latency  # milliseconds, measured again; leave the machine alone meanwhile

torchvision architectures with random weights and scale factors, 224 x 224 images. MACs are counted with
`torch.utils.flop_counter`, not by bnprune.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bnprune
from bnprune.pruning.latency import latencies

NETWORKS = (
    *("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vgg11_bn", "efficientnet_b0"),
    *("shufflenet_v2_x1_0", "regnet_y_400mf"),
)
X = torch.zeros(1, 3, 224, 224)


def build(name: str) -> nn.Module:
    """Build a network whose scale factors are all different."""
    torch.manual_seed(0)
    model = bnprune.build(bnprune.ModelSpec(f"torchvision/{name}")).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.05, 1)
    return model


def macs(model: nn.Module) -> int:
    """Count with PyTorch's own counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(X)
    return counter.get_total_flops() // 2


def costs(name: str) -> bool:
    """Print the error of the MACs targets and the effect of the constraints; return True if all are met."""
    model = build(name)
    whole = macs(model)
    shares = {target: macs(bnprune.prune(model, X, macs=target).model) / whole for target in (0.7, 0.5, 0.3)}
    near = all(target - 0.015 < share <= target for target, share in shares.items())
    rounded = bnprune.prune(model, X, macs=0.5, round_to=8)
    odd = [layer.name for layer in rounded.report.layers if layer.before % 8 == 0 and layer.after % 8]
    floor = bnprune.prune(model, X, ratio=0.97, min_channels=4)
    thin = [layer.name for layer in floor.report.layers if layer.after < min(4, layer.before)]
    convolutions = [layer.name for layer in floor.report.layers if layer.kind == "conv" and layer.after < layer.before]
    kept = convolutions[len(convolutions) // 2]
    excluded = bnprune.prune(model, X, macs=0.6, exclude=[kept])
    moved = [layer.name for layer in excluded.report.layers if layer.name == kept and layer.after != layer.before]
    print(
        f"{name:20}  " + "  ".join(f"{share:.4f}" for share in shares.values())
        + f"   round_to 8: {macs(rounded.model) / whole:.4f}, {len(odd)} odd   ratio 0.97, floor 4: "
        f"{floor.report.ratio_realised:.4f}, {len(thin)} thinner   exclude {kept}: {'kept' if not moved else 'CUT'}",
        flush=True,
    )  # fmt: skip
    return near and not odd and not thin and not moved


def seconds(run: Callable[[], Any]) -> float:
    """Time a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def price(name: str, repeats: int = 7) -> float:
    """Return the time of a MACs target over that of a ratio: the median of pairs."""
    model = build(name)
    bnprune.prune(model, X, ratio=0.5, proof=False)
    pairs = [
        seconds(lambda: bnprune.prune(model, X, macs=0.5, proof=False))
        / seconds(lambda: bnprune.prune(model, X, ratio=0.5, proof=False))
        for _ in range(repeats)
    ]
    return statistics.median(pairs)


def milliseconds(name: str, share: float) -> bool:
    """Ask for a share of the dense latency, measure the result again, and print both."""
    model = build(name)
    (dense,) = latencies([model], ((X,), {}), runs=30)
    budget = 1000 * dense * share
    result = bnprune.prune(model, X, latency_ms=budget)
    again = 1000 * latencies([result.model], ((X,), {}), runs=50)[0]
    kept = result.report.macs_after / result.report.macs_before
    print(
        f"{name:20}  dense {1000 * dense:6.2f} ms  asked {budget:6.2f}  found {result.report.target.realised:6.2f}  "
        f"measured again {again:6.2f} ({again / budget - 1:+.1%})  MACs {kept:.3f}",
        flush=True,
    )
    return abs(again / budget - 1) <= 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=NETWORKS, metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.latency:
        names = args.only if args.only != NETWORKS else ("resnet18", "mobilenet_v2")
        met = [milliseconds(name, share) for name in names for share in (0.7, 0.5, 0.3)]
    else:
        print(f"{'network':20}  MACs kept of 0.7, 0.5 and 0.3")
        met = [costs(name) for name in args.only]
        print(f"resnet50, a MACs target over a ratio: {price('resnet50'):.2f} x the time (median of 7)")
    print(f"{sum(met)} of {len(met)} as they should be")


if __name__ == "__main__":
    main()
