"""Surgery is right, without asking `verify`: channels that carry nothing may go, and the output must not change."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torchvision

import bnprune
from tests.nets import MOTIFS, Net, conv_bn, head, kill, noise, norms, outputs, randomized

ARCHITECTURES = [
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "regnet_y_400mf",
]


def build(name: str) -> torch.nn.Module:
    options = {"init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **options).double().eval()


def assert_unchanged(model: torch.nn.Module, x: torch.Tensor, ratio: float) -> None:
    before = outputs(model, x)
    result = bnprune.prune(model, x, ratio=ratio, proof=False)
    after = outputs(result.model, x)
    assert result.report.ratio_realised > 0.5 * ratio
    assert before.abs().max() > 0
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9 * float(before.abs().max()))


@pytest.mark.parametrize("name", MOTIFS)
def test_motifs_do_not_change(name: str) -> None:
    make, shape = MOTIFS[name]
    torch.manual_seed(0)
    parts = 2 if name == "grouped" else 1
    assert_unchanged(kill(randomized(make()).double(), parts), noise(2, *shape[1:]), 0.3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_do_not_change(name: str) -> None:
    model = kill(randomized(build(name)))
    assert_unchanged(model, noise(1, 3, 64, 64), 0.2)


def test_a_wrong_channel_would_be_noticed() -> None:
    """The check above can fail: removing live channels changes the output."""
    make, shape = MOTIFS["chain"]
    torch.manual_seed(0)
    model = randomized(make()).double()
    x = noise(*shape)
    result = bnprune.prune(model, x, ratio=0.3, proof=False)
    assert (outputs(model, x) - outputs(result.model, x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MOTIFS)
def test_the_original_is_untouched(name: str) -> None:
    make, shape = MOTIFS[name]
    model = randomized(make()).train()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    slim = bnprune.prune(model, torch.zeros(shape), ratio=0.4).model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not next(slim.parameters()).requires_grad
    assert all(norm.weight.numel() == norm.num_features for norm in norms(slim))


class Shy(list):
    """A list that is not put back once something was written into it."""

    def __setitem__(self, place: object, value: object) -> None:
        raise TypeError("immutable")


@pytest.mark.parametrize("when", ["never", "raises", "grows"])
def test_the_original_keeps_its_tensors_whatever_happens(when: str) -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.a(x)
        n.seen = x.detach().mean((0, 2, 3))
        if when == "grows":
            n.notes.append(1)
        if when == "raises" and x.shape[1] == 8:
            raise ValueError("not today")
        return n.head(x)

    model = randomized(Net(forward, a=conv_bn(3, 8), head=head(8)))
    model.notes = Shy([1])
    model.register_buffer("seen", torch.zeros(8))
    before = model.state_dict(keep_vars=True)
    with nullcontext() if when == "never" else pytest.raises(Exception, match="not today|immutable"):
        assert bnprune.prune(model, torch.zeros(1, 3, 8, 8), ratio=0.5).report.ratio_realised == 0.5
    after = model.state_dict(keep_vars=True)
    assert [id(tensor) for tensor in after.values()] == [id(tensor) for tensor in before.values()]


def test_slim_networks_train() -> None:
    """Forward in train mode and backward; every parameter gets a gradient."""
    model = build("googlenet").train()
    slim = bnprune.prune(randomized(model), torch.zeros(1, 3, 96, 96), ratio=0.5).model.float().train()
    result = slim(torch.randn(2, 3, 96, 96))
    (result.logits.sum() + result.aux_logits1.sum() + result.aux_logits2.sum()).backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())
