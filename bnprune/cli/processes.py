"""Several processes: which verbs may use them, and how a failed process ends."""

from __future__ import annotations

import os
import sys

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


def exit_immediately(code: object) -> None:
    """End the process immediately, if it failed and is one of several.

    Interpreter shutdown would block in the destructors of NCCL or gloo, because other processes have ended; hence
    `os._exit`.
    """
    if code and torchrun_env.processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
