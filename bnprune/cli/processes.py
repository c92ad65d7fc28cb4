"""Which verbs run in several processes, and which must not."""

from __future__ import annotations

import os
import sys

from bnprune.errors import ConfigError, PeerFailed
from bnprune.training.distributed import torchrun_env

TOGETHER = ("run", "train", "finetune")
"""Verbs that train."""


def require_alone(verb: str) -> None:
    """Refuse to do in several processes what is done in one: all would write the same file.

    Raises:
        ConfigError: In the first process.
        PeerFailed: In the others, which leave the talking to the first.
    """
    if torchrun_env.processes() == 1 or verb in TOGETHER:
        return
    if torchrun_env.rank():
        raise PeerFailed(ConfigError.exit_code)
    raise ConfigError(
        f"`bnprune {verb}` runs in one process: start it without torchrun. Only {', '.join(TOGETHER)} train."
    )


def leave_together(code: object) -> None:
    """End a process that failed among several, at once: a tidy exit trips over connections to those that are gone."""
    if code and torchrun_env.processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
