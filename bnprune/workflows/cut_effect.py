"""What a cut does to the task's own metric, measured on the data that the network's recipe names."""

from __future__ import annotations

import torch
from torch import nn

from bnprune.errors import BnpruneError
from bnprune.runs.network_source import NetworkSource
from bnprune.runs.preflight import choose_device
from bnprune.training.evaluate import evaluate
from bnprune.workflows.data_source import fitting_data
from bnprune.workflows.results import CutEffect

_IMAGES = 512
"""Largest number of validation images: the effect is a hint, and `bnprune evaluate` measures it on all."""


def cut_effect(network: NetworkSource, slim: nn.Module) -> CutEffect | None:
    """Evaluate a network and its slim one on validation images; None if the data is not known or cannot be opened.

    Args:
        network: The network before the cut; it is left as it was.
        slim: The network after the cut, as it is saved; it stays on its device.
    """
    if network.header.config is None:
        return None
    try:
        config = network.config(sections=("data", "task"))
        splits, task = fitting_data(network, config)
        device = choose_device(config.device)
        order = torch.randperm(len(splits.validation), generator=torch.Generator().manual_seed(0))[:_IMAGES]
        found = []
        for model in (network.model, slim):
            place = next(model.parameters()).device
            found.append(evaluate(model.to(device), splits.validation, device, task=task, indices=order.sort().values))
            model.to(place)
    except (
        BnpruneError
    ):  # neither the data of a checkpoint nor its device need be at hand, and the cut is already saved
        return None
    before, after = found
    return CutEffect(metric=before.name, images=before.count, before=before.value, after=after.value)
