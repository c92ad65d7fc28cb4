"""Outputs that count: they keep their channels and are compared; the others may lose channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning.pruner import replay
from tests.nets import Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 8, 8)


@dataclass
class Detected:
    preds: list[torch.Tensor]
    features: torch.Tensor


def detector(pack: Callable[[torch.Tensor, torch.Tensor], Any], train: Callable[..., Any] | None = None) -> nn.Module:
    """Scores and the features they are computed from, as a detector returns them."""

    def forward(n: Net, x: torch.Tensor) -> Any:
        features = n.neck(n.stem(x))
        scores = n.head(features)
        return pack(scores, features) if train is None or not n.training else train(n, scores, features)

    return randomized(Net(forward, stem=conv_bn(3, 8), neck=conv_bn(8, 16), head=head(16), aux=nn.Conv2d(16, 4, 1)))


def prunable(model: nn.Module, outputs: Any = None) -> int:
    return bnprune.inspect(model, X, outputs=outputs).prunable


@pytest.mark.parametrize(
    ("pack", "outputs"),
    [
        (lambda s, f: (s, [f]), 0),
        (lambda s, f: (s, [f]), "0"),
        (lambda s, f: ([f], s), "-1"),
        (lambda s, f: (f, [f, s]), "1.1"),
        (lambda s, f: {"preds": [s], "features": f}, "preds"),
        (lambda s, f: {"preds": [s], "features": f}, "preds.0"),
        (lambda s, f: {1: s, 0: f}, "1"),
        (lambda s, f: Detected([s], f), "preds.0"),
        (lambda s, f: (s, f), lambda output: output[0]),
        (lambda s, f: (s, s.sigmoid(), f), "0, 1"),
    ],
)
def test_only_the_named_outputs_keep_their_channels(pack, outputs) -> None:
    model = detector(pack)
    assert prunable(model) == 8
    assert prunable(model, outputs) == 24
    result = bnprune.prune(model, X, ratio=0.5, outputs=outputs)
    assert result.report.verification.passed
    assert result.report.verification.outputs is not None
    assert "outputs.named" in [note.code for note in result.report.notes]
    assert result.model.neck[1].num_features < 16
    assert result.model.head[2].out_features == 5


def test_naming_the_features_keeps_them_and_frees_the_rest() -> None:
    model = detector(lambda s, f: (s, f))
    assert prunable(model, "1") == 8


def test_the_refusal_of_several_outputs_says_how_to_name_them() -> None:
    [refusal] = {r for r in bnprune.inspect(detector(lambda s, f: (s, f)), X).refusals if r.site == "output"}
    assert "outputs" in refusal.fix
    assert bnprune.inspect(nn.Sequential(conv_bn(3, 8), conv_bn(8, 8)), X).refusals[0].fix == ""


# -- train mode --------------------------------------------------------------------------------------------------------


def test_features_that_do_not_count_in_eval_mode_do_not_count_in_train_mode() -> None:
    model = detector(lambda s, f: (s, {"features": f}), train=lambda n, s, f: {"scores": s, "features": f})
    assert prunable(model, 0) == 24
    slim = bnprune.prune(model, X, ratio=0.5, outputs=0).model.train()
    assert slim(torch.randn(2, 3, 8, 8))["scores"].shape == (2, 5)


def test_what_train_mode_computes_for_the_loss_alone_counts() -> None:
    """No layer reads the output of an auxiliary head, so that it is there for the loss."""

    def forward(n: Net, x: torch.Tensor) -> Any:
        features = n.stem(x)
        main, aux = n.head(features), n.aux(features)
        return (main, n.late(features), aux, features) if n.training else (main, aux, features)

    layers = {"stem": conv_bn(3, 8), "head": head(8), "aux": conv_bn(8, 4, 1), "late": conv_bn(8, 4, 1)}
    assert prunable(randomized(Net(forward, **layers)), 0) == 8


def test_features_that_only_train_mode_returns_count() -> None:
    def forward(n: Net, x: torch.Tensor) -> Any:
        first = n.stem(x)
        second = n.neck(first)
        scores = n.head(second)
        return (scores, second, n.late(second)) if n.training else (scores, first)

    layers = {"stem": conv_bn(3, 8), "neck": conv_bn(8, 16), "head": head(16), "late": nn.Conv2d(16, 1, 1)}
    assert prunable(randomized(Net(forward, **layers)), 0) == 8  # those of the stem


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("2", r"'2' does not exist: the output is a tuple of 2 \(0: tensor \(1, 5\), 1: list of 1\)"),
        ("1.3", r"'1\.3' does not exist: '1' of the output is a list of 1 \(0: tensor \(1, 16, 8, 8\)\)"),
        ("0.1", r"'0\.1' does not exist: '0' of the output is a tensor \(1, 5\)"),
        ("preds", r"'preds' does not exist: the output is a tuple"),
        ("__class__", r"'__class__' does not exist"),
        (lambda output: output["preds"], r"the function \S+ fails on the output of the network .*TypeError"),
        (lambda output: output[0] * 2, r"returns a tensor that the network does not return"),
        (lambda output: None, r"holds no tensor"),
    ],
)
def test_a_wrong_path_says_what_there_is(outputs: Any, message: str) -> None:
    with pytest.raises(bnprune.ConfigError, match=message):
        bnprune.prune(detector(lambda s, f: (s, [f])), X, ratio=0.5, outputs=outputs)


@pytest.mark.parametrize("outputs", [0.1, True, "", "0..1", "0,", ["0"], "x" * 501])
def test_what_is_no_path_is_refused(outputs: Any) -> None:
    with pytest.raises(bnprune.ConfigError, match=r"^outputs: .*path"):
        bnprune.prune(detector(lambda s, f: (s, f)), X, ratio=0.5, outputs=outputs)


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_records_the_path_and_is_proven_by_it() -> None:
    model = detector(lambda s, f: (s, f))
    plan = bnprune.PruningPlan.from_json(bnprune.plan(model, X, ratio=0.5, outputs=0).to_json())
    assert plan.requested["outputs"] == "0"
    again = replay(plan, model, X)
    assert again.report.verification.outputs == "0"
    assert "outputs.named" in [note.code for note in again.report.notes]


def test_a_function_has_to_be_given_again() -> None:
    model = detector(lambda s, f: (s, f))

    def scores(output: Any) -> Any:
        return output[0]

    made = bnprune.plan(model, X, ratio=0.5, outputs=scores)
    plan = bnprune.PruningPlan.from_json(made.to_json())
    assert plan.requested["outputs"]["function"].endswith("scores")
    with pytest.raises(bnprune.ConfigError, match=r"a plan holds no code\. Give it again"):
        replay(plan, model, X)
    assert replay(plan, model, X, outputs=scores).report.verification.passed
    with pytest.raises(bnprune.VerificationError):
        replay(plan, model, X, outputs="0, 1")


@pytest.mark.parametrize("value", [0.5, [], {"name": "f"}, {"function": 3}, "x" * 501])
def test_a_plan_with_other_outputs_is_damaged(value: Any) -> None:
    data = bnprune.plan(detector(lambda s, f: (s, f)), X, ratio=0.5, outputs=0).to_dict()
    data["requested"]["outputs"] = value
    with pytest.raises(bnprune.CheckpointError, match="not a pruning plan"):
        bnprune.PruningPlan.from_dict(data)
