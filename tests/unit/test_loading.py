"""Loading gives a new network, and leaves the one given and torch's random numbers as they were."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import bnprune
from bnprune.models.zoo import ModelSpec
from bnprune.runs.checkpoint import Header, save_checkpoint
from tests.nets import MOTIFS, randomized


def state(model: nn.Module) -> list[tuple[int, bool, list[float]]]:
    return [(id(t), m.training, t.tolist()) for m in model.modules() for t in (*m.parameters(False), *m.buffers(False))]


def test_the_network_given_stays_as_it_was(tmp_path: Path) -> None:
    build = MOTIFS["chain"][0]
    dense, given = randomized(build()), build()
    save_checkpoint(tmp_path / "dense.safetensors", dense, Header(ModelSpec(factory="own:build")))
    slim = bnprune.prune(dense, torch.zeros(1, 3, 8, 8), ratio=0.5)
    bnprune.save(slim, tmp_path / "slim.safetensors")
    for name, expected in (("dense", dense), ("slim", slim.model)):
        before = state(given)
        loaded = bnprune.load(tmp_path / f"{name}.safetensors", model=given)
        assert loaded is not given
        assert state(given) == before
        assert not {id(t) for t in given.state_dict(keep_vars=True).values()} & {
            id(t) for t in loaded.state_dict(keep_vars=True).values()
        }
        assert all(map(torch.equal, loaded.state_dict().values(), expected.state_dict().values()))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    model = bnprune.build(ModelSpec(name="vgg11", kwargs={"num_classes": 4}))
    bnprune.save(bnprune.prune(model, torch.zeros(1, 3, 32, 32), ratio=0.5), tmp_path / "slim.safetensors",
                 spec=ModelSpec(name="vgg11", kwargs={"num_classes": 4}))  # fmt: skip
    before = torch.get_rng_state()
    bnprune.load(tmp_path / "slim.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
