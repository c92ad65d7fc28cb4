"""Runs of the masked network, recorded so that the slim network can run the same way and be compared.

A network may decide on values: it sorts scores, drops boxes (NMS), branches on a maximum. The last bits of two networks
differ, so that a tie could be decided one way by the masked network and the other way by the slim one. The slim network
therefore repeats the recorded decisions, and the numbers that they were based on are compared like outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.control_flow import FORCED_BRANCHES, Decisions, ForcedBranch
from bnprune.channels.pytrees import Inputs
from bnprune.channels.torch_internals import OpOverload
from bnprune.errors import ConfigError, ForwardError, first_line
from bnprune.pruning.proof_forward import DEFAULT_SETTING, Setting, Watch, run, trial_inputs, unchanged

_MOST_NAN = 0.5
"""Largest share of an output that may be NaN for a comparison to mean anything. Infinities may belong to a mask."""


@dataclass(frozen=True, slots=True)
class MaskedRun:
    """One forward pass of the masked network: its inputs, its decisions, and its outputs."""

    inputs: Inputs
    on_noise: bool
    """True if the inputs are noise, False if they are those given by the user."""
    setting: Setting
    forced_branch: float | None
    """The number that replaced every number read by Python code; None if the network decided by itself."""
    outputs: list[torch.Tensor]
    decisions: Decisions

    def repeat(
        self, model: nn.Module, watch: Watch = unchanged
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run another network the same way.

        Args:
            model: The network.
            watch: Called with every operator call and its output; returns the output to use instead.

        Returns:
            Its outputs, and pairs of the numbers that decisions were based on: of the masked network and of this one.

        Raises:
            ValueError: The network has taken fewer decisions than the masked one.
        """
        replay = self.decisions.replay()

        def repeat(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return replay.apply(func, args, kwargs, watch(func, args, kwargs, output))

        outputs = run(model, self.inputs, self.setting, _with_forced_branch(repeat, self.forced_branch))
        if replay.remaining:
            raise ValueError(f"{replay.remaining} decisions of the masked network were not taken")
        return outputs, replay.pairs


class Float32Only(ForwardError):
    """The network does not compute in float64: it raises an error there, or code that it calls rounds to float32."""


def masked_runs(masked: nn.Module, inputs: Inputs, setting: Setting = DEFAULT_SETTING) -> Iterator[MaskedRun]:
    """Run the masked network on the first inputs that it can process, then with its branches inverted.

    Raises:
        Float32Only: The network raises an error in float64, whatever the inputs.
        ForwardError: The network fails on all inputs, or its outputs are infinite or NaN.
        ConfigError: The network does not return the outputs that are to be compared.
    """
    problem, always_raises = "", True
    *noises, examples = trial_inputs(inputs, setting.seed, setting.dtype)
    for given in (*noises, examples):
        try:
            normal_run = _masked_run(masked, given, setting, None, on_noise=given is not examples)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - the code of the network may raise anything
            problem = first_line(error)
            continue
        problem, always_raises = _problem_of(normal_run), False
        if not problem:
            break
    else:
        fix = "Give inputs on which the network works."
        if problem == _META_OUTPUTS or torch.get_default_device().type == "meta":
            fix = "End torch.set_default_device('meta'), or give the tensors that forward() makes a device."
        kind = Float32Only if always_raises and setting.dtype == torch.float64 else ForwardError
        raise kind(f"the cut cannot be proven: {problem}, on noise and on the inputs given. {fix}")
    yield normal_run
    for number in FORCED_BRANCHES.values() if normal_run.decisions.read_by_python else ():
        with suppress(Exception):  # this branch may end in an assertion about the data
            yield _masked_run(masked, given, setting, number, on_noise=normal_run.on_noise)


def _masked_run(
    masked: nn.Module, given: Inputs, setting: Setting, forced_branch: float | None, *, on_noise: bool
) -> MaskedRun:
    decisions = Decisions()
    outputs = run(masked, given, setting, _with_forced_branch(decisions.record, forced_branch))
    return MaskedRun(given, on_noise, setting, forced_branch, outputs, decisions)


def _with_forced_branch(watch: Watch, number: float | None) -> Watch:
    if number is None:
        return watch
    forced = ForcedBranch(number)
    return lambda func, args, kwargs, output: forced.invert(watch(func, args, kwargs, output))


def _problem_of(masked_run: MaskedRun) -> str:
    """Return why the outputs, or without any the operands of decisions, cannot be compared; empty if they can."""
    outputs = [tensor for tensor in masked_run.outputs if tensor.numel()] or masked_run.decisions.operands
    if not any(tensor.numel() for tensor in outputs):
        return "its outputs are empty"
    if any(tensor.is_meta for tensor in outputs):
        return _META_OUTPUTS
    real = [tensor for tensor in outputs if tensor.is_floating_point() and tensor.numel()]
    if any(not tensor.isfinite().any() or float(tensor.isnan().double().mean()) > _MOST_NAN for tensor in real):
        return "its outputs are not finite"
    return ""


_META_OUTPUTS = "its outputs are on the meta device, without values"


def largest_error(expected: MaskedRun, slim: nn.Module, watch: Watch = unchanged) -> float:
    """Run the slim network the same way and return the largest relative difference of outputs and of decisions.

    It is infinite if the slim network fails, or if its outputs have other shapes.
    """
    try:
        got, based_on = expected.repeat(slim, watch)
    except Exception:  # noqa: BLE001 - any error is a difference: the masked network has raised none
        return float("inf")
    pairs = [*zip(expected.outputs, got, strict=False), *based_on]
    if [t.shape for t in expected.outputs] != [t.shape for t in got] or not any(left.numel() for left, _ in pairs):
        return float("inf")
    return max(itertools.starmap(relative_error, pairs))


def relative_error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Return the largest difference of two tensors of one shape, relative to the largest magnitude.

    If several elements share the largest magnitude, the others are also compared among themselves. In an attention mask
    of [-1e9, -1e9, 0.5, 0.7], for example, a wrong 0.5 would be an error of only 5e-10 relative to 1e9.
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
