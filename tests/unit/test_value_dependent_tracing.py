"""Tracing of networks whose control flow depends on values: surrogate operators, exact values, explored branches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import bnprune
from bnprune.channels.modules import uses_nms
from bnprune.channels.surrogate_ops import SurrogateOps
from bnprune.channels.trace_network import trace
from tests.nets import Net, conv_bn, head, noise, randomized

aten = torch.ops.aten
X = noise(4, 3, 8, 8).float()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 4, 2), ((1, 3), (2, 1), (0, 1), 1)],
)
def test_a_surrogate_convolution_is_one_with_a_single_weight_per_filter(groups, kernel, stride, padding, dilation):
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
    x = noise(2, 4, 9, 7).float()
    args = (x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, False, [0, 0], groups)
    with torch.no_grad():
        got = SurrogateOps(conv.parameters()).run(aten.convolution.default, args)
        tap = [-(-pad // spread) for pad, spread in zip(conv.padding, conv.dilation, strict=True)]
        single = torch.zeros_like(conv.weight)
        single[:, 0, tap[0], tap[1]] = conv.weight[:, 0, tap[0], tap[1]] * math.sqrt(conv.weight[0].numel())
        torch.testing.assert_close(got, F.conv2d(x, single, conv.bias, stride, padding, dilation, groups))


def test_a_surrogate_product_is_one_with_a_single_weight_per_output() -> None:
    linear = nn.Linear(9, 4)
    x = noise(2, 9).float()
    with torch.no_grad():
        got = SurrogateOps(linear.parameters()).run(aten.addmm.default, (linear.bias, x, linear.weight.t()))
        torch.testing.assert_close(got, linear.bias + 3 * x[:, :1] * linear.weight[:, 0])


def test_without_a_fitting_weight_there_is_no_surrogate() -> None:
    linear, conv = nn.Linear(9, 9), nn.Conv2d(4, 8, 3)
    surrogate = SurrogateOps([*linear.parameters(), *conv.parameters()])
    x, rest = torch.zeros(2, 3, 5, 5), (None, [1, 1], [0, 0], [1, 1])
    assert surrogate.run(aten.mm.default, (torch.zeros(9, 9), torch.zeros(9, 9))) is None, "a product of activations"
    assert surrogate.run(aten.mm.default, (torch.zeros(2, 8), linear.weight)) is None, "the operator's own error"
    assert surrogate.run(aten.convolution.default, (x, conv.weight, *rest, False, [0, 0], 1)) is None
    assert surrogate.run(aten.convolution.default, (x, conv.weight, *rest, True, [0, 0], 1)) is None
    small = torch.zeros(2, 4, 2, 2)
    assert surrogate.run(aten.convolution.default, (small, conv.weight, *rest, False, [0, 0], 1)) is None, "too small"


def test_an_input_that_is_too_small_is_reported() -> None:
    net = nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 5), nn.BatchNorm2d(8), nn.ReLU())
    with pytest.raises(bnprune.ForwardError, match="Kernel size can't be greater"):
        bnprune.prune(net, torch.zeros(1, 3, 8, 8), ratio=0.5)


def test_an_empty_batch_has_a_surrogate() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)
    args = (torch.zeros(0, 4, 5, 5), conv.weight, conv.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert SurrogateOps(conv.parameters()).run(aten.convolution.default, args).shape == (0, 8, 5, 5)


def test_a_loop_that_does_not_end_on_surrogate_values_runs_on_exact_ones() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = x.mean(1, keepdim=True).expand(-1, 8, -1, -1) + 2
        while y.max() > 1:
            y = n.shrink(y)
        return n.head(n.a(x)) + y.mean()

    net = randomized(Net(forward, a=conv_bn(3, 8), shrink=nn.Conv2d(8, 8, 1, bias=False), head=head(8)))
    with torch.no_grad():
        net.shrink.weight.copy_(torch.tensor([1, -0.9, 0, 0, 0, 0, 0, 0]).view(1, 8, 1, 1))
    assert bnprune.prune(net, X, ratio=0.5).report.ratio_realised == 0.5


def chosen_rows() -> nn.Module:
    """The head runs on as many rows as the values say."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.b(n.a(x))
        scores = x.mean((1, 2, 3))
        return n.head(n.c(x[scores > scores.median()]))

    return randomized(Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), c=conv_bn(8, 8), head=head(8)))


def counted(net: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("asked", [{"macs": 0.5}, {"ratio": 0.5, "criterion": "gamma-per-mac"}])
def test_macs_that_choices_are_made_by_are_those_of_the_inputs(asked: dict) -> None:
    net = chosen_rows()
    report = bnprune.prune(net, X, **asked).report
    assert report.macs_before == counted(net, X)
    assert not any("MACs" in note for note in report.notes)


def test_a_penalty_by_macs_weighs_with_those_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    import bnprune.training.penalties.structured as module

    asked = []
    follow = module.trace
    monkeypatch.setattr(module, "trace", lambda *args, **kwargs: asked.append(kwargs) or follow(*args, **kwargs))
    module.GammaMacWeighted(chosen_rows(), 1e-3, X)
    assert asked[0]["exact"]


def test_macs_of_a_report_are_counted_on_the_inputs_and_those_of_a_plan_called_artificial() -> None:
    net = chosen_rows()
    result = bnprune.prune(net, X, ratio=0.5)
    assert (result.report.macs_before, result.report.macs_after) == (counted(net, X), counted(result.model, X))
    assert any("those of the example inputs" in note for note in result.report.notes)
    unproven = bnprune.prune(net, X, ratio=0.5, proof=False)  # nothing has run on values
    assert any("surrogate values" in note for note in unproven.report.notes)
    assert any("surrogate values" in note for note in trace(net, X).notes)


def branching(ask) -> nn.Module:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.a(x)
        return n.head(n.b(x) if ask(x) else n.c(x))

    return randomized(Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), c=conv_bn(8, 8), head=head(8)))


def test_an_explored_branch_uses_what_is_known() -> None:
    graph = trace(branching(lambda x: x.sum() > 0).eval(), X)
    assert {*graph.traces} - {"train"} == {"eval", "forced branch, +inf"}, "a truth value has one opposite"
    straight, turned = graph.traces["eval"].records, graph.traces["forced branch, +inf"].records
    parting = next(i for i, record in enumerate(straight) if record.op == "aten::_local_scalar_dense")
    assert all(left is right for left, right in zip(straight[: parting + 1], turned, strict=False))
    assert {record.site for record in turned[parting + 1 :]} > {"b.0", "b.1"} or "c.0" in {r.site for r in turned}
    units = [graph.units(graph.axes[f"{name}.0.weight", 1]) for name in "bc"]
    assert (units[0] == graph.units(graph.axes["a.1.weight", 0])).all()
    assert (units[0] == units[1]).all()


def test_both_answers_to_a_number_are_tried_unless_both_fail() -> None:
    assert set(trace(branching(lambda x: x.sum().item() > 0).eval(), X).traces) >= {"eval", "forced branch, +inf"}
    graph = trace(branching(lambda x: int(x.sum().item()) >= 0).eval(), X)
    assert {*graph.traces} - {"train"} == {"eval"}
    assert any("did not reach: c" in note or "did not reach: b" in note for note in graph.notes)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torchvision.ops import nms

        y = self.head(self.b(self.a(x))).permute(0, 2, 3, 1).flatten(0, 2)
        corners = y[:, :2]
        return y[nms(torch.cat([corners, corners + y[:, 2:4].exp()], 1), y[:, 4], 0.5)]


def test_nothing_is_tried_without_values_where_boxes_are_suppressed(monkeypatch) -> None:
    import bnprune.channels.trace_network as module

    tried = []
    follow = module._trace
    monkeypatch.setattr(module, "_trace", lambda *args: tried.append(args[3]) or follow(*args))
    net = randomized(Detector())
    assert uses_nms(net)
    assert not uses_nms(chosen_rows())
    assert bnprune.prune(net, X, ratio=0.5).report.ratio_realised == 0.5
    assert tried == ["surrogate"]
