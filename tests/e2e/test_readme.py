"""The documents keep their word: their commands run, their code runs, their references are those of the code."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bnprune.config.recipe import load_recipe
from bnprune.pruning import scores as score
from tests.cli.harness import bnprune
from tests.e2e.conftest import QUICK
from tests.nets import chain

ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", "bnprune/README.md", "bnprune/cli/README.md", "configs/README.md", ".github/FAQ.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
NOT_RUN = {"scripts/demo", "scripts/test", "source", "pip", "torchrun"}
"""What installs things, or takes another program; that the scripts are there is checked."""

SMALLER = {
    "0.3,0.6,0.9": "0.5",
    "3,224,224": "3,64,64",
    "train.epochs=10": "train.epochs=1",
    "finetune.epochs=10": "finetune.epochs=1",
}
"""The same commands, in seconds."""


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for text in TEXTS.values() for block in pattern.findall(text)]


def commands() -> list[list[str]]:
    lines = (line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def cheaply(words: list[str]) -> list[str]:
    """Make a command small; where a recipe is run, with a small network."""
    words = [SMALLER.get(word, word) for word in words]
    if "own-network.yaml" in words and words[1] == "run":
        return [*words, "train.epochs=1", "finetune.epochs=1"]
    if words[1] in ("run", "train", "validate") and not any(word.startswith("model.") for word in words):
        place = next(n for n, word in enumerate(words) if word.endswith(".yaml")) + 1
        words[place:place] = [
            *(extra for extra in (*QUICK, "baseline=false") if extra.split("=")[0] not in " ".join(words))
        ]
    return words


@pytest.fixture
def workshop(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes for granted: a finished demo, and a network of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copytree(digits, tmp_path / "runs" / "demo")
    shutil.copy(digits / "checkpoints" / "train.safetensors", tmp_path / "trained.safetensors")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text("from tests.nets import chain as build\n")
    torch.save(chain().state_dict(), tmp_path / "trained.pt")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 90, 120)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def test_every_command_runs(workshop: Path) -> None:
    ran = 0
    for words in commands():
        if words[0] in NOT_RUN:
            assert not words[0].startswith("scripts/") or os.access(ROOT / words[0], os.X_OK)
            continue
        assert words[0] == "bnprune", f"what is to be done with {shlex.join(words)}?"
        for name in ("slim.safetensors", "digits.yaml"):  # every section starts afresh
            if name in words and words[1] in ("prune", "init"):
                (workshop / name).unlink(missing_ok=True)
        result = bnprune(*cheaply(words)[1:])
        already = "--latency" in words and "the network already runs in" in result.stderr  # so small a one does
        assert result.exit_code == (3 if already else 0), f"{shlex.join(cheaply(words))}\n{result.output}"
        ran += 1
    assert ran > 12


def test_every_piece_of_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(score.CRITERIA, "gamma-squared", score.gamma)  # so that it is gone afterwards
    names: dict[str, Any] = {"build": chain, "example_inputs": torch.zeros(1, 3, 8, 8)}
    names |= {"batches": torch.rand(32, 3, 8, 8).split(16), "torch": torch}
    found = blocks("python")
    assert len(found) >= 4
    for code in found:
        model = chain()
        loss = model(torch.rand(4, 3, 8, 8)).square().sum()
        names |= {"model": model, "loss": loss, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
        exec(compile(code, "README.md", "exec"), names)
    assert score.CRITERIA["gamma-squared"] is names["gamma_squared"]
    slim = names["bnprune"].prune(chain(), names["example_inputs"], ratio=0.5, criterion="gamma-squared")
    assert slim.report.ratio_realised == pytest.approx(0.5)


def test_every_recipe_is_valid(tmp_path: Path) -> None:
    recipes = blocks("yaml")
    assert recipes
    for text in recipes:
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        load_recipe(tmp_path / "recipe.yaml")


def test_the_references_are_those_of_the_code() -> None:
    command = [sys.executable, ROOT / "scripts" / "reference.py", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_references_are_complete_and_can_be_out_of_date(tmp_path: Path) -> None:
    """Every verb and key by another way; and a reference that differs by a word is found."""
    from bnprune.cli import app

    verbs, keys = TEXTS["bnprune/cli/README.md"], TEXTS["configs/README.md"]
    assert len(app.registered_commands) > 10
    for command in app.registered_commands:
        assert f"**`bnprune {command.name} " in verbs
        assert f"`{command.name}`" in verbs.partition("## Every verb")[0]
    for key in ("train.sparsity.lambda", "prune.layer_ratios", "finetune.lr", "data.root", "seed"):
        assert f"| `{key}` |" in keys
    for page, text in (("bnprune/cli", verbs.replace("Recipe (YAML).", "Recipe.", 1)), ("configs", keys)):
        (tmp_path / page).mkdir(parents=True)
        (tmp_path / page / "README.md").write_text(text, encoding="utf-8")
    copy = tmp_path / "scripts" / "reference.py"
    copy.parent.mkdir()
    shutil.copy(ROOT / "scripts" / "reference.py", copy)
    checked = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "bnprune/cli/README.md is out of date: run scripts/reference.py" in checked.stderr


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 15_000


def test_files_that_the_documents_point_to_are_there() -> None:
    assert ".github/digits.png" in README
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or ((ROOT / page).parent / target).is_file(), f"{page}: {target}"
        for name in re.findall(r"`((?:scripts|configs|bnprune)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{page}: {name}"
