"""Segmentation, detection and a task of the user's own, through the whole pipeline and every command after it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bnprune
from bnprune.runs.recipes import recipe_folder
from tests.cli.harness import document, done, refusal, write
from tests.cli.test_failures import wait_for
from tests.e2e.test_readme import blocks

QUICK = ("model.kwargs.width=6", "data.limit=160", "baseline=false", "finetune.epochs=1", "data.batch_size=32")
SHORT = (*QUICK, "threads=1", "train.epochs=2", "train.sparsity.schedule=constant")
CHEAPLY = ("prune.compensate=false", "prune.reconstruct=0", "prune.recalibrate=0")
"""Try no repairs."""
TASKS = {"segmentation": "mIoU", "detection": "mAP"}


@pytest.fixture(scope="module", params=list(TASKS))
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A task, and a small run of its recipe."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    recipe = recipe_folder() / f"digits-{request.param}.yaml"
    return request.param, path, document("run", recipe, *SHORT, "prune.reconstruct=64", "--out", path)


def test_a_recipe_runs_and_is_judged_by_its_own_metric(ran: tuple[str, Path, dict[str, Any]]) -> None:
    task, path, result = ran
    names = {"segmentation": ["miou", "pixel_accuracy", "loss"], "detection": ["map", "map50"]}[task]
    for figures in result["stages"].values():
        assert figures["metric"] == names[0]
        assert list(figures["values"]) == names
        assert figures["accuracy"] == figures["values"][names[0]]
        assert (figures["loss"] is None) == ("loss" not in names)
    pruned = result["stages"]["prune"]
    assert pruned["macs"] <= 0.5 * result["stages"]["train"]["macs"]
    assert pruned["verification"]["max_relative_error"] <= 1e-9
    best = max(pruned["recovery"]["validation"].values())
    assert pruned["validation_accuracy"] == pytest.approx(best)
    epochs = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in epochs if "epoch" in line]
    assert all(line["metric"] == names[0] and names[0] in line["validation"] for line in trained)
    assert all(line["train"]["loss"] > 0 for line in trained)


def test_every_command_knows_the_metric(ran: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    task, path, result = ran
    label = TASKS[task]
    final = result["stages"]["finetune"]
    found = document("evaluate", path)
    assert found["metric"] == final["metric"]
    assert found["test"]["values"] == pytest.approx(final["values"])
    assert label in done("evaluate", path).stdout
    cheaply = ("--tolerance", "0.5", *CHEAPLY)
    swept = document("sweep", path, "--at", "0.4", *cheaply)
    assert swept["metric"] == final["metric"]
    assert swept["points"][0]["accuracy"] == result["stages"]["train"]["validation_accuracy"]
    assert swept["points"][1]["lower"] <= swept["points"][1]["accuracy"] <= swept["points"][1]["upper"]
    table = tmp_path / "sensitivity.json"
    document("sensitivity", path, "--at", "0.5", "--out", table, "prune.reconstruct=0", "prune.recalibrate=0")
    assert json.loads(table.read_text())["settings"]["metric"] == final["metric"]
    chosen = ("--stage", "train", "--macs", "0.5", "--sensitivity", table)
    cut = document("prune", path, *chosen, "--out", tmp_path / "slim.safetensors")
    assert cut["verification"]["passed"]
    page = (path / "report.html").read_text()
    assert f"Test {label}" in page
    assert not re.search("(test|validation) accuracy|classifies", page, re.IGNORECASE)
    text = done("sweep", path, "--at", "0.4", *cheaply).stdout
    assert f"validation {label}" in text
    assert "accuracy" not in text


def test_the_slim_network_can_be_trained_further(ran: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    _, path, result = ran
    again = document("finetune", path / "checkpoints" / "prune.safetensors", "--out", tmp_path / "again")
    assert again["stages"]["finetune"]["metric"] == result["stages"]["prune"]["metric"]
    assert again["before"]["prune"]["accuracy"] == pytest.approx(result["stages"]["prune"]["accuracy"])


def test_a_killed_run_resumes_to_equal_bits(ran: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    task, path, result = ran
    recipe = recipe_folder() / f"digits-{task}.yaml"
    line = ["run", str(recipe), *SHORT, "prune.reconstruct=64", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "bnprune", *line]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = document(*line, "--resume")
    for stage in ("train", "prune", "finetune"):
        assert again["stages"][stage]["values"] == result["stages"][stage]["values"]
        whole, resumed = (load_file(one / "checkpoints" / f"{stage}.safetensors") for one in (path, tmp_path / "run"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_finish(ran: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    task, _, result = ran
    recipe = recipe_folder() / f"digits-{task}.yaml"
    line = [sys.executable, "-m", "bnprune", "run", str(recipe), *SHORT, *CHEAPLY, "data.limit=64"]
    line += ["--processes", "2", "--json"]
    line += ["--out", str(tmp_path / "run")]
    found = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    stages = json.loads(found.stdout)["stages"]
    assert stages["finetune"]["macs"] <= 0.5 * stages["train"]["macs"]
    assert stages["finetune"]["values"].keys() == result["stages"]["finetune"]["values"].keys()


def test_a_segmentation_network_learns_from_its_teacher(here: Path) -> None:
    recipe = recipe_folder() / "digits-segmentation.yaml"
    done("run", recipe, *SHORT, "finetune.distill=true", "--out", "run")
    teacher = ("--teacher", "run/checkpoints/train.safetensors")
    first = document("finetune", "run/checkpoints/prune.safetensors", *teacher, "finetune.epochs=1", "--out", "again")
    assert first["stages"]["finetune"]["metric"] == "miou"


def test_a_detector_has_no_scores_to_learn_from(here: Path) -> None:
    recipe = recipe_folder() / "digits-detection.yaml"
    result = refusal(2, "run", recipe, *SHORT, "finetune.distill=true", "--out", "run")
    assert "the task 'detection' has no class scores to learn from" in result
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("digits-segmentation", ("data.name=digits",), "'digits' has labels, and the task needs masks"),
        ("digits-segmentation", ("task=classification",), "has masks, and the task needs labels"),
        ("digits-segmentation", ("model.name=resnet20",), "needs logits of shape (N, classes, 48, 48)"),
        ("digits-detection", ("model.name=unet",), "the forward pass of the network fails"),
        ("digits-detection", ("train.mixup=0.2",), "for the task 'classification' only"),
        ("digits-detection", ("train.label_smoothing=0.1",), "is not for the task 'detection'"),
        ("digits-detection", ("task=detektion",), "must be 'classification', 'segmentation' or 'detection'"),
        ("digits-detection", ("task={factory: my_task:gone}",), "there is no module 'my_task'"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_first(
    here: Path, recipe: str, overrides: tuple[str, ...], message: str
) -> None:
    refused = [name for name in QUICK if "model.name=resnet20" not in overrides or "width" not in name]
    text = refusal(2, "run", recipe_folder() / f"{recipe}.yaml", *refused, *overrides, "--out", "run")
    assert message in " ".join(text.split())
    assert not Path("run").exists()


# -- a task of the user's own ------------------------------------------------------------------------------------------


SMALL = ("model.name=mlp", "model.kwargs={num_classes: 1, in_channels: 1, image_size: 8, hidden: [32]}")
"""A network that trains in a second."""


@pytest.fixture
def regression(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The task of the README: its code and its recipe."""
    code = next(block for block in blocks("python") if "class Regression" in block)
    write("my_task.py", code)
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    return write("regression.yaml", next(block for block in blocks("yaml") if "my_task" in block))


def test_the_task_of_the_readme_runs_the_whole_pipeline(regression: Path) -> None:
    quick = (*SMALL, *CHEAPLY, "train.epochs=4", "finetune.epochs=1")
    result = document("run", regression, *quick, "--out", "run")
    assert [figures["metric"] for figures in result["stages"].values()] == ["negative error"] * 3
    errors = {stage: -figures["accuracy"] for stage, figures in result["stages"].items()}
    assert 0 < errors["finetune"] < 2.2  # the mean error of guessing the middle is 2.5
    assert result["stages"]["finetune"]["loss"] is None
    text = done("evaluate", "run", "--trust").stdout
    assert "negative error" in text
    assert f"{-errors['finetune']:.4g}" in text
    swept = document("sweep", "run", "--at", "0.2", "--tolerance", "0.9", "--trust", *CHEAPLY)
    assert swept["points"][0]["accuracy"] < 0
    assert "%" not in done("report", "run").stdout
    page = Path("run/report.html").read_text()
    assert "Test negative error" in page


def test_a_task_in_a_file_is_not_run_unless_it_is_trusted(regression: Path) -> None:
    quick = (*SMALL, *CHEAPLY, "train.epochs=1", "finetune.epochs=1")
    done("run", regression, *quick, "--out", "run")
    path = "run/checkpoints/finetune.safetensors"
    text = refusal(5, "evaluate", path)
    assert "task.factory" in text
    assert "--trust" in text
    done("evaluate", path, "--trust")
    done("evaluate", path, "data.factory=my_task:digits", "task.factory=my_task:Regression")
    assert bnprune.load(path) is not None  # the network itself is of the zoo
