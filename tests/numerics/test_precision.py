"""Proofs of networks that float64 or noise does not suit: float32 with a measured tolerance, and the example inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import bnprune
from bnprune.channels.pytrees import as_inputs
from bnprune.pruning import proof_tolerance
from bnprune.pruning.proof_forward import Setting
from bnprune.pruning.proof_runs import masked_runs
from bnprune.pruning.proof_tolerance import rounding_error, rounds_to_float32
from bnprune.pruning.surgery import apply
from bnprune.pruning.verify import Verification, verify
from tests.nets import Net, conv_bn, head, randomized
from tests.numerics.test_verify import wrong

X = torch.zeros(2, 3, 8, 8)


def network(before: Callable[[torch.Tensor], torch.Tensor], after: Callable[..., torch.Tensor] | None = None) -> Net:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = n.last(n.b(n.a(before(x))))
        return y if after is None else after(x, y)

    return randomized(Net(forward, a=conv_bn(3, 16), b=conv_bn(16, 24), last=head(24)))


def single(x: torch.Tensor) -> torch.Tensor:
    assert x.dtype == torch.float32, "float32 only"
    return x


def proof(model: nn.Module, example: torch.Tensor = X) -> Verification:
    report = bnprune.prune(model, example, ratio=0.5).report
    assert report.verification is not None
    assert set(report.verification.notes) <= set(report.notes)
    return report.verification


def codes(verification: Verification) -> list[str]:
    return [note.code for note in verification.notes]


# -- float32 -----------------------------------------------------------------------------------------------------------


def test_a_network_that_runs_in_float32_only_is_proven_in_float32() -> None:
    found = proof(network(single))
    assert (found.dtype, found.passed, codes(found)) == ("float32", True, ["proof.float32"])
    assert found.max_relative_error < found.tolerance < 1e-4
    assert proof(network(lambda x: x)).dtype == "float64"


@pytest.mark.parametrize("place", ["b.0.weight", "a.1.bias", "last.2.weight"])
def test_a_wrong_plan_fails_in_float32(place: str) -> None:
    model = network(single)
    bad = wrong(bnprune.prune(model, X, ratio=0.4).plan, place)
    found = verify(model, apply(bad, model), bad, as_inputs(X))
    assert not found.passed
    assert found.max_relative_error > 100 * found.tolerance
    assert found.first_difference is not None


def test_the_tolerance_grows_with_the_rounding_errors_of_the_network() -> None:
    """A difference of nearly equal numbers has few digits left: an exact tolerance would refuse the right cut."""
    offset = proof(network(single, lambda x, y: (y + 100) - 100)).tolerance
    usual = proof(network(single)).tolerance
    assert 10 * usual < offset < 1e-3


def test_rounding_errors_in_which_a_wrong_cut_could_hide_are_refused() -> None:
    with pytest.raises(bnprune.ForwardError, match=r"float32 only, and its rounding errors require a tolerance of"):
        proof(network(single, lambda x, y: (y + 1e5) - 1e5))


def test_the_rounding_error_of_a_product_is_one_unit_in_the_last_place() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    model = Product()
    [run] = masked_runs(model, as_inputs(torch.ones(64)), Setting(dtype=torch.float32))
    ones = replace(run, inputs=as_inputs(torch.ones(64)), outputs=[torch.ones(64)])
    assert rounding_error(ones, model) == torch.finfo(torch.float32).eps


@pytest.fixture
def casting_operator() -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """An operator of another library whose kernel computes in float32, whatever it is given."""
    with torch.library._scoped_library("bnprune_test", "FRAGMENT") as library:
        library.define("cast(Tensor x) -> Tensor")
        library.impl("cast", lambda x: (x.float() * 1.1).to(x.dtype), "CompositeExplicitAutograd")
        yield torch.ops.bnprune_test.cast


def test_a_cast_inside_an_operator_of_another_library_is_found(casting_operator) -> None:
    for cast, found in ((casting_operator, True), (lambda y: y.float() * 1.1, False)):
        model = network(lambda x: x, lambda x, y, cast=cast: cast(y)).double()
        [run] = masked_runs(model, as_inputs(X))
        assert rounds_to_float32(run, model) is found


def test_a_cast_inside_an_operator_leads_to_a_proof_in_float32(casting_operator, monkeypatch) -> None:
    """A difference in the last bit of float64 seldom changes a number in float32: a strict tolerance stands for it."""
    model = network(lambda x: x, lambda x, y: y + casting_operator(y))
    monkeypatch.setattr(proof_tolerance, "TOLERANCE", 1e-17)
    found = proof(model)
    assert found.passed
    assert found.dtype == "float32"
    bad = wrong(bnprune.prune(model, X, ratio=0.4).plan, "b.0.weight")
    assert not verify(model, apply(bad, model), bad, as_inputs(X)).passed


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_a_network_that_is_not_finite_on_noise_is_proven_on_the_example_inputs() -> None:
    model = network(lambda x: x, lambda x, y: y * torch.exp(1e3 * x.abs().sum()))
    found = proof(model, torch.full((2, 3, 8, 8), 1e-5))
    assert (found.inputs, found.dtype, codes(found)) == ("example inputs", "float64", ["proof.example_inputs"])
    assert proof(network(lambda x: x)).inputs == "noise"


def test_a_wrong_plan_fails_on_the_example_inputs() -> None:
    model = network(lambda x: x, lambda x, y: y * torch.exp(1e3 * x.abs().sum()))
    example = 1e-4 * torch.rand(2, 3, 8, 8)
    bad = wrong(bnprune.prune(model, example, ratio=0.4).plan, "b.0.weight")
    assert not verify(model, apply(bad, model), bad, as_inputs(example)).passed


def test_a_network_that_is_not_finite_on_the_example_inputs_either_is_refused() -> None:
    model = network(lambda x: x, lambda x, y: y / (x.sum() - x.sum()))
    with pytest.raises(bnprune.ForwardError, match=r"not finite, on noise and on the inputs given\. Give inputs"):
        proof(model)


def test_batch_statistics_that_make_a_network_infinite_are_left_out() -> None:
    """Normalised by its batch, a nearly constant channel is as large as any other, and its exponential is infinite."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        return n.last(torch.exp(700 * n.a(1e-3 * x)))

    model = randomized(Net(forward, a=conv_bn(3, 16), last=head(16)))
    with torch.no_grad():
        model.a[1].running_var.fill_(1e3)
        model.a[1].running_mean.zero_()
        model.a[1].bias.zero_()
    assert proof(model).passed
