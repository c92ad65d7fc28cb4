"""Distillation, the `scratch` stage and TensorBoard, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnprune.cli.render.progress import RichDisplay
from bnprune.config.recipe import load_recipe
from bnprune.errors import Interrupted
from bnprune.models.zoo import build
from bnprune.pruning.surgery import apply
from bnprune.runs.checkpoint import read_header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.from_scratch import scratch_network
from bnprune.runs.pipeline import execute
from bnprune.runs.preflight import initial, spec_of
from bnprune.runs.stages import stages_of
from tests.cli.harness import RECIPE, document, done, refusal, spawn, squeezed, tensor_bytes, write

MORE = ("finetune.distill=true", "scratch=compute", "tensorboard=true", "train.ema=0.9")


@pytest.fixture(scope="module")
def strong(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with everything, to be read only."""
    folder = tmp_path_factory.mktemp("strong")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "run", document("run", folder / "recipe.yaml", *MORE, "--out", folder / "run")


def checkpoint(run: Path, stage: str) -> Path:
    return run / "checkpoints" / f"{stage}.safetensors"


def fine_tuned(run: Path) -> list[dict[str, Any]]:
    """The metrics of the epochs of fine-tuning: the network that is kept may be the one before them."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["stage"] == "finetune"]


def config_of(run: Path):
    return load_recipe(run / "config.yaml")


# -- the from-scratch arm ----------------------------------------------------------------------------------------------


def test_the_control_arm_spends_what_the_pruned_network_did(strong, recipe: Path) -> None:
    stages = strong[1]["stages"]
    assert list(stages) == ["train", "prune", "finetune", "scratch"]
    assert stages["scratch"]["epochs"] == round(2 * stages["train"]["macs"] / stages["prune"]["macs"] + 1) == 5
    found = document("run", recipe, "scratch=epochs", "data.limit=300", "--out", "equal")
    assert found["stages"]["scratch"]["epochs"] == 2 + 1
    assert "sparsity" not in found["stages"]["scratch"]


def test_it_has_the_same_architecture_and_other_weights(strong) -> None:
    run, result = strong
    slim, control = (load_file(checkpoint(run, stage)) for stage in ("finetune", "scratch"))
    assert {name: t.shape for name, t in control.items()} == {name: t.shape for name, t in slim.items()}
    for figure in ("params", "macs", "channels"):
        assert result["stages"]["scratch"][figure] == result["stages"]["finetune"][figure]
    assert read_header(checkpoint(run, "scratch")).plans == read_header(checkpoint(run, "prune")).plans


def test_its_weights_are_not_those_the_dense_network_started_from(strong) -> None:
    config = config_of(strong[0])
    new, header = scratch_network(config, RunDirectory(strong[0]))
    kept = initial(config)[0]
    for plan in header.plans:
        kept = apply(plan, kept)
    weights = [(a, b) for a, b in zip(new.parameters(), kept.parameters(), strict=True) if a.dim() > 1]
    assert weights
    assert not any((a == b).any() for a, b in weights)
    again = scratch_network(config, RunDirectory(strong[0]))[0]
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))


def test_a_network_that_comes_trained_starts_from_new_weights(here: Path) -> None:
    code = """\
import torch
from torch import nn


def build():
    with torch.random.fork_rng():
        torch.manual_seed(5)  # as if it had been trained
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
"""
    write("trained.py", code)
    text = RECIPE.replace("name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [32]}", "factory: trained:build")
    done("run", write("own.yaml", text), "data.limit=200", "scratch=epochs", "--out", "run")
    config = config_of(here / "run")
    new = scratch_network(config, RunDirectory(here / "run"))[0]
    first = build(spec_of(config))[1].weight
    assert not torch.isin(new[1].weight, first).any()


def test_a_run_leaves_behind_the_pruned_network_and_not_the_control(strong) -> None:
    assert RunDirectory(strong[0]).network().stem == "finetune"


def test_the_control_arm_comes_after_all_passes(recipe: Path) -> None:
    config = load_recipe(recipe, ["prune.passes=2", "scratch=epochs", "baseline=true"])
    assert stages_of(config) == ("baseline", "train", "prune", "finetune", "prune-2", "finetune-2", "scratch")


def test_the_control_arm_of_two_passes_pays_for_each(recipe: Path) -> None:
    overrides = ("prune.passes=2", "scratch=compute", "data.limit=300", "--out", "run")
    stages = document("run", recipe, *overrides)["stages"]
    paid = 2 * stages["train"]["macs"] + stages["finetune"]["macs"] + stages["finetune-2"]["macs"]
    assert stages["scratch"]["epochs"] == round(paid / stages["finetune-2"]["macs"])
    assert stages["scratch"]["macs"] == stages["finetune-2"]["macs"]


@pytest.mark.parametrize("missing", ["train", "prune"])
def test_a_control_arm_with_nothing_to_compare_is_refused(recipe: Path, missing: str) -> None:
    message = refusal(2, "run", recipe, "scratch=epochs", f"{missing}=null")
    assert f"scratch: needs 'train' and 'prune', whose architecture and length it repeats: add '{missing}'" in message


def test_the_summary_names_the_control_arm(strong) -> None:
    run, _ = strong
    text = done("run", run / "config.yaml", "--out", run, "--resume").stdout
    assert "from scratch" in text


# -- distillation ------------------------------------------------------------------------------------------------------


def test_the_teacher_of_a_run_is_the_network_before_the_cut(strong, here: Path) -> None:
    """The same fine-tuning again, the teacher named."""
    run, _ = strong
    source, teacher = checkpoint(run, "prune"), checkpoint(run, "train")
    done("finetune", source, "--teacher", teacher, "tensorboard=false", "--out", "again")
    assert tensor_bytes(checkpoint(here / "again", "finetune")) == tensor_bytes(checkpoint(run, "finetune"))
    done("finetune", source, "finetune.distill=false", "--out", "alone")
    assert fine_tuned(here / "again") == fine_tuned(run)
    assert fine_tuned(here / "alone") != fine_tuned(run)


def test_a_run_directory_has_the_teacher(run: Path, here: Path) -> None:
    done("finetune", run, "finetune.distill=true", "--out", "tuned")
    assert config_of(here / "tuned").finetune.distill.teacher == checkpoint(run, "train")
    again = ("finetune", run, "finetune.distill=true", "--out", "tuned", "--resume")
    assert "Nothing to do" in done(*again).stderr


def test_a_pruned_file_on_its_own_asks_for_a_teacher(run: Path, trained: Path, here: Path) -> None:
    done("prune", trained, "--out", "slim.safetensors")
    message = refusal(2, "finetune", "slim.safetensors", "finetune.distill.temperature=2", "--out", "tuned")
    assert "name its checkpoint (finetune.distill.teacher): --teacher FILE." in message
    done("finetune", "slim.safetensors", "--teacher", trained, "finetune.distill.temperature=2", "--out", "tuned")
    distill = config_of(here / "tuned").finetune.distill
    assert (distill.temperature, distill.weight) == (2.0, 0.9)


def test_a_teacher_that_is_not_there_or_does_not_fit(run: Path, here: Path) -> None:
    slim = checkpoint(run, "prune")
    message = refusal(5, "finetune", slim, "--teacher", "absent.safetensors", "--out", "tuned")
    assert "finetune.distill.teacher: 'absent.safetensors' does not exist" in message
    arguments = ("--model", "mlp", "--model-arg", "image_size=8", "--input", "1,8,8")
    done("prune", *arguments, "--out", "other.safetensors")
    message = refusal(2, "finetune", slim, "--teacher", "other.safetensors", "--out", "tuned")
    assert "finetune.distill.teacher: the network does not fit the data" in message


def test_distillation_is_a_switch_or_a_section(recipe: Path) -> None:
    found = load_recipe(recipe, ["finetune.distill=true"]).finetune.distill
    assert (found.temperature, found.weight, found.teacher) == (4.0, 0.9, None)
    assert load_recipe(recipe, ["finetune.distill=false"]).finetune.distill is None
    message = refusal(2, "validate", recipe, "finetune.distill.wieght=1")
    assert "finetune.distill.wieght: unknown key (got 1). Did you mean 'weight'?" in message


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [12, 25, 47], ids=["average", "distillation", "scratch"])
def test_an_interrupted_run_goes_on_exactly(strong, here: Path, steps: int) -> None:
    """10 steps per epoch: 20 in training, 10 in fine-tuning, 50 from scratch."""
    whole, config = strong[0], config_of(strong[0])
    seen = iter(range(1, 1000))
    directory = RunDirectory.new(here / "run", force=False)
    with RichDisplay() as display, pytest.raises(Interrupted):
        execute(config, directory, display, lambda: next(seen) == steps, stages_of(config))
    done("run", whole / "config.yaml", "--out", "run", "--resume")
    for stage in stages_of(config):
        assert tensor_bytes(checkpoint(here / "run", stage)) == tensor_bytes(checkpoint(whole, stage)), stage
    for stage in ("train", "finetune", "scratch"):
        curves = [EventAccumulator(str(run / "tensorboard" / stage)).Reload() for run in (here / "run", whole)]
        ours, theirs = ([(e.step, e.value) for e in c.Scalars("loss/train")] for c in curves)
        assert ours == theirs


# -- torch.compile -----------------------------------------------------------------------------------------------------


def test_without_a_compiler_nothing_is_started(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/absent/g++")  # in a process of its own: the compiler is looked up once
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    process = spawn("train", recipe, "train.compile=true", "--out", "run")
    message = squeezed(process.communicate(timeout=120)[1])
    assert process.returncode == 2
    assert not Path("run").exists()
    assert "train.compile: torch.compile does not work here: " in message
    assert "needs a C++ compiler (g++ or clang++); install it, or set train.compile=false" in message


# -- tensorboard -------------------------------------------------------------------------------------------------------


def test_the_curves_are_those_of_the_metrics(strong) -> None:
    run, _ = strong
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for stage in ("train", "finetune", "scratch"):
        epochs = [line for line in lines if line["stage"] == stage and "epoch" in line]
        tensorboard_log = EventAccumulator(str(run / "tensorboard" / stage)).Reload()
        curve = tensorboard_log.Scalars("accuracy/validation")
        assert [event.step for event in curve] == [line["epoch"] for line in epochs]
        assert [event.value for event in curve] == pytest.approx([line["validation"]["top1"] for line in epochs])
    below = EventAccumulator(str(run / "tensorboard" / "train")).Reload()
    assert [event.value for event in below.Scalars("gamma/below")] == pytest.approx(
        [line["gamma"]["below"] for line in lines if "gamma" in line]
    )
    assert below.Histograms("gamma")[0].histogram_value.num == 32


def test_a_run_that_is_started_over_loses_its_curves(recipe: Path, here: Path) -> None:
    line = ("train", recipe, "data.limit=200", "--out", "run")
    done(*line, "tensorboard=true")
    assert list((here / "run/tensorboard").rglob("events*"))
    done(*line, "--force")
    assert not list((here / "run/tensorboard").rglob("events*"))


def test_without_tensorboard_nothing_is_started(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = refusal(2, "train", recipe, "tensorboard=true", "--out", "run")
    assert "tensorboard: the package is not installed: pip install tensorboard" in message
