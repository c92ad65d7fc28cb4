"""The first half of the proof: every tensor of the slim network is the slice of the original that the plan keeps.

The expected slices come from the indices in the plan alone. Nothing here calls the code that cuts, so
a mistake in surgery cannot go unnoticed.
"""

from __future__ import annotations

import torch
from torch import nn

from bnprune.pruning.gates import Gate, gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import named_tensors


def first_wrong_tensor(model: nn.Module, slim: nn.Module, plan: PruningPlan) -> str | None:
    """Return the name of a tensor of the slim network that differs from the plan; None if there is none."""
    expected, got = expected_tensors(model, plan), dict(named_tensors(slim))
    if expected.keys() != got.keys():
        return min(expected.keys() ^ got.keys())
    return next((name for name, tensor in expected.items() if not _equal(tensor, got[name])), None)


def expected_tensors(model: nn.Module, plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that the slim network must have, by name.

    For each place "conv.weight:1" of a cut, this is `weight[:, keep]`. A folded bias is missing, and the running mean
    of the BatchNorm after it is smaller by that bias. A gate adds its buffers.
    """
    named = dict(named_tensors(model))
    names = {id(tensor): name for name, tensor in named.items()}
    expected = {name: tensor.detach() for name, tensor in named.items()}
    for cut in plan.cuts:
        for name, dim in cut.at:
            expected[name] = expected[name][(slice(None),) * dim + (list(cut.keep),)]
    for fold in plan.folds:
        mean = names[id(model.get_submodule(fold.into).running_mean)]
        bias = expected.pop(fold.bias)
        expected[mean] = expected[mean] - bias.to(expected[mean].dtype)
    gated = {gate.at for gate in plan.gates}
    expected = {gated_name(name, gated): tensor for name, tensor in expected.items()}
    for gate in plan.gates:
        expected |= _gate_buffers(gate, named[f"{gate.at}.bias"].detach())
    return expected


def _gate_buffers(gate: Gate, shift: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the buffers of a gate; `shift` is β of the BatchNorm in the original, shape (C,).

    Example: the stream keeps the channels 0, 2, 3 and the BatchNorm keeps 0, 3. A read gate picks the positions 0 and 2
    of the stream. A write gate has the outputs 0, 3 and the constant of channel 2, in this order, and puts them in the
    order 0, 2, 3 by taking the positions 0, 2, 1.
    """
    if gate.kind == "read":
        index = [gate.stream.index(channel) for channel in gate.keep]
        return {f"{gate.at}.index": torch.tensor(index, device=shift.device)}
    written = [*gate.keep, *gate.filled]
    order = [written.index(channel) for channel in gate.stream]
    return {f"{gate.at}.order": torch.tensor(order, device=shift.device), f"{gate.at}.fill": shift[gate.filled]}


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Compare shape, type and values; a NaN equals a NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(((left == right) | (left != left) & (right != right)).all())
