"""The proof: in float64, the slim network equals the original with the removed slices set to zero."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.pytrees import Inputs
from bnprune.channels.structural_copy import copy_with_tensors
from bnprune.channels.torch_internals import BatchNorm, InstanceNorm
from bnprune.errors import ForwardError, VerificationError
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.proof_runs import MaskedRun, largest_error, masked_runs, relative_error
from bnprune.pruning.slice_check import first_wrong_tensor
from bnprune.pruning.surgery import copy_weights, named_tensors

TOLERANCE = 1e-9
"""Largest relative difference a float64 proof may show. Correct surgery gives about 1e-15."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of a proof."""

    max_relative_error: float
    """max |slim - masked| / max |masked|, over all floating-point outputs."""
    passed: bool
    first_difference: str | None = None
    """Name of the first module whose output differs; None if the proof holds."""


def verify(model: nn.Module, slim: nn.Module, plan: PruningPlan, inputs: Inputs, *, seed: int = 0) -> Verification:
    """Compare the slim network with the masked original, in which removed rows, columns, γ, β and statistics are zero.

    First, every tensor of the slim network must be, value for value, the slice that the plan keeps. Then both networks
    run in float64 and eval mode on the same noise (of the shapes of `inputs`), twice: with the weights they have, and
    with random BatchNorm weights and the statistics of the batch, the same for both. The second run is needed because
    in a sparse network a wrong cut could hide behind layers whose output is nearly zero.

    Args:
        model: The original network; left as it was, like the next.
        slim: The network that surgery made of it.
        plan: What was cut.
        inputs: Inputs of the forward pass. Values count only if the network fails on noise.
        seed: Of the noise and of the random BatchNorm weights.

    Raises:
        ForwardError: The masked network does not run, computes nothing finite, or something else each time.
    """
    wrong_tensor = first_wrong_tensor(model, slim, plan)
    if wrong_tensor is not None:
        return Verification(float("inf"), passed=False, first_difference=wrong_tensor)
    original, small = copy_with_tensors(model, {}).double(), copy_with_tensors(slim, {}).double()
    if plan.folds:  # the running mean minus the bias was rounded to the type of the network: compute it in float64
        small = copy_weights(small, plan, original)
    worst = 0.0
    for random_norms in (False, True):
        if random_norms:  # from the original, in which the mask of the first round has set slices to zero
            small = copy_weights(small, plan, _randomize_norms(original, seed))
        masked = mask(original, plan)
        for expected in masked_runs(masked, inputs, seed, batch_statistics=random_norms):
            worst = max(worst, largest_error(expected, small))
            if worst > TOLERANCE:
                _require_repeatable(expected, masked)
                return Verification(
                    worst, passed=False, first_difference=_first_difference(expected, masked, small, plan)
                )
    return Verification(worst, passed=True)


def _require_repeatable(expected: MaskedRun, masked: nn.Module) -> None:
    """Refuse a network that differs from itself: a difference between two networks then says nothing about the cut."""
    if largest_error(expected, masked) > TOLERANCE:
        raise ForwardError(
            "the cut cannot be proven: on equal inputs, the forward pass of the network computes something else each "
            "time (it draws from random or numpy, or reads a clock or a counter). Draw with torch, or not in eval mode."
        )


def _randomize_norms(model: nn.Module, seed: int) -> nn.Module:
    """Draw γ of every BatchNorm from [0.5, 1.5) and β from [-0.5, 0.5), in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is None and not isinstance(module, BatchNorm | InstanceNorm):
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


def _first_difference(expected: MaskedRun, masked: nn.Module, slim: nn.Module, plan: PruningPlan) -> str:
    """Name the first module whose output, without the removed channels, differs."""
    of_masked, of_slim = _module_outputs(expected, masked), _module_outputs(expected, slim)
    removed = {name.rpartition(".")[0]: cut for cut in plan.cuts for name, dim in cut.at if dim == 0}
    gated = {gate.at for gate in plan.gates}
    for dense_name, reference in of_masked.items():
        cut, name = removed.get(dense_name), gated_name(dense_name, gated)
        kept = reference
        if cut is not None and reference.dim() > 1 and reference.shape[1] == cut.size:
            kept = reference.index_select(1, torch.tensor(cut.keep, device=reference.device))
        if name not in of_slim:
            return name
        if kept.shape == of_slim[name].shape and relative_error(kept, of_slim[name]) > TOLERANCE:
            return name
    return "output"


def _module_outputs(expected: MaskedRun, model: nn.Module) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if not any(module.children()):

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, torch.Tensor):
                    outputs.setdefault(name, output.detach().clone())

            hooks.append(module.register_forward_hook(keep))
    try:
        with suppress(Exception):  # a slim network that fails has run the modules before that
            expected.repeat(model)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
