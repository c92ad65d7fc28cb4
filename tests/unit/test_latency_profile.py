"""Latency profiles: interpolation, the estimate, the order by loss per millisecond, steps, and the file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning import latency_order
from bnprune.pruning.candidates import find_candidates
from bnprune.pruning.latency_model import LatencyModel, rest_of
from bnprune.pruning.latency_order import by_gain
from bnprune.pruning.latency_profile import LatencyProfile, LatencyTable, ProfiledLayer, Steps
from bnprune.pruning.latency_search import LatencyKnowledge
from bnprune.pruning.plan import identity
from bnprune.pruning.planner import ScoredNetwork, score_network
from bnprune.pruning.pruner import PruningResult, prune_as_requested
from bnprune.pruning.request import Request
from bnprune.timing import profile as measuring
from bnprune.timing.backends import Setting
from bnprune.timing.profile import profile_network
from bnprune.timing.single_layer import LayerCall
from tests.nets import Net, conv_bn, head, norms, randomized
from tests.unit.test_select import X, set_gammas, stack, widths

SETTING = Setting((3, 8, 8))
_EVEN = Steps()


def table(inputs: tuple[int, ...], outputs: tuple[int, ...], latency: Any) -> LatencyTable:
    return LatencyTable(inputs, outputs, tuple(tuple(float(latency(i, o)) for o in outputs) for i in inputs))


def profile_of(
    model: nn.Module, latencies: dict[str, Any], *, rest: float = 0.0, steps: Steps = _EVEN, **more: Any
) -> LatencyProfile:
    """Return a profile whose layers take times given as functions (inputs, outputs) -> milliseconds."""
    layers, tables = [], []
    for name, latency in latencies.items():
        weight = model.get_submodule(name).weight
        outputs, inputs = weight.shape[:2]
        grid = [tuple(sorted({max(size * k // 4, 1) for k in range(1, 5)})) for size in (inputs, outputs)]
        layers.append(ProfiledLayer(name, len(tables)))
        tables.append(replace(table(*grid, latency), steps=steps))
    total = sum(entry.ms[-1][-1] for entry in tables) + rest
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {"batch": 1, "backend": "eager", "threads": 1, "machine": {}, "versions": {}} | more
    return LatencyProfile("Net", identity(shapes), SETTING.shape, total_ms=total, layers=tuple(layers),
                          tables=tuple(tables), **given)  # fmt: skip


def scored(model: nn.Module, **constraints: Any) -> ScoredNetwork:
    return score_network(model, X, Request(latency_ms=1, **constraints))


# -- tables ------------------------------------------------------------------------------------------------------------


def test_between_measured_widths_latency_is_bilinear() -> None:
    latency = table((8, 32, 64), (16, 32), lambda i, o: 0.5 + 0.01 * i * o).interpolation()
    for inputs, outputs in ((8, 16), (20, 24), (40, 30), (64, 32), (4, 8)):  # bilinear functions are exact, also below
        assert latency(inputs, outputs) == pytest.approx(0.5 + 0.01 * inputs * outputs)


def test_a_width_that_was_not_varied_is_constant() -> None:
    latency = table((3,), (8, 16), lambda i, o: o).interpolation()
    assert latency(3, 12) == 12
    assert latency(3, 0) == 0


def test_a_profile_comes_back_from_its_file() -> None:
    made = profile_of(stack(8, 8), {"0.0": lambda i, o: o, "1.0": lambda i, o: i * o}, steps=Steps(4, 16))
    assert LatencyProfile.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(schema="bnprune.plan/1"), "expected schema 'bnprune.latency-profile/1'"),
        (lambda d: d["layers"][0].update(table=2), "expected an integer from 0 to 1"),
        (lambda d: d["tables"][0]["ms"].pop(), "latencies in a table"),
        (lambda d: d["tables"][1].update(outputs=[8, 4, 2, 6]), "expected ascending widths"),
        (lambda d: d["tables"][0]["ms"][0].__setitem__(0, -1), "expected milliseconds"),
        (lambda d: d.pop("total_ms"), "total_ms"),
        (lambda d: d.update(threads=True), "expected an integer"),
    ],
)
def test_a_damaged_profile_is_refused(damage: Any, message: str) -> None:
    data = profile_of(stack(8, 8), {"0.0": lambda i, o: o, "1.0": lambda i, o: i * o}).to_dict()
    data = json.loads(json.dumps(data))
    damage(data)
    with pytest.raises(bnprune.CheckpointError, match=message):
        LatencyProfile.from_json(json.dumps(data))


# -- the estimate ------------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_sum_of_layers_at_the_widths_kept_and_of_the_rest() -> None:
    """Layers take as many ms as they have pairs of channels; the rest, 10 ms, follows the elements of the norms."""
    model = randomized(stack(8, 16))
    cost = dict.fromkeys(("0.0", "1.0"), lambda i, o: i * o)
    found = scored(model)
    latency = LatencyModel(found.graph, profile_of(model, cost, rest=10))
    removed = np.zeros(found.graph.unit_count, dtype=np.bool_)
    assert latency.ms(removed) == pytest.approx(3 * 8 + 8 * 16 + 10)
    removed[found.graph.gamma_units["1.1.weight"][:4]] = True
    removed[found.graph.gamma_units["0.1.weight"][:2]] = True
    layers = 3 * 6 + 6 * 12
    # Each norm and ReLU writes 64 elements per channel; the head's pooling one per channel of the second.
    written = 64 * 2 * (8 + 16) + 16
    kept = 64 * 2 * (6 + 12) + 12
    assert latency.ms(removed) == pytest.approx(layers + 10 * kept / written, rel=2e-2)


def test_widths_count_up_to_the_next_step() -> None:
    model = randomized(stack(32, 32))
    cost = {"1.0": lambda i, o: o}
    found = scored(model)
    latency = LatencyModel(found.graph, profile_of(model, cost, steps=Steps(1, 16)))
    removed = np.zeros(found.graph.unit_count, dtype=np.bool_)
    units = found.graph.gamma_units["1.1.weight"]
    expected = {15: 32, 16: 16, 17: 16, 31: 16}
    for count, ms in expected.items():
        removed[units[:count]] = True
        assert latency.ms(removed) == ms, count


def test_a_profile_of_other_widths_is_refused() -> None:
    made = profile_of(stack(8, 8), {"0.0": lambda i, o: o, "1.0": lambda i, o: o})
    with pytest.raises(bnprune.PruningError, match=r"does not fit the network: layer '0\.0' differs"):
        LatencyModel(scored(randomized(stack(16, 8))).graph, made)


# -- the order ---------------------------------------------------------------------------------------------------------


def pruned(model: nn.Module, made: LatencyProfile, limit: float, **options: Any) -> PruningResult:
    known = LatencyKnowledge(made, None)
    return prune_as_requested(model, X, Request(latency_ms=limit, **options), latency=known)


def test_of_equal_channels_those_go_that_save_more_time() -> None:
    model = set_gammas(stack(16, 16), torch.ones(16), torch.ones(16))
    cheap_first = profile_of(model, {"0.0": lambda i, o: o, "1.0": lambda i, o: 3 * o})
    assert widths(pruned(model, cheap_first, 40)) == [16, 8]
    dear_first = profile_of(model, {"0.0": lambda i, o: 3 * o, "1.0": lambda i, o: o})
    assert widths(pruned(model, dear_first, 40)) == [8, 16]


def test_a_channel_that_saves_three_times_as_much_stays_if_its_squared_score_is_four_times_as_high() -> None:
    for gamma, expected in ((2.0, [7, 16]), (1.5, [16, 13])):
        model = set_gammas(stack(16, 16), torch.ones(16), torch.full((16,), gamma))
        made = profile_of(model, {"0.0": lambda i, o: o, "1.0": lambda i, o: 3 * o})
        assert widths(pruned(model, made, 55.2)) == expected


def test_a_channel_of_a_stream_counts_as_many_losses_as_it_has_batchnorm_channels() -> None:
    """With equal γ: a channel of the stream (two BatchNorms) saves 1.5 times as much as one inside of the block."""
    parts = {"stem": conv_bn(3, 16), "a": conv_bn(16, 16), "b": conv_bn(16, 16), "head": head(16)}
    model = Net(lambda n, x: n.head((y := n.stem(x)) + n.b(n.a(y))), **parts)
    for norm in norms(model):
        nn.init.ones_(norm.weight)
    made = profile_of(model, {"stem.0": lambda i, o: 1.5 * o, "a.0": lambda i, o: o})
    after = {layer.name: layer.after for layer in pruned(model, made, 32).report.layers}
    assert (after["stem.1"], after["b.1"], after["a.1"]) == (16, 16, 8)


def test_channels_go_in_portions_of_a_step_although_one_alone_saves_nothing() -> None:
    """Only layer 1 has steps of 8; a single channel of it saves nothing, eight save as much as eight of layer 0."""
    model = set_gammas(stack(16, 16), torch.full((16,), 1.0), torch.full((16,), 0.9))
    made = profile_of(model, {"1.0": lambda i, o: 2 * o}, steps=Steps(1, 8))
    assert widths(pruned(model, made, 16)) == [16, 8]


def test_widths_at_which_a_layer_is_slower_are_passed_over() -> None:
    """Layer 1 takes 16 ms at full width, 20 ms at 12 channels, and 2 ms at 4: nothing is gained in between."""
    model = set_gammas(stack(16, 16), torch.ones(16), torch.full((16,), 0.5))
    ms = {16: 16, 12: 20, 8: 20, 4: 2}
    made = profile_of(model, {"0.0": lambda i, o: o, "1.0": lambda i, o: ms[o]})
    found = scored(model)
    candidates = find_candidates(found.graph, found.scores, found.request.constraints, {})
    ordered = by_gain(found.graph, found.scores, candidates, LatencyModel(found.graph, made))
    first = ordered.order[: ordered.step_ends[0]]
    assert len(first) >= 12
    assert np.isin(first, found.graph.gamma_units["1.1.weight"]).all()


def test_channels_that_save_no_time_stay() -> None:
    model = set_gammas(stack(16, 16), torch.ones(16), torch.full((16,), 0.5))
    made = profile_of(model, {"0.0": lambda i, o: o, "1.0": lambda i, o: 10})
    assert widths(pruned(model, made, 20))[1] == 16


def test_the_order_holds_constraints_and_keeps_channels_of_a_layer_in_order_of_score() -> None:
    model = randomized(stack(16, 32, 32))
    made = profile_of(model, {f"{k}.0": lambda i, o: i * o for k in range(3)}, rest=50)
    found = scored(model, round_to=4, layer_ratios={"0.1": 0.25})
    candidates = find_candidates(found.graph, found.scores, found.request.constraints, {})
    ordered = by_gain(found.graph, found.scores, candidates, LatencyModel(found.graph, made))
    assert sorted(ordered.order) == sorted(candidates.order)
    forced = candidates.step_ends[: candidates.forced_steps]
    assert forced.size
    assert (ordered.order[: forced[-1]] == candidates.order[: forced[-1]]).all()
    assert (np.diff(ordered.step_ends, prepend=0) % 4 == 0).all()
    for units in found.graph.gamma_units.values():
        within = [found.scores[unit] for unit in ordered.order if unit in units]
        assert within == sorted(within)
    steps = np.diff(ordered.step_ends, prepend=0)
    assert (ordered.step_of_unit[ordered.order] == np.arange(len(steps)).repeat(steps)).all()


def test_lazy_evaluation_takes_the_same_channels_as_computing_everything_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized(stack(16, 24, 16))
    made = profile_of(model, {f"{k}.0": lambda i, o: i * o for k in range(3)}, rest=30, steps=Steps(1, 4))
    found = scored(model)
    candidates = find_candidates(found.graph, found.scores, found.request.constraints, {})
    lazy = by_gain(found.graph, found.scores, candidates, LatencyModel(found.graph, made))

    def run(self: Any) -> list[Any]:
        taken = []
        while alive := [group for group, waiting in self._groups.items() if waiting]:
            group = min(alive, key=lambda g: (self._best(g)[0], g))
            if self._best(group)[0] == float("inf"):
                break
            taken.append(self._take(group, self._best(group)[1]))
        return taken

    monkeypatch.setattr(latency_order._Greedy, "run", run)
    eager = by_gain(found.graph, found.scores, candidates, LatencyModel(found.graph, made))
    assert lazy.order.tolist() == eager.order.tolist()


def test_criteria_that_decide_the_share_of_each_layer_keep_their_order() -> None:
    model = randomized(stack(16, 16))
    made = profile_of(model, {"0.0": lambda i, o: o, "1.0": lambda i, o: 3 * o})
    assert widths(pruned(model, made, 32, criterion="uniform")) == [8, 8]


# -- the search --------------------------------------------------------------------------------------------------------


def test_the_estimate_is_corrected_by_measuring() -> None:
    """Slim networks take half as long again as estimated: the limit holds for what is measured."""
    model = randomized(stack(32, 32))
    made = profile_of(model, {"0.0": lambda i, o: o, "1.0": lambda i, o: 3 * o})

    def measure(network: nn.Module) -> float:
        first, second = network[0][0].out_channels, network[1][0].out_channels
        return 1.5 * (first + 3 * second) if second < 32 else 128.0

    known = LatencyKnowledge(made, measure)
    report = prune_as_requested(model, X, Request(latency_ms=90), latency=known).report
    assert 90 * 0.95 < report.target.realised <= 90
    assert not any("estimated" in note for note in report.notes)
    with pytest.raises(bnprune.PruningError, match="cannot be reached: the fastest network found takes"):
        prune_as_requested(model, X, Request(latency_ms=1), latency=known)
    with pytest.raises(bnprune.PruningError, match="already runs in 128 ms"):
        prune_as_requested(model, X, Request(latency_ms=200), latency=known)


def test_the_suggested_latency_is_accepted() -> None:
    model = randomized(stack(32, 32))
    made = profile_of(model, {"0.0": lambda i, o: 0.10004 * o, "1.0": lambda i, o: 3 * o}, machine={"processor": "A"})
    with pytest.raises(bnprune.PruningError, match="cannot be reached") as why:
        pruned(model, made, 1, min_channels=8)
    suggested = float(str(why.value).partition("takes ")[2].partition(" ms")[0])
    assert pruned(model, made, suggested, min_channels=8).report.target.realised <= suggested
    with pytest.raises(bnprune.PruningError, match="already runs in") as why:
        pruned(model, made, 1000)
    suggested = float(str(why.value).partition("already runs in ")[2].partition(" ms")[0]) - 1e-6  # "Ask for less."
    assert pruned(model, made, suggested).report.target.realised <= suggested


def test_on_another_machine_the_estimate_counts_and_a_note_says_so() -> None:
    model = randomized(stack(32, 32))
    made = profile_of(model, {"1.0": lambda i, o: o}, machine={"processor": "Abacus"})
    report = pruned(model, made, 20).report
    assert report.target.realised == 20
    assert any("estimated by the latency profile (Abacus)" in note for note in report.notes)


# -- measuring ---------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Layers of every kind: plain, depthwise, grouped, linear, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding="same"), nn.BatchNorm2d(32))
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32))
        self.grouped = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.BatchNorm2d(32))
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(self.grouped(self.depthwise(self.stem(x).relu()).relu()))
        return self.head(self.norm(y.mean((2, 3))))


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_every_kind_of_layer_is_measured(backend: Any) -> None:
    model = randomized(Odd())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    made = profile_network(model, SETTING, 2, backend, {}, {})
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    names = [layer.name for layer in made.layers]
    assert names == ["stem.0", "depthwise.0", "grouped.0", "grouped.0", "head"]
    widths = {layer.name: made.tables[layer.table] for layer in made.layers}
    assert widths["stem.0"].inputs == (3,)
    assert widths["depthwise.0"].inputs == (1,)
    assert widths["grouped.0"].inputs[-1] == 16
    assert widths["head"].outputs == (10,)
    assert widths["stem.0"].outputs == widths["depthwise.0"].outputs == (8, 16, 24, 32)
    assert all(0 < ms < 1e3 for entry in made.tables for row in entry.ms for ms in row)
    graph = scored(model).graph
    assert len(made.rest) == (0 if backend == "onnxruntime" else len(rest_of(graph)))
    LatencyModel(graph, made)


def test_a_measured_operator_of_the_rest_counts_by_its_time() -> None:
    """All of the rest is the first ReLU, of the 8 channels of layer 0: half of its channels are half of the rest."""
    model = randomized(stack(8, 16))
    found = scored(model)
    records = rest_of(found.graph)
    first = next(index for index, record in enumerate(records) if "relu" in record.op)
    rest = tuple(float(index == first) for index in range(len(records)))
    made = profile_of(model, {"0.0": lambda i, o: 0, "1.0": lambda i, o: 0}, rest=10)
    latency = LatencyModel(found.graph, replace(made, rest=rest))
    removed = np.zeros(found.graph.unit_count, dtype=np.bool_)
    removed[found.graph.gamma_units["1.1.weight"][:8]] = True
    assert latency.ms(removed) == pytest.approx(10)
    removed[found.graph.gamma_units["0.1.weight"][:4]] = True
    assert latency.ms(removed) == pytest.approx(5)


@pytest.mark.parametrize("step", [1, 4, 16, 32])
def test_steps_are_found(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose latency changes at multiples of outputs, and evenly with inputs."""
    noise = np.random.default_rng(0)

    def timer(self: LayerCall, inputs: int, outputs: int, backend: str) -> Any:
        return lambda: inputs / 100 - (-outputs // step) * step + 0.002 * noise.random()

    monkeypatch.setattr(LayerCall, "timer", timer)
    call = LayerCall(nn.Conv2d, (1, 128, 8, 8), (), 128, 128, 1, False, True, True)
    assert measuring._step([call], 1, "eager") == step
    assert measuring._step([replace(call, outputs_vary=False)], 1, "eager") == 1
    other = replace(call, geometry=(("kernel_size", (1, 1)),), outputs_vary=False)
    tables = measuring._with_steps([other, call], [table((64, 128), (64, 128), lambda i, o: o)] * 2, "eager")
    assert [entry.steps.outputs for entry in tables] == [1, step]
