"""Short descriptions of values from user code, for messages."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import torch


def described(value: Any) -> str:
    """Return a short description of a value, without calling its `repr`."""
    if isinstance(value, torch.Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        place = f" on {value.device.type}" if isinstance(value, torch.Tensor) and value.device.type != "cpu" else ""
        layout = "sparse " if isinstance(value, torch.Tensor) and value.layout != torch.strided else ""
        return f"a {layout}{dtype} {type(value).__name__} of shape {tuple(value.shape)}{place}"
    if value is None or type(value) in (bool, int, float, str):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"
