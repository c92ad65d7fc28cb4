"""Settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

# Threads gain nothing on networks this small, and lose much where the machine is busy; the second line is for programs
# that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the random numbers another one has drawn, or on the width that a parallel run sets."""
    torch.manual_seed(0)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torchvision's files in an empty cache; a download fails as without a network."""

    def no_network(url: str, *_: object, **__: object) -> None:
        raise URLError(f"no route to {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder
