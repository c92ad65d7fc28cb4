"""Standard output of a verb with --json: one document only, even if the user's own code prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO

_KEPT: list[list[str]] = []
"""Documents to print at the end, one list per running verb with --json."""


def emit(text: str) -> None:
    """Print text on stdout; with --json, once stdout is no longer redirected."""
    if _KEPT:
        _KEPT[-1].append(text)
    else:
        sys.stdout.write(text)


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Redirect stdout to stderr for the duration of a `with` block, except for text given to `emit`."""
    if not wanted:
        yield
        return
    _KEPT.append([])
    try:
        with _descriptor_aside(), redirect_stdout(sys.stderr):
            yield
    finally:
        for text in _KEPT.pop():
            emit(text)


@contextmanager
def _descriptor_aside() -> Iterator[None]:
    """Redirect the file descriptor as well: child processes and C code do not use `sys.stdout`."""
    stdout = sys.stdout
    if (_number(stdout), _number(sys.stderr)) != (
        1,
        2,
    ):  # closed or replaced, as in a test that runs the command in process
        yield
        return
    stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _number(stream: IO[str] | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None
