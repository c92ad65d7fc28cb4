"""Whole recipes on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bnprune
from bnprune.cli.render.progress import RichDisplay
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.runs.directory import RunDirectory
from bnprune.runs.pipeline import execute
from bnprune.runs.recipes import recipe_folder
from bnprune.runs.weights import read_tensors

STAGES = ("baseline", "train", "prune", "finetune")
QUICK = (
    "model.kwargs.width=0.125",
    "train.epochs=3",
    "train.sparsity.lambda=0.01",
    "finetune.epochs=2",
    "data.batch_size=128",
)


def recipe(*overrides: str) -> PipelineConfig:
    return load_recipe(recipe_folder() / "digits.yaml", overrides)


def run(config: PipelineConfig, path: Path, *, resume: bool = False, stopping=lambda: False, stages=STAGES) -> dict:
    directory = RunDirectory.resume(path, config) if resume else RunDirectory.new(path, force=False)
    with RichDisplay() as display:
        return execute(config, directory, display, stopping, stages).to_dict()


def weights(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {stage: read_tensors(path / "checkpoints" / f"{stage}.safetensors") for stage in STAGES}


def same(left: dict, right: dict) -> bool:
    return all(torch.equal(left[s][name], right[s][name]) for s in STAGES for name in left[s]) and all(
        left[s].keys() == right[s].keys() for s in STAGES
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "quick"
    return run(recipe(*QUICK), path), path


def test_the_result_has_the_figures_of_every_stage(quick) -> None:
    result, path = quick
    assert json.loads((path / "result.json").read_text()) == result
    for stage in STAGES:
        figures = result["stages"][stage]
        assert {
            "accuracy",
            "validation_accuracy",
            "channels",
            "params",
            "macs",
            "seconds",
            "latency_ms",
        } <= figures.keys()
        assert (path / figures["checkpoint"]).stat().st_size == figures["file_bytes"]
    assert result["stages"]["prune"]["params"] == result["stages"]["finetune"]["params"]
    assert result["stages"]["prune"]["channels"] == round(0.3 * result["stages"]["train"]["channels"])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "train" and "epoch" in line] == [1, 2, 3]
    assert all("gamma" in line for line in lines if line["stage"] == "train" and "epoch" in line)
    plan = bnprune.PruningPlan.from_json((path / "plan.json").read_text())
    assert plan.requested["ratio"] == 0.7
    assert json.loads((path / "env.json").read_text())["versions"]["torch"] == torch.__version__.split("+")[0]


def test_one_seed_gives_equal_bits(quick, tmp_path) -> None:
    run(recipe(*QUICK), tmp_path / "again")
    assert same(weights(quick[1]), weights(tmp_path / "again"))


@pytest.mark.parametrize("steps", [3, 25, 41, 62])
def test_an_interrupted_run_goes_on_exactly(quick, tmp_path, steps: int) -> None:
    """Stopped in the baseline, in training (twice) and in fine-tuning; 10 steps per epoch, 30 and 20 in all."""
    seen = 0

    def stopping() -> bool:
        nonlocal seen
        seen += 1
        return seen == steps

    with pytest.raises(bnprune.Interrupted):
        run(recipe(*QUICK), tmp_path / "run", stopping=stopping)
    result = run(recipe(*QUICK), tmp_path / "run", resume=True)
    assert same(weights(quick[1]), weights(tmp_path / "run"))
    lines = [(tmp_path / "run" / "metrics.jsonl").read_text(), (quick[1] / "metrics.jsonl").read_text()]
    assert lines[0] == lines[1]
    assert [result["stages"][s]["accuracy"] for s in STAGES] == [quick[0]["stages"][s]["accuracy"] for s in STAGES]


def test_a_finished_run_resumes_to_nothing(quick, capfd) -> None:
    result, path = quick
    assert run(recipe(*QUICK), path, resume=True) == result
    assert "Nothing to do" in capfd.readouterr().err


def test_a_changed_recipe_is_refused_with_a_diff(quick) -> None:
    with pytest.raises(bnprune.ConfigError, match=r"configuration has changed(.|\n)*-seed: 0\n\+seed: 1"):
        run(recipe(*QUICK, "seed=1"), quick[1], resume=True)


def test_a_checkpoint_of_a_run_is_an_ordinary_network(quick) -> None:
    _, path = quick
    model = bnprune.load(path / "checkpoints" / "finetune.safetensors")
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    torch.export.export(model, (torch.zeros(2, 1, 16, 16),))
