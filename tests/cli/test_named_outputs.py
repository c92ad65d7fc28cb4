"""`--outputs` and the recipe key: the outputs that count."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnprune
from bnprune.config.recipe import load_recipe
from bnprune.runs.directory import dump_config
from bnprune.runs.passes import request_of
from tests.cli.harness import document, done, read_json, refusal, write

NETWORK = """\
import torch
from torch import nn

import own


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = own.build()[:3], own.build()[3:]

    def forward(self, x):
        features = self.body(x)
        return {"scores": self.head(features), "features": [features]}


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = own.build()

    def forward(self, x):
        assert x.dtype == torch.float32
        return self.layers(x)
"""


@pytest.fixture
def network(own: Path) -> tuple[str, ...]:
    write("several.py", NETWORK)
    return "--model", "several:Features", "--input", "1,8,8"


def test_prune_takes_the_outputs_that_count(network: tuple[str, ...]) -> None:
    found = document("prune", *network, "--outputs", "scores", "--ratio", "0.5", "--out", "slim.safetensors")
    assert found["channels"] == {"before": 8, "after": 4}
    assert found["verification"]["outputs"] == "scores"
    assert found["verification"]["dtype"] == "float64"
    assert any("only 'scores' of the output counts" in note for note in found["notes"])
    message = refusal(3, "prune", *network, "--ratio", "0.5", "--out", "other.safetensors")
    assert "output of the network" in message


def test_inspect_takes_the_outputs_that_count(network: tuple[str, ...]) -> None:
    assert document("inspect", *network)["channels"]["prunable"] == 0
    assert document("inspect", *network, "--outputs", "scores")["channels"]["prunable"] == 8


def test_a_plan_is_replayed_with_its_outputs(network: tuple[str, ...]) -> None:
    plan = document("prune", *network, "--outputs", "scores", "--ratio", "0.5", "--dry-run")["plan"]
    assert plan["requested"]["outputs"] == "scores"
    write("plan.json", bnprune.PruningPlan.from_dict(plan).to_json())
    found = document("prune", *network, "--plan", "plan.json", "--out", "slim.safetensors")
    assert found["verification"]["outputs"] == "scores"
    assert found["verification"]["passed"]
    assert any("only 'scores' of the output counts" in note for note in found["notes"])


def test_a_wrong_path_says_what_there_is(network: tuple[str, ...]) -> None:
    message = refusal(2, "prune", *network, "--outputs", "features.1", "--out", "slim.safetensors")
    assert "'features.1' does not exist: 'features' of the output is a list of 1 (0: tensor (1, 8, 8, 8))" in message


def test_a_network_in_float32_says_so(network: tuple[str, ...]) -> None:
    asked = ("prune", "--model", "several:Single", "--input", "1,8,8", "--ratio", "0.5")
    found = document(*asked, "--out", "slim.safetensors")["verification"]
    assert found["dtype"] == "float32"
    assert found["passed"]
    assert found["max_relative_error"] <= found["tolerance"] < 1e-3
    assert "in float32" in done(*asked, "--out", "again.safetensors").stdout


RECIPE = """\
model: {name: mlp}
data: {name: digits}
prune: {outputs: %s}
"""


@pytest.mark.parametrize(("text", "path"), [("0", "0"), ("'0.1'", "0.1"), ("preds.0", "preds.0"), ("null", None)])
def test_a_recipe_names_the_outputs_that_count(here: Path, text: str, path: str | None) -> None:
    config = load_recipe(write("recipe.yaml", RECIPE % text))
    assert config.prune.outputs == path
    assert request_of(config.prune).outputs == path
    assert load_recipe(write("again.yaml", dump_config(config))).prune.outputs == path


@pytest.mark.parametrize(("text", "message"), [("1.10", "must be in quotes"), ("[0]", "must be a path such as")])
def test_a_recipe_with_another_value_is_refused(here: Path, text: str, message: str) -> None:
    with pytest.raises(bnprune.ConfigError, match=rf"recipe\.yaml:3: prune\.outputs: .*{message}"):
        load_recipe(write("recipe.yaml", RECIPE % text))


def test_a_run_records_the_precision_of_the_proof(run: Path) -> None:
    stages = read_json((run / "result.json").read_text(encoding="utf-8"))["stages"]
    assert stages["prune"]["verification"]["dtype"] == "float64"
