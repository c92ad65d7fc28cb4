"""Which verbs run in several processes, and which must not."""

from __future__ import annotations

import os

from bnprune.errors import ConfigError, PeerFailed

TOGETHER = ("run", "train", "finetune")
"""Verbs that train."""


def require_alone(verb: str) -> None:
    """Refuse to do in several processes what is done in one: all would write the same file.

    Raises:
        ConfigError: In the first process.
        PeerFailed: In the others, which leave the talking to the first.
    """
    several = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if not several or verb in TOGETHER:
        return
    if os.environ["RANK"] != "0":
        raise PeerFailed(ConfigError.exit_code)
    raise ConfigError(
        f"`bnprune {verb}` runs in one process: start it without torchrun. Only {', '.join(TOGETHER)} train."
    )
