"""A bias before a BatchNorm goes into its running mean: the same function with fewer parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning.bias_folding import Fold, find_folds
from tests.nets import Net, conv_bn, head, noise, randomized

X = noise(2, 3, 8, 8)


def biased(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


def test_the_function_stays_and_the_bias_goes() -> None:
    model = randomized(nn.Sequential(biased(3, 8), biased(8, 8), nn.Flatten(), nn.Linear(512, 4), nn.BatchNorm1d(4)))
    model = model.double()
    plain, folded = (bnprune.prune(model, X, ratio=0.4, fold_bias=wanted) for wanted in (False, True))
    assert folded.plan.folds == (Fold("0.0.bias", "0.1"), Fold("1.0.bias", "1.1"), Fold("3.bias", "4"))
    assert folded.model[0][0].bias is folded.model[1][0].bias is folded.model[3].bias is None
    assert plain.model[0][0].bias is not None
    spared = sum(p.numel() for p in plain.model.parameters()) - sum(p.numel() for p in folded.model.parameters())
    assert spared == plain.model[0][0].out_channels + plain.model[1][0].out_channels + 4
    assert folded.report.max_relative_error < 1e-12
    for mode in (False, True):
        torch.testing.assert_close(folded.model.train(mode)(X), plain.model.train(mode)(X), rtol=0, atol=1e-12)


def test_folds_are_in_the_plan_and_in_checkpoints(tmp_path) -> None:
    model = randomized(nn.Sequential(biased(3, 8), biased(8, 8), head(8)))
    result = bnprune.prune(model, X.float(), ratio=0.4, fold_bias=True)
    plan = bnprune.PruningPlan.from_json(result.plan.to_json())
    assert plan == result.plan
    again = bnprune.apply(plan, model)
    bnprune.save(result, tmp_path / "slim.safetensors")
    loaded = bnprune.load(tmp_path / "slim.safetensors", model=copy.deepcopy(model))
    for other in (again, loaded):
        assert other.state_dict().keys() == result.model.state_dict().keys()
        assert all(torch.equal(t, result.model.state_dict()[n]) for n, t in other.state_dict().items())
    wrong = bnprune.PruningPlan.from_json(result.plan.to_json().replace('"into": "0.1"', '"into": "2"'))
    with pytest.raises(bnprune.CheckpointError, match=r"'0.0.bias' cannot be folded into '2'"):
        bnprune.apply(wrong, model)


def conv() -> nn.Module:
    return nn.Conv2d(3, 8, 1)


def bn() -> nn.Module:
    return nn.BatchNorm2d(8)


SEEN_ELSEWHERE = {
    "by an addition": lambda: Net(lambda n, x: n.d((y := n.c(x)) + n.b(y)), c=conv(), b=bn(), d=head(8)),
    "in train mode": lambda: Net(
        lambda n, x: n.d(n.b(y := n.c(x)) + (y if n.training else 0)), c=conv(), b=bn(), d=head(8)
    ),
    "by two BatchNorms": lambda: Net(lambda n, x: n.d(n.b(y := n.c(x)) + n.e(y)), c=conv(), b=bn(), e=bn(), d=head(8)),
    "by whoever calls the network": lambda: Net(lambda n, x: ((y := n.c(x)), n.d(n.b(y))), c=conv(), b=bn(), d=head(8)),
    "through a ReLU": lambda: nn.Sequential(conv(), nn.ReLU(), bn(), head(8)),
    "after a layer that runs twice": lambda: Net(
        lambda n, x: n.d(n.b(n.c(x)) + n.e(n.c(x + 1))), c=conv(), b=bn(), e=bn(), d=head(8)
    ),
}


@pytest.mark.parametrize("name", SEEN_ELSEWHERE)
def test_a_bias_that_is_seen_elsewhere_stays(name: str) -> None:
    assert find_folds(SEEN_ELSEWHERE[name]().double(), ((X,), {})) == ()


def test_with_gates() -> None:
    stem = biased(3, 8)
    model = Net(lambda n, x: n.d((y := n.a(x)) + n.c(n.b(y))), a=stem, b=biased(8, 8), c=conv_bn(8, 8), d=head(8))
    result = bnprune.prune(randomized(model).double(), X, ratio=0.4, fold_bias=True, coupling="gates")
    assert result.plan.gates
    assert Fold("b.0.bias", "b.1") in result.plan.folds
    assert result.report.max_relative_error < 1e-12
