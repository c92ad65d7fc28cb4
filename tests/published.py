"""Published weights of torchvision in a cache of the tests' own (fixture `hub`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bnprune.models.zoo import ModelSpec, build
from tests.nets import randomized

NAME = "torchvision/shufflenet_v2_x0_5"


def publish(hub: Path) -> nn.Module:
    """Write a file of weights where torchvision looks for it, and return the network that has them."""
    from torchvision.models import get_model_weights

    network = randomized(build(ModelSpec(NAME)), seed=7)
    url = get_model_weights(NAME.rpartition("/")[2]).DEFAULT.url
    torch.save(network.state_dict(), hub / url.rpartition("/")[2])
    return network
