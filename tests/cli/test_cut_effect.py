"""What `bnprune prune` says about the metric of the recipe after a cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import bnprune
from bnprune.config.recipe import load_recipe
from bnprune.data import load_data
from tests.cli.harness import document, done


def changed(checkpoint: Path, **config: object) -> Path:
    """Return a copy of a checkpoint whose stored recipe has other values."""
    with safe_open(checkpoint, "pt") as file:
        header = json.loads(file.metadata()["bnprune"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    header["config"] |= config
    save_file(tensors, "changed.safetensors", {"bnprune": json.dumps(header)})
    return Path("changed.safetensors")


def test_the_effect_is_measured_on_validation_images(trained: Path) -> None:
    effect = document("prune", trained, "--ratio", "0.5", "--out", "slim.safetensors")["effect"]
    held_out = load_data(load_recipe(trained.parents[1] / "config.yaml").data).validation
    (images, labels), *_ = held_out.serve([torch.arange(len(held_out))], torch.device("cpu"))
    for path, key in ((trained, "before"), (Path("slim.safetensors"), "after")):
        right = bnprune.load(path).eval()(images).argmax(1) == labels
        assert effect[key] == pytest.approx(float(right.float().mean()))
    assert (effect["metric"], effect["images"]) == ("top1", len(held_out))
    shown = done("prune", trained, "--ratio", "0.5", "--out", "other.safetensors")
    assert f"{effect['after']:.2%} after pruning" in shown.stdout + shown.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the recipe's device is there")
def test_a_cut_does_not_fail_because_the_device_of_the_recipe_is_missing(trained: Path) -> None:
    given = changed(trained, device="cuda")
    found = document("prune", given, "--ratio", "0.5", "--out", "slim.safetensors")
    assert found["verification"]["passed"]
    assert found.get("effect") is None
    assert Path("slim.safetensors").is_file()
