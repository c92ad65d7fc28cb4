"""What a network takes and returns is kept: in checkpoints, results, exported files and model cards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import bnprune
from bnprune.config.schema import DataConfig
from bnprune.data import load_data
from bnprune.exporters.preprocessing import WithPreprocessing
from bnprune.runs.checkpoint import read_header
from tests.cli.harness import RECIPE, document, done, read_json, refusal, write

OWN_DATA = """\
import torch
from torch.utils.data import TensorDataset


def data():
    torch.manual_seed(0)
    return [TensorDataset(torch.randn(60, 1, 16, 16), torch.arange(60) % 10)] * 3
"""


def metadata(path: Path) -> dict[str, object]:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return {key: json.loads(value) for key, value in entries.items() if key.startswith("bnprune.")}


def test_the_format_of_digits_is_in_every_checkpoint_and_in_the_result(run: Path) -> None:
    train = load_data(DataConfig(name="digits")).train
    stored = read_json((run / "result.json").read_text())["inputs"]
    assert stored["mean"] == pytest.approx(train.mean.tolist())
    assert stored["std"] == pytest.approx(train.std.tolist())
    assert stored["size"] == [16, 16]
    assert stored["classes"] == [str(digit) for digit in range(10)]
    for stage in ("train", "prune", "finetune"):
        header = read_header(run / "checkpoints" / f"{stage}.safetensors")
        assert header.inputs is not None
        assert header.inputs.to_dict() == stored


def test_a_cut_on_the_command_line_keeps_it(run: Path) -> None:
    done("prune", run, "--ratio", "0.2", "--out", "slim.safetensors")
    assert read_header(Path("slim.safetensors")).inputs == read_header(run / "checkpoints" / "train.safetensors").inputs


def test_an_exported_file_normalises_its_inputs_itself(run: Path) -> None:
    done("export", run, "--format", "onnx", "--with-preprocessing", "--out", "pixels.onnx")
    [note] = document("export", run, "--format", "onnx", "--out", "normalised.onnx")["notes"]
    assert "normalised with mean 0.3" in note
    assert "an export with preprocessing does that itself" in note
    stored = read_json((run / "result.json").read_text())["inputs"]
    classes = stored.pop("classes")
    stored |= {"dtype": "float32", "pixel_range": [0, 1]}
    assert metadata(Path("normalised.onnx")) == {"bnprune.preprocessing": stored, "bnprune.classes": classes}
    plain = metadata(Path("pixels.onnx"))["bnprune.preprocessing"]
    assert plain == {**stored, "mean": [0.0], "std": [1.0]}
    pixels = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    (got,) = onnxruntime.InferenceSession("pixels.onnx").run(None, {"input": pixels})
    network = bnprune.load(run / "checkpoints" / "finetune.safetensors")
    with torch.no_grad():
        expected = network((torch.from_numpy(pixels) - stored["mean"][0]) / stored["std"][0])
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_plain_weights_say_how_inputs_are_normalised(run: Path) -> None:
    [note] = document("export", run, "--out", "plain.safetensors")["notes"]
    assert "preprocessing" not in note
    with safe_open("plain.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["bnprune.preprocessing"])
    assert stored["mean"] == read_json((run / "result.json").read_text())["inputs"]["mean"]


def test_an_exported_onnx_file_takes_bytes(run: Path) -> None:
    found = document("export", run, "--format", "onnx", "--byte-inputs", "--fold-bn", "--card", "--out", "bytes.onnx")
    stored = read_json((run / "result.json").read_text())["inputs"]
    classes = stored.pop("classes")
    assert found["verification"]["real"]["inputs"] == 64
    says = {**stored, "mean": [0.0], "std": [1.0], "dtype": "uint8", "pixel_range": [0, 255]}
    assert metadata(Path("bytes.onnx")) == {"bnprune.preprocessing": says, "bnprune.classes": classes}
    session = onnxruntime.InferenceSession("bytes.onnx")
    assert session.get_inputs()[0].type == "tensor(uint8)"
    pixels = some_bytes()
    (got,) = session.run(None, {"input": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected_of_bytes(run, pixels), rtol=1e-4, atol=1e-5)
    card = Path("bytes.md").read_text(encoding="utf-8")
    assert "Its numbers are of type uint8." in card
    assert "pixel values from 0 to 255. The network normalises them itself." in card


def test_an_exported_pt2_file_takes_bytes_and_says_so(run: Path) -> None:
    found = document("export", run, "--format", "pt2", "--byte-inputs", "--out", "bytes.pt2")
    assert found["verification"]["random"]["inputs"] == 4
    assert found["verification"]["real"]["inputs"] == 64
    says = {"bnprune.preprocessing": "", "bnprune.classes": ""}
    network, pixels = torch.export.load("bytes.pt2", extra_files=says).module(), some_bytes()
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), expected_of_bytes(run, pixels), rtol=1e-4, atol=1e-5)
    stored = json.loads(says["bnprune.preprocessing"])
    assert (stored["dtype"], stored["pixel_range"]) == ("uint8", [0, 255])
    assert json.loads(says["bnprune.classes"]) == [str(digit) for digit in range(10)]


def some_bytes() -> torch.Tensor:
    """Return three images of bytes, with black and white among them."""
    pixels = torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[0], pixels[1] = 0, 255
    return pixels


def expected_of_bytes(run: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Return the outputs of the run's last network for images of bytes."""
    stored = read_json((run / "result.json").read_text())["inputs"]
    with torch.no_grad():
        outputs: torch.Tensor = bnprune.load(run / "checkpoints" / "finetune.safetensors")(
            (pixels.float() / 255 - stored["mean"][0]) / stored["std"][0]
        )
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_normalised_images_are_those_they_were_made_of(dtype: torch.dtype) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    normalised = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    network = WithPreprocessing(nn.Conv2d(3, 3, 1, dtype=dtype), mean, std, byte_inputs=True)
    [found] = network.pixels([normalised])
    assert found.dtype == torch.uint8
    assert int((found.int() - pixels.int()).abs().max()) <= (0 if dtype == torch.float32 else 2)
    [beyond] = network.pixels([torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)])
    assert beyond.unique().tolist() == [0, 255]


def test_formats_of_weights_alone_cannot_normalise(run: Path) -> None:
    for flag in ("--with-preprocessing", "--byte-inputs"):
        message = refusal(2, "export", run, "--format", "state-dict", flag, "--out", "w.pt")
        assert f"{flag}: the format state-dict holds the weights of the network alone" in message


def test_data_of_ones_own_can_say_how_it_is_normalised() -> None:
    write("mine.py", OWN_DATA)
    recipe = write("own.yaml", RECIPE.replace("{name: digits, augment: false}", "{factory: mine:data}"))
    done("train", recipe, "--out", "unknown")
    assert "inputs" not in read_json(Path("unknown/result.json").read_text())
    message = refusal(2, "export", "unknown", "--format", "onnx", "--with-preprocessing", "--out", "a.onnx")
    assert "Give data.mean and data.std in the recipe" in message
    done("train", recipe, "data.mean=[0.25]", "data.std=[0.5]", "--out", "known")
    assert read_json(Path("known/result.json").read_text())["inputs"]["mean"] == [0.25]
    done("export", "known", "--format", "onnx", "--with-preprocessing", "--out", "a.onnx")


@pytest.fixture
def folders(here: Path) -> Path:
    for split in ("train", "test"):
        for place, name in enumerate(("cat", "dog")):
            (here / "pets" / split / name).mkdir(parents=True)
            for number in range(6):
                colour = (60 * place + 10 * number,) * 3
                Image.new("RGB", (16, 16), colour).save(here / "pets" / split / name / f"{number}.png")
    return here / "pets"


def test_an_image_folder_gives_the_names_of_its_classes_and_takes_a_normalisation(folders: Path) -> None:
    mlp = RECIPE.replace("in_channels: 1", "in_channels: 3, num_classes: 2")
    recipe = write("pets.yaml", mlp.replace("{name: digits,", "{name: imagefolder, root: pets, batch_size: 4,"))
    done("train", recipe, "data.mean=[0.5,0.4,0.3]", "data.std=[0.5,0.5,0.5]", "--out", "run")
    stored = read_json(Path("run/result.json").read_text())["inputs"]
    assert stored["classes"] == ["cat", "dog"]
    assert stored["mean"] == pytest.approx([0.5, 0.4, 0.3])
    done("export", "run", "--format", "onnx", "--card", "--out", "pets.onnx")
    card = Path("pets.md").read_text(encoding="utf-8")
    assert "Classes, in the order of the scores: cat, dog." in card
    assert "subtract the mean (0.5000, 0.4000, 0.3000) and divide by (0.5000, 0.5000, 0.5000)" in card
    Path("other.md").write_text("mine")
    assert "'other.md' exists" in refusal(2, "export", "run", "--format", "onnx", "--card", "--out", "other.onnx")


def test_a_card_says_what_a_network_is(run: Path) -> None:
    done("export", run, "--format", "onnx", "--with-preprocessing", "--card", "--out", "digits.onnx")
    card, stage = Path("digits.md").read_text(encoding="utf-8"), read_json((run / "result.json").read_text())["stages"]
    assert f"Test accuracy: {stage['finetune']['accuracy']:.2%}." in card
    assert f"{stage['finetune']['params']:,} parameters" in card
    assert "Pruned to ratio 0.5: 50% of the prunable BatchNorm channels were removed." in card
    assert "pixel values between 0 and 1. The network normalises them itself." in card
    assert "Its numbers are of type float32." in card
    assert "verified" not in card  # the checkpoint does not say so
    assert "subtract" not in card


@pytest.mark.parametrize(
    "inputs", [[], {"size": [16], "crop": False, "mean": [], "std": []}, {"size": [16, 16], "crop": 0, "mean": ["x"]}]
)
def test_a_damaged_entry_is_a_damaged_header(inputs: object, run: Path) -> None:
    source = run / "checkpoints" / "prune.safetensors"
    with safe_open(source, "pt") as file:
        header = json.loads(file.metadata()["bnprune"])
    save_file(load_file(source), "odd.safetensors", {"bnprune": json.dumps({**header, "inputs": inputs})})
    assert "its header is damaged" in refusal(5, "inspect", "odd.safetensors")
