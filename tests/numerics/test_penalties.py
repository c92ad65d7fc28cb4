"""Every penalty against autograd, a closed form or a hand-written loop, in every way the loop can run."""

from __future__ import annotations

import contextlib
import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import bnprune
from bnprune.config.schema import OptimisationConfig, PruneConfig, SparsityConfig
from bnprune.data.splits import combined_seed
from bnprune.training.loop import TrainingJob, begin, epoch_order, train
from bnprune.training.lr_schedule import learning_rate
from bnprune.training.penalties.gamma import TravelBudget, scale_factors
from bnprune.training.penalties.lambda_schedule import TravelSchedule
from bnprune.training.penalties.lambda_schedule import factors as factors_of
from bnprune.training.penalties.table import PENALTIES, make_penalty, shortage, shortfall
from tests.nets import MOTIFS, norms, randomized
from tests.numerics.test_training import CPU, Recorder, data, same

IMAGE = torch.zeros(1, 3, 8, 8)
STEPPED = ("l1-proximal", "group-lasso")


def residual(seed: int = 0) -> nn.Module:
    """Stem (8) and the branch's second BatchNorm (8) write one stream; its first (12) stands alone."""
    torch.manual_seed(seed)
    return randomized(MOTIFS["residual"][0](), seed)


def gathered(model: nn.Module) -> torch.Tensor:
    return torch.cat([norm.weight for norm in norms(model)])


# -- what each penalty is ---------------------------------------------------------------------------------------------


def test_a_penalty_prints_its_name_its_strength_and_its_size() -> None:
    assert repr(bnprune.GammaL1(residual(), 1e-4)) == "GammaL1(λ = 0.0001, 28 scale factors)"
    weighted = bnprune.GammaMacWeighted(residual(), 0.25, IMAGE)
    weighted.lambda_at = lambda step, gammas: torch.full_like(gammas, 0.5)
    weighted.at(0)
    assert str(weighted) == "GammaMacWeighted(λ = 0.5, 28 scale factors)"


def macs_of_residual() -> torch.Tensor:
    """MACs per scale factor of `residual` on 8x8 images: 3x3 kernels at 64 positions, and 5 weights of the head."""
    stream = (64 * 9 * (3 + 12 + 12) + 5) / 2  # written by the stem, read and written by the branch; two scale factors
    return torch.tensor([stream] * 8 + [64.0 * 9 * (8 + 8)] * 12 + [stream] * 8)


def penalty_by_hand(name: str, gamma: torch.Tensor) -> torch.Tensor:
    """R(γ) of `residual`, whose BatchNorms are stem (8), branch (12) and branch (8)."""
    match name:
        case "polarization":
            return gamma.abs().sum() - (gamma.abs() - gamma.abs().mean()).abs().sum()
        case "group-lasso":
            stem, middle, last = gamma.split([8, 12, 8])
            return 2**0.5 * torch.stack([stem, last]).norm(dim=0).sum() + middle.abs().sum()
        case "mac-weighted-l1":
            macs = macs_of_residual()
            return (macs / macs.mean() * gamma.abs()).sum()
    return gamma.abs().sum()


def made(name: str, model: nn.Module, strength: float, *, optimizer: str = "sgd", momentum: float = 0.0):
    config = OptimisationConfig(optimizer=optimizer, momentum=momentum)
    sparsity = SparsityConfig(penalty=name, lambda_=strength)
    return make_penalty(model, config, sparsity, 10, example_inputs=IMAGE)[0]


@pytest.mark.parametrize("name", PENALTIES)
def test_the_pull_is_the_gradient_of_the_penalty(name: str) -> None:
    model = residual()
    with torch.no_grad():
        for norm in norms(model):
            norm.weight[::3] *= -1
    gamma = gathered(model).detach().requires_grad_()
    penalty_by_hand(name, gamma).backward()
    torch.testing.assert_close(made(name, model, 1.0).pull(gamma.detach()), gamma.grad, rtol=1e-4, atol=1e-6)


def test_polarization_is_that_of_the_paper() -> None:
    """Equation (2) on 0 <= γ <= a, with t: the lower group goes down, the upper one up."""
    model = nn.BatchNorm2d(6)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.01, 0.02, 0.1, 0.7, 0.9, 1.5]))
    gamma = model.weight.detach().clone().requires_grad_()
    (0.75 * gamma.sum() - (gamma - gamma.mean()).abs().sum()).backward()
    pull = bnprune.GammaPolarization(model, 1.0, t=0.75).pull(gamma.detach())
    torch.testing.assert_close(pull[:5], gamma.grad[:5])
    assert pull[:3].tolist() == pytest.approx([1.75] * 3)
    assert pull[3:].tolist() == pytest.approx([-0.25, -0.25, 0.0])  # the last is above a = 1: not pushed any further


@pytest.mark.parametrize("strength", [0.05, 0.4, 3.0])
def test_group_lasso_is_the_proximal_step_in_closed_form(strength: float) -> None:
    """The minimiser of ½‖x - γ‖² + τ Σ √|g|·‖x_g‖ is γ_g·max(0, 1 - τ√|g| / ‖γ_g‖)."""
    model = residual()
    gamma = gathered(model).detach().clone()
    bnprune.GammaGroupLasso(model, strength, IMAGE, gain=2.0).shrink(0.5)
    expected = gamma.clone()
    for first, second in [*((i, 20 + i) for i in range(8)), *((i, i) for i in range(8, 20))]:
        members = sorted({first, second})
        norm, root = gamma[members].norm(), len(members) ** 0.5
        expected[members] *= max(0.0, 1 - 0.5 * 2.0 * strength * root / norm.item())
    torch.testing.assert_close(gathered(model).detach(), expected)
    if strength == 3.0:
        assert not gathered(model).any()


def test_group_lasso_at_and_near_zero() -> None:
    model = residual()
    with torch.no_grad():
        norms(model)[0].weight[:3] = torch.tensor([0.0, 1e-30, 1e-3])
        norms(model)[2].weight[:3] = torch.tensor([0.0, -1e-30, 0.0])
    penalty = bnprune.GammaGroupLasso(model, 0.01, IMAGE)
    assert penalty.pull(gathered(model).detach()).abs().max() <= 2**0.5
    penalty.shrink(1.0)
    for norm in (norms(model)[0], norms(model)[2]):
        assert not norm.weight[:3].any()
    assert gathered(model).isfinite().all()


def test_penalties_over_the_graph_leave_channels_alone_that_must_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
    example = torch.zeros(1, 3, 4, 4)
    for penalty in (bnprune.GammaGroupLasso(model, 0.1, example), bnprune.GammaMacWeighted(model, 0.1, example)):
        pull = penalty.pull(torch.ones(10))
        assert (pull[:4] > 0).all()
        assert not pull[4:].any()  # an output of the network
    with pytest.raises(bnprune.PruningError, match="no BatchNorm channel of the network can be removed"):
        bnprune.GammaGroupLasso(model[2:], 0.1, torch.zeros(1, 4, 4, 4))


def test_gates_take_groups_apart() -> None:
    together = bnprune.GammaGroupLasso(residual(), 0.1, IMAGE).groups.sizes
    apart = bnprune.GammaGroupLasso(residual(), 0.1, IMAGE, coupling="gates").groups.sizes
    assert together.tolist() == [2] * 8 + [1] * 12 + [2] * 8
    assert apart.tolist()[20:] == [1] * 8


# -- the loop against one by hand -------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "decoupled": {"optimizer": "adamw", "lr": 0.01},
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scale_factors_move_as_in_a_hand_written_loop(name: str, options: dict) -> None:
    """Mean gradient of the window, clipped, then λ·∇R once for SGD; after the step for Adam and proximal forms."""
    config = OptimisationConfig(**{"epochs": 1, "lr": 0.05, "clip_norm": 0.5, "nesterov": False, **options})
    work = TrainingJob(data(), 8, config, CPU, seed=7)
    state = begin(residual(), work)
    sparsity = SparsityConfig(penalty=name, lambda_=0.2)
    penalty, _ = make_penalty(state.model, config, sparsity, work.updates_per_epoch, example_inputs=IMAGE)
    train(state, work, penalty, Recorder(), lambda: False)
    model = by_hand(name, residual(), config, 0.2)
    close = {"rtol": 2e-2, "atol": 2e-3} if config.precision != "fp32" else {"rtol": 1e-4, "atol": 2e-6}
    torch.testing.assert_close(gathered(state.model), gathered(model), **close)
    assert (gathered(model) - gathered(by_hand(name, residual(), config, 0.0))).abs().max() > 0.003  # the test can fail


def by_hand(name: str, model: nn.Module, config: OptimisationConfig, strength: float) -> nn.Module:
    model.train()
    sgd = config.optimizer == "sgd"
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
              {"params": plain, "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.SGD(groups, config.lr, momentum=0.9) if sgd else torch.optim.AdamW(groups, config.lr)
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
    images, labels = data().train.images, data().train.labels
    pixels = (images.float() - 127.5) / (0.25 * 255)
    batches = epoch_order(44, 8, 7, 0)
    windows = [batches[first : first + config.accumulate] for first in range(0, len(batches), config.accumulate)]
    for done, window in enumerate(windows):
        lr = learning_rate(config, done, len(windows))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        for batch in window:
            torch.manual_seed(combined_seed(7, 0, 0))
            with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
                loss = F.cross_entropy(model(pixels[batch]), labels[batch])
            (loss / len(window)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if sgd and name not in STEPPED:
            (strength * penalty_by_hand(name, gathered(model))).backward()
        optimizer.step()
        if not sgd or name in STEPPED:
            pull_by_hand(name, model, lr * strength * (10 if sgd else 1))
    return model


def pull_by_hand(name: str, model: nn.Module, far: float) -> None:
    gamma = gathered(model).detach().requires_grad_()
    penalty_by_hand(name, gamma).backward()
    moved = gamma.detach() - far * gamma.grad
    moved[moved * gamma.detach() < 0] = 0.0
    with torch.no_grad():
        for norm, values in zip(norms(model), moved.split([8, 12, 8]), strict=True):
            norm.weight.copy_(values)


# -- two ranks --------------------------------------------------------------------------------------------------------


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name in (*PENALTIES, "steered"):
        torch.save(on_two_ranks(name, rank), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def on_two_ranks(name: str, rank: int | None) -> torch.Tensor:
    """γ after 6 steps; each rank has its half of the images. With no rank: both halves in one process."""
    model = residual()
    config = OptimisationConfig(epochs=1, momentum=0.9)
    steered = name == "steered"
    sparsity = SparsityConfig(target=0.5) if steered else SparsityConfig(penalty=name, lambda_=0.02)
    penalty, _ = make_penalty(model, config, sparsity, 6, example_inputs=IMAGE)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    wrapped = model if rank is None else DistributedDataParallel(model)
    torch.manual_seed(1)
    halves = torch.randn(6, 2, 4, 3, 8, 8)
    for step, both in enumerate(halves):
        optimizer.zero_grad()
        for half in both if rank is None else both[rank : rank + 1]:
            (wrapped(half).square().mean() / (2 if rank is None else 1)).backward()
        penalty.at(step)
        penalty.add_gradients()
        optimizer.step()
        penalty.shrink(0.1)
    return gathered(model).detach()


def test_two_ranks_move_scale_factors_alike(tmp_path: Path) -> None:
    multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=2)
    for name in (*PENALTIES, "steered"):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, on_two_ranks(name, None), rtol=1e-4, atol=1e-5, msg=name)


# -- λ over time ------------------------------------------------------------------------------------------------------


def test_schedules_of_lambda() -> None:
    def factors(**options: object) -> list[float]:
        return factors_of(SparsityConfig(**options), np.arange(10), 10).tolist()

    assert factors() == [1.0] * 10
    assert factors(schedule="warmup", schedule_share=0.3) == [0.0] * 3 + [1.0] * 7
    assert factors_of(SparsityConfig(schedule="warmup"), np.arange(1), 1) == [1.0]  # or no penalty could move anything
    assert factors(schedule="ramp", schedule_share=0.4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


@pytest.mark.parametrize("name", ["l1", "l1-proximal"])
@pytest.mark.parametrize("schedule", ["constant", "warmup", "ramp"])
def test_a_schedule_moves_scale_factors_as_far_as_the_budget_says(name: str, schedule: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    steps = 400
    config = OptimisationConfig(epochs=1, lr=0.1, momentum=0.9, schedule="constant")
    sparsity = SparsityConfig(penalty=name, lambda_=2e-3, schedule=schedule, schedule_share=0.5)
    penalty, budget = make_penalty(model, config, sparsity, steps)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    halfway = 0.0
    for step in range(steps):
        model[0].weight.grad = torch.zeros(1)
        penalty.at(step)
        penalty.add_gradients()
        optimizer.step()
        penalty.shrink(0.1)
        if step == steps // 2 - 1:
            halfway = 2.0 - model[0].weight.item()
    moved = {"constant": (0.4, 0.8), "warmup": (0.0, 0.4), "ramp": (0.2, 0.6)}[schedule]
    assert (halfway, 2.0 - model[0].weight.item()) == pytest.approx(moved, rel=0.1)
    assert budget.travel == pytest.approx(moved[1], rel=0.01)


def test_auto_makes_up_for_what_a_schedule_misses() -> None:
    config, model = OptimisationConfig(epochs=50), residual()
    plain = make_penalty(model, config, SparsityConfig(travel=2.0), 100)[1]
    late = make_penalty(model, config, SparsityConfig(travel=2.0, schedule="warmup", schedule_share=0.5), 100)[1]
    assert late.strength > 1.5 * plain.strength
    assert late.travel == pytest.approx(plain.travel)


# -- λ steered --------------------------------------------------------------------------------------------------------


class Resisting(nn.Module):
    """Scale factors that a quadratic loss holds at places of their own, each with a stiffness of its own."""

    def __init__(self, count: int, stiffness: torch.Tensor) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, count, 1), nn.BatchNorm2d(count), nn.Conv2d(count, 1, 1)
        self.place = 0.2 + torch.rand(count, generator=torch.Generator().manual_seed(0))
        self.stiffness = stiffness
        nn.init.normal_(self.bn.weight, 0.5, 0.01, torch.Generator().manual_seed(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(x)))

    def loss(self) -> torch.Tensor:
        return 0.5 * (self.stiffness * (self.bn.weight - self.place).square()).sum()


@pytest.mark.parametrize(
    ("name", "target", "useless"),
    [
        *(("l1", target, useless) for target in (0.3, 0.7) for useless in (0.0, 0.5, 0.9)),
        *((name, 0.6, 0.5) for name in PENALTIES if name != "polarization"),
    ],
)
def test_the_wanted_share_dies_whatever_resists(name: str, target: float, useless: float) -> None:
    stiffness = torch.logspace(-4, -2.5, 100)
    stiffness[: int(100 * useless)] = 0.0
    model = Resisting(100, stiffness)
    config = OptimisationConfig(epochs=1)
    sparsity = SparsityConfig(penalty=name, target=target)
    penalty, _ = make_penalty(model, config, sparsity, 300, example_inputs=torch.zeros(2, 1, 4, 4))
    optimizer = torch.optim.SGD([model.bn.weight], 0.1, momentum=0.9, nesterov=True)
    for step in range(300):
        lr = optimizer.param_groups[0]["lr"] = learning_rate(config, step, 300)
        optimizer.zero_grad()
        model.loss().backward()
        penalty.at(step)
        penalty.add_gradients()
        optimizer.step()
        penalty.shrink(lr)
    below = (model.bn.weight.abs() < 0.01).float().mean().item()
    assert below == pytest.approx(target, abs=0.05)


def test_steering_is_a_function_of_step_and_scale_factors() -> None:
    """The law by hand: the lowest half, coupled channels by their largest; λ is distance over what is left."""
    model = residual()
    config = OptimisationConfig(epochs=10, momentum=0.5)
    sparsity = SparsityConfig(target=0.5, epsilon=0.07)
    penalty, budget = make_penalty(model, config, sparsity, 400, example_inputs=IMAGE)
    gamma = gathered(model).detach()
    stem, middle, last = gamma.split([8, 12, 8])
    rank = torch.cat([torch.maximum(stem, last), middle, torch.maximum(stem, last)])
    highest = np.sort(rank.numpy())[13]  # 14 of 28
    rates = [2 * learning_rate(config, step, 400) for step in range(4000)]
    usual = 5 * gamma.mean().item() / sum(rates)
    for step in (0, 1000, 3900):
        left = max(0.7 * sum(rates) - sum(rates[:step]), 0.02 * sum(rates))
        strength = min(max(4 * highest / left, usual), 0.1)
        expected = torch.where(rank <= highest, strength, torch.where(gamma > 0.35, usual, 0.0))
        torch.testing.assert_close(penalty.lambda_at(step, gamma), expected)
    until = sum(used < 0.7 * sum(rates) for used in itertools.accumulate(rates[:-1], initial=0.0))
    assert budget == TravelBudget(0.1, pytest.approx(sum(rates)), pytest.approx(gamma.mean().item()), 0.5, until)


@pytest.mark.parametrize("name", ["l1", "group-lasso"])
@pytest.mark.parametrize("stop_after", [1, 3, 4, 8])
def test_a_steered_training_resumes_to_the_same_bits(name: str, stop_after: int) -> None:
    work = TrainingJob(data(), 8, OptimisationConfig(epochs=3, accumulate=2), CPU, seed=7)

    def start(model: nn.Module):
        state = begin(model, work)
        sparsity = SparsityConfig(penalty=name, target=0.5)
        return state, make_penalty(model, work.config, sparsity, work.updates_per_epoch, example_inputs=IMAGE)[0]

    whole, penalty = start(residual())
    train(whole, work, penalty, Recorder(), lambda: False)
    state, penalty = start(residual())
    log = Recorder()
    with pytest.raises(bnprune.Interrupted):
        train(state, work, penalty, log, lambda: len(log.losses) == stop_after)
    resumed, penalty = start(residual())
    resumed.restore(copy.deepcopy(log.saved))
    train(resumed, work, penalty, Recorder(), lambda: False)
    assert same(whole.model, resumed.model)


def test_the_aim_of_auto() -> None:
    def budget(sparsity: dict, prune: dict | None = None) -> TravelBudget:
        config = PruneConfig(**prune) if prune is not None else None
        options = {"example_inputs": IMAGE, "prune": config}
        return make_penalty(residual(), OptimisationConfig(), SparsityConfig(**sparsity), 100, **options)[1]

    assert budget({}).target is None
    assert budget({}, {}).target is None
    assert budget({}, {"ratio": 0.6}).target == pytest.approx(0.6)
    assert budget({}, {"ratio": "auto"}).target is None
    assert budget({}, {"macs": 0.25}).target == pytest.approx(0.5)  # half of the widths cost a quarter
    assert budget({}, {"params": 0.36}).target == pytest.approx(0.4)
    assert budget({"target": 0.4}, {"macs": 0.25}).target == pytest.approx(0.4)
    assert budget({"travel": 4}, {"macs": 0.25}).target is None
    assert budget({}, {"latency_ms": 1.0}).target is None
    assert budget({"travel": 4}, {"ratio": 0.6}).target is None
    assert budget({"lambda": 1e-3}, {"ratio": 0.6}).target is None
    assert budget({"penalty": "polarization"}, {"ratio": 0.6}).target is None
    assert budget({"target": 0.4}, {"ratio": 0.6}).target == pytest.approx(0.4)


def test_a_training_too_short_for_its_target_is_told_before_it_starts() -> None:
    """At most a sixtieth of the scale factors per optimizer step; a longer training or a smaller target is fine."""

    def warning(epochs: int, target: float, **settings: object) -> str | None:
        config = OptimisationConfig(epochs=epochs, schedule="constant")
        sparsity = SparsityConfig(target=target, **settings)
        _, budget = make_penalty(residual(), config, sparsity, 20, example_inputs=IMAGE)
        return shortage(budget, config, sparsity)

    found = warning(2, 0.7)
    assert (found.code, found.level) == ("sparsity.too_fast", "warning")
    assert "bring 70% of all γ to zero within 28 optimizer steps" in found
    assert "Train for 4 epochs or more (train.epochs), or lower the target (train.sparsity.target)" in found
    assert warning(4, 0.7) is None
    assert warning(2, 0.4) is None
    assert warning(3, 0.6) is None
    assert "within 13 optimizer steps" in warning(3, 0.6, schedule="warmup", schedule_share=0.7)  # λ acts in 18 only


def test_a_training_too_short_for_a_latency_can_be_given_a_target() -> None:
    """No share of the channels follows from milliseconds, so the advice names the key that gives one."""
    config, sparsity, prune = OptimisationConfig(epochs=1), SparsityConfig(), PruneConfig(latency_ms=1.0)
    _, budget = make_penalty(residual(), config, sparsity, 1, example_inputs=IMAGE, prune=prune)
    assert "give train.sparsity.target" in shortage(budget, config, sparsity)


def test_what_the_cut_must_leave_alone_is_not_steered_to_zero() -> None:
    """28 scale factors: 2 x 8 of a stream, 12 of the branch. Excluded, capped, or with a ratio of their own."""

    def aimed(prune: dict) -> tuple[float, list[int]]:
        options = {"example_inputs": IMAGE, "prune": PruneConfig(ratio=0.5, **prune)}
        penalty, budget = make_penalty(residual(), OptimisationConfig(), SparsityConfig(), 100, **options)
        sizes = penalty.lambda_at.groups.sizes.split([8, 12, 8])
        return budget.target * 28, [int((part > 0).sum()) for part in sizes]

    stem, middle, _ = (name for name, module in residual().named_modules() if isinstance(module, nn.BatchNorm2d))
    assert aimed({}) == (pytest.approx(14), [8, 12, 8])
    assert aimed({"exclude": [middle]}) == (pytest.approx(8), [8, 0, 8])
    assert aimed({"exclude": [stem]}) == (pytest.approx(6), [0, 12, 0])
    assert aimed({"layer_ratios": {middle: 0.0}}) == (pytest.approx(8), [8, 0, 8])
    assert aimed({"cap": 0.25}) == (pytest.approx(2 * 2 + 3), [8, 12, 8])
    assert aimed({"min_channels": 6}) == (pytest.approx(2 * 2 + 6), [8, 12, 8])


def test_a_missed_target_says_so() -> None:
    aimed = TravelBudget(0.02, 1000.0, 0.5, 0.7)
    assert shortfall(aimed, 0.66) == ""
    assert shortfall(TravelBudget(0.02, 1000.0, 0.5), 0.1) == ""
    assert shortfall(aimed, 0.5).startswith("50% of γ ended near zero, the target was 70%. Train longer (train.epochs)")
    assert "50% of γ" not in shortfall(aimed, 0.9)
    assert str(aimed) == "λ is steered to bring 70% of all γ to zero"
    assert "too little to reach zero" in str(TravelBudget(0.02, 10.0, 0.5, 0.7))


def test_the_reach_is_the_sum_of_learning_rates() -> None:
    config = OptimisationConfig(epochs=3, warmup_epochs=1)
    assert TravelSchedule(config, SparsityConfig(), 20, 10.0).reach == pytest.approx(
        10 * sum(learning_rate(config, step, 20) for step in range(20 * config.epochs))
    )


def test_scale_factors_of_other_types_are_penalised_too() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(2).to(torch.bfloat16))
    for gamma in scale_factors(model):
        gamma.grad = torch.zeros_like(gamma)
    bnprune.GammaL1(model, 0.5).add_gradients()
    assert [gamma.grad.tolist() for gamma in scale_factors(model)] == [[0.5] * 3, [0.5] * 2]
    bnprune.GammaProximal(model, 0.5).shrink(0.5)
    assert [gamma.tolist() for gamma in scale_factors(model)] == [[0.75] * 3, [0.75] * 2]
