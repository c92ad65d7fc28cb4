"""Standard output with --json: only one document, even if the user's own code prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO

_PENDING: list[list[str]] = []
"""Documents to print at the end, one list per running verb with --json."""


_SAVED: list[int] = []
"""Copies of the descriptor of stdout, one for each time that it is redirected."""


def emit(text: str) -> None:
    """Print text on stdout; with --json, once stdout is no longer redirected."""
    if _PENDING:
        _PENDING[-1].append(text)
    else:
        sys.stdout.write(text)


@contextmanager
def json_only(wanted: bool) -> Iterator[None]:
    """Redirect stdout to stderr for the duration of a `with` block, except for text given to `emit`."""
    if not wanted:
        yield
        return
    _PENDING.append([])
    try:
        with _redirected_descriptor(), redirect_stdout(sys.stderr):
            yield
    finally:
        for text in _PENDING.pop():
            emit(text)


@contextmanager
def _redirected_descriptor() -> Iterator[None]:
    """Redirect the file descriptor 1 to stderr as well: child processes and C code do not use `sys.stdout`."""
    stdout = sys.stdout
    # Streams may be closed, or replaced, as in a test that runs the command in its own process.
    if (_number(stdout), _number(sys.stderr)) != (1, 2):
        yield
        return
    stdout.flush()
    _SAVED.append(os.dup(1))
    os.dup2(2, 1)
    try:
        yield
    finally:
        stdout.flush()
        os.dup2(_SAVED[-1], 1)
        os.close(_SAVED.pop())


@contextmanager
def stdout_for_processes() -> Iterator[None]:
    """Let processes that are started in a `with` block write to stdout itself: each of them cares for its document."""
    if not _SAVED:
        yield
        return
    os.dup2(_SAVED[-1], 1)
    try:
        yield
    finally:
        os.dup2(2, 1)


def _number(stream: IO[str] | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None
