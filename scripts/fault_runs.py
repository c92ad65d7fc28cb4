"""Kill `bnprune run` with SIGKILL again and again, resume it, and compare the result with that of a run left alone.

    python scripts/fault_runs.py [--kills 20] [--processes 1] [--seed 0]

A third of the kills come at a random moment after the start, a third at a random moment after an epoch or a stage was
finished, a third while a file is being written. With several processes (`torchrun`), one of them, or the launcher and
all of them, are killed. Every checkpoint of every stage and every line of metrics must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = """\
seed: 0
threads: 1
baseline: true
model: {name: vgg11, kwargs: {num_classes: 10, in_channels: 1, width: 0.125}}
data: {name: digits, batch_size: 120}
train: {epochs: 12, lr: 0.05, ema: 0.95, sparsity: {penalty: group-lasso, lambda: auto}}
prune: {ratio: 0.5, passes: 2}
finetune: {epochs: 6, mixup: 0.2, distill: true}
scratch: epochs
"""


def command(processes: int, recipe: Path, out: Path) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "bnprune", "run", str(recipe), "--out", str(out)]


def start(line: list[str], out: Path) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if (out / "config.yaml").exists() else []
    return subprocess.Popen([*line, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def workers(pid: int) -> list[int]:
    """The Python processes that a launcher has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def progress(out: Path) -> tuple[int, int]:
    metrics, result = out / "metrics.jsonl", out / "result.json"
    return tuple(file.stat().st_size if file.exists() else 0 for file in (metrics, result))  # type: ignore[return-value]


def wait(process: subprocess.Popen[bytes], seen: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and not seen():
        time.sleep(0.0005)


def wait_for_progress(process: subprocess.Popen[bytes], out: Path, before: tuple[int, int]) -> tuple[int, int]:
    wait(process, lambda: progress(out) != before, 120)
    return progress(out)


def wait_for_a_moment(kind: str, process: subprocess.Popen[bytes], out: Path, rng: random.Random) -> None:
    before = progress(out)
    if kind == "start":
        wait(process, lambda: False, rng.uniform(0, 12))
        return
    for _ in range(rng.randint(1, 5)):  # epochs or stages
        before = wait_for_progress(process, out, before)
    if kind == "epoch":
        wait(process, lambda: False, rng.uniform(0, 0.6))
    else:
        wait(process, lambda: any(out.glob(".*.tmp")) or any(out.glob("checkpoints/.*.tmp")), 20)


def kill(process: subprocess.Popen[bytes], processes: int, rng: random.Random) -> str:
    """Kill, and return what; the rest of a torchrun must end by itself."""
    targets = [process.pid]
    what = "the run"
    if processes > 1:
        children = workers(process.pid)
        one = bool(children) and rng.random() < 0.5
        targets = [rng.choice(children)] if one else [process.pid, *children]
        what = "one process" if one else "all processes"
    for pid in targets:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    began = time.monotonic()
    process.communicate(timeout=120)
    ended = time.monotonic() - began
    return f"{what}; the rest ended after {ended:.1f} s" if what == "one process" else what


def files(out: Path) -> dict[str, bytes]:
    kept = [*out.glob("checkpoints/*.safetensors"), out / "metrics.jsonl", *out.glob("plan*.json")]
    contents = {file.name: file.read_bytes() for file in kept}
    result = json.loads((out / "result.json").read_text())
    contents["result.json"] = json.dumps(timeless(result), sort_keys=True).encode()
    return contents


def timeless(data: Any) -> Any:
    """Leave out what a clock says."""
    if isinstance(data, dict):
        return {key: timeless(value) for key, value in data.items() if not key.endswith(("seconds", "latency_ms"))}
    return data


def different(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, killed, lost, finished = random.Random(asked.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        recipe = base / "recipe.yaml"
        recipe.write_text(RECIPE)
        whole = base / "whole"
        subprocess.run(command(asked.processes, recipe, whole), check=True, capture_output=True)
        print(f"a run left alone is done; {asked.kills} kills follow, {asked.processes} process(es)", flush=True)
        while killed < asked.kills or (base / f"run{finished}").exists():
            out = base / f"run{finished}"
            process = start(command(asked.processes, recipe, out), out)
            kind = ("start", "epoch", "write")[killed % 3]
            if killed < asked.kills:
                wait_for_a_moment(kind, process, out, rng)
            if killed < asked.kills and process.poll() is None:
                killed += 1
                stages = list(json.loads((out / "result.json").read_text())["stages"]) if progress(out)[1] else []
                print(
                    f"kill {killed:2d} ({kind}, {len(stages)} stages done): {kill(process, asked.processes, rng)}",
                    flush=True,
                )
                continue
            errors = process.communicate()[1].decode()
            odd = different(files(out), files(whole)) if process.returncode == 0 else []
            equal = process.returncode == 0 and not odd
            lost += not equal
            print(
                f"run {finished} ended with exit code {process.returncode}, equal: {equal} {', '.join(odd)}", flush=True
            )
            if not equal:
                print(errors[-2000:])
            finished += 1
    print(f"{killed} kills, {finished} runs finished, {lost} lost or different")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
