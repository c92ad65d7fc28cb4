"""Try hostile and mistaken input on everything of bnprune that reads: files, recipes, command lines, data sets.

    python scripts/fuzz.py --n 5000 [--seed 0] [--classes checkpoint,recipe] [--jobs 2] [--keep DIR] [--json FILE]
    python scripts/fuzz.py --replay DIR/checkpoint-17 [--debug]

Every case is a verb or a function on input that is made from a good one: known attacks, and others drawn from the seed.
It runs in a process that is forked for it, in a folder of its own, under an audit hook (`fuzzing/guard.py`) that
refuses execution, sockets, unpickling, imports and writing outside that folder. A case is fine if it ends with exit
code 0, 2, 3 or 5 (`export` also with 4), in time, within the memory, with a short message, and leaves what was there as
it was. Everything else is a finding: it is counted in the table, kept with --keep, and makes the exit code 1. Needs
Linux, and `bnprune[demo,timm]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from fuzzing import kinds
from fuzzing.cases import Case, make_good_files
from fuzzing.guard import leave
from fuzzing.process import Limits, Running, Verdict, case_from, perform

import bnprune


def run_all(names: Sequence[str], args: argparse.Namespace, base: Path, folder: Path) -> Iterator[Verdict]:
    """Run cases, several at a time; yield verdicts as they come."""
    waiting, free = list(reversed(names)), [folder / f"slot{n}" for n in range(args.jobs)]
    running: list[Running] = []
    while waiting or running:
        while waiting and free:
            name = waiting.pop()
            running.append(Running(name, _maker(name, args.seed, base), free.pop(), limits_of(args)))
        for one in list(running):
            verdict = one.ended()
            if verdict is not None:
                running.remove(one)
                free.append(one.slot)
                yield verdict
        time.sleep(0.005)


def limits_of(args: argparse.Namespace) -> Limits:
    return Limits(args.seconds * args.patience, int(args.memory * 2**30))


def _maker(name: str, seed: int, base: Path) -> Callable[[], Case]:
    return lambda: kinds.build(name, seed, base)


def in_a_fork(work: Callable[[], int]) -> int:
    """Do work in a forked process, without limits; return its exit code."""
    pid = os.fork()
    if not pid:
        leave(lambda: None, work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- findings to look at ----------------------------------------------------------------------------------------------


def keep(verdict: Verdict, make: Callable[[], Case], folder: Path) -> None:
    """Write the input of a case into a folder, with the command, so that it can be replayed."""
    target = folder / verdict.name
    shutil.rmtree(target, ignore_errors=True)
    (target / "input").mkdir(parents=True)

    def work() -> int:
        os.chdir(target / "input")
        make()
        return 0

    in_a_fork(work)
    facts = {"case": asdict(verdict.case), "findings": verdict.findings, "output": verdict.output[-5000:]}
    (target / "case.json").write_text(json.dumps(facts, indent=1))


def replay(folder: Path, args: argparse.Namespace, slots: Path) -> Verdict:
    """Run a kept case again."""
    case = case_from(json.loads((folder / "case.json").read_text())["case"])
    if args.debug and not case.call:
        case = replace(case, args=("--debug", *case.args))

    def make() -> Case:
        _copy(folder / "input", Path())
        return case

    running = Running(folder.name, make, slots / "slot", limits_of(args))
    while (verdict := running.ended()) is None:
        time.sleep(0.005)
    print(f"{verdict.output}\n{command_text(verdict)}")
    print(f"exit code {verdict.code}, {verdict.seconds:.1f} s, {verdict.memory / 2**30:.2f} GiB")
    print("\n".join(verdict.findings) or "no finding")
    return verdict


def _copy(source: Path, target: Path) -> None:
    """Copy a folder with its links and FIFOs."""
    for entry in os.scandir(source):
        to = target / entry.name
        if entry.is_symlink():
            to.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            to.mkdir()
            _copy(Path(entry.path), to)
        elif entry.is_file():
            shutil.copy2(entry.path, to)
        else:
            os.mkfifo(to)


def prepare(base: Path) -> None:
    """Import everything that bnprune may import, so that a forked process need not; make good files."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for module in pkgutil.walk_packages(bnprune.__path__, "bnprune."):
        if not module.name.endswith("__main__") and ".integrations." not in module.name:
            importlib.import_module(module.name)
    for name in (
        "timm",
        "sklearn.datasets",
        "torchvision.models",
        "PIL.ImageFile",
        "torch.export",
        "torchvision.transforms.v2",
    ):
        importlib.import_module(name)
    platform.platform()  # remembers what `uname -p` says
    base.mkdir()
    os.chdir(base)
    commands = make_good_files()
    for command in commands:
        stops = command[1] == "own.yaml"

        def work(command: tuple[str, ...] = command, stops: bool = stops) -> int:
            os.environ |= {"STOP_AT": "100"} if stops else {}
            for stream in (1, 2):
                os.dup2(os.open(f"log{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            return perform(Case(command))

        if (code := in_a_fork(work)) != (130 if stops else 0):
            sys.exit(f"fuzz.py: bnprune {' '.join(command)} ended with {code}: {Path('log2').read_text()[-2000:]}")


# -- the table --------------------------------------------------------------------------------------------------------


def table(verdicts: Sequence[Verdict]) -> str:
    """Return what was tried of every class, and what came of it."""
    rows = [["class", "tried", "ok", "refused", "findings", "slowest", "largest", ""]]
    classes = list(dict.fromkeys(verdict.name.rpartition("-")[0] for verdict in verdicts))
    for name in [*classes, "all"]:
        of_class = [v for v in verdicts if name in ("all", v.name.rpartition("-")[0])]
        fine = [v for v in of_class if not v.findings]
        kinds = Counter(kind for v in of_class for kind in v.kinds)
        counts = (
            len(of_class),
            sum(v.code == 0 for v in fine),
            sum(v.code != 0 for v in fine),
            len(of_class) - len(fine),
        )
        slowest = max(v.seconds for v in of_class)
        largest = max(v.memory for v in of_class) / 2**30
        finding_counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        rows.append([name, *map(str, counts), f"{slowest:.1f} s", f"{largest:.2f} GiB", finding_counts])
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append(f"{'  '.join(cells)}  {row[-1]}".rstrip())
    return "\n".join(lines)


def distinct(verdicts: Sequence[Verdict]) -> list[tuple[int, str, Verdict]]:
    """Group findings that look alike: how many there are, what they are, and the first case."""
    groups: dict[str, list[tuple[str, Verdict]]] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            alike = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+|\\[a-z0-9]+|slot\d", "_", finding)[:90]
            groups.setdefault(alike, []).append((finding, verdict))
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [(len(group), *group[0]) for group in ordered]


def command_text(verdict: Verdict) -> str:
    words = " ".join(word if re.fullmatch(r"[\w./=,:-]+", word) else ascii(word) for word in verdict.case.args)
    return f"{verdict.case.call or 'bnprune'} {words if len(words) < 160 else words[:157] + '...'}"


def as_data(verdicts: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """Return the summary for --json."""
    return {
        "seconds": seconds,
        "tried": len(verdicts),
        "ok": sum(not v.findings and v.code == 0 for v in verdicts),
        "refused": sum(not v.findings and v.code != 0 for v in verdicts),
        "slowest": max(verdicts, key=lambda v: v.seconds).name if verdicts else None,
        "largest": max(verdicts, key=lambda v: v.memory).name if verdicts else None,
        "findings": [
            {"case": v.name, "command": command_text(v), "code": v.code, "findings": v.findings}
            for v in verdicts
            if v.findings
        ],
    }


def search(args: argparse.Namespace, folder: Path) -> list[Verdict]:
    """Run all cases, and print progress."""
    began = time.monotonic()
    names = kinds.names(args.classes, args.n)
    verdicts: list[Verdict] = []
    for verdict in run_all(names, args, folder / "base", folder):
        verdicts.append(verdict)
        if verdict.findings and args.keep:
            keep(verdict, _maker(verdict.name, args.seed, folder / "base"), args.keep)
        if verdict.findings or args.verbose:
            print(f"{verdict.name}: {command_text(verdict)}: {verdict.code} {verdict.findings}"[:600], file=sys.stderr)
        if len(verdicts) % 250 == 0:
            found, spent = sum(bool(v.findings) for v in verdicts), time.monotonic() - began
            print(f"{len(verdicts)} of {len(names)}, {found} findings, {spent:.0f} s", file=sys.stderr, flush=True)
    return verdicts


def main() -> None:
    args = arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bnprune-fuzz-") as temporary:
        folder = Path(temporary).resolve()
        prepare(folder / "base")
        print(f"ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if args.replay:
            sys.exit(bool(replay(args.replay, args, folder).findings))
        verdicts = search(args, folder)
    seconds = time.monotonic() - began
    print(table(verdicts))
    for count, finding, verdict in distinct(verdicts):
        print(f"\n{count} x {finding}\n    {verdict.name}: {command_text(verdict)}")
    slowest, largest = max(verdicts, key=lambda v: v.seconds), max(verdicts, key=lambda v: v.memory)
    print(f"\nslowest: {slowest.name}: {command_text(slowest)}\nlargest: {largest.name}: {command_text(largest)}")
    print(f"{len(verdicts)} cases in {seconds:.0f} s, seed {args.seed}.")
    if args.keep and any(v.findings for v in verdicts):
        print(f"Inputs: {args.keep}. Again: scripts/fuzz.py --replay {args.keep}/NAME --debug")
    if args.json:
        args.json.write_text(json.dumps(as_data(verdicts, seconds), indent=1) + "\n")
    sys.exit(any(verdict.findings for verdict in verdicts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, metavar="N", help="cases in all; default: 1000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--classes", default=",".join(kinds.CLASSES), help=f"default: {','.join(kinds.CLASSES)}; also: planted"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases at a time")
    parser.add_argument(
        "--seconds", type=float, default=10, help="for what only reads; six times as long for trainings"
    )
    parser.add_argument("--patience", type=float, default=1, metavar="F", help="factor on times, for a busy machine")
    parser.add_argument("--memory", type=float, default=3, metavar="GIB", help="resident, of one process")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the inputs of findings")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="run one of them again")
    parser.add_argument("--debug", action="store_true", help="with --replay: show the traceback")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")
    parser.add_argument("--verbose", action="store_true", help="a line for every case")
    args = parser.parse_args()
    args.classes = args.classes.split(",")
    for name in ("keep", "replay", "json"):  # the working folder changes
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())
    unknown = [name for name in args.classes if name not in kinds.KINDS]
    if unknown:
        parser.error(f"--classes: there is no {', '.join(unknown)}")
    return args


if __name__ == "__main__":
    main()
