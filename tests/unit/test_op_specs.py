"""The table of operators: its names, and each kind of knowledge that an entry holds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bnprune
from bnprune.channels.ops.spec import _SPECS, POINTWISE, OpSpec, macs_of, numbers_in, spec_of, unknown
from bnprune.pruning.proof_forward import _with_batch_statistics
from tests.nets import Net, conv_bn, head, randomized

aten = torch.ops.aten
X = torch.zeros(1, 3, 8, 8)
OPERATORS = sorted(name for name in _SPECS if not name.startswith("bnprune"))


@pytest.mark.parametrize("name", OPERATORS)
def test_every_name_is_an_operator_of_the_installed_torch(name: str) -> None:
    """A misspelt name would never be looked up."""
    domain, _, rest = name.partition("::")
    if domain != "aten":
        pytest.importorskip(domain)
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, domain), packet, None)
    # the entry of `uniform` holds for `uniform_`, also if there is no `uniform`
    found = found or getattr(getattr(torch.ops, domain), f"{packet}_", None)
    assert found is not None
    assert not overload or overload in found.overloads()


def test_an_operator_is_looked_up_by_overload_by_name_and_by_tag() -> None:
    assert spec_of(aten.mean.dim) is not spec_of(aten.mean.default)
    assert spec_of(aten.add_.Tensor) is spec_of(aten.add.Scalar)
    assert spec_of(aten.fill_.Scalar) is not spec_of(aten.fill_.Tensor)
    assert spec_of(aten.tan.default) is _SPECS[POINTWISE]
    assert spec_of(aten._cdist_forward.default).labels is unknown


@pytest.mark.parametrize(
    ("op", "zeros", "args", "zero"),
    [
        (aten.relu_.default, [True], (), True),
        (aten.sigmoid.default, [True], (), False),
        (aten.mul.Tensor, [False, True], (), True),
        (aten.add.Tensor, [True, True], (), True),
        (aten.add.Tensor, [True, False], (), False),
        (aten.add.Scalar, [True], (None, 1.0), False),
        (aten.div.Tensor, [False, True], (), False),
        (aten.hardtanh.default, [True], (None, 0.0, 6.0), True),
        (aten.hardtanh.default, [True], (None, 1.0, 6.0), False),
        (aten.hardtanh.default, [True], (None,), True),
        (aten.constant_pad_nd.default, [True], (None, [1, 1], 0.5), False),
        (aten.constant_pad_nd.default, [True], (None, [1, 1]), True),
        (aten.cdist.default, [True, True], (), False),
    ],
    ids=str,
)
def test_where_zeros_stay_zeros(op, zeros, args, zero: bool) -> None:
    assert spec_of(op).gives_zero(zeros, args) is zero


@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "tanh", "neg", "abs", "sin", "sqrt", "expm1", "log1p", "erf"])
def test_functions_that_keep_zeros_do(name: str) -> None:
    assert _SPECS[f"aten::{name}"].keeps_zero == "first"
    function = getattr(torch, name, None) or getattr(torch.nn.functional, name)
    assert not function(torch.zeros(2)).any()


def test_numbers_are_those_of_pointwise_operators_and_constants() -> None:
    x = torch.ones(2)
    assert numbers_in(aten.mul.Tensor, (x, 0.5), {}) == (0.5,)
    assert numbers_in(aten.add.Tensor, (x, x), {"alpha": 2}) == (2.0,)
    assert numbers_in(aten.full.default, ([2, 2], 3), {}) == (3.0,)
    assert numbers_in(aten.lift_fresh.default, (torch.tensor(7),), {}) == (7.0,)
    assert numbers_in(aten.lift_fresh.default, (x,), {}) == ()
    assert numbers_in(aten.select.int, (x, 0, 1), {}) == ()
    assert numbers_in(aten.mul.Tensor, (x, math.nan), {}) == numbers_in(aten.mul.Tensor, (x, math.nan), {})


def test_macs_are_half_of_the_flops_that_pytorch_counts() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        output = conv(x)
    args = (x, conv.weight, conv.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert macs_of(aten.convolution.default, args, {}, output) == counter.get_total_flops() // 2 == 2 * 36 * 3 * 4 * 9
    assert macs_of(aten.relu.default, (x,), {}, x) == 0


BATCH_NORMS = [name for name in OPERATORS if "batch_norm" in name]


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_whatever_device_normalises_a_batch_norm_is_one(name: str) -> None:
    assert _SPECS[name].kind == "batch_norm"
    assert _SPECS[name].keeps_zero == "any"


def test_batch_norms_of_all_devices_are_in_the_table() -> None:
    assert {f"aten::{name}_batch_norm" for name in ("native", "cudnn", "miopen")} <= set(BATCH_NORMS)


@pytest.mark.parametrize("name", ["native", "cudnn", "miopen"])
def test_the_proof_lets_all_of_them_use_the_statistics_of_the_batch(name: str) -> None:
    op = getattr(aten, f"{name}_batch_norm").default
    x, ones = torch.randn(4, 3, 2), torch.ones(3)
    given = (x, ones, ones, ones, ones, False, 0.1, 1e-5)
    mean, var = _with_batch_statistics(op, given)[3:5]
    torch.testing.assert_close(mean, x.mean((0, 2)))
    torch.testing.assert_close(var, x.var((0, 2), correction=0))
    assert _with_batch_statistics(op, (*given[:5], True, 0.1, 1e-5))[3] is ones, "in train mode, it uses them anyway"


@torch.library.custom_op("bnprune_test::tenfold", mutates_args=())
def tenfold(x: torch.Tensor) -> torch.Tensor:
    return x * 10


@tenfold.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_user_can_say_everything_of_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_SPECS, "bnprune_test::tenfold", OpSpec(labels=unknown))

    @bnprune.rule("bnprune_test::tenfold", keeps_zero="first", macs=lambda x, out_val: out_val.numel())
    def passes(ctx: bnprune.OpContext, x: torch.Tensor):
        return ctx.labels(x)

    spec = spec_of(torch.ops.bnprune_test.tenfold.default)
    assert spec.labels is passes
    assert spec.gives_zero([True])
    net = randomized(Net(lambda n, x: n.c(tenfold(n.a(x))), a=conv_bn(3, 4), c=head(4)))
    plain = randomized(Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 4), c=head(4)))
    result = bnprune.prune(net, X, ratio=0.5)
    assert result.report.ratio_realised == 0.5
    assert result.report.macs_before == bnprune.inspect(plain, X).macs + 4 * 64
