"""A lock on a folder, held by one process at a time. It needs no file, and is released when the process ends."""

from __future__ import annotations

import os
from pathlib import Path

from bnprune.errors import DataError

_HELD: set[int] = set()


def _release_in_child() -> None:
    # Otherwise a data loader process that outlives its killed parent would keep the lock.
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def lock(folder: Path) -> int | None:
    """Lock a folder without waiting; return the descriptor for `unlock`, or None if the system has no such locks.

    Raises:
        DataError: Another process holds the lock, or the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    while True:
        descriptor = _opened(folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            unlock(descriptor)
            raise DataError(
                f"'{folder}' is in use: another process works on this run. Wait for it, or choose another folder.",
                argument="out",
            ) from error
        except OSError:  # the file system does not support locks
            unlock(descriptor)
            return None
        if _is_open(folder, descriptor):
            return descriptor
        unlock(descriptor)  # the folder was replaced in between


def unlock(descriptor: int | None) -> None:
    """Release a lock."""
    if descriptor in _HELD:
        _HELD.discard(descriptor)
        os.close(descriptor)


def _opened(folder: Path) -> int:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(f"'{folder}' cannot be opened: {error.strerror}.") from error
    _HELD.add(descriptor)
    return descriptor


def _is_open(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
