"""A case in a process that is forked for it, and the verdict on how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import bnprune
from fuzzing import findings, kinds
from fuzzing.cases import Case
from fuzzing.guard import READY, Guard, isolate, leave, watch

MAKING = 120.0
"""Seconds in which the files of a case must be made."""
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Limits:
    seconds: float
    """For what only reads; a training may take six times as long."""
    memory: int
    """Bytes that may be resident."""


@dataclass
class Verdict:
    """How a case ended."""

    name: str
    case: Case
    code: int | None
    """The exit code; None if it was killed."""
    output: str
    seconds: float
    memory: int
    """Bytes that were resident at most."""
    findings: list[str] = field(default_factory=list)
    """Each "kind: details"."""

    @property
    def kinds(self) -> set[str]:
        return {finding.partition(":")[0] for finding in self.findings}


# -- one case ---------------------------------------------------------------------------------------------------------


class Running:
    """A case in its process, and what it leaves in its slot.

    ::

        work/       the files of the case, where it runs        scratch/    temporary files
        outside/    what it may not touch                       events      what the guard has refused
        stdout, stderr                                          case.json   the case; what its files were like
    """

    def __init__(self, name: str, make: Callable[[], Case], slot: Path, limits: Limits) -> None:
        self.name = name
        self.slot = slot
        self.limits = limits
        shutil.rmtree(slot, ignore_errors=True)
        for folder in ("work", "scratch", "outside"):
            (slot / folder).mkdir(parents=True)
        for file in ("events", "stdout", "stderr"):
            (slot / file).touch()
        (slot / "outside" / "secret.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        self._watch = _watched(slot / "outside")
        self._forked = time.monotonic()
        self._began: float | None = None
        self._killed = ""
        self._case = Case((), call="(its files could not be made)")
        self._before: findings.State = {}
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if not self._pid:
            _run(make, slot)

    def ended(self) -> Verdict | None:
        """Look after the process; return the verdict once it has ended."""
        pid, status, usage = os.wait4(self._pid, os.WNOHANG)
        if self._began is None and (self.slot / "events").stat().st_size:
            self._begin()
        if pid:
            _end(self._pid)  # loader processes that it has left
            return self._verdict(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
        self._limit()
        return None

    def _begin(self) -> None:
        self._began = time.monotonic()
        stored = json.loads((self.slot / "case.json").read_text())
        self._case, self._before = case_from(stored["case"]), stored["before"]

    def _limit(self) -> None:
        """Kill the process if it takes too long, or too much memory."""
        seconds = MAKING if self._began is None else self.limits.seconds * (6 if self._case.trains else 1)
        if self._killed:
            return
        if time.monotonic() - (self._began or self._forked) > seconds:
            self._killed = f"timeout: {seconds:g} s"
            os.kill(self._pid, signal.SIGUSR1)  # tells where it is
            time.sleep(0.2)
            _end(self._pid)
        elif _resident(self._pid) > self.limits.memory:
            self._killed = f"memory: more than {self.limits.memory / 2**30:.1f} GiB"
            _end(self._pid)

    def _verdict(self, code: int, memory: int) -> Verdict:
        seconds = time.monotonic() - (self._began or self._forked)
        out, err = ((self.slot / name).read_bytes() for name in ("stdout", "stderr"))
        output = (out + err).decode("utf-8", "replace")
        verdict = Verdict(self.name, self._case, None if self._killed else code, output, seconds, memory)
        events = (self.slot / "events").read_text(errors="replace").splitlines()
        found = [event for event in dict.fromkeys(events) if event != READY and not event.startswith("end ")]
        opened = _seen(self._watch)
        found += [f"opened: {', '.join(sorted(opened))} in ../outside"] if opened else []
        if self._killed:
            found.append(self._killed)
        else:
            found += [f"memory: {memory / 2**30:.1f} GiB"] if memory > self.limits.memory else []
            found += findings.of_the_end(code, events, out, err, self._case)
            found += findings.of_files(self._before, self.slot / "work", self._case, code)
        verdict.findings = found
        return verdict


def _run(make: Callable[[], Case], slot: Path) -> None:
    """In the forked process: make the files of a case, and run it under guard."""
    guard: Guard | None = None

    def work() -> int:
        nonlocal guard
        events = isolate(slot)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = make()
        stored = {"case": asdict(case), "before": findings.state_of(slot / "work")}
        (slot / "case.json").write_text(json.dumps(stored))
        guard = watch(slot, events, case.imports, case.stdout)
        return perform(case)

    leave(lambda: guard, work)


def perform(case: Case) -> int:
    """Run a case in this process; return the exit code."""
    from bnprune.cli import main

    sys.argv = ["bnprune", *case.args]
    try:
        if case.call:
            kinds.CALLS[case.call](*case.args)
        else:
            main()
    except bnprune.BnpruneError as error:  # in Python; the command line has printed it already
        print(error, file=sys.stderr)
        return error.exit_code
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def case_from(stored: dict[str, Any]) -> Case:
    """Return a case that was stored as JSON."""
    return Case(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})


def _end(pid: int) -> None:
    """Kill a process that was forked here, and what it has forked."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Return the most memory that a process has had, in bytes."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def _watched(folder: Path) -> int:
    """Watch a folder: everything that is opened, made or removed in it is seen, whoever does it."""
    descriptor: int = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor >= 0:
        _LIBC.inotify_add_watch(descriptor, os.fsencode(folder), 0xFFF)
    return descriptor


def _seen(descriptor: int) -> set[str]:
    try:
        data = os.read(descriptor, 65536)
    except OSError:
        return set()
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    names = set()
    while data:
        (length,) = struct.unpack_from("I", data, 12)
        names.add(data[16 : 16 + length].rstrip(b"\0").decode(errors="replace") or "the folder")
        data = data[16 + length :]
    return names
