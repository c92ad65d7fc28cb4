"""Exported slim networks outside bnprune: in a Python that cannot import it, and in a C++ program."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import bnprune
from bnprune.exporters.export import ExportOptions, export_network
from bnprune.models.resnet import PreResNet
from bnprune.models.zoo import ModelSpec, build
from tests.nets import randomized

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v3_small": (lambda: build(ModelSpec("torchvision/mobilenet_v3_small")), (3, 64, 64)),
    "resnet18": (lambda: build(ModelSpec("torchvision/resnet18")), (3, 64, 64)),
    "preresnet29": (lambda: PreResNet(29), (3, 32, 32)),
}
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    folder: Path
    model: nn.Module
    x: torch.Tensor
    expected: torch.Tensor


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """A slim network in every format; ONNX with BatchNorms folded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    dense = randomized(make())
    # float32 and as random as this, deep networks would compute infinities.
    calm(dense, torch.randn(8, *shape))
    model = bnprune.prune(dense, torch.zeros(1, *shape), ratio=0.5, coupling="gates").model.eval()
    if request.param == "preresnet29":
        assert sum(type(module).__name__ == "ReadGate" for module in model.modules()) > 5
    folder = tmp_path_factory.mktemp("exported")
    for options in (ExportOptions.of("onnx", fold_bn=True), ExportOptions.of("pt2"), ExportOptions.of("state-dict")):
        network = export_network(model, shape, options, stem="network")
        assert network.random is not None
        for suffix, content in network.files.items():
            (folder / f"network{suffix}").write_bytes(content)
    x = torch.randn(5, *shape)
    with torch.no_grad():
        expected = model(x)
    np.save(folder / "x.npy", x.numpy())
    yield Exported(folder, model, x, expected)
    torch.set_num_threads(threads)


def calm(model: nn.Module, x: torch.Tensor) -> None:
    """Set the statistics of every BatchNorm to those of a batch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    model.eval()


def error(got: np.ndarray, expected: torch.Tensor) -> float:
    assert bool(expected.isfinite().all())
    return float((torch.from_numpy(got) - expected).abs().max() / expected.abs().max())


SINGLE_PROCESS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bnprune":
            raise ModuleNotFoundError("bnprune cannot be imported here")

sys.meta_path.insert(0, Blocked())
try:
    import bnprune
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("bnprune is not blocked")

import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("network.onnx", options, providers=["CPUExecutionProvider"])
x = np.load("x.npy")
np.save("onnx.npy", session.run(["output"], {"input": x})[0])
assert "torch" not in sys.modules

import torch
from safetensors.torch import load_file
x = torch.from_numpy(x)
sys.path.insert(0, ".")
from network import Network
network = Network()
network.load_state_dict(load_file("network.safetensors"))
with torch.no_grad():
    np.save("pt2.npy", torch.export.load("network.pt2").module()(x).numpy())
    np.save("state-dict.npy", network.eval()(x).numpy())
assert not any(name.partition(".")[0] == "bnprune" for name in sys.modules)
"""


def test_every_format_loads_and_computes_the_same_where_bnprune_cannot_be_imported(exported: Exported) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SINGLE_PROCESS], cwd=exported.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for kind in ("onnx", "pt2", "state-dict"):
        assert error(np.load(exported.folder / f"{kind}.npy"), exported.expected) < TOLERANCE, kind


def test_pt2_holds_no_pickled_weights(exported: Exported) -> None:
    with zipfile.ZipFile(exported.folder / "network.pt2") as archive:
        for name in archive.namelist():
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(name))["config"].values()
                assert not any(entry["use_pickle"] for entry in entries), name
            elif name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def test_a_cpp_program_computes_the_same(exported: Exported, infer: Path) -> None:
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    if not libraries:
        pytest.skip("this wheel of ONNX Runtime holds no library for C++ programs")
    exported.x.numpy().tofile(exported.folder / "x.f32")
    command = [infer, libraries[0], "network.onnx", "x.f32", *map(str, exported.x.shape)]
    done = subprocess.run(command, cwd=exported.folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    got = np.frombuffer(done.stdout, np.float32).reshape(exported.expected.shape)
    assert error(got.copy(), exported.expected) < TOLERANCE


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built with the system's compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path_factory.mktemp("infer") / "infer"
    source = Path(__file__).with_name("infer.cpp")
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program
