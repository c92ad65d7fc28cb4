"""Help, suggestions for misspelt names, and how long a user waits for them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer.main

from bnprune import __version__
from bnprune.cli import app
from tests.cli.harness import bnprune, done, refusal, spawn, squeezed

COMMANDS = typer.main.get_group(app).commands
VERBS = list(COMMANDS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    text = squeezed(done(verb, "--help").stdout)
    assert f"Usage: bnprune {verb}" in text
    assert f" bnprune {verb} " in text.partition("Example:")[2] + " "


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_uses_options_that_exist(verb: str) -> None:
    options = {name for parameter in COMMANDS[verb].params for name in parameter.opts}
    used = set(re.findall(r"--[a-z-]+", COMMANDS[verb].epilog or ""))
    assert used <= options


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb: str) -> None:
    silent = [parameter.name for parameter in COMMANDS[verb].params if not getattr(parameter, "help", None)]
    assert not silent


@pytest.mark.parametrize("columns", [60, 80, 140])
@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_fits_the_terminal_and_examples_can_be_copied(
    verb: str | None, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = done(*([] if verb is None else [verb]), "--help").stdout
    command = typer.main.get_group(app) if verb is None else COMMANDS[verb]
    commands = [f"  {line}" for line in (command.epilog or "").splitlines()[1:]]
    assert commands
    lines = text.splitlines()
    assert lines[-len(commands) :] == commands
    assert max(len(line) for line in lines if line not in commands) <= columns
    for noise in ("[[", "<bool>", "<path>", "<=x", "│", "\\["):
        assert noise not in text


def test_paragraphs_are_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    prose = done("prune", "--help").stdout.split("\n\n")[2].splitlines()
    assert "SOURCE is a run directory or a checkpoint" in " ".join(prose)
    assert all(len(line) > 85 for line in prose[:-1])


def test_the_values_of_an_option_with_a_choice_are_named() -> None:
    shown = {verb: squeezed(done(verb, "--help").stdout) for verb in ("inspect", "benchmark", "profile", "sweep")}
    assert "baseline, train, prune, finetune or scratch" in shown["inspect"]
    assert "float32, bfloat16 or float16. [default: float32]" in shown["benchmark"]
    assert "eager or onnxruntime. [default: eager]" in shown["profile"]
    assert "macs: that of the MACs to keep" in shown["sweep"]


@pytest.mark.parametrize("verb", ["run", "train", "validate"])
def test_without_a_recipe_the_command_that_writes_one_is_named(verb: str) -> None:
    assert "To write one: bnprune init digits.yaml" in refusal(2, verb)


def test_the_list_of_verbs_says_what_each_is_for_and_where_to_start() -> None:
    text = squeezed(done("--help").stdout)
    for verb in VERBS:
        assert f"{verb} {COMMANDS[verb].get_short_help_str(200)}" in text
    assert "Start here: bnprune init digits.yaml bnprune run digits.yaml" in text


def test_the_default_ratio_is_shown() -> None:
    assert "default: 0.5" in squeezed(done("prune", "--help").stdout)


def test_without_arguments_the_help_is_shown() -> None:
    result = bnprune()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("prnue", "prune"), ("inspct", "inspect"), ("valdate", "validate"), ("docter", "doctor")]
)
def test_a_misspelt_verb_gets_a_suggestion(misspelt: str, meant: str) -> None:
    assert f"No such command '{misspelt}'. Did you mean '{meant}'" in refusal(2, misspelt)


@pytest.mark.parametrize(
    ("verb", "misspelt", "meant"),
    [("prune", "--rtaio", "--ratio"), ("train", "--resum", "--resume"), ("inspect", "--modle", "--model")],
)
def test_a_misspelt_option_gets_a_suggestion(verb: str, misspelt: str, meant: str) -> None:
    message = refusal(2, verb, misspelt, "x")
    assert f"No such option: {misspelt}" in message
    assert meant in message.partition("No such option")[2]


@pytest.mark.parametrize(
    ("verb", "named", "meant"),
    [
        ("prune", "--latency-ms", "--latency"),
        ("prune", "--min_channels", "--min-channels"),
        ("prune", "--input-shape", "--input"),
        ("evaluate", "--recipe", "--config"),
        ("sweep", "--values", "--at"),
    ],
)
def test_the_name_of_an_argument_in_python_leads_to_the_option(verb: str, named: str, meant: str) -> None:
    assert refusal(2, verb, named, "5").endswith(f"No such option: {named}. Did you mean {meant}?")


@pytest.mark.parametrize(("verb", "argument"), [("run", "CONFIG"), ("train", "CONFIG"), ("finetune", "PRUNED")])
def test_a_missing_argument_is_named(verb: str, argument: str) -> None:
    assert f"Missing argument '{argument}'" in refusal(2, verb)


IMPORTS = """
import runpy, sys
sys.argv = ["bnprune", *sys.argv[1:]]
try:
    runpy.run_module("bnprune", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("imported:", sorted({"torch", "torchvision", "numpy", "sklearn", "timm"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("line", ["--help", "--version", "prune --help", "init --list"])
def test_help_does_not_wait_for_torch(line: str) -> None:
    found = subprocess.run([sys.executable, "-c", IMPORTS, *line.split()], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout
    assert found.stderr.splitlines()[-1] == "imported: []"


def test_python_m_bnprune_is_the_command_line() -> None:
    process = spawn("--version")
    assert process.communicate(timeout=60)[0].split() == ["bnprune", __version__]
    assert process.returncode == 0
