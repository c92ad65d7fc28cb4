"""The flags of the arguments of the workflows."""

from __future__ import annotations

_RENAMED = {
    "backends": "backend",
    "input_shape": "input",
    "latency_ms": "latency",
    "model_arguments": "model-arg",
    "recipe": "config",
    "values": "at",
}
"""Arguments whose flags have another name."""


def flag(name: str) -> str:
    """Return the flag of an argument: `--min-channels` for `min_channels`."""
    return "--" + _RENAMED.get(name, name).replace("_", "-")
