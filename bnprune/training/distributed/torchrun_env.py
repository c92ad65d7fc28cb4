"""The environment variables of `torchrun`. Nothing here imports torch."""

from __future__ import annotations

import os


def processes() -> int:
    """Return the number of processes of this run; 1 if `torchrun` did not start it."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def rank() -> int:
    """Return the number of this process among them; process 0 leads."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return _number("LOCAL_RANK", rank())


def local_processes() -> int:
    """Return the number of processes on this machine; if nothing says it, the least that this one's number implies."""
    return _number("LOCAL_WORLD_SIZE", local_rank() + 1)


def restarts() -> int:
    """Return how often `torchrun --max-restarts` has started these processes again, with the same arguments."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def launch() -> str | None:
    """Return an identifier of this start of `torchrun`; a restart of its processes has the same one."""
    if processes() == 1:
        return None
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return name if name not in ("", "none") else f"process {os.getppid()}"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
