"""A finished run of the digits recipe, small, to be read only."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnprune.runs.recipes import recipe_folder
from tests.cli.harness import done

QUICK = ("model.kwargs.width=0.125", "train.epochs=3", "finetune.epochs=2", "data.batch_size=128")


@pytest.fixture(scope="package")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory, with a name that must be escaped."""
    path = tmp_path_factory.mktemp("runs") / 'digits "<script>alert(1)<'
    done("run", recipe_folder() / "digits.yaml", *QUICK, "train.sparsity.lambda=0.01", "--out", path)
    return path
