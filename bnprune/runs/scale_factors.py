"""Scale factors γ in files: those before training, and those of checkpoints, for histograms."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from bnprune.errors import CheckpointError
from bnprune.runs.files import write_atomically
from bnprune.training.penalties.gamma import scale_factors


def save_gammas(path: Path, model: nn.Module) -> None:
    """Write the scale factors of every BatchNorm under their names; write no file if there are none.

    Raises:
        DataError: The file cannot be written.
    """
    wanted = {id(gamma) for gamma in scale_factors(model)}
    pairs = ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) in wanted)
    gammas = {name: gamma.detach().cpu().clone() for name, gamma in pairs}
    if gammas:
        write_atomically(path, lambda temporary: save_file(gammas, temporary))


def read_gammas(path: Path, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Read |γ| by name, each of shape (C,): all that the file holds, or those in `names` that it holds.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            stored = file.keys()
            chosen = stored if names is None else [name for name in names if name in stored]
            return {name: file.get_tensor(name).abs().double() for name in chosen}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: a dtype that has no |x|
        raise CheckpointError(f"'{path}' is damaged: {error}") from error
