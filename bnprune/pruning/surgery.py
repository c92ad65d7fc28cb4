"""Surgery: makes the slim network from a plan and the dense network, which is left untouched."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import modules_by_name
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import as_inputs, tensors
from bnprune.channels.structural_copy import copy_with_tensors, wrap_like
from bnprune.channels.torch_internals import TORCH_CONTAINERS, own_tensors
from bnprune.errors import CheckpointError, ConfigError, PruningError
from bnprune.pruning.bias_folding import fold, misfits
from bnprune.pruning.cut_history import record_plan
from bnprune.pruning.gates import Gate, gated_name, install, without_gate
from bnprune.pruning.plan import Cut, PruningPlan, Size, identity

_WRAPPERS = {
    "DistributedDataParallel": "prune `model.module` on every rank with the same plan, then wrap the result again",
    "DataParallel": "prune `model.module`, then wrap the result again",
    "FullyShardedDataParallel": "prune the network before it is sharded",
    "OptimizedModule": "prune the network before torch.compile (`model._orig_mod`), then compile the result",
    "RecursiveScriptModule": "prune the Python module, then script the result",
    "TopLevelTracedModule": "prune the Python module, then trace the result",
}


def require_bare(model: Any) -> None:
    """Refuse networks that surgery would silently break: a wrapper keeps references to the network's parameters.

    Raises:
        PruningError: `model` is not a module, or it wraps one (DDP, torch.compile, TorchScript).
    """
    if isinstance(model, torch.optim.Optimizer):
        raise PruningError("got an optimizer: prune the network, then build a new optimizer for the slim one.")
    if not isinstance(model, nn.Module):
        raise PruningError(f"got a {type(model).__name__}, expected a torch.nn.Module.")
    for name, module in modules_by_name(model).items():
        advice = _WRAPPERS.get(type(module).__name__)
        if advice:
            raise PruningError(f"{name or 'the network'} is wrapped in {type(module).__name__}: {advice}.")


def require_values(model: nn.Module, example_inputs: Any) -> None:
    """Refuse tensors on the meta device: they have shapes, but no values.

    Raises:
        PruningError: A tensor of the network is on the meta device.
        ConfigError: An input is on the meta device.
    """
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            raise PruningError(
                f"{name}: the tensor is on the meta device, without values (built under torch.device('meta')?). Load "
                "the weights first: model.to_empty(device='cpu'), then model.load_state_dict(...)."
            )
    if any(tensor.is_meta for tensor in tensors(as_inputs(example_inputs))):
        raise ConfigError(
            "the example inputs are on the meta device, without values (torch.set_default_device('meta')?). Make them "
            "where the network is: torch.zeros(..., device='cpu')."
        )


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer once, under its first name.

    A tensor that two modules share (tied weights) is cut once, under that name, and stays shared.
    """
    seen: set[int] = set()
    for prefix, module in modules_by_name(model).items():
        for name, tensor in own_tensors(module).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}" if prefix else name, tensor


@preserve_thread_state
def apply(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Return the slim network that a plan gives for a network.

    Parameters keep their device, dtype, `requires_grad` and memory format. Module attributes (`in_channels`, `groups`,
    ...) are set to the new sizes. Only the slices that stay are copied. Build a new optimizer for the result: an old
    one holds the old parameters.

    Args:
        plan: Made for a network with the same parameter names and shapes (`plan.digest`).
        model: The bare network: not wrapped in DDP or torch.compile.

    Returns:
        A new network. It shares no tensor with `model`, which is left as it was.

    Raises:
        PruningError: The plan was made for another network, or `model` is wrapped.
        CheckpointError: The plan is damaged.

    Example::

        plan = bnprune.plan(model, example_inputs, ratio=0.5)
        slim = bnprune.apply(plan, model)
        same = bnprune.apply(bnprune.PruningPlan.from_json(plan.to_json()), model)
    """
    require_bare(model)
    require_plan_fits(plan, model)
    slim = copy_weights(slim_on_meta(plan, model), plan, model)
    record_plan(slim, model, plan)
    return slim


def slim_on_meta(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Return the slim network on the meta device: all shapes, no weights.

    A plan from a file has to pass `require_plan_fits` first.
    """
    sizes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for cut in plan.cuts:
        for name, dim in cut.at:
            sizes[name].append((dim, len(cut.keep)))

    def empty_slice(name: str, tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        for dim, size in sizes.get(name, ()):
            shape[dim] = size
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    return _copy(plan, model, empty_slice)


def copy_weights(slim: nn.Module, plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Give a network from `slim_on_meta` the weights of the original that stay; use the return value.

    Tensors are swapped in place (`torch.utils.swap_tensors`) rather than set on their modules. So every reference to
    them stays right: tied weights, the list `_flat_weights` of an `nn.LSTM`, a parameter in an attribute of the user's
    own class.

        slim.head.weight ──┐                              slim.head.weight ──┐
                           ├─> tensor on meta    swap                        ├─> the same object, with the values
        slim.embed.weight ─┘                     ───>     slim.embed.weight ─┘

    A tensor that has weak references cannot be swapped (recurrent layers hold some): then the network is copied again.
    """
    keeps = _keeps(plan)

    def kept_slice(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return _slice(tensor.detach(), keeps.get(name, []))

    tensors = dict(named_tensors(slim))
    if any(weakref.getweakrefcount(tensor) for tensor in tensors.values()):
        return _copy(plan, model, kept_slice)
    gated, folded = {gate.at for gate in plan.gates}, {entry.bias for entry in plan.folds}
    originals = dict(named_tensors(model))
    biases = {name: kept_slice(name, originals[name]) for name in folded}
    for name, tensor in originals.items():
        if name not in folded:
            torch.utils.swap_tensors(tensors[gated_name(name, gated)], wrap_like(tensor, kept_slice(name, tensor)))
    install(plan.gates, slim, model)  # again: the buffers of gates on the meta device have no values
    fold(slim, plan.folds, gated, biases)
    return slim


def _copy(plan: PruningPlan, model: nn.Module, make: Callable[[str, torch.Tensor], torch.Tensor]) -> nn.Module:
    """Copy the structure of a network with other tensors in it, and set the attributes of the plan.

    Tensors are replaced by their identity, not by their names: a parameter that two modules share is one object in the
    original, and one object in the copy. `make(name, tensor)` returns the new values.
    """
    replacements = {id(tensor): wrap_like(tensor, make(name, tensor)) for name, tensor in named_tensors(model)}
    slim = copy_with_tensors(model, replacements)
    _set_sizes(slim, plan.attributes)
    _drop_stale_caches(plan, modules_by_name(slim))
    install(plan.gates, slim, model)
    if plan.folds:
        folded = {entry.bias for entry in plan.folds}
        biases = {name: tensor for name, tensor in named_tensors(slim) if name in folded}
        fold(slim, plan.folds, {gate.at for gate in plan.gates}, biases)
    return slim


Sizes = Mapping[str, Mapping[str, Size]]
"""Values of attributes by module and attribute."""


def _set_sizes(slim: nn.Module, sizes: Sizes) -> None:
    modules = modules_by_name(slim)
    for module_name, values in sizes.items():
        module = without_gate(modules.get(module_name) or slim.get_submodule(module_name))  # may have several names
        for attribute, value in values.items():
            is_list = isinstance(getattr(module, attribute, None), list)
            setattr(module, attribute, [*value] if is_list and isinstance(value, tuple) else value)


def change_sizes(slim: nn.Module, before: Sizes, after: Sizes, model: nn.Module) -> None:
    """Set the attributes of a slim network as another plan has them.

    Args:
        slim: Made from a plan, on any device.
        before: `attributes` of that plan.
        after: `attributes` of the other plan. Others get the values they have in the original.
        model: The original.
    """
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if changed:
        dense = dict(model.named_modules(remove_duplicate=False))
        originals = {name: {key: vars(dense[name])[key] for key in before.get(name, ())} for name in changed}
        _set_sizes(slim, {name: {**originals[name], **after.get(name, {})} for name in changed})


def _drop_stale_caches(plan: PruningPlan, modules: Mapping[str, nn.Module]) -> None:
    """Remove tensors of the old width from dictionaries, where an earlier forward pass of the network has left them.

    LeViT keeps `attention_biases[:, indices]` in `self.cache[device]`, for example. The slim network computes it again.
    """
    widths: dict[str, set[int]] = defaultdict(set)
    for cut in plan.cuts:
        for name, _ in cut.at:
            widths[name.rpartition(".")[0]].add(cut.size)
    for site, sizes in widths.items():
        for attribute, value in vars(modules[site]).items() if site in modules else ():
            if type(value) is dict and attribute not in TORCH_CONTAINERS:
                stale = [key for key, item in value.items() if _has_size(item, sizes)]
                for key in stale:
                    del value[key]


def _has_size(value: Any, sizes: set[int]) -> bool:
    return isinstance(value, torch.Tensor) and not sizes.isdisjoint(value.shape)


def _keeps(plan: PruningPlan) -> dict[str, list[tuple[int, torch.Tensor]]]:
    keeps: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for cut in plan.cuts:
        keep = torch.tensor(cut.keep, device="cpu")
        for name, dim in cut.at:
            keeps.setdefault(name, []).append((dim, keep))
    return keeps


def require_plan_fits(plan: PruningPlan, model: nn.Module) -> None:
    """Refuse a plan that surgery could not carry out.

    Raises:
        PruningError: The plan was made for another network.
        CheckpointError: The plan is damaged.
    """
    tensors = dict(named_tensors(model))
    problem = next(_misfits(plan, model, tensors), None)
    if plan.digest != identity({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise PruningError(
            f"the plan was made for another network: it fits a {plan.model}, and this {type(model).__name__} differs "
            f"({problem or 'its parameters have other names or shapes'}). "
            "Build the dense network exactly as it was when the plan was made."
        )
    if problem:
        raise CheckpointError(f"the plan is damaged: {problem}. Make it again.")


def _misfits(plan: PruningPlan, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield a sentence for everything in the plan that does not fit the network."""
    modules = dict(model.named_modules(remove_duplicate=False))
    cut: dict[tuple[str, int], Cut] = {}
    for entry in plan.cuts:
        for name, dim in entry.at:
            yield from _misfit_of_cut(entry, name, dim, tensors)
            if (name, dim) in cut:
                yield f"'{name}' is cut twice in dimension {dim}"
            cut[name, dim] = entry
    for module, values in plan.attributes.items():
        for attribute, value in values.items():
            yield from _misfit_of_attribute(modules.get(module), f"{module}.{attribute}".lstrip("."), attribute, value)
    yield from misfits(plan.folds, modules, tensors)
    names = {id(tensor): name for name, tensor in tensors.items()}
    for gate in plan.gates:
        scale, shift = (getattr(modules.get(gate.at), tensor, None) for tensor in ("weight", "bias"))
        yield from _misfit_of_gate(gate, scale, shift, cut.get((names.get(id(scale), ""), 0)))
    if len({gate.at for gate in plan.gates}) < len(plan.gates):
        yield "a BatchNorm has two gates"


def _misfit_of_cut(cut: Cut, name: str, dim: int, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    if name not in tensors:
        yield f"the network has no '{name}'"
    elif not 0 <= dim < tensors[name].dim():
        yield f"its '{name}' has {tensors[name].dim()} dimensions, and the plan cuts dimension {dim}"
    elif tensors[name].shape[dim] != cut.size:
        yield f"its '{name}' has size {tensors[name].shape[dim]} in dimension {dim}, the plan {cut.size}"


def _misfit_of_attribute(module: nn.Module | None, name: str, attribute: str, value: Size) -> Iterator[str]:
    """Check that a plan from a file sets sizes only: it must not replace a method or a tensor."""
    before = None if module is None else vars(module).get(attribute)
    items, after = ([*part] if isinstance(part, list | tuple) else [part] for part in (before, value))
    if not items or not all(type(item) is int for item in items):
        yield f"the network has no size '{name}'"
    elif isinstance(before, int) != isinstance(value, int) or len(items) != len(after):
        yield f"its '{name}' is {before}, and the plan sets it to {value}"
    elif min(after) < 1:
        yield f"the plan sets '{name}' to {value}"


def _misfit_of_gate(gate: Gate, scale: Any, shift: Any, cut: Cut | None) -> Iterator[str]:
    if not gate.at or not (isinstance(scale, torch.Tensor) and isinstance(shift, torch.Tensor) and shift.dim() == 1):
        yield f"the network has no BatchNorm '{gate.at}' with scale factors to put a gate around"
        return
    everything = range(shift.numel())
    for channels in (gate.stream, gate.keep):
        if sorted({*channels} & {*everything}) != [*channels]:
            yield f"the gate at '{gate.at}' must list channels below {shift.numel()}, ascending"
    if gate.keep != (tuple(everything) if cut is None else cut.keep):
        yield f"the gate at '{gate.at}' and the cut of its BatchNorm keep different channels"


def _slice(source: torch.Tensor, keeps: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Return a copy of what stays, in the memory format of the source (`index_select` loses channels_last)."""
    piece = source
    for dim, keep in keeps:
        piece = piece.index_select(dim, keep.to(piece.device))
    if piece is source:
        return piece.clone()
    if source.dim() == 4 and not source.is_contiguous() and source.is_contiguous(memory_format=torch.channels_last):
        piece = piece.contiguous(memory_format=torch.channels_last)
    return piece
