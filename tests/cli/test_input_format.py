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

import bnprune
from bnprune.config.schema import DataConfig
from bnprune.data import load_data
from bnprune.runs.checkpoint import read_header
from tests.cli.harness import RECIPE, done, read_json, refusal, write

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
    done("export", run, "--format", "onnx", "--out", "normalised.onnx")
    stored = read_json((run / "result.json").read_text())["inputs"]
    classes = stored.pop("classes")
    assert metadata(Path("normalised.onnx")) == {"bnprune.preprocessing": stored, "bnprune.classes": classes}
    plain = metadata(Path("pixels.onnx"))["bnprune.preprocessing"]
    assert plain == {**stored, "mean": [0.0], "std": [1.0]}
    pixels = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    (got,) = onnxruntime.InferenceSession("pixels.onnx").run(None, {"input": pixels})
    network = bnprune.load(run / "checkpoints" / "finetune.safetensors")
    with torch.no_grad():
        expected = network((torch.from_numpy(pixels) - stored["mean"][0]) / stored["std"][0])
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_formats_of_weights_alone_cannot_normalise(run: Path) -> None:
    message = refusal(2, "export", run, "--format", "state-dict", "--with-preprocessing", "--out", "w.pt")
    assert "--with-preprocessing: the format state-dict holds the weights of the network alone" in message


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
