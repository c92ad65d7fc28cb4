"""An inspection says when a layer runs, what it costs, which BatchNorm follows it, and what is cut with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.pruning.inspection import Inspection, LayerInspection
from tests.cli.harness import CHAIN, done
from tests.nets import chain

IMAGES = torch.zeros(1, 3, 8, 8)


class Backwards(nn.Module):
    """A residual network whose modules are registered in another order than they run.

    One BatchNorm is functional: its name is that of the module that runs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.second_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(6, 8, 1)
        self.inner_norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first_norm(self.first(x)).relu()
        norm = self.inner_norm
        inner = F.batch_norm(self.inner(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)
        x = (x + self.second_norm(self.second(inner.relu()))).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def found() -> Inspection:
    return bnprune.inspect(Backwards(), IMAGES)


def by_name(found: Inspection) -> dict[str, LayerInspection]:
    return {layer.name: layer for layer in found.layers}


def test_layers_have_their_position_in_the_forward_pass(found: Inspection) -> None:
    order = sorted(found.layers, key=lambda layer: layer.position or 0)
    names = ["first", "first_norm", "inner", "", "second", "second_norm", "head"]
    assert [(layer.name, layer.position) for layer in order] == [(name, place) for place, name in enumerate(names)]


def test_a_layer_names_the_batchnorm_of_its_output(found: Inspection) -> None:
    norms = {name: layer.norm for name, layer in by_name(found).items() if layer.kind != "norm"}
    assert norms == {"first": "first_norm", "inner": "", "second": "second_norm", "head": None}


def test_a_batchnorm_of_a_sum_belongs_to_no_layer() -> None:
    class Preactivated(Backwards):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.second(self.inner(x))
            return self.head(self.second_norm(x).mean((2, 3)))

    layers = by_name(bnprune.inspect(Preactivated(), IMAGES))
    assert {layer.norm for layer in layers.values()} == {None}


def test_a_batchnorm_of_several_layers_belongs_to_none() -> None:
    class Shared(Backwards):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first_norm(self.first(x)).relu()
            return self.head(self.first_norm(self.second(self.inner(x))).mean((2, 3)))

    layers = by_name(bnprune.inspect(Shared(), IMAGES))
    assert {layer.norm for layer in layers.values()} == {None}


def test_a_name_that_two_batchnorms_have_names_neither() -> None:
    class Functional(Backwards):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer, norm in ((self.first, self.first_norm), (self.inner, self.inner_norm)):
                x = F.batch_norm(layer(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)
            return self.head(self.second_norm(self.second(x)).mean((2, 3)))

    found = bnprune.inspect(Functional(), IMAGES)
    assert [layer.position for layer in found.layers if layer.name == ""] == [1, 3]
    assert by_name(found)["first"].norm is None
    assert by_name(found)["second"].norm == "second_norm"


def test_the_macs_of_the_layers_are_those_of_the_network(found: Inspection) -> None:
    layers = by_name(found)
    assert layers["inner"].macs == 64 * 8 * 6 * 9
    assert layers[""].macs == 0
    assert sum(layer.macs for layer in found.layers) == found.macs


def test_layers_of_a_residual_stream_are_one_group(found: Inspection) -> None:
    groups = {name: layer.groups for name, layer in by_name(found).items()}
    assert groups["first"] == groups["second"] == groups["first_norm"] == groups["second_norm"] == (1,)
    assert groups["inner"] == groups[""] == (2,)
    assert groups["head"] == ()


def test_the_quantiles_of_the_scale_factors() -> None:
    model = Backwards()
    model.first_norm.weight.data = torch.tensor([0.0, -0.0, 0.0, 0.1, 0.1, -0.2, 0.3, -0.4])
    layer = by_name(bnprune.inspect(model, IMAGES))["first_norm"]
    assert layer.gamma_quantiles is not None
    assert len(layer.gamma_quantiles) == 11
    assert layer.gamma_quantiles[0] == 0
    assert layer.gamma_quantiles[5] == pytest.approx(0.1)
    assert layer.gamma_quantiles[-1] == pytest.approx(0.4)


def test_the_command_line_has_one_row_per_layer() -> None:
    lines = done("inspect", *CHAIN).stdout.splitlines()
    head, *rows = lines[: lines.index("")]
    assert head.split() == ["layer", "kind", "width", "prunable", "|γ|", "MACs", "cut", "group"]
    assert [row.split()[0] for row in rows] == ["0.0", "1.0", "3.0", "4.2"]
    assert rows[0].split() == ["0.0", "conv", "+", "BN", "8", "8", "█" * 10, "14.3%", "1"]
    assert rows[-1].split() == ["4.2", "linear", "5", "0", "0.1%"]
    explained = "\n".join(lines[lines.index("") :])
    assert "In a layer with 0, no BatchNorm ranks them, or they have to stay" in explained
    assert "lose the same channels" in explained
    assert len(rows) == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in chain().modules())
