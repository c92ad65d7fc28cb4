"""γ̂: layers without a BatchNorm are ranked by the standard deviation of what they write."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import bnprune
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.trace_network import trace
from bnprune.config.tables import CRITERIA
from bnprune.pruning import scores
from bnprune.pruning.output_deviation import with_deviations
from bnprune.pruning.output_measurement import measure_output_deviation
from bnprune.pruning.surgery import named_tensors
from tests.nets import Net, chain, concat, conv_bn, depthwise, head, norms, residual, squeeze_excitation
from tests.streams import STREAMS, conv, preactivated, scaled_branches, shortcuts

X = torch.zeros(1, 3, 16, 16)
GAMMA, SHIFT = 0.4, 0.3


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw γ and β, and take the running statistics from noise."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        nn.init.uniform_(norm.weight, 0.2, 1, generator=generator)
        nn.init.normal_(norm.bias, 0, 0.2, generator=generator)
        norm.momentum = None
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(torch.randn(32, 3, 16, 16, generator=generator))
    return model.eval()


def deviations(model: nn.Module, measured: dict[str, torch.Tensor] | None = None) -> dict[str, np.ndarray]:
    graph = with_deviations(trace(model, X), dict(named_tensors(model)), measured)
    return {written.layer: written.values for written in graph.deviations}


@pytest.mark.parametrize("name", STREAMS)
def test_the_estimate_agrees_with_noise(name: str) -> None:
    """Reference: the layers' outputs on white noise, measured with hooks. The scale of a branch is taken out."""
    torch.manual_seed(0)
    model = settled(STREAMS[name]())
    estimated = deviations(model)
    measured = measure_output_deviation(model, [torch.randn(32, 3, 16, 16)], estimated)
    assert len(estimated) > 0
    for layer, values in estimated.items():
        scale = {"blocks.0.last": 0.17, "blocks.1.last": 0.1, "blocks.2.last": 0.2}.get(layer, 1)
        scale = scale if name == "scaled branches" else 1
        assert values.mean() == pytest.approx(scale * measured[layer].mean().item(), rel=0.15)


@pytest.mark.parametrize("build", [chain, residual, concat, depthwise, squeeze_excitation])
def test_layers_before_a_batchnorm_or_in_a_gate_do_not_count(build: Callable[[], nn.Module]) -> None:
    assert deviations(build()) == {}


def test_the_norms_that_read_a_stream_decide_alone() -> None:
    """All readers are BatchNorms (PreResNet): a channel with γ = 0 in all of them is dead, however large it is."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        x = x + net.first(x)
        return net.head(F.relu(net.last(x + net.second(x))))

    layers = {"first": preactivated(8, 8), "second": preactivated(8, 8), "last": nn.BatchNorm2d(8)}
    model = Net(forward, stem=conv(3, 8), **layers, head=head(8))
    assert deviations(model) == {}


def test_a_depthwise_convolution_before_a_batchnorm_only_passes_on() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        return net.head(net.norm(net.depthwise(net.plain(x))))

    layers = {"plain": conv(3, 8), "depthwise": conv(8, 8, groups=8), "norm": nn.BatchNorm2d(8)}
    assert deviations(Net(forward, **layers, head=head(8))) == {}


def test_a_batchnorm_that_is_written_out_ranks_its_layer() -> None:
    model = nn.Sequential(conv(3, 8), FrozenBatchNorm2d(8), nn.ReLU(), conv_bn(8, 8), head(8))
    assert deviations(model) == {}


def test_the_deviation_of_a_rectified_input_is_that_of_the_closed_form() -> None:
    """Reference: for x normal, Var[ReLU(x)] from a numerical integral; the output's is Σ w² Var."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        return net.head(net.body(x) + net.plain(x))

    model = Net(forward, stem=conv_bn(3, 8), body=conv_bn(8, 6), plain=conv(8, 6), head=head(6))
    nn.init.constant_(model.stem[1].weight, GAMMA)
    nn.init.constant_(model.stem[1].bias, SHIFT)
    z = torch.linspace(-10, 10, 200001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    x = F.relu(SHIFT + GAMMA * z)
    mean, square = (torch.trapezoid(value * density, z) for value in (x, x.square()))
    expected = (model.plain.weight.double().square().sum((1, 2, 3)) * (square - mean**2)).sqrt()
    assert deviations(model)["plain"] == pytest.approx(expected.detach().numpy(), rel=1e-6)


def sparse_stream() -> nn.Module:
    """Half of the stream's γ and β are zero, and so are those of a quarter of the inner channels."""
    torch.manual_seed(0)
    model = settled(shortcuts())
    with torch.no_grad():
        for unit in model.down:
            for inner, dead in ((0, 4), (1, 8)):
                unit["body"][inner][1].weight[:dead] = unit["body"][inner][1].bias[:dead] = 0
    return model


def test_channels_of_a_live_plain_layer_stay() -> None:
    """8 of 96 channels are dead for real: with γ alone, the 16 that the shortcuts write would go with them."""
    model, x = sparse_stream(), torch.randn(4, 3, 16, 16)
    result = bnprune.prune(model, X, ratio=8 / 96)
    assert torch.allclose(result.model(x), model(x), atol=1e-5)
    widths = {layer.name: (layer.before, layer.after) for layer in result.report.layers}
    assert widths["down.0.shortcut"] == (16, 16)
    assert widths["down.0.body.0.0"] == (16, 12)


def test_a_note_says_where_the_deviation_decided() -> None:
    report = bnprune.prune(sparse_stream(), X, ratio=0.25).report
    note = next(note for note in report.notes if note.code == "deviation.decided")
    assert note.level == "note"
    assert "down.0.shortcut" in note
    assert [(written.layer, written.units) for written in report.written] == [
        ("down.0.shortcut", 16),
        ("down.1.shortcut", 24),
    ]
    assert report.written[0].kept >= 8  # those with γ = 0
    assert report.written[0].median > 0.3


def test_nothing_is_noted_if_there_is_no_such_layer() -> None:
    report = bnprune.prune(settled(chain()), X, ratio=0.25).report
    assert report.written == ()
    assert "deviation.decided" not in {note.code for note in report.notes}


def test_inspect_shows_the_deviation() -> None:
    found = {layer.name: layer.deviation_median for layer in bnprune.inspect(sparse_stream(), X).layers}
    assert found["down.0.shortcut"] > 0
    assert found["down.0.body.0.0"] is None


def test_measured_deviations_replace_the_estimate_and_are_scaled_alike() -> None:
    model = settled(scaled_branches())
    measured = {"blocks.0.last": torch.full((24,), 3.0)}
    with_data, without = deviations(model, measured), deviations(model)
    assert with_data["blocks.0.last"] == pytest.approx(np.full(24, 0.17 * 3))
    assert with_data["blocks.1.last"] == pytest.approx(without["blocks.1.last"])


def test_deviations_are_those_of_all_batches_together() -> None:
    model, batches = settled(shortcuts()), [torch.randn(2, 3, 16, 16), torch.randn(5, 3, 16, 16) + 1]
    found = measure_output_deviation(model, batches, ["down.0.shortcut", "out", "up"])
    expected = model.down[0]["shortcut"](torch.cat(batches)).double().transpose(0, 1).flatten(1).std(1, correction=0)
    assert found.keys() == {"down.0.shortcut", "out"}
    assert torch.allclose(found["down.0.shortcut"], expected, rtol=1e-5)


@pytest.mark.parametrize("coupling", ["shared", "gates"])
@pytest.mark.parametrize("name", STREAMS)
def test_the_cut_is_proven(name: str, coupling: str) -> None:
    result = bnprune.prune(settled(STREAMS[name]()), X, ratio=0.3, coupling=coupling)
    assert result.report.max_relative_error < 1e-9


def test_variances_of_layers_add_up_and_a_large_stream_is_scaled_down() -> None:
    """|γ| = 1 and γ̂ = 0.3 and 0.4 give sqrt(1 + 0.25); a γ̂ of 30 and 40 counts like the usual γ, of 1."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        return net.head(net.body(x) + net.left(x) + net.right(x))

    model = Net(forward, body=conv_bn(3, 8), left=conv(3, 8), right=conv(3, 8), head=head(8))
    for size, expected in ((1, 1.25), (100, 2)):
        measured = {"left": torch.full((8,), 0.3 * size), "right": torch.full((8,), 0.4 * size)}
        tensors = dict(named_tensors(model))
        graph = with_deviations(trace(model, X), tensors, measured)
        assert scores.gamma(graph, tensors)[graph.gamma_units["body.1.weight"]] == pytest.approx(expected**0.5)


def gamma_alone(graph: ChannelGraph, tensors: scores.Tensors, reduce: scores.Reduce = "max") -> scores.Scores:
    return scores.gamma(replace(graph, deviations=()), tensors, reduce)


def damage(model: nn.Module, criterion: str) -> float:
    """Return the relative change of the output on noise."""
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    slim = bnprune.prune(model, X, ratio=0.3, criterion=criterion, proof=False).model
    with torch.no_grad():
        return float((slim(x) - model(x)).norm() / model(x).norm())


@pytest.mark.parametrize("name", ["pre-activation", "convolution shortcuts", "added skips", "inverted bottlenecks"])
def test_the_cut_changes_the_output_less_than_by_gamma_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Median over seeds. Filters differ in norm, as in trained networks; `scripts/bench_gamma_hat.py` has the table."""
    monkeypatch.setitem(CRITERIA, "gamma-alone", gamma_alone)
    pairs = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = STREAMS[name](2)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data *= 2.5 * torch.randn(len(layer.weight), 1, 1, 1).mul(0.5).exp()
        settled(model, seed)
        pairs.append([damage(model, criterion) for criterion in ("gamma-alone", "gamma")])
    assert statistics.median(after for _, after in pairs) < statistics.median(before for before, _ in pairs)
