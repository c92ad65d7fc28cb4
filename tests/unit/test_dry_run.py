"""Networks with sizes written into their code lose freedom, never break; the refusal names the place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 8, 8)


def refused(net: nn.Module, x: torch.Tensor = X, ratio: float = 0.5) -> tuple[bnprune.PruningResult, str]:
    result = bnprune.prune(randomized(net), x, ratio=ratio)
    assert result.report.max_relative_error < 1e-12
    return result, " | ".join(map(str, result.report.refusals))


def test_flatten_with_a_literal_width() -> None:
    net = Net(
        lambda n, x: n.fc(F.adaptive_avg_pool2d(n.b(n.a(x)), 1).view(-1, 8)),
        a=conv_bn(3, 8),
        b=conv_bn(8, 8),
        fc=nn.Linear(8, 2),
    )
    result, text = refused(net)
    assert result.model.b[0].out_channels == 8
    assert result.model.a[0].out_channels == 4
    assert "view" in text
    assert "compute sizes from the tensor's shape" in text


def test_split_with_literal_sizes() -> None:
    net = Net(
        lambda n, x: n.c(torch.cat([p.relu() for p in n.b(n.a(x)).split([3, 5], 1)], 1)),
        a=conv_bn(3, 8), b=conv_bn(8, 8), c=nn.Sequential(conv_bn(8, 8), head(8)),
    )  # fmt: skip
    result, text = refused(net)
    assert result.model.b[0].out_channels == 8
    assert "split" in text


def test_split_by_a_literal_half() -> None:
    """`split(4)` looks like `chunk(2)` to ATen; the dry run tells them apart."""
    layers = {"a": conv_bn(3, 8), "b": conv_bn(8, 8), "c": nn.Sequential(conv_bn(8, 8), head(8))}
    literal = Net(lambda n, x: n.c(torch.cat(n.b(n.a(x)).split(4, 1)[::-1], 1)), **layers)
    assert refused(literal)[0].model.b[0].out_channels == 8
    chunked = Net(lambda n, x: n.c(torch.cat(n.b(n.a(x)).chunk(2, 1)[::-1], 1)), **layers)
    assert refused(chunked)[0].model.b[0].out_channels < 8


def test_a_scale_computed_from_the_width() -> None:
    net = Net(lambda n, x: n.c((y := n.b(n.a(x))) / y.shape[1]), a=conv_bn(3, 8), b=conv_bn(8, 8), c=head(8))
    result, text = refused(net)
    assert result.model.b[0].out_channels == 8
    assert "depends on the number of channels" in text


def test_attention_with_hard_coded_heads() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.qkv, self.proj = conv_bn(3, 8), nn.Linear(8, 24), nn.Linear(8, 8)
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).flatten(2).transpose(1, 2)
            q, k, v = self.qkv(x).reshape(1, 64, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
            y = self.proj(y.transpose(1, 2).reshape(1, 64, 8))
            return self.head(self.norm(y.transpose(1, 2)).mean(2))

    result, _ = refused(Attention())
    assert result.model.qkv.out_features == 24
    assert result.model.a[0].out_channels + result.model.proj.out_features < 16


def test_code_that_branches_on_the_width() -> None:
    def forward(n, x):
        y = n.b(n.a(x))
        return n.c(y.sigmoid() if y.shape[1] == 8 else y.tanh())

    result, text = refused(Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), c=head(8)))
    assert result.model.b[0].out_channels == 8
    assert "aten::tanh, which the original does not call" in text


def test_several_sites_are_found_in_one_dry_run(monkeypatch) -> None:
    """Each failing operator is replaced by a tensor of the expected shape, and the run goes on."""
    import bnprune.pruning.planner as pruning

    runs = []
    real = pruning.dry_run
    monkeypatch.setattr(pruning, "dry_run", lambda *args, **options: runs.append(1) or real(*args, **options))
    blocks = [
        Net(lambda n, x: n.last(n.first(x).view(1, 8, 8, 8)), first=conv_bn(8, 8), last=conv_bn(8, 8)) for _ in range(4)
    ]
    result, text = refused(nn.Sequential(conv_bn(3, 8), *blocks, head(8)))
    assert all(block.first[0].out_channels == 8 for block in result.model[1:5])
    assert len(runs) == 3  # the probe, the probe without these channels, the request
    assert text.count("view") == 4


class FixedReshape(nn.Module):
    """A reshape that raises before any operator runs: the 48 channels of `qkv` must stay, 128 may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.qkv = conv_bn(3, 64, 1), conv_bn(64, 64, 1), conv_bn(64, 48, 1)
        self.head = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.qkv(self.mid(self.stem(x))).flatten(2).transpose(1, 2)
        return self.head(y.reshape(x.shape[0] * 4, y.shape[1] // 4, 16 * 3)).mean(1)


class FixedInTwoModes(FixedReshape):
    """The same, traced in eval and in train mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        return {"y": super().forward(x)} if self.training else super().forward(x)


class FixedInTraining(nn.Module):
    """The same in train mode only, after the head of eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.aux = conv_bn(3, 64, 1), conv_bn(64, 64, 1), conv_bn(64, 48, 1)
        self.main, self.head = conv_bn(64, 8, 1), nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        y = self.mid(self.stem(x))
        if not self.training:
            return self.main(y).mean((2, 3))
        z = self.aux(y).flatten(2).transpose(1, 2).reshape(x.shape[0] * 4, -1, 48)
        return self.main(y).mean((2, 3)), self.head(z)


class FixedInThreePasses(FixedReshape):
    """A branch that depends on data: traced in eval mode and with both branches forced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return -y if x.sum().item() > 1e6 else y


@pytest.mark.parametrize("kind", [FixedReshape, FixedInTwoModes, FixedInTraining, FixedInThreePasses])
def test_an_error_from_python_freezes_the_nearest_channels_only(kind: type[nn.Module]) -> None:
    result, text = refused(kind())
    assert result.report.channels_before == 128, text
    assert result.model.stem[0].out_channels < 64
    assert result.model.mid[0].out_channels < 64


def reshaped(y: torch.Tensor) -> torch.Tensor:
    return y.reshape(1, 4, 4, 64).view(1, 16, 8, 8)


def checked_in_python(y: torch.Tensor) -> torch.Tensor:
    if y.shape[1] != 16:
        raise ValueError("16 channels, please")
    return y


@pytest.mark.parametrize("fixed", [reshaped, checked_in_python])
def test_an_error_from_python_freezes_the_tensor_it_is_about_not_the_branch_that_ran_last(fixed) -> None:
    def forward(n, x):
        y, z = n.a(x).transpose(2, 3), n.b(x)
        return n.c(fixed(y)) + n.d(z)

    net = Net(forward, a=conv_bn(3, 16), b=conv_bn(3, 32), c=head(16), d=head(32))
    result, text = refused(net)
    assert result.report.channels_before == 32, text
    assert result.model.a[0].out_channels == 16


@pytest.mark.parametrize("aux", [True, False])
def test_heads_that_run_in_train_mode_only(aux: bool) -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.main, self.aux = conv_bn(3, 8), conv_bn(8, 8), head(8), head(8) if aux else None

        def forward(self, x: torch.Tensor):
            x = self.a(x)
            if self.training and self.aux is not None:
                return self.main(self.b(x)), self.aux(x)
            return self.main(self.b(x))

    slim = refused(Auxiliary())[0].model.train()
    outputs = slim(torch.randn(2, 3, 8, 8))
    sum(output.sum() for output in (outputs if aux else [outputs])).backward()
    assert all(p.grad is not None for p in slim.a.parameters())


def test_data_dependent_branches_run_on_real_tensors() -> None:
    def forward(n, x):
        y = n.a(x)
        if x.sum().item() > 1e6:
            y = -y
        return n.c(n.b(y))

    result, _ = refused(Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), c=head(8)))
    assert result.report.ratio_realised == 0.5


def test_caches_on_modules_are_undone() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.grids, self.last = conv_bn(3, 8), head(8), {}, None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x
            key = str(x.shape)
            if key not in self.grids:
                self.grids[key] = torch.ones_like(x[:, :1])
            return self.c(self.a(x * self.grids[key]))

    net = randomized(Caching())
    bnprune.prune(net, X, ratio=0.5)
    assert net.grids == {}
    assert net.last is None
    net(X)


def test_forward_that_fails() -> None:
    with pytest.raises(bnprune.ForwardError, match=r"fails in 0\.0: RuntimeError.*Check the shape of the input"):
        bnprune.prune(nn.Sequential(conv_bn(4, 8), head(8)), X, ratio=0.5)


def test_a_rule_that_fails_names_operator_and_module(monkeypatch) -> None:
    from bnprune.channels.ops.spec import _SPECS, OpSpec

    def broken(*_):
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(_SPECS, "aten::max_pool2d_with_indices", OpSpec(labels=broken))
    with pytest.raises(bnprune.TraceError, match=r"1: the rule of aten::max_pool2d_with_indices failed: oops"):
        bnprune.prune(nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), head(8)), X, ratio=0.5)


def test_lazy_modules_must_be_built_first() -> None:
    with pytest.raises(bnprune.TraceError, match="lazy and not yet built"):
        bnprune.prune(nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)), X, ratio=0.5)


@pytest.mark.parametrize("inputs", ["tuple", "mapping"])
def test_several_inputs(inputs: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv_bn(3, 8), conv_bn(3, 8), head(8)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.c(self.a(left) + self.b(right))}

    given = (X, X) if inputs == "tuple" else {"right": X, "left": X}
    assert bnprune.prune(randomized(Two()), given, ratio=0.5).report.ratio_realised == 0.5
