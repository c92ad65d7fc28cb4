"""Does latency follow MACs? Slim over dense latency against the share of the MACs that is left, on the CPU.

    python scripts/bench_latency.py                                     # batch 1 and 8, eager and ONNX Runtime
    python scripts/bench_latency.py --networks resnet18 --batches 1     # a part of it
    python scripts/bench_latency.py --quick                             # without the search for a latency

torchvision networks with random weights and random scale factors, one thread, `round_to` 8, each cut to half of its
MACs in three ways: the lowest γ first, uniform width, and the lowest loss per millisecond of a latency profile, which
is measured first. A last one is cut to half of the dense latency with the profile, as `prune --latency` does.

All networks run in turn, so that other programs on the machine slow all of them. Ratios are made within a round, of the
time of the thread (which stands still while other programs run), and their median counts.

excess      the latency ratio over the MACs ratio, which should be at most 1.15 ("!" marks higher ones)
wall        the same by the clock on the wall
layers      the share of the dense latency that convolutions and linear layers take; the rest (normalisation,
            activations, additions, pooling) is bound by memory, and follows the widths rather than their products
possible    the excess if layers followed the MACs exactly, and the rest the elements that it writes
slow layers those that take longest in relation to their MACs

The excess with `--quick`, 224 x 224, on loaded machines with AVX-512 (2 cores, load 7 at batch 1 and 4 at batch 8;
repetitions differ by up to 0.06). Cut by the gain per millisecond, half of the settings are within the bar at batch 1.
The figures of batch 8 are of an older version of this script, which ranked by uniform width in all columns: γ and
uniform are the same cut there, and the last column shows what the profile adds to uniform width.

batch 1         eager                                      ONNX Runtime
                γ       uniform   gain per ms              γ       uniform   gain per ms
resnet18        1.35    1.35      1.19                     1.17    1.19      1.09
resnet50        1.15    1.21      1.17                     1.12    1.15      1.06
vgg16_bn        1.23    1.26      1.09                     1.15    1.12      1.06
mobilenet_v2    1.35    1.38      1.34                     1.27    1.30      1.22

batch 8         eager                                      ONNX Runtime
                γ       uniform   gain per ms              γ       uniform   gain per ms
resnet18        1.20    1.19      0.95                     1.13    1.13      1.00
resnet50        1.17    1.19      1.09                     1.14    1.13      1.02
vgg16_bn        1.24    1.28      0.94                     1.05    1.05      1.00
mobilenet_v2    0.99    0.97      0.90                     1.28    1.29      0.95

The kernels of 3 x 3 convolutions work on blocks of 16 channels, so that widths of 8 more cost a whole block. In eager
mode, a quarter to a third of the time is the rest; of resnet18, the max pooling alone takes a fifth. mobilenet_v2 makes
many short calls: at 32 x 32, with a fiftieth of the MACs, it still takes a fifth of its time (3.1 of 15.2 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnprune
from bnprune.pruning.cost import cost
from bnprune.pruning.cost_model import CostModel
from bnprune.pruning.draft_plan import DraftPlan, ScoredNetwork
from bnprune.pruning.latency import in_turn, thread_clock
from bnprune.pruning.latency_model import LatencyModel
from bnprune.pruning.latency_order import by_gain
from bnprune.pruning.latency_profile import LatencyProfile
from bnprune.pruning.latency_search import LatencyKnowledge
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.pruner import prune_as_requested
from bnprune.pruning.request import Request
from bnprune.pruning.select import by_cost
from bnprune.pruning.surgery import copy_weights
from bnprune.timing.backends import Backend, Setting, forward_pass
from bnprune.timing.profile import network_ms, profile_network

NETWORKS = "resnet18,resnet50,vgg16_bn,mobilenet_v2"
HALF = 0.5
BAR = 1.15
SLOW_LAYERS = 3


def build(name: str) -> nn.Module:
    """Build a network whose scale factors are all different."""
    torch.manual_seed(0)
    model = bnprune.build(bnprune.ModelSpec(f"torchvision/{name}")).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.05, 1)
    return model


def cut_by_gain(model: nn.Module, x: torch.Tensor, profile: LatencyProfile, round_to: int) -> nn.Module:
    """Cut to half of the MACs, in the order of the loss per millisecond."""
    scored = score_network(model, x, Request(macs=HALF, round_to=round_to, criterion="gamma"))

    def select(scored: ScoredNetwork, candidates: Any) -> Any:
        ordered = by_gain(scored.graph, scored.scores, candidates, LatencyModel(scored.graph, profile))
        macs = CostModel(scored.graph, model).macs
        return by_cost(scored.graph, ordered, cost=macs, target=HALF * scored.cost_of("macs"))

    draft: DraftPlan = plan_cut(model, x, scored, select)
    return copy_weights(draft.meta_slim, draft.plan, model)


def possible(model: nn.Module, x: torch.Tensor, profile: LatencyProfile, slim: nn.Module) -> float:
    """Return the latency ratio if the time of the layers followed the MACs, and that of the rest the elements."""
    layers = layer_ms(profile) / profile.total_ms
    macs = cost(slim, x).macs / cost(model, x).macs
    return layers * macs + (1 - layers) * elements(slim, x) / elements(model, x)


def elements(model: nn.Module, x: torch.Tensor) -> int:
    """Return the number of elements that BatchNorms write in one forward pass."""
    counts: list[int] = []
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(lambda _, __, y: counts.append(y.numel())) for norm in norms]
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def layer_ms(profile: LatencyProfile) -> float:
    """Return the milliseconds of all layers at their full widths."""
    return sum(profile.tables[layer.table].ms[-1][-1] for layer in profile.layers)


def ratios(passes: list[Callable[[], object]], seconds: float) -> tuple[float, list[float], list[float]]:
    """Return the milliseconds of the first pass, and the ratios of the others to it by the thread's and the wall clock.

    Runs in turn for some seconds. Each ratio is the median over rounds.
    """
    both: dict[str, list[list[float]]] = {}
    with torch.inference_mode():
        for name, clock in (("thread", thread_clock(1)), ("wall", time.perf_counter)):
            in_turn(passes, 2)
            started, rounds = time.perf_counter(), [[] for _ in passes]
            while len(rounds[0]) < 7 or (time.perf_counter() - started < seconds and len(rounds[0]) < 300):
                for known, new in zip(rounds, in_turn(passes, 1, clock=clock), strict=True):
                    known += new
            both[name] = rounds
    found = {
        name: [statistics.median(b / a for a, b in zip(first, other, strict=True)) for other in others]
        for name, (first, *others) in both.items()
    }
    return 1e3 * statistics.median(both["thread"][0]), found["thread"], found["wall"]


def measure(
    name: str, size: int, backend: Backend, batch: int, seconds: float, round_to: int, *, quick: bool
) -> list[dict[str, Any]]:
    """Print and return the figures of one network in one setting."""
    model, setting = build(name), Setting((3, size, size))
    x = setting.inputs(1)
    started = time.perf_counter()
    profile = profile_network(model, setting, batch, backend, {}, {})
    profiled = time.perf_counter() - started
    measured = partial(network_ms, setting=setting, batch=batch, backend=backend, own_time=True)
    started = time.perf_counter()
    slim = {
        "γ, half of the MACs": bnprune.prune(
            model, x, macs=HALF, round_to=round_to, criterion="gamma", proof=False
        ).model,
        "uniform, half of the MACs": bnprune.prune(
            model, x, macs=HALF, round_to=round_to, criterion="uniform", proof=False
        ).model,
        "gain per ms, half of the MACs": cut_by_gain(model, x, profile, round_to),
    }
    if not quick:
        request = Request(latency_ms=HALF * measured(model), round_to=round_to)
        found = prune_as_requested(model, x, request, proof=False, latency=LatencyKnowledge(profile, measured))
        slim["gain per ms, half of the latency"] = found.model
    searched = time.perf_counter() - started
    inputs = setting.inputs(batch)
    passes = [forward_pass(network, backend, setting, inputs) for network in (model, *slim.values())]
    dense, own, wall = ratios(passes, seconds)
    print(
        f"{name}, {backend}, batch {batch}, {size} x {size}: dense {dense:.1f} ms, "
        f"layers {layer_ms(profile) / profile.total_ms:.0%}, steps {steps(profile)}, "
        f"profile {profiled:.0f} s, cuts {searched:.0f} s; slow layers: {slow_layers(model, x, profile)}"
    )
    rows = []
    for (label, network), thread, clock in zip(slim.items(), own, wall, strict=True):
        macs = cost(network, x).macs / cost(model, x).macs
        row = {"network": name, "backend": backend, "batch": batch, "size": size, "cut": label, "macs": macs}
        row |= {"latency": thread, "excess": thread / macs, "wall": clock / macs, "dense_ms": dense}
        row |= {"possible": possible(model, x, profile, network) / macs}
        rows.append(row)
        print(
            f"    {label:34} MACs {macs:.3f}  latency {thread:.3f}  excess {thread / macs:.2f}"
            f"{' ' if thread / macs <= BAR else '!'}  wall {clock / macs:.2f}  possible {row['possible']:.2f}",
            flush=True,
        )
    return rows


def steps(profile: LatencyProfile) -> str:
    """Return the steps (inputs x outputs) of latency, with the share of the time of the layers that have them."""
    shares: dict[str, float] = defaultdict(float)
    for layer in profile.layers:
        table = profile.tables[layer.table]
        shares[f"{table.steps.inputs} x {table.steps.outputs}"] += table.ms[-1][-1] / layer_ms(profile)
    return " ".join(f"{step} ({share:.0%})" for step, share in sorted(shares.items(), key=lambda item: -item[1]))


def slow_layers(model: nn.Module, x: torch.Tensor, profile: LatencyProfile) -> str:
    """Return the layers with the largest share of the time over their share of the MACs, of those that take 2%."""
    graph = score_network(model, x, Request(ratio=0.5)).graph
    macs = {work.site: work.factor * size(work.inputs) * size(work.outputs) for work in graph.traces["eval"].work}
    whole, total = sum(macs.values()), layer_ms(profile)
    shares = {layer.name: profile.tables[layer.table].ms[-1][-1] / total for layer in profile.layers}
    known = {name: share / (macs[name] / whole) for name, share in shares.items() if share > 0.02}
    worst = sorted(known, key=lambda name: -known[name])[:SLOW_LAYERS]
    return ", ".join(
        f"{name} {shares[name]:.0%} of the time for {macs[name] / whole:.0%} of the MACs" for name in worst
    )


def size(axis: Any) -> int:
    """Return the width of an axis."""
    return axis if isinstance(axis, int) else len(axis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--backends", default="eager,onnxruntime")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="of measuring, per clock and setting")
    parser.add_argument("--quick", action="store_true", help="leave out the search for half of the latency")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{os.cpu_count()} CPU cores{load}, torch {torch.__version__}, one thread, round_to {args.round_to}")
    backends: list[Any] = args.backends.split(",")
    for name in args.networks.split(","):
        for batch in map(int, args.batches.split(",")):
            for backend in backends:
                rows = measure(name, args.size, backend, batch, args.seconds, args.round_to, quick=args.quick)
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
