"""Files written by version 0.1 (`tests/fixtures/version-0.1`): every later version reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import bnprune
from bnprune.runs.checkpoint import read_header
from bnprune.training.penalties import table as penalties
from tests.cli.harness import document, done, read_json

FIXTURES = Path(__file__).parent.parent / "fixtures" / "version-0.1"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of every file."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    return tmp_path


def figures(run: Path) -> dict[str, tuple[float, int, int]]:
    stages = read_json((run / "result.json").read_text())["stages"]
    return {name: (entry["accuracy"], entry["params"], entry["macs"]) for name, entry in stages.items()}


def test_a_checkpoint_loads_and_computes_the_same() -> None:
    slim = bnprune.load(FIXTURES / "slim.safetensors")
    with torch.no_grad():
        outputs = slim(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16))[0]
    torch.testing.assert_close(outputs, torch.tensor(read_outputs()), rtol=1e-4, atol=1e-5)


def read_outputs() -> list[float]:
    outputs: list[float] = json.loads((FIXTURES / "slim-outputs.json").read_text())
    assert len(outputs) == 10
    return outputs


def test_a_checkpoint_is_pruned_again(here: Path) -> None:
    found = document("prune", "slim.safetensors", "--ratio", "0.3", "--out", "slimmer.safetensors")
    assert found["verification"]["passed"] is True
    with safe_open("slimmer.safetensors", "pt") as file:
        assert read_json(file.metadata()["bnprune"])["version"] == bnprune.__version__
    first, second = read_header(here / "slimmer.safetensors").plans
    assert first.version is None, "version 0.1 did not write it"
    assert second.version == second.to_dict()["version"] == bnprune.__version__


def test_a_plan_with_gates_applies_to_a_fresh_network() -> None:
    plan = bnprune.PruningPlan.from_json((FIXTURES / "plan-gates.json").read_text())
    assert len(plan.gates) == 54
    dense = bnprune.build(bnprune.ModelSpec("preresnet164"))
    slim = bnprune.apply(plan, dense)
    assert elements(slim) < 0.9 * elements(dense)
    with torch.no_grad():
        assert slim.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def elements(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_plan_is_replayed(here: Path) -> None:
    plan = read_header(here / "finished" / "checkpoints" / "prune.safetensors").plans[0]
    assert plan == bnprune.PruningPlan.from_json((here / "finished" / "plan.json").read_text())
    found = document(
        "prune", "finished/checkpoints/train.safetensors", "--plan", "finished/plan.json", "--out", "again.safetensors"
    )
    assert found["verification"]["passed"] is True
    assert found["channels"] == {"before": 2, "after": 1}


def test_a_run_is_inspected(here: Path) -> None:
    found = document("inspect", "finished")
    assert (found["params"], found["macs"]) == figures(here / "finished")["finetune"][1:]


def test_a_run_is_evaluated(here: Path) -> None:
    accuracy, _, _ = figures(here / "finished")["finetune"]
    assert document("evaluate", "finished")["accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_a_run_is_reported(here: Path) -> None:
    done("report", "finished")
    page = (here / "finished" / "report.html").read_text(encoding="utf-8")
    accuracies = [accuracy for accuracy, _, _ in figures(here / "finished").values()]
    assert len(accuracies) == 3
    for accuracy in accuracies:
        assert f"{accuracy:.2%}" in page


def test_a_run_is_finetuned_further(here: Path) -> None:
    found = document("finetune", "finished", "finetune.epochs=1", "--out", "further")
    assert found["stages"]["finetune"]["params"] == figures(here / "finished")["finetune"][1]


def test_a_finished_run_is_resumed_without_training(here: Path) -> None:
    before = (here / "finished" / "result.json").read_bytes()
    done("run", "recipe.yaml", "--out", "finished", "--resume")
    assert (here / "finished" / "result.json").read_bytes() == before


def test_an_interrupted_run_goes_on_to_the_same_figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its saved state holds the optimizer, the random numbers and λ after two of three epochs.

    The limit of λ is that of version 0.1. It is larger now, with adaptive optimizers.
    """
    monkeypatch.setattr(penalties, "_STEERED_ADAPTIVE", 1.5)
    done("run", "recipe.yaml", "--out", "interrupted", "--resume")
    resumed, finished = figures(here / "interrupted"), figures(here / "finished")
    assert resumed.keys() == finished.keys() == {"train", "prune", "finetune"}
    for stage, (accuracy, *costs) in finished.items():
        assert resumed[stage][1:] == tuple(costs)
        assert resumed[stage][0] == pytest.approx(accuracy, abs=0.02)
