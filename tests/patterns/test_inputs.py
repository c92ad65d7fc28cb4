"""What goes in and comes out: several inputs, keywords, containers; branches on data; buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, conv_bn, head, noise
from tests.patterns.builder import X, checked, framed, refusal, run, tail, width


def two() -> Net:
    layers = {"other": conv_bn(1, 16), "tail": tail(16)}
    return framed(lambda n, image, depth, scale=1.0: n.tail(n.stem(image) + n.other(depth) * scale), **layers)


DEPTH = noise(2, 1, 8, 8)


@pytest.mark.parametrize("inputs", [(X, DEPTH), (X, DEPTH, 0.5), {"depth": DEPTH, "image": X, "scale": 2.0}])
def test_several_inputs(inputs) -> None:
    result = checked(two(), inputs)
    assert width(result.model.other) == width(result.model.stem) < 16


def test_a_mapping_passed_whole() -> None:
    net = framed(lambda n, batch: n.tail(n.stem(batch["image"]) * batch["depth"]), tail=tail(16))
    checked(net, ({"image": X, "depth": DEPTH},))


def test_a_list_of_images() -> None:
    net = framed(lambda n, images: n.tail(n.stem(torch.stack(images))), tail=tail(16))
    checked(net, [X[0], X[1]])


def test_tokens_beside_an_image() -> None:
    net = framed(
        lambda n, x, t: n.tail(n.stem(x) * n.words(t).mean(1)[:, :, None, None]),
        words=nn.Embedding(7, 16),
        tail=tail(16),
    )
    assert checked(net, (X, torch.tensor([[1, 2], [3, 4]]))).model.words.weight.shape[1] < 16


@dataclass
class Output:
    logits: torch.Tensor
    features: tuple[torch.Tensor, ...]


class Pair(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


SHAPES = {
    "dict": lambda a, b: {"logits": a, "nested": {"features": [b]}},
    "tuple": lambda a, b: (a, (b,)),
    "named": Pair,
    "dataclass": lambda a, b: Output(a, (b,)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_in_containers(shape: str) -> None:
    """The features are an output: the layer that writes them keeps its width."""
    layers = {"b": conv_bn(16, 16), "tail": tail(16)}
    result = checked(framed(lambda n, x: SHAPES[shape](n.tail(n.b(y := n.stem(x))), n.b(y)), **layers), free=32)
    assert width(result.model.b) == 16
    assert any("is an output of the network" in why.reason for why in result.report.refusals)


BRANCHES = {
    "truth": lambda n, x, y: n.a(y) if x.sum() > 0 else n.b(y),
    "number above": lambda n, x, y: n.a(y) if x.max().item() < 100 else n.b(y),
    "number below": lambda n, x, y: n.a(y) if x.max().item() > -100 else n.b(y),
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_branches_on_the_data(branch: str) -> None:
    """The example takes one branch; the other one is followed, too, and still fits what comes before it."""
    layers = {"a": conv_bn(16, 16), "b": conv_bn(16, 16), "tail": tail(16)}
    model = checked(framed(lambda n, x: n.tail(BRANCHES[branch](n, x, n.stem(x))), **layers), X.abs()).model
    assert width(model.a) == width(model.b) < 16
    for other in (-X.abs(), 1000 * X.abs(), -1000 * X.abs()):
        assert run(model, other)[0].shape == (2, 5)


def test_layers_no_branch_comes_to_are_noted() -> None:
    net = framed(lambda n, x: n.tail(n.stem(x)) if x.sum().item() != 1e9 else n.b(x), b=conv_bn(3, 16), tail=tail(16))
    result = bnprune.prune(net.double(), X, ratio=0.5)
    assert any("did not reach: b.0, b.1" in note for note in result.report.notes)


def test_branch_on_a_number_read_from_the_data() -> None:
    def forward(n, x):
        y = n.stem(x)
        if x.abs().max().item() > 100:
            y = -y
        return n.tail(y * 2)

    checked(framed(forward, tail=tail(16)))


def test_loop_over_a_number_of_steps_given_as_data() -> None:
    net = framed(
        lambda n, x, steps: n.tail([y := n.stem(x), *[y := n.b(y) for _ in range(int(steps))]][-1]),
        b=conv_bn(16, 16),
        tail=tail(16),
    )
    checked(net, (X, torch.tensor(2)))


class Buffered(nn.Module):
    """A buffer with a value per channel, as in input normalisation or a mask found earlier."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, 16, 1, 1) + 0.5, persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_of_channel_size(persistent: bool) -> None:
    result = checked(framed(lambda n, x: n.tail(n.scale(n.stem(x))), scale=Buffered(persistent), tail=tail(16)))
    assert result.model.scale.scale.shape == (1, width(result.model.stem), 1, 1)


def test_a_buffer_with_the_statistics_of_an_input() -> None:
    class Whitened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - self.mean

    net = Net(lambda n, x: n.tail(n.stem(n.w(x))), w=Whitened(), stem=conv_bn(3, 16), tail=tail(16))
    assert checked(net).model.w.mean.shape == (1, 3, 1, 1)


def test_a_tensor_kept_as_a_plain_attribute_is_never_cut_wrong() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.rand(1, 16, 1, 1, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    result = checked(framed(lambda n, x: n.tail(n.scale(n.stem(x))), scale=Plain(), tail=tail(16)), free=16)
    assert width(result.model.stem) == 16
    assert any("register" in why.fix for why in result.report.refusals)


def test_unused_layers_stay_as_they_are() -> None:
    result = checked(
        framed(lambda n, x: n.tail(n.stem(x)), spare=nn.Conv2d(16, 16, 1).requires_grad_(False), tail=tail(16))
    )
    assert result.model.spare.weight.shape == (16, 16, 1, 1)


def test_channels_counted_in_the_forward_pass() -> None:
    """The divisor is the width of a layer that does not enter the division itself."""

    def forward(n, x):
        y = n.stem(x)
        return n.tail(y / n.b(y).shape[1] ** 0.5) + n.head(n.b(y))

    result = checked(framed(forward, b=conv_bn(16, 16), tail=tail(16), head=head(16)), free=16)
    assert width(result.model.b) == 16
    refusal(result, "depends on the number of channels")


def test_detection_like_post_processing() -> None:
    """Top-k of the scores picks boxes; the picking happens behind the last prunable layer."""

    def forward(n, x):
        y = n.b(n.stem(x))
        scores, boxes = n.score(y).flatten(1), n.box(y).flatten(2)
        best = scores.topk(3, 1)
        return best.values, boxes.gather(2, best.indices[:, None].expand(-1, 4, -1))

    layers = {"b": conv_bn(16, 16), "score": nn.Conv2d(16, 1, 1), "box": nn.Conv2d(16, 4, 1)}
    checked(framed(forward, **layers))


def test_functional_dropout_and_interpolation_sizes() -> None:
    def forward(n, x):
        y = F.dropout(n.stem(x), 0.1, n.training)
        return F.interpolate(n.out(n.b(y)), size=x.shape[2:], mode="bilinear", align_corners=False)

    checked(framed(forward, b=conv_bn(16, 16, stride=2), out=nn.Conv2d(16, 2, 1)))


def test_head_is_untouched() -> None:
    result = checked(nn.Sequential(conv_bn(3, 16), head(16)))
    assert result.model[1][2].out_features == 5


def test_a_missing_batch_dimension_is_named() -> None:
    model = nn.Sequential(conv_bn(3, 16), head(16))
    advice = r"The network runs on \(1, 3, 8, 8\): add a batch dimension, example_inputs\[None\]"
    for function in (bnprune.prune, bnprune.plan):
        with pytest.raises(bnprune.ForwardError, match=rf"Check the shape of the input.* {advice}"):
            function(model, X[0], ratio=0.5)
    with pytest.raises(bnprune.ForwardError) as wrong:
        bnprune.prune(model, X[0, :2], ratio=0.5)
    assert "batch dimension" not in str(wrong.value)
    with pytest.raises(bnprune.ForwardError, match=r"runs on \(1, 3, 8, 8\), \(1, 1, 8, 8\): add a batch dimension"):
        bnprune.prune(two(), (X[0], DEPTH[0]), ratio=0.5)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), [1, 3, 8, 8]])
def test_a_shape_in_the_place_of_a_tensor(shape: object) -> None:
    with pytest.raises(bnprune.ForwardError, match=r"are a shape, not a tensor: give torch.zeros\(1, 3, 8, 8\)"):
        bnprune.prune(conv_bn(3, 8), shape, ratio=0.5)
