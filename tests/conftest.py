"""Settings for all tests."""

from __future__ import annotations

import pytest
import torch

# Threads gain nothing on networks this small, and lose much where the machine is busy.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """No test depends on the random numbers another one has drawn."""
    torch.manual_seed(0)
