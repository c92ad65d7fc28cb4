"""Files and options that ask for too much memory or time: a message and an exit code at once, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnprune.cli.error_messages import _failure
from tests.cli.harness import CHAIN, bnprune, refusal, write

VGG = ("--model", "vgg11", "--input", "3,32,32")


@pytest.mark.parametrize("verb", ["run", "train", "validate"])
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero"])
def test_a_recipe_that_never_ends(verb: str, kind: str, here: Path) -> None:
    if kind == "fifo":
        os.mkfifo(here / "fifo")
    assert f"{kind}: cannot be read: it is not a regular file." in refusal(2, verb, kind)


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero"])
def test_a_plan_that_never_ends(kind: str, here: Path) -> None:
    if kind == "fifo":
        os.mkfifo(here / "fifo")
    assert f"--plan: '{kind}' cannot be read: it is not a regular file." in refusal(5, "prune", *CHAIN, "--plan", kind)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "1" * 5000 + "}"], ids=["deep", "digits"])
def test_a_plan_that_is_a_bomb(text: str) -> None:
    write("plan.json", text)
    assert "--plan: 'plan.json': not a pruning plan" in refusal(5, "prune", *CHAIN, "--plan", "plan.json")


@pytest.mark.parametrize(
    ("shape", "expected_message"),
    [
        ("²,16,16", "expected the shape of one input"),
        ("1,99999999,99999999", "expected an integer from 1 to 67108864"),
        ("99999,99999,1", "expected at most 67108864 numbers"),
        ("1e9,1,1", "expected the shape of one input"),
        ("1" * 5000, "expected the shape of one input"),
        ("1,1,1,1,1,1", "expected 1 to 5 sizes"),
    ],
    ids=["superscript", "large", "large product", "real", "digits", "dimensions"],
)
def test_an_input_that_is_too_large(shape: str, expected_message: str) -> None:
    message = refusal(2, "inspect", "--model", "vgg11", "--input", shape)
    assert expected_message in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("argument", "expected_message"),
    [
        ("num_classes=" + "1" * 5000, "has a number of more than 100 characters"),
        ("z=" + "[" * 3000, "is nested deeper than 64 levels"),
        ("z={a: &a [*a]}", "has an alias inside the value it refers to"),
        ("z=!!int ''", "which is not of the type int"),
        ("x" * 5000, "expected key=value"),
    ],
    ids=["digits", "deep", "alias in itself", "tag", "no value"],
)
def test_an_argument_of_the_model_that_is_a_bomb(argument: str, expected_message: str) -> None:
    message = refusal(2, "inspect", *VGG, "--model-arg", argument)
    assert expected_message in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "options",
    [
        ("prune", *VGG, "--latency", "1e400"),
        ("prune", *VGG, "--latency", "nan"),
        ("prune", *VGG, "--ratio", "inf"),
        ("prune", *VGG, "--min-channels", "1" * 5000),
        ("sweep", *VGG, "--at", "1e400"),
        ("sweep", *VGG, "--at", ",".join(["0.5"] * 1001)),
        ("benchmark", *VGG, "--threads", "1000000000"),
        ("benchmark", *VGG, "--batch", "1000000000"),
        ("benchmark", *VGG, "--batch", "1000000", "--rounds", "1"),
        ("benchmark", *VGG, "--rounds", "1" + "0" * 30),
        ("export", *VGG, "--format", "pt2", "--batch", "1000000000000"),
    ],
    ids=lambda options: f"{options[0]} {options[5]} {options[6][:9]}",
)
def test_a_number_that_is_too_large(options: tuple[str, ...]) -> None:
    assert bnprune(*options).exit_code == 2


@pytest.mark.parametrize("name", ["result.json", "env.json", "config.yaml", "plan.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}"], ids=["deep", "digits"])
def test_a_file_of_a_run_that_is_a_bomb(name: str, text: str, run: Path, here: Path) -> None:
    (here / "run").mkdir()
    for file in run.glob("*.*"):
        (here / "run" / file.name).write_bytes(file.read_bytes())
    (here / "run" / name).write_text(text)
    message = refusal(5, "report", "run")
    assert f"'run/{name}' is damaged" in message
    assert len(message) < 400


def test_running_out_of_memory_is_no_bug() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 B")):
        assert _failure(error).exit_code == 5
    assert _failure(RuntimeError("anything else")).exit_code == 1
