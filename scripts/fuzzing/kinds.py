"""All classes of input."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import bnprune
from fuzzing.cases import (
    RECIPE,
    Case,
    Kind,
)
from fuzzing.checkpoints import ATTACKS, KNOWN_CHECKPOINTS, KNOWN_PLANS, draw_checkpoint, draw_plan
from fuzzing.factories import KNOWN_FACTORIES, draw_factory
from fuzzing.folders import KNOWN_IMAGES, KNOWN_RUNS, draw_images, draw_run
from fuzzing.pickles import KNOWN_STATES, KNOWN_WEIGHTS, draw_state, draw_weights
from fuzzing.planted import KNOWN_FAULTS, plant
from fuzzing.recipes import KNOWN_LINES, KNOWN_OVERRIDES, KNOWN_RECIPES, draw_line, draw_override, draw_recipe


def load(path: str) -> None:
    """`bnprune.load`."""
    bnprune.load(path)


def load_into(path: str) -> None:
    """`bnprune.load` with a network."""
    bnprune.load(path, model=bnprune.build(bnprune.ModelSpec("mlp", kwargs=RECIPE["model"]["kwargs"])))


def plan(path: str, source: str) -> None:
    """Read and apply a plan."""
    found = bnprune.PruningPlan.from_json(Path(path).read_text(encoding="utf-8", errors="replace"))
    bnprune.apply(found, bnprune.load(source))


CALLS: dict[str, Callable[..., None]] = {"load": load, "load into": load_into, "plan": plan, "planted": plant}
KINDS: dict[str, Kind] = {
    "checkpoint": Kind(0.28, KNOWN_CHECKPOINTS, draw_checkpoint, ATTACKS),
    "plan": Kind(0.08, KNOWN_PLANS, draw_plan),
    "recipe": Kind(0.16, KNOWN_RECIPES, draw_recipe),
    "override": Kind(0.07, KNOWN_OVERRIDES, draw_override),
    "state": Kind(0.06, KNOWN_STATES, draw_state),
    "run": Kind(0.09, KNOWN_RUNS, draw_run),
    "weights": Kind(0.07, KNOWN_WEIGHTS, draw_weights),
    "images": Kind(0.06, KNOWN_IMAGES, draw_images),
    "factory": Kind(0.05, KNOWN_FACTORIES, draw_factory),
    "command": Kind(0.08, KNOWN_LINES, draw_line),
    "planted": Kind(0.0, KNOWN_FAULTS, draw_line, len(KNOWN_FAULTS)),
}
CLASSES = tuple(name for name in KINDS if name != "planted")
"""What is tried if nothing else is asked for."""


def names(classes: Sequence[str], count: int) -> list[str]:
    """Choose cases: two thirds of them known attacks, as long as there are some, and what is critical in any case."""
    chosen = []
    shares = sum(KINDS[name].share for name in classes) or 1.0
    for name in classes:
        kind = KINDS[name]
        of_class, known = round(count * kind.share / shares), len(kind.known)
        tried = min(known, max(kind.always, of_class * 2 // 3))
        spread = tried - kind.always
        indices = [*range(kind.always), *(kind.always + n * (known - kind.always) // spread for n in range(spread))]
        chosen += [f"{name}-{index}" for index in (*indices, *range(known, known + max(0, of_class - tried)))]
    return chosen


def build(name: str, seed: int, base: Path) -> Case:
    """Write the files of a case into the current folder; return what to run."""
    kind, _, index = name.rpartition("-")
    found, place = KINDS[kind], int(index)
    make = found.known[place] if place < len(found.known) else found.drawn
    return make(random.Random(f"{seed} {name}"), base)
