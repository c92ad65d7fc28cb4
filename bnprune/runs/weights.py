"""Weights in files: reading untrusted state dicts without running code, and loading them into a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from bnprune.errors import CheckpointError, first_line, shortened
from bnprune.runs.safe_pickle import load_plain

Shapes = Mapping[str, tuple[int, ...]]
_HEADER_BYTES = 16 * 2**20
_MOST_TENSORS = 6_000
_PLAIN_WEIGHTS = "Weights from elsewhere (.pt) go with the name of a network."
_NAMED_NETWORK = {"model": "NAME", "weights": "FILE"}


def require_file(path: Path, expected: str) -> None:
    """Check that a path is a regular file that is not empty.

    Raises:
        CheckpointError: It is missing, empty, a folder, or a device.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise CheckpointError(f"'{path}' {what}. Expected {expected}.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"'{path}' is empty; the disk may have been full when it was written.")


def opened(path: Path) -> Any:
    """Open a safetensors file for a `with` block, after checking the size of its header.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    require_file(path, "a checkpoint (.safetensors) or a run directory")
    if any(0xDC80 <= ord(char) <= 0xDCFF for char in str(path)):  # bytes that Python could not decode
        raise CheckpointError(f"'{path}' cannot be opened: its name is not UTF-8. Rename the file or folder.")
    _require_small_header(path)
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip() or type(error).__name__
        raise CheckpointError(
            f"'{path}' is not a safetensors file, or is damaged: {reason}. {_PLAIN_WEIGHTS}",
            remedy=_NAMED_NETWORK,
        ) from error


def _require_small_header(path: Path) -> None:
    """Check the size of the header: a safetensors file begins with it, as eight little-endian bytes."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):  # a zip archive
        raise CheckpointError(
            f"'{path}' is not a safetensors file: it looks like one of torch.save. {_PLAIN_WEIGHTS}",
            remedy=_NAMED_NETWORK,
        )
    length = int.from_bytes(start, "little")
    if length > min(_HEADER_BYTES, path.stat().st_size):
        raise CheckpointError(
            f"'{path}' is not a safetensors file, or is damaged: its header claims {length:,} bytes (at most "
            f"{_HEADER_BYTES:,} are read, and the file has {path.stat().st_size:,}). {_PLAIN_WEIGHTS}",
            remedy=_NAMED_NETWORK,
        )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        with opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error


def stored_shapes(path: Path, aliases: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file, reading only its header."""
    with opened(path) as file:
        names = list(file.keys())
        if len(names) > _MOST_TENSORS:
            raise CheckpointError(f"'{path}' holds {len(names):,} tensors; at most {_MOST_TENSORS:,} are read.")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes | {name: shapes[stored] for name, stored in aliases.items() if stored in shapes}


def fit_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load tensors into a network, strictly; the network takes over their floating-point dtype.

    Raises:
        CheckpointError: Names, shapes or kinds of tensors differ.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    odd = [name for name in own if name in state and not _convertible(state[name], own[name])]
    kinds = [f"{name} is {_kind(state[name])}, not {_kind(own[name])}" for name in odd]
    shapes = {name: tuple(own[name].shape if name in odd else tensor.shape) for name, tensor in state.items()}
    _refuse(model, _differences(model, shapes) | {"other kinds of tensors": kinds}, source)
    _match_dtypes(model, state)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:  # from code of the network itself: hooks, or a state with other values than tensors
        raise CheckpointError(f"{source} cannot be loaded into {type(model).__name__}: {first_line(error)}.") from error


def require_shapes(model: nn.Module, shapes: Shapes, source: str) -> None:
    """Compare the names and shapes of tensors with those of a network.

    Raises:
        CheckpointError: They differ.
    """
    _refuse(model, _differences(model, shapes), source)


def _differences(model: nn.Module, shapes: Shapes) -> dict[str, list[str]]:
    state = model.state_dict().items()
    own = {name: tuple(tensor.shape) for name, tensor in state if isinstance(tensor, torch.Tensor)}
    return {
        "missing": [name for name in own if name not in shapes],
        "unexpected": [name for name in shapes if name not in own],
        "other shapes": [
            f"{name} is {shapes[name]}, not {shape}" for name, shape in own.items() if shapes.get(name, shape) != shape
        ],
    }


def _refuse(model: nn.Module, differences: Mapping[str, list[str]], source: str) -> None:
    if not any(differences.values()):
        return
    detail = "; ".join(
        f"{what} {len(names)} ({', '.join(map(shortened, names[:3]))}{', ...' if len(names) > 3 else ''})"
        for what, names in differences.items()
        if names
    )
    fix = " Save weights as dense floating-point tensors." if differences.get("other kinds of tensors") else ""
    raise CheckpointError(f"{source} does not fit the network ({type(model).__name__}): {detail}.{fix}")


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _convertible(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Return True if a tensor can replace one of the network: it has values, is dense, and has a similar dtype."""
    if tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
        return False
    if own.dtype in _FLOATS:
        return tensor.dtype in _FLOATS
    if own.is_complex() or own.dtype == torch.bool:
        return tensor.dtype == own.dtype
    return not tensor.is_complex() and tensor.dtype != torch.bool  # counters, which some files store as floating point


def _kind(tensor: torch.Tensor) -> str:
    """Return how a tensor is stored, such as "float32" or "sparse float32"."""
    kinds = {"meta": tensor.is_meta, "nested": tensor.is_nested, "sparse": tensor.layout != torch.strided}
    return " ".join([*(kind for kind, is_so in kinds.items() if is_so), str(tensor.dtype).removeprefix("torch.")])


def _match_dtypes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state and state[name].dtype != tensor.dtype and tensor.is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read an untrusted state dict: `.safetensors`, or `.pt`/`.pth` without running code.

    Raises:
        CheckpointError: The file is missing or damaged, would run code, or holds no state dict.
    """
    require_file(path, "weights (.safetensors, .pt or .pth)")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        found = load_plain(path)
    except Exception:  # noqa: BLE001 - a damaged archive raises whatever zipfile finds
        raise CheckpointError(
            f"'{path}' was refused: it is damaged, or a pickle that holds more than tensors and could run code. "
            "Save plain weights instead: torch.save(model.state_dict(), path), or use .safetensors."
        ) from None
    return _state_dict(found, path)


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def _state_dict(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict inside the containers that training scripts save it in."""
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"'{path}' holds no state dict (names mapped to tensors). It is {_described(found)}.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"'{path}' holds no state dict (names mapped to tensors). In it {_described(name)} is mapped to "
                f"{_described(tensor)}. A state dict may stand under {', '.join(_WRAPPERS)}."
            )
    state = dict(found)
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"'{shortened(value)}'"
    return (
        f"an empty {type(value).__name__}" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"
    )
