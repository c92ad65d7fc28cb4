"""Sensitivity tables: losses between cuts, the order of removal, the groups of layers, and the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnprune
from bnprune.errors import CheckpointError, ConfigError, PruningError
from bnprune.pruning.draft_plan import ScoredNetwork
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.pruner import PruningResult, prune_as_requested
from bnprune.pruning.request import Request
from bnprune.pruning.sensitivity import CutAlone, GroupSensitivity, Sensitivity, increasing
from bnprune.pruning.sensitivity_order import cut_group, layer_groups, prunable_groups
from tests.nets import concat, depthwise, grouped, residual, squeeze_excitation
from tests.unit.test_select import X, set_gammas, stack, widths

START = 0.9
FIRST, SECOND = ("0.0", "0.1"), ("1.0", "1.1")


def scored(model: nn.Module) -> ScoredNetwork:
    return score_network(model, X, Request(ratio=0.5))


def group(layers: tuple[str, ...], channels: int, losses: dict[int, float]) -> GroupSensitivity:
    """Return a group whose accuracy falls by `losses`, by number of channels removed."""
    points = [CutAlone(removed / channels, removed, 0.0, START - loss) for removed, loss in losses.items()]
    return GroupSensitivity(layers, channels, tuple(points))


def table(*groups: GroupSensitivity) -> Sensitivity:
    return Sensitivity("Net", "digest", "weights", (3, 8, 8), (0.5,), {"criterion": "gamma"}, 100, START, groups)


def pruned(model: nn.Module, made: Sensitivity, **asked: Any) -> PruningResult:
    return prune_as_requested(model, X, Request(**asked), sensitivity=made)


def test_losses_are_made_monotone_by_the_nearest_sequence() -> None:
    assert increasing([0, 3, 1, 4]).tolist() == [0, 2, 2, 4]
    assert increasing([3, 2, 1]).tolist() == [2, 2, 2]
    assert increasing([0, 1, 2]).tolist() == [0, 1, 2]
    values = np.random.default_rng(0).normal(size=6)
    fitted = increasing(values.tolist())
    assert (np.diff(fitted) >= 0).all()
    others = np.sort(np.random.default_rng(1).normal(size=(20_000, 6)), axis=1)
    assert np.square(fitted - values).sum() <= np.square(others - values).sum(1).min()


def test_between_cuts_losses_are_linear_and_beyond_the_largest_infinite() -> None:
    losses = group(FIRST, 16, {4: 0.1, 8: 0.3}).losses_at(np.array([0.125, 0.25, 0.375, 0.5, 0.5625]), START)
    assert losses.tolist() == pytest.approx([0.05, 0.1, 0.2, 0.3, np.inf])


def test_all_groups_lose_the_same_accuracy() -> None:
    """Linear losses, the second layer three times as sensitive: for 8 channels, 6 and 2 go, each for a loss of 0.06."""
    model = set_gammas(stack(16, 16), torch.linspace(2, 3, 16), torch.linspace(0.1, 1, 16))  # alone, γ takes the second
    made = table(group(FIRST, 16, {12: 0.12}), group(SECOND, 16, {12: 0.36}))
    assert widths(bnprune.prune(model, X, ratio=0.25)) == [16, 8]
    assert widths(pruned(model, made, ratio=0.25)) == [10, 14]


def test_the_level_meets_a_target_of_macs() -> None:
    """The accuracy of both layers falls by k/100 for k channels: the widths stay equal, whatever the target."""
    model = stack(16, 16)
    made = table(group(FIRST, 16, {15: 0.15}), group(SECOND, 16, {15: 0.15}))
    for share in (0.7, 0.4):
        found = pruned(model, made, macs=share)
        first, second = widths(found)
        assert abs(first - second) <= 1
        assert 0 <= share - found.report.macs_after / found.report.macs_before < 0.06


def test_inside_a_group_the_criterion_ranks() -> None:
    gammas = torch.arange(16.0).roll(5) + 1
    model = set_gammas(stack(16, 16), gammas, torch.ones(16))
    made = table(group(FIRST, 16, {8: 0.0, 12: 0.2}), group(SECOND, 16, {4: 0.3}))
    found = pruned(model, made, ratio=0.25)
    assert widths(found) == [8, 16]
    (cut,) = found.plan.cuts
    assert [*cut.keep] == sorted(gammas.argsort()[8:].tolist())


def test_without_losses_groups_lose_the_same_share() -> None:
    model = set_gammas(stack(8, 16), torch.linspace(0.1, 1, 8), torch.linspace(2, 3, 16))
    made = table(group(FIRST, 8, {7: 0.0}), group(SECOND, 16, {14: 0.0}))
    assert widths(pruned(model, made, ratio=0.5)) == [4, 8]


def test_channels_beyond_the_largest_cut_go_last() -> None:
    model = stack(16, 16)
    made = table(group(FIRST, 16, {4: 0.0}), group(SECOND, 16, {12: 0.9}))
    assert widths(pruned(model, made, ratio=0.5)) == [12, 4]
    assert widths(pruned(model, made, ratio=0.625)) == [8, 4]


def test_groups_that_were_not_measured_keep_their_width() -> None:
    model = stack(16, 16)
    found = pruned(model, table(group(SECOND, 16, {12: 0.1})), macs=0.7)
    assert widths(found)[0] == 16
    assert widths(found)[1] < 16
    assert "1 group of layers keeps its width" in " ".join(found.report.notes)
    with pytest.raises(PruningError, match="macs 0.1 cannot be reached"):
        pruned(model, table(group(SECOND, 16, {8: 0.1})), macs=0.1)
    with pytest.raises(ConfigError, match="no layer of the network is in the sensitivity table"):
        pruned(model, table(group(("other",), 16, {8: 0.1})), macs=0.5)


def test_constraints_hold_and_there_is_no_default_cap() -> None:
    made = table(group(FIRST, 16, {15: 0.0}), group(SECOND, 16, {15: 0.9}))
    assert widths(pruned(stack(16, 16), made, ratio=0.45, round_to=4)) == [4, 12]
    assert widths(pruned(stack(16, 16), made, ratio=0.45, min_channels=6)) == [6, 12]
    assert widths(pruned(stack(16, 16), made, ratio=0.45, criterion="l2"))[0] <= 2
    assert widths(pruned(stack(16, 16), made, ratio=0.45, cap=0.5)) == [8, 10]


def test_layers_that_are_cut_together_are_one_group() -> None:
    found = {frozenset(layers): len(units) for layers, units in layer_groups(scored(residual()).graph).items()}
    assert found[frozenset({"stem.0", "stem.1", "branch.1", "branch.2"})] == 8
    assert found[frozenset({"branch.0.0", "branch.0.1"})] == 12
    sizes = [len(units) for units in layer_groups(scored(concat()).graph).values()]
    assert sizes == [8, 6, 10, 12, 5]


@pytest.mark.parametrize("coupling", ["shared", "gates"])
@pytest.mark.parametrize("network", [residual, concat, depthwise, grouped, squeeze_excitation])
def test_a_group_is_cut_alone(network: Callable[[], nn.Module], coupling: str) -> None:
    model = network()
    found = score_network(model, X, Request(ratio=0.5, coupling=coupling))
    groups = prunable_groups(found)
    assert len(groups) > 1
    for units in groups.values():
        draft = plan_cut(model, X, found, lambda s, c, units=units: cut_group(s.graph, c, units, 0.5))
        assert draft.removed.sum() == draft.removed[units].sum() == len(units) / 2


def test_a_table_comes_back_from_its_file() -> None:
    made = table(group(FIRST, 16, {4: 0.1, 8: 1 / 3}), group(SECOND, 16, {4: 0.0}))
    assert Sensitivity.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(schema="bnprune.plan/1"), "expected schema 'bnprune.sensitivity-table/1'"),
        (lambda d: d["groups"][0]["points"][0].update(removed=17), "expected an integer from 1 to 16"),
        (lambda d: d["groups"][0]["points"].reverse(), "remove more and more channels"),
        (lambda d: d["groups"][0]["points"][0].update(accuracy="high"), "expected a number"),
        (lambda d: d.pop("accuracy"), "KeyError: 'accuracy'"),
        (lambda d: d.update(groups=3), "expected a list"),
    ],
)
def test_a_damaged_table_is_refused(damage: Any, message: str) -> None:
    data = json.loads(table(group(FIRST, 16, {4: 0.1, 8: 0.2})).to_json())
    damage(data)
    with pytest.raises(CheckpointError, match="not a sensitivity table") as refused:
        Sensitivity.from_json(json.dumps(data))
    assert message in str(refused.value)
