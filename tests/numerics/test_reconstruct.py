"""Reconstruction: exact if removed channels depend linearly on kept ones, and a least-squares fit otherwise.

The weights of the layers before the cut are set so that every removed channel is a linear combination of kept ones.
Other weights of the layers that read them then give the dense outputs exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.recovery.moments import RIDGES, Moments, _searched
from bnprune.recovery.output_distance import output_distance
from bnprune.recovery.reconstruct import Reconstruction, reconstruct, reconstruct_layers
from tests.nets import Net, conv_bn, head, noise, norms, outputs, randomized
from tests.numerics.test_gates import preactivation

SHAPE = (3, 8, 8)


class Producer(nn.Module):
    """A convolution and a BatchNorm, of whose 8 channels 4 are linear combinations of the other 4.

    Args:
        kind: A convolution.
        norm: Its BatchNorm.
        channels: Input channels.
        shifted: True for BatchNorms with means and shifts. Combinations then have a constant part.
        parts: Channels of each of so many parts of equal size depend on each other, as grouped convolutions need it.
    """

    def __init__(
        self,
        kind: type[nn.Module] = nn.Conv2d,
        norm: type[nn.Module] = nn.BatchNorm2d,
        channels: int = 3,
        *,
        shifted: bool = False,
        parts: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.conv: Any = kind(channels, 8, 3, padding=1, bias=False).double()
        self.norm: Any = norm(8).double()
        kept = torch.tensor([c for c in range(8) if c % (8 // parts) < 4 // parts])
        gone = torch.tensor([c for c in range(8) if c not in kept])
        mix = noise(4, 4, seed=7)  # the same for all producers, so that sums of their outputs keep the dependency
        mix *= (kept[None] * parts // 8 == gone[:, None] * parts // 8) * parts**0.5
        with torch.no_grad():
            self.conv.weight.copy_(0.3 * noise(*self.conv.weight.shape, seed=20 + seed))
            self.conv.weight[gone] = (mix @ self.conv.weight[kept].flatten(1)).view_as(self.conv.weight[gone])
            self.norm.weight[gone] = 0.1  # the criterion removes the smallest γ
            if shifted:
                self.norm.bias.copy_(noise(8, seed=21))
                self.norm.running_mean.copy_(noise(8, seed=22))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x))
        return y


def batches(shape: Sequence[int] = SHAPE, count: int = 4, size: int = 16) -> list[torch.Tensor]:
    return [noise(size, *shape, seed=100 + i) for i in range(count)]


def cut(model: nn.Module, shape: Sequence[int] = SHAPE, **options: Any) -> tuple[nn.Module, bnprune.PruningResult]:
    """Remove the 4 dependent channels of every producer, and nothing else."""
    model = model.double().eval()
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not name.endswith(".norm")
    ]
    result = bnprune.prune(model, noise(2, *shape), ratio=0.5, exclude=others, **options)
    return model, result


def assert_exact(model: nn.Module, shape: Sequence[int] = SHAPE, **options: Any) -> tuple[Reconstruction, ...]:
    """Cut, reconstruct, and compare on images that reconstruction has not seen."""
    model, result = cut(model, shape, **options)
    fresh = noise(3, *shape, seed=9)
    expected = outputs(model, fresh)
    scale = float(expected.abs().max())
    assert (outputs(result.model, fresh) - expected).abs().max() > 1e-3 * scale  # the plain cut is wrong
    found = reconstruct_layers(model, result.model, result.plan, batches(shape))
    torch.testing.assert_close(outputs(result.model, fresh), expected, rtol=0, atol=1e-9 * scale)
    assert found
    assert not any(layer.reason for layer in found)
    for layer in found:
        assert layer.channels >= 4
        assert layer.lost_before is not None
        assert layer.lost_after is not None
        assert layer.lost_after < 1e-9 < layer.lost_before
    return found


def read_by(layer: nn.Module, **producer: Any) -> Callable[[], nn.Module]:
    return lambda: Net(lambda n, x: n.c(n.a(x)), a=Producer(**producer), c=copy.deepcopy(layer))


def summed() -> nn.Module:
    return Net(
        lambda n, x: n.c(n.a(x) + n.b(x)), a=Producer(seed=0), b=Producer(seed=1), c=nn.Conv2d(8, 5, 3, padding=1)
    )


def concatenated() -> nn.Module:
    return Net(
        lambda n, x: n.c(torch.cat([n.a(x), x, n.b(x)], 1)),
        a=Producer(seed=0),
        b=Producer(seed=1),
        c=nn.Conv2d(19, 5, 3, padding=1),
    )


def repeated() -> nn.Module:
    """Two calls of one layer, on inputs with different statistics."""
    return Net(lambda n, x: n.c(n.a(x)) * 2 + n.c(n.a(3 * x + 1)), a=Producer(shifted=True), c=nn.Conv2d(8, 5, 3))


def sharing(*, bias: bool, kind: type[nn.Module] = nn.Conv2d) -> nn.Module:
    """Two layers with one weight, and biases of their own."""
    a, b, c, d = Producer(seed=0), Producer(seed=1), kind(8, 5, 3, bias=bias), kind(8, 5, 3, bias=bias)
    d.weight = c.weight
    return Net(lambda n, x: n.c(n.a(x)).sigmoid() + n.d(n.b(x)), a=a, b=b, c=c, d=d)


def through_depthwise() -> nn.Module:
    """All channels of a depthwise convolution with one kernel depend on each other as its inputs do."""
    net = Net(
        lambda n, x: n.c(n.d(n.a(x))),
        a=Producer(),
        d=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        c=nn.Conv2d(8, 5, 1),
    )
    with torch.no_grad():
        net.d.weight.copy_(net.d.weight[:1].expand_as(net.d.weight))
    return net


def normed(bias: bool) -> nn.Module:
    net = Net(
        lambda n, x: n.d(F.relu(n.b(n.c(n.a(x))))),
        a=Producer(shifted=True),
        c=nn.Conv2d(8, 6, 3, bias=bias),
        b=nn.BatchNorm2d(6),
        d=head(6),
    )
    return randomized_norm(net)


def randomized_norm(net: Net) -> Net:
    with torch.no_grad():
        net.b.running_mean.copy_(noise(6, seed=30))
        net.b.bias.copy_(noise(6, seed=31))
    return net


CASES: dict[str, Callable[[], nn.Module]] = {
    "convolution": read_by(nn.Conv2d(8, 5, 3, padding=1)),
    "without a bias": read_by(nn.Conv2d(8, 5, 3, padding=1, bias=False)),
    "constants, without padding": read_by(nn.Conv2d(8, 5, 3), shifted=True),
    "constants, pointwise": read_by(nn.Conv2d(8, 5, 1), shifted=True),
    "stride and dilation": read_by(nn.Conv2d(8, 5, 3, stride=2, dilation=2, padding=2)),
    "same padding, even kernel": read_by(nn.Conv2d(8, 5, (2, 3), padding="same")),
    "circular padding": read_by(nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular"), shifted=True),
    "grouped": read_by(nn.Conv2d(8, 6, 3, padding=1, groups=2), parts=2),
    "grouped, with constants": read_by(nn.Conv2d(8, 6, 1, groups=2), parts=2, shifted=True),
    "transposed": read_by(nn.ConvTranspose2d(8, 5, 3, stride=2)),
    "transposed, grouped": read_by(nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2, bias=False), parts=2),
    "linear after pooling": read_by(head(8), shifted=True),
    "linear on tokens": lambda: Net(
        lambda n, x: n.c(n.a(x).flatten(2).transpose(1, 2)), a=Producer(shifted=True), c=nn.Linear(8, 5)
    ),
    "flattened": read_by(nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 5)), shifted=True),
    "flattened without a bias": read_by(nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 5, bias=False))),
    "flattened, channels last": lambda: Net(
        lambda n, x: n.c(n.a(x).permute(0, 2, 3, 1).flatten(1)), a=Producer(shifted=True), c=nn.Linear(8 * 64, 5)
    ),
    "residual": summed,
    "concatenation": concatenated,
    "BatchNorm after, with a bias": lambda: normed(bias=True),
    "BatchNorm after, without a bias": lambda: normed(bias=False),
    "called twice": repeated,
    "shared weight": lambda: sharing(bias=True),
    "shared weight without biases": lambda: sharing(bias=False),
    "shared weight, transposed": lambda: sharing(bias=True, kind=nn.ConvTranspose2d),
    "depthwise between": through_depthwise,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_dependent_channels_are_replaced_exactly(name: str) -> None:
    torch.manual_seed(0)
    assert_exact(CASES[name]())


def test_one_dimension() -> None:
    torch.manual_seed(0)
    net = read_by(nn.Conv1d(8, 5, 3, padding=1), kind=nn.Conv1d, norm=nn.BatchNorm1d)()
    assert_exact(net, (3, 16))


def test_three_dimensions() -> None:
    torch.manual_seed(0)
    net = read_by(nn.Conv3d(8, 5, (1, 3, 2), padding=(0, 1, 1)), kind=nn.Conv3d, norm=nn.BatchNorm3d)()
    assert_exact(net, (3, 4, 5, 6))


def test_folded_biases_are_not_subtracted_twice() -> None:
    torch.manual_seed(0)
    assert_exact(normed(bias=True), fold_bias=True)


def test_layers_that_lose_outputs_too() -> None:
    """The middle layer is cut on both sides; its own removed outputs depend on kept ones as well."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.c(n.b(n.a(x))), a=Producer(seed=0), b=Producer(channels=8, seed=1), c=nn.Conv2d(8, 5, 1))
    assert [layer.site for layer in assert_exact(net)] == ["b.conv", "c"]


def test_gates() -> None:
    """Two layers read one stream, and each keeps its own half; channel i + 4 is a multiple of channel i."""
    torch.manual_seed(0)
    model = preactivation().double().eval()
    factors = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        for writer in (model.stem, model.first[3], model.second[3]):
            writer.weight[4:] = factors[:, None, None, None] * writer.weight[:4]
        for reader, gone in ((model.second[0], [0, 1, 2, 3]), (model.last, [0, 1, 6, 7])):
            reader.weight[gone] = 0.1
    result = bnprune.prune(model, noise(2, *SHAPE), ratio=0.5, exclude=["first", "second.2"], coupling="gates")
    assert {gate.kind for gate in result.plan.gates} == {"read"}
    fresh = noise(3, *SHAPE, seed=9)
    expected = outputs(model, fresh)
    assert (outputs(result.model, fresh) - expected).abs().max() > 0.01
    reconstruct(model, result.model, result.plan, batches())
    torch.testing.assert_close(outputs(result.model, fresh), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_one_image_at_a_time() -> None:
    """Batches of one sample are split between the halves, too."""
    torch.manual_seed(0)
    model, result = cut(read_by(head(8), shifted=True)())
    images = batches(size=1, count=40)
    reconstruct(model, result.model, result.plan, images)
    torch.testing.assert_close(outputs(result.model, images[0]), outputs(model, images[0]), rtol=0, atol=1e-9)


def test_batches_of_a_loader_and_keyword_arguments() -> None:
    torch.manual_seed(0)
    model, result = cut(Net(lambda n, x: n.c(n.a(x)), a=Producer(), c=nn.Conv2d(8, 5, 3)))
    pairs, named = copy.deepcopy(result.model), copy.deepcopy(result.model)
    reconstruct(model, pairs, result.plan, [(x, torch.zeros(len(x))) for x in batches()])
    reconstruct(model, named, result.plan, ({"x": x} for x in batches()))
    assert torch.equal(pairs.c.weight, named.c.weight)
    assert not torch.equal(pairs.c.weight, result.model.c.weight)


# -- against a least-squares solver ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_the_fit_is_the_least_squares_solution(stride: int, groups: int) -> None:
    """If channels do not depend on each other; with `torch.linalg.lstsq` on unfolded windows, up to the ridge."""
    layer = nn.Conv2d(8, 6, 3, stride=stride, padding=1, groups=groups)
    torch.manual_seed(0)
    model = randomized(Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 8), c=layer)).double().eval()
    result = bnprune.prune(model, noise(2, *SHAPE), ratio=0.5)
    images = [noise(200, 3, 6, 6, seed=100 + i) for i in range(4)]
    reconstruct(model, result.model, result.plan, images)
    kept = next(torch.tensor(c.keep) for c in result.plan.cuts if ("a.1.weight", 0) in c.at)
    with torch.no_grad():
        x = model.a(torch.cat(images))
        y = model.c(x)
        for group in range(groups):
            inside = kept[kept // (8 // groups) == group]
            windows = F.unfold(x[:, inside], 3, padding=1, stride=stride).transpose(1, 2).flatten(0, 1)
            known = torch.cat([windows, windows.new_ones(len(windows), 1)], 1)
            rows = slice(group * (6 // groups), (group + 1) * (6 // groups))
            target = y[:, rows].flatten(2).transpose(1, 2).flatten(0, 1)
            expected = torch.linalg.lstsq(known, target).solution
            got = torch.cat([result.model.c.weight[rows].flatten(1), result.model.c.bias[rows, None]], 1).T
            best = (known @ expected - target).square().mean()
            assert best < (known @ got - target).square().mean() * (1 + 1e-12) < best * 1.0001
            torch.testing.assert_close(got, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


# -- what is left alone ------------------------------------------------------------------------------------------------


class ScaledConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_pass_of_its_own_is_left_and_named() -> None:
    torch.manual_seed(0)
    net = Net(lambda n, x: n.c(n.a(x)) + n.d(n.a(x)), a=Producer(), c=ScaledConv(8, 5, 3), d=nn.Conv2d(8, 5, 3))
    model, result = cut(net)
    before = result.model.c.weight.clone()
    found = {layer.site: layer for layer in reconstruct_layers(model, result.model, result.plan, batches())}
    assert found["c"].reason == "it has a forward pass of its own"
    assert found["c"].channels == 4
    assert found["c"].lost_after is None
    assert torch.equal(result.model.c.weight, before)
    assert not found["d"].reason


def test_a_layer_whose_weight_is_used_outside_of_it_is_left_and_named() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda n, x: F.conv2d(n.a(x), n.c.weight) + n.d(n.a(x)),
        a=Producer(),
        c=nn.Conv2d(8, 5, 3),
        d=nn.Conv2d(8, 5, 3),
    )
    model, result = cut(net)
    before = result.model.c.weight.clone()
    found = {layer.site: layer for layer in reconstruct_layers(model, result.model, result.plan, batches())}
    assert found["c"].reason == "it did not run as a module"
    assert torch.equal(result.model.c.weight, before)
    assert not found["d"].reason


def test_multihead_attention_is_left_and_named() -> None:
    """It reads the weight of its last layer without running the layer."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        tokens = n.stem(x).flatten(2).transpose(1, 2)
        return n.fc(n.mha(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    net = Net(forward, stem=conv_bn(3, 32), mha=nn.MultiheadAttention(32, 2, batch_first=True), fc=nn.Linear(32, 5))
    model = randomized(net).double().eval()
    result = bnprune.prune(model, noise(2, *SHAPE), ratio=0.5)
    before = result.model.mha.out_proj.weight.clone()
    assert before.shape == (16, 16)
    found = {layer.site: layer for layer in reconstruct_layers(model, result.model, result.plan, batches())}
    assert found["mha.out_proj"] == Reconstruction("mha.out_proj", 16, reason="it did not run as a module")
    assert torch.equal(result.model.mha.out_proj.weight, before)
    assert "fc" in found


def test_single_samples_go_to_the_smaller_half() -> None:
    """Otherwise one half would have none, and no ridge could be chosen."""
    x, one = noise(1, 21, 4), torch.eye(4, dtype=torch.float64)[None]
    sums = Moments.zero(x, x[..., :2])
    for i in range(21):
        sums.add(x[:, i : i + 1], x[:, i : i + 1, :2], one)
    assert sums.count.tolist() == [11, 10]
    torch.testing.assert_close(sums.x.sum(0), x.sum(1))


def test_no_batches() -> None:
    model, result = cut(CASES["convolution"]())
    with pytest.raises(ValueError, match="got no batches"):
        reconstruct(model, result.model, result.plan, [])


def test_the_dense_network_and_its_modes_stay_as_they_were() -> None:
    model, result = cut(normed(bias=False))
    model.train()
    model.d.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    assert reconstruct(model, result.model, result.plan, batches()) is result.model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_same_batches_give_the_same_network() -> None:
    torch.manual_seed(0)
    model = randomized(nn.Sequential(conv_bn(3, 8), conv_bn(8, 12), head(12))).eval()
    result = bnprune.prune(model, torch.zeros(1, 3, 8, 8), ratio=0.5)
    images = [batch.float() for batch in batches()]
    first, second = (reconstruct(model, copy.deepcopy(result.model), result.plan, images) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert value.dtype == result.model.state_dict()[name].dtype


def test_large_weights_are_refitted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = (conv_bn(3, 8), nn.Flatten(), nn.Linear(8 * 64, 10))
    model = randomized(nn.Sequential(*layers)).double().eval()
    result = bnprune.prune(model, torch.zeros(1, 3, 8, 8).double(), ratio=0.5)
    whole = reconstruct(model, copy.deepcopy(result.model), result.plan, batches())
    monkeypatch.setattr("bnprune.recovery.consumers._MOST_WEIGHTS", 3 * 8 * 64)  # 3 of the 10 outputs at a time
    parts = reconstruct(model, copy.deepcopy(result.model), result.plan, batches())
    assert not torch.equal(whole[2].weight, result.model[2].weight)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-9)


def test_a_network_that_comes_no_nearer_stays_as_it_was() -> None:
    """The removed channels are zero: the plain cut is right already."""
    torch.manual_seed(0)
    net = read_by(nn.Conv2d(8, 5, 3, padding=1))()
    with torch.no_grad():
        net.a.norm.weight[net.a.norm.weight < 0.5] = 0
    model, result = cut(net)
    before = copy.deepcopy(result.model.state_dict())
    found = reconstruct_layers(model, result.model, result.plan, batches())
    assert {layer.reason for layer in found} == {"the outputs of the network came no nearer to those of the dense one"}
    assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items())


def test_a_network_that_is_nearer_only_with_new_statistics_gets_them() -> None:
    """Refitted from 12 images, the layers of a deep network shift the inputs of its BatchNorms."""
    torch.manual_seed(3)
    model = nn.Sequential(conv_bn(3, 16), *(conv_bn(16, 16) for _ in range(8)), head(16)).eval()
    for norm in norms(model):
        nn.init.uniform_(norm.weight, 0.2, 1)
    images = [*torch.randn(12, *SHAPE).split(4)]
    bnprune.recalibrate(model, images)
    result = bnprune.prune(model, images[0], ratio=0.5, criterion="uniform")
    before = copy.deepcopy(result.model)
    found = reconstruct_layers(model, result.model, result.plan, images)
    assert {layer.reason for layer in found} == {""}
    after, plain = (output_distance(model, network, images) for network in (result.model, before))
    assert after < plain / 2
    new = copy.deepcopy(result.model.state_dict())
    bnprune.recalibrate(result.model, images)
    torch.testing.assert_close(result.model.state_dict(), new)


@pytest.mark.parametrize("best", RIDGES)
def test_the_ridge_with_the_smallest_error_is_found(best: float) -> None:
    """Errors have one minimum; beyond a certain ridge, a matrix can be singular."""
    tried = []

    def error(ridge: float) -> float:
        tried.append(ridge)
        return math.inf if ridge < best / 1e3 else abs(math.log(ridge / best))

    errors = _searched(error)
    assert min(errors, key=errors.__getitem__) == best
    assert len(tried) == len(set(tried)) == len(errors) <= 5


def test_independent_channels_are_lost_in_part() -> None:
    """With noise of 64 positions, nothing is told exactly; the report says how much is lost, and the error shrinks."""
    torch.manual_seed(0)
    model = randomized(nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 5, 1))).double().eval()
    result = bnprune.prune(model, noise(2, *SHAPE), ratio=0.5)
    fresh = noise(500, *SHAPE, seed=9)
    expected = outputs(model, fresh)
    variance = (expected - expected.mean((0, 2, 3), keepdim=True)).square().mean()
    plain = float((outputs(result.model, fresh) - expected).square().mean() / variance)
    (found,) = reconstruct_layers(model, result.model, result.plan, batches(size=100))
    after = float((outputs(result.model, fresh) - expected).square().mean() / variance)
    assert found.lost_before == pytest.approx(plain, rel=0.05)
    assert found.lost_after == pytest.approx(after, rel=0.05)
    assert 0.01 < after < plain
