"""Gates at equal score thresholds: how many more channels they allow to remove, and their cost.

    python scripts/bench_gates.py [--input 224] [--threads 2] [--share 0.5]

Both variants remove exactly the channels whose score is below one threshold, the `--share` quantile of all |γ| of the
network (random weights, |γ| drawn uniformly from (0, 1), seed 0): without gates, a channel of a stream is removed if
all BatchNorms coupled to it are below; with gates, each BatchNorm loses its own channels. `slices` is the gated network
with every gather replaced by a slice of the same width: not the same function, but what an order of the stream in which
every gate is one slice would cost at best.
"""

from __future__ import annotations

import argparse
import copy
import platform

import numpy as np
import torch
import torchvision
from torch import nn

import bnprune
from bnprune.pruning.gates import ReadGate, WriteGate
from bnprune.pruning.latency import latencies
from bnprune.pruning.pruner import score_network
from bnprune.pruning.request import Request


def randomized(name: str) -> nn.Module:
    """Build a network with scale factors drawn uniformly from (0, 1)."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    return model.eval()


def cut(model: nn.Module, x: torch.Tensor, coupling: str, threshold: float) -> bnprune.PruningResult:
    """Remove the channels whose score lies below a threshold."""
    found = score_network(model, x, Request(coupling=coupling))
    prunable = found.graph.free & (found.graph.gamma_count > 0)
    below = prunable & (found.scores < threshold)
    share = found.graph.gamma_count[below].sum() / found.graph.gamma_count[prunable].sum()
    return bnprune.prune(model, x, ratio=float(share), coupling=coupling)


class Slice(nn.Module):
    """As many channels as a read gate picks, without picking."""

    def __init__(self, gate: ReadGate) -> None:
        super().__init__()
        self.norm = gate.norm
        self.width = len(gate.index)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Slice, then normalise."""
        return self.norm(x[:, : self.width])


class Append(nn.Module):
    """As many channels as a write gate makes, without sorting them."""

    def __init__(self, gate: WriteGate) -> None:
        super().__init__()
        self.norm = gate.norm
        self.register_buffer("fill", gate.fill.view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, then append."""
        x = self.norm(x)
        return torch.cat([x, self.fill.expand(len(x), -1, *x.shape[2:])], 1)


def sliced(model: nn.Module) -> nn.Module:
    """Replace every gather by a slice."""
    model = copy.deepcopy(model)
    for name, gate in list(model.named_modules()):
        if isinstance(gate, ReadGate | WriteGate):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Slice(gate) if isinstance(gate, ReadGate) else Append(gate))
    return model


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "densenet121"])
    parser.add_argument("--input", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--share", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, batch {options.batch}")
    print(
        f"{'network':12} {'share':>5} {'cut':7} {'gates':>5} {'channels':>8} {'MACs':>6} {'latency':>8} {'per MAC':>8}"
    )
    x = torch.rand(options.batch, 3, options.input, options.input)
    for name in options.models:
        model = randomized(name)
        gammas = [m.weight.detach().numpy() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for share in options.share:
            threshold = float(np.quantile(np.concatenate(gammas), share))
            shared, gated = (cut(model, x, coupling, threshold) for coupling in ("shared", "gates"))
            slices = sliced(gated.model)
            seconds = latencies([model, shared.model, gated.model, slices], (x,))
            for row, result, taken in zip(
                ("shared", "gathers", "slices"), (shared, gated, gated), seconds[1:], strict=True
            ):
                report = result.report
                macs, time = report.macs_after / report.macs_before, taken / seconds[0]
                print(
                    f"{name:12} {share:5.2f} {row:7} {len(result.plan.gates):5d} {report.ratio_realised:8.1%} "
                    f"{macs:6.1%} {time:8.1%} {time / macs:8.2f}"
                )


if __name__ == "__main__":
    main()
