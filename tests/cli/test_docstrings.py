"""The docstrings of public names: each has an example, which runs, and functions describe all their arguments."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import bnprune
from bnprune.channels.ops import spec
from tests.cli.harness import RECIPE, write
from tests.nets import chain

FUNCTIONS = [name for name in bnprune.__all__ if inspect.isfunction(getattr(bnprune, name))]


def docstring(name: str) -> str:
    return inspect.getdoc(getattr(bnprune, name)) or ""


def examples(text: str) -> list[str]:
    """Return the blocks of code of a docstring: what stands indented after "Example::"."""
    found = re.findall(r"^Example::\n\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found]


def promised(code: str) -> list[str]:
    """Return what an example says that it prints: `print(1 + 1)  # 2`."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)


def test_examples_and_what_they_print_are_found() -> None:
    first = "Example::\n\n    if x:\n        print(x)  # 1\n\n    y = x\n"
    text = f"Text.\n\n{first}\nRaises:\n    E: Never.\n\nExample::\n\n    z"
    assert examples(text) == ["if x:\n    print(x)  # 1\n\ny = x", "z"]
    assert promised(examples(text)[0]) == ["1"]


@pytest.fixture
def names(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples take for granted: a network, its inputs and its training, a recipe, and a finished run."""
    monkeypatch.setattr(spec, "_SPECS", {**spec._SPECS})  # rules that an example registers are gone afterwards
    write("recipe.yaml", RECIPE)
    shutil.copytree(run, here / "runs" / "digits")
    torch.manual_seed(0)
    model = chain()
    batches = torch.rand(32, 3, 8, 8).split(16)
    return {
        "bnprune": bnprune,
        "torch": torch,
        "model": model,
        "example_inputs": torch.zeros(1, 3, 8, 8),
        "batches": batches,
        "loader": batches,
        "epochs": 50,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        "loss": model(batches[0]).square().sum(),
    }


@pytest.mark.parametrize("name", bnprune.__all__)
def test_a_public_name_has_an_example_that_runs(
    name: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = examples(docstring(name))
    assert found, f"the docstring of bnprune.{name} has no example"
    for code in found:
        exec(compile(code, f"docstring of bnprune.{name}", "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        for line in promised(code):
            assert line in printed, f"bnprune.{name} prints {printed}"
    if name in FUNCTIONS:
        assert any(f"bnprune.{name}(" in code for code in found)


@pytest.mark.parametrize("name", [*FUNCTIONS, *(name for name in bnprune.__all__ if name.startswith("Gamma"))])
def test_all_arguments_are_described(name: str) -> None:
    described = docstring(name).partition("Args:\n")[2]
    for argument in inspect.signature(getattr(bnprune, name)).parameters:
        assert re.search(rf"^    {argument}: \S", described, re.MULTILINE), f"bnprune.{name}: {argument}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_returned_and_raised_is_described(name: str) -> None:
    text = docstring(name)
    if inspect.signature(getattr(bnprune, name)).return_annotation != "None":
        assert "Returns:\n" in text
    for error in re.findall(r"^    (\w+): ", text.partition("Raises:\n")[2].partition("\n\n")[0], re.MULTILINE):
        assert error == "ValueError" or issubclass(getattr(bnprune, error), bnprune.BnpruneError)
    assert "Raises:\n" in text or name == "rule"
