"""Parity: the outputs of an exported network compared with those of the eager one, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs, tensors
from bnprune.errors import VerificationError

TOLERANCE = 1e-4
"""Largest relative error that passes in float32: kernels differ in the order of additions and in what they fuse."""
_ROUNDINGS = 8
"""Largest relative error that passes in lower precision, as a multiple of the type's epsilon."""

Runner = Callable[[torch.Tensor], list[torch.Tensor]]
"""Maps a batch (N, ...) to the output tensors of a network."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The differences between the outputs of an exported network and those of the eager one."""

    inputs: int
    """Inputs compared."""
    max_absolute_error: float
    max_relative_error: float
    """max |exported - eager| / max |eager| of an output over a batch; the worst of them."""
    argmax_agreement: float | None
    """Share of positions whose largest class of the first output is the same; None for outputs without classes."""
    tolerance: float = TOLERANCE
    """Largest relative error that passes."""

    @property
    def passed(self) -> bool:
        """True if the error is within tolerance; NaN is not."""
        return self.max_relative_error <= self.tolerance


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest relative error that passes for networks of that type."""
    return max(TOLERANCE, _ROUNDINGS * torch.finfo(dtype).eps)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of a network's first floating-point parameter: that of its inputs. float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def eager(model: nn.Module) -> Runner:
    """Return a runner of the network in PyTorch, in eval mode; it raises ForwardError if the forward pass fails."""
    model.eval()

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode(), raising_forward_errors(as_inputs(batch)):
            return list(tensors(model(batch)))

    return run


def compare(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[torch.Tensor],
    *,
    inputs: str = "noise",
    tolerance: float = TOLERANCE,
) -> Parity:
    """Run both on every batch (N, ...).

    Args:
        reference: The network with the right outputs.
        candidate: The network that is compared with it.
        batches: Inputs.
        inputs: Name of the inputs, for messages.
        tolerance: Largest relative error that passes.

    Raises:
        VerificationError: An output of the reference has no finite number, so that every output would pass.
    """
    count = agreeing = positions = 0
    absolute = relative = 0.0
    for batch in batches:
        expected = reference(batch)
        if any(tensor.numel() and not tensor.isfinite().any() for tensor in expected):
            raise VerificationError(
                f"the network computes no finite number on {inputs}, so that nothing can be compared. Nothing was "
                "written."
            )
        got = candidate(batch)
        if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
            return Parity(count + len(batch), float("inf"), float("inf"), None, tolerance)
        count += len(batch)
        for want, have in zip(expected, got, strict=True):
            difference, scale = _difference(want, have)
            absolute = max(absolute, difference)
            relative = max(relative, difference / scale if scale else difference)
        if expected and expected[0].dim() > 1 and expected[0].numel() and expected[0].is_floating_point():
            same = expected[0].argmax(1) == got[0].argmax(1)
            agreeing, positions = agreeing + int(same.sum()), positions + same.numel()
    return Parity(count, absolute, relative, agreeing / positions if positions else None, tolerance)


def _difference(want: torch.Tensor, have: torch.Tensor) -> tuple[float, float]:
    """Return max |have - want| and max |want|; the first is infinite if only one of two values is NaN or infinite."""
    want, have = want.double(), have.double()
    same = (want == have) | (want.isnan() & have.isnan())
    difference = (have - want).abs().masked_fill(same, 0.0).nan_to_num(nan=float("inf"), posinf=float("inf"))
    finite = want.abs().where(want.isfinite(), 0.0)
    return (float(difference.max()), float(finite.max())) if want.numel() else (0.0, 0.0)
