"""Gates: layers that share a stream of channels lose channels of their own, and the function stays what it was."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.pruning.gates import ReadGate, WriteGate
from bnprune.pruning.slice_check import first_wrong_tensor
from tests.nets import Net, conv_bn, head, noise, norms, outputs, randomized


def postactivation() -> nn.Module:
    """Two residual blocks: three BatchNorms write one stream."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.stem(x)
        x = F.relu(x + n.first(x))
        return n.head(F.relu(x + n.second(x)))

    def block() -> nn.Module:
        return nn.Sequential(conv_bn(8, 12), nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

    return Net(forward, stem=conv_bn(3, 8), first=block(), second=block(), head=head(8))


def preactivation() -> nn.Module:
    """Two residual blocks that start with a BatchNorm: three BatchNorms read one stream, none writes it."""

    def block() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv_bn(8, 12), nn.Conv2d(12, 8, 3, padding=1, bias=False))

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.stem(x)
        x = x + n.first(x)
        return n.head(F.relu(n.last(x + n.second(x))))

    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return Net(forward, stem=stem, first=block(), second=block(), last=nn.BatchNorm2d(8), head=head(8))


def dense() -> nn.Module:
    """Every layer reads what all layers before it wrote, side by side."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.stem(x)
        for layer in (n.first, n.second):
            x = torch.cat([x, layer(x)], 1)
        return n.head(F.relu(n.last(x)))

    def layer(channels: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4, 3, padding=1, bias=False))

    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return Net(forward, stem=stem, first=layer(8), second=layer(12), last=nn.BatchNorm2d(16), head=head(16))


NETS: dict[str, Callable[[], nn.Module]] = {"post": postactivation, "pre": preactivation, "dense": dense}
SHAPE = (2, 3, 8, 8)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(NETS[name]()).double()


def gates(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, ReadGate | WriteGate)]


@pytest.mark.parametrize("name", NETS)
def test_layers_lose_channels_of_their_own_and_the_cut_is_proven(name: str) -> None:
    result = bnprune.prune(build(name), torch.zeros(SHAPE), ratio=0.5, coupling="gates")
    assert result.report.max_relative_error < 1e-12
    assert abs(result.report.ratio_realised - 0.5) < 0.03
    assert {type(gate) for gate in gates(result.model)} == {WriteGate if name == "post" else ReadGate}
    shared = bnprune.prune(build(name), torch.zeros(SHAPE), ratio=0.5)
    assert not gates(shared.model)
    assert not shared.plan.gates


@pytest.mark.parametrize("name", NETS)
def test_dead_channels_go_wherever_they_are(name: str) -> None:
    """BatchNorms have different dead channels, so that coupled layers could give up none of them."""
    model = build(name)
    for position, norm in enumerate(norms(model)):
        dead = torch.arange(norm.num_features).roll(4 * position)[: norm.num_features // 2]
        norm.weight.data[dead] = 0
        if name != "post" or norm.num_features != 8:  # a write gate fills in β, others leave it out
            norm.bias.data[dead] = 0
    x = noise(*SHAPE)
    before = outputs(model, x)
    result = bnprune.prune(model, x, ratio=0.4, coupling="gates", proof=False)
    assert result.report.ratio_realised > 0.37
    torch.testing.assert_close(outputs(result.model, x), before, rtol=0, atol=1e-9 * float(before.abs().max()))


def test_a_channel_nobody_reads_leaves_the_stream() -> None:
    model = build("dense")
    for norm in (model.second[0], model.last):
        norm.weight.data[9] = norm.bias.data[9] = 1e-9  # written by `first`, at its place 1
    plan = bnprune.prune(model, torch.zeros(SHAPE), ratio=0.1, coupling="gates").plan
    [cut] = [cut for cut in plan.cuts if ("first.2.weight", 0) in cut.at]
    assert cut.removed == [1]


def test_the_plan_is_data_and_the_file_loads(tmp_path) -> None:
    model = build("post").float()
    result = bnprune.prune(model, torch.zeros(SHAPE), ratio=0.5, coupling="gates")
    plan = bnprune.PruningPlan.from_json(result.plan.to_json())
    assert plan == result.plan
    x = noise(*SHAPE).float()
    expected = result.model.eval()(x)
    assert torch.equal(bnprune.apply(plan, model).eval()(x), expected)
    bnprune.save(result, tmp_path / "slim.safetensors")
    assert torch.equal(bnprune.load(tmp_path / "slim.safetensors", model=postactivation()).eval()(x), expected)


@pytest.mark.parametrize("broken", [{"kind": "both"}, {"keep": [99]}, {"keep": []}])
def test_a_damaged_gate_is_refused(broken: dict[str, object]) -> None:
    data = bnprune.prune(build("post"), torch.zeros(SHAPE), ratio=0.5, coupling="gates").plan.to_dict()
    data["gates"][0] |= broken
    with pytest.raises(bnprune.CheckpointError, match="not a pruning plan"):
        bnprune.PruningPlan.from_dict(data)


@pytest.mark.parametrize("name", NETS)
def test_the_slim_network_trains_copies_and_exports(name: str) -> None:
    slim = bnprune.prune(build(name).float(), torch.zeros(SHAPE), ratio=0.5, coupling="gates").model
    x = noise(*SHAPE).float()
    slim.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())
    expected = slim.eval()(x)
    assert torch.equal(copy.deepcopy(slim)(x), expected)
    program = torch.export.export(slim, (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), expected)


@pytest.mark.parametrize("name", NETS)
def test_the_slim_network_runs_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    slim = bnprune.prune(build(name).float(), torch.zeros(SHAPE), ratio=0.5, coupling="gates").model.eval()
    x, file = noise(*SHAPE).float(), tmp_path / "slim.onnx"
    torch.onnx.export(slim, (x,), file, input_names=["x"], verbose=False)
    [got] = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), slim(x))


def test_what_a_stream_cannot_give_up_its_layers_still_can() -> None:
    """The stream is the network's output: coupled layers must keep everything."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        return n.a(x) + n.b(x)

    def model() -> nn.Module:
        def branch() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

        return randomized(Net(forward, a=branch(), b=branch()))

    shared, gated = (bnprune.inspect(model(), torch.zeros(SHAPE), coupling=c) for c in ("shared", "gates"))
    assert (shared.prunable, gated.prunable) == (0, 16)
    assert (
        "16 BatchNorm channels are coupled to a stream that must stay: coupling 'gates' may make them prunable"
        in shared.notes
    )
    assert not gated.notes
    with pytest.raises(bnprune.PruningError, match="output of the network") as refused:
        bnprune.prune(model(), torch.zeros(SHAPE), ratio=0.5)
    assert shared.notes[0] in str(refused.value)
    assert not bnprune.inspect(model(), torch.zeros(SHAPE), exclude=["a", "b"]).notes, "what is excluded is to stay"
    result = bnprune.prune(model(), torch.zeros(SHAPE), ratio=0.5, coupling="gates")
    assert result.report.ratio_realised == 0.5
    assert result.model(torch.zeros(SHAPE)).shape == (2, 8, 6, 6)


def test_a_norm_that_runs_twice_or_does_more_than_normalise_gets_no_write_gate() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(super().forward(x))

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.norm(n.a(x)) + n.norm(n.b(x))
        return n.head(x + n.activated(n.c(x)) + n.plain(n.d(x)))

    convs = {name: nn.Conv2d(width, 8, 3, padding=1) for name, width in zip("abcd", (3, 3, 8, 8), strict=True)}
    bns = {"norm": nn.BatchNorm2d(8), "activated": Activated(8), "plain": nn.BatchNorm2d(8)}
    model = randomized(Net(forward, **convs, **bns, head=head(8)))
    plan = bnprune.prune(model, torch.zeros(SHAPE), ratio=0.4, coupling="gates").plan
    assert {gate.at for gate in plan.gates} <= {"plain"}


def test_the_paper_prunes_preresnet_and_densenet_per_reader() -> None:
    for name in ("preresnet164", "densenet40"):
        torch.manual_seed(0)
        model = randomized(bnprune.build(bnprune.ModelSpec(name)))
        result = bnprune.prune(model, torch.zeros(1, 3, 32, 32), ratio=0.6, coupling="gates")
        assert abs(result.report.ratio_realised - 0.6) < 0.001
        assert {gate.kind for gate in result.plan.gates} == {"read"}
        assert len(result.plan.gates) > 30


def test_a_gate_is_called_as_the_norm_was_and_stands_under_every_name_it_had() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.first[1](input=n.first[0](x))
        return n.head(x + n.alias(n.second[0](x)))

    second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    model = randomized(Net(forward, first=first, second=second, alias=second[1], head=head(8)))
    result = bnprune.prune(model, torch.zeros(SHAPE), ratio=0.5, coupling="gates")
    assert result.report.ratio_realised == 0.5
    assert not result.report.refusals
    assert result.model.alias is result.model.second[1]
    assert isinstance(result.model.alias, WriteGate)


@pytest.mark.parametrize(
    ("make", "buffer"), [(preactivation, "index"), (postactivation, "order"), (postactivation, "fill")]
)
def test_a_wrong_buffer_of_a_gate_is_caught(make: Callable[[], nn.Module], buffer: str) -> None:
    model = randomized(make())
    result = bnprune.prune(model, torch.zeros(1, 3, 8, 8), ratio=0.5, coupling="gates")
    assert first_wrong_tensor(model, result.model, result.plan) is None
    name, tensor = next(item for item in result.model.named_buffers() if item[0].endswith(f".{buffer}"))
    tensor[0] += 1
    assert first_wrong_tensor(model, result.model, result.plan) == name
