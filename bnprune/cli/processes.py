"""Several processes: which verbs may use them, and how a failed process ends."""

from __future__ import annotations

import logging
import os
import sys

import typer

from bnprune.cli.stdout import stdout_for_processes
from bnprune.errors import ConfigError, PeerFailed
from bnprune.training.distributed import torchrun_env

TRAINING_VERBS = ("run", "train", "finetune")
"""Verbs that train. Only they may run in several processes."""


def require_single_process(verb: str) -> None:
    """Refuse several processes for verbs that do not train: all of them would write the same file.

    Raises:
        ConfigError: In the first process.
        PeerFailed: In the others, which print nothing.
    """
    if torchrun_env.processes() == 1 or verb in TRAINING_VERBS:
        return
    if torchrun_env.rank():
        raise PeerFailed(ConfigError.exit_code)
    raise ConfigError(
        f"`bnprune {verb}` runs in one process: start it without torchrun. Only {', '.join(TRAINING_VERBS)} train."
    )


def with_processes(gpus: str | None, processes: int | None) -> bool:
    """Run this command in several processes, if it is to and does not yet; end with the exit code of the first failure.

    The processes are started as `torchrun` does, with the same arguments, which they ignore here.

    Returns:
        True if the command has run; False if it is to run in this process.

    Raises:
        ConfigError: The GPUs are not there, or both options are given and differ.
        Exit: A process failed.
    """
    if "RANK" in os.environ or (gpus is None and processes is None):
        return False
    chosen = None if gpus is None else _numbers(gpus)
    if chosen is not None and processes not in (None, len(chosen)):
        raise ConfigError(f"--gpus and --processes: {gpus} are {len(chosen)} GPUs, not {processes} processes.")
    if chosen is not None:
        chosen = _among_visible(chosen)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)  # before torch looks
        _require_gpus(chosen)
    count = processes or len(chosen or ())
    if count == 1:
        return False
    code = _start(count, sys.argv[1:])
    if code:
        raise typer.Exit(code)
    return True


def _numbers(gpus: str) -> list[str]:
    numbers = [number.strip() for number in gpus.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise ConfigError(f"--gpus: expected different numbers such as 0,1 (got '{gpus}').")
    return numbers


def _among_visible(chosen: list[str]) -> list[str]:
    """Return the names of the chosen GPUs among those that CUDA_VISIBLE_DEVICES leaves to this program, if it does."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not visible:
        return chosen
    if max(map(int, chosen)) >= len(visible):
        raise ConfigError(f"--gpus: CUDA_VISIBLE_DEVICES leaves {len(visible)} GPUs, numbered from 0.")
    return [visible[int(number)] for number in chosen]


def _require_gpus(chosen: list[str]) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < len(chosen):
        there = "no CUDA device" if not found else f"only {found} of these"
        raise ConfigError(f"--gpus: there is {there} here (got {','.join(chosen)}). On CPUs: --processes N.")


def _start(count: int, arguments: list[str]) -> int:
    """Run `bnprune` with these arguments in several processes; return the exit code of the first that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in ("torch.distributed", "torch.distributed.run"):  # the first process says what is wrong
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = ["--standalone", "--nproc-per-node", str(count), "-m", "bnprune", *arguments]
    try:
        with stdout_for_processes():
            run(parse_args(command))
    except SignalException:  # the processes have stopped, and saved their state
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        failed = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return failed.exitcode if failed.exitcode > 0 else 1
    return 0


def exit_immediately(code: object) -> None:
    """End the process immediately, if it failed and is one of several.

    Interpreter shutdown would block in the destructors of NCCL or gloo, because other processes have ended; hence
    `os._exit`.
    """
    if code and torchrun_env.processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
