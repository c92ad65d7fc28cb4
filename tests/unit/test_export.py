"""Exports: folding, parity, and networks as plain Python."""

from __future__ import annotations

import ast
import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.config.tables import FORMATS, ExportFormat, format_of
from bnprune.exporters import batchnorm_folding as fold
from bnprune.exporters.batchnorm_folding import fold_batchnorms
from bnprune.exporters.export import ExportOptions, export_network
from bnprune.exporters.parity import TOLERANCE, Runner, compare, eager
from bnprune.exporters.python_source import to_python
from bnprune.exporters.request import ExportedFiles, ExportRequest
from bnprune.exporters.variable_names import reuse_names
from bnprune.pruning.gates import ReadGate, WriteGate
from tests.nets import MOTIFS, Net, conv_bn, head, noise, norms, outputs, randomized
from tests.numerics.test_gates import postactivation, preactivation

# -- folding BatchNorms ----------------------------------------------------------------------------------------------


def test_folding_is_the_arithmetic_of_batchnorm() -> None:
    net = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded, count = fold_batchnorms(net, torch.zeros(2, 3, 6, 6))
    conv, norm = net.requires_grad_(False)
    assert count == 1
    assert isinstance(folded[1], nn.Identity)
    for channel in range(4):
        scale = float(norm.weight[channel]) / math.sqrt(float(norm.running_var[channel]) + norm.eps)
        torch.testing.assert_close(folded[0].weight[channel], conv.weight[channel] * scale)
        shift = (conv.bias[channel] - norm.running_mean[channel]) * scale + norm.bias[channel]
        torch.testing.assert_close(folded[0].bias[channel], shift)


@pytest.mark.parametrize("motif", MOTIFS)
def test_a_folded_network_computes_the_same_and_the_given_one_is_untouched(motif: str) -> None:
    build, shape = MOTIFS[motif]
    net = randomized(build())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded, count = fold_batchnorms(net, torch.zeros(2, *shape[1:]))
    assert count == len(norms(net)) - len(norms(folded)) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    x = torch.randn(3, *shape[1:])
    torch.testing.assert_close(folded(x), net.eval()(x), rtol=1e-4, atol=1e-5)


def test_transposed_convolutions_fold_and_batchnorms_in_front_stay() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 5, 3, groups=1), nn.BatchNorm2d(5), nn.ReLU())
    folded, count = fold_batchnorms(randomized(net), torch.zeros(2, 3, 6, 6))
    assert count == 1
    assert [type(module) for module in folded] == [nn.BatchNorm2d, nn.ConvTranspose2d, nn.Identity, nn.ReLU]


def test_a_batchnorm_that_does_more_or_is_not_alone_is_left_alone() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return F.relu(super().forward(input))

    assert fold_batchnorms(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4)), torch.zeros(2, 3, 6, 6))[1] == 0
    shared = Net(lambda n, x: n.norm(n.conv(x)) + n.conv(x), conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    assert fold_batchnorms(randomized(shared), torch.zeros(2, 3, 6, 6))[1] == 0
    batch_statistics = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert fold_batchnorms(batch_statistics, torch.zeros(2, 3, 6, 6))[1] == 0


def test_a_wrong_fold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold._fused

    def wrong(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
        made = right(layer, norm)
        with torch.no_grad():
            made.weight[0] *= 1 + 1e-7
        return made

    monkeypatch.setattr(fold, "_fused", wrong)
    with pytest.raises(bnprune.VerificationError, match="folding BatchNorms changes"):
        fold_batchnorms(randomized(MOTIFS["chain"][0]()), torch.zeros(2, 3, 8, 8))


# -- parity ----------------------------------------------------------------------------------------------------------

REFERENCE = torch.tensor([[1.0, -4.0, 2.0], [0.5, 0.25, 0.0]])


def parity(got: torch.Tensor, want: torch.Tensor = REFERENCE):
    return compare(lambda _: [want], lambda _: [got], [torch.zeros(len(want), 1)])


def test_parity_has_the_largest_difference_and_the_share_of_equal_classes() -> None:
    found = parity(REFERENCE + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    assert found.inputs == 2
    assert found.max_absolute_error == 0.5
    assert found.max_relative_error == 0.5 / 4
    assert found.argmax_agreement == 0.5
    assert not found.passed
    assert parity(REFERENCE * (1 + 0.9 * TOLERANCE)).passed
    assert not parity(REFERENCE * (1 + 1.1 * TOLERANCE)).passed


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_differ_from_numbers_and_equal_each_other(bad: float) -> None:
    spoilt = REFERENCE.clone()
    spoilt[0, 0] = bad
    assert not parity(spoilt).passed
    assert not parity(REFERENCE, spoilt).passed
    assert parity(spoilt, spoilt.clone()).max_relative_error == 0


def test_other_shapes_do_not_pass() -> None:
    assert not parity(REFERENCE[:, :1]).passed


# -- plain Python ----------------------------------------------------------------------------------------------------


def rebuilt(net: nn.Module) -> nn.Module:
    """The network that the Python file makes, with the weights of the given one."""
    names: dict = {}
    code = to_python(net, "net", "net.safetensors")
    imported = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import | ast.ImportFrom)]
    roots = {getattr(n, "module", None) or n.names[0].name for n in imported}
    assert roots <= {"torch"}
    exec(code, names)
    made = names["Network"]()
    made.load_state_dict(net.state_dict())
    return made


@pytest.mark.parametrize("motif", MOTIFS)
def test_plain_python_computes_the_same_in_both_modes(motif: str) -> None:
    build, shape = MOTIFS[motif]
    net = bnprune.prune(randomized(build()), torch.zeros(shape), ratio=0.4).model
    made, x = rebuilt(net), noise(4, *shape[1:])
    assert torch.equal(outputs(made, x), outputs(net, x))
    assert torch.equal(made.train()(x), net.train()(x))
    assert torch.equal(made(x), net(x))  # running statistics moved alike


@pytest.mark.parametrize(("build", "gate"), [(preactivation, ReadGate), (postactivation, WriteGate)])
def test_plain_python_includes_gates(build, gate: type[nn.Module]) -> None:
    net = bnprune.prune(randomized(build()), torch.zeros(1, 3, 8, 8), ratio=0.4, coupling="gates").model
    assert any(isinstance(module, gate) for module in net.modules())
    x = noise(4, 3, 8, 8)
    assert torch.equal(outputs(rebuilt(net), x), outputs(net, x))


def test_plain_python_knows_shared_layers_lists_and_tensors_of_containers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.PReLU()])
            self.again = self.layers[0]
            self.inner = nn.Module()
            self.inner.scale = nn.Parameter(torch.rand(3, 1, 1))
            self.register_buffer("steps", torch.arange(3).view(3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.again(x) * self.inner.scale + self.steps

    net, x = Odd(), noise(2, 3, 6, 6)
    made = rebuilt(net)
    assert torch.equal(outputs(made, x), outputs(net, x))
    assert made.again is made.layers["0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("items", "'inner.items' has a name that no ModuleDict can hold"), ("lambda", "keyword of Python")],
)
def test_names_that_cannot_be_written_have_a_reason(name: str, message: str) -> None:
    inner = nn.Module()
    inner.add_module(name, nn.Linear(4, 4))
    with pytest.raises(bnprune.TraceError, match=message):
        to_python(Net(lambda n, x: getattr(n.inner, name)(x), inner=inner), "net", "net.pt")


@pytest.mark.parametrize("format", ["pt2", "state-dict"])
def test_networks_in_other_precision_keep_it(format: str) -> None:
    net = randomized(MOTIFS["chain"][0]()).bfloat16()
    exported = export_network(net, (3, 8, 8), ExportOptions.of(format), real=[torch.randn(2, 3, 8, 8)])
    assert exported.random.inputs == 4
    assert exported.real.inputs == 2


def test_onnx_has_no_bfloat16() -> None:
    with pytest.raises(bnprune.TraceError, match="no bfloat16"):
        export_network(MOTIFS["chain"][0]().bfloat16(), (3, 8, 8), ExportOptions.of("onnx"))


def test_a_title_cannot_become_code() -> None:
    code = to_python(MOTIFS["chain"][0](), 'x"""\nraise SystemExit(3)\n"""', '"""; import os; """.pt')
    tree = ast.parse(code)
    assert [type(statement).__name__ for statement in tree.body] == ["Expr", "Import", "ImportFrom", "ClassDef"]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = MOTIFS["chain"][0]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) if x.sum() == x.sum() else x


def test_what_cannot_be_written_down_has_a_reason_and_the_weights_are_made_all_the_same() -> None:
    exported = export_network(Branches(), (3, 8, 8), ExportOptions.of("state-dict"))
    assert exported.files.keys() == {".safetensors"}
    assert exported.random is None
    [note] = exported.notes
    assert "torch.fx cannot follow" in note


def test_names_are_reused_where_they_are_free() -> None:
    body = "a = f(x)\nb = g(a)\nc = h(a, b); a = b = None\nd = c + x; c = x = None\nreturn d"
    tree = ast.parse("def forward(self, x):\n    " + body.replace("\n", "\n    "))
    reuse_names(tree.body[0])
    lines = ast.unparse(tree).splitlines()[1:]
    assert [line.strip() for line in lines] == ["y = f(x)", "z = g(y)", "y = h(y, z)", "x = y + x", "return x"]


def test_the_mode_of_every_module_is_as_before() -> None:
    net = nn.Sequential(conv_bn(3, 4), head(4))
    net.train()
    net[0][1].eval()
    export_network(net, (3, 8, 8), ExportOptions.of("state-dict"))
    assert net.training
    assert not net[0][1].training


# -- formats ---------------------------------------------------------------------------------------------------------


def numpy_archive(request: ExportRequest) -> ExportedFiles:
    file = io.BytesIO()
    np.savez(file, **{name: tensor.numpy() for name, tensor in request.model.state_dict().items()})

    def load() -> Runner:
        arrays = np.load(io.BytesIO(file.getvalue()))
        network = copy.deepcopy(request.model)
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
        return eager(network)

    return ExportedFiles({request.suffix: file.getvalue()}, load)


def test_a_format_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, loaded, compared with the network, and refused for the suffix of another format."""
    monkeypatch.setitem(FORMATS, "numpy", ExportFormat("NumPy archive", f"{__name__}:numpy_archive", (".npz",)))
    exported = export_network(MOTIFS["chain"][0](), (3, 8, 8), ExportOptions.of("numpy"))
    assert exported.files.keys() == {".npz"}
    assert exported.random is not None
    assert exported.random.passed
    assert format_of(".npz") == "numpy"
    with pytest.raises(bnprune.ConfigError, match=r"ends in \.npz \(got '\.onnx'\)") as raised:
        ExportOptions.of("numpy", ".onnx")
    assert raised.value.argument == "out"


def test_a_format_says_which_packages_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ExportFormat("for nobody", "no.such:thing", (".odd",), packages=("no_such_package",))
    monkeypatch.setitem(FORMATS, "odd", odd)
    with pytest.raises(bnprune.ConfigError, match="odd needs no_such_package: pip install no_such_package") as raised:
        ExportOptions.of("odd")
    assert raised.value.argument == "format"


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_that_does_not_run_is_a_forward_error(format: str) -> None:
    net = MOTIFS["chain"][0]()
    net[1].half()
    with pytest.raises(bnprune.ForwardError, match=r"RuntimeError: .*float32"):
        export_network(net, (3, 8, 8), ExportOptions.of(format))


# -- what plain Python cannot say --------------------------------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, bias=bias, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.memory(x)[0]


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv1d(5, 4, 1))
    net[0].register_forward_hook(lambda module, args, output: 2 * output)
    return net


INEXPRESSIBLE = {
    "attention": (lambda: Attending(bias=False), "MultiheadAttention does not store the arguments of its constructor"),
    "recurrent": (Recurrent, "LSTM does not store the arguments of its constructor"),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(5, 4, 1))),
        "ParametrizedConv1d is no layer of torch.nn",
    ),
    "hooked": (hooked, "a Conv1d has hooks"),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_plain_python_cannot_say_is_weights_alone(name: str) -> None:
    build, message = INEXPRESSIBLE[name]
    exported = export_network(build(), (5, 3), ExportOptions.of("state-dict"))
    assert exported.files.keys() == {".safetensors"}
    [note] = exported.notes
    assert message in note
    assert exported.random is None


def test_attention_whose_constructor_is_proven_has_a_python_file() -> None:
    exported = export_network(Attending(bias=True), (5, 3), ExportOptions.of("state-dict"))
    assert ".py" in exported.files
    assert exported.random.max_relative_error <= TOLERANCE


def test_a_python_file_that_computes_something_else_is_left_out() -> None:
    class Counting(nn.Module):
        """Does something else for a batch of one, which no straight-line code can."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(5, 4, 1)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.conv(x) * self.calls

    exported = export_network(Counting(), (5, 3), ExportOptions.of("state-dict"))
    assert exported.files.keys() == {".safetensors"}
    [note] = exported.notes
    assert "does not compute what the eager one does" in note


# -- other types, other outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", ["pt2", "state-dict"])
def test_folding_keeps_the_precision(format: str, dtype: torch.dtype) -> None:
    net = randomized(MOTIFS["chain"][0]()).to(dtype)
    exported = export_network(net, (3, 8, 8), ExportOptions.of(format, fold_bn=True))
    assert exported.folded == 3
    assert exported.random.passed
    assert any("compared with the folded network" in note for note in exported.notes)


def test_a_network_without_a_finite_number_is_not_verified() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    nn.init.constant_(net[0].weight, math.nan)
    with pytest.raises(bnprune.VerificationError, match="computes no finite number on random inputs"):
        export_network(net, (3, 8, 8), ExportOptions.of("pt2"))


@pytest.mark.parametrize("more", [lambda y: y > 0, lambda y: y[:0], lambda y: y[:, :0]])
def test_folding_is_proven_with_outputs_of_any_kind(more) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net = Net(lambda n, x: (lambda y: (more(y), y))(n.layers(x)), layers=layers)
    assert fold_batchnorms(randomized(net), torch.zeros(2, 3, 6, 6))[1] == 1


def test_layers_that_cannot_be_copied_are_an_error() -> None:
    with pytest.warns(FutureWarning):
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    with pytest.raises(bnprune.TraceError, match="cannot be copied to fold its BatchNorms") as raised:
        fold_batchnorms(net, torch.zeros(2, 3, 6, 6))
    assert raised.value.remedy == {"fold_bn": False}
