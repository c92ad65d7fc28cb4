"""Mixed images: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), on whole batches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bnprune.config.schema import OptimisationConfig

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From images (N, C, H, W) and labels (N,) to images and targets: the labels, or shares of the classes (N, K).
Draws from torch's random numbers on the CPU, so that it depends only on the seed of the step."""


def make_mix(config: OptimisationConfig, classes: int) -> Mix:
    """Return the function that mixes batches; without mixup and cutmix, it returns them unchanged."""
    from torchvision.transforms import v2

    kinds = {v2.MixUp: config.mixup, v2.CutMix: config.cutmix}
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds.items() if alpha]
    if not chosen:
        return lambda images, labels: (images, labels)
    mix: Mix = v2.RandomChoice(chosen) if len(chosen) > 1 else chosen[0]
    return mix
