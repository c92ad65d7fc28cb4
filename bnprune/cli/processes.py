"""Verbs that may run in several processes."""

from __future__ import annotations

import os
import sys

from bnprune.errors import ConfigError, PeerFailed
from bnprune.training.distributed import torchrun_env

TOGETHER = ("run", "train", "finetune")
"""Verbs that train, the only ones for several processes."""


def require_alone(verb: str) -> None:
    """Refuse several processes for verbs that do not train: all of them would write the same file.

    Raises:
        ConfigError: In the first process.
        PeerFailed: In the others, which print nothing.
    """
    if torchrun_env.processes() == 1 or verb in TOGETHER:
        return
    if torchrun_env.rank():
        raise PeerFailed(ConfigError.exit_code)
    raise ConfigError(
        f"`bnprune {verb}` runs in one process: start it without torchrun. Only {', '.join(TOGETHER)} train."
    )


def leave_together(code: object) -> None:
    """End a failed process of several at once.

    Interpreter shutdown would block in the destructors of NCCL or gloo, because other processes are gone; hence
    `os._exit`.
    """
    if code and torchrun_env.processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
