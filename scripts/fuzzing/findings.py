"""What is a finding: everything that neither a good end nor a refusal looks like."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzzing.cases import Case
from fuzzing.guard import REFUSED

REFUSALS = (2, 3, 5)
"""Exit codes of a refused input. A failed proof, 4, is a finding, except from `export`: see `refusals_of`."""
SIGPIPE = 141
"""What a shell calls the end of a program that nobody listens to."""
SHORT = 20_000
"""Bytes that a refusal may print."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# fmt: off
_VALUED = frozenset({
    "--out", "--model", "--model-arg", "--weights", "--input", "--exclude", "--ratio", "--macs", "--params",
    "--latency", "--plan", "--cap", "--round-to", "--min-channels", "--criterion", "--calibrate", "--calibrate-images",
    "--coupling", "--teacher",
    "--config", "--by", "--at", "--tolerance", "--plot", "--plots", "--backend", "--batch", "--threads", "--dtype",
    "--device", "--rounds", "--format",
})
# fmt: on
"""Options that take a value."""

State = dict[str, list[int]]


def refusals_of(case: Case) -> tuple[int, ...]:
    """Return the exit codes of a refusal; an export of weights that are not finite cannot be verified, which is 4."""
    return (*REFUSALS, 4) if case.args[:1] == ("export",) else REFUSALS


def of_the_end(code: int, events: Sequence[str], out: bytes, err: bytes, case: Case) -> Iterator[str]:
    """Look at the exit code and at what was printed."""
    last = _last_line(err)
    failed = b"Traceback (most recent call last)" in err and "--debug" not in case.args
    if REFUSED not in last:  # otherwise the guard has reported it
        yield from _of_the_code(code, events, failed, last, case)
    if code in refusals_of(case) and len(out) + len(err) > SHORT:
        yield f"long: {len(out) + len(err)} bytes: {last}"
    text = (out + err).decode("utf-8", "replace")
    found = _CONTROL.search(text)
    if found:
        yield f"control: {text[max(0, found.start() - 40) : found.end() + 20]!r}"
    if _wants_json(case) and code in (0, *refusals_of(case)) and not _is_json(out):
        yield f"json: {out[:80]!r} {last}"


def _wants_json(case: Case) -> bool:
    """Return True if a document must be printed; after an option with a value, "--json" is that value."""
    others = {"--help", "-h", "--version"} & set(case.args)
    given = any(word == "--json" and before not in _VALUED for before, word in itertools.pairwise(("", *case.args)))
    return given and not others and not case.stdout


def _of_the_code(code: int, events: Sequence[str], failed: bool, last: str, case: Case) -> Iterator[str]:
    if code < 0:
        yield f"killed: {signal.Signals(-code).name} {last}"
    elif f"end {code}" not in events:
        yield f"vanished: exit code {code} without an end {last}"
    elif failed:
        yield f"traceback: {last}"
    elif code not in (0, *refusals_of(case), *((SIGPIPE,) if case.stdout else ())):
        yield f"exit {code}: {last}"


def _last_line(err: bytes) -> str:
    lines = [line for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("error: ")]
    return ascii((marked or lines or [""])[-1][:300])[1:-1]


def _is_json(out: bytes) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(out, parse_constant=refuse)
    except ValueError:
        return False
    return True


def state_of(folder: Path) -> State:
    """Return size and time of every regular file."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
                found[ascii(str(path.relative_to(folder)))] = [path.stat().st_size, path.stat().st_mtime_ns]
    return found


def of_files(before: State, work: Path, case: Case, code: int) -> Iterator[str]:
    """Look at the files of a case: what was there must still be there, and nothing half-written."""
    after = state_of(work)
    for name, state in before.items():
        if name not in after or after[name] != state:
            yield from _changed(name, state, after.get(name), case, code)
    for name in sorted(after.keys() - before.keys()):
        if ".tmp" in name:
            yield f"left: {name}"
        if name.endswith(".html'") and b"<script>alert" in (work / name.strip("'")).read_bytes():
            yield f"markup: {name} holds a script of a file"


def _changed(name: str, before: list[int], after: list[int] | None, case: Case, code: int) -> Iterator[str]:
    if not any(name.strip("'").startswith(path) for path in case.changes):
        yield f"changed: {name} {'is gone' if after is None else 'was written to'}"
    elif code in refusals_of(case) and name.endswith("metrics.jsonl'") and (after is None or after[0] < before[0]):
        yield f"changed: {name} was cut off"
