"""Prune whole model zoos, side by side with Torch-Pruning, and say what worked, how fast, in how much memory.

    pip install -e '.[bench]'
    python scripts/bench_zoo.py zoo --out zoo.json                 # every torchvision network with a BatchNorm
    python scripts/bench_zoo.py zoo --family timm --no-peer --only 'res2net*' 'dpn*' --out timm.json --resume
    python scripts/bench_zoo.py depth                              # does the time grow linearly with depth?

Every network and tool has a process of its own (`bench_one.py` says what it measures), with one thread, one after the
other: leave the machine alone meanwhile. The JSON file is written after each, and `--resume` continues it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_one import build, kind_of, norms

TOOLS = ("bnprune", "peer")
GOOD = ("verified", "pruned", "timed")
Fields = dict[str, Any]


def names_of(family: str, patterns: list[str]) -> Iterator[str]:
    """Yield the names of networks that contain a BatchNorm, found by building each on the meta device."""
    if family == "timm":
        import timm

        names = timm.list_models()
    else:
        from torchvision import models

        wanted = family == "quantizable"  # float networks with stubs for quantization
        names = [n for n in models.list_models() if (kind_of(f"torchvision/{n}") == "quantization") == wanted]
        family = "torchvision"
    for short in names:
        if patterns and not any(fnmatch(short, pattern) for pattern in patterns):
            continue
        try:
            with torch.device("meta"):
                model = build(f"{family}/{short}")
        except Exception:  # noqa: BLE001 - some constructors compute; those that fail here as well are reported later
            yield f"{family}/{short}"
            continue
        if norms(model):
            yield f"{family}/{short}"


def child(name: str, tool: str, args: argparse.Namespace) -> Fields:
    """Run `bench_one.py` in a process of its own; return everything it printed, merged."""
    script = str(Path(__file__).with_name("bench_one.py"))
    command = [sys.executable, script, name, "--tool", tool, "--memory", str(args.memory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command + ["--quick"] * args.quick, capture_output=True, timeout=args.timeout, env=environment, check=False
        )
        out, end = done.stdout, {} if not done.returncode else {"status": "failed", "reason": _last(done)}
    except subprocess.TimeoutExpired as error:
        out, end = error.stdout or b"", {"status": "timeout", "reason": f"more than {args.timeout} s"}
    lines = [json.loads(line) for line in out.decode(errors="replace").splitlines() if line.startswith('{"')]
    fields: Fields = {key: value for line in lines for key, value in line.items()}
    if "status" not in fields and args.quick and "seconds" in fields:
        fields["status"] = "timed"
    if end and fields.get("status") in GOOD:
        end = {"train": f"{end['status']}: {end['reason']}"}
    return {**fields, **end, "wall_seconds": round(time.perf_counter() - started, 1)}


def _last(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode(errors="replace").strip()
    return f"exit code {done.returncode}: {text.splitlines()[-1][:400] if text else 'killed'}"


def zoo(args: argparse.Namespace) -> None:
    """Prune every network of a family; print a table while it goes, and a summary."""
    out = Path(args.out)
    record: Fields = {"environment": environment(), "results": {}}
    if (args.resume or args.retry) and out.exists():
        record = json.loads(out.read_text())
    results = record["results"]
    heads = f"{'seconds':>8} {'peak MB':>8} {'share':>6} {'error':>8}"
    print(f"{'network':44} {'tool':8} {'status':9} {heads}  training step, or what went wrong")
    for name in names_of(args.family, args.only):
        for tool in TOOLS if args.peer else TOOLS[:1]:
            known = results.setdefault(name, {}).get(tool)
            if known is None or (args.retry and not is_good(known)):
                results[name][tool] = child(name, tool, args)
                save(record, out)
            print(row(name, tool, results[name][tool]), flush=True)
    summarise(results)


def environment() -> Fields:
    """Return the versions that matter."""
    packages = ("torch", "torchvision", "timm", "torch-pruning")
    return {"python": platform.python_version(), "cpus": os.cpu_count(), **{name: version(name) for name in packages}}


def save(record: Fields, out: Path) -> None:
    """Write atomically, so that an interrupted run can be continued."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1))
    part.replace(out)


def row(name: str, tool: str, got: Fields) -> str:
    """Format a line of the table."""

    def number(key: str, form: str) -> str:
        return format(got[key], form) if got.get(key) is not None else "-"

    told = got.get("train", "") if got["status"] in GOOD else got.get("reason", "")
    return (
        f"{name:44} {tool:8} {got['status']:9} {number('seconds', '.2f'):>8} {number('peak_mb', '.0f'):>8} "
        f"{number('share', '.3f'):>6} {number('max_relative_error', '.0e'):>8}  {told[:140]}"
    )


def summarise(results: Fields) -> None:
    """Print counts, and every network that misses a figure."""
    for tool in TOOLS:
        counts = Counter(both[tool]["status"] for both in results.values() if tool in both)
        print(f"\n{tool}: {', '.join(f'{count} {status}' for status, count in counts.most_common())}")
    ours = {name: both["bnprune"] for name, both in results.items() if "seconds" in both.get("bnprune", {})}
    listed("the slim network does not train", {n: g["train"] for n, g in ours.items() if g.get("train", "ok") != "ok"})
    heavy = {n: f"{g['peak_mb']:.0f} MB for {g['slim_mb']:.0f} MB of weights" for n, g in ours.items() if is_heavy(g)}
    listed("more memory than 1.2 x the slim weights + 100 MB", heavy)
    short = {n: f"{g['share']:.3f}: {'; '.join(g['refusals'][:2])}" for n, g in ours.items() if g["share"] < 0.45}
    listed("less than 0.45 of the BatchNorm channels removed", short)
    pairs = {n: (g["seconds"], results[n].get("peer", {})) for n, g in ours.items()}
    ratios = {n: mine / peer["seconds"] for n, (mine, peer) in pairs.items() if peer.get("status") in GOOD}
    if ratios:
        middle, worst = statistics.median(ratios.values()), max(ratios, key=lambda name: ratios[name])
        print(f"\nseconds of bnprune / peer: median {middle:.2f}, worst {ratios[worst]:.2f} ({worst}), n={len(ratios)}")
        listed("slower than the peer by more than 10%", {n: f"{r:.2f} x" for n, r in ratios.items() if r > 1.1})


def is_good(got: Fields) -> bool:
    """Tell whether pruning succeeded and the slim network trains."""
    return got["status"] in GOOD and got.get("train", "ok") == "ok"


def is_heavy(got: Fields) -> bool:
    """Tell whether pruning took more memory, above the loaded model, than it may."""
    return bool(got["peak_mb"] > 1.2 * got["slim_mb"] + 100)


def listed(title: str, entries: dict[str, str]) -> None:
    """Print a list with its length."""
    print(f"\n{title}: {len(entries) or 'none'}")
    for name, text in entries.items():
        print(f"  {name:44} {text}")


def depth(args: argparse.Namespace) -> None:
    """Time a ResNet of more and more blocks, and fit the growth."""
    args.quick = True
    for tool in TOOLS if args.peer else TOOLS[:1]:
        points = []
        for blocks in args.blocks:
            got = child(f"deep/{blocks}", tool, args)
            print(row(f"deep/{blocks}", tool, got), flush=True)
            if got["status"] in GOOD:
                points.append((blocks, got["seconds"]))
        if len(points) > 2:
            print(growth(tool, points))


def growth(tool: str, points: list[tuple[int, float]]) -> str:
    """Describe seconds over blocks: a line, and the exponent, overall and between the two deepest."""
    blocks, seconds = np.array(points, dtype=float).T
    slope, start = np.polyfit(blocks, seconds, 1)
    error = np.abs(seconds - (start + slope * blocks)).max() / seconds.max()
    exponent = np.polyfit(np.log(blocks), np.log(seconds), 1)[0]
    last = math.log(seconds[-1] / seconds[-2]) / math.log(blocks[-1] / blocks[-2])
    verdict = "linear" if max(exponent, last) < 1.15 else "NOT linear"
    return (
        f"{tool}: {start:.3f} s + {1000 * slope:.2f} ms per block (off by at most {error:.1%}); "
        f"exponent {exponent:.2f}, between the deepest two {last:.2f}: {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="run Torch-Pruning, too")
    common.add_argument("--timeout", type=float, default=900, metavar="S", help="per network and tool")
    common.add_argument("--memory", type=float, default=20, metavar="GIB", help="limit of each process")
    common.add_argument("--quick", action="store_true", help="time only: no proof, no training step")
    verb = verbs.add_parser("zoo", parents=[common], help="prune every network of a family")
    verb.add_argument("--family", choices=("torchvision", "quantizable", "timm"), default="torchvision")
    verb.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="names, with * and ?")
    verb.add_argument("--out", default="zoo.json", metavar="FILE")
    verb.add_argument("--resume", action="store_true", help="keep what FILE has")
    verb.add_argument("--retry", action="store_true", help="keep what FILE has, unless it went wrong")
    verb.set_defaults(run=zoo)
    verb = verbs.add_parser("depth", parents=[common], help="growth of the time with depth")
    verb.add_argument("--blocks", nargs="+", type=int, default=[50, 100, 200, 500, 1000])
    verb.set_defaults(run=depth)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
