"""`bnprune sensitivity`, and `bnprune prune --sensitivity FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bnprune as package
from bnprune.config.schema import DataConfig
from bnprune.data import load_data
from bnprune.errors import CheckpointError, ConfigError
from bnprune.pruning.sensitivity import Sensitivity
from bnprune.recovery.training_images import training_batches
from bnprune.training.evaluate import evaluate
from bnprune.workflows import sensitivity as workflow
from tests.cli.harness import CHAIN, bnprune, document, done, refusal, squeezed
from tests.nets import chain

DIGITS = load_data(DataConfig(name="digits"))
RECIPE = """
seed: 0
model: {name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [32, 24]}}
data: {name: digits, augment: false}
train: {epochs: 2, optimizer: adam, lr: 2e-2}
"""
TABLE = Path("table.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sensitivity")
    (folder / "recipe.yaml").write_text(RECIPE)
    done("train", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def measured(trained: Path) -> tuple[str, dict[str, Any]]:
    """The text of a table, and the result of the command that made it."""
    made = document("sensitivity", trained, "--at", "0.75,0.5", "--out", trained.parent / "table.json")
    return (trained.parent / "table.json").read_text(), made


@pytest.fixture
def table(measured: tuple[str, dict[str, Any]], here: Path) -> Path:
    TABLE.write_text(measured[0])
    return TABLE


def test_each_group_is_cut_alone(trained: Path, measured: tuple[str, dict[str, Any]]) -> None:
    _, made = measured
    model = package.load(trained / "checkpoints" / "train.safetensors")
    start = evaluate(model, DIGITS.validation, torch.device("cpu")).value
    assert made["accuracy"] == start
    assert made["images"] == len(DIGITS.validation)
    assert [[point["share"] for point in group["points"]] for group in made["groups"]] == [[0.5, 0.75]] * 2
    group = made["groups"][1]
    names = [name for other in made["groups"] for name in other["layers"] if other is not group]
    ratios = dict.fromkeys(group["layers"], 0.5)
    asked = {"ratio": 0.01, "layer_ratios": ratios, "exclude": names, "criterion": "activation"}
    images = training_batches(DIGITS.train, 512)
    alone = package.apply(package.plan(model, DIGITS.example, **asked, calibrate=images), model)
    assert group["points"][0]["removed"] == group["channels"] / 2
    assert group["points"][0]["plain"] == evaluate(alone, DIGITS.validation, torch.device("cpu")).value
    assert all(point["accuracy"] >= point["plain"] for other in made["groups"] for point in other["points"])


@pytest.mark.parametrize(
    ("given", "criterion"),
    [((), "activation"), (("prune.criterion=gamma",), "gamma"), (("prune.calibrate_images=0",), "gamma")],
)
def test_the_table_names_the_criterion_that_was_asked_for(
    trained: Path, given: tuple[str, ...], criterion: str
) -> None:
    done("sensitivity", trained, *given, "--at", "0.5", "--out", "asked.json")
    assert Sensitivity.from_json(Path("asked.json").read_text()).settings["criterion"] == criterion


def test_an_interrupted_measurement_is_continued_to_the_same_file(
    trained: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = table.read_text(), 0
    write = workflow.write_text

    def interrupted(path: Path, text: str) -> None:
        nonlocal calls
        write(path, text)
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    command = ("sensitivity", trained, "--at", "0.5,0.75", "--out", "half.json")
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "write_text", interrupted)
        assert bnprune(*command).exit_code == 130
    half = Sensitivity.from_json(Path("half.json").read_text())
    assert [len(group.points) for group in half.groups] == [2, 1]
    result = bnprune(*command)
    assert "continuing half.json: 3 cuts have been evaluated" in squeezed(result.stderr)
    assert Path("half.json").read_text() == whole
    before = Path("half.json").stat().st_mtime_ns
    assert "100" not in done(*command).stderr
    assert Path("half.json").stat().st_mtime_ns == before


def test_a_table_measured_in_another_way_is_not_continued(trained: Path, table: Path) -> None:
    command = ("sensitivity", trained, "--out", TABLE)
    assert "measured with other shares. Choose another file, or overwrite it: --force" in refusal(5, *command)
    other = (*command, "--at", "0.5,0.75", "prune.criterion=uniform", "prune.reconstruct=0")
    assert "measured with other settings of pruning" in refusal(5, *other)
    TABLE.write_text("{}")
    assert "--out: 'table.json': not a sensitivity table" in refusal(5, *command)
    assert "must be between 0 and 1" in refusal(2, *command, "--at", "1.5")


def spare_first_group(table: Path) -> dict[str, Any]:
    """Let the table say that the second group can go, and that every cut of the first is ruinous."""
    data: dict[str, Any] = json.loads(table.read_text())
    for number, group in enumerate(data["groups"]):
        for point in group["points"]:
            point["accuracy"] = data["accuracy"] if number == 1 else 0.1
    table.write_text(json.dumps(data))
    return data


def test_prune_cuts_by_a_table(trained: Path, table: Path) -> None:
    """A layer that loses nothing is cut as far as it was measured; of one that loses all, nothing goes."""
    data = spare_first_group(table)
    source = trained / "checkpoints" / "train.safetensors"
    cut = document("prune", source, "--params", "0.93", "--sensitivity", TABLE, "--calibrate-images", "0", "--dry-run")
    names = data["groups"][1]["layers"]
    for layer in cut["layers"]:
        assert (layer["after"] < layer["before"]) == (layer["name"] in names)
    assert cut["target"]["realised"] <= 0.93


def test_python_and_recipes_cut_by_a_table_as_the_command_line_does(trained: Path, table: Path) -> None:
    spare_first_group(table)
    source = trained / "checkpoints" / "train.safetensors"
    done(
        "prune", source, "--params", "0.9", "--sensitivity", TABLE, "--calibrate-images", "0", "--out", "a.safetensors"
    )
    model, widths = package.load(source), shapes(package.load("a.safetensors"))
    assert shapes(package.prune(model, DIGITS.example, params=0.9).model) != widths
    made = package.sensitivity(trained, values=(0.5, 0.75), out=TABLE)
    for given in (TABLE, str(TABLE), Sensitivity.from_json(table.read_text()), made):
        result = package.prune(model, DIGITS.example, params=0.9, sensitivity=given)
        assert shapes(result.model) == widths
        assert package.plan(model, DIGITS.example, params=0.9, sensitivity=given) == result.plan
    overrides = (
        "prune.params=0.9",
        f"prune.sensitivity={TABLE.absolute()}",
        "prune.reconstruct=0",
        "finetune.epochs=1",
    )
    done("run", trained.parent / "recipe.yaml", "--out", "run", *overrides)
    assert shapes(package.load("run/checkpoints/prune.safetensors")) == widths


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_table_that_does_not_fit_is_refused_in_python_and_before_a_recipe_trains(trained: Path, table: Path) -> None:
    other, inputs = chain(), torch.zeros(1, 3, 8, 8)
    message = "'table.json' is the sensitivity table of another network .MLP."
    with pytest.raises(CheckpointError, match=message):
        package.prune(other, inputs, ratio=0.5, sensitivity=TABLE)
    with pytest.raises(ConfigError, match="both decide how much each layer loses"):
        package.prune(other, inputs, latency_ms=1.0, sensitivity=TABLE, profile="cpu.json")
    with pytest.raises(ConfigError, match="sensitivity: expected a file, or what it holds, got int"):
        package.prune(other, inputs, ratio=0.5, sensitivity=3)
    table.write_text(table.read_text().replace(json.loads(table.read_text())["model"]["weights"], "0"))
    model = package.load(trained / "checkpoints" / "train.safetensors")
    result = package.prune(model, DIGITS.example, macs=0.5, sensitivity=TABLE)
    assert [note.code for note in result.report.notes].count("sensitivity.weights") == 1
    recipe = trained.parent / "recipe.yaml"
    wider = ("model.kwargs.hidden=[40,24]", "prune.ratio=0.5", "prune.sensitivity=table.json")
    assert "of another network (MLP)" in refusal(5, "run", recipe, *wider, "--out", "other")
    assert not Path("other", "metrics.jsonl").exists()
    for change in ("prune.passes=2", "prune.ratio=auto"):
        assert "'sensitivity' needs one pass and a target" in refusal(
            2, "run", recipe, "prune.sensitivity=table.json", change
        )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--macs", "0.5"), 5, "is the sensitivity table of another network (MLP). Make a table of this network"),
        (("--latency", "1", "--profile", "cpu.json"), 2, "both decide how much each layer loses. Give one"),
        (("--plan", "plan.json"), 2, "a plan says which channels go. Leave the sensitivity table out"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("cpu.json").write_text("{}")
    assert message in refusal(code, "prune", *CHAIN, *arguments, "--sensitivity", TABLE)


def test_a_table_of_other_weights_is_used_with_a_warning(trained: Path, table: Path) -> None:
    table.write_text(table.read_text().replace(json.loads(table.read_text())["model"]["weights"], "0"))
    source = trained / "checkpoints" / "train.safetensors"
    result = done("prune", source, "--ratio", "0.5", "--sensitivity", TABLE, "--calibrate-images", "0", "--dry-run")
    assert "warning: 'table.json' was measured with other weights" in squeezed(result.stderr)


def test_a_cut_beyond_the_table_or_by_another_criterion_is_named(trained: Path, table: Path) -> None:
    inside = document("prune", trained, "--macs", "0.5", "--sensitivity", table, "--dry-run")
    assert not any("sensitivity table" in note for note in inside["notes"])
    found = document("prune", trained, "--macs", "0.05", "--sensitivity", table, "--criterion", "l1", "--dry-run")
    assert any("measured with criterion activation, and channels are ranked by l1" in note for note in found["notes"])
    assert any("more channels than the sensitivity table has measured" in note for note in found["notes"])


def test_the_table_is_shown_and_drawn(trained: Path, table: Path) -> None:
    shown = done("sensitivity", trained, "--at", "0.5,0.75", "--out", TABLE, "--plot", "map.svg").stdout
    made = Sensitivity.from_json(table.read_text())
    line = next(line for line in shown.splitlines() if line.startswith(made.groups[0].layers[0]))
    assert line.split()[-2:] == [f"{point.accuracy:.1%}" for point in made.groups[0].points]
    drawn = Path("map.svg").read_text()
    assert all(f">{100 * point.accuracy:.1f}<" in drawn for group in made.groups for point in group.points)
