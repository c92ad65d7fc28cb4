"""Checkpoints: a safetensors file with the weights, whose metadata says how to rebuild the network. Never a pickle.

A checkpoint names its network by a zoo, torchvision or timm name; one built by a factory of the user's own is loaded
with that factory given again, because a factory read from a file would be an arbitrary call (see `trust`).

Nothing is allocated before the file is known to fit the network: the size of the header is limited, the network is
built and pruned on the meta device, and its shapes are compared with those in the file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bnprune import __version__
from bnprune.config.bounded_reading import parse_json, require_shape, table
from bnprune.errors import BnpruneError, CheckpointError, ConfigError, PruningError, UntrustedError, shortened
from bnprune.models.construction import TooLarge, construct, construct_on_meta
from bnprune.models.zoo import ModelSpec, build
from bnprune.pruning.plan import PruningPlan, read_plans
from bnprune.pruning.surgery import apply
from bnprune.runs.files import plain, write_atomically
from bnprune.runs.results import InputFormat
from bnprune.runs.trust import Withheld, is_trusted, recipe_from_file, require_arguments, spec_from_file
from bnprune.runs.weights import fit_state, opened, read_tensors, require_shapes, stored_shapes

SCHEMA = "bnprune.checkpoint/1"
_KEY = "bnprune"
_SMALL_NETWORK, _LARGEST_CUT = 2**28, 8
"""The dense network may have 2**28 values, or 8 for each byte of the file: 32 times those of a slim one in float32."""


@dataclass(frozen=True)
class Header:
    """Everything in a checkpoint besides the weights."""

    spec: ModelSpec
    plans: tuple[PruningPlan, ...] = ()
    """The plans by which the network was pruned, in order; empty for a dense one."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one input, without the batch."""
    stage: str | None = None
    """The stage that wrote it: "baseline", "train", "prune" or "finetune"."""
    config: Mapping[str, Any] | None = None
    """The recipe that made it, as plain data."""
    inputs: InputFormat | None = None
    """How images become inputs, and the names of the classes; None if it is not known."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """For tensors with several names (tied weights): further name -> name under which the tensor is stored."""
    withheld: Withheld = field(default_factory=dict)
    """Entries that were left out of `spec` and `config`, because the file is not trusted; see `trust.Withheld`."""


def save_checkpoint(path: Path, model: nn.Module, header: Header) -> None:
    """Write a network and its header, atomically.

    Raises:
        DataError: The file cannot be written; an earlier file of that name is unchanged.
    """
    tensors, aliases = stored(model.state_dict())
    metadata = {_KEY: json.dumps(plain(_header_dict(replace(header, aliases=aliases))))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def stored(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return each tensor of a state dict once, contiguous, and the aliases (see `Header.aliases`)."""
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
        # A view that shares memory with another tensor is copied: safetensors refuses shared storage.
        own = tensor.numel() == tensor.untyped_storage().nbytes() // tensor.element_size()
        tensors[name] = tensor.detach().cpu().contiguous() if own else tensor.detach().cpu().clone().contiguous()
    return tensors, aliases


def _header_dict(header: Header) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": header.spec.to_dict(),
        "plans": [plan.to_dict() for plan in header.plans],
        "input": header.input_shape,
        "stage": header.stage,
        "config": header.config,
        **({"inputs": header.inputs.to_dict()} if header.inputs is not None else {}),
        "metrics": dict(header.metrics),
        "aliases": dict(header.aliases),
        **({"withheld": sorted(header.withheld)} if header.withheld else {}),
    }


def holds_plain_weights(path: Path) -> bool:
    """Return True if a file holds a state dict (`.pt`, `.pth`, or `.safetensors` of another program).

    Raises:
        CheckpointError: A safetensors file is missing or damaged.
    """
    if path.suffix in (".pt", ".pth"):
        return True
    with opened(path) as file:
        return _KEY not in (file.metadata() or {})


def read_header(path: Path, *, trust: bool = False) -> Header:
    """Read the header of a checkpoint, without the weights.

    Args:
        path: The file.
        trust: Let the file name code, paths and downloads; see `trust`.

    Raises:
        CheckpointError: The file is missing, empty, damaged, or not a bnprune checkpoint.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise CheckpointError(
            f"'{path}' holds weights, but was not written by bnprune. Give the network too.",
            remedy={"model": "NAME_OR_pkg.mod:factory", "weights": path},
        )
    try:
        data = table(parse_json(metadata[_KEY]))
        schema = data["schema"]
        if schema == SCHEMA:
            return _header_from(data, trusted=is_trusted(path, asked=trust))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"'{path}': its header is damaged: {type(error).__name__}: {error}") from error
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"'{path}': its header is damaged: {error}") from error
    raise CheckpointError(f"'{path}': expected schema '{SCHEMA}', got '{schema}'. Update bnprune.")


def _header_from(data: Mapping[str, Any], *, trusted: bool) -> Header:
    model = _mapping_from(data, "model")
    if not isinstance(model.get("kwargs", {}), dict):
        raise TypeError("'model.kwargs' must map names to values")
    spec, withheld = spec_from_file(_texts(model, "name", "factory"), trusted=trusted)
    config = None
    if data.get("config") is not None:
        config, left_out = recipe_from_file(_mapping_from(data, "config"), spec, trusted=trusted)
        withheld |= left_out
    withheld |= {key: "" for key in _names(data.get("withheld", [])) if key not in withheld}
    plans = read_plans(data["plans"])
    return Header(
        spec=spec,
        plans=plans,
        input_shape=None if data.get("input") is None else require_shape(data["input"]),
        stage=_texts(data, "stage").get("stage"),
        config=config,
        inputs=None if data.get("inputs") is None else InputFormat.model_validate(_mapping_from(data, "inputs")),
        metrics=_mapping_from(data, "metrics"),
        aliases={str(name): str(stored) for name, stored in _mapping_from(data, "aliases").items()},
        withheld=withheld,
    )


def _texts(data: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return the data, if everything under `keys` is text or nothing."""
    for key in keys:
        if not isinstance(data.get(key), str | None):
            raise TypeError(f"'{key}' must be text")
    return data


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > 100 or not all(_is_key(name) for name in value):
        raise ValueError("'withheld' must be a list of keys")
    return value


def _is_key(name: Any) -> bool:
    return isinstance(name, str) and len(name) < 100 and name.isprintable()


def _mapping_from(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise TypeError(f"'{key}' must map names to values")
    return value


def load_checkpoint(path: Path, model: nn.Module | None = None, *, trust: bool = False) -> tuple[nn.Module, Header]:
    """Rebuild the network of a checkpoint.

    Args:
        path: A file written by `save_checkpoint`.
        model: The dense network, any weights; needed if the checkpoint names a factory of the user's own. It is not
            changed.
        trust: Let the file name code, paths and downloads; see `trust`.

    Raises:
        CheckpointError: The file is missing, damaged or not a bnprune checkpoint, or `model` is not its network.
        UntrustedError: The file names a factory, and neither `model` nor `trust` is given.
    """
    header = read_header(path, trust=trust)
    shapes = stored_shapes(path, header.aliases)
    given = model is not None
    if model is None:
        model = _dense(path, header, shapes, trusted=is_trusted(path, asked=trust))
    if given and not header.plans:
        model = copy.deepcopy(model)
    slim = _cut(path, header.plans, model)
    load_weights(path, slim)
    return slim, header


def _cut(path: Path, plans: Sequence[PruningPlan], model: nn.Module) -> nn.Module:
    try:
        for plan in plans:
            model = apply(plan, model)
    except PruningError as error:
        raise CheckpointError(f"'{path}' does not fit the network: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from error
    return model


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a network of the same (slim) architecture.

    Raises:
        CheckpointError: The file is missing or damaged, or does not fit the network.
    """
    aliases = read_header(path).aliases
    require_shapes(model, stored_shapes(path, aliases), f"'{path}'")
    state = read_tensors(path)
    state.update({name: state[stored] for name, stored in aliases.items() if stored in state})
    fit_state(model, state, f"'{path}'")


def _dense(path: Path, header: Header, shapes: Mapping[str, tuple[int, ...]], *, trusted: bool) -> nn.Module:
    """Build the dense network that a file names, after checking that the file fits it."""
    spec = header.spec
    if spec.own and not trusted:
        raise UntrustedError(str(path), {"model.factory": shortened(spec.label, 60)}, "model")
    require_arguments(str(path), header.withheld)
    try:
        if trusted:
            return build(spec, f"'{path}'")
        elements = _require_fit_on_meta(path, header, shapes)
        return construct(lambda: build(spec, f"'{path}'"), len(shapes), elements)
    except TooLarge as error:
        raise CheckpointError(f"'{path}' does not fit the network it names ({spec.label}): {error}.") from error
    except ConfigError as error:  # the name and its arguments come from the file, not from the user
        raise CheckpointError(str(error)) from error


def _require_fit_on_meta(path: Path, header: Header, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Compare a file with the network it names before anything is allocated; return an upper bound on its values.

    Some constructors need values and fail on the meta device. Their networks are compared after they have been built,
    with the same bound on their size.
    """
    bound = max(_SMALL_NETWORK, _LARGEST_CUT * path.stat().st_size)
    try:
        dense = construct_on_meta(lambda: build(header.spec, f"'{path}'"), len(shapes))
    except TooLarge:
        raise
    except (BnpruneError, OSError):
        return bound
    size = sum(tensor.numel() for tensor in dense.state_dict().values())
    if size > bound:
        raise TooLarge(f"it has {size:,} values, and the file {path.stat().st_size:,} bytes")
    require_shapes(_cut(path, header.plans, dense), shapes, f"'{path}'")
    return bound
