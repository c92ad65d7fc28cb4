"""`finetune --unlabelled`: a pruned network learns from the outputs of its teacher on images without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import bnprune as library
from bnprune.data.unlabelled import Preprocessing, unlabelled_images
from tests.cli.harness import CHAIN, document, done
from tests.nets import chain, randomized

SETTINGS = ("finetune.epochs=12", "finetune.lr=0.01", "finetune.optimizer=adam", "data.batch_size=16", "threads=1")


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
