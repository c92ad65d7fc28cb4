"""Stages: their names, and the order in which they run. In a run of several passes: prune, finetune, prune-2, ..."""

from __future__ import annotations

import re

from bnprune.config.schema import PipelineConfig

KINDS = ("baseline", "train", "prune", "finetune", "scratch")
"""The kinds of stages, in the order of a single pass."""
TRAINED = "train"
"""The stage whose network is not yet pruned: that of which cuts are measured."""
CONTROLS = ("baseline", "scratch")
"""Stages whose networks are for comparison: no other stage starts from them."""


def stages_of(config: PipelineConfig) -> tuple[str, ...]:
    """Return the stages of a recipe, in the order in which they run."""
    first = [kind for kind in KINDS if getattr(config, kind)]
    repeated = [kind for kind in first if kind in ("prune", "finetune")]
    passes = config.prune.passes if config.prune else 1
    again = [f"{kind}-{number}" for number in range(2, passes + 1) for kind in repeated]
    last = [kind for kind in first if kind == "scratch"]
    return (*(kind for kind in first if kind not in last), *again, *last)


def is_stage(name: str) -> bool:
    """Return True if a text is the name of a stage."""
    return re.fullmatch(rf"({'|'.join(KINDS)})(-[1-9]\d*)?", name) is not None


def kind_of(stage: str) -> str:
    """Return the kind of a stage: "prune" for "prune-2"."""
    return stage.partition("-")[0]


def pass_of(stage: str) -> int:
    """Return the pass a stage belongs to, from 1."""
    return int(stage.partition("-")[2] or 1)


def order_of(stage: str) -> tuple[int, int]:
    """Return the sort key of a stage: controls come first, the others in the order in which they run."""
    kind = kind_of(stage)
    return 0 if kind in CONTROLS else pass_of(stage), KINDS.index(kind)


def title_of(stage: str) -> str:
    """Return the name of the network that a stage produces, for tables."""
    number = pass_of(stage)
    return _TITLES[kind_of(stage)] + (f" {number}" if number > 1 else "")


_TITLES = {
    "baseline": "dense",
    "train": "sparse-trained",
    "prune": "pruned",
    "finetune": "fine-tuned",
    "scratch": "from scratch",
}
