"""Averaged weights, mixed images and distillation against hand-written arithmetic."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.config.schema import OptimisationConfig
from bnprune.data.splits import combined_seed
from bnprune.training.distill import as_teacher, divergence
from bnprune.training.ema import Average
from bnprune.training.evaluate import evaluate
from bnprune.training.loop import TrainingJob, begin, epoch_order, train
from bnprune.training.mixup import make_mix
from bnprune.training.penalties.gamma import GammaL1, GammaProximal
from bnprune.training.state import State
from tests.nets import conv_bn, head, norms, perceptron
from tests.numerics.test_training import CPU, Recorder, data, run, same, task, tiny

# -- the average of the weights ----------------------------------------------------------------------------------------


class Weights(Recorder):
    """Keeps the raw and the averaged weights after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[torch.Tensor]] = []
        self.averages: list[list[torch.Tensor]] = []

    def on_step(self, state: State, steps: int, loss: float) -> None:
        super().on_step(state, steps, loss)
        self.weights.append([p.detach().clone() for p in state.model.parameters()])
        self.averages.append([p.detach().clone() for p in state.network.parameters()])


def test_the_average_is_that_of_a_hand_written_loop() -> None:
    """15 updates; the decay is (1 + n) / (10 + n) until that reaches 0.4."""
    model, work, log = tiny(), task(ema=0.4), Weights()
    state = begin(model, work)
    train(state, work, GammaL1(model, 1e-2), log, lambda: False)
    assert len(log.weights) == 15
    average = log.weights[0]
    for updates, (weights, averages) in enumerate(zip(log.weights, log.averages, strict=True)):
        decay = min(0.4, (1 + updates) / (10 + updates)) if updates else 0.0
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
        for got, expected in zip(averages, average, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    assert not same(state.network, state.model)


def test_the_average_changes_nothing_about_the_training() -> None:
    assert same(run(task())[0].model, run(task(ema=0.9))[0].model)


def test_one_average_per_optimizer_step() -> None:
    """With 5 micro-batches per epoch, in windows of 2, 2 and 1."""
    state, _ = run(task(ema=0.9, accumulate=2, epochs=2))
    assert state.average.state_dict()["n_averaged"] == 6


def test_statistics_of_averaged_weights_are_those_of_the_batches_it_sees() -> None:
    """The mean over batches of the mean and the unbiased variance of what enters the first BatchNorm."""
    state, _ = run(task(ema=0.5, epochs=1))
    conv, norm = state.network[0][0], state.network[0][1]
    split, means, variances = data().train, [], []
    pixels = (split.images.float() - 127.5) / (0.25 * 255)
    for batch in epoch_order(44, 8, 7, 0):
        values = conv(pixels[batch]).detach().transpose(0, 1).flatten(1)
        means.append(values.mean(1))
        variances.append(values.var(1))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-6)


def test_the_average_is_what_is_validated() -> None:
    state, log = run(task(ema=0.9))
    assert evaluate(state.network, data().validation, CPU) == log.epochs[-1].validation
    assert evaluate(state.model, data().validation, CPU) != log.epochs[-1].validation


def test_a_channel_that_is_exactly_zero_is_so_in_the_average() -> None:
    model, work = tiny(), task(ema=0.9, epochs=6)
    state = begin(model, work)
    train(state, work, GammaProximal(model, 1.0, gain=10), Recorder(), lambda: False)
    raw, averaged = (torch.cat([norm.weight.detach() for norm in norms(m)]) for m in (state.model, state.network))
    assert (raw == 0).any()
    assert torch.equal(raw == 0, averaged == 0)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 8])
def test_the_average_is_resumed_exactly(stop_after: int) -> None:
    work = task(ema=0.9, mixup=0.4, cutmix=1.0, accumulate=2)
    whole, log = run(work)
    model = tiny()
    state, first = begin(model, work), Recorder()
    with pytest.raises(bnprune.Interrupted):
        train(state, work, GammaL1(model, 1e-2), first, lambda: len(first.losses) == stop_after)
    again = nn.Sequential(conv_bn(3, 6), nn.Dropout(0.2), conv_bn(6, 6), head(6))
    resumed, second = begin(again, work), Recorder()
    resumed.restore(first.saved)
    train(resumed, work, GammaL1(again, 1e-2), second, lambda: False)
    assert same(whole.model, again)
    assert same(whole.network, resumed.network)
    assert first.losses + second.losses == log.losses


def test_an_average_leaves_networks_without_scale_factors_alone() -> None:
    model = nn.Linear(3, 2)
    average = Average(model, 0.5)
    average.update(model)
    assert same(average.network, model)


# -- mixed images ------------------------------------------------------------------------------------------------------


def mixed_batch(seed: int, **options: float):
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.manual_seed(seed)
    return images, labels, *make_mix(OptimisationConfig(**options), 5)(images, labels)


def share_of(labels: torch.Tensor, targets: torch.Tensor) -> float:
    """What is left of an image's own class; the second one has a partner of another class."""
    return targets[1, labels[1]].item()


def expected_targets(labels: torch.Tensor, share: float) -> torch.Tensor:
    own, partner = (F.one_hot(one, 5).float() for one in (labels, labels.roll(1)))
    return share * own + (1 - share) * partner


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_pairs_of_images_and_their_labels(seed: int) -> None:
    images, labels, got, targets = mixed_batch(seed, mixup=1.0)
    share = share_of(labels, targets)
    assert 0 < share < 1
    torch.testing.assert_close(got, share * images + (1 - share) * images.roll(1, 0))
    torch.testing.assert_close(targets, expected_targets(labels, share))


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_pastes_a_rectangle_and_counts_its_pixels(seed: int) -> None:
    images, labels, got, targets = mixed_batch(seed, cutmix=1.0)
    share = share_of(labels, targets)
    pasted = got == images.roll(1, 0)
    assert torch.equal(torch.where(pasted, images.roll(1, 0), images), got)
    assert (~pasted).float().mean() == pytest.approx(share, abs=1e-6)
    torch.testing.assert_close(targets, expected_targets(labels, share))


def test_with_both_every_batch_gets_one_of_them() -> None:
    kinds = set()
    for seed in range(20):
        images, _, got, _ = mixed_batch(seed, mixup=1.0, cutmix=1.0)
        taken = (got == images) | (got == images.roll(1, 0))
        kinds.add("cutmix" if taken.all() else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_without_either_batches_stay_as_they_are() -> None:
    images, labels, got, targets = mixed_batch(0)
    assert got is images
    assert targets is labels


def test_the_loss_of_mixed_images_is_that_of_both_labels() -> None:
    """Zhang et al. 2018: share·CE(own) + (1-share)·CE(partner), here with label smoothing and spare class scores."""
    torch.manual_seed(3)
    model = nn.Sequential(conv_bn(3, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7))
    work = task(mixup=0.7, label_smoothing=0.1, epochs=1)
    before = copy.deepcopy(model).train()
    _, log = run(work, model)
    split, batch = data().train, epoch_order(44, 8, 7, 0)[0]
    pixels, labels = (split.images[batch].float() - 127.5) / (0.25 * 255), split.labels[batch]
    torch.manual_seed(combined_seed(7, 0, 0))
    images, targets = make_mix(work.config, 5)(pixels, labels)
    logits = before(images)
    at = next(i for i in range(8) if labels[i] != labels[i - 1])
    share = targets[at, labels[at]].item()
    own, partner = (F.cross_entropy(logits, one, label_smoothing=0.1) for one in (labels, labels.roll(1)))
    assert log.losses[0] == pytest.approx((share * own + (1 - share) * partner).item(), rel=1e-5)


# -- distillation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_divergence_and_its_gradient_in_closed_form(temperature: float) -> None:
    """T²·Σ p·log(p / q); its gradient is T·(q - p) / N (Hinton et al. 2015, equation 2, times T²)."""
    student = torch.randn(6, 5, requires_grad=True)
    teacher = torch.randn(6, 5)
    p = (teacher / temperature).exp() / (teacher / temperature).exp().sum(1, keepdim=True)
    q = (student / temperature).exp() / (student / temperature).exp().sum(1, keepdim=True)
    loss = divergence(student, teacher, temperature)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, (temperature * (q - p) / 6).detach(), rtol=1e-4, atol=1e-6)


def test_a_training_with_a_teacher_against_a_hand_written_step() -> None:
    torch.manual_seed(11)
    dense = nn.Sequential(conv_bn(3, 9), head(9))
    before = copy.deepcopy(dense)
    config = OptimisationConfig(epochs=1, lr=0.05)
    work = TrainingJob(data(8), 8, config, CPU, seed=7, teacher=as_teacher(dense, CPU, 3.0, 0.6))
    model = tiny()
    log = Recorder()
    train(begin(model, work), work, None, log, lambda: False)
    split, batch = data(8).train, epoch_order(8, 8, 7, 0)[0]
    pixels, labels = (split.images[batch].float() - 127.5) / (0.25 * 255), split.labels[batch]
    student = tiny().train()
    torch.manual_seed(combined_seed(7, 0, 0))
    logits = student(pixels)
    p, q = F.softmax(before.eval()(pixels) / 3, 1), F.softmax(logits / 3, 1)
    loss = 0.4 * F.cross_entropy(logits, labels) + 0.6 * 9 * (p * (p / q).log()).sum(1).mean()
    assert log.losses == [pytest.approx(loss.item(), rel=1e-5)]
    loss.backward()
    for (name, after), start in zip(model.named_parameters(), student.parameters(), strict=True):
        decay = 5e-4 * start if start.dim() > 1 else 0.0
        stepped = start - 0.05 * 1.9 * (start.grad + decay)  # the first step of Nesterov's momentum 0.9
        torch.testing.assert_close(after.detach(), stepped.detach(), rtol=1e-4, atol=1e-6, msg=name)
    assert same(dense, before)  # statistics included
    assert all(p.grad is None for p in dense.parameters())


# -- torch.compile -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_training_is_the_same_but_for_rounding() -> None:
    """The names in the state dict are those of the network, too."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        state, log = run(task(compile=compiled, epochs=1), perceptron())
        found.append((state.model.state_dict(), log.losses))
    (plain, losses), (fast, fast_losses) = found
    assert list(fast) == list(plain) == list(perceptron().state_dict())
    assert fast_losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=1e-3, atol=1e-4)
