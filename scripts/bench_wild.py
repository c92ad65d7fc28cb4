"""Prune networks of packages that people use, and say which were proven, refused, pruned little, or came out wrong.

    pip install ultralytics segmentation-models-pytorch transformers monai pytorchcv open_clip_torch ...
    python scripts/bench_wild.py --out wild.json --jobs 2                # every network of the installed packages
    python scripts/bench_wild.py --only 'ultralytics/*' 'monai/UNet*' --out some.json
    python scripts/bench_wild.py --out wild.json --resume                # go on, or print the summary again

Every network has a process of its own, with one thread. Weights are random and nothing is downloaded
(`wild_networks.py`); scale factors are drawn from [0.2, 1], so that ranks are not tied. The statuses:

    proven      half of the prunable channels were removed, and the slim network equals the masked original
    little      proven, but less than a quarter of all BatchNorm channels were removed
    refused     a refusal with a reason
    wrong       the proof failed
    failed      any other exception: a bug
    unusable    the original network cannot be built or does not run here, or has no BatchNorm
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import time
import traceback
import warnings
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from bench_one import channels, norms
from wild_networks import Build, Inputs, networks, outputs_of

import bnprune

RATIO = 0.5
LITTLE = 0.25
"""Share of the BatchNorm channels of the network below which a cut at half counts as little."""
Fields = dict[str, Any]


def prune_one(name: str, build: Build, ratio: float) -> Fields:
    """Prune one network; return the status and what the report says."""
    try:
        model, inputs = usable(build)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong before pruning is not pruning's fault
        return {"status": "unusable", "reason": reason_of(error)}
    started = time.perf_counter()
    path = outputs_of(name)
    options = {} if path is None else {"outputs": path}
    try:
        report = bnprune.prune(model, inputs, ratio=ratio, **options).report
    except bnprune.PruningError as error:
        status = "unusable" if not channels(model) else "refused"
        return {"status": status, "reason": reason_of(error), "seconds": time.perf_counter() - started}
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the result
        failed = {"status": status_of(error), "reason": reason_of(error), "seconds": time.perf_counter() - started}
        return {**failed, "trace": traceback.format_exc()[-2000:]} if failed["status"] == "failed" else failed
    total = max(channels(model), report.channels_before)
    share = (report.channels_before - report.channels_after) / total
    return {
        "status": "proven" if share >= LITTLE * ratio / RATIO else "little",
        "channels": total,
        "prunable": report.channels_before / total,
        "share": share,
        "error": report.max_relative_error,
        "macs": report.macs_after / max(report.macs_before, 1),
        "seconds": time.perf_counter() - started,
        "refusals": [str(refusal) for refusal in report.refusals[:5]],
        "notes": [str(note) for note in report.notes],
    }


def usable(build: Build) -> tuple[torch.nn.Module, Inputs]:
    """Build a network that runs its example inputs, with scale factors that are not tied."""
    model, inputs = build()
    model.eval()
    with torch.no_grad():
        for norm in norms(model):
            if norm.weight is not None:
                norm.weight.copy_(torch.rand(norm.weight.shape) * 0.8 + 0.2)
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return model, inputs


def status_of(error: Exception) -> str:
    """Return "wrong", "refused" or "failed" for an exception of `prune`."""
    kinds = ((bnprune.VerificationError, "wrong"), (bnprune.BnpruneError, "refused"), (Exception, "failed"))
    return next(status for kind, status in kinds if isinstance(error, kind))


def reason_of(error: Exception) -> str:
    """Return the type and the message of an exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def child(name: str, build: Build, args: argparse.Namespace, answer: Any) -> None:
    """Prune one network in a process of its own, and send the result."""
    limit = int(args.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    answer.send(prune_one(name, build, args.ratio))


class Job:
    """One network in a process that is forked from this one."""

    def __init__(self, name: str, build: Build, args: argparse.Namespace) -> None:
        self.name = name
        self._ends = time.monotonic() + args.timeout
        self._answer, sending = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=child, args=(name, build, args, sending))
        self._process.start()
        sending.close()

    def result(self) -> Fields | None:
        """Return the result; None while the process runs."""
        if self._answer.poll(0.1):
            with contextlib.suppress(EOFError):
                return self._end(self._answer.recv())
            self._process.join()
            return self._end({"status": "failed", "reason": f"exit code {self._process.exitcode}"})
        return self._end({"status": "failed", "reason": "timeout"}) if time.monotonic() > self._ends else None

    def _end(self, result: Fields) -> Fields:
        self._process.kill()
        self._process.join()
        return result


def run(todo: dict[str, Build], args: argparse.Namespace, results: Fields, out: Path) -> None:
    """Run what is to be done, `--jobs` at a time, and write the results after each."""
    waiting, running = list(todo.items()), list[Job]()
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name, build = waiting.pop(0)
            running.append(Job(name, build, args))
        for job in list(running):
            result = job.result()
            if result is not None:
                running.remove(job)
                results[job.name] = result
                out.write_text(json.dumps(dict(sorted(results.items())), indent=1))
                print(row(job.name, result), flush=True)


def row(name: str, result: Fields) -> str:
    """Return a line of the table."""
    if "share" not in result:
        return f"{name:44} {result['status']:9} {result['reason'][:160]}"
    return (
        f"{name:44} {result['status']:9} {result['prunable']:8.3f} {result['share']:7.3f} {result['macs']:6.3f} "
        f"{result['error']:8.0e} {result['seconds']:7.1f}"
    )


def summarize(results: Fields) -> None:
    """Print the counts, and the networks that were not simply proven."""
    counts = Counter(result["status"] for result in results.values())
    tested = sum(counts.values()) - counts["unusable"]
    print(f"\n{tested} networks: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    done = [result["seconds"] for result in results.values() if "share" in result]
    if done:
        print(f"seconds to prune and prove: median {statistics.median(done):.1f}, worst {max(done):.1f}")
    for status in ("wrong", "failed", "refused", "little", "unusable"):
        listed = {name: result for name, result in results.items() if result["status"] == status}
        print(f"\n{status}: {len(listed) or 'none'}")
        for name, result in listed.items():
            reasons = result.get("refusals", [])[:2]
            why = result.get("reason") or f"{result['share']:.3f} of all channels; {' | '.join(reasons)}"
            print(f"  {name:42} {why[:300]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--ratio", type=float, default=RATIO, help="share of the prunable channels to remove")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="number of processes at a time")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds per network")
    parser.add_argument("--memory", type=float, default=10, metavar="GIB", help="limit of each process")
    parser.add_argument("--out", default="wild.json", metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="keep the results in FILE, and run the others")
    parser.add_argument("--retry", nargs="+", default=[], metavar="STATUS", help="with --resume, run these again")
    args = parser.parse_args()
    out = Path(args.out)
    results: Fields = json.loads(out.read_text()) if args.resume and out.exists() else {}
    results = {name: result for name, result in results.items() if result["status"] not in args.retry}
    chosen = {n: b for n, b in networks().items() if any(fnmatch(n, pattern) for pattern in args.only)}
    print(f"{'network':44} {'status':9} {'prunable':>8} {'removed':>7} {'MACs':>6} {'error':>8} {'seconds':>7}")
    torch.set_num_threads(1)  # forked processes cannot use the threads of this one
    run({name: build for name, build in chosen.items() if name not in results}, args, results, out)
    summarize(results)


if __name__ == "__main__":
    main()
