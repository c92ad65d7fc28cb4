"""Every command-line test runs in an empty folder; those that only read share one finished run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.harness import OWN_NETWORKS, RECIPE, document, write


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder. Modules that a test imports from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def recipe() -> Path:
    """A recipe in the current folder."""
    return write("recipe.yaml", RECIPE)


@pytest.fixture
def own() -> Path:
    """A module of the user's own in the current folder: `own:build` and others."""
    return write("own.py", OWN_NETWORKS)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on networks this small, and lose much where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def finished(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directory of a finished run, to be read only, and the document `run --json` printed."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return folder / "run", document("run", recipe, "--out", folder / "run")


@pytest.fixture(scope="package")
def run(finished: tuple[Path, dict[str, Any]]) -> Path:
    """The directory of a finished run, to be read only."""
    return finished[0]


@pytest.fixture(scope="package")
def trained(run: Path) -> Path:
    """A dense checkpoint of the run, to be read only."""
    return run / "checkpoints" / "train.safetensors"
