"""Compensation: what removed channels still said goes into the biases behind them.

A channel with γ = 0 writes act(β), a constant, into whatever reads it. Cutting it off takes a constant away from every
output of the next layer, which is why accuracies collapse right after a cut (Liu et al., ICCV 2017, set β aside). What
a layer loses is found by running it with and without its removed inputs, so residual adds, concatenations, pooling and
layers with a forward of their own need no rules: what is the same for different images can be made up for.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from bnprune.channels.modules import modules_by_name
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import Inputs, as_inputs, map_tensors, tensors
from bnprune.channels.torch_internals import Convolution
from bnprune.errors import ForwardError, first_line
from bnprune.pruning.bias_folding import sole_norms
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.proof_forward import feeds, run
from bnprune.pruning.surgery import named_tensors

Outcome = Literal["exact", "interior", "mean", "none"]
_EQUAL = 1e-9
"""Difference, relative to the first number or to 1, up to which two count as the same."""
_INTERIOR = 0.5
"""Share of positions that must lose the same for a map to have an interior."""


@dataclass(frozen=True, slots=True)
class Compensation:
    """What was done for one layer that lost input channels."""

    site: str
    """Name of the convolution or linear layer."""
    channels: int
    """Input channels it lost."""
    made_up: int
    """Those whose contribution is in the bias now."""
    outcome: Outcome
    """What holds, were γ of the removed channels 0: "exact": the output is as it was; "interior": it is, but for a
    border; "mean": what is made up for is right on average over positions or, with data, over the batches given;
    "none": nothing was done."""
    reason: str = ""
    """Why not, or not everywhere."""


@dataclass
class _Consumer:
    """A layer that loses inputs, and what is known of them."""

    layer: nn.Module
    removed: list[int]
    """Input channels, those of every group included."""
    seen: list[torch.Tensor] = field(default_factory=list)
    """What arrived in them in the first pass, per call."""
    steady: torch.Tensor | None = None
    """Whether each carried the same in all passes, shape (removed,)."""
    calls: int = 0
    true: bool = True
    """Whether a bias adds to the output one for one."""
    lost: list[torch.Tensor] = field(default_factory=list)
    """What the removed inputs add to the output, per call: maps (outputs, positions), or their sums and counts."""


@preserve_thread_state
def compensate(
    model: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    batches: Iterable[Any] | None = None,
) -> tuple[Compensation, ...]:
    """Add what removed channels contributed to the biases of the slim network, in place.

    Where a layer has no bias, the running mean of the BatchNorm that alone reads it takes the contribution instead.
    Everything is computed in float64, from the dense network.

    Args:
        model: The dense network; it is left as it was.
        slim: The network that `plan` made of it.
        plan: What was cut.
        example_inputs: As for `bnprune.prune`.
        batches: Inputs of the network (a tensor, or a mapping of keyword arguments), or (inputs, ...) pairs as a
            DataLoader yields them. With them, the mean of what each layer really loses is used; without, γ of removed
            channels is taken to be 0.

    Returns:
        What was done, per layer that lost inputs.

    Raises:
        ForwardError: Without batches: the network runs on fewer than two of noise and the inputs given.
        ValueError: `batches` is empty.
    """
    home = torch.device("cpu") if _home(model).type == "mps" else _home(model)  # which has no float64
    reference = copy.deepcopy(model).to(home).double()
    consumers = dict(_losing(reference, plan))
    inputs: Inputs = map_tensors(lambda tensor: tensor.to(home), as_inputs(example_inputs))
    if not consumers:
        return ()
    if batches is None:
        fed = _without_data(silence(reference, plan), inputs, consumers)
    else:
        fed = []
        _with_data(reference, batches, home, consumers)
    norms, shared, gated = sole_norms(model, inputs), _shared(model), {gate.at for gate in plan.gates}
    plain = copy.deepcopy(slim)
    done = []
    for site, consumer in consumers.items():
        offset, told = _judge(site, consumer, data=batches is not None)
        problem = ""
        if told.made_up and bool(offset.any()):
            norm = gated_name(norms[site], gated) if site in norms else None
            offset = _kept(plan, site, consumer.layer, offset)
            problem = _SHARED if site in shared else _put(slim, site, norm, offset, true=consumer.true)
        done.append(Compensation(site, told.channels, 0, "none", problem) if problem else told)
    if sum(_error(reference, slim, given) for given in fed) > sum(_error(reference, plain, given) for given in fed):
        slim.load_state_dict(plain.state_dict())
        done = [Compensation(told.site, told.channels, 0, "none", "the network came no nearer") for told in done]
    return tuple(done)


_SHARED = "its weight or bias belongs to another layer, too"


def _kept(plan: PruningPlan, site: str, layer: nn.Module, offset: torch.Tensor) -> torch.Tensor:
    """Return what the outputs that stay lose."""
    keeps = {at: cut.keep for cut in plan.cuts for at in cut.at}
    outer = 1 if _is_transposed(layer) else 0
    kept = keeps.get((f"{site}.bias", 0)) or keeps.get((f"{site}.weight", outer))
    return offset if kept is None else offset[list(kept)]


def _error(reference: nn.Module, slim: nn.Module, fed: Inputs) -> float:
    """Return the mean square difference of the outputs of two networks in float64."""
    expected, got = (_run(network, fed) for network in (reference, copy.deepcopy(slim).to(_home(reference)).double()))
    pairs = [(a, b) for a, b in zip(expected, got, strict=False) if a.shape == b.shape and a.is_floating_point()]
    return sum(float((a - b).square().nan_to_num(0, 0, 0).mean()) for a, b in pairs if a.numel())


def _home(model: nn.Module) -> torch.device:
    return next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))


def silence(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Set γ of removed channels to 0 and keep β, in place: the network that compensation is exact for."""
    named, modules = dict(named_tensors(model)), modules_by_name(model)
    with torch.no_grad():
        for cut in plan.cuts:
            for name, dim in cut.at:
                owner, _, leaf = name.rpartition(".")
                if dim == 0 and leaf == "weight" and hasattr(modules[owner], "running_mean"):
                    named[name][cut.removed] = 0
    return model


# -- what layers lose --------------------------------------------------------------------------------------------------


def _losing(model: nn.Module, plan: PruningPlan) -> Iterator[tuple[str, _Consumer]]:
    """Yield the layers that lose inputs."""
    modules = modules_by_name(model)
    for cut in plan.cuts:
        for name, dim in cut.at:
            site, _, leaf = name.rpartition(".")
            layer = modules.get(site)
            inner = 0 if _is_transposed(layer) else 1
            if leaf == "weight" and dim == inner and isinstance(layer, nn.Linear | Convolution):
                groups = 1 if _is_transposed(layer) else getattr(layer, "groups", 1)
                removed = [group * cut.size + position for group in range(groups) for position in cut.removed]
                yield site, _Consumer(layer, removed)


def _is_transposed(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def _shared(model: nn.Module) -> set[str]:
    """Name the modules that share a weight or bias with another."""
    modules = modules_by_name(model)
    owners = Counter(id(tensor) for module in modules.values() for tensor in module._parameters.values())
    return {
        name
        for name, module in modules.items()
        if any(tensor is not None and owners[id(tensor)] > 1 for tensor in module._parameters.values())
    }


def _without_data(silenced: nn.Module, inputs: Inputs, consumers: Mapping[str, _Consumer]) -> list[Inputs]:
    """Run on different inputs, to see what is the same; then see what it adds to each layer. Return two of them."""
    ran: list[Inputs] = []
    reason = ""
    for fed in _different(inputs):
        try:
            with _hooked(consumers, _compare if ran else _remember):
                _run(silenced, fed)
            ran.append(fed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the network's own
            reason = first_line(error)
            for consumer in consumers.values() if not ran else ():
                consumer.seen.clear()
    if not any(_differ(ran[0], other) for other in ran[1:]):
        raise ForwardError(
            f"compensation needs two different inputs on which the network works, noise or those given ({reason}). "
            "Give batches, or leave it out."
        )
    with _hooked(consumers, _subtract):
        _run(silenced, ran[0])
    return [ran[0], ran[-1]]


def _run(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    return run(model, inputs, 0, lambda func, args, kwargs, output: output)


def _differ(left: Inputs, right: Inputs) -> bool:
    pairs = zip(tensors(left), tensors(right), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def _different(inputs: Inputs) -> Iterator[Inputs]:
    """Yield noise with other integers (tokens, classes) in the range of those given or next to it, and the inputs."""
    generator = torch.Generator().manual_seed(0)

    def others(tensor: torch.Tensor, beyond: int) -> torch.Tensor:
        if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
            return tensor
        low, high = int(tensor.min()), int(tensor.max())
        return torch.randint(low, high + 1 + beyond, tensor.shape, generator=generator, device="cpu").to(tensor)

    *noises, given = feeds(inputs, seed=0)
    for noise in noises:
        yield map_tensors(lambda tensor: others(tensor, 0), noise)
    if any(not tensor.is_floating_point() for tensor in tensors(inputs)):
        yield map_tensors(lambda tensor: others(tensor, 1), noises[0])
    yield given


_Hook = Callable[[_Consumer, torch.Tensor, torch.Tensor], None]


@contextmanager
def _hooked(consumers: Mapping[str, _Consumer], hook: _Hook) -> Iterator[None]:
    """Call a function with every call of the consumers: its input and its output."""
    hooks = []
    for consumer in consumers.values():

        def behind(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, consumer: _Consumer = consumer
        ) -> None:
            hook(consumer, args[0] if args else kwargs["input"], output)

        consumer.calls = 0
        hooks.append(consumer.layer.register_forward_hook(behind, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _channel(layer: nn.Module, x: torch.Tensor) -> int:
    """Return the dimension of channels."""
    return x.dim() - 1 if isinstance(layer, nn.Linear) else 1


def _arriving(consumer: _Consumer, x: torch.Tensor) -> torch.Tensor:
    """Return what arrives in removed channels, channels first."""
    return x.detach().movedim(_channel(consumer.layer, x), 0)[consumer.removed]


def _remember(consumer: _Consumer, x: torch.Tensor, _: torch.Tensor) -> None:
    consumer.seen.append(_arriving(consumer, x))


def _compare(consumer: _Consumer, x: torch.Tensor, _: torch.Tensor) -> None:
    now = _arriving(consumer, x)
    same = torch.zeros(len(now), dtype=torch.bool, device=now.device)
    if consumer.calls < len(consumer.seen) and (then := consumer.seen[consumer.calls]).shape == now.shape:
        same = _near(then, now).flatten(1).all(1)
    consumer.steady = same if consumer.steady is None else consumer.steady & same
    consumer.calls += 1


def _near(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left - right).abs() <= _EQUAL * left.abs().clamp(min=1)


def _subtract(consumer: _Consumer, x: torch.Tensor, output: torch.Tensor) -> None:
    """Note what the steady ones among the removed channels add, at every position."""
    if consumer.steady is None:
        return
    steady = [channel for channel, same in zip(consumer.removed, consumer.steady.tolist(), strict=True) if same]
    maps = _added(consumer, x, output, steady)
    consumer.lost += list(maps.movedim(_channel(consumer.layer, output), 1).flatten(2) if maps.dim() > 2 else
                          maps[..., None])  # fmt: skip


def _sum_up(consumer: _Consumer, x: torch.Tensor, output: torch.Tensor) -> None:
    """Note what the removed channels add on average."""
    added = _added(consumer, x, output, consumer.removed).movedim(_channel(consumer.layer, output), 0).flatten(1)
    total = torch.stack([added.sum(1), torch.full_like(added[:, 0], added.shape[1])])
    consumer.lost = [total + consumer.lost[0]] if consumer.lost else [total]


def _added(consumer: _Consumer, x: torch.Tensor, output: torch.Tensor, channels: Sequence[int]) -> torch.Tensor:
    bias = consumer.layer.bias
    if isinstance(bias, torch.Tensor) and not consumer.lost:
        bias += 1
        consumer.true = bool(_near(output + 1, consumer.layer.forward(x)).all())
        bias -= 1
    without = x.detach().clone()
    without.movedim(_channel(consumer.layer, x), 0)[list(channels)] = 0
    difference: torch.Tensor = output.detach() - consumer.layer.forward(without)
    return difference


def _with_data(
    model: nn.Module, batches: Iterable[Any], home: torch.device, consumers: Mapping[str, _Consumer]
) -> None:
    count = 0
    with _hooked(consumers, _sum_up):
        for batch in batches:
            inner = as_inputs(batch[0] if isinstance(batch, tuple | list) else batch)
            moved = map_tensors(lambda tensor: tensor.to(home), inner)
            _run(model, map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, moved))
            count += 1
    if not count:
        raise ValueError("compensate: got no batches")


# -- what is made up ---------------------------------------------------------------------------------------------------


def _judge(site: str, consumer: _Consumer, *, data: bool) -> tuple[torch.Tensor, Compensation]:
    """Return what to add to each output of the dense layer, and what that makes up for."""
    channels = len(consumer.removed)
    if not consumer.lost:
        return torch.zeros(0, device="cpu"), Compensation(site, channels, 0, "none", "it did not run as a layer")
    if data:
        total, count = consumer.lost[0]
        return total / count, Compensation(site, channels, channels, "mean")
    made_up = 0 if consumer.steady is None else int(consumer.steady.sum())
    first = consumer.lost[0]
    if not made_up:
        return first, Compensation(site, channels, 0, "none", "what it loses depends on the input")
    if not all(lost.shape == first.shape and _near(first, lost).all() for lost in consumer.lost):
        return first, Compensation(
            site, channels, 0, "none", "it runs more than once, and loses something else each time"
        )
    offset, outcome, reason = _spread(first)
    if made_up < channels:
        outcome, reason = "mean", "some of what it loses depends on the input"
    return offset, Compensation(site, channels, made_up, outcome, reason)


def _spread(lost: torch.Tensor) -> tuple[torch.Tensor, Outcome, str]:
    """Choose one number per output for what is lost over all positions; `lost` is (outputs, positions)."""
    if _near(lost[:, :1], lost).all():
        return lost[:, 0], "exact", ""
    middle = lost.median(1).values
    helps = (lost - middle[:, None]).square().sum() <= lost.square().sum()  # borders may outweigh the rest
    if helps and float(_near(middle[:, None], lost).all(0).double().mean()) > _INTERIOR:
        return middle, "interior", "at the border it loses something else (padding)"
    return lost.mean(1), "mean", "it loses something else at most positions: padding on a small map, or a stride"


def _put(slim: nn.Module, site: str, norm: str | None, offset: torch.Tensor, *, true: bool) -> str:
    """Add to the bias of a slim layer, or take off the running mean behind it; return what stands in the way."""
    bias = slim.get_submodule(site).bias
    mean = None if norm is None else getattr(slim.get_submodule(norm), "running_mean", None)
    target, sign = (bias, 1) if isinstance(bias, torch.Tensor) else (mean, -1)
    if not isinstance(target, torch.Tensor):
        return "it has no bias, and not one BatchNorm alone reads its output"
    if not true or target.shape != offset.shape:
        return "its bias does not add to its output one for one"
    with torch.no_grad():
        target += sign * offset.to(target.device, target.dtype)
    return ""
