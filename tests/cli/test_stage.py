"""Which network of a run directory a command takes, and that it says so; targets and recipes given twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.harness import CHAIN, RECIPE, bnprune, document, done, refusal, squeezed, write


@pytest.mark.parametrize(
    ("command", "stage"),
    [
        (("inspect",), "finetune"),
        (("prune", "--ratio", "0.3", "--dry-run"), "finetune"),
        (("evaluate",), "finetune"),
        (("sweep", "--at", "0.3"), "train"),
        (("benchmark", "--rounds", "2", "--batch", "1"), "finetune"),
    ],
)
def test_every_verb_names_the_checkpoint_that_it_takes(command: tuple[str, ...], stage: str, run: Path) -> None:
    verb, *options = command
    shown = done(verb, run, *options)
    assert f"network: {run / 'checkpoints' / stage}.safetensors" in shown.stderr
    other = done(verb, run, *options, "--stage", "prune")
    assert f"network: {run / 'checkpoints' / 'prune'}.safetensors" in other.stderr
    assert "network:" not in done("--quiet", verb, run, *options).stderr


def test_the_stage_is_the_network(run: Path) -> None:
    dense = document("inspect", run, "--stage", "train")
    slim = document("inspect", run, "--stage", "prune")
    assert dense["params"] > slim["params"]
    assert document("inspect", run / "checkpoints" / "train.safetensors") == dense


def test_a_stage_that_is_not_there(run: Path) -> None:
    message = refusal(5, "inspect", run, "--stage", "scratch")
    assert f"--stage: '{run}' has no checkpoint of stage scratch. It has train, prune, finetune." in message
    checkpoint = run / "checkpoints" / "train.safetensors"
    assert "--stage: a stage chooses among the networks of a run directory" in refusal(
        2, "inspect", checkpoint, "--stage", "train"
    )


def test_a_second_cut_is_called_one(run: Path) -> None:
    again = document("prune", run, "--stage", "prune", "--ratio", "0.2", "--dry-run")
    assert any("the network was pruned before" in note for note in again["notes"])
    first = document("prune", run, "--stage", "train", "--ratio", "0.2", "--dry-run")
    assert not any("pruned before" in note for note in first["notes"])


def test_a_target_on_the_command_line_replaces_that_of_the_recipe(recipe: Path) -> None:
    done("run", recipe, "prune.macs=0.6", "train.epochs=1", "finetune.epochs=1", "--out", "run")
    text = Path("run", "config.yaml").read_text()
    assert "macs: 0.6" in text
    assert "  ratio:" not in text
    both = refusal(2, "run", recipe, "prune.macs=0.6", "prune.params=0.5", "--out", "other")
    assert "give one target, not macs and params" in both


def test_overrides_without_a_source(recipe: Path) -> None:
    """The first of them is not taken for SOURCE."""
    command = ("evaluate", "--model", "mlp", "--model-arg", "in_channels=1", "--model-arg", "image_size=16")
    found = document(*command, "data.limit=100", "data.batch_size=50", "--config", recipe)
    assert found["test"]["count"] > 0


def test_finetune_takes_its_recipe_as_a_flag(recipe: Path) -> None:
    done("run", recipe, "--out", "run")
    slim = Path("run", "checkpoints", "prune.safetensors")
    other = write("other.yaml", RECIPE.replace("epochs: 1", "epochs: 2"))
    done("finetune", slim, "--config", other, "finetune.lr=0.005", "--out", "tuned")
    text = Path("tuned", "config.yaml").read_text()
    assert "lr: 0.005" in text
    assert "expected one recipe" in refusal(2, "finetune", slim, other, "--config", recipe, "--out", "again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", *CHAIN, "--ratio", "50%"), "Invalid value for '--ratio': expected a number such as 0.5"),
        (("export", "x.safetensors", "--format", "tflite"), "'tflite' is not one of"),
        (("benchmark", "x", "--batch", "two"), "'--batch': expected a whole number"),
        (("run",), "Missing argument 'CONFIG', the recipe. To write one: bnprune init digits.yaml"),
        (("run", "recipe.yml"), "recipe.yml: there is no such file. Did you mean 'recipe.yaml'?"),
        (("prune", "--model", "own.py:build", "--input", "1,16,16"), "(got 'own.py:build'). Write own:build."),
        (("prune", "--model", "vgg11", "--model-arg", "widht=1"), "no argument 'widht'. Did you mean 'width'?"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_our_own_words(arguments: tuple[str, ...], message: str, recipe: Path) -> None:
    result = bnprune(*arguments)
    assert result.exit_code == 2
    shown = squeezed(result.stderr.replace("│", " "))
    assert message in shown
    assert "Input should" not in shown
    assert "Value error" not in shown


def test_a_recipe_in_the_place_of_a_network(recipe: Path) -> None:
    message = refusal(5, "prune", recipe, "--ratio", "0.5")
    assert f"'{recipe}' is a recipe, not a network. `bnprune run {recipe}` trains and prunes one" in message
