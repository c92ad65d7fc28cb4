"""Optional tools that a recipe needs (TensorBoard, a compiler), checked before anything is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from bnprune.config.schema import PipelineConfig
from bnprune.errors import ConfigError, first_line
from bnprune.runs.stages import kind_of


def require_tools(config: PipelineConfig, stages: Sequence[str], device: torch.device) -> None:
    """Check that TensorBoard and a compiler are installed if stages use them.

    Raises:
        ConfigError: One is missing.
    """
    kinds = {kind_of(stage) for stage in stages} - {"prune"}
    if config.tensorboard and kinds and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("tensorboard: the package is not installed: pip install tensorboard")
    for section in ("train", "finetune"):
        used = kinds & ({"finetune"} if section == "finetune" else {"baseline", "train", "scratch"})
        if used and getattr(getattr(config, section), "compile", False):
            _require_compiler(section, device)


def _require_compiler(section: str, device: torch.device) -> None:
    try:
        torch.compile(_doubled)(torch.ones(3, device=device, requires_grad=True)).sum().backward()
    except Exception as error:
        needed = "a C++ compiler (g++ or clang++)" if device.type == "cpu" else "Triton and a C compiler"
        raise ConfigError(
            f"{section}.compile: torch.compile does not work here: {first_line(error)}. "
            f"It needs {needed}; install it, or set {section}.compile=false."
        ) from error


def _doubled(values: torch.Tensor) -> torch.Tensor:
    return values + values
