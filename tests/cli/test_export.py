"""`bnprune export`, and the `export:` section of a recipe."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import onnxruntime
import pytest
import torch

from bnprune.errors import TraceError
from bnprune.exporters import pt2
from tests.cli.harness import CHAIN, RECIPE, bnprune, contents, document, done, read_json, refusal, squeezed, write

MORE_NETWORKS = """\
import torch
from torch import nn
from tests.nets import chain


class OneAtATime(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = chain()

    def forward(self, x):
        return torch.cat([self.layers(image[None]) for image in x])


class Deciding(OneAtATime):
    def forward(self, x):
        y = self.layers(x)
        return y if y.sum() > 0 else -y


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(8, 4)

    def forward(self, x):
        return self.memory(x.flatten(1, 2))[0]
"""


@pytest.fixture
def more() -> Path:
    return write("more.py", MORE_NETWORKS)


def test_a_run_is_compared_on_noise_and_on_its_own_images(run: Path) -> None:
    found = document("export", run, "--format", "onnx", "--out", "net.onnx")
    assert found["schema"] == "bnprune.export/1"
    assert found["model"]["name"] == "mlp"
    assert found["input"] == [1, 16, 16]
    assert found["batch"] == "any"
    assert found["files"] == [{"path": "net.onnx", "bytes": Path("net.onnx").stat().st_size}]
    checked = found["verification"]
    assert checked["passed"] is True
    assert checked["random"]["inputs"] == 4
    assert checked["real"]["inputs"] == 64
    for kind in ("random", "real"):
        assert 0 <= checked[kind]["max_relative_error"] <= checked["tolerance"] == 1e-4
        assert checked[kind]["argmax_agreement"] == 1
    assert [note.partition(" ")[0] for note in found["notes"]] == ["inputs"]  # how they are normalised
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["batch", 1, 16, 16])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("output", ["batch", 10])]


def test_what_is_shown_to_people(run: Path) -> None:
    text = squeezed(done("export", run, "--out", "net.onnx", "--fold-bn").stdout)
    assert "random inputs 4" in text
    assert "real images 64" in text
    assert "folded 1 of 1 BatchNorms, proven equal in float64" in text
    assert "wrote net.onnx" in text


@pytest.mark.parametrize(("out", "files"), [("a.b.pt2", {"a.b.pt2"}), ("w.safetensors", {"w.safetensors", "w.py"})])
def test_the_suffix_tells_the_format(out: str, files: set[str]) -> None:
    found = document("export", *CHAIN, "--out", out)
    assert contents().keys() == files
    assert {entry["path"] for entry in found["files"]} == files
    assert found["verification"]["real"] is None
    assert found["verification"]["random"]["max_relative_error"] == 0
    assert "no recipe" in found["notes"][0]


def test_a_state_dict_for_torch_load() -> None:
    done("export", *CHAIN, "--format", "state-dict", "--out", "w.pt")
    assert "0.0.weight" in torch.load("w.pt", weights_only=True)


def test_the_python_file_says_how_to_load_it(trained: Path) -> None:
    done("export", trained, "--format", "state-dict", "--out", "slim.safetensors")
    text = Path("slim.py").read_text()
    assert text.startswith('"""mlp. Written by bnprune')
    assert 'load("slim.safetensors")' in text


def test_nothing_is_overwritten_without_force() -> None:
    write("net.py", "mine")
    assert "'net.py' exists" in refusal(2, "export", *CHAIN, "--out", "net.safetensors")
    done("export", *CHAIN, "--out", "net.safetensors", "--force")
    assert "class Network" in Path("net.py").read_text()


def test_a_network_that_computes_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pt2.record

    def wrong(model, *rest):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0][1].bias += 0.1
        return right(other, *rest)

    monkeypatch.setattr(pt2, "record", wrong)
    message = refusal(4, "export", *CHAIN, "--out", "net.pt2")
    assert "on random inputs the relative error is" in message
    assert "Nothing was written" in message


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("--format", "onnx", "--out", "net.pt2"), "--out: a file of format onnx ends in .onnx (got '.pt2')"),
        (("--out", "net"), "--format: choose one of onnx, pt2, state-dict"),
        ((), "--format: choose one of onnx, pt2, state-dict"),
        (("--format", "onnx", "--batch", "0"), "--batch: expected a positive number (got 0)"),
        (("--format", "onnx", "--config", "none.yaml"), "none.yaml: there is no such file"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: tuple[str, ...], printed: str) -> None:
    assert printed in refusal(2, "export", *CHAIN, *arguments)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    message = refusal(2, "export", "--model", "tests.nets:chain", "--input", "1,8,8", "--out", "net.pt2")
    assert "the forward pass of the network fails in forward(): RuntimeError: " in message
    assert "Check the shape of the input and its type (got (2, 1, 8, 8) float32)." in message


MIXED = """\
import torch
from torch import nn
from tests.nets import chain


def build():
    network = chain()
    network[1].half()
    return network


def pooled():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), *(nn.MaxPool2d(2) for _ in range(4)))
"""


@pytest.mark.parametrize("out", ["net.safetensors", "net.pt2", "net.onnx"])
def test_a_network_of_mixed_types_is_no_bug(out: str) -> None:
    """Its checkpoint can be read, but it does not run."""
    write("mixed.py", MIXED)
    message = refusal(2, "export", "--model", "mixed:build", "--input", "3,8,8", "--out", out)
    assert "the forward pass of the network fails in forward(): RuntimeError: " in message
    assert "Half" in message or "half" in message or "Float" in message


@pytest.mark.parametrize("out", ["net.safetensors", "net.pt2"])
def test_an_input_too_small_for_the_pooling_is_no_bug(out: str) -> None:
    write("mixed.py", MIXED)
    message = refusal(2, "export", "--model", "mixed:pooled", "--input", "3,8,8", "--out", out)
    assert "Output size is too small. Check the shape of the input and its type (got " in message


def test_a_network_for_one_batch_size_is_refused_with_the_option_that_helps(more: Path) -> None:
    network = ("--model", "more:OneAtATime", "--input", "3,8,8")
    message = refusal(3, "export", *network, "--out", "net.pt2")
    assert "Export for one batch size: --batch 1" in message
    assert document("export", *network, "--batch", "4", "--out", "net.onnx")["batch"] == 4
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [4, 3, 8, 8]


def test_a_network_that_decides_on_values_is_refused_in_two_lines(
    more: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(3, "export", "--model", "more:Deciding", "--input", "3,8,8", "--out", "net.pt2")
    assert "torch.export cannot follow the network" in message
    assert "--batch" not in message, "it is not about the batch"
    assert len(message) < 300
    assert capfd.readouterr().err == ""


def test_weights_of_what_python_cannot_say_replace_both_files(more: Path) -> None:
    done("export", *CHAIN, "--out", "net.safetensors")
    found = document("export", "--model", "more:Recurrent", "--input", "3,8,8", "--out", "net.safetensors", "--force")
    assert contents().keys() == {"more.py", "net.safetensors"}, "the Python file of the other network is gone"
    [note] = found["notes"]
    assert "LSTM does not store the arguments of its constructor" in note, "nothing was compared on noise"
    write("net.py", "mine")
    document("export", "--model", "more:Recurrent", "--input", "3,8,8", "--out", "net.safetensors", "--force")
    assert Path("net.py").read_text() == "mine"


def test_where_the_network_comes_from_is_never_overwritten(run: Path) -> None:
    before = contents(run)
    for source, outs in ((run, ("train", "other")), (run / "checkpoints/train.safetensors", ("train",))):
        for out in outs:
            message = refusal(2, "export", source, "--out", run / f"checkpoints/{out}.safetensors", "--force")
            protected = ("is the source of the network", f"belongs to the run '{run}'")
            assert any(reason in message for reason in protected)
    assert contents(run) == before


def test_a_batch_larger_than_what_is_compared_is_filled(run: Path) -> None:
    found = document("export", run, "--out", "net.pt2", "--batch", "128")
    assert found["verification"]["real"]["inputs"] == 128
    assert document("export", run, "--out", "few.pt2", "--batch", "600")["verification"]["real"]["inputs"] == 600


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find(name, *a))
    message = refusal(2, "export", *CHAIN, "--format", "onnx")
    assert "--format: the format onnx needs onnxruntime: pip install onnxruntime" in message
    write("recipe.yaml", RECIPE + "export: {formats: [pt2, onnx]}\n")
    for verb in ("run", "validate"):
        assert "pip install onnxruntime" in refusal(2, verb, "recipe.yaml")


def test_without_verification_nothing_is_claimed() -> None:
    found = document("export", *CHAIN, "--out", "net.pt2", "--no-verify")
    assert found["verification"]["passed"] is None
    assert found["verification"]["random"] is None
    assert found["notes"] == [], "it was not compared on noise alone, it was not compared"


def test_a_recipe_exports_its_last_network_and_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    write("recipe.yaml", RECIPE + "export: {formats: [state-dict, pt2], fold_bn: true}\n")
    with monkeypatch.context() as broken:
        broken.setattr(pt2, "to_pt2", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert bnprune("run", "recipe.yaml", "--out", "run").exit_code == 130
    before = Path("run/exports/network.safetensors").stat().st_mtime_ns
    result = document("run", "recipe.yaml", "--out", "run", "--resume")
    assert [found["format"] for found in result["exports"]] == ["state-dict", "pt2"]
    assert result == read_json(Path("run/result.json").read_text())
    assert Path("run/exports/network.safetensors").stat().st_mtime_ns == before
    for found in result["exports"]:
        assert found["verification"]["real"]["inputs"] == 64
        assert found["fold_bn"] == {"folded": 1, "batchnorms": 1}
        for file in found["files"]:
            assert (Path("run") / file["path"]).stat().st_size == file["bytes"]
    done("run", "recipe.yaml", "--out", "run", "--force", "export.formats=[pt2]")
    assert sorted(path.name for path in Path("run/exports").iterdir()) == ["network.pt2"]


def test_a_recipe_names_the_formats_it_knows() -> None:
    write("recipe.yaml", RECIPE + "export: {formats: [onxx]}\n")
    message = refusal(2, "validate", "recipe.yaml")
    assert "export.formats" in message
    assert "'onnx', 'pt2' or 'state-dict' (got 'onxx')" in message


ONE_BATCH_SIZE = """\
import torch
from torch import nn


class PerImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return torch.stack([self.head(image.flatten()) for image in self.features(x)])
"""
"""Its loop over the images makes `torch.export` record one batch size."""


def test_a_recipe_whose_network_needs_one_batch_size(here: Path) -> None:
    write("own.py", ONE_BATCH_SIZE)
    network = RECIPE.replace(
        "{name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [32]}}", "{factory: own:PerImage}"
    )
    write("recipe.yaml", network + "export: {formats: [pt2]}\n")
    result = bnprune("run", "recipe.yaml", "--out", "run")
    assert result.exit_code == TraceError.exit_code
    said = squeezed(result.stderr)
    assert "In a recipe: export.batch=1. For this run: bnprune export run --format pt2 --batch 1" in said
    assert Path("run/report.html").exists()
    done("export", "run", "--format", "pt2", "--batch", "1", "--trust", "--out", "one.pt2")
    found = document("run", "recipe.yaml", "export.batch=1", "--out", "fixed")["exports"]
    assert [export["batch"] for export in found] == [1]
