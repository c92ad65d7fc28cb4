"""`sparsify`: the hook on the optimizer does what a hand-written loop does, whatever else the loop does."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.errors import ConfigError, PruningError
from tests.nets import conv_bn, head, randomized, residual

pytestmark = pytest.mark.filterwarnings("ignore:λ =:UserWarning")  # trainings of a few steps are too short

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(16) % 5


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomized(nn.Sequential(conv_bn(3, 8), conv_bn(8, 12), head(12))).train()


def gammas(model: nn.Module) -> torch.Tensor:
    return torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])


def backward(model: nn.Module, scale: float = 1.0) -> None:
    (F.cross_entropy(model(IMAGES), LABELS) * scale).backward()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.75),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_optimizers_own_and_then_a_soft_threshold(name: str) -> None:
    model, twin = network(), network()
    ours, plain = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](twin.parameters())
    bnprune.sparsify(model, ours, steps=100, lambda_=0.3)
    gain = 4 if name == "sgd" else 1  # 1 / (1 - momentum)
    for _ in range(3):
        step(model, ours)
        step(twin, plain)
        threshold = plain.param_groups[0]["lr"] * 0.3 * gain
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                with torch.no_grad():
                    module.weight.copy_(module.weight.sign() * (module.weight.abs() - threshold).clamp(min=0))
        torch.testing.assert_close(gammas(model), gammas(twin))


def test_an_attached_penalty_prints_its_state() -> None:
    model = network()
    count = gammas(model).numel()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    penalty = bnprune.sparsify(model, optimizer, steps=1000, lambda_=0.02)
    assert repr(penalty) == f"Sparsity(l1, λ = 0.02, {count} scale factors, step 0 of 1,000)"
    step(model, optimizer)
    assert repr(penalty).endswith("step 1 of 1,000)")
    penalty.detach()
    steered = bnprune.sparsify(model, optimizer, steps=10_000, target=0.5)
    assert repr(steered).startswith("Sparsity(l1, target 0.5, λ = ")
    step(model, optimizer)
    assert f"{count} scale factors, step 1 of 10,000)" in repr(steered)


def test_each_parameter_group_has_its_learning_rate() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first, second = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    before = first.weight.detach().clone(), second.weight.detach().clone()
    groups = [{"params": [first.weight], "lr": 0.01}, {"params": [second.weight], "lr": 0.02, "momentum": 0.5}]
    optimizer = torch.optim.SGD(groups, 1.0)
    bnprune.sparsify(model, optimizer, steps=10, lambda_=0.5)
    optimizer.step()
    torch.testing.assert_close(first.weight, before[0].sign() * (before[0].abs() - 0.005).clamp(min=0))
    torch.testing.assert_close(second.weight, before[1].sign() * (before[1].abs() - 0.02).clamp(min=0))


def test_a_closure_runs_before_the_penalty() -> None:
    model, twin = network(), network()
    ours, plain = (torch.optim.SGD(m.parameters(), 0.05) for m in (model, twin))
    for one, optimizer in ((model, ours), (twin, plain)):
        bnprune.sparsify(one, optimizer, steps=10, lambda_=0.3)
    step(twin, plain)

    def closure() -> torch.Tensor:
        ours.zero_grad()
        loss = F.cross_entropy(model(IMAGES), LABELS)
        loss.backward()
        return loss

    ours.step(closure)
    assert torch.equal(gammas(model), gammas(twin))


def test_steps_that_a_scaler_skips_do_not_count() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    penalty = bnprune.sparsify(model, optimizer, steps=10, lambda_=0.3)
    before = gammas(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(IMAGES).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(gammas(model), before)
    assert penalty.gammas().step == 0
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(IMAGES), LABELS)).backward()
    scaler.step(optimizer)
    assert penalty.gammas().step == 1
    assert not torch.equal(gammas(model), before)


def test_a_fused_optimizer_that_skips_its_step_itself() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, fused=True)
    penalty = bnprune.sparsify(model, optimizer, steps=10, lambda_=0.3)
    before = gammas(model)
    backward(model)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())  # as GradScaler sets them
    optimizer.step()
    assert torch.equal(gammas(model), before)
    assert penalty.gammas().step == 0


def test_a_target_counts_channels_that_go_together() -> None:
    """The residual stream of 8 channels is written twice: 8 units of two γ, and 12 of one."""
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    penalty = bnprune.sparsify(model, optimizer, steps=100, target=0.5, example_inputs=IMAGES[:1])
    stem, middle, last = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        stem.weight[:4] = 0  # of the stream, but not what the branch writes
        middle.weight[:3] = 0
        last.weight[2:6] = 0
    state = penalty.gammas()
    assert state.below == pytest.approx(11 / 28)
    assert state.removable == pytest.approx((2 * 2 + 3) / 28)
    assert state.target == 0.5


def test_a_target_counts_layers_that_are_not_excluded() -> None:
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    penalty = bnprune.sparsify(model, optimizer, steps=100, target=0.5, exclude=["stem"], example_inputs=IMAGES[:1])
    with torch.no_grad():
        model.branch[0][1].weight[:6] = 0
    assert penalty.gammas().removable == pytest.approx(6 / 12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_target_is_reached_and_pruning_there_removes_what_is_near_zero(name: str) -> None:
    model = network()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0.5)
    optimizer = OPTIMIZERS[name](model.parameters())
    penalty = bnprune.sparsify(model, optimizer, steps=150, target=0.6)
    for _ in range(150):
        step(model, optimizer)
    state = penalty.gammas()
    assert state.removable == pytest.approx(0.6, abs=0.05), str(state)
    assert state.on_course
    plan = bnprune.prune(model, IMAGES[:1], ratio=0.5).plan
    tensors = dict(model.named_parameters())
    removed = [tensors[at[0]][cut.removed] for cut in plan.cuts for at in cut.at if at[0].endswith(".1.weight")]
    assert sum(map(len, removed)) == 10
    assert all((gammas.abs() < 0.01).all() for gammas in removed)


def test_the_network_is_traced_with_the_inputs_of_the_first_call_of_the_part_that_holds_it() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.unused = nn.Linear(2, 2)

        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the loop calls the part")

    model = Wrapper()
    optimizer = torch.optim.SGD(model.net.parameters(), 0.05)
    penalty = bnprune.sparsify(model, optimizer, steps=10, target=0.5)
    step(model.net, optimizer)
    assert penalty.gammas().removable is not None
    assert not model._forward_pre_hooks
    assert not model.net._forward_pre_hooks


@pytest.mark.parametrize("pattern", ["net.0", "net.0.*", "*.0.1"])
def test_layers_to_exclude_have_the_names_of_the_model_although_the_loop_calls_a_part_of_it(pattern: str) -> None:
    model = nn.Module()
    model.net, model.other = network(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.net.parameters(), 0.05)
    penalty = bnprune.sparsify(model, optimizer, steps=10, target=0.5, exclude=[pattern, "other"])
    step(model.net, optimizer)
    with torch.no_grad():
        model.net[0][1].weight.zero_()
        model.net[1][1].weight[:3] = 0
    assert penalty.gammas().removable == 3 / 12


def test_a_layer_to_exclude_that_is_not_there() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(ConfigError, match="sparsify: exclude: no layer matches '1.3'. Did you mean '1.1'"):
        bnprune.sparsify(model, optimizer, steps=10, target=0.5, exclude=["0", "1.3"])
    assert not optimizer._optimizer_step_post_hooks


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_bn(3, 8), head(8)

    def forward(self, image: torch.Tensor, factor: float) -> torch.Tensor:
        return self.head(self.body(image) * factor)


def test_positional_and_keyword_arguments_of_the_first_call() -> None:
    model = randomized(Scaled())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    penalty = bnprune.sparsify(model, optimizer, steps=10, target=0.5)
    F.cross_entropy(model(IMAGES, factor=2.0), LABELS).backward()
    optimizer.step()
    assert penalty.gammas().removable == 0


def test_without_a_forward_pass_there_is_an_error() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    bnprune.sparsify(model, optimizer, steps=10, target=0.5)
    with pytest.raises(PruningError, match="example_inputs"):
        optimizer.step()


def test_a_training_goes_on_from_its_saved_state() -> None:
    whole, first = network(), network()
    states = []
    for model, stops in ((whole, ()), (first, (7,))):
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        penalty = bnprune.sparsify(model, optimizer, steps=20, target=0.5)
        for number in range(20):
            if number in stops:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), penalty.state_dict()))
                penalty.detach()
                model = network()
                optimizer = OPTIMIZERS["sgd"](model.parameters())
                penalty = bnprune.sparsify(model, optimizer, steps=20, target=0.5)
                for target, state in zip((model, optimizer, penalty), saved, strict=True):
                    target.load_state_dict(state)
            step(model, optimizer)
        states.append(gammas(model))
    assert torch.equal(*states)


@pytest.mark.parametrize("setting", [{"target": 0.5}, {"travel": 2.0}])
def test_a_training_goes_on_for_longer_than_it_was_planned(setting: dict[str, float]) -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first = bnprune.sparsify(model, optimizer, steps=20, **setting)
    for _ in range(20):
        step(model, optimizer)
    saved = first.state_dict()
    first.detach()
    penalty = bnprune.sparsify(model, optimizer, steps=120, **setting)
    penalty.load_state_dict(saved)
    assert penalty.state_dict()["strength"] == saved["strength"]
    for _ in range(100):
        step(model, optimizer)
    state = penalty.gammas()
    assert state.step == 120
    assert setting.get("travel") or state.removable == pytest.approx(0.5, abs=0.05)
    penalty.detach()
    shorter = bnprune.sparsify(model, optimizer, steps=19, **setting)
    with pytest.raises(ConfigError, match="the saved training took 20 steps, and this one has 19"):
        shorter.load_state_dict(saved)


def test_after_detach_and_after_the_last_step_nothing_happens() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0001)
    penalty = bnprune.sparsify(model, optimizer, steps=2, lambda_=100.0)
    model(IMAGES).sum().backward()
    for _ in range(2):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["lr"], before = 1.0, gammas(model)
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(gammas(model), before)
    assert penalty.gammas().step == 2
    penalty.detach()
    assert not optimizer._optimizer_step_post_hooks


def test_a_second_penalty_on_the_same_scale_factors_is_refused() -> None:
    model, other = network(), network()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.05)
    penalty = bnprune.sparsify(model, optimizer, steps=2, lambda_=0.3)
    bnprune.sparsify(other, optimizer, steps=2, lambda_=0.3)
    with pytest.raises(ConfigError, match=r"attached to this optimizer already, in step 0 of 2.*detach\(\) first"):
        bnprune.sparsify(nn.DataParallel(model), optimizer, steps=2, lambda_=0.3)
    penalty.detach()
    bnprune.sparsify(model, optimizer, steps=2, lambda_=0.3)
    for _ in range(2):
        optimizer.step()
    bnprune.sparsify(model, optimizer, steps=2, lambda_=0.3)  # the one before has come to its end
    assert len(optimizer._optimizer_step_post_hooks) == 2


def test_a_call_that_fails_attaches_nothing() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(PruningError):
        bnprune.sparsify(model, optimizer, steps=10, target=0.5, example_inputs=IMAGES[:, :2])
    assert not optimizer._optimizer_step_post_hooks
    bnprune.sparsify(model, optimizer, steps=10, target=0.5, example_inputs=IMAGES)


def test_compiled_and_wrapped_networks() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    penalty = bnprune.sparsify(compiled, optimizer, steps=10, target=0.5)
    step(compiled, optimizer)
    assert penalty.gammas().removable is not None
    parallel = nn.DataParallel(network())
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
    penalty = bnprune.sparsify(parallel, optimizer, steps=10, target=0.5)
    step(parallel, optimizer)
    assert penalty.gammas().removable is not None


def test_a_penalty_that_cannot_have_an_effect_is_named_before_training() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with pytest.warns(UserWarning, match="no scale factor will reach zero. Use λ above"):
        weak = bnprune.sparsify(model, optimizer, steps=10_000, lambda_=1e-5)
    assert [note.code for note in weak.notes] == ["sparsify.too_weak"]
    weak.detach()
    with pytest.warns(UserWarning, match="Train for more steps"):
        bnprune.sparsify(model, optimizer, steps=10, target=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnprune.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), steps=1000, target=0.5)


def test_a_warm_up_that_starts_at_zero() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    penalty = bnprune.sparsify(model, optimizer, steps=100, target=0.5)
    before = gammas(model)
    step(model, optimizer)
    assert torch.equal(gammas(model), before)
    assert penalty.gammas().on_course is None


def test_a_scheduler_that_starts_low_names_its_peak() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=1000, div_factor=1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnprune.sparsify(model, optimizer, steps=1000, target=0.5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_names_that_an_earlier_schedule_left_in_the_groups_do_not_count(momentum: float) -> None:
    model, gain = network(), 1 / (1 - momentum)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=momentum)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=3, cycle_momentum=False)
    for _ in range(2):
        step(model, optimizer)
        schedule.step()
    optimizer.param_groups[0]["lr"] = 0.001
    penalty = bnprune.sparsify(model, optimizer, steps=1000, travel=0.01)
    strength = 0.01 * float(gammas(model).abs().mean()) / (1000 * 0.001 * gain)
    assert penalty.state_dict()["strength"] == pytest.approx(strength)


@pytest.mark.parametrize("first", [0.0, 0.001])
def test_a_learning_rate_that_only_the_loop_knows(first: float) -> None:
    """λ falls as the learning rate rises, so that no step moves γ further than `travel` allows."""
    model = network()
    mean, steps = float(gammas(model).abs().mean()), 1000
    optimizer = torch.optim.SGD(model.parameters(), first)
    with warnings.catch_warnings():
        if not first:
            warnings.simplefilter("error")
        penalty = bnprune.sparsify(model, optimizer, steps=steps, travel=1.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for rate in (first, 0.2, 0.5, 0.1):
        optimizer.param_groups[0]["lr"] = rate
        before = gammas(model).abs()
        optimizer.step()
        moved = (before - gammas(model).abs()).max()
        assert float(moved) <= 1.5 * mean / steps * 1.001
    assert penalty.state_dict()["strength"] == pytest.approx(1.5 * mean / (steps * 0.5))


def test_a_steered_penalty_follows_a_learning_rate_that_rises() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    penalty = bnprune.sparsify(model, optimizer, steps=10_000, target=0.5)
    for rate in (0.0, 0.1):
        optimizer.param_groups[0]["lr"] = rate
        step(model, optimizer)
    usual = penalty._penalty.lambda_at.usual
    assert usual == pytest.approx(penalty.state_dict()["strength"]) == pytest.approx(5 * penalty._start / 1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is the number of optimizer steps"),
        ({"steps": 10, "target": 0.5, "travel": 2.0}, "give one of target, travel and lambda_"),
        ({"steps": 10, "target": 0.5, "lambda_": 0.1}, "give one of target, travel and lambda_"),
        ({"steps": 10, "target": 1.5}, "target"),
        ({"steps": 10, "lambda_": -1.0}, "lambda_"),
        ({"steps": 10, "penalty": "l3"}, "penalty"),
        ({"steps": 10, "penalty": "polarization", "target": 0.5}, "polarization"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        bnprune.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), **arguments)


def test_an_optimizer_of_another_network() -> None:
    with pytest.raises(ConfigError, match="trains none of the BatchNorm scale factors"):
        bnprune.sparsify(network(), torch.optim.SGD(network().parameters(), 0.1), steps=10)
    with pytest.raises(ConfigError, match="expected a torch optimizer, got Sequential"):
        bnprune.sparsify(network(), network(), steps=10)


@pytest.mark.parametrize("name", ["group-lasso", "mac-weighted-l1", "polarization", "l1-proximal"])
def test_every_penalty(name: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    penalty = bnprune.sparsify(model, optimizer, steps=60, penalty=name)
    for _ in range(60):
        step(model, optimizer)
    assert penalty.gammas().below > 0.05
