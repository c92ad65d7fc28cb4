"""Checkpoints: weights in safetensors, and in its metadata all it takes to rebuild the network. Never a pickle.

A checkpoint names its network by a zoo, torchvision or timm name; one built by a factory of the user's own is loaded
with that factory given again, because a factory read from a file would be an arbitrary call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from bnprune.errors import CheckpointError, ConfigError, PruningError, first_line, shortened
from bnprune.models.zoo import ModelSpec, build
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.prune import PruningResult
from bnprune.pruning.surgery import apply, plans_of
from bnprune.runs.files import plain, write_atomically

SCHEMA = "bnprune.checkpoint/1"
_KEY = "bnprune"


@dataclass(frozen=True)
class Header:
    """Everything a checkpoint knows besides its weights."""

    spec: ModelSpec
    plans: tuple[PruningPlan, ...] = ()
    """How the network was cut, in order; empty for a dense one."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one input, without the batch."""
    stage: str | None = None
    """The stage that wrote it: "baseline", "train", "prune" or "finetune"."""
    config: Mapping[str, Any] | None = None
    """The recipe it comes from, as plain data."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of tensors that the network holds more than once -> the name they are stored under."""


def save_checkpoint(path: Path, model: nn.Module, header: Header) -> None:
    """Write a network and its header, atomically.

    Raises:
        DataError: The file cannot be written; the one before is intact.
    """
    tensors, aliases = stored(model.state_dict())
    metadata = {_KEY: json.dumps(plain(_header_dict(replace(header, aliases=aliases))))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def stored(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return each tensor of a state dict once, contiguous, and the names of its copies -> the names they are under."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"'{name}' in the state of the network is not a tensor; it cannot be saved safely.")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        # A copy where a view shares memory with another tensor: safetensors refuses shared storage.
        own = tensor.numel() == tensor.untyped_storage().nbytes() // tensor.element_size()
        tensors[name] = tensor.detach().cpu().contiguous() if own else tensor.detach().cpu().clone().contiguous()
    return tensors, aliases


def _header_dict(header: Header) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": header.spec.to_dict(),
        "plans": [plan.to_dict() for plan in header.plans],
        "input": header.input_shape,
        "stage": header.stage,
        "config": header.config,
        "metrics": dict(header.metrics),
        "aliases": dict(header.aliases),
    }


def read_header(path: Path) -> Header:
    """Read what a checkpoint says about itself, without its weights.

    Raises:
        CheckpointError: The file is missing, empty, damaged, or not one of ours.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise CheckpointError(
            f"'{path}' holds weights, but was not written by bnprune. Give the network too: "
            f"--model NAME_OR_pkg.mod:factory --weights {path}"
        )
    try:
        data = json.loads(metadata[_KEY])
        schema = data["schema"]
        if schema == SCHEMA:
            return _header_from(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}': its header is damaged: {type(error).__name__}: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': its header is damaged: {error}") from error
    raise CheckpointError(f"'{path}': expected schema '{SCHEMA}', got '{schema}'. Update bnprune.")


def _header_from(data: Mapping[str, Any]) -> Header:
    return Header(
        spec=ModelSpec.from_dict(data["model"]),
        plans=tuple(PruningPlan.from_dict(plan) for plan in data["plans"]),
        input_shape=_shape_from(data.get("input")),
        stage=data.get("stage"),
        config=None if data.get("config") is None else _mapping_from(data, "config"),
        metrics=_mapping_from(data, "metrics"),
        aliases={str(name): str(stored) for name, stored in _mapping_from(data, "aliases").items()},
    )


def _shape_from(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError(f"'input' must be a list of sizes, got {value!r}")
    return tuple(value)


def _mapping_from(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise TypeError(f"'{key}' must map names to values, got {value!r}")
    return value


def _require_file(path: Path, expected: str) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise CheckpointError(f"'{path}' {what}. Expected {expected}.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"'{path}' is empty; the disk may have been full when it was written.")


def _opened(path: Path) -> Any:
    _require_file(path, "a checkpoint (.safetensors) or a run directory")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip() or type(error).__name__
        raise CheckpointError(
            f"'{path}' is not a safetensors file, or is damaged: {reason}. "
            "Weights from elsewhere (.pt) go with --model ... --weights FILE."
        ) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        with _opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error


def load_checkpoint(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, Header]:
    """Rebuild the network of a checkpoint.

    Args:
        path: A file written by `save_checkpoint`.
        model: The dense network, any weights; needed where the checkpoint comes from a factory of the user's own.

    Raises:
        CheckpointError: The file is missing, damaged or foreign, or `model` is not the network it was made from.
    """
    header = read_header(path)
    if model is None:
        model = _dense(path, header.spec)
    try:
        for plan in header.plans:
            model = apply(plan, model)
    except PruningError as error:
        raise CheckpointError(f"'{path}' does not fit the network: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from error
    load_weights(path, model)
    return model, header


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a network of the same architecture, slim as it is.

    Raises:
        CheckpointError: The file is missing or damaged, or the network is another one.
    """
    state = read_tensors(path)
    aliases = read_header(path).aliases
    state.update({name: state[stored] for name, stored in aliases.items() if stored in state})
    fit_state(model, state, f"'{path}'")


def _dense(path: Path, spec: ModelSpec) -> nn.Module:
    if spec.own:
        raise CheckpointError(
            f"'{path}' holds a network of your own ({spec.label}), and bnprune does not run code named by a file. "
            f"Give the network again: bnprune.load(path, model=build()), or --model {spec.label} on the command line."
        )
    try:
        return build(spec, f"'{path}'")
    except ConfigError as error:  # the name and its arguments come from the file, not from the user
        raise CheckpointError(str(error)) from error


def fit_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load tensors into a network, strictly, taking over their floating-point dtype.

    Raises:
        CheckpointError: Names, shapes or kinds of tensors differ.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    odd = [name for name in own if name in state and not _convertible(state[name], own[name])]
    differences = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "other shapes": [
            f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in state and name not in odd and state[name].shape != own[name].shape
        ],
        "other kinds of tensors": [f"{name} is {_kind(state[name])}, not {_kind(own[name])}" for name in odd],
    }
    if any(differences.values()):
        detail = "; ".join(
            f"{what} {len(names)} ({', '.join(map(shortened, names[:3]))}{', ...' if len(names) > 3 else ''})"
            for what, names in differences.items()
            if names
        )
        fix = " Save weights as dense floating-point tensors." if odd else ""
        raise CheckpointError(f"{source} does not fit the network ({type(model).__name__}): {detail}.{fix}")
    _match_dtypes(model, state)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:  # code of the network itself: hooks, or a state that is not made of tensors
        raise CheckpointError(f"{source} cannot be loaded into {type(model).__name__}: {first_line(error)}.") from error


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _convertible(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor can take the place of one of the network: with values, dense, and of a dtype like its own."""
    if tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
        return False
    if own.dtype in _FLOATS:
        return tensor.dtype in _FLOATS
    if own.is_complex() or own.dtype == torch.bool:
        return tensor.dtype == own.dtype
    return not tensor.is_complex() and tensor.dtype != torch.bool  # counters, which some store as the weights are


def _kind(tensor: torch.Tensor) -> str:
    """Return how a tensor is stored, such as "float32" or "sparse float32"."""
    kinds = {"meta": tensor.is_meta, "nested": tensor.is_nested, "sparse": tensor.layout != torch.strided}
    return " ".join([*(kind for kind, is_so in kinds.items() if is_so), str(tensor.dtype).removeprefix("torch.")])


def _match_dtypes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state and state[name].dtype != tensor.dtype and tensor.is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from anyone: `.safetensors`, or `.pt`/`.pth` without running code.

    Raises:
        CheckpointError: The file is missing or damaged, would run code, or holds no state dict.
    """
    _require_file(path, "weights (.safetensors, .pt or .pth)")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - and what torch says is left out: it advises to unpickle the file
        raise CheckpointError(
            f"'{path}' was refused: it is damaged, or a pickle that holds more than tensors and could run code. "
            "Save plain weights instead: torch.save(model.state_dict(), path), or use .safetensors."
        ) from None
    return _state_dict(found, path)


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def _state_dict(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """Unwrap what training scripts put around a state dict."""
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


def save(
    result: PruningResult,
    path: str | Path,
    *,
    spec: ModelSpec | str | None = None,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Save a pruned network: weights, the plans of all its cuts, and how to rebuild it.

    Args:
        result: What `bnprune.prune` returned.
        path: A `.safetensors` file.
        spec: What the dense network was built from (`"torchvision/resnet18"`, or a `ModelSpec` with arguments), so that
            `load` needs nothing else. Without it, `load` takes the dense network as `model=`.
        input_shape: Shape of one input, without the batch; the command line uses it.

    Raises:
        DataError: The file cannot be written.
    """
    if spec is None:
        spec = ModelSpec(factory=type(result.model).__name__)
    elif isinstance(spec, str):
        spec = ModelSpec.parse(spec, {})
    shape = tuple(input_shape) if input_shape is not None else None
    plans = plans_of(result.model) or (result.plan,)
    save_checkpoint(Path(path), result.model, Header(spec, plans, shape, stage="prune"))


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a network saved by bnprune, in eval mode.

    Args:
        path: A `.safetensors` checkpoint.
        model: The dense network, any weights; needed only for a network of your own.

    Raises:
        CheckpointError: The file is missing, damaged or foreign, or needs `model`.
    """
    return load_checkpoint(Path(path), model)[0].eval()
