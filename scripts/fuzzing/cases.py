"""What a case is, and the good files that cases are made from."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import bnprune

Pool = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """What to run in a folder."""

    args: tuple[str, ...]
    """Of the command line, or of `call`."""
    call: str = ""
    """A function of `CALLS` in place of the command line."""
    imports: tuple[str, ...] = ()
    """Modules in the folder that the user has named."""
    changes: tuple[str, ...] = ()
    """Files of the folder that may be changed."""
    stdout: str = ""
    """"full": nothing more can be written to it; "unread": nobody reads it; "closed": there is none."""

    @property
    def trains(self) -> bool:
        """Whether it takes longer than what only reads."""
        return not self.call and self.args[:1] in (("run",), ("train",), ("finetune",))


Builder = Callable[[random.Random, Path], Case]


@dataclass(frozen=True)
class Kind:
    """A class of input."""

    share: float
    """Of all cases."""
    known: Sequence[Builder]
    """Attacks that are always tried."""
    drawn: Builder
    always: int = 0
    """How many of the known ones are critical: tried however few cases are asked for."""


def take(base: Path, *names: str) -> None:
    """Copy good files into the work folder."""
    for name in names:
        source = base / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(name))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def holding(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def saying(text: str) -> Callable[[Path], None]:
    return holding(text.encode("utf-8", "surrogatepass"))


RECIPE: dict[str, Any] = {
    "seed": 0,
    "threads": 1,
    "model": {"name": "mlp", "kwargs": {"in_channels": 1, "image_size": 16, "hidden": [8]}},
    "data": {"name": "digits", "augment": False, "limit": 60, "batch_size": 20},
    "train": {"epochs": 1, "optimizer": "adam", "lr": 0.02},
    "prune": {"ratio": 0.5},
    "finetune": {"epochs": 1, "lr": 0.01},
}
SMALL = {"name": "mlp", "kwargs": {"in_channels": 3, "image_size": 8, "hidden": [8], "num_classes": 3}}
FOLDER = RECIPE | {"model": SMALL, "data": {"name": "imagefolder", "root": "images", "augment": False, "workers": 0}}
OWN = RECIPE | {"model": SMALL, "data": {"factory": "own:build", "workers": 0, "batch_size": 10}}
OWN["train"] = RECIPE["train"] | {"epochs": 3}
MODEL = ("--model", "mlp", *(f"--model-arg={key}={value}" for key, value in SMALL["kwargs"].items()))
BOUNDED = ("train.epochs=1", "finetune.epochs=1")

# fmt: off
OWN_DATA = """\
import os
import signal

import torch


class Pictures(torch.utils.data.Dataset):
    targets = [n % 3 for n in range(30)]
    seen = 0

    def __len__(self):
        return 30

    def __getitem__(self, n):
        Pictures.seen += 1
        if Pictures.seen == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), signal.SIGINT)
        return torch.full((3, 8, 8), n / 30.0), n % 3


def build():
    return Pictures(), Pictures()
"""
# fmt: on
CANARY = """\
open("owned", "w").close()


def touch(**_):
    return None


Network = touch
"""


def make_good_files() -> list[tuple[str, ...]]:
    """Write good files into the current folder, but for those of runs; return the commands that make the runs."""
    for name, recipe in (("recipe", RECIPE), ("folder", FOLDER), ("own", OWN)):
        Path(f"{name}.yaml").write_text(json.dumps(recipe, indent=1))
    Path("own.py").write_text(OWN_DATA)
    Path("canary.py").write_text(CANARY)
    for split, count in (("train", 8), ("test", 3)):
        for label in "abc":
            folder = Path("images", split, label)
            folder.mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (8, 8), (n * 20, ord(label), 90)).save(folder / f"{n}.{'png' if n % 2 else 'jpg'}")
    for name, spec, shape, options in _NETWORKS:
        network = bnprune.build(spec)
        result = bnprune.prune(network, torch.zeros(1, *shape), ratio=0.4, **options)
        bnprune.save(result, f"{name}.safetensors", spec=spec, input_shape=shape)
    return [("run", "recipe.yaml", "--out", "run"), ("run", "own.yaml", "--out", "stopped")]


_NETWORKS: tuple[tuple[str, bnprune.ModelSpec, tuple[int, ...], dict[str, Any]], ...] = (
    ("vgg", bnprune.ModelSpec("vgg11", kwargs={"in_channels": 1, "width": 0.03}), (1, 16, 16), {"fold_bias": True}),
    ("gates", bnprune.ModelSpec("resnet20", kwargs={"in_channels": 1, "width": 4}), (1, 16, 16), {"coupling": "gates"}),
    ("mobile", bnprune.ModelSpec("torchvision/mobilenet_v2", kwargs={"width_mult": 0.1}), (3, 32, 32), {}),
)
CHECKPOINTS = ("run/checkpoints/train", "run/checkpoints/finetune", *(network[0] for network in _NETWORKS))
