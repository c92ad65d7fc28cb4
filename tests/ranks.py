"""Several processes at work together, as `torchrun` starts them, each with an exit code and output of its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from bnprune.training.distributed.processes import open_processes

_stores: list[TCPStore] = []


def environments(size: int) -> list[dict[str, str]]:
    """The variables that tell each process its place; like `torchrun`, this process keeps the store they meet at."""
    _stores[:] = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_stores[0].port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def in_processes(function: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
    """Call `function(world, *args)` in every process, and return what it returns in each."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_call, args=(environment, folder, function, args))
            for environment in environments(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * size
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(size)]


def _call(environment: dict[str, str], folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open_processes() as processes:
        Path(folder, str(processes.rank)).write_bytes(pickle.dumps(function(processes, *args)))


def spawn(*args: object, size: int = 2) -> list[subprocess.Popen[str]]:
    """Start `python -m bnprune` in every process."""
    command = [sys.executable, "-m", "bnprune", *map(str, args)]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})
        for environment in environments(size)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 180) -> list[tuple[int, str, str]]:
    """Wait for processes; return exit code, stdout and stderr of each."""
    outputs = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
