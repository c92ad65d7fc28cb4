"""Plain weights and, if the network can be written as source, a Python file with the architecture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import nn

from bnprune.errors import BnpruneError, first_line
from bnprune.exporters.parity import Runner, eager
from bnprune.exporters.python_source import to_python
from bnprune.exporters.request import ExportedFiles, ExportRequest
from bnprune.runs.checkpoint import stored


def export_state_dict(request: ExportRequest) -> ExportedFiles:
    """Write the state dict: safetensors, or what `torch.load` reads if the suffix is .pt or .pth."""
    weights = _weights(request.model, request.suffix, request.metadata)
    try:
        code = to_python(request.model, request.title, f"{request.stem}{request.suffix}")
        runner = run_source(code, _read(weights, request.suffix))
    except Exception as error:  # noqa: BLE001 - the weights are useful without the Python file
        return ExportedFiles({request.suffix: weights}, None, (no_source(error),))
    return ExportedFiles({request.suffix: weights, ".py": code.encode()}, lambda: runner)


def no_source(error: Exception) -> str:
    """Return the note that says why there is no Python file."""
    reason = str(error) if isinstance(error, BnpruneError) else first_line(error)
    return f"no Python file with the architecture: {reason}"


def _weights(model: nn.Module, suffix: str, metadata: Mapping[str, str]) -> bytes:
    state = model.state_dict()
    if suffix == ".safetensors":
        kept, aliases = stored(state)
        tensors = {**kept, **{name: kept[own].clone() for name, own in aliases.items()}}
        return safetensors.torch.save(tensors, {"format": "pt", **metadata})
    file = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in state.items()}, file)
    return file.getvalue()


def _read(weights: bytes, suffix: str) -> dict[str, torch.Tensor]:
    if suffix == ".safetensors":
        return safetensors.torch.load(weights)
    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(weights), weights_only=True)
    return state


def run_source(code: str, state: dict[str, torch.Tensor]) -> Runner:
    """Run generated code as a user would, and load the weights into its network."""
    names: dict[str, Any] = {"__name__": "network"}
    exec(compile(code, "network.py", "exec"), names)
    network = names["Network"]()
    network.load_state_dict(state)
    return eager(network)
