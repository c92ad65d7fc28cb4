"""Problems that do not depend on each other are reported together, so that all can be solved at once."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnprune as library
from bnprune.errors import BnpruneError, CheckpointError, ConfigError, Interrupted, Problems
from tests.cli.harness import RECIPE, bnprune, document, done, refusal, write

EXISTS = "exists. Choose another name, or overwrite it: --force."
WRONG = """\
seed: 0
device: cuda:99
model: {name: mlpp}
data: {name: imagefolder, root: nowhere}
train: {epochs: 1}
prune: {ratio: 0.5}
"""
IN_RECIPE = ("device: 'cuda:99' cannot be used", "model: 'mlpp' is unknown", "data.root: 'nowhere' has no folder")


@pytest.fixture
def full(here: Path) -> Path:
    """A run directory that is not empty."""
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    return Path("full")


def test_device_network_and_data_of_a_recipe(here: Path) -> None:
    recipe = write("wrong.yaml", WRONG)
    message = refusal(2, "validate", recipe)
    assert all(problem in message for problem in IN_RECIPE)
    assert message.endswith("3 problems. Nothing was started.")
    assert len(document("validate", recipe, exit_code=2)["problems"]) == 3
    with pytest.raises(ConfigError, match="3 problems") as error:
        library.run(recipe, out=here / "run")
    assert len(error.value.problems) == 3


def test_a_run_directory_that_exists_hides_nothing(full: Path) -> None:
    message = refusal(2, "run", write("wrong.yaml", WRONG), "--out", full)
    assert all(problem in message for problem in (f"--out: 'full' {EXISTS}", *IN_RECIPE))
    message = refusal(2, "train", write("recipe.yaml", RECIPE), "train.epochs=-1", "seeds=1", "--out", full)
    assert all(problem in message for problem in (f"--out: 'full' {EXISTS}", "train.epochs: must be", "seeds: unknown"))
    assert message.endswith("3 problems. Nothing was started.")
    message = refusal(5, "finetune", "missing.safetensors", "--out", full)
    assert "'missing.safetensors' does not exist." in message
    assert f"--out: 'full' {EXISTS}" in message
    assert message.endswith("2 problems. Nothing was started.")


@pytest.mark.parametrize(
    ("line", "out"),
    [
        (("prune", "missing.safetensors"), "slim.safetensors"),
        (("export", "missing.safetensors", "--format", "pt2"), "network.pt2"),
        (("profile", "missing.safetensors"), "profile.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_a_file_that_exists_hides_nothing(line: tuple[str, ...], out: str) -> None:
    write(out, "mine")
    message = refusal(2, *line, "--out", out)
    assert f"--out: '{out}' {EXISTS} 'missing.safetensors' does not exist." in message


def test_a_network_that_is_not_trusted_among_other_problems(own: Path) -> None:
    done("prune", "--model", "own:build", "--input", "1,16,16", "--ratio", "0.5")
    write("next.safetensors", "mine")
    result = bnprune("prune", "slim.safetensors", "--out", "next.safetensors")
    assert result.exit_code == 2
    assert f"--out: 'next.safetensors' {EXISTS}" in result.stderr
    assert "\n  if that is code of yours:  bnprune prune slim.safetensors" in result.stderr


def test_nothing_is_downloaded_if_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnprune.runs.network_source.build_pretrained", None)
    write("slim.safetensors", "mine")
    model = ("--model", "torchvision/resnet18", "--pretrained", "--input", "3,32,32")
    assert refusal(2, "prune", *model) == f"error: --out: 'slim.safetensors' {EXISTS}"


def test_the_first_error_has_the_others() -> None:
    problems = Problems()
    problems.raise_all()  # nothing
    for error in (ConfigError("one."), ConfigError("two", problems=["two a.", "two b."]), CheckpointError("three.")):
        with problems.noted():
            raise error
    with pytest.raises(ConfigError) as together:
        problems.raise_all()
    assert together.value.problems == ("one.", "two a.", "two b.", "three.")
    assert str(together.value).endswith("three.\n4 problems. Nothing was started.")
    nested = Problems()
    with nested.noted():
        raise BnpruneError("zero.")
    with nested.noted():
        raise together.value
    with pytest.raises(BnpruneError) as all_of_them:
        nested.raise_all()
    assert all_of_them.value.problems == ("zero.", "one.", "two a.", "two b.", "three.")


def test_an_interruption_is_not_a_problem_to_note() -> None:
    problems = Problems()
    with pytest.raises(Interrupted), problems.noted():
        raise Interrupted("stopped")
    assert not problems
