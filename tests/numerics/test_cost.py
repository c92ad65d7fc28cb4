"""Parameters and MACs agree with closed forms and with the literature."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import bnprune
from bnprune.models import ZOO
from bnprune.pruning.cost import cost
from tests.nets import MOTIFS, randomized

PUBLISHED = {
    "vgg19": (20.04e6, 0.001),  # Liu et al. 2017, table 1
    "resnet56": (0.85e6, 0.01),  # He et al. 2016, table 6
    "preresnet164": (1.70e6, 0.01),  # Liu et al. 2017, table 1
    "densenet40": (1.05e6, 0.05),  # 1.0M to 1.1M, Huang et al. 2017 and Liu et al. 2017
    "resnet20": (0.27e6, 0.01),
    "resnet32": (0.46e6, 0.02),
    "resnet44": (0.66e6, 0.01),
    "resnet110": (1.73e6, 0.01),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_zoo_has_the_published_number_of_parameters(name: str) -> None:
    expected, tolerance = PUBLISHED[name]
    assert cost(ZOO[name](num_classes=10), torch.zeros(1, 3, 32, 32)).params == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_takes_any_classes_and_channels(name: str) -> None:
    options = {"image_size": 32} if name == "mlp" else {}
    output = ZOO[name](num_classes=7, in_channels=2, **options).to("meta")(torch.zeros(2, 2, 32, 32, device="meta"))
    if name == "centernet":  # in training mode; there is no score of the background
        assert [tuple(part.shape) for part in output] == [(2, 6, 8, 8), (2, 4, 8, 8)]
    else:
        assert output.shape == ((2, 7, 32, 32) if name == "unet" else (2, 7))


def test_macs_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    counted = cost(model, torch.zeros(1, 3, 4, 4))
    assert counted.macs == 3 * 8 * 9 * 16 + 8 * 16 * 5
    assert counted.params == 3 * 8 * 9 + 16 + 8 * 16 * 5 + 5
    assert counted.channels == 8


def test_macs_of_vgg19_are_those_of_the_paper() -> None:
    """3.98e8 MACs; the paper counts multiplications and additions: 7.97e8 FLOPs (table 1)."""
    assert cost(ZOO["vgg19"](), torch.zeros(1, 3, 32, 32)).macs == pytest.approx(7.97e8 / 2, rel=0.005)


@pytest.mark.parametrize("name", MOTIFS)
def test_reported_cost_is_what_is_counted_on_the_slim_network(name: str) -> None:
    make, shape = MOTIFS[name]
    x = torch.zeros(shape)
    model = randomized(make())
    result = bnprune.prune(model, x, ratio=0.5)
    for network, macs in ((model, result.report.macs_before), (result.model, result.report.macs_after)):
        assert by_formula(network, x) == macs
    assert result.report.params_after == sum(p.numel() for p in result.model.parameters())


def by_formula(model: nn.Module, x: torch.Tensor) -> int:
    """Count MACs from the shapes that layers see: a weight per output value and input of the same group."""
    total = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # (out, in / groups, *kernel) or (out, in)

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return total


def test_counting_leaves_the_network_alone() -> None:
    model = torchvision.models.mobilenet_v3_small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost(model, torch.zeros(1, 3, 32, 32))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_with_tensors_that_it_computed_is_counted_like_any_other() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    normed = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    x = torch.zeros(1, 3, 8, 8)
    normed(x)
    assert not normed[0].weight.is_leaf
    assert cost(normed, x).macs == cost(plain, x).macs
