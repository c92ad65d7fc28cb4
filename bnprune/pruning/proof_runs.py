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

import torch
from torch import nn

from bnprune.channels.control_flow import FORCED_BRANCHES, Decisions, ForcedBranch
from bnprune.channels.pytrees import Inputs
from bnprune.errors import ForwardError, first_line
from bnprune.pruning.proof_forward import Watch, feeds, run

_MOST_NAN = 0.5
"""Largest share of an output that may be NaN for a comparison to mean anything. Infinities may belong to a mask."""


@dataclass(frozen=True, slots=True)
class MaskedRun:
    """One forward pass of the masked network: its inputs, its decisions, and its outputs."""

    inputs: Inputs
    seed: int
    batch_statistics: bool
    """True if BatchNorms used the statistics of the batch."""
    forced_branch: float | None
    """The number with which questions about values were answered; None if the network decided by itself."""
    outputs: list[torch.Tensor]
    decisions: Decisions

    def repeat(self, model: nn.Module) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run another network the same way.

        Returns:
            Its outputs, and pairs of the numbers that decisions were based on: of the masked network and of this one.

        Raises:
            ValueError: The network has taken fewer decisions than the masked one.
        """
        replay = self.decisions.replay()
        watch = _with_forced_branch(replay.apply, self.forced_branch)
        outputs = run(model, self.inputs, self.seed, watch, batch_statistics=self.batch_statistics)
        if replay.remaining:
            raise ValueError(f"{replay.remaining} decisions of the masked network were not taken")
        return outputs, replay.pairs


def masked_runs(
    masked: nn.Module, inputs: Inputs, seed: int = 0, *, batch_statistics: bool = False
) -> Iterator[MaskedRun]:
    """Run the masked network on the first inputs that it can process, then along the branches it did not take.

    Raises:
        ForwardError: The network fails on all inputs, or its outputs are infinite or NaN.
    """
    problem = ""
    for given in feeds(inputs, seed):
        try:
            own_way = _masked_run(masked, given, seed, None, batch_statistics=batch_statistics)
        except Exception as error:  # noqa: BLE001 - the code of the network may raise anything
            problem = first_line(error)
            continue
        problem = _problem_of(own_way)
        if not problem:
            break
    else:
        fix = "Give inputs on which the network works."
        if problem == _META_OUTPUTS or torch.get_default_device().type == "meta":
            fix = "End torch.set_default_device('meta'), or give the tensors that forward() makes a device."
        raise ForwardError(f"the cut cannot be proven: {problem}, on noise and on the inputs given. {fix}")
    yield own_way
    for number in FORCED_BRANCHES.values() if own_way.decisions.read_by_python else ():
        with suppress(Exception):  # this branch may end in an assertion about the data
            yield _masked_run(masked, given, seed, number, batch_statistics=batch_statistics)


def _masked_run(
    masked: nn.Module, given: Inputs, seed: int, forced_branch: float | None, *, batch_statistics: bool
) -> MaskedRun:
    decisions = Decisions()
    watch = _with_forced_branch(decisions.record, forced_branch)
    outputs = run(masked, given, seed, watch, batch_statistics=batch_statistics)
    return MaskedRun(given, seed, batch_statistics, forced_branch, outputs, decisions)


def _with_forced_branch(watch: Watch, number: float | None) -> Watch:
    if number is None:
        return watch
    forced = ForcedBranch(number)
    return lambda func, args, kwargs, output: forced.invert(watch(func, args, kwargs, output))


def _problem_of(masked_run: MaskedRun) -> str:
    """Return why the outputs, or without any the numbers behind decisions, cannot be compared; empty if they can."""
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


def largest_error(expected: MaskedRun, slim: nn.Module) -> float:
    """Run the slim network the same way and return the largest relative difference of outputs and of decisions.

    It is infinite if the slim network fails, or if its outputs have other shapes.
    """
    try:
        got, based_on = expected.repeat(slim)
    except Exception:  # noqa: BLE001 - whatever it raises, the masked network did not
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
