"""Standard output of a verb with --json: one document, whatever code of the user's own prints meanwhile."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO

_KEPT: list[list[str]] = []
"""What is to be printed at the end; empty unless a verb with --json runs."""


def emit(text: str) -> None:
    """Print text on stdout, when what others print no longer gets there."""
    if _KEPT:
        _KEPT[-1].append(text)
    else:
        sys.stdout.write(text)


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Send everything to stderr that is printed on stdout meanwhile, except for what is given to `emit`."""
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
    """Do so for the descriptor, too: processes that are started, and code in C, know no `sys.stdout`."""
    stdout = sys.stdout
    if (_number(stdout), _number(sys.stderr)) != (1, 2):  # closed, or not the terminal's: somebody runs us in process
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
