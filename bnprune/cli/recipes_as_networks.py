"""The command to suggest if a recipe stands in the place of a network."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from bnprune.cli.trust import WITH_CONFIG, verb_of


def with_recipe_as_option(recipe: str, command: Sequence[str]) -> str:
    """Return a line with the command in which the recipe has its option; empty if there is a recipe, or cannot be.

    Args:
        recipe: The recipe, as the error names it.
        command: The command line.
    """
    verb = verb_of(command)
    if verb not in WITH_CONFIG or "--config" in command:
        return ""
    words = [word for word in command if Path(word) != Path(recipe)]
    network = _network_in(words)
    if network:
        words.remove(network)
    given = verb != "finetune" and any(word == "--model" or word.startswith("--model=") for word in words)
    place = words.index(verb) + 1
    words[place:place] = [*([network or "NETWORK.safetensors"] if network or not given else []), "--config", recipe]
    return f"\n  with a network that you have:  {shlex.join(['bnprune', *words])}"


def _network_in(words: Sequence[str]) -> str:
    """Return the word that is a checkpoint or a run directory, and not the value of an option; empty for none."""
    pairs = itertools.pairwise(words)
    places = (word for before, word in pairs if not before.startswith("--") and not word.startswith("-"))
    return next((word for word in places if Path(word).exists()), "")
