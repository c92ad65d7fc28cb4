"""The tolerance of a proof: fixed in float64; in float32 a multiple of the rounding errors of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnprune.channels.pytrees import operands
from bnprune.channels.torch_internals import OpOverload, is_view
from bnprune.errors import ForwardError
from bnprune.pruning.proof_runs import MaskedRun, largest_error

TOLERANCE = 1e-9
"""Largest relative difference a float64 proof may show. Correct surgery gives about 1e-15."""
NOISE_FACTOR = 8.0
"""Tolerance of a float32 proof, as a multiple of the rounding errors of the masked network. The slim network differs by
at most 1.3 times these errors, measured on 10 networks of torchvision."""
LARGEST_TOLERANCE = 1e-3
"""Largest tolerance of a float32 proof that still shows something; wrong cuts show errors of this size and more."""

_EPS = torch.finfo(torch.float32).eps
_SAMPLES = 3


def tolerance_of(masked_run: MaskedRun, masked: nn.Module) -> float:
    """Return the relative difference that the slim network may show in a run.

    Raises:
        ForwardError: The network runs in float32 only, and its rounding errors are as large as errors of a wrong cut.
    """
    if masked_run.setting.dtype == torch.float64:
        return TOLERANCE
    tolerance = NOISE_FACTOR * max(_EPS, rounding_error(masked_run, masked))
    if not tolerance <= LARGEST_TOLERANCE:
        raise ForwardError(
            "the cut cannot be proven: the network runs in float32 only, and its rounding errors require a tolerance "
            f"of {tolerance:.0e}; above {LARGEST_TOLERANCE:.0e}, a wrong cut could pass. Let its code run in float64."
        )
    return tolerance


def rounding_error(masked_run: MaskedRun, masked: nn.Module) -> float:
    """Measure how much rounding changes the outputs: Monte Carlo arithmetic (Parker 1997).

    Every number x that an operator computes becomes x · (1 ± ε), with a random sign, where ε is one unit in the last
    place; the largest relative change of the outputs in three samples counts. Zeros stay zeros, so that removed
    channels stay removed. The slim network adds up the same numbers as the masked one, but in another order, and this
    changes its sums by a few units in the last place, too.
    """
    generator = torch.Generator().manual_seed(masked_run.setting.seed)

    def perturb(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not is_view(func) and any(tensor.is_floating_point() for tensor in operands(args, kwargs)):
            for tensor in operands((output,), {}):
                if tensor.is_floating_point():
                    up = torch.rand(tensor.shape, generator=generator, device="cpu") < 0.5
                    epsilon = torch.finfo(tensor.dtype).eps
                    tensor.mul_(torch.where(up, 1 + epsilon, 1 - epsilon).to(tensor))
        return output

    return max(largest_error(masked_run, masked, perturb) for _ in range(_SAMPLES))


def rounds_to_float32(masked_run: MaskedRun, masked: nn.Module) -> bool:
    """Return True if an operator of another library makes float32 numbers of float64 ones.

    PyTorch's own operators are computed in float64, whatever types the code names; casts inside of other operators are
    not visible.
    """
    rounding: list[OpOverload] = []

    def watch(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if func.namespace != "aten":
            entering, made = operands(args, kwargs), operands((output,), {})
            if not all(map(_is_float32, entering)) and any(t.is_floating_point() for t in made):
                rounding.extend([func] if all(map(_is_float32, made)) else [])
        return output

    masked_run.repeat(masked, watch)
    return bool(rounding)


def _is_float32(tensor: torch.Tensor) -> bool:
    """Return True if every number has an equal one in float32."""
    return not tensor.is_floating_point() or bool((tensor.float().to(tensor.dtype).eq(tensor) | tensor.isnan()).all())
