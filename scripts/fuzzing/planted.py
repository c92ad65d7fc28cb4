"""Planted faults: what a test of the fuzzer looks for."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing.cases import (
    Builder,
    Case,
    take,
)
from fuzzing.values import (
    OUTSIDE,
)


def _spin() -> None:
    while True:
        pass


def _fill_memory() -> None:
    held = []
    while True:
        held.append(b"x" * 2**26)


def _connect() -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 9), timeout=1)


def _open_secret() -> None:
    from safetensors import safe_open

    with safe_open(f"{OUTSIDE}/secret.safetensors", "pt"):  # opened by an extension, which no audit hook sees
        return


def _print(text: str, code: int = 0) -> None:
    print(text)
    raise SystemExit(code)


PLANTED: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("execution", lambda: os.system("true")),
    ("execution", lambda: os.posix_spawn("/bin/true", ["true"], {})),
    ("network", _connect),
    ("outside", lambda: Path(OUTSIDE, "owned").write_text("")),
    ("outside", lambda: Path(OUTSIDE, "owned").mkdir()),
    ("opened", _open_secret),
    ("import", lambda: __import__("canary")),
    ("unpickled", lambda: pickle.Unpickler(io.BytesIO(pickle.dumps(Case))).load()),
    ("timeout", lambda: time.sleep(3600)),
    ("timeout", _spin),
    ("memory", _fill_memory),
    ("exit 1", lambda: _print("", 1)),
    ("exit 4", lambda: _print("", 4)),
    ("traceback", lambda: 1 / 0),
    ("killed", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    ("vanished", lambda: os._exit(0)),
    ("json", lambda: _print("{}\n{}")),
    ("long", lambda: _print("x" * 30_000, 2)),
    ("control", lambda: _print("\x1b[31m", 2)),
    ("changed", Path("recipe.yaml").unlink),
    ("left", Path(".x.tmp").touch),
    ("markup", lambda: Path("x.html").write_text("<script>alert(1)</script>")),
)
"""The kind of finding that each must be, and what it does."""


def planted(index: int, _: random.Random, base: Path) -> Case:
    take(base, "canary.py", "recipe.yaml")
    kind = PLANTED[index][0]
    return Case((str(index), kind, *(("--json",) if kind == "json" else ())), call="planted")


def plant(index: str, *_: str) -> None:
    """Do what no case may do."""
    PLANTED[int(index)][1]()


KNOWN_FAULTS: list[Builder] = [partial(planted, index) for index in range(len(PLANTED))]
