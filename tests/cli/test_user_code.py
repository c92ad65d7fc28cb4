"""The user's own code in a verb: code that prints or exits, and data that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.harness import bnprune, document, read_json, refusal, spawn, write

RECIPE = """\
model: {name: mlp, kwargs: {in_channels: 3, image_size: 8, hidden: [8], num_classes: 4}}
data: {factory: "tests.faulty_data:FACTORY", kwargs: KWARGS, workers: WORKERS, batch_size: 20}
train: {epochs: 2, lr: 1e-2, sparsity: {penalty: none}}
"""


def recipe_for(factory: str, workers: int = 0, **kwargs: object) -> Path:
    text = RECIPE.replace("FACTORY", factory).replace("KWARGS", json.dumps(kwargs)).replace("WORKERS", str(workers))
    return write("user_code.yaml", text)


def test_what_a_data_set_prints_is_not_in_the_document() -> None:
    assert document("evaluate", "--model", "mlp", *ARGUMENTS, "--config", recipe_for("printing"))["accuracy"] >= 0


ARGUMENTS = ("--model-arg", "in_channels=3", "--model-arg", "image_size=8", "--model-arg", "num_classes=4")


def test_what_loader_processes_and_c_code_print_is_not_in_the_document(here: Path) -> None:
    """In a process of its own, where stdout is a descriptor."""
    loud = "import os\nfrom tests import faulty_data\n\n\ndef data():\n    os.write(1, b'C code prints\\n')\n"
    write("loud.py", loud + "    return faulty_data.printing()\n")
    recipe = recipe_for("printing", workers=2)
    recipe.write_text(recipe.read_text().replace("tests.faulty_data:printing", "loud:data"))
    stdout, stderr = spawn("evaluate", "--model", "mlp", *ARGUMENTS, "--config", recipe, "--json").communicate()
    assert read_json(stdout)["schema"] == "bnprune.evaluate/1"
    assert "C code prints" in stderr
    assert "sample 79" in stderr


def test_what_a_network_prints_is_not_in_the_document() -> None:
    write("loud.py", "from tests import nets\n\n\ndef build():\n    print('hello')\n    return nets.chain()\n")
    assert document("inspect", "--model", "loud:build", "--input", "3,8,8")["params"] > 0


def test_an_error_is_the_only_document_too() -> None:
    found = document("train", recipe_for("printing"), "model.kwargs.num_classes=2", "--out", "run", exit_code=2)
    assert found["schema"] == "bnprune.error/1"


@pytest.mark.parametrize("code", ["sys.exit(0)", "raise SystemExit", "sys.exit('enough')"])
def test_a_factory_that_exits_is_an_error(code: str) -> None:
    write("quits.py", f"import sys\n\n\ndef build():\n    {code}\n")
    assert "--model: quits:build() failed: SystemExit" in refusal(2, "inspect", "--model", "quits:build")
    assert "data.factory: quits:build() failed: SystemExit" in refusal(2, "train", quits("build"), "--out", "run")


def quits(name: str) -> Path:
    recipe = recipe_for("data")
    recipe.write_text(recipe.read_text().replace("tests.faulty_data:data", f"quits:{name}"))
    return recipe


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys\nsys.exit(0)", "importing 'quits' failed: SystemExit: 0"),
        ("None.nothing", "importing 'quits' failed: AttributeError: 'NoneType' object has no attribute 'nothing'"),
        ("import nowhere_at_all", "there is no module 'nowhere_at_all'"),
        ("raise ModuleNotFoundError('not today')", "cannot be imported: not today"),
    ],
)
def test_a_module_that_cannot_be_imported(code: str, expected: str) -> None:
    write("quits.py", f"{code}\n")
    assert expected in refusal(2, "inspect", "--model", "quits:build")


def test_arguments_are_quoted_briefly() -> None:
    write("quits.py", "def build(names):\n    raise ValueError\n")
    message = refusal(2, "inspect", "--model", "quits:build", "--model-arg", f"names={['a' * 100] * 200}")
    assert len(message) < 1000


@pytest.mark.parametrize(("case", "workers"), [("raises", 0), ("exits", 0), ("label -1", 2), ("grey image", 0)])
def test_a_spoilt_sample_ends_a_training_with_an_error_of_the_data(case: str, workers: int) -> None:
    recipe = recipe_for("late", workers=workers, case=case, reads=150)
    result = bnprune("train", recipe, "--out", "run")
    assert result.exit_code == 5, result.output
    assert "of the training set" in result.stderr
    assert "epoch 1/2" in result.stderr, "the first epoch goes well"
