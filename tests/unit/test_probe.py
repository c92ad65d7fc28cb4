"""What must stay is found once: it does not depend on how much is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.request import Request
from tests.nets import Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 8, 8)


class PaddedShortcut(nn.Module):
    """A shortcut padded to a literal width (`shortcut_type='A'` of ResNets)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.a, self.b, self.width = conv_bn(channels, width), conv_bn(width, width), width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = x.new_zeros(x.shape[0], self.width - x.shape[1], *x.shape[2:])
        return self.b(self.a(x)) + torch.cat([x, zeros], 1)


def padded() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), PaddedShortcut(16, 32), PaddedShortcut(32, 64), head(64))


def compared() -> nn.Module:
    """Code that compares two widths, which are equal as long as neither loses a channel."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y, z = n.a(x), n.b(x)
        z = z if y.shape[1] == z.shape[1] else z.tanh()
        return n.c(y) + n.d(z)

    return Net(forward, a=conv_bn(3, 32), b=conv_bn(3, 32), c=head(32), d=head(32))


def even() -> nn.Module:
    """Code that refuses an odd width."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = n.b(n.a(x))
        assert y.shape[1] % 2 == 0
        return n.c(y)

    return Net(forward, a=conv_bn(3, 32), b=conv_bn(32, 32), c=head(32))


TARGETS: list[dict[str, Any]] = [
    *({"ratio": share} for share in (0.1, 0.4, 0.9)), {"macs": 0.8}, {"params": 0.7}, {"ratio": 0.5, "round_to": 8},
    {"ratio": 0.3, "criterion": "uniform"},
]  # fmt: skip


@pytest.mark.parametrize(("build", "prunable"), [(padded, 208), (even, 32)])
def test_what_is_prunable_does_not_depend_on_the_request(build: Callable[[], nn.Module], prunable: int) -> None:
    net = randomized(build())
    assert bnprune.inspect(net, X).prunable == prunable
    reports = [bnprune.prune(net, X, **target, proof=target == TARGETS[-1]).report for target in TARGETS]
    assert {report.channels_before for report in reports} == {prunable}
    assert not any(note.code == "prunable.found_late" for report in reports for note in report.notes)


def test_widths_that_are_compared_must_stay_for_every_request() -> None:
    net = randomized(compared())
    assert bnprune.inspect(net, X).prunable == 0
    for ratio in (0.1, 0.5):
        with pytest.raises(bnprune.PruningError, match="nothing can be pruned"):
            bnprune.prune(net, X, ratio=ratio)


def test_a_sweep_plans_every_ratio_over_one_set() -> None:
    net = randomized(even())
    scored = score_network(net, X, Request(ratio=0.1))
    counts = [plan_cut(net, X, replace(scored, request=Request(ratio=r))).channels for r in (0.9, 0.1)]
    assert [before for before, _ in counts] == [32, 32]


def test_what_only_an_extreme_width_shows_is_found_late_and_said() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = n.b(n.a(x))
        return n.c(y if y.shape[1] > 2 else y.tanh())

    net = randomized(Net(forward, a=conv_bn(3, 16), b=conv_bn(16, 16), c=head(16)))
    usual, extreme = (bnprune.prune(net, X, ratio=ratio).report for ratio in (0.5, 0.9))
    assert (usual.channels_before, extreme.channels_before) == (32, 16)
    assert not any(note.code == "prunable.found_late" for note in usual.notes)
    said = [str(note) for note in extreme.notes if note.code == "prunable.found_late"]
    assert said == [
        "16 BatchNorm channels must stay only at the widths of this selection: other targets may prune them"
    ]
