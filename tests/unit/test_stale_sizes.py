"""Attributes that equal a width, and that the traced forward pass does not read: other code may read them later."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning.attribute_reads import recorded_reads
from bnprune.pruning.size_attributes import Attributes
from tests.nets import conv_bn, head, randomized

X = torch.zeros(1, 3, 6, 6)


class Block(nn.Module):
    """C2f of YOLOv8: one forward pass splits by shape, the other, which exporters put in, by an attribute."""

    def __init__(self, channels: int, c: int, out: int, stored: object = None) -> None:
        super().__init__()
        self.c = c if stored is None else stored
        self.first, self.inner, self.last = conv_bn(channels, 2 * c), conv_bn(c, c), conv_bn(3 * c, out, 1)

    def rest(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([a, b, self.inner(b)], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(*self.first(x).chunk(2, 1))

    def forward_split(self, x: torch.Tensor) -> torch.Tensor:
        c = int(self.c) if isinstance(self.c, float) else self.c
        return self.rest(*self.first(x).split([c, c] if isinstance(c, int) else list(c), 1))


def pruned(*layers: nn.Module, x: torch.Tensor = X) -> tuple[nn.Module, dict[str, str]]:
    """Return the slim network and its notes on sizes by code."""
    result = bnprune.prune(randomized(nn.Sequential(*layers)), x, ratio=0.5)
    again = bnprune.apply(bnprune.PruningPlan.from_json(result.plan.to_json()), randomized(nn.Sequential(*layers)))
    for module, other in zip(result.model.modules(), again.modules(), strict=True):
        assert vars(module).get("c") == vars(other).get("c")
    return result.model, {note.code: str(note) for note in result.report.notes if note.code.startswith("sizes.")}


@pytest.mark.parametrize("stored", [None, [8, 8], (8, 8)])
def test_a_size_that_another_forward_pass_reads_is_set(stored: object) -> None:
    slim, notes = pruned(Block(3, 8, 8, stored), head(8))
    expected = slim(X)
    slim[0].forward = slim[0].forward_split
    torch.testing.assert_close(slim(X), expected, rtol=0, atol=0)
    assert slim[0].first[0].out_channels < 16
    assert type(slim[0].c) is type(8 if stored is None else stored)
    assert "Block.c" in notes["sizes.updated"]


def test_equal_widths_in_all_modules_of_a_class_are_no_coincidence() -> None:
    """No note. The features are as large as the first block is wide (6), but not as the second."""
    slim, notes = pruned(Block(3, 6, 8), Block(8, 10, 8), head(8))
    widths = [block.first[0].out_channels // 2 for block in slim[:2]]
    assert [block.c for block in slim[:2]] == widths != [6, 10]
    assert notes == {}


def test_floats_are_listed() -> None:
    slim, notes = pruned(Block(3, 8, 8, 8.0), head(8))
    assert slim[0].c == 8.0
    assert "Block.c" in notes["sizes.undecided"]


class Masks(nn.Module):
    """LiGRU of speechbrain: in train mode, masks are drawn anew after every few calls."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.calls = 12, 12
        self.linear, self.norm, self.last = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.register_buffer("masks", torch.ones(16, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x))
        if self.training:
            self.calls += len(x)
            if self.calls > 16:
                self.calls, self.masks = 0, torch.ones(16, self.hidden_size)
            y = y * self.masks[: len(x)]
        return self.last(y)


def test_a_size_that_is_read_after_some_calls_is_set() -> None:
    slim, notes = pruned(Masks(), x=torch.zeros(2, 8))
    assert slim[0].hidden_size == slim[0].linear.out_features == 6
    assert slim[0].calls == 12
    assert "Masks.hidden_size" in notes["sizes.updated"]
    for _ in range(10):
        slim.train()(torch.randn(2, 8))


def layer(attribute: str, value: object, method, forward=lambda self, x: self.body(x)) -> nn.Module:
    """Return convolution and BatchNorm of 8 channels in a module with an attribute, and with a method that reads it."""
    module = type("Layer", (nn.Module,), {"forward": forward, "later": method})()
    module.body = conv_bn(3, 8)
    setattr(module, attribute, value)
    return module


def test_an_attribute_that_no_method_reads_is_left_alone() -> None:
    slim, notes = pruned(layer("base", 8, lambda self: None), head(8))
    assert slim[0].body[0].out_channels == 4
    assert slim[0].base == 8
    assert notes == {}


def test_an_attribute_that_only_construction_reads_is_left_alone() -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = 8
            self.body = self.make()

        def make(self) -> nn.Module:
            return conv_bn(3, self.base)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    slim, notes = pruned(Made(), head(8))
    assert slim[0].base == 8
    assert notes == {}


def test_a_counter_that_happens_to_equal_a_width_is_left_alone() -> None:
    def forward(self, x):
        if torch.is_grad_enabled():
            self.seen += 1
        return self.body(x)

    slim, notes = pruned(layer("seen", 8, lambda self: self.seen, forward), head(8))
    assert slim[0].seen == 8
    assert notes == {}


def test_a_size_that_a_method_sets_is_no_counter() -> None:
    """timm's `num_features`: methods that replace the classifier read it, methods that drop stages set it."""

    def later(self):
        self.width = self.width - 2

    slim, notes = pruned(layer("width", 8, later), head(8))
    assert slim[0].width == slim[0].body[0].out_channels == 4
    assert "Layer.width" in notes["sizes.updated"]


def test_an_attribute_that_may_be_an_image_size_is_listed() -> None:
    """No tensor in the module is as high and wide as the image."""
    module = layer("size", 8, lambda self: self.size)
    slim, notes = pruned(conv_bn(3, 3, stride=2), module, head(8), x=torch.zeros(1, 3, 8, 8))
    assert slim[1].size == 8
    assert slim[1].body[0].out_channels < 8
    assert "Layer.size" in notes["sizes.undecided"]


def test_an_attribute_for_two_widths_is_listed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.a, self.b = 8, conv_bn(3, 8), conv_bn(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

        def width(self) -> int:
            return self.c

    slim, notes = pruned(Two(), head(8))
    assert slim[0].a[0].out_channels != slim[0].b[0].out_channels
    assert slim[0].c == 8
    assert "Two.c" in notes["sizes.undecided"]


def test_an_attribute_that_the_forward_pass_reads_is_left_alone() -> None:
    """The limit of a clamp is a number that a pass without values cannot check."""
    module = layer("limit", 8, lambda self: None, lambda self, x: self.body(x).clamp(max=self.limit))
    slim, notes = pruned(module, head(8))
    assert slim[0].limit == 8
    assert notes == {}
    assert "limit" not in vars(type(module))


class Attention(nn.Module):
    """LeViT: each pair of positions has a bias, found by an index; some indices equal the number of heads (4)."""

    def __init__(self, indices: object) -> None:
        super().__init__()
        self.indices, self.heads, self.other = indices, 4, 4
        self.qkv, self.norm, self.out = nn.Linear(16, 96, bias=False), nn.BatchNorm1d(96), nn.Linear(32, 16)
        self.bias = nn.Parameter(torch.randn(4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.qkv(x).flatten(0, 1)).view(len(x), 9, self.heads, -1)
        q, k, v = y.split(8, 3)
        indices = self.indices.values() if isinstance(self.indices, dict) else self.indices
        bias = self.bias[:, torch.tensor([*indices], device=x.device).view(9, 9)]
        attention = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + bias).softmax(-1)
        return self.out((attention @ v.transpose(1, 2)).transpose(1, 2).flatten(2))


LISTED = [abs(i - j) for i in range(9) for j in range(9)]


@pytest.mark.parametrize("indices", [LISTED, (*LISTED,), dict(enumerate(LISTED)), [4] * 81, (8, 4, 9) * 27])
def test_a_list_of_positions_is_no_list_of_sizes(indices: object) -> None:
    """Both modules hold the same object. Nor is `other` a size: no code reads it."""
    tokens = nn.Sequential(conv_bn(3, 16), nn.Flatten(2))
    tokens.register_forward_hook(lambda module, args, y: y.transpose(1, 2))
    model = randomized(nn.Sequential(tokens, Attention(indices), Attention(indices)))
    with torch.no_grad():
        model[0][0][1].weight.mul_(100)
    before = copy.deepcopy(indices)
    slim = bnprune.prune(model, torch.zeros(1, 3, 3, 3), ratio=0.5).model
    assert [attention.indices for attention in slim[1:]] == [before, before]
    assert slim[1].indices is slim[2].indices
    assert [attention.heads for attention in slim[1:]] == [attention.qkv.out_features // 24 for attention in slim[1:]]
    assert slim[1].heads < 4
    assert slim[1].other == 4


def test_a_list_with_other_numbers_than_sizes_is_not_changed_in_a_dry_run() -> None:
    module = layer("positions", [0, 4, 8], lambda self: None)
    module.sizes, module.heads = [4, 8, 3], 4
    attributes = Attributes(nn.Sequential(module), known=set())
    found = attributes.holding("0", [np.arange(4)], [], dims={1, 3, 8})
    assert [count.attribute for count in found] == ["sizes[0]", "heads"]


def test_reads_are_recorded_for_this_thread_and_leave_no_trace() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = 1, 2, 3

    module = Counted()
    with recorded_reads({(Counted, "a"), (Counted, "b"), (Counted, "c")}) as reads:
        other = threading.Thread(target=lambda: module.b)
        other.start()
        other.join()
        module.c = 4
        assert (module.a, vars(module)["c"]) == (1, 4)
        del module.b
        assert not hasattr(module, "b")
        module.b = nn.Parameter(torch.zeros(1))
        assert isinstance(module.b, nn.Parameter)
    assert reads == {(Counted, "a")}
    assert not {"a", "b", "c"} & vars(Counted).keys()
    assert (module.a, module.c) == (1, 4)
