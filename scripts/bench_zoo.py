"""Prune whole model zoos, side by side with Torch-Pruning, and say what worked, how fast, in how much memory.

    pip install -e '.[bench]'
    python scripts/bench_zoo.py zoo --out zoo.json                 # every torchvision network with a BatchNorm
    python scripts/bench_zoo.py zoo --family timm --no-peer --untimed --jobs 2 --out timm.json --resume
    python scripts/bench_zoo.py depth                              # does the time grow linearly with depth?

Every network and tool has a process of its own (`bench_one.py` says what it measures), with one thread, one after the
other: leave the machine alone meanwhile. Where nothing but correctness is asked, `--untimed --jobs N` runs several at a
time. The JSON file is written after each, and `--resume` continues it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_one import WITHOUT, alone, kind_of

TOOLS = ("bnprune", "peer")
GOOD = ("verified", "pruned", "timed")
Fields = dict[str, Any]


def names_of(family: str, patterns: list[str]) -> list[str]:
    """Return the names of a family's networks, with BatchNorm or without."""
    if family == "timm":
        import timm

        names = timm.list_models()
    else:
        from torchvision import models

        wanted = family == "quantizable"  # float networks with stubs for quantization
        names = [n for n in models.list_models() if (kind_of(f"torchvision/{n}") == "quantization") == wanted]
        family = "torchvision"
    return [f"{family}/{n}" for n in names if not patterns or any(fnmatch(n, pattern) for pattern in patterns)]


class Job:
    """One network and tool, in a process of its own that is forked from this one, so that nothing is imported again."""

    def __init__(self, name: str, tool: str, args: argparse.Namespace) -> None:
        self.name, self.tool = name, tool
        self._limit = args.timeout
        self._logs = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed by `finish`
        self._started = time.perf_counter()
        one = argparse.Namespace(name=name, tool=tool, memory=args.memory, quick=args.quick, untimed=args.untimed)
        self._process = multiprocessing.get_context("fork").Process(
            target=alone, args=(one, *(log.name for log in self._logs))
        )
        self._process.start()

    def wait(self, seconds: float) -> bool:
        """Wait up to this time; return True if the process has ended or exceeded its limit."""
        self._process.join(seconds)
        return self._process.exitcode is not None or time.perf_counter() > self._started + self._limit

    def finish(self) -> Fields:
        """Kill the process if it still runs; return everything it printed, merged."""
        late, code = self._process.exitcode is None, self._process.exitcode
        if late:
            self._process.kill()
            self._process.join()
        wall = round(time.perf_counter() - self._started, 1)
        printed, errors = (Path(log.name).read_text(errors="replace").splitlines() for log in self._logs)
        for log in self._logs:
            log.close()
        lines = [line for line in printed if line.startswith('{"') and line.endswith("}")]
        fields: Fields = {key: value for line in lines for key, value in json.loads(line).items()}
        end: Fields = {}
        if late:
            end = {"status": "timeout", "reason": f"more than {self._limit:g} s"}
        elif code:
            end = {"status": "failed", "reason": f"exit code {code}: {errors[-1][:400] if errors else 'killed'}"}
        elif "status" not in fields:
            end = {"status": "timed"} if "seconds" in fields else {"status": "failed", "reason": "no result"}
        if end.get("reason") and fields.get("status") in GOOD:
            end = {"train": f"{end['status']}: {end['reason']}"}
        return {**fields, **end, "wall_seconds": wall}


def run(tasks: Iterable[tuple[str, str]], args: argparse.Namespace) -> Iterator[tuple[str, str, Fields]]:
    """Run networks and tools, `--jobs` at a time; yield each with its result when it ends."""
    running: list[Job] = []
    for name, tool in tasks:
        running.append(Job(name, tool, args))
        while len(running) >= args.jobs:
            yield from _ended(running)
    while running:
        yield from _ended(running)


def _ended(running: list[Job]) -> Iterator[tuple[str, str, Fields]]:
    for job in [job for job in running if job.wait(0.1 / len(running))]:
        running.remove(job)
        yield job.name, job.tool, job.finish()


def zoo(args: argparse.Namespace) -> None:
    """Prune every network of a family; print a table row by row, and a summary."""
    out = Path(args.out)
    record: Fields = {"environment": environment(), "results": {}}
    if (args.resume or args.retry) and out.exists():
        record = json.loads(out.read_text())
    results = record["results"]
    names, tools = names_of(args.family, args.only), TOOLS if args.peer else TOOLS[:1]
    heads = f"{'seconds':>8} {'peak MB':>8} {'share':>6} {'error':>8}"
    print(f"{'network':44} {'tool':8} {'status':9} {heads}  training step, or what went wrong")
    known = {(name, tool): results.get(name, {}).get(tool) for name in names for tool in tools}
    for name, tool, got in run([task for task, got in known.items() if is_open(got, retry=args.retry)], args):
        results.setdefault(name, {})[tool] = got
        save(record, out)
        if got["status"] != WITHOUT:
            print(row(name, tool, got), flush=True)
    summarise(
        {name: both for name, both in sorted(results.items()) if all(b["status"] != WITHOUT for b in both.values())}
    )


def is_open(got: Fields | None, *, retry: bool) -> bool:
    """Return True if a network has not been run yet."""
    return got is None or (retry and got["status"] != WITHOUT and not is_good(got))


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

    detail = got.get("train", "") if got["status"] in GOOD else got.get("reason", "")
    return (
        f"{name:44} {tool:8} {got['status']:9} {number('seconds', '.2f'):>8} {number('peak_mb', '.0f'):>8} "
        f"{number('share', '.3f'):>6} {number('max_relative_error', '.0e'):>8}  {detail[:140]}"
    )


def summarise(results: Fields) -> None:
    """Print counts, and every network that misses a figure."""
    for tool in TOOLS:
        counts = Counter(both[tool]["status"] for both in results.values() if tool in both)
        print(f"\n{tool}: {', '.join(f'{count} {status}' for status, count in counts.most_common())}")
    ours = {name: both["bnprune"] for name, both in results.items() if "share" in both.get("bnprune", {})}
    theirs = {name: both["bnprune"] for name, both in results.items() if "bnprune" in both and name not in ours}
    bad = {name: f"{got['status']}: {got.get('reason')}" for name, got in theirs.items()}
    listed("not pruned", bad)
    listed("the slim network does not train", {n: g["train"] for n, g in ours.items() if g.get("train", "ok") != "ok"})
    timed = {name: got for name, got in ours.items() if "seconds" in got}
    heavy = {n: f"{g['peak_mb']:.0f} MB for {g['slim_mb']:.0f} MB of weights" for n, g in timed.items() if is_heavy(g)}
    listed("more memory than 1.2 x the slim weights + 100 MB", heavy)
    short = {n: f"{g['share']:.3f}: {'; '.join(g['refusals'][:2])}" for n, g in ours.items() if g["share"] < 0.45}
    listed("less than 0.45 of the BatchNorm channels removed", short)
    pairs = {n: (g["seconds"], results[n].get("peer", {})) for n, g in timed.items()}
    ratios = {n: mine / peer["seconds"] for n, (mine, peer) in pairs.items() if peer.get("status") in GOOD}
    if ratios:
        middle, worst = statistics.median(ratios.values()), max(ratios, key=lambda name: ratios[name])
        print(f"\nseconds of bnprune / peer: median {middle:.2f}, worst {ratios[worst]:.2f} ({worst}), n={len(ratios)}")
        listed("slower than the peer by more than 10%", {n: f"{r:.2f} x" for n, r in ratios.items() if r > 1.1})


def is_good(got: Fields) -> bool:
    """Return True if pruning succeeded and the slim network trains."""
    return got["status"] in GOOD and got.get("train", "ok") == "ok"


def is_heavy(got: Fields) -> bool:
    """Return True if pruning took more memory, above the loaded model, than is allowed."""
    return bool(got["peak_mb"] > 1.2 * got["slim_mb"] + 100)


def listed(title: str, entries: dict[str, str]) -> None:
    """Print a list with its length."""
    print(f"\n{title}: {len(entries) or 'none'}")
    for name, text in entries.items():
        print(f"  {name:44} {text}")


def depth(args: argparse.Namespace) -> None:
    """Time a ResNet of more and more blocks, and fit the growth."""
    args.quick, args.untimed = True, False
    for tool in TOOLS if args.peer else TOOLS[:1]:
        points = []
        for blocks in args.blocks:
            [(name, _, got)] = run([(f"deep/{blocks}", tool)], args)
            print(row(name, tool, got), flush=True)
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
    common.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time; spoils timings")
    common.add_argument("--quick", action="store_true", help="time only: no proof, no training step")
    verb = verbs.add_parser("zoo", parents=[common], help="prune every network of a family")
    verb.add_argument("--family", choices=("torchvision", "quantizable", "timm"), default="torchvision")
    verb.add_argument("--untimed", action="store_true", help="prune once, with the proof; measure nothing")
    verb.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="names, with * and ?")
    verb.add_argument("--out", default="zoo.json", metavar="FILE")
    verb.add_argument("--resume", action="store_true", help="keep what FILE has")
    verb.add_argument("--retry", action="store_true", help="keep what FILE has, unless it went wrong")
    verb.set_defaults(run=zoo)
    verb = verbs.add_parser("depth", parents=[common], help="growth of the time with depth")
    verb.add_argument("--blocks", nargs="+", type=int, default=[50, 100, 200, 500, 1000])
    verb.set_defaults(run=depth)
    args = parser.parse_args()
    if args.peer and getattr(args, "untimed", False):
        parser.error("--untimed is about proofs, which the peer has none of: add --no-peer")
    torch.set_num_threads(1)  # forked processes cannot use the threads of this one
    args.run(args)


if __name__ == "__main__":
    main()
