"""Plans and surgery: data in and out, attributes true, nothing shared with the original."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning.cut_history import plans_of
from bnprune.pruning.surgery import apply
from tests.nets import MOTIFS, Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def result() -> bnprune.PruningResult:
    return bnprune.prune(randomized(MOTIFS["chain"][0]()), X, ratio=0.5, exclude=["0"])


def test_plan_survives_json(result) -> None:
    text = result.plan.to_json()
    again = bnprune.PruningPlan.from_json(text)
    assert again == result.plan
    assert again.to_json() == text
    assert json.loads(text)["refusals"][0]["reason"] == "is excluded by '0'"


def test_a_plan_replays_to_the_network_that_was_cut() -> None:
    model = randomized(MOTIFS["chain"][0]())
    result = bnprune.prune(model, X, ratio=0.5)
    plan = bnprune.PruningPlan.from_json(result.plan.to_json())
    cut, replayed = result.model.state_dict(), bnprune.apply(plan, model).state_dict()
    assert cut.keys() == replayed.keys()
    assert all(torch.equal(tensor, replayed[name]) for name, tensor in cut.items())
    assert sum(t.numel() for t in replayed.values()) < sum(t.numel() for t in model.state_dict().values())


def test_a_plan_applies_to_other_weights_of_the_same_network(result) -> None:
    """Every value of the slim network is the one at the index that the plan keeps, picked one by one."""
    model = randomized(MOTIFS["chain"][0]())
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    slim = bnprune.apply(result.plan, model).state_dict()
    keeps = {at: cut.keep for cut in result.plan.cuts for at in cut.at}
    assert keeps
    for name, tensor in model.state_dict().items():
        axes = [keeps.get((name, dim), range(size)) for dim, size in enumerate(tensor.shape)]
        expected = [float(tensor[index]) for index in itertools.product(*axes)]
        assert slim[name].flatten().tolist() == expected, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a pruning plan"),
        ("[]", "expected schema"),
        ('{"schema": "bnprune.plan/9"}', "got 'bnprune.plan/9'"),
        ('{"schema": "bnprune.plan/1"}', "KeyError: 'model'"),
        (
            '{"schema": "bnprune.plan/1", "model": {"name": "", "digest": ""}, "attributes": {},'
            ' "cuts": [{"size": 2, "keep": [1, 5], "at": []}]}',
            "ascending indices below 2",
        ),
    ],
)
def test_damaged_plans_are_refused(text: str, message: str) -> None:
    with pytest.raises(bnprune.CheckpointError, match="not a pruning plan.*") as caught:
        bnprune.PruningPlan.from_json(text)
    assert message in str(caught.value)


def test_plan_for_another_network_is_refused_with_what_differs(result) -> None:
    other = randomized(MOTIFS["residual"][0]())
    with pytest.raises(bnprune.PruningError, match="fits a Sequential, and this Net differs"):
        bnprune.apply(result.plan, other)
    wider = MOTIFS["chain"][0]()
    wider[1][0] = nn.Conv2d(8, 20, 3)
    with pytest.raises(bnprune.PruningError, match=r"size 20 in dimension 0, the plan 12"):
        bnprune.apply(result.plan, wider)


def damaged(plan: bnprune.PruningPlan, change: Callable[[dict], object]) -> bnprune.PruningPlan:
    data = plan.to_dict()
    change(data)
    return bnprune.PruningPlan.from_dict(data)


def cut(at: str, keep: tuple[int, ...] = (0,), size: int = 12) -> Callable[[dict], object]:
    return lambda data: data["cuts"].append({"size": size, "keep": keep, "at": [at]})


def attribute(module: str, name: str, value: object) -> Callable[[dict], object]:
    return lambda data: data["attributes"].setdefault(module, {}).update({name: value})


def gate(**changes: object) -> Callable[[dict], object]:
    entry = {"at": "0.1", "kind": "read", "stream": [0, 1], "keep": [0]} | changes
    return lambda data: data.update(gates=[entry])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut("1.0.weight:9"), r"its '1\.0\.weight' has 4 dimensions, and the plan cuts dimension 9"),
        (cut("1.0.weight:-4"), "cuts dimension -4"),
        (cut("9.weight:0"), r"the network has no '9\.weight'"),
        (cut("1.1.bias:0", size=400), "has size 12 in dimension 0, the plan 400"),
        (cut("1.0.weight:0"), r"'1\.0\.weight' is cut twice in dimension 0"),
        (attribute("9.9", "out_channels", 3), r"has no size '9\.9\.out_channels'"),
        (attribute("1.0", "forward", 3), r"has no size '1\.0\.forward'"),
        (attribute("1.0", "weight", 3), r"has no size '1\.0\.weight'"),
        (attribute("1.0", "training", 1), r"has no size '1\.0\.training'"),
        (attribute("", "forward", 3), "has no size 'forward'"),
        (attribute("1.0", "stride", 2), r"'1\.0\.stride' is \(1, 1\), and the plan sets it to 2"),
        (attribute("1.0", "stride", [1]), r"sets it to \(1,\)"),
        (attribute("1.0", "groups", 0), r"the plan sets '1\.0\.groups' to 0"),
        (gate(at="9"), "no BatchNorm '9'"),
        (gate(at="4.0"), r"no BatchNorm '4\.0'"),
        (gate(stream=[0, 99]), "must list channels below 8, ascending"),
        (gate(stream=[1, 0]), "must list channels below 8, ascending"),
        (gate(), r"the gate at '0\.1' and the cut of its BatchNorm keep different channels"),
    ],
)
def test_a_damaged_plan_is_refused_before_anything_is_touched(result, change, message: str) -> None:
    with pytest.raises(bnprune.CheckpointError, match=f"the plan is damaged: .*{message}"):
        bnprune.apply(damaged(result.plan, change), MOTIFS["chain"][0]())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["requested"].update(ratio="half"),
        lambda data: data["realised"].update(ratio=[]),
        lambda data: data["realised"].update(ratio=10**400),
        lambda data: data["realised"].update(channels={"before": 3}),
    ],
)
def test_figures_that_are_none_are_refused(result, change) -> None:
    with pytest.raises(bnprune.CheckpointError, match="not a pruning plan"):
        damaged(result.plan, change)


def test_attributes_are_made_true() -> None:
    model = randomized(
        nn.Sequential(
            conv_bn(3, 16), nn.PReLU(16), conv_bn(16, 16, groups=16), nn.ConvTranspose2d(16, 8, 2), nn.BatchNorm2d(8),
            nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(8 * 81, 6), nn.BatchNorm1d(6), nn.Linear(6, 2),  # noqa: E501
        )
    )  # fmt: skip
    slim = bnprune.prune(model, X, ratio=0.5).model
    for module in slim.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.ConvTranspose2d):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
            assert module.weight.numel() == module.num_features
        elif isinstance(module, nn.PReLU):
            assert module.weight.numel() == module.num_parameters
        elif isinstance(module, nn.GroupNorm):
            assert module.weight.numel() == module.num_channels == 2 * module.num_groups
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def test_parameters_keep_dtype_layout_and_freedom() -> None:
    model = randomized(MOTIFS["chain"][0]()).bfloat16().to(memory_format=torch.channels_last)
    model[1][1].bias.requires_grad_(False)
    slim = bnprune.prune(model, X.bfloat16(), ratio=0.5).model
    assert {p.dtype for p in slim.parameters()} == {torch.bfloat16}
    assert not slim[1][1].bias.requires_grad
    assert slim[1][1].weight.requires_grad
    assert slim[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not slim[1][0].weight.is_contiguous()
    assert slim[1][1].eps == model[1][1].eps
    assert slim[1][1].momentum == model[1][1].momentum


def test_nothing_is_shared_with_the_original(result) -> None:
    model = randomized(MOTIFS["chain"][0]())
    slim = bnprune.prune(model, X, ratio=0.5).model
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for tensor in slim.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_stay_tied() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = Net(
        lambda n, x: n.head(n.c(n.b(n.a(x)))),
        a=conv_bn(3, 8),
        b=nn.Sequential(shared, nn.BatchNorm2d(8)),
        c=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)),
        head=head(8),
    )
    model.c[0].weight = shared.weight
    result = bnprune.prune(randomized(model), X, ratio=0.5)
    assert result.model.c[0].weight is result.model.b[0].weight
    assert result.model.b[0].out_channels == result.model.c[0].in_channels == result.model.c[0].weight.shape[0]


def test_a_cut_network_can_be_cut_again(result) -> None:
    twice = bnprune.prune(result.model, X, ratio=0.3)
    assert twice.report.params_before == result.report.params_after
    assert twice.report.max_relative_error < 1e-12


def test_a_network_remembers_how_it_was_cut(result) -> None:
    twice = bnprune.prune(copy.deepcopy(result.model), X, ratio=0.3)
    assert plans_of(twice.model) == (result.plan, twice.plan)
    assert plans_of(result.model) == (result.plan,)
    assert plans_of(bnprune.apply(twice.plan, result.model)) == (result.plan, twice.plan)
    assert b"bnprune.pruning" not in pickle.dumps(twice.model), "it can be unpickled without bnprune"


def test_recurrent_weights_follow_their_module() -> None:
    """nn.LSTM keeps its parameters in a list of its own too."""
    model = Net(
        lambda n, x: n.fc(n.lstm(n.a(x).mean(2).transpose(1, 2))[0][:, -1]),
        a=conv_bn(3, 8), b=conv_bn(3, 8), lstm=nn.LSTM(8, 4, batch_first=True), fc=nn.Linear(4, 2),
    )  # fmt: skip
    del model.b
    model.a = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8))
    slim = bnprune.prune(randomized(model), X, ratio=0.5).model
    assert all(a is b for a, b in zip(slim.lstm._flat_weights, slim.lstm.parameters(), strict=True))
    slim(X)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda m: nn.DataParallel(m), "wrapped in DataParallel: prune `model.module`"),
        (lambda m: torch.jit.trace(m.eval(), X), "prune the Python module"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1), "got an optimizer: prune the network, then build a new"),
        (lambda m: m.state_dict(), "got a OrderedDict, expected a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated")
def test_what_is_not_a_bare_network_is_refused(wrap, message: str) -> None:
    model = MOTIFS["chain"][0]()
    with pytest.raises(bnprune.PruningError, match=message):
        bnprune.prune(wrap(model), X, ratio=0.5)
    with pytest.raises(bnprune.PruningError, match=message):
        apply(bnprune.prune(model, X, ratio=0.5).plan, wrap(model))


def test_the_copy_is_what_deepcopy_makes() -> None:
    """References inside it stay inside it: shared modules, modules in lists, hooks, attributes of any kind."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.none = conv_bn(3, 8), conv_bn(8, 8), None
            self.again = self.a
            self.plain = [self.b, {"first": self.a}]
            self.settings = {"empty": {}, "sizes": [1, 2]}
            self.seen: list[int] = []
            self.head = head(8)
            self.register_module("absent", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.shape[0])
            return self.head(self.plain[0](self.again(x)))

    model = randomized(Odd())
    model.a.register_forward_hook(lambda module, args, output: output + 0)
    slim = bnprune.prune(model, torch.zeros(1, 3, 8, 8), ratio=0.4).model
    assert slim.again is slim.a is slim.plain[1]["first"]
    assert slim.plain[0] is slim.b is not model.b
    assert slim.settings == model.settings
    assert slim.settings["sizes"] is not model.settings["sizes"]
    assert len(slim.a._forward_hooks) == 1
    assert slim.absent is None
    assert vars(slim).keys() - vars(model).keys() == {"_bnprune_plans", "_bnprune_shapes", "_bnprune_input"}
    assert (slim.seen, model.seen) == ([], [])
