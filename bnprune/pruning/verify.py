"""The proof: in float64, the slim network equals the original with the removed slices set to zero."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnprune.channels.decisions import Decisions
from bnprune.channels.modules import set_mode, untouched
from bnprune.channels.trees import Inputs, map_tensors, tensors
from bnprune.errors import VerificationError
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import apply, fill, named_tensors

TOLERANCE = 1e-9
"""Largest relative difference a float64 proof may show. Correct surgery gives about 1e-15."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of a proof."""

    max_relative_error: float
    """max |slim - masked| / max |masked|, over all floating-point outputs."""
    passed: bool
    first_difference: str | None = None
    """Name of the first module whose output differs; None where the proof holds."""


def verify(model: nn.Module, slim: nn.Module, plan: PruningPlan, inputs: Inputs, *, seed: int = 0) -> Verification:
    """Compare the slim network with the masked original: removed rows, γ, β, statistics and columns are zero.

    Every tensor of the slim network must be, value for value, the slice the plan keeps. Then both run in float64 and
    eval mode on the same random input (floating-point tensors of `inputs` are replaced by standard normal noise of the
    same shape), twice: as they are, and enlivened. The second time, BatchNorms normalise by the batch with fresh scale
    factors, the same for both networks, because in a sparse network a wrong cut could hide behind layers that carry
    next to nothing.
    """
    foreign = _foreign_tensor(model, slim, plan)
    if foreign is not None:
        return Verification(float("inf"), passed=False, first_difference=foreign)
    original, small = copy.deepcopy(model).double(), copy.deepcopy(slim).double()
    worst = 0.0
    for lively in (False, True):
        if lively:
            small = fill(small, plan, _enliven(original, seed))  # what the mask has zeroed is not in the slim network
        masked = mask(original, plan)
        before = reference(masked, inputs, seed, lively=lively)
        worst = max(worst, largest_error(before, small, seed, lively=lively))
        if worst > TOLERANCE:
            where = _first_difference(masked, small, plan, before.fed, seed, lively=lively)
            return Verification(worst, passed=False, first_difference=where)
    return Verification(worst, passed=True)


def _foreign_tensor(model: nn.Module, slim: nn.Module, plan: PruningPlan) -> str | None:
    """Name a tensor of the slim network that is not the slice of the original it should be."""
    expected = dict(named_tensors(apply(plan, model)))
    got = dict(named_tensors(slim))
    if expected.keys() != got.keys():
        return sorted(expected.keys() ^ got.keys())[0]
    return next((name for name, tensor in expected.items() if not _same(tensor, got[name])), None)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(((left == right) | (left != left) & (right != right)).all())  # NaN equals NaN here


def _enliven(model: nn.Module, seed: int) -> nn.Module:
    """Give every BatchNorm scale factors around 1 and small shifts, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is None and not isinstance(module, nn.modules.batchnorm._NormBase):
                continue
            for tensor, center in ((getattr(module, "weight", None), 1.0), (getattr(module, "bias", None), 0.0)):
                if isinstance(tensor, torch.Tensor):
                    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_(center + drawn - 0.5)
    return model


def require(verification: Verification) -> None:
    """Raise if a proof failed.

    Raises:
        VerificationError: With the first module that differs.
    """
    if not verification.passed:
        raise VerificationError(
            "the slim network does not equal the masked original: relative error "
            f"{verification.max_relative_error:.2e} (allowed {TOLERANCE:.0e}), first difference in "
            f"'{verification.first_difference}'. Nothing was written. Exclude that layer "
            "(--exclude), and please report the network."
        )


def mask(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Set every slice the plan removes to zero, in place.

    Channels that a write gate fills keep their β: with γ = 0 that is what they write.
    """
    named = dict(named_tensors(model))
    filled = {f"{gate.at}.bias": gate.filled for gate in plan.gates if gate.kind == "write"}
    shifts = {name: named[name].detach().clone() for name in filled}
    with torch.no_grad():
        for cut in plan.cuts:
            removed = torch.tensor(cut.removed)
            for name, dim in cut.at:
                named[name].index_fill_(dim, removed.to(named[name].device), 0)
        for name, channels in filled.items():
            named[name][channels] = shifts[name][channels]
    return model


@dataclass(frozen=True, slots=True)
class Reference:
    """What a network computed in float64 and eval mode, and how it came to it."""

    fed: Inputs
    outputs: list[torch.Tensor]
    decisions: Decisions


def reference(masked: nn.Module, inputs: Inputs, seed: int = 0, *, lively: bool = False) -> Reference:
    """Run the masked network on noise; on the inputs as given where noise makes it fail (a detector, say)."""
    given = map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)
    for fed in (_noise(inputs, seed), given):
        decisions = Decisions()
        try:
            return Reference(fed, _run(masked, fed, seed, lively, decisions.record), decisions)
        except Exception:
            if fed is given:
                raise
    raise AssertionError("the last inputs either work or raise")


def largest_error(before: Reference, slim: nn.Module, seed: int = 0, *, lively: bool = False) -> float:
    """Run the slim network on the same inputs; return the largest relative difference.

    It repeats the decisions of the masked one (order of scores, boxes that survive NMS, branches), and the numbers
    they were based on are compared like outputs.
    """
    repetition = before.decisions.repetition()
    try:
        got = _run(slim, before.fed, seed, lively, repetition.repeat)
    except Exception:  # noqa: BLE001 - whatever it is, the masked network did not do it
        return float("inf")
    if [t.shape for t in before.outputs] != [t.shape for t in got]:
        return float("inf")
    pairs = [*zip(before.outputs, got, strict=True), *repetition.pairs]
    return max(itertools.starmap(relative_error, pairs), default=0.0)


_Watch = Callable[[torch._ops.OpOverload, tuple[Any, ...], dict[str, Any], Any], Any]
"""Sees every operator call and its output; may return another output."""


def _run(model: nn.Module, inputs: Inputs, seed: int, lively: bool, watch: _Watch) -> list[torch.Tensor]:
    """Run a network in eval mode and float64; return its output tensors.

    With `lively`, BatchNorms use the statistics of the batch (where it has more than one value per channel).
    """
    args, kwargs = inputs
    with (
        untouched(model),  # what one run caches must not change the next
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        _double_defaults(),
        _Double(lively, watch),
    ):
        set_mode(model, training=False)
        torch.manual_seed(seed)
        return list(tensors(model(*args, **kwargs)))


def relative_error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Return the largest difference of two tensors of one shape, relative to the largest magnitude."""
    if not expected.is_floating_point():
        return float((expected != got).any())
    differs = (expected != got) & ~((expected != expected) & (got != got))  # infinities and NaNs may be equal, too
    if not differs.any():
        return 0.0
    scale = torch.where(expected.isfinite(), expected.abs(), 0).max()
    difference = (expected - got).abs()[differs].max() / torch.where(scale > 0, scale, 1)
    return float(torch.nan_to_num(difference, nan=float("inf")))


def _noise(inputs: Inputs, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)

    noise: Inputs = map_tensors(draw, inputs)
    return noise


@contextmanager
def _double_defaults() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Double(TorchDispatchMode):
    """Turns casts to lower precision, which models write down as literals, into casts to float64."""

    def __init__(self, lively: bool, watch: _Watch) -> None:
        super().__init__()
        self.lively = lively
        self.watch = watch

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            kwargs = {**kwargs, "dtype": torch.float64}
        if self.lively and func is torch.ops.aten.native_batch_norm.default and not args[5]:
            args = _with_batch_statistics(*args)
        output = func(*args, **kwargs)
        seen = self.watch(func, args, kwargs, output)
        return output if seen is None else seen


def _with_batch_statistics(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Any, ...]:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    if x.numel() > x.shape[1]:
        mean, var = x.mean(dims), x.var(dims, correction=0)
    return x, weight, bias, mean, var, *rest


def _first_difference(
    masked: nn.Module, slim: nn.Module, plan: PruningPlan, inputs: Inputs, seed: int, *, lively: bool
) -> str:
    """Name the first module whose output, without the removed channels, differs."""
    decisions = Decisions()
    expected = _outputs(masked, inputs, seed, lively, decisions.record)
    got = _outputs(slim, inputs, seed, lively, decisions.repetition().repeat)
    removed = {name.rpartition(".")[0]: cut for cut in plan.cuts for name, dim in cut.at if dim == 0}
    gated = {gate.at for gate in plan.gates}
    for dense_name, reference in expected.items():
        cut, name = removed.get(dense_name), gated_name(dense_name, gated)
        kept = reference
        if cut is not None and reference.dim() > 1 and reference.shape[1] == cut.size:
            kept = reference.index_select(1, torch.tensor(cut.keep, device=reference.device))
        if name not in got:
            return name
        if kept.shape == got[name].shape and relative_error(kept, got[name]) > TOLERANCE:
            return name
    return "output"


def _outputs(model: nn.Module, inputs: Inputs, seed: int, lively: bool, watch: _Watch) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if not any(module.children()):

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, torch.Tensor):
                    outputs.setdefault(name, output.detach().clone())

            hooks.append(module.register_forward_hook(keep))
    try:
        with suppress(Exception):  # where the slim network fails, it says which modules it came to
            _run(model, inputs, seed, lively, watch)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
