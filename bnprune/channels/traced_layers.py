"""The layers of a traced network, and the scale factors of BatchNorms that call no BatchNorm operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from bnprune.channels.graph import Layer
from bnprune.channels.op_context import TraceFacts
from bnprune.channels.torch_internals import InstanceNorm, own_tensors
from bnprune.channels.union_find import NO_CHANNEL, Ids

Shapes = Mapping[str, tuple[int, ...]]


def layers_of(facts: TraceFacts, shapes: Shapes) -> Iterator[Layer]:
    """Yield the convolutions and linear layers in the order of their calls, then the BatchNorms."""
    seen: set[str] = set()
    for work in facts.work:
        if work.layer and work.site not in seen:
            seen.add(work.site)
            kind = "linear" if isinstance(facts.modules.get(work.site), nn.Linear) else "conv"
            yield Layer(work.site, kind, _as_ids(work.outputs))
    for name, module in facts.gammas.items():
        ids = facts.axes.get((name, 0))
        yield Layer(module, "norm", _as_ids(shapes[name][0] if ids is None else ids.numpy()))


def buffer_gammas(modules: Mapping[str, nn.Module], shapes: Shapes) -> dict[str, str]:
    """Return the scale factors of BatchNorms written as arithmetic, such as torchvision's FrozenBatchNorm2d.

    They are recognized by their statistics; the result maps names of tensors to names of modules.
    """
    gammas = {}
    for name, module in modules.items():
        tensors_of = own_tensors(module)
        if "running_mean" not in tensors_of or isinstance(module, InstanceNorm):
            continue
        statistics = [tensors_of.get(key) for key in ("weight", "running_mean", "running_var")]
        weight = f"{name}.weight".removeprefix(".")
        if all(isinstance(s, torch.Tensor) and s.dim() == 1 for s in statistics) and weight in shapes:
            gammas[weight] = name
    return gammas


def _as_ids(axis: Ids | int) -> Ids:
    return np.full(axis, NO_CHANNEL, dtype=np.int64) if isinstance(axis, int) else axis
