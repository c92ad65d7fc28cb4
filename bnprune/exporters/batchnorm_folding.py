"""Folding BatchNorms into the layers before them, for inference: W·γ/σ and (b - μ)·γ/σ + β."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnprune.channels.modules import has_hooks, modules_by_name, set_mode
from bnprune.channels.pytrees import as_inputs
from bnprune.errors import TraceError, VerificationError, first_line
from bnprune.exporters.parity import compare, dtype_of
from bnprune.pruning.bias_folding import sole_norms
from bnprune.pruning.proof_forward import Setting, run, trial_inputs
from bnprune.pruning.proof_tolerance import TOLERANCE

_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Compared by exact type: a subclass may compute more than the formula that is folded."""


def fold_batchnorms(model: nn.Module, example: torch.Tensor) -> tuple[nn.Module, int]:
    """Return a copy of a network, in eval mode, with its BatchNorms folded, and the number of them.

    A BatchNorm can be folded if its input comes from one convolution or linear layer and nothing else reads that
    layer's output. BatchNorms behind a read gate, or before a convolution (pre-activation networks), are not folded.

    Args:
        model: Any network; left untouched.
        example: One batch of inputs; values do not matter.

    Raises:
        TraceError: The network cannot be copied.
        VerificationError: The copy does not compute the same in float64.
    """
    original, folded = _copied(model).double(), _copied(model).double()
    set_mode(folded, training=False)
    modules = modules_by_name(folded)
    count = 0
    for layer, norm in sole_norms(model, as_inputs(example)).items():
        fused = _fused(modules[layer], modules[norm])
        if fused is not None:
            _replace(folded, modules[layer], fused)
            _replace(folded, modules[norm], nn.Identity())
            count += 1
    _prove(original, folded, example)
    return folded.to(dtype_of(model)), count


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TraceError(
            f"the network cannot be copied to fold its BatchNorms: {first_line(error)} Remove the hooks that compute "
            "its weights (torch.nn.utils.remove_weight_norm), or export without folding.",
            remedy={"fold_bn": False},
        ) from error


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if type(norm) not in _NORMS or norm.running_mean is None or has_hooks(layer) or has_hooks(norm):
        return None
    if type(layer) in _CONVS or type(layer) in _TRANSPOSED:
        return fuse_conv_bn_eval(layer, norm, transpose=type(layer) in _TRANSPOSED)  # type: ignore[type-var, arg-type]
    return fuse_linear_bn_eval(layer, norm) if type(layer) is nn.Linear else None  # type: ignore[arg-type]


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module under every name it has."""
    for parent in modules_by_name(model).values():
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)


def _prove(original: nn.Module, folded: nn.Module, example: torch.Tensor) -> None:
    """Compare in float64, before the weights are rounded to the network's own precision."""
    seed = 0
    [noise], _ = next(trial_inputs(as_inputs(example), seed))
    right, made = (lambda x, net=net: run(net, as_inputs(x), Setting(seed)) for net in (original, folded))
    parity = compare(right, made, [noise], tolerance=TOLERANCE)
    if not parity.passed:
        raise VerificationError(
            "folding BatchNorms changes what the network computes: relative error "
            f"{parity.max_relative_error:.2e} in float64 (allowed {TOLERANCE:.0e}). Nothing was written. Report the "
            "network, and export without folding.",
            remedy={"fold_bn": False},
        )
