"""The commands as Python functions: the same work, typed results, and messages in the words of Python."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

import bnprune
from bnprune.runs.results import StageResult
from bnprune.workflows.evaluate import evaluate
from bnprune.workflows.results import RunResult
from tests.cli.harness import RECIPE, document
from tests.nets import chain

EXPORT = "export.formats=[state-dict]"
VARYING = ("seconds", "latency_ms", "steps_seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> RunResult:
    return bnprune.run(folder / "recipe.yaml", [EXPORT], out=folder / "run")


def test_a_recipe_runs_from_python_with_export_and_report(result: RunResult, folder: Path) -> None:
    assert list(result.stages) == ["train", "prune", "finetune"]
    assert result.path == folder / "run"
    assert (folder / "run" / "report.html").is_file()
    [export] = result.exports
    assert export.verification.passed is True
    assert all((folder / "run" / file.path).stat().st_size == file.bytes for file in export.files)
    assert json.loads((folder / "run" / "result.json").read_text()) == result.to_dict()


def test_it_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bnprune.run(folder / "recipe.yaml", ["train.epochs=1", "prune=null", "finetune=null"], out=folder / "silent")
    assert capfd.readouterr() == ("", "")


def test_it_does_what_the_command_line_does(result: RunResult, folder: Path) -> None:
    def figures(stage: StageResult) -> dict[str, object]:
        return {key: value for key, value in stage.to_dict().items() if key not in VARYING}

    printed = RunResult.model_validate(document("run", folder / "recipe.yaml", EXPORT, "--out", folder / "shell"))
    assert printed.stages.keys() == result.stages.keys()
    for name, stage in result.stages.items():
        assert figures(stage) == figures(printed.stages[name])


def test_the_result_is_read_back_as_it_was_written(result: RunResult) -> None:
    text = json.dumps(result.to_dict())
    again = RunResult.model_validate(json.loads(text))
    assert again.to_dict() == result.to_dict()
    pruned = again.stages["prune"].pruned
    assert pruned is not None
    assert pruned.channels.after < pruned.channels.before


def test_keys_of_a_later_version_are_kept() -> None:
    data = {"schema": "bnprune.run/1", "seed": 0, "stages": {}, "new": [1]}
    assert RunResult.model_validate(data).to_dict() == data


def test_a_run_is_swept_exported_evaluated_and_measured(result: RunResult, folder: Path) -> None:
    run = folder / "run"
    swept = bnprune.sweep(run, values=[0.3, 0.5], tolerance=0.9)
    assert [point.asked for point in swept.points] == [0, 0.3, 0.5]
    assert swept.recommended == swept.points[-1]
    exported = bnprune.export(run, out=folder / "network.pt2")
    assert exported.format == "pt2"
    assert (folder / "network.pt2").is_file()
    measured = bnprune.benchmark(run, dense=True, batch=1, rounds=2, device="cpu")
    assert len(measured.networks) == 2
    assert measured.timings[0].ratio is not None
    assert evaluate(run).accuracy == result.stages["finetune"].accuracy


def test_messages_are_in_the_words_of_python(folder: Path) -> None:
    with pytest.raises(bnprune.ConfigError, match="Choose another name, or overwrite it.$") as exists:
        bnprune.run(folder / "recipe.yaml", out=folder)
    assert (exists.value.argument, exists.value.remedy) == ("out", {"force": True})
    with pytest.raises(bnprune.ConfigError, match="^say which run.$") as unnamed:
        bnprune.run(folder / "recipe.yaml", resume=True)
    assert (unnamed.value.argument, unnamed.value.remedy) == ("resume", {"out": "DIR"})
    with pytest.raises(bnprune.ConfigError, match="^no network given") as nothing:
        bnprune.export(format="onnx")
    assert nothing.value.remedy == {"model": "NAME", "input_shape": "3,224,224"}


def test_a_plan_is_what_prune_carries_out() -> None:
    model, inputs = chain(), torch.zeros(1, 3, 8, 8)
    plan = bnprune.plan(model, inputs, macs=0.5)
    pruned = bnprune.prune(model, inputs, macs=0.5)
    assert plan == pruned.plan
    slim, noise = bnprune.apply(plan, model).eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(slim(noise), pruned.model.eval()(noise))


def test_plan_takes_what_prune_takes() -> None:
    prune, plan = (inspect.signature(function).parameters for function in (bnprune.prune, bnprune.plan))
    assert {name: prune[name] for name in plan} == dict(plan)
    assert prune.keys() - plan.keys() == {"proof"}
