"""The amount and the form of output: --quiet, --verbose, colours, output without a terminal, and completion."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bnprune.cli.render.tables import bar
from bnprune.cli.verbosity import program_options_first
from bnprune.config.recipe import load_recipe
from bnprune.models.zoo import build
from bnprune.runs.preflight import spec_of
from bnprune.runs.recipes import list_recipes, recipe_folder
from tests.cli.harness import CHAIN, bnprune, done, refusal, squeezed

RECIPES = [name for name, _ in list_recipes()]


# -- quiet and verbose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [("--quiet", "train"), ("train", "-q")])
def test_quiet_leaves_results_and_warnings(recipe: Path, line: tuple[str, ...]) -> None:
    result = done(*line, recipe, "--out", "run", "data.batch_size=7", "train.epochs=1", "data.limit=60")
    assert "sparse-trained" in result.stdout
    assert all(text.startswith("warning: ") for text in result.stderr.splitlines())
    assert "BatchNorm is unreliable with batches below 8" in result.stderr
    assert "epoch 1/1" in done("train", recipe, "--out", "loud", "train.epochs=1").stderr


def test_quiet_does_not_silence_errors(here: Path) -> None:
    assert "there is no such file" in refusal(2, "run", "absent.yaml", "--quiet")


def test_verbose_prints_more(recipe: Path) -> None:
    assert re.search(r"epoch 1/1 .* lr 0\.", done("train", recipe, "-v", "--out", "run", "train.epochs=1").stderr)
    assert "took: trace " in done("prune", *CHAIN, "--verbose").stdout
    assert "took:" not in done("prune", *CHAIN, "--force").stdout


def test_quiet_and_verbose_exclude_each_other() -> None:
    assert "--quiet and --verbose: give one." in refusal(2, "doctor", "-q", "-v")


def test_debug_behind_the_verb_shows_the_traceback(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("bnprune.workflows.validate.prepare", broken)
    result = bnprune("validate", recipe, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: no luck" in result.stderr
    assert "this is a bug in bnprune" in bnprune("validate", recipe).stderr


def test_arguments_after_a_double_dash_are_not_moved() -> None:
    assert program_options_first(["a", "-v", "b", "--", "-q"]) == ["-v", "a", "b", "--", "-q"]


# -- colours and terminals ---------------------------------------------------------------------------------------------


def on_a_terminal(*args: str, **environment: str) -> str:
    """Run the command line with a terminal for stdout and stderr; return what it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bnprune", *args],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux says so when the other side has closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    process.wait(timeout=60)
    return shown.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3\d")


def test_colours_are_for_terminals_that_want_them() -> None:
    assert COLOUR.search(on_a_terminal("init", "absent"))
    assert not COLOUR.search(on_a_terminal("init", "absent", NO_COLOR="1"))


def test_lines_are_plain_and_not_wrapped_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = done("inspect", "--model", "torchvision/mobilenet_v2", "--input", "3,32,32").stdout
    assert "\x1b" not in text
    [line] = [line for line in text.splitlines() if line.startswith("features.18.0")]
    assert line.split()[:6] == ["features.18.0", "conv", "+", "BN", "1280", "1280"]
    assert any(len(line) > 80 for line in text.splitlines() if line.startswith("|γ|: "))


def test_a_terminal_with_ascii_only_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with a γ in it does not fail, and what is drawn is drawn with what there is."""
    command = [sys.executable, "-m", "bnprune", "inspect", "--model", "mlp", "--input", "1,28,28"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout.decode("ascii")
    assert "|?|" in shown
    assert "7777777777" in shown
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert bar(5, 10).plain == "##########.........."


@pytest.mark.parametrize(
    ("part", "whole", "longest", "expected"),
    [
        (5, 10, 10, "█" * 10 + "·" * 10),
        (5, 10, 20, "█" * 5 + "·" * 5),
        (1, 1000, 1000, "█" + "·" * 19),
        (0, 8, 8, "·" * 20),
    ],
)
def test_bars_are_proportional_to_their_values(part: int, whole: int, longest: int, expected: str) -> None:
    assert bar(part, whole, longest).plain == expected


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bnprune pr", {"prune", "profile"}),
        ("bnprune init digits-m", {"digits-mlp.yaml"}),
        ("bnprune prune --coupling ", {"shared", "gates"}),
        ("bnprune prune --criter", {"--criterion"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    environment = {
        **os.environ,
        "_BNPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "from bnprune.cli import main; import sys; sys.argv = ['bnprune']; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert set(found.stdout.split()) == expected, found.stderr


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_the_list_of_recipes_says_what_each_is() -> None:
    lines = done("init", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == RECIPES
    assert len(RECIPES) >= 7
    assert all(len(line.split(maxsplit=1)[1]) > 30 for line in lines)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_copied_as_it_is_and_can_be_built(name: str, here: Path) -> None:
    done("init", name.removesuffix(".yaml"), "--out", "mine.yaml")
    assert (here / "mine.yaml").read_bytes() == (recipe_folder() / name).read_bytes()
    config = load_recipe(here / "mine.yaml")
    assert config.train is not None
    assert config.prune is not None
    if name == "own-network.yaml":  # the next test runs it
        assert config.model.factory == "my_code:network"
    else:
        assert sum(parameter.numel() for parameter in build(spec_of(config)).parameters()) > 1000


def test_the_recipe_for_ones_own_network_runs_as_it_is(here: Path) -> None:
    assert (
        "Wrote own-network.yaml and my_code.py. Edit them, then: bnprune run own-network.yaml"
        in done("init", "own-network").stderr + done("init", "own-network", "--force").stdout
    )
    text = done("run", "own-network.yaml", "train.epochs=1", "finetune.epochs=1", "--out", "run").stdout
    assert "fine-tuned" in squeezed(text)
    (here / "own-network.yaml").unlink()
    assert "'my_code.py' exists" in refusal(2, "init", "own-network")  # code of one's own is not overwritten
    assert not (here / "own-network.yaml").exists()
    elsewhere = done("init", "own-network", "--out", "sub/mine.yaml")
    assert "cd sub && bnprune run mine.yaml" in elsewhere.stdout + elsewhere.stderr
    assert (here / "sub" / "my_code.py").exists()


def test_the_recipe_for_ones_own_network_runs_with_other_code(here: Path) -> None:
    """With the two functions its comment asks for."""
    done("init", "own-network")
    (here / "my_code.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n\n\n"
        "def network(width):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))\n\n\n"
        "def data():\n"
        "    torch.manual_seed(0)\n"
        "    images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 2\n"
        "    return [TensorDataset(images, labels)] * 3\n"
    )
    few = ("train.epochs=1", "finetune.epochs=1", "model.kwargs.width=8")
    text = done("run", "own-network.yaml", *few, "--out", "run").stdout
    assert "fine-tuned" in squeezed(text)
    stored = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert stored["model"]["factory"] == "my_code:network"
