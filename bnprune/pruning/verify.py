"""The proof: the slim network equals the original with the removed slices set to zero, in float64 if possible."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from bnprune.channels.network_outputs import name_of
from bnprune.channels.pytrees import Inputs
from bnprune.channels.structural_copy import copy_with_tensors
from bnprune.channels.torch_internals import BatchNorm, InstanceNorm
from bnprune.config.prune_options import Outputs
from bnprune.errors import ConfigError, ForwardError, VerificationError
from bnprune.notes import Note
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.proof_forward import Setting
from bnprune.pruning.proof_runs import Float32Only, MaskedRun, largest_error, masked_runs, relative_error
from bnprune.pruning.proof_tolerance import LARGEST_TOLERANCE, TOLERANCE, rounds_to_float32, tolerance_of
from bnprune.pruning.slice_check import first_wrong_tensor
from bnprune.pruning.surgery import copy_weights, named_tensors

Precision = Literal["float64", "float32"]
Feed = Literal["noise", "example inputs"]


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of the proof that a slim network equals the original with the removed channels set to zero.

    `report.verification` of the result of `bnprune.prune`, which raises `VerificationError` if the proof fails.

    Example::

        proof = bnprune.prune(model, example_inputs, ratio=0.5).report.verification
        print(proof.passed, proof.dtype)  # True float64
        assert proof.max_relative_error <= proof.tolerance
    """

    max_relative_error: float
    """max |slim - masked| / max |masked|, over all floating-point outputs that count."""
    passed: bool
    first_difference: str | None = None
    """Name of the first module whose output differs; None if the proof holds."""
    tolerance: float = TOLERANCE
    """Largest relative error that was allowed."""
    dtype: Precision = "float64"
    """Precision in which both networks ran."""
    inputs: Feed = "noise"
    """Values on which they ran."""
    outputs: str | None = None
    """The outputs that were compared, or the name of the function that picked them; None for all."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks about a proof that differs from the usual one."""
        notes = []
        if self.dtype == "float32":
            text = f"the network runs in float32 only: proven in float32, to {self.tolerance:.0e} (its rounding errors)"
            notes.append(Note("proof.float32", "note", text))
        if self.inputs == "example inputs":
            text = "the outputs of the network are not finite on noise: proven on the example inputs"
            notes.append(Note("proof.example_inputs", "note", text))
        return tuple(notes)


def verify(
    model: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    inputs: Inputs,
    *,
    outputs: Outputs | None = None,
    seed: int = 0,
) -> Verification:
    """Compare the slim network with the masked original, in which removed rows, columns, γ, β and statistics are zero.

    First, every tensor of the slim network must be, value for value, the slice that the plan keeps. Then both networks
    run in float64 and eval mode on the same noise (of the shapes of `inputs`), twice: with the weights they have, and
    with random BatchNorm weights and the statistics of the batch, the same for both. The second run is needed because
    in a sparse network, layers whose output is nearly zero could conceal a wrong cut.

    A network that does not compute in float64 runs in float32. The tolerance is then a multiple of its own rounding
    errors (`bnprune.pruning.proof_tolerance`).

    Args:
        model: The original network; left as it was, like the next.
        slim: The network that surgery made of it.
        plan: What was cut.
        inputs: Inputs of the forward pass. Values count only if the network fails on noise.
        outputs: The outputs to compare, as for `bnprune.prune`; by default, those that the plan records.
        seed: Of the noise and of the random BatchNorm weights.

    Raises:
        ForwardError: The masked network does not run, its outputs are not finite, or differ each time; or it runs in
            float32 only, and its rounding errors are as large as errors of a wrong cut.
        ConfigError: The plan was made with a function for `outputs`, which has to be given again.
    """
    wrong_tensor = first_wrong_tensor(model, slim, plan)
    if wrong_tensor is not None:
        return Verification(float("inf"), passed=False, first_difference=wrong_tensor)
    setting = Setting(seed, outputs=_counted(plan, outputs))
    try:
        return _compare(model, slim, plan, inputs, setting)
    except Float32Only:
        return _compare(model, slim, plan, inputs, replace(setting, dtype=torch.float32))


def _counted(plan: PruningPlan, outputs: Outputs | None) -> Outputs | None:
    """Return the outputs to compare: those given or, without any, those that the plan records."""
    known = plan.requested.get("outputs")
    if outputs is not None or not isinstance(known, Mapping):
        return known if outputs is None else outputs
    raise ConfigError(
        "the plan was made with a function that picks the outputs that count, and a plan holds no code. Give it again.",
        argument="outputs",
    )


def _compare(model: nn.Module, slim: nn.Module, plan: PruningPlan, inputs: Inputs, setting: Setting) -> Verification:
    double = setting.dtype == torch.float64
    copies = (copy_with_tensors(network, {}) for network in (model, slim))
    original, small = (copied.double() if double else copied.float() for copied in copies)
    if plan.folds:  # the running mean minus the bias was rounded to the type of the network: compute it again
        small = copy_weights(small, plan, original)
    outcome = _compare_runs(mask(original, plan), small, plan, inputs, setting)
    if not outcome.passed:
        return outcome
    small = copy_weights(small, plan, _randomize_norms(original, setting.seed))  # the mask has set slices to zero
    return _worse(outcome, _compare_randomized(mask(original, plan), small, plan, inputs, setting))


def _compare_randomized(
    masked: nn.Module, slim: nn.Module, plan: PruningPlan, inputs: Inputs, setting: Setting
) -> Verification:
    """Compare networks with random BatchNorm weights: with the statistics of the batch, if these allow a comparison.

    A batch of few values can make rounding errors large, or outputs infinite. Then the statistics that the BatchNorms
    have are used.
    """
    try:
        return _compare_runs(masked, slim, plan, inputs, replace(setting, batch_statistics=True))
    except Float32Only:
        raise
    except ForwardError as error:
        try:
            return _compare_runs(masked, slim, plan, inputs, setting)
        except ForwardError:
            raise error from None


def _compare_runs(
    masked: nn.Module, slim: nn.Module, plan: PruningPlan, inputs: Inputs, setting: Setting
) -> Verification:
    outcome: Verification | None = None
    for expected in masked_runs(masked, inputs, setting):
        outcome = _worse(outcome, _compare_run(expected, masked, slim, plan))
        if not outcome.passed:
            break
    assert outcome is not None
    return outcome


def _worse(outcome: Verification | None, other: Verification) -> Verification:
    """Return the outcome that is nearer to its tolerance, or farther above it."""
    if outcome is None:
        return other
    selected = max(outcome, other, key=lambda one: one.max_relative_error / one.tolerance)
    on_noise = outcome.inputs == other.inputs == "noise"
    return replace(selected, inputs="noise" if on_noise else "example inputs")


def _compare_run(expected: MaskedRun, masked: nn.Module, slim: nn.Module, plan: PruningPlan) -> Verification:
    setting = expected.setting
    error, tolerance = largest_error(expected, slim), tolerance_of(expected, masked)
    outcome = Verification(
        error,
        passed=error <= tolerance,
        tolerance=tolerance,
        dtype="float64" if setting.dtype == torch.float64 else "float32",
        inputs="noise" if expected.on_noise else "example inputs",
        outputs=None if setting.outputs is None else name_of(setting.outputs),
    )
    if outcome.passed:
        return outcome
    _require_repeatable(expected, masked, tolerance)
    if setting.dtype == torch.float64 and error <= LARGEST_TOLERANCE and rounds_to_float32(expected, masked):
        raise Float32Only("the cut cannot be proven in float64: code that the network calls rounds to float32.")
    return replace(outcome, first_difference=_first_difference(expected, masked, slim, plan, tolerance))


def _require_repeatable(expected: MaskedRun, masked: nn.Module, tolerance: float) -> None:
    """Refuse a network that differs from itself: a difference of two networks then shows nothing about the cut."""
    if largest_error(expected, masked) > tolerance:
        raise ForwardError(
            "the cut cannot be proven: on equal inputs, the forward pass of the network computes something different "
            "each time (it draws from random or numpy, or reads a clock or a counter). Draw with torch, or "
            "not in eval mode."
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
            f"{verification.max_relative_error:.2e} (allowed {verification.tolerance:.0e}), first difference in "
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


def _first_difference(
    expected: MaskedRun, masked: nn.Module, slim: nn.Module, plan: PruningPlan, tolerance: float
) -> str:
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
        if kept.shape == of_slim[name].shape and relative_error(kept, of_slim[name]) > tolerance:
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
