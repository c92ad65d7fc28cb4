"""Surgery: a plan and a network in, a new and smaller network out. The given network is untouched."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bnprune.errors import PruningError
from bnprune.pruning.gates import gated_name, install
from bnprune.pruning.plan import PruningPlan, identity

_WRAPPERS = {
    "DistributedDataParallel": "prune `model.module` on every rank with the same plan, then wrap the result again",
    "DataParallel": "prune `model.module`, then wrap the result again",
    "FullyShardedDataParallel": "prune the network before it is sharded",
    "OptimizedModule": "prune the network before torch.compile (`model._orig_mod`), then compile the result",
    "RecursiveScriptModule": "prune the Python module, then script the result",
    "TopLevelTracedModule": "prune the Python module, then trace the result",
}


def require_bare(model: Any) -> None:
    """Refuse anything surgery would silently break.

    Raises:
        PruningError: `model` is not a module, or one that wraps another (DDP, torch.compile, TorchScript).
    """
    if isinstance(model, torch.optim.Optimizer):
        raise PruningError("got an optimizer: prune the network, then build a new optimizer for the slim one.")
    if not isinstance(model, nn.Module):
        raise PruningError(f"got a {type(model).__name__}, expected a torch.nn.Module.")
    for name, module in model.named_modules():
        advice = _WRAPPERS.get(type(module).__name__)
        if advice:
            raise PruningError(f"{name or 'the network'} is wrapped in {type(module).__name__}: {advice}.")


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer once, under its first name."""
    seen: set[int] = set()
    for source in (model.named_parameters(), model.named_buffers()):
        for name, tensor in source:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor


def apply(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Cut a network as the plan says.

    Parameters keep device, dtype, `requires_grad` and memory format; module attributes (`in_channels`, `groups`, ...)
    are made true. Only slices that stay are copied. Build a new optimizer for the result: an old one holds the old
    parameters.

    Args:
        plan: Made for a network with the same parameter names and shapes (`plan.digest`).
        model: The bare network: not wrapped in DDP or torch.compile.

    Raises:
        PruningError: The plan was made for another network, or `model` is wrapped.
    """
    require_bare(model)
    return fill(carve(plan, model), plan, model)


def carve(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Return the slim network without weights: its parameters and buffers are on the meta device."""
    keeps = _keeps(plan)

    def hollow(name: str, tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        for dim, keep in keeps.get(name, ()):
            shape[dim] = keep.numel()
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    return _copy(plan, model, hollow)


def fill(slim: nn.Module, plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Give a carved network the weights of the original that stay; use the return value."""
    keeps = _keeps(plan)

    def piece(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return _slice(tensor.detach(), keeps.get(name, []))

    tensors = dict(named_tensors(slim))
    if any(weakref.getweakrefcount(tensor) for tensor in tensors.values()):
        return _copy(plan, model, piece)  # recurrent layers hold weak references, which cannot be swapped
    gated = {gate.at for gate in plan.gates}
    for name, tensor in named_tensors(model):
        torch.utils.swap_tensors(tensors[gated_name(name, gated)], _like(tensor, piece(name, tensor)))
    install(plan.gates, slim, model)
    return slim


def _copy(plan: PruningPlan, model: nn.Module, make: Callable[[str, torch.Tensor], torch.Tensor]) -> nn.Module:
    """Copy the structure of a network with other tensors in it, and set the attributes of the plan."""
    tensors = dict(named_tensors(model))
    _require_fit(plan, model, tensors)
    memo: dict[int, Any] = {id(tensor): _like(tensor, make(name, tensor)) for name, tensor in tensors.items()}
    try:
        slim = copy.deepcopy(model, memo)
    except Exception as error:
        why = _computed_tensor(model) or f"{type(error).__name__}: {error}"
        raise PruningError(f"the network cannot be copied: {why}") from error
    for module_name, values in plan.attributes.items():
        module = slim.get_submodule(module_name)
        for attribute, value in values.items():
            listed = isinstance(getattr(module, attribute, None), list)
            setattr(module, attribute, [*value] if listed and isinstance(value, tuple) else value)
    install(plan.gates, slim, model)
    return slim


def _computed_tensor(model: nn.Module) -> str:
    """Name a tensor that is the result of a computation, which PyTorch does not copy; empty if there is none."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                return (
                    f"{name or 'the network'} keeps a computed tensor, '{attribute}'. If it is a weight norm, remove "
                    "it first (torch.nn.utils.remove_weight_norm); otherwise store the tensor with .detach()."
                )
    return ""


def _keeps(plan: PruningPlan) -> dict[str, list[tuple[int, torch.Tensor]]]:
    keeps: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for cut in plan.cuts:
        keep = torch.tensor(cut.keep)
        for name, dim in cut.at:
            keeps.setdefault(name, []).append((dim, keep))
    return keeps


def _require_fit(plan: PruningPlan, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    if plan.digest == identity({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        return
    detail = "its parameters have other names or shapes"
    for cut in plan.cuts:
        for name, dim in cut.at:
            if name not in tensors:
                detail = f"it has no '{name}'"
            elif tensors[name].shape[dim] != cut.size:
                detail = f"its '{name}' has size {tensors[name].shape[dim]} in dimension {dim}, the plan {cut.size}"
    raise PruningError(
        f"the plan was made for another network: it fits a {plan.model}, and this {type(model).__name__} differs "
        f"({detail}). Build the dense network exactly as it was when the plan was made."
    )


def _slice(source: torch.Tensor, keeps: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    piece = source
    for dim, keep in keeps:
        piece = piece.index_select(dim, keep.to(piece.device))
    if piece is source:
        return piece.clone()
    if source.dim() == 4 and not source.is_contiguous() and source.is_contiguous(memory_format=torch.channels_last):
        piece = piece.contiguous(memory_format=torch.channels_last)
    return piece


def _like(tensor: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Wrap a slice as what the original was: parameter (frozen or not) or buffer."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(piece, requires_grad=tensor.requires_grad)
    return piece.requires_grad_(tensor.requires_grad)
