"""Networks that sort, select and branch are compared at the values they decide on, and decide the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bnprune
from bnprune.channels.pytrees import as_inputs
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.proof_runs import largest_error, masked_runs
from bnprune.pruning.pruner import carry_out
from bnprune.pruning.request import Request
from bnprune.pruning.surgery import apply
from bnprune.pruning.verify import verify
from tests.nets import Net, conv_bn, head, noise, randomized
from tests.numerics.test_verify import wrong


def detector(threshold: float) -> nn.Module:
    """Scores of 5 anchors, and the boxes of those above a threshold."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        features = n.a(x)
        scores, boxes = n.scores(features), n.boxes(features)
        picked = boxes[scores > threshold]
        return picked[picked.argsort(descending=True)]

    return randomized(Net(forward, a=conv_bn(3, 8), scores=head(8), boxes=head(8))).double()


def test_what_a_threshold_hides_is_compared_all_the_same() -> None:
    """A detector that finds nothing in noise has no output to compare."""
    model, inputs = detector(1e6), ((noise(2, 3, 8, 8),), {})
    before = next(masked_runs(model, inputs))
    assert before.outputs[0].numel() == 0
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.a[0].weight.mul_(1.001)
    assert largest_error(before, copy.deepcopy(model)) == 0
    assert largest_error(before, wrong) > 1e-6


def test_nearly_equal_scores_keep_their_order() -> None:
    """Rounding may swap them; what follows would differ wholly."""

    class Ranked(nn.Module):
        def __init__(self, error: float) -> None:
            super().__init__()
            self.register_buffer("scores", torch.tensor([1.0, 1.0 + error, 0.5], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            best = self.scores.topk(2).indices
            return x[0, best] if self.scores[1] > self.scores[0] else x[0, best] * 2

    inputs = ((noise(1, 3),), {})
    swapped = largest_error(next(masked_runs(Ranked(1e-15), inputs)), Ranked(-1e-15))
    assert 0 < swapped < 1e-14
    assert largest_error(next(masked_runs(Ranked(1e-3), inputs)), Ranked(-1e-3)) > 1e-4


def test_a_detector_is_pruned_and_proven() -> None:
    model, x = detector(0.0), noise(1, 3, 8, 8)
    result = bnprune.prune(model, x, ratio=0.5)
    assert result.report.ratio_realised == 0.5
    assert result.report.max_relative_error < 1e-12
    bad = wrong(result.plan, next(name for name, dim in result.plan.cuts[0].at if dim == 1))
    assert not verify(model, apply(bad, model), bad, as_inputs(x)).passed


def _listed(n: Net, x: torch.Tensor) -> torch.Tensor:
    """Branches on what `tolist` returned, which no operator sees."""
    y = n.a(x)
    return n.b(y if y.mean((0, 2, 3)).tolist()[0] > 1e3 else y * 2)


@pytest.mark.parametrize(
    ("model", "on_meta"),
    [(detector(0.0), True), (randomized(Net(_listed, a=conv_bn(3, 8), b=head(8))).double(), False)],
    ids=["decisions are repeated", "values are needed"],
)
def test_a_network_that_decides_has_a_dry_run_without_values_if_possible(model: nn.Module, on_meta: bool) -> None:
    """The trace has the decisions; memory and arithmetic of a second forward pass are saved."""
    x = noise(1, 3, 8, 8)
    draft = plan_cut(model, x, score_network(model, x, Request(ratio=0.5)))
    assert draft.scored.graph.real
    assert all(parameter.is_meta == on_meta for parameter in draft.meta_slim.parameters())
    result = carry_out(draft, model, x)
    assert result.report.max_relative_error < 1e-12
    assert result.report.macs_after < result.report.macs_before


def test_rows_written_by_an_index_keep_their_channels_apart() -> None:
    """As detectors gather what they cut out of feature maps of several scales."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        small, large = n.a(x), n.b(x)
        level = x.mean((1, 2, 3)) > 0
        out = torch.zeros(len(x), *small.shape[1:], dtype=x.dtype)
        out[torch.where(level)[0]] = small[torch.where(level)[0]]
        out[torch.where(~level)[0]] = large[torch.where(~level)[0]]
        return n.head(out)

    model = randomized(Net(forward, a=conv_bn(3, 8), b=conv_bn(3, 8), head=head(8))).double()
    result = bnprune.prune(model, noise(4, 3, 8, 8), ratio=0.5)
    assert result.report.ratio_realised == 0.5
    assert result.model.a[1].num_features == result.model.b[1].num_features == 4


def test_rows_that_nothing_picks_have_no_channels_to_miss() -> None:
    """A detector that finds nothing while it is traced is cut like one that does (FCOS, RetinaNet)."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        rows = n.b(n.a(x)).flatten(2).transpose(1, 2)[0]
        places = (rows.sum(1) > 1e6).nonzero().flatten()
        return torch.cat([rows, rows[places]])

    model = randomized(Net(forward, a=conv_bn(3, 8), b=nn.Conv2d(8, 4, 1))).double()
    assert bnprune.prune(model, noise(1, 3, 8, 8), ratio=0.5).report.ratio_realised == 0.5
