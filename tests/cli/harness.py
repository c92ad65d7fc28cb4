"""Run the command line in process; return its output and the files that it wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from bnprune.cli import app

RECIPE = """\
seed: 0
model: {name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [32]}}
data: {name: digits, augment: false}
train: {epochs: 2, optimizer: adam, lr: 2e-2}
prune: {ratio: 0.5}
finetune: {epochs: 1, lr: 1e-2}
"""
"""Trains, prunes and fine-tunes in a second."""

OWN_NETWORKS = """\
import torch
from torch import nn


def build(width=8):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), *head)


def without_batchnorm():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class Literal(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(build()[:3], nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6 * 36, 10)

    def forward(self, x):
        return self.head(self.layers(x).view(-1, 216))


def fails():
    raise RuntimeError("no luck today")


def no_module():
    return {"a": 1}


not_callable = 3
"""
"""A module of the user's own, in the current folder."""

CHAIN = ("--model", "tests.nets:chain", "--input", "3,8,8")


def bnprune(*args: object) -> Result:
    """Run the command line; stdout and stderr are apart."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: object) -> Result:
    """Run a command that must succeed."""
    result = bnprune(*args)
    assert result.exit_code == 0, result.output
    return result


def refusal(exit_code: int, *args: object) -> str:
    """Run a command that must fail cleanly (no traceback, nothing on stdout, nothing written); return the message."""
    before = contents()
    result = bnprune(*args)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert contents() == before
    return squeezed(result.stderr)


def squeezed(text: str) -> str:
    """Undo line breaks and frames, so that a message can be looked for wherever it was wrapped."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def document(*args: object, exit_code: int = 0) -> dict[str, Any]:
    """Run a command with --json; stdout must be one JSON document and nothing else."""
    result = bnprune(*args, "--json")
    assert result.exit_code == exit_code, result.output
    return read_json(result.stdout)


def read_json(text: str) -> dict[str, Any]:
    """Read strict JSON: Python writes NaN and Infinity, which nobody else reads."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def contents(folder: Path | None = None) -> dict[str, bytes]:
    """Every file below a folder, and every folder; byte code that Python writes for itself is left out."""
    base = folder or Path.cwd()
    return {
        str(path.relative_to(base)): path.read_bytes() if path.is_file() else b"a folder"
        for path in sorted(base.rglob("*"))
        if "__pycache__" not in path.parts
    }


def tensor_bytes(path: Path) -> dict[str, bytes]:
    """The tensors of a checkpoint, as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def write(name: str, text: str) -> Path:
    """Write a text file into the current folder."""
    path = Path.cwd() / name
    path.write_text(text, encoding="utf-8")
    return path


def spawn(*args: object) -> subprocess.Popen[str]:
    """Start `python -m bnprune` in a process of its own."""
    command = [sys.executable, "-m", "bnprune", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
