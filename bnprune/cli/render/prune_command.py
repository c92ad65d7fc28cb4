"""The `bnprune prune` command that makes the cut that a sweep names."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bnprune.config.prune_options import prune_options
from bnprune.workflows.results import SweepPoint, SweepResult


def prune_command(
    result: SweepResult,
    point: SweepPoint,
    *,
    model: str | None = None,
    model_arg: Sequence[str] | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    trust: bool = False,
) -> str:
    """Return the command, with the constraints of the sweep. The other arguments are those of `bnprune sweep`."""
    options = prune_options()
    words = ["bnprune", "prune", *([result.source] if result.source else [])]
    words += ["--model", model] if model else []
    words += [word for text in model_arg or () for word in ("--model-arg", text)]
    words += ["--weights", str(weights)] if weights else []
    words += ["--pretrained"] if pretrained else []
    words += ["--input", ",".join(map(str, result.input))] if model else []
    words += ["--trust"] if trust else []
    words += [str(options[result.by].flag), str(point.asked)]
    for name, value in result.constraints.items():
        words += _flagged(options[name].flag, value)
    names = ("slim.safetensors", "slimmer.safetensors")
    taken = {Path(path).name for path in (result.source, weights) if path}
    return shlex.join([*words, "--out", next(name for name in names if name not in taken)])


def without_flag(result: SweepResult) -> list[str]:
    """Return the names of the constraints that the command cannot state, because they have no flag."""
    return [name for name in result.constraints if prune_options()[name].flag is None]


def _flagged(flag: str | None, value: Any) -> Iterator[str]:
    for one in (value if isinstance(value, list | tuple) else [value]) if flag else ():
        yield str(flag)
        if one is not True:
            yield str(one)
