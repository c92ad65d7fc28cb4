"""Recipes: every problem at once, with its place; numbers as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnprune
from bnprune.config.recipe import amend, load_recipe
from bnprune.runs.directory import dump_config
from bnprune.runs.recipes import recipe_folder

GOOD = """\
model: {name: mlp}
data: {name: digits}
train:
  lr: 1e-4
  sparsity: {lambda: 1e-5}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_are_numbers(tmp_path) -> None:
    config = load_recipe(write(tmp_path, GOOD + "seed: 3\n"), ["train.weight_decay=5E-4", "model.kwargs.width=1e0"])
    assert config.train.lr == 1e-4
    assert config.train.sparsity.lambda_ == 1e-5
    assert config.train.weight_decay == 5e-4
    assert config.model.kwargs == {"width": 1.0}


def test_words_that_yaml_takes_for_booleans_stay_words(tmp_path) -> None:
    config = load_recipe(write(tmp_path, GOOD), ["model.kwargs.activation=on", "model.kwargs.flag=true"])
    assert config.model.kwargs == {"activation": "on", "flag": True}


def test_every_problem_is_listed_with_its_line(tmp_path) -> None:
    text = """\
sed: 0
model: {name: mlp, factory: a:b}
data:
  name: digits
  batch_size: "64"
train:
  epochs: 0
  lr: -0.1
  lr: nan
  optimizer: sdg
  sparsity: {lambda: much, lamda: 1}
prune: {ratoi: 0.7, ratio: .nan}
finetune: 3
"""
    path = write(tmp_path, text)
    with pytest.raises(bnprune.ConfigError) as caught:
        load_recipe(path, ["trian.lr=1", "nonsense", "prune.min_channels=two"])
    expected = [
        f"{path}:9: train.lr: is given twice (first in line 8).",
        "command line: 'nonsense': expected key=value, such as train.lr=0.05.",
        f"{path}:1: sed: unknown key (got 0). Did you mean 'seed'?",
        f"{path}:2: model: give either 'name' or 'factory'.",
        f"{path}:5: data.batch_size: must be a valid integer (got '64').",
        f"{path}:7: train.epochs: must be greater than or equal to 1 (got 0).",
        f"{path}:9: train.lr: must be a finite number (got 'nan').",
        f"{path}:10: train.optimizer: must be 'sgd', 'adam' or 'adamw' (got 'sdg').",
        f"{path}:11: train.sparsity.lambda: must be 'auto' or a valid number, "
        "unable to parse string as a number (got 'much').",
        f"{path}:11: train.sparsity.lamda: unknown key (got 1). Did you mean 'lambda'?",
        f"{path}:12: prune.ratio: must be 'auto' or less than 1 (got nan).",
        f"{path}:12: prune.ratoi: unknown key (got 0.7). Did you mean 'ratio'?",
        f"{path}:13: finetune: must be a section of keys (got 3).",
        "command line: prune.min_channels: must be a valid integer (got 'two').",
        "command line: trian: unknown key (got {'lr': 1}). Did you mean 'train'?",
    ]
    assert list(caught.value.problems) == expected
    assert str(caught.value).endswith("\n15 problems. Nothing was started.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"recipe\.yaml: is empty"),
        ("# nothing\n", r"recipe\.yaml: is empty"),
        ("- a\n- b\n", r"recipe\.yaml:1: expected keys such as 'model:' and 'data:', got \['a', 'b'\]"),
        ("model: {name: mlp\n", r"recipe\.yaml:2: is not YAML: "),
        ("seed: 1\n", r"recipe: model: is required\.\nrecipe: data: is required\."),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text: str, message: str) -> None:
    with pytest.raises(bnprune.ConfigError, match=message):
        load_recipe(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(bnprune.ConfigError, match="there is no such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(bnprune.ConfigError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(bnprune.ConfigError, match="is not a text file"):
        load_recipe(tmp_path / "binary.yaml")


def test_overrides_reach_any_depth_and_can_remove_a_stage(tmp_path) -> None:
    path = write(tmp_path, GOOD)
    assert load_recipe(path, ["prune.ratio=0.25", "prune.exclude=[fc, 'layer1.*']"]).prune.exclude == ("fc", "layer1.*")
    assert load_recipe(path, ["train=null"]).train is None
    assert amend(load_recipe(path), ["train.epochs=7"]).train.epochs == 7


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        ("{target: 0.7, travel: 5}", "train.sparsity: give either 'target' or 'travel'."),
        ("{target: 0.7, lambda: 1e-4}", r"'target' needs 'lambda: auto', not a number \(got 0.0001\)"),
        ("{target: 0.7, penalty: polarization}", "'polarization' finds the share by itself"),
        ("{target: 1.2}", "train.sparsity.target: must be less than 1"),
        ("{schedule: warm}", "train.sparsity.schedule: must be 'constant', 'warmup' or 'ramp'"),
    ],
)
def test_aims_that_contradict_each_other_are_refused(tmp_path, sparsity: str, message: str) -> None:
    with pytest.raises(bnprune.ConfigError, match=message):
        load_recipe(write(tmp_path, GOOD), [f"train.sparsity={sparsity}"])


def test_a_resolved_recipe_reads_back_to_itself(tmp_path) -> None:
    config = load_recipe(write(tmp_path, GOOD), ["train.milestones=[0.3, 0.6]", "data.root=some/where"])
    assert load_recipe(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("path", sorted(recipe_folder().rglob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid_and_say_what_they_are(path: Path) -> None:
    assert load_recipe(path).prune is not None
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("epochs", [1, 50])
def test_a_training_that_ends_in_its_warmup_is_refused(tmp_path, epochs: int) -> None:
    text = f"model: {{name: mlp}}\ndata: {{name: digits}}\nfinetune: {{epochs: {epochs}, warmup_epochs: 50}}\n"
    message = rf"recipe\.yaml:3: finetune: 'warmup_epochs' must be below 'epochs'.*\(got 50 of {epochs}\)"
    with pytest.raises(bnprune.ConfigError, match=message):
        load_recipe(write(tmp_path, text))
