"""What a process learns about its machine from the variables that launchers set."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from bnprune.training.distributed import processes, torchrun_env


@pytest.fixture(autouse=True)
def second_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 5 of two machines with four processes each, as a launcher says that does not count those of a machine."""
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_without_a_count_there_are_at_least_as_many_processes_as_the_own_number_says() -> None:
    assert torchrun_env.local_processes() == 2


@pytest.mark.parametrize(("cards", "others", "few"), [(4, "0", False), (1, "0", True), (4, "1", True), (0, "0", False)])
def test_all_processes_share_devices_if_those_of_one_machine_have_to(
    monkeypatch: pytest.MonkeyPatch, cards: int, others: str, few: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    store = distributed.HashStore()
    for rank in range(8):
        if rank != 5:
            store.set(f"bnprune/too_few_devices/{rank}", others)
    assert processes._too_few_devices(store, 5, 8) is few
