"""Threads that prune, train and run networks at the same time do not disturb each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.utils import _python_dispatch

import bnprune
from tests.nets import MOTIFS, Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 8, 8)
IMAGES = ("chain", "residual", "concat", "depthwise", "grouped", "squeeze_excitation")


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run every job in a thread of its own, at the same time; an error is a result like any other."""
    results: list[Any] = [None] * len(jobs)

    def run(position: int) -> None:
        try:
            results[position] = jobs[position]()
        except Exception as error:  # noqa: BLE001 - the comparison that follows reports it
            results[position] = error

    threads = [threading.Thread(target=run, args=(position,)) for position in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def drawing(n: Net, x: torch.Tensor) -> torch.Tensor:
    """Draw in eval mode, from torch's own generator."""
    return n.c(n.b(F.dropout(n.a(x), 0.2) + torch.rand(x.shape[0], 1, 1, 1)))


def networks(count: int) -> list[nn.Module]:
    """Build different networks one after the other, since building draws; every third one draws when it runs."""
    made = []
    for seed in range(count):
        net = MOTIFS[IMAGES[seed % len(IMAGES)]][0]()
        if seed % 3 == 2:
            net = Net(drawing, a=conv_bn(3, 8), b=conv_bn(8, 8), c=head(8))
        made.append(randomized(net, seed))
    return made


def pruned(models: list[nn.Module]) -> list[tuple[str, list[torch.Tensor]]]:
    results = [bnprune.prune(model, X, ratio=0.3 + 0.02 * i) for i, model in enumerate(models)]
    return [(result.plan.to_json(), list(result.model.state_dict().values())) for result in results]


def trained(net: nn.Module, steps: int) -> list[float]:
    """Losses of a training that draws from torch's own generator, in every step."""
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(net.train().parameters(), 0.05)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(4, 3, 8, 8), torch.randint(5, (4,))
        loss = F.cross_entropy(F.dropout(net(x), 0.1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_threads_prune_and_train_as_one_after_the_other() -> None:
    groups = [networks(9)[start::3] for start in range(3)]
    build = MOTIFS["residual"][0]
    learners = [randomized(build()) for _ in range(2)]
    learners[1].load_state_dict(learners[0].state_dict())
    expected = [*(pruned(group) for group in groups), trained(learners[0], 40)]
    got = together(*(lambda group=group: pruned(group) for group in groups), lambda: trained(learners[1], 40))
    for before, now in zip(expected[:3], got[:3], strict=True):
        assert not isinstance(now, Exception), now
        assert [plan for plan, _ in now] == [plan for plan, _ in before]
        assert all(map(torch.equal, [t for _, ts in now for t in ts], [t for _, ts in before for t in ts]))
    assert got[3] == expected[3]
    assert torch.get_default_dtype() == torch.float32


def test_nothing_of_the_process_changes_while_a_network_is_pruned() -> None:
    """A thread looks at what other code sees, at every call of the network's own code."""
    seen = set()

    def look() -> None:
        net = nn.Linear(2, 2)
        seen.add((
            torch.get_default_dtype(), net(torch.ones(2)).dtype, torch.is_grad_enabled(), torch.get_num_threads(),
            len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks),
            _python_dispatch.is_in_torch_dispatch_mode(), network.training, network.a[0].weight.is_meta,
            torch.equal(torch.get_rng_state(), state),
        ))  # fmt: skip

    def looking(n: Net, x: torch.Tensor) -> torch.Tensor:
        together(look)
        return n.c(n.a(x))

    network = randomized(Net(looking, a=conv_bn(3, 8), c=head(8))).train()
    nn.Linear(2, 2)
    state = torch.get_rng_state()
    together(look)
    bnprune.prune(network, X, ratio=0.5, fold_bias=True)
    before = torch.get_rng_state()
    assert len({facts[:-1] for facts in seen}) == 1, seen
    assert len(before) == len(state)


def test_a_network_runs_in_one_thread_while_another_prunes_it() -> None:
    network = randomized(MOTIFS["residual"][0]()).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(x)

    def serve() -> bool:
        with torch.no_grad():
            return all(torch.equal(network(x), expected) for _ in range(200))

    plans = [bnprune.prune(network, X, ratio=0.4).plan.to_json()] * 2
    first, second, served = together(
        lambda: bnprune.prune(network, X, ratio=0.4).plan.to_json(),
        lambda: bnprune.prune(network, X, ratio=0.4).plan.to_json(),
        serve,
    )
    assert [first, second] == plans
    assert served is True


def test_other_threads_draw_on_while_networks_that_draw_are_pruned() -> None:
    network = randomized(Net(drawing, a=conv_bn(3, 8), b=conv_bn(8, 8), c=head(8)))

    def numbers() -> torch.Tensor:
        return torch.stack([torch.rand(()) for _ in range(3000)])

    torch.manual_seed(3)
    expected = numbers()
    torch.manual_seed(3)
    got, *others = together(numbers, *[lambda: bnprune.prune(network, X, ratio=0.5).report.ratio_realised] * 2)
    assert others == [0.5, 0.5]
    assert torch.equal(got, expected)


def test_modules_that_run_in_a_thread_of_the_network_are_named() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        return n.c(together(lambda: n.b(n.a(x)))[0])

    network = randomized(Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), c=head(8)))
    with pytest.raises(bnprune.TraceError, match=r"^a: the module runs in another thread .*without a thread"):
        bnprune.prune(network, X, ratio=0.5)
