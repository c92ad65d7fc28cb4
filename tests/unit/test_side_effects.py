"""What pruning leaves as it was: modes, settings and random numbers, also where it is stopped or refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

import bnprune
from bnprune.channels.modules import module_stack, modules_by_name
from bnprune.channels.operator_mode import OperatorMode, _with_generator
from tests.nets import Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may leave threads behind: torch.compile's own, for one."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def model(between: Callable[..., Any] = lambda n, x: x, last: Callable[..., Any] = lambda y: y) -> Net:
    """Two layers, with something between them and something behind the last."""
    return randomized(
        Net(lambda n, x: last(n.c(n.b(between(n, n.a(x))))), a=conv_bn(3, 16), b=conv_bn(16, 8), c=head(8))
    )


def facts(network: nn.Module) -> list[Any]:
    """Everything that pruning might leave changed."""
    return [
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        _get_current_dispatch_mode(), random.getstate(), np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in network.modules()],
        [(id(t), t.requires_grad, t._version, t.tolist()) for t in (*network.parameters(), *network.buffers())],
    ]  # fmt: skip


def drawing(n: Net, x: torch.Tensor) -> torch.Tensor:
    """Draw from every generator there is."""
    random.random()
    np.random.rand()
    order = torch.randperm(x.shape[-1])
    return F.dropout(x, 0.1) * torch.rand(1) + torch.randn(1, generator=n.own) + 0 * order.sum()


def branching(n: Net, x: torch.Tensor) -> torch.Tensor:
    """Run on real tensors, with detours."""
    return drawing(n, x) if x.mean() > -1e9 else x * 2


@pytest.mark.parametrize("between", [drawing, branching])
def test_no_generator_is_left_advanced(between: Callable[..., Any]) -> None:
    network = model(between)
    network.own = torch.Generator().manual_seed(1)
    before, own = facts(network), network.own.get_state()
    assert bnprune.prune(network, X, ratio=0.5, fold_bias=True).report.max_relative_error < 1e-12
    assert facts(network) == before
    assert torch.equal(network.own.get_state(), own)


def test_every_random_operator_takes_a_generator_of_ours() -> None:
    aten = torch.ops.aten
    for func in (aten.rand.default, aten.randint.low, aten.randn_like.default, aten.randperm.default):
        found = _with_generator(func)
        assert found is not None
        assert [a.name for a in found._schema.arguments if a.name != "generator"] == [
            a.name for a in func._schema.arguments
        ]
    assert _with_generator(aten.bernoulli_.float) is aten.bernoulli_.float


class Stopped(nn.Module):
    """Raise KeyboardInterrupt when it runs for the n-th time, whatever copy of it."""

    calls = 0
    at = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return F.dropout(x, 0.1) * random.random() + float(np.random.rand())


@pytest.mark.parametrize("way", [lambda n, x: n.stop(x), lambda n, x: n.stop(x) if x.mean() > -1e9 else x])
def test_ctrl_c_leaves_everything_as_it_was(way: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network = model(way)
    network.stop = Stopped()
    network.train()
    network.b.eval()
    network.a[0].requires_grad_(False)
    before = facts(network)
    monkeypatch.setattr(Stopped, "calls", 0)
    bnprune.prune(network, X, ratio=0.5)
    total = Stopped.calls
    assert total > 5
    for at in range(1, total + 1):
        monkeypatch.setattr(Stopped, "calls", 0)
        monkeypatch.setattr(Stopped, "at", at)
        with pytest.raises(KeyboardInterrupt):
            bnprune.prune(network, X, ratio=0.5)
        assert facts(network) == before


def test_inputs_changed_in_place_by_the_network_stay_as_they_were() -> None:
    x = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    network = randomized(Net(lambda n, x: n.c(n.a(x.mul_(2))) if x.sum() > 0 else x, a=conv_bn(3, 16), c=head(16)))
    bnprune.prune(network.double(), x, ratio=0.5)
    assert torch.equal(x, torch.ones_like(x))


def in_inference_mode(n: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        x = n.a(x)
        x[:, :, :2] *= 2
        return n.c(n.b(F.linear(F.dropout(x, 0.1, n.training), torch.eye(8))))


@pytest.mark.parametrize("outer", [nullcontext, torch.no_grad, torch.inference_mode])
def test_pruning_in_inference_mode_is_like_any_other(outer: Callable[[], AbstractContextManager[Any]]) -> None:
    with outer():
        network = randomized(Net(in_inference_mode, a=conv_bn(3, 16), b=conv_bn(16, 8), c=head(8)))
        result = bnprune.prune(network, torch.zeros(1, 3, 8, 8), ratio=0.5)
    assert result.report.ratio_realised == 0.5
    assert not result.report.refusals
    plain = Net(lambda n, x: n.c(n.b(n.a(x))), **dict(result.model.named_children()))
    plain.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def legacy(n: Net, x: torch.Tensor) -> torch.Tensor:
    kept = torch.Tensor(x.shape)
    kept[:, :] = x
    return kept.mul_(1.1) + torch.Tensor([0.3])


CONSTANTS = {
    "tensor": lambda n, x: x * torch.tensor(0.1) + torch.tensor([0.3]),
    "as_tensor": lambda n, x: x * torch.as_tensor(0.1),
    "linspace": lambda n, x: (x * torch.linspace(0, 1, 8)).sin() + torch.arange(0, 0.8, 0.1).exp(),
    "product of constants": lambda n, x: x @ (torch.ones(8, 8) / 7 @ torch.eye(8)).softmax(1),
    "integers divided": lambda n, x: x * (torch.arange(8) / 7).sqrt(),
    "integers from data": lambda n, x: x * ((x > 0).sum(3, keepdim=True) / 7).sqrt(),
    "default type": lambda n, x: (
        x.to(torch.get_default_dtype()) * torch.zeros(1, dtype=torch.get_default_dtype()).cos()
    ),
    "numpy": lambda n, x: x @ torch.from_numpy(np.eye(8, dtype=np.float32) / 3),
    "legacy constructor": legacy,
    "complex": lambda n, x: torch.fft.ifft2(torch.fft.fft2(x.double()).to(torch.complex64) * 1j).imag,
    "half": lambda n, x: (x.half() * torch.ones(1, dtype=torch.bfloat16)).float(),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_proof_is_in_float64_whatever_type_constants_have(name: str) -> None:
    """Two networks whose sums are ordered differently differ by 1e-16 in float64, and by 1e-7 in float32."""
    result = bnprune.prune(model(CONSTANTS[name]), X, ratio=0.3)
    assert result.report.max_relative_error < 1e-13


# -- what is refused --------------------------------------------------------------------------------------------------


REPEATED = r"on equal inputs, the forward pass .* each time \(it draws from random or numpy, or reads a clock"


def test_numbers_from_nowhere_are_named() -> None:
    clock = _Clock()
    for draw in (lambda n, x: x * np.random.default_rng().random(), lambda n, x: x * clock.tick()):
        with pytest.raises(bnprune.TraceError, match=REPEATED):
            bnprune.prune(model(draw), X, ratio=0.5)
    drawn = lambda n, x: x + torch.from_numpy(np.random.default_rng().random((1, 1, 8, 8)))  # noqa: E731
    with pytest.raises(bnprune.ForwardError, match=REPEATED):
        bnprune.prune(model(drawn), X, ratio=0.5)


class _Clock:
    now = 0

    def tick(self) -> int:
        self.now += 1
        return self.now


def test_python_numbers_repeat_where_there_is_one_thread_and_are_named_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = model(lambda n, x: x * random.random())
    assert bnprune.prune(network, X, ratio=0.5).report.ratio_realised == 0.5
    monkeypatch.undo()
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(bnprune.TraceError, match=REPEATED):
            bnprune.prune(network, X, ratio=0.5)
    finally:
        end.set()
        other.join()


def test_a_product_with_nan_is_the_same_number_every_time() -> None:
    network = model(lambda n, x: torch.where((x * float("nan")).isnan(), x, x * 2))
    assert not bnprune.prune(network, X, ratio=0.5).report.refusals
    with pytest.raises(bnprune.ForwardError, match="its outputs are not finite"):
        bnprune.prune(model(lambda n, x: x * float("nan")), X, ratio=0.5)


@pytest.mark.parametrize("last", [lambda y: None, lambda y: (), lambda y: y[:0], lambda y: {"boxes": y[:, :0]}])
def test_a_network_that_returns_nothing_is_refused(last: Callable[..., Any]) -> None:
    with pytest.raises(bnprune.TraceError, match=r"returns no tensor|its outputs are empty"):
        bnprune.prune(model(last=last), X, ratio=0.5)


def test_what_has_no_values_is_refused() -> None:
    with torch.device("meta"):
        meta_slim = nn.Sequential(conv_bn(3, 8), head(8))
    with pytest.raises(bnprune.PruningError, match=r"^0\.0\.weight: .* meta device.*to_empty"):
        bnprune.prune(meta_slim, X, ratio=0.5)
    with pytest.raises(bnprune.ConfigError, match="example inputs are on the meta device"):
        bnprune.prune(model(), X.to("meta"), ratio=0.5)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_the_default_device_does_not_matter(device: str) -> None:
    network = model(lambda n, x: x[:, :, :4].repeat(1, 1, 2, 1) if x.mean() > 1e9 else x)
    making = model(lambda n, x: x + torch.zeros(1))
    expected = bnprune.prune(network, X, ratio=0.5, fold_bias=True).plan.to_json()
    torch.set_default_device(device)
    try:
        result = bnprune.prune(network, X, ratio=0.5, fold_bias=True)
        assert result.plan.to_json() == expected
        bnprune.compensate(network, result.model, result.plan, X)
        bnprune.apply(result.plan, network)
        if device == "meta":
            with pytest.raises(bnprune.ForwardError, match=r"End torch\.set_default_device\('meta'\)"):
                bnprune.prune(making, X, ratio=0.5)
    finally:
        torch.set_default_device(None)


class Lightning(nn.Module):
    """A LightningModule without a forward of its own, and with a trainer that is not there."""

    def __init__(self, use: str = "") -> None:
        super().__init__()
        self.net, self.use = model(), use

    @property
    def trainer(self) -> Any:
        raise RuntimeError("Lightning is not attached to a `Trainer`.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.use:
            return self.net(*args) * getattr(self, self.use).current_epoch
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Lightning,
            r"NotImplementedError: .*missing the required \"forward\" function\. Give the module whose forward",
        ),
        (
            lambda: Lightning("trainer"),
            r"RuntimeError: Lightning is not attached to a `Trainer`\. The network has to run",
        ),
        (
            lambda: Lightning("nothing"),
            r"AttributeError: .* no attribute 'nothing'\. The .* \(\(1, 3, 8, 8\) float32\)",
        ),
    ],
)
def test_what_the_network_itself_says_is_told(network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(bnprune.ForwardError, match=message) as caught:
        bnprune.prune(network(), X, ratio=0.5)
    assert "shape" not in str(caught.value)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fails = nn.Conv2d(3, 4, 3), nn.Conv2d(9, 4, 3)
        self.hooked, self.seen = nn.ReLU(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            self.fails(x)
        except RuntimeError:
            self.seen.append("failed")
        return self.hooked(self.conv(x))


def test_the_running_module_is_named_and_left_as_it_was() -> None:
    model = nn.Sequential(_Block())
    model[0].hooked.register_forward_hook(lambda *_: running.append(stack[-1]))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    running: list[str] = []

    class Recording(OperatorMode):
        def run_operator(self, func, args, kwargs):
            running.append(stack[-1])
            return super().run_operator(func, args, kwargs)

    with module_stack(modules_by_name(model)) as stack:
        with torch.no_grad(), Recording():
            model(X)
        assert stack == [""]
    assert list(dict.fromkeys(running)) == ["0.fails", "0.conv", "0.hooked", "0"]
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
