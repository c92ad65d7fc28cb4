"""The proof: in float64, the slim network equals the original with the removed slices set to zero."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.control_flow import FORCED_BRANCHES, Decisions, ForcedBranch
from bnprune.channels.pytrees import Inputs
from bnprune.errors import ForwardError, VerificationError, first_line
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.proof_forward import Watch, feeds, run
from bnprune.pruning.surgery import apply, fill, named_tensors

TOLERANCE = 1e-9
"""Largest relative difference a float64 proof may show. Correct surgery gives about 1e-15."""
_NAN = 0.5
"""Share of an output that may be NaN for a comparison to mean anything; infinities may be a mask's."""


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
    eval mode on the same noise (of the shapes of `inputs`), twice: as they are, and enlivened. The second time,
    BatchNorms normalise by the batch with fresh scale factors, the same for both networks, because in a sparse network
    a wrong cut could hide behind layers that carry next to nothing.

    Raises:
        ForwardError: The masked network does not run, computes nothing finite, or something else each time.
    """
    foreign = _foreign_tensor(model, slim, plan)
    if foreign is not None:
        return Verification(float("inf"), passed=False, first_difference=foreign)
    original, small = copy.deepcopy(model).double(), copy.deepcopy(slim).double()
    if plan.folds:  # a running mean minus a bias has been rounded
        small = fill(small, plan, original)
    worst = 0.0
    for lively in (False, True):
        if lively:
            small = fill(small, plan, _enliven(original, seed))  # what the mask has zeroed is not in the slim network
        masked = mask(original, plan)
        for before in references(masked, inputs, seed, lively=lively):
            worst = max(worst, largest_error(before, small))
            if worst > TOLERANCE:
                _require_repeatable(before, masked)
                return Verification(
                    worst, passed=False, first_difference=_first_difference(before, masked, small, plan)
                )
    return Verification(worst, passed=True)


def _require_repeatable(before: Reference, masked: nn.Module) -> None:
    """Refuse a network that differs from itself: what two networks compute then says nothing about the cut."""
    if largest_error(before, masked) > TOLERANCE:
        raise ForwardError(
            "the cut cannot be proven: on equal inputs, the forward pass of the network computes something else each "
            "time (it draws from random or numpy, or reads a clock or a counter). Draw with torch, or not in eval mode."
        )


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
                    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
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
            removed = torch.tensor(cut.removed, device="cpu")
            for name, dim in cut.at:
                named[name].index_fill_(dim, removed.to(named[name].device), 0)
        for name, channels in filled.items():
            named[name][channels] = shifts[name][channels]
    return model


@dataclass(frozen=True, slots=True)
class Reference:
    """What the masked network computed, and how it came to it."""

    fed: Inputs
    seed: int
    lively: bool
    turn: float | None
    """The number with which a detour answers questions about values; None on the straight way."""
    outputs: list[torch.Tensor]
    decisions: Decisions

    def repeat(self, model: nn.Module) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run another network the same way; return its outputs, and the pairs of what decisions were based on."""
        repetition = self.decisions.repetition()
        watch = _turned(repetition.repeat, self.turn)
        outputs = run(model, self.fed, self.seed, watch, lively=self.lively)
        if repetition.left:
            raise ValueError(f"{repetition.left} decisions of the masked network were not taken")
        return outputs, repetition.pairs


def references(masked: nn.Module, inputs: Inputs, seed: int = 0, *, lively: bool = False) -> Iterator[Reference]:
    """Run the masked network on inputs it can digest, and along the branches other inputs would have taken.

    Raises:
        ForwardError: The network fails, or computes nothing but infinities and NaNs, on all of them.
    """
    reason = ""
    for fed in feeds(inputs, seed):
        try:
            straight = _reference(masked, fed, seed, None, lively=lively)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the network's own
            reason = first_line(error)
            continue
        reason = _says_nothing(straight)
        if not reason:
            break
    else:
        fix = "Give inputs on which the network works."
        if "meta" in reason:
            fix = "End torch.set_default_device('meta'), or give the tensors that forward() makes a device."
        raise ForwardError(f"the cut cannot be proven: {reason}, on noise and on the inputs given. {fix}")
    yield straight
    for number in FORCED_BRANCHES.values() if straight.decisions.asked else ():
        with suppress(Exception):  # say an assertion about the data: not a way the network goes
            yield _reference(masked, fed, seed, number, lively=lively)


def _reference(masked: nn.Module, fed: Inputs, seed: int, turn: float | None, *, lively: bool) -> Reference:
    decisions = Decisions()
    outputs = run(masked, fed, seed, _turned(decisions.record, turn), lively=lively)
    return Reference(fed, seed, lively, turn, outputs, decisions)


def _turned(watch: Watch, number: float | None) -> Watch:
    if number is None:
        return watch
    forced = ForcedBranch(number)
    return lambda func, args, kwargs, output: forced.turn(watch(func, args, kwargs, output))


def _says_nothing(reference: Reference) -> str:
    """Tell why outputs, or else what decisions were based on, are nothing to compare; empty if they are."""
    outputs = [tensor for tensor in reference.outputs if tensor.numel()] or reference.decisions.evidence
    if not any(tensor.numel() for tensor in outputs):
        return "its outputs are empty"
    if any(tensor.is_meta for tensor in outputs):
        return "its outputs are on the meta device, without values"
    real = [tensor for tensor in outputs if tensor.is_floating_point() and tensor.numel()]
    if any(not tensor.isfinite().any() or float(tensor.isnan().double().mean()) > _NAN for tensor in real):
        return "its outputs are not finite"
    return ""


def largest_error(before: Reference, slim: nn.Module) -> float:
    """Run the slim network the same way; return the largest relative difference, inf where there is none to see.

    It repeats the decisions of the masked one (order of scores, boxes that survive NMS, branches), and the numbers
    they were based on are compared like outputs.
    """
    try:
        got, based_on = before.repeat(slim)
    except Exception:  # noqa: BLE001 - whatever it is, the masked network did not do it
        return float("inf")
    pairs = [*zip(before.outputs, got, strict=False), *based_on]
    if [t.shape for t in before.outputs] != [t.shape for t in got] or not any(left.numel() for left, _ in pairs):
        return float("inf")
    return max(itertools.starmap(relative_error, pairs))


def relative_error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Return the largest difference of two tensors of one shape, relative to the largest magnitude.

    Where several elements share the largest magnitude (a mask filled with -1e9, say), the others are also compared
    among themselves: next to it, they could be anything.
    """
    if not expected.is_floating_point():
        return float((expected != got).any())
    both = expected.isfinite() & got.isfinite()
    same = (expected == got) | (expected.isnan() & got.isnan())
    if not (both | same).all():
        return float("inf")
    expected, got = expected[both], got[both]
    if not expected.numel():
        return 0.0
    scale = expected.abs().max()
    error = float((expected - got).abs().max() / torch.where(scale > 0, scale, 1))
    rest = expected.abs() < scale
    if error > 0 and 1 < int((~rest).sum()) < rest.numel():
        error = max(error, relative_error(expected[rest], got[rest]))
    return error


def _first_difference(before: Reference, masked: nn.Module, slim: nn.Module, plan: PruningPlan) -> str:
    """Name the first module whose output, without the removed channels, differs."""
    expected, got = _module_outputs(before, masked), _module_outputs(before, slim)
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


def _module_outputs(before: Reference, model: nn.Module) -> dict[str, torch.Tensor]:
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
            before.repeat(model)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
