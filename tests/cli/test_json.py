"""`--json`: one document on stdout, with a schema, whatever happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnprune.pruning import surgery, verify
from tests.cli.harness import CHAIN, bnprune, contents, document, read_json, write

FIGURES = ("ratio", "channels", "params", "macs", "layers", "refusals")


def test_prune_says_all_that_is_promised(here: Path) -> None:
    found = document("prune", *CHAIN, "--ratio", "0.25", "--out", "slim.safetensors")
    assert found["schema"] == "bnprune.prune/1"
    assert found["ratio"] == {"requested": 0.25, "realised": 0.25}
    assert found["channels"] == {"before": 36, "after": 27}
    for kind in ("params", "macs"):
        assert 0 < found[kind]["after"] < found[kind]["before"]
    assert found["verification"]["passed"] is True
    assert 0 <= found["verification"]["max_relative_error"] <= 1e-9
    assert found["seconds"]["total"] > 0
    widths = {layer["name"]: (layer["before"], layer["after"]) for layer in found["layers"]}
    assert widths["4.2"] == (5, 5)
    assert [widths[name][0] for name in ("0.1", "1.1", "3.1")] == [8, 12, 16]
    assert sum(widths[name][1] for name in ("0.1", "1.1", "3.1")) == 27
    assert found["refusals"] == []
    assert found["out"] == "slim.safetensors"
    assert contents().keys() == {"slim.safetensors"}


def test_prune_gives_every_refusal_a_reason_and_a_fix(own: Path) -> None:
    found = document("prune", "--model", "own:Literal", "--input", "1,8,8")
    [refusal] = found["refusals"]
    assert refusal.keys() == {"site", "reason", "fix"}
    assert "fixed size" in refusal["reason"]
    assert "aten::view" in refusal["reason"]
    assert "forward()" in refusal["fix"]
    assert found["channels"]["before"] == 8


def test_a_refusal_names_its_site(own: Path) -> None:
    [refusal] = document("prune", "--model", "own:Literal", "--input", "1,8,8")["refusals"]
    assert refusal["site"] == "(network)"


def test_a_ratio_that_a_floor_prevents_has_a_reason() -> None:
    found = document("prune", *CHAIN, "--min-channels", "7", "--ratio", "0.7")
    assert found["ratio"]["realised"] < 0.6
    assert [refusal["site"] for refusal in found["refusals"]] == ["0.1", "1.1", "3.1"]
    for refusal in found["refusals"]:
        assert refusal["reason"] == "every layer keeps 7 channels if it has them"
        assert "lower min_channels" in refusal["fix"]


def test_a_ratio_that_is_reached_in_spite_of_a_floor_needs_no_reason() -> None:
    assert document("prune", *CHAIN, "--min-channels", "6", "--ratio", "0.5")["refusals"] == []


def test_a_ratio_above_what_the_last_channels_leave_has_a_reason() -> None:
    found = document("prune", *CHAIN, "--ratio", "0.99")
    assert found["channels"]["after"] == 3
    assert {refusal["reason"] for refusal in found["refusals"]} == {"every layer keeps one channel"}


def test_a_dry_run_gives_the_same_figures_and_the_plan_and_writes_nothing(trained: Path) -> None:
    dry = document("prune", trained, "--dry-run")
    assert contents() == {}
    assert dry["plan"]["schema"] == "bnprune.plan/1"
    assert dry["plan"]["cuts"]
    assert dry["verification"] == {"max_relative_error": None, "tolerance": 1e-9, "passed": None}
    assert dry["out"] is None
    wet = document("prune", trained)
    assert {name: dry[name] for name in FIGURES} == {name: wet[name] for name in FIGURES}


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_replayed_plan_has_the_figures_of_the_plan(option: tuple[str, ...], here: Path) -> None:
    planned = document("prune", *CHAIN, "--exclude", "1", "--dry-run")
    write("plan.json", json.dumps(planned["plan"]))
    replayed = document("prune", *CHAIN, "--plan", "plan.json", *option)
    for key in ("ratio", "channels", "params", "macs", "refusals"):
        assert replayed[key] == planned[key], key


def test_a_dry_run_of_a_plan_cuts_and_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With surgery and proof out of order everywhere, the dry run succeeds, and the same command without it fails."""
    write("plan.json", json.dumps(document("prune", *CHAIN, "--dry-run")["plan"]))
    for function in (surgery.apply, verify.verify):
        assert forbid(function, monkeypatch) >= 2, "it is patched where it is defined and where it is used"
    assert document("prune", *CHAIN, "--plan", "plan.json", "--dry-run")["verification"]["passed"] is None
    assert "AssertionError: apply was called" in bnprune("prune", *CHAIN, "--plan", "plan.json", "--debug").stderr


def forbid(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Make a function fail in every module of bnprune that holds it; return how many do."""

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError(f"{function.__name__} was called")

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "bnprune"]
    holders = [(module, key) for module in modules for key, value in vars(module).items() if value is function]
    for module, key in holders:
        monkeypatch.setattr(module, key, called)
    return len(holders)


def test_inspect(trained: Path) -> None:
    found = document("inspect", trained)
    assert found["schema"] == "bnprune.inspect/1"
    assert found["model"]["name"] == "mlp"
    assert found["input"] == [1, 16, 16]
    assert found["channels"] == {"total": 32, "prunable": 32}
    # Linear 256 -> 32, BatchNorm, Linear 32 -> 10
    assert found["params"] == 256 * 32 + 32 + 2 * 32 + 32 * 10 + 10
    assert found["macs"] == 256 * 32 + 32 * 10
    widths = {layer["name"]: (layer["width"], layer["prunable"]) for layer in found["layers"]}
    assert widths == {"layers.1": (32, 32), "layers.2": (32, 32), "layers.4": (10, 0)}


def test_inspect_says_why_channels_stay(own: Path) -> None:
    found = document("inspect", "--model", "own:build", "--input", "1,8,8", "--exclude", "0")
    assert found["channels"] == {"total": 8, "prunable": 0}
    assert "is excluded by '0'" in found["refusals"][0]["reason"]


def test_evaluate_repeats_the_figures_of_the_run(finished: tuple[Path, dict[str, Any]]) -> None:
    path, result = finished
    found = document("evaluate", path)
    assert found["schema"] == "bnprune.evaluate/1"
    assert found["accuracy"] == found["test"]["top1"] == result["stages"]["finetune"]["accuracy"]
    assert found["validation"]["top1"] == result["stages"]["finetune"]["validation_accuracy"]
    assert found["test"]["count"] + found["validation"]["count"] == 359 + 143


def test_validate(recipe: Path) -> None:
    found = document("validate", recipe, "train.lr=0.5")
    assert found["schema"] == "bnprune.validate/1"
    assert found["valid"] is True
    assert found["images"] == {"train": 1295, "validation": 143, "test": 359}
    assert found["config"]["train"]["lr"] == 0.5
    assert found["config"]["train"]["sparsity"]["lambda"] == "auto"


def test_doctor() -> None:
    found = document("doctor")
    assert found["schema"] == "bnprune.doctor/1"
    assert {"bnprune", "torch", "torchvision"} <= found["versions"].keys()
    assert found["problems"] == []


def test_run_prints_what_result_json_holds(finished: tuple[Path, dict[str, Any]]) -> None:
    path, printed = finished
    assert printed["schema"] == "bnprune.run/1"
    assert list(printed["stages"]) == ["train", "prune", "finetune"]
    assert printed == read_json((path / "result.json").read_text())
    assert printed["stages"]["prune"]["verification"]["passed"] is True
    for stage in printed["stages"].values():
        assert (path / stage["checkpoint"]).is_file()


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_a_stage_on_its_own_prints_its_result(verb: str, recipe: Path, run: Path) -> None:
    source = [recipe] if verb == "train" else [run]
    found = document(verb, *source, f"{verb}.epochs=1", "--out", "out")
    assert found["schema"] == "bnprune.run/1"
    assert list(found["stages"]) == [verb]


@pytest.mark.parametrize(
    ("exit_code", "code", "line"),
    [
        (2, "config", "prune --model mpl --input 3,8,8"),
        (2, "forward", "inspect --model tests.nets:chain --input 4,8,8"),
        (3, "pruning", "prune --model own:without_batchnorm --input 1,8,8"),
        (5, "checkpoint", "evaluate absent.safetensors"),
        (5, "data", "validate recipe.yaml data.name=mnist data.root=nowhere"),
    ],
)
def test_an_error_is_a_document_too(exit_code: int, code: str, line: str, recipe: Path, own: Path) -> None:
    found = document(*line.split(), exit_code=exit_code)
    assert found["schema"] == "bnprune.error/1"
    assert found["code"] == code
    assert len(found["problems"]) == 1


def test_an_error_is_told_on_stderr_as_well() -> None:
    result = bnprune("inspect", "absent.safetensors", "--json")
    [problem] = read_json(result.stdout)["problems"]
    assert problem in result.stderr


def test_problems_are_listed_one_by_one(recipe: Path) -> None:
    found = document("validate", recipe, "train.lr=-1", "prune.ratoi=0.5", "seed=x", exit_code=2)
    assert len(found["problems"]) == 3
    for key in ("train.lr", "prune.ratoi", "seed"):
        assert any(key in problem for problem in found["problems"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prune --rtaio 0.5", "No such option: --rtaio"),
        ("prune --ratio half", "Invalid value for '--ratio'"),
        ("validate", "Missing argument 'CONFIG'"),
        ("prnue", "Did you mean 'prune'?"),
        ("--bogus", "No such option: --bogus"),
    ],
)
def test_a_usage_error_is_a_document_too(line: str, expected: str) -> None:
    found = document(*line.split(), exit_code=2)
    assert (found["schema"], found["code"]) == ("bnprune.error/1", "config")
    [problem] = found["problems"]
    assert expected in problem


def test_an_interruption_is_a_document_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnprune.workflows.evaluate.evaluate_model", interrupted)
    assert document("evaluate", run, exit_code=130)["code"] == "interrupted"
