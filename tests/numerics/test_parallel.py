"""Two processes on the CPU against one: what they compute together is what one computes alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bnprune
from bnprune.config.schema import OptimisationConfig
from bnprune.data import MemorySplit, Splits
from bnprune.data.memory import Augmentation
from bnprune.runs.training_stage import require_equal
from bnprune.training.distributed.ddp import average_statistics, wrap
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.distributed.sync_bn import SyncedBatchNorm
from bnprune.training.evaluate import evaluate
from bnprune.training.loop import TrainingJob, begin, train
from bnprune.training.penalties.gamma import GammaL1
from tests.nets import conv_bn, head
from tests.ranks import in_processes

CPU = torch.device("cpu")
SETTINGS = {"epochs": 2, "lr": 0.05, "accumulate": 2, "clip_norm": 0.5, "label_smoothing": 0.1}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(conv_bn(3, 6), conv_bn(6, 6), head(6))


def data() -> Splits:
    """45 images, augmented: two processes cannot evaluate equal parts of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (45, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels, mean, std = torch.arange(45) % 5, torch.full((3,), 0.5), torch.full((3,), 0.25)
    train = MemorySplit(images, labels, mean, std, Augmentation(1, flip=True))
    plain = MemorySplit(images, labels, mean, std)
    return Splits(train, plain, plain, (3, 8, 8), 5)


class Notes:
    """A log that keeps the epochs, and the last state."""

    def __init__(self) -> None:
        self.epochs: list[Any] = []
        self.saved: dict[str, Any] = {}

    def on_step(self, *_: Any) -> None:
        pass

    def on_start(self, validation: Any, _: Any) -> None:
        pass

    def on_epoch(self, record: Any, _: Any) -> None:
        self.epochs.append((record.train, record.validation))

    def wants_state(self) -> bool:
        return False

    def on_state(self, saved: dict[str, Any]) -> None:
        self.saved = copy.deepcopy(saved)


def trained(
    processes: Processes, settings: dict[str, Any], stop: int = -1, saved: Any = None, model: Any = None, batch: int = 8
) -> Any:
    """Train; return the weights, the calls of the log, and the state."""
    model = model or network()
    task = TrainingJob(data(), batch, OptimisationConfig(**settings), CPU, 7, processes)
    state, log, count = begin(model, task), Notes(), 0
    if saved is not None:
        state.restore(saved, processes)

    def stopping() -> bool:
        nonlocal count
        count += 1
        return count == stop and processes.rank == 1  # not the leader: all must stop

    try:
        train(state, task, GammaL1(model, 1e-3), log, stopping)
    except bnprune.Interrupted:
        assert stop > 0
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, log.epochs, log.saved


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


def test_two_processes_with_half_the_batch_each_match_one() -> None:
    """With an average of the weights, too, whose statistics are taken anew from small batches."""
    alone, epochs, _ = trained(SINGLE_PROCESS, SETTINGS | {"ema": 0.5})
    settings = SETTINGS | {"ema": 0.5, "sync_bn": True}
    (first, first_epochs, _), (second, second_epochs, _) = in_processes(trained, settings)
    assert equal(first, second)
    for name in alone:
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(alone[name]), rtol=1e-4, atol=1e-6, msg=name)
    assert first_epochs == second_epochs
    for mine, theirs in zip(epochs, first_epochs, strict=True):
        for one, two in zip(mine, theirs, strict=True):
            assert one.count == two.count
            assert one.value == two.value
            assert one.loss == pytest.approx(two.loss, rel=1e-4)


def resumed(processes: Processes) -> Any:
    whole, _, _ = trained(processes, SETTINGS)
    _, _, saved = trained(processes, SETTINGS, stop=2)
    assert saved["own"][processes.rank]["progress"]["step"] == 4
    differ = [not torch.equal(a, b) for a, b in zip(*(own["buffers"].values() for own in saved["own"]), strict=True)]
    again, _, _ = trained(processes, SETTINGS, saved=saved)
    return whole, again, any(differ)


def test_without_shared_statistics_all_end_with_the_same_network_and_resume_exactly() -> None:
    """Stopped in the middle of an epoch by the one that does not lead; by then, running statistics differ."""
    (whole, again, differ), (other, other_again, _) = in_processes(resumed)
    assert differ
    assert equal(whole, other)
    assert equal(again, whole)
    assert equal(other_again, whole)


def wide_and_resumed(processes: Processes) -> Any:
    settings = SETTINGS | {"accumulate": 1, "epochs": 1}
    whole, _, _ = trained(processes, settings, model=wide(), batch=6)
    _, _, saved = trained(processes, settings, stop=2, model=wide(), batch=6)
    again, _, _ = trained(processes, settings, saved=saved, model=wide(), batch=6)
    return equal(whole, again)


def wide() -> nn.Module:
    """Gradients that do not fit into one of DDP's first buckets."""
    torch.manual_seed(3)
    return nn.Sequential(conv_bn(3, 160), *(conv_bn(160, 160) for _ in range(4)), head(160))


def test_three_processes_add_gradients_in_the_same_order_after_a_resume() -> None:
    """Two would not show it: a + b is b + a."""
    assert in_processes(wide_and_resumed, size=3) == [True] * 3


def test_a_state_of_two_processes_is_refused_by_one() -> None:
    state = begin(network(), TrainingJob(data(), 8, OptimisationConfig(epochs=1), CPU, 7))
    saved = state.to_dict()
    saved["own"] *= 2
    with pytest.raises(bnprune.ConfigError, match=r"stopped in 2 process.*got 1"):
        state.restore(saved)


class Idle(nn.Module):
    """An auxiliary head that the scores know nothing of, like GoogLeNet's; and BatchNorm over (N, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = conv_bn(3, 6), nn.BatchNorm1d(6), head(6)
        self.aux = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x)
        x = self.norm(x.flatten(2)).view_as(x)
        return self.head(x), self.aux(x.mean((2, 3)))


def pieces(processes: Processes) -> Any:
    """What the parts do, each against torch in one process on everything."""
    torch.manual_seed(0)
    model, whole = Idle(), torch.randn(8, 3, 8, 8)
    reference = copy.deepcopy(model)
    own = whole.chunk(processes.size)[processes.rank]
    parallel = wrap(model, processes, lambda network: network(whole[:2])[0].square().mean())
    for _ in range(2):  # DDP complains in the second step about parameters without gradients
        model.zero_grad()
        with SyncedBatchNorm(processes):
            parallel(own)[0].square().mean().backward()
    reference.train()
    reference(whole)
    reference.zero_grad()
    reference(whole)[0].square().mean().backward()
    close = {
        name: torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True)
        if q.grad is not None
    }
    statistics = {
        name: torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        for (name, a), b in zip(model.named_buffers(), reference.buffers(), strict=True)
    }
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(1.0 + processes.rank)
    norm.running_var.fill_(2.0 * processes.rank)
    average_statistics(norm, processes)
    score = evaluate(reference, data().test, CPU, 16, processes)
    return (
        close,
        statistics,
        (norm.running_mean.tolist(), norm.running_var.tolist()),
        score,
        evaluate(reference, data().test, CPU),
    )


def test_gradients_statistics_and_scores() -> None:
    for close, statistics, averages, score, alone in in_processes(pieces):
        assert len(close) > 5
        assert all(close.values()), close
        assert all(statistics.values()), statistics
        assert averages == ([1.5, 1.5], [1.0, 1.0])
        assert (score.value, score.count) == (alone.value, 45)
        assert score.loss == pytest.approx(alone.loss, rel=1e-6)


def compared(processes: Processes) -> str:
    model = network()
    require_equal(processes, model, ())
    if processes.rank == 1:
        with torch.no_grad():
            model[0][0].weight[0, 0, 0, 0] += 1e-7
    try:
        require_equal(processes, model, ())
    except bnprune.BnpruneError as error:
        return str(error)
    return "equal"


def test_processes_that_hold_other_networks_do_not_train_together() -> None:
    for message in in_processes(compared):
        assert message.startswith("processes 1 hold another network than process 0.")
