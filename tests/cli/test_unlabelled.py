"""`finetune --unlabelled`: a pruned network learns from the outputs of its teacher on images without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import bnprune as library
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import DataConfig
from bnprune.data import MemorySplit, load_data
from bnprune.data.unlabelled import Preprocessing, unlabelled_images
from bnprune.runs.directory import RunDirectory
from bnprune.workflows.run import finetune
from tests.cli.harness import CHAIN, bnprune, document, done, refusal, squeezed, tensor_bytes
from tests.nets import chain, randomized

SETTINGS = ("finetune.epochs=12", "finetune.lr=0.01", "finetune.optimizer=adam", "data.batch_size=16", "threads=1")
SHORT = ("finetune.epochs=2",)


@pytest.fixture
def images(here: Path) -> Path:
    """Images of several sizes in folders of several depths, which are no classes."""
    rng = np.random.default_rng(0)
    root = here / "images"
    for index in range(80):
        path = root / ("deep/" * (index % 3)) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        coarse.resize((8 + index % 2, 8)).save(path)
    return root


@pytest.fixture
def dense(here: Path) -> nn.Module:
    """A network with a state dict `dense.pt` and a pruned checkpoint `slim.safetensors`, which has no recipe."""
    model = randomized(chain()).eval()
    with torch.no_grad():
        [*model.modules()][-1].weight.mul_(50)  # scores that differ between images
    torch.save(model.state_dict(), here / "dense.pt")
    done("prune", *CHAIN, "--weights", "dense.pt", "--ratio", "0.5", "--out", "slim.safetensors")
    return model


def tuned(*args: object) -> tuple[object, ...]:
    return ("finetune", "slim.safetensors", *CHAIN[:2], *SETTINGS, *args)


def distance(student: nn.Module, teacher: nn.Module, images: Path) -> float:
    batches = torch.cat(list(unlabelled_images(images, 1000, Preprocessing.of((3, 8, 8)))))
    with torch.no_grad():
        student_shares, teacher_shares = (F.softmax(model(batches) / 4, 1).double() for model in (student, teacher))
    return float((teacher_shares * (teacher_shares / student_shares).log()).sum(1).mean())


def test_the_network_gets_nearer_to_its_teacher(dense: nn.Module, images: Path) -> None:
    found = document(*tuned("--unlabelled", images, "--teacher", "dense.pt", "--out", "run"))["stages"]["finetune"]
    before, after = (
        distance(library.load(path, randomized(chain(), 1)), dense, images)
        for path in ("slim.safetensors", "run/checkpoints/finetune.safetensors")
    )
    assert after < before / 2
    assert (found["accuracy"], found["validation_accuracy"], found["loss"]) == (None, None, None)
    assert found["teacher"]["images"] == 8  # the tenth that is held out
    assert 0 <= found["teacher"]["agreement"] <= 1
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [record["validation"] for record in records if "epoch" in record]
    best = max(epochs, key=lambda values: (values["agreement"], -values["loss"]))
    assert (best["agreement"], best["loss"]) == (
        found["teacher"]["agreement"],
        pytest.approx(found["teacher"]["divergence"]),
    )
    assert {values["top1"] for values in epochs} == {None}


def test_the_agreement_before_training_is_shown_beside_the_one_after_it(dense: nn.Module, images: Path) -> None:
    done_at_once = done(*tuned("--unlabelled", images, "--teacher", "dense.pt", "--out", "run"))
    found = json.loads(Path("run/result.json").read_text(encoding="utf-8"))["stages"]["finetune"]["teacher"]
    (line,) = [line for line in done_at_once.stderr.splitlines() if "before training: validation" in line]
    before, after = f"{found['agreement_before']:.2%}", f"{found['agreement']:.2%}"
    assert line.endswith(before)
    assert found["divergence_before"] > found["divergence"]
    rows = {line.split()[0]: line for line in done_at_once.stdout.splitlines() if line}
    assert "agreement with teacher" in rows["network"]
    assert before in rows["pruned"]
    assert after in rows["fine-tuned"]
    assert f"held-out images {after} (before training: {before})" in squeezed(done_at_once.stderr)
    assert f"{after} (before training: {before}) of 8 images" in Path("run/report.html").read_text(encoding="utf-8")


def test_names_of_folders_do_not_matter(dense: nn.Module, images: Path, here: Path) -> None:
    flat = here / "flat"
    for path in images.rglob("*.png"):  # the same order: that of the paths decides which images are held out
        copy = flat / str(path.relative_to(images)).replace("/", "-")
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    weights = []
    for folder in (images, flat):
        done(*tuned("--unlabelled", folder, "--teacher", "dense.pt", "--out", f"run-{folder.name}", *SHORT))
        weights.append(tensor_bytes(Path(f"run-{folder.name}/checkpoints/finetune.safetensors")))
    assert weights[0] == weights[1]


def test_a_stopped_run_continues_with_equal_bits(dense: nn.Module, images: Path, monkeypatch) -> None:
    command = tuned("--unlabelled", images, "--teacher", "dense.pt", "finetune.ema=0.9", *SHORT)
    done(*command, "--out", "whole")
    saves = []
    save = RunDirectory.save_state

    def stopped(self: RunDirectory, stage: str, state: dict[str, Any]) -> None:
        save(self, stage, state)
        saves.append(stage)
        if len(saves) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_state", stopped)
        assert bnprune(*command, "--out", "parts").exit_code != 0
    done(*command, "--out", "parts", "--resume")
    whole, parts = (tensor_bytes(Path(run) / "checkpoints/finetune.safetensors") for run in ("whole", "parts"))
    assert whole == parts
    results = [json.loads((Path(run) / "result.json").read_text(encoding="utf-8")) for run in ("whole", "parts")]
    compared = [result["stages"]["finetune"]["teacher"] for result in results]
    assert compared[0] == compared[1]
    assert compared[0]["divergence_before"] is not None


def test_a_teacher_is_needed_and_must_fit(dense: nn.Module, images: Path, here: Path) -> None:
    assert "--teacher FILE" in refusal(2, *tuned("--unlabelled", images))
    torch.save({"weight": torch.zeros(3)}, here / "other.pt")
    assert "finetune.distill.teacher" in refusal(5, *tuned("--unlabelled", images, "--teacher", "other.pt"))


def test_the_folder_must_hold_images(dense: nn.Module, here: Path) -> None:
    (here / "empty").mkdir()
    assert "'empty' holds no images" in refusal(5, *tuned("--unlabelled", "empty", "--teacher", "dense.pt"))
    assert "'none' is not a folder" in refusal(5, *tuned("--unlabelled", "none", "--teacher", "dense.pt"))


def test_labels_are_not_made_up(dense: nn.Module, images: Path) -> None:
    """What needs labels refuses a recipe without them."""
    done(*tuned("--unlabelled", images, "--teacher", "dense.pt", "--out", "run", *SHORT))
    for command in (("train", "run/config.yaml"), ("evaluate", "run", *CHAIN[:2], "--config", "run/config.yaml")):
        assert "data.unlabelled: images without labels are for fine-tuning only" in refusal(2, *command)


def test_the_run_of_a_recipe_knows_its_teacher_and_preprocessing(run: Path, images: Path) -> None:
    result = finetune(run, overrides=["finetune.epochs=1"], unlabelled=images, out="tuned")
    assert result.stages["finetune"].teacher is not None
    used = load_recipe(Path("tuned/config.yaml"))
    assert used.finetune is not None
    assert used.finetune.distill is not None
    assert used.finetune.distill.teacher == run / "checkpoints" / "train.safetensors"
    digits = load_data(DataConfig(name="digits"))
    assert isinstance(digits.train, MemorySplit)
    assert used.data.mean == pytest.approx(digits.train.mean.tolist())
    assert used.data.std == pytest.approx(digits.train.std.tolist())
    again = load_data(used.data, needs_labels=False)
    assert (again.shape, again.labelled, len(again.test)) == ((1, 16, 16), False, 0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_are_normalised_as_asked_and_those_that_calibration_reads(images: Path, in_memory: bool) -> None:
    grey = {"image_size": 8, "mean": [0.4], "std": [0.3], "in_memory": in_memory, "workers": 0, "augment": False}
    splits = load_data(DataConfig.model_validate({"unlabelled": images, **grey}), needs_labels=False)
    served, labels = next(splits.train.serve([torch.arange(len(splits.train))], torch.device("cpu")))
    assert served.shape == (72, 1, 8, 8)
    assert not labels.any()
    darkest, lightest = -0.4 / 0.3, 0.6 / 0.3
    assert darkest - 1e-5 <= served.min() < darkest + 0.6
    assert lightest - 0.6 < served.max() <= lightest + 1e-5
    if in_memory:  # images that are read one by one are cropped, as those of `imagefolder`
        expected = torch.cat(list(unlabelled_images(images, 1000, Preprocessing.of((1, 8, 8), [0.4], [0.3]))))
        distances = (served[:, None] - expected[None]).abs().amax((2, 3, 4)).amin(1)
        assert distances.max() < 0.05  # resized by Pillow or by torchvision


def test_images_unlike_those_of_the_teacher_are_noticed(dense: nn.Module, images: Path) -> None:
    of_training = Preprocessing.of((3, 8, 8), [0.3] * 3, [0.05] * 3)
    torch.save(library.recalibrate(dense, unlabelled_images(images, 80, of_training)).state_dict(), "dense.pt")
    command = tuned("--unlabelled", images, "--teacher", "dense.pt", *SHORT)
    warning = "warning: the images differ from those that the network was trained on"
    assert warning in squeezed(done(*command, "--out", "wrong").output)
    own = ("data.mean=[0.3,0.3,0.3]", "data.std=[0.05,0.05,0.05]")
    assert warning not in squeezed(done(*command, *own, "--out", "right").output)


def test_a_teacher_that_is_given_replaces_the_one_in_the_file(dense: nn.Module, images: Path) -> None:
    command = tuned("--unlabelled", images, "--teacher", "dense.pt", *SHORT)
    done(*command, "--out", "first")
    again = ("finetune", "first", *command[2:], "--out", "second")
    assert "finetune.distill.teacher" in refusal(5, *(part for part in again if part not in ("--teacher", "dense.pt")))
    done(*again)
    page = Path("second/report.html").read_text(encoding="utf-8")
    assert "the same class as its teacher for" in page
    assert "no labels" in squeezed(done("validate", "second/config.yaml").output)


def test_afterwards_an_evaluation_asks_for_labels_not_for_trust(dense: nn.Module, images: Path, here: Path) -> None:
    done(*tuned("--unlabelled", images, "--teacher", "dense.pt", "--out", "run", *SHORT))
    wanted = "Give a recipe that names a data set with labels: --config CONFIG.yaml"
    for verb in ("evaluate", "sweep", "sensitivity"):
        message = refusal(2, verb, "run", *CHAIN[:2])
        assert wanted in message
        assert "trust" not in message.lower()
    for verb in ("evaluate", "sweep"):
        assert wanted in refusal(2, verb, "run", "--trust")
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        for split in ("train", "val"):
            copy = here / "labelled" / split / str(number % 5) / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    named = ("data.name=imagefolder", "data.root=labelled")
    found = [document("evaluate", "run", *CHAIN[:2], *named, *trust) for trust in ((), ("--trust",))]
    assert found[0] == found[1]
    assert found[0]["test"]["count"] == 80
