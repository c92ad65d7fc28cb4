"""Prune one network with one tool, and print the results so far, as a line of JSON, after every step.

    python scripts/bench_one.py torchvision/resnet50 --tool bnprune

`bench_zoo.py` does this for whole zoos. Weights are random, nothing is downloaded; scale factors γ are drawn at random
so that ranks are not tied. Measured, on one thread: wall-clock seconds from model to slim model (first a tiny network,
untimed, to import everything; the median of nine if one takes less than a second, of three below five), and the
peak of resident memory above the loaded model. Then, for bnprune, the float64 proof; for both, a training
step of the slim network, which must give a gradient to every parameter that had one before. With `--untimed` the
network is pruned once, with its proof, and nothing is measured: what a sweep for correctness needs, several networks at
a time.

Torch-Pruning runs its lightest pruner (`BasePruner`) with `BNScaleImportance` and global ranking, without the layers
that its own torchvision example leaves out. "pruned" there means that the slim network still runs, no more.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import bnprune
from bnprune.pruning.gates import ReadGate, WriteGate, gated_name

RATIO = 0.5
WITHOUT = "no BatchNorm"
MB = 1e6
Inputs = tuple[Any, ...]
Prune = Callable[[nn.Module, Inputs], tuple[nn.Module, dict[str, Any]]]


def build(name: str) -> nn.Module:
    """Build a network by name: torchvision/NAME, timm/NAME or deep/BLOCKS."""
    source, _, short = name.partition("/")
    if source == "deep":
        return deep(int(short))
    small = {} if kind_of(name) != "detection" or "ssd" in short else {"min_size": 160, "max_size": 320}
    if "rcnn" in short:  # few boxes, for the heads run once per box, but some, though the weights are random
        small |= {"rpn_post_nms_top_n_test": 50, "rpn_post_nms_top_n_train": 50}
        small |= {"box_detections_per_img": 10, "box_score_thresh": 0.0}
    return bnprune.build(bnprune.ModelSpec(name, kwargs=small))


def deep(blocks: int) -> nn.Module:
    """Build a ResNet of basic blocks in three stages, 16, 32 and 64 channels wide."""
    block = torchvision.models.resnet.BasicBlock
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for index in range(blocks):
        wider = 16 << (3 * index // blocks)
        shortcut = nn.Sequential(nn.Conv2d(width, wider, 1, 2, bias=False), nn.BatchNorm2d(wider))
        layers.append(block(width, wider, *((2, shortcut) if wider != width else ())))
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def kind_of(name: str) -> str:
    """Return the kind of a network: timm, deep, or the torchvision subpackage (classification has none)."""
    source, _, short = name.partition("/")
    if source != "torchvision":
        return source
    package = torchvision.models.get_model_builder(short).__module__.split(".")[2:-1]
    return package[0] if package else "classification"


def example(name: str, model: nn.Module, batch: int = 1) -> Inputs:
    """Return positional arguments of the forward pass."""
    kind = kind_of(name)
    if kind == "detection":
        return ([torch.rand(3, 160, 192) for _ in range(batch)],)
    if kind == "optical_flow":
        return torch.rand(batch, 3, 128, 128), torch.rand(batch, 3, 128, 128)
    if kind == "video":
        size = 224 if "s3d" in name else 112
        return (torch.randn(batch, 3, 16, size, size),)
    if kind == "timm":
        return (torch.randn(batch, *model.pretrained_cfg["input_size"]),)
    size = 32 if kind == "deep" else 299 if "inception_v3" in name else 224
    return (torch.randn(batch, 3, size, size),)


def targets(batch: int) -> list[dict[str, Any]]:
    """Return what any torchvision detector asks for in train mode: two objects per image."""
    boxes = torch.tensor([[20.0, 20.0, 90.0, 110.0], [60.0, 40.0, 150.0, 140.0]])
    keypoints = torch.cat([boxes[:, None, :2] + torch.rand(2, 17, 2) * 50, torch.ones(2, 17, 1)], 2)
    masks = torch.zeros(2, 160, 192, dtype=torch.uint8)
    masks[:, 50:100, 70:85] = 1
    one = {"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": masks, "keypoints": keypoints}
    return [one] * batch


def norms(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms of a network, frozen ones included."""
    kinds = (nn.modules.batchnorm._BatchNorm, torchvision.ops.FrozenBatchNorm2d)
    return [module for module in model.modules() if isinstance(module, kinds)]


def has_norms(name: str) -> bool:
    """Return True if a network has a BatchNorm; it is built without weights if possible."""
    try:
        with torch.device("meta"):
            return bool(norms(build(name)))
    except Exception:  # noqa: BLE001 - some constructors compute
        return bool(norms(build(name)))


def channels(model: nn.Module) -> int:
    """Count BatchNorm channels that have a scale factor."""
    return sum(norm.weight.numel() for norm in norms(model) if norm.weight is not None)


def run(args: argparse.Namespace) -> None:
    """Prune, prove and train one network."""
    if not has_norms(args.name):
        return emit(status=WITHOUT)
    model = build(args.name).eval()
    with torch.no_grad():
        for norm in norms(model):
            if norm.weight is not None:
                norm.weight.copy_(torch.rand(norm.weight.shape) * 0.95 + 0.05)
    inputs = example(args.name, model)
    emit(params_before=sum(p.numel() for p in model.parameters()), channels_before=channels(model))
    try:
        if args.untimed:
            slim = prove(model, inputs)
            emit(**facts_of(model, slim))
        else:
            slim = measure(model, inputs, args.tool, kind_of(args.name))
            if not args.quick:
                check(model, slim, inputs, args.tool)
        if not args.quick:
            step(args.name, model, slim)
    except Exception as error:  # noqa: BLE001 - the failure is the result
        emit(status=status_of(error), reason=reason_of(error))


def with_bnprune(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, dict[str, Any]]:
    """Prune with bnprune; return the slim network and what the report says."""
    result = bnprune.prune(model, inputs, ratio=RATIO, proof=False)
    return result.model, told_by(result.report)


def told_by(report: bnprune.Report) -> dict[str, Any]:
    """Return what a report says."""
    return {
        "ratio": report.ratio_realised,
        "macs_before": report.macs_before,
        "macs_after": report.macs_after,
        "steps": report.seconds,
        "notes": report.notes,
        "refusals": [str(refusal) for refusal in report.refusals[:5]],
    }


def with_peer(kind: str) -> Prune:
    """Return how to prune with Torch-Pruning, which cuts the network it is given."""
    import torch_pruning as tp

    def prune(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, dict[str, Any]]:
        importance, ignored = tp.importance.BNScaleImportance(), ignored_by_peer(kind, model)
        tp.pruner.BasePruner(
            model, inputs, importance, global_pruning=True, pruning_ratio=RATIO, ignored_layers=ignored
        ).step()
        return model, {}

    return prune


def ignored_by_peer(kind: str, model: nn.Module) -> list[nn.Module]:
    """Return what Torch-Pruning's own torchvision example leaves out (the heads of detectors, more or less)."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    heads = ("head", "rpn.head", "roi_heads", "backbone.fpn", "corr_block", "update_block", "mask_predictor")
    if kind in ("detection", "optical_flow"):
        known = dict(model.named_modules())
        layers += [known[name] for name in heads if name in known]
    return layers


def measure(model: nn.Module, inputs: Inputs, tool: str, kind: str) -> nn.Module:
    """Time the pruning and take its peak memory."""
    prune = with_bnprune if tool == "bnprune" else with_peer(kind)
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    prune(tiny, (torch.randn(1, 3, 8, 8),))
    seconds: list[float] = []
    cpu: list[float] = []
    while not seconds or len(seconds) < repeats(seconds[0]):
        target = model if tool == "bnprune" else copy.deepcopy(model).requires_grad_(True)
        before = reset_peak()
        started, cpu_started = time.perf_counter(), time.process_time()
        slim, facts = prune(target, inputs)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - cpu_started)
        if len(seconds) == 1:
            emit(peak_mb=(resident("VmHWM") - before) / MB)
    emit(
        seconds=statistics.median(seconds),
        cpu_seconds=statistics.median(cpu),  # the same, if nothing else runs on the machine
        **facts_of(model, slim),
        **facts,
    )
    return slim


def repeats(first: float) -> int:
    """Return the number of timings, given the seconds of the first: short ones are disturbed more by other programs."""
    return 9 if first < 1 else 3 if first < 5 else 1


def facts_of(model: nn.Module, slim: nn.Module) -> dict[str, Any]:
    """Return the size of the slim network, and the share of BatchNorm channels that went."""
    return {
        "slim_mb": sum(t.numel() * t.element_size() for t in (*slim.parameters(), *slim.buffers())) / MB,
        "params_after": sum(p.numel() for p in slim.parameters()),
        "share": 1 - channels(slim) / max(channels(model), 1),
    }


def reset_peak() -> int:
    """Start a new peak of resident memory; return what is resident now, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """Return a figure of the kernel about this process, in bytes."""
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[1]) * 1024


def check(model: nn.Module, slim: nn.Module, inputs: Inputs, tool: str) -> None:
    """Verify the result of bnprune; of the peer, check only that it runs."""
    if tool == "bnprune":
        prove(model, inputs)
        return
    for key, network in (("macs_before", model), ("macs_after", slim)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(*inputs)
        emit(**{key: counter.get_total_flops() // 2})
    emit(status="pruned")


def prove(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Prune with the proof; return the slim network."""
    size, result = shrinking(lambda x: bnprune.prune(model, x, ratio=RATIO), inputs)
    report = result.report
    emit(max_relative_error=report.max_relative_error, verify_seconds=report.seconds["verify"], proof_input=size)
    emit(**told_by(report), status="verified")
    slim: nn.Module = result.model
    return slim


def step(name: str, model: nn.Module, slim: nn.Module) -> None:
    """Train both networks for a step, and compare which parameters got a gradient."""
    batch = example(name, model, 2)
    if kind_of(name) == "detection":
        batch = (*batch, targets(2))
    who = "the original"
    try:
        _, had = shrinking(lambda x: trained(model, x), batch)
        who = "the slim network"
        _, has = shrinking(lambda x: trained(slim, x), batch)
        gated = {name for name, module in slim.named_modules() if isinstance(module, ReadGate | WriteGate)}
        missing = sorted({gated_name(name, gated) for name in had} - has)
        emit(train=f"no gradient: {', '.join(missing[:3])}" if missing else "ok")
    except Exception as error:  # noqa: BLE001 - a network that does not train is a result
        emit(train=f"{who} does not train: {reason_of(error)}")


def trained(model: nn.Module, batch: Inputs) -> set[str]:
    """Run a training step; return the names of the parameters that got a gradient."""
    torch.manual_seed(0)
    model.train().zero_grad(set_to_none=True)
    outputs = [t for t in pytree.tree_leaves(model(*batch)) if isinstance(t, torch.Tensor) and t.requires_grad]
    sum(t.square().mean() for t in outputs).backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return names


def shrinking(function: Callable[[Inputs], Any], inputs: Inputs) -> tuple[list[int], Any]:
    """Call with inputs of half the height and width, and again, where memory does not suffice."""
    while True:
        shape = next(list(t.shape) for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor))
        try:
            return shape, function(inputs)
        except Exception as error:
            if "allocate memory" not in str(error) or shape[-1] < 64:
                raise
        inputs = pytree.tree_map_only(
            torch.Tensor, lambda t: t[..., : t.shape[-2] // 2, : t.shape[-1] // 2].clone(), inputs
        )


def status_of(error: Exception) -> str:
    """Return the status of an error: a refusal, a wrong result, or a failure."""
    kinds = ((bnprune.VerificationError, "wrong"), (bnprune.BnpruneError, "refused"), (Exception, "failed"))
    return next(status for kind, status in kinds if isinstance(error, kind))


def reason_of(error: Exception) -> str:
    """Return the error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def emit(**fields: Any) -> None:
    """Print what is known now."""
    print(json.dumps(fields, default=str), flush=True)


def alone(args: argparse.Namespace, *logs: str) -> None:
    """Do everything in a process that was forked for it; two files receive its standard output and error."""
    for stream, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_TRUNC), stream)
    limited(args)


def limited(args: argparse.Namespace) -> None:
    """Run with one thread and little memory."""
    limit = int(args.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run(args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="torchvision/NAME, timm/NAME or deep/BLOCKS")
    parser.add_argument("--tool", choices=("bnprune", "peer"), default="bnprune")
    parser.add_argument("--memory", type=float, default=20, metavar="GIB", help="limit of the process")
    parser.add_argument("--quick", action="store_true", help="time only: no proof, no training step")
    parser.add_argument("--untimed", action="store_true", help="prune once, with the proof; measure nothing")
    args = parser.parse_args()
    if args.untimed and args.tool == "peer":
        parser.error("--untimed is about proofs, which the peer has none of")
    limited(args)


if __name__ == "__main__":
    main()
