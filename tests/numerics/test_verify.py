"""The proof holds for right cuts and fails for wrong ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import bnprune
from bnprune.channels.pytrees import as_inputs
from bnprune.pruning import surgery
from bnprune.pruning.plan import Cut
from bnprune.pruning.surgery import apply
from bnprune.pruning.verify import mask, require, verify
from tests.nets import MOTIFS, outputs, randomized


@pytest.mark.parametrize("name", MOTIFS)
def test_slim_equals_a_hand_masked_original(name: str) -> None:
    """The reference is a loop over the plan in this test, not the mask of `verify`."""
    make, shape = MOTIFS[name]
    model = randomized(make())
    x = torch.randn(2, *shape[1:], dtype=torch.float64)
    result = bnprune.prune(model, torch.zeros(shape), ratio=0.4)
    assert result.report.max_relative_error < 1e-12
    named = dict(model.double().named_parameters()) | dict(model.named_buffers())
    for cut in result.plan.cuts:
        for tensor_name, dim in cut.at:
            for index in set(range(cut.size)) - set(cut.keep):
                named[tensor_name].data.select(dim, index).zero_()
    expected = outputs(model, x)
    torch.testing.assert_close(outputs(result.model, x), expected, rtol=1e-11, atol=1e-11)


def wrong(plan: bnprune.PruningPlan, place: str) -> bnprune.PruningPlan:
    """Keep other channels of one tensor than of its neighbours."""
    cuts = []
    for cut in plan.cuts:
        hit = [at for at in cut.at if at[0] == place]
        shifted = tuple(sorted((index + 1) % cut.size for index in cut.keep))
        cuts.append(replace(cut, at=tuple(at for at in cut.at if at not in hit)))
        if hit:
            cuts.append(Cut(cut.size, shifted, tuple(hit)))
    return replace(plan, cuts=tuple(cut for cut in cuts if cut.at))


@pytest.mark.parametrize("place", ["1.0.weight", "0.1.weight", "0.1.running_mean", "4.2.weight"])
def test_a_wrong_cut_is_caught_and_named(place: str) -> None:
    model = randomized(MOTIFS["chain"][0]())
    x = torch.zeros(1, 3, 8, 8)
    good = bnprune.prune(model, x, ratio=0.4).plan
    with pytest.raises(bnprune.VerificationError, match=rf"does not equal the masked original.*'{place}'"):
        require(verify(model, apply(wrong(good, place), model), good, as_inputs(x)))


@pytest.mark.parametrize(("place", "layer"), [("1.0.weight", "1.0"), ("0.1.bias", "0.1")])
def test_a_wrong_plan_is_caught_by_what_the_networks_compute(place: str, layer: str) -> None:
    """Tensors are the slices the plan asks for, but the plan does not fit together."""
    model = randomized(MOTIFS["chain"][0]())
    x = torch.zeros(1, 3, 8, 8)
    bad = wrong(bnprune.prune(model, x, ratio=0.4).plan, place)
    verification = verify(model, apply(bad, model), bad, as_inputs(x))
    assert not verification.passed
    assert verification.max_relative_error > 1e-6
    assert verification.first_difference == layer


def test_the_signal_may_not_hide_behind_biases() -> None:
    """Tiny scale factors leave the output to the last bias; the proof looks at batch-normalised activations too."""
    model = randomized(MOTIFS["chain"][0]())
    with torch.no_grad():
        model[3][1].weight.mul_(1e-14)
        model[3][1].bias.zero_()
    x = torch.zeros(1, 3, 8, 8)
    plan = bnprune.prune(model, x, ratio=0.4).plan
    bad = wrong(plan, "3.0.weight")
    assert not verify(model, apply(bad, model), bad, as_inputs(x)).passed


def test_literal_float32_does_not_spoil_the_proof() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x)).to(torch.float32).float()
            return self.last(x.type_as(self.last.weight))

    report = bnprune.prune(randomized(Casting()), torch.zeros(1, 3, 8, 8), ratio=0.5).report
    assert report.max_relative_error < 1e-12


def test_mask_zeroes_exactly_what_is_removed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    result = bnprune.prune(randomized(model), torch.zeros(1, 1, 4, 4), ratio=0.5)
    gone = result.plan.cuts[0].removed
    masked = mask(model, result.plan)
    assert masked[0].weight[gone].abs().sum() == 0
    assert masked[2].weight[:, gone].abs().sum() == 0
    kept = list(result.plan.cuts[0].keep)
    assert masked[0].weight[kept].abs().sum() > 0


def test_wrong_surgery_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference are slices by the indices of the plan, so that surgery is not compared with itself."""
    right = surgery._slice

    def shifted(source: torch.Tensor, keeps: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
        return right(source, [(dim, (keep + 1) % source.shape[dim]) for dim, keep in keeps])

    model = randomized(MOTIFS["chain"][0]())
    monkeypatch.setattr(surgery, "_slice", shifted)
    with pytest.raises(bnprune.VerificationError, match=r"relative error inf.*first difference in '0\.0\.weight'"):
        bnprune.prune(model, torch.zeros(1, 3, 8, 8), ratio=0.4)
