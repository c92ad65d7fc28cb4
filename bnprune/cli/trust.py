"""The commands to suggest if a file names code and is not trusted."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from bnprune.errors import UntrustedError

WITH_CONFIG = ("finetune", "sweep", "sensitivity", "evaluate", "export")
"""Verbs that take a network, and a recipe with --config."""
_WITH_TRUST = ("prune", "profile", "inspect", "benchmark", *WITH_CONFIG)
_ANY_RECIPE = "CONFIG.yaml"
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def ways_to_trust(error: UntrustedError, command: Sequence[str]) -> str:
    """Return one line for each way to continue, with the exact command."""
    lines = [f"  {what}:  {line}" for what, line in _ways(error, list(command))]
    if any(_ANY_RECIPE in line for line in lines):
        is_what = "is a recipe of yours that names the data; bnprune init own-network.yaml writes one"
        lines.append(f"  {_ANY_RECIPE} {is_what}")
    return "\n".join(lines)


def verb_of(command: Sequence[str]) -> str:
    """Return the verb of a command line; empty if it has none."""
    return next((word for word in command if not word.startswith("-")), "")


def _ways(error: UntrustedError, command: list[str]) -> Iterator[tuple[str, str]]:
    verb = verb_of(command)
    typed = shlex.join(["bnprune", *command])
    if _is_teacher(error, command):  # options of the command are about the network that is fine-tuned
        yield "to trust all files below a folder", _export(error)
        return
    recipe = f" --config {shlex.quote(_recipe_of(Path(error.path)))}"
    beside_network = recipe if error.needs_recipe else ""
    if error.needed == "model" and (label := error.refused.get("model.factory", "")):
        reference = label if _REFERENCE.fullmatch(label) else "PACKAGE.MODULE:FUNCTION"
        yield "if that is code of yours", f"{typed} --model {reference}{beside_network}"
    elif error.needed == "model":
        given = any(word == "--model" or word.startswith("--model=") for word in command)
        name = [] if given else ["--model NAME"]
        unknown = (key for key in error.refused if key.startswith("model."))
        arguments = (f"--model-arg {key.removeprefix('model.kwargs.')}=VALUE" for key in unknown)
        yield "give the network yourself", " ".join([typed, *name, *arguments]) + beside_network
    elif verb in WITH_CONFIG:
        yield "name the recipe yourself, if you have read it", f"{typed}{recipe}"
    if not all(error.refused.values()):
        return
    if verb in _WITH_TRUST:
        also = recipe if error.lacks_recipe else ""
        yield "or trust this file, if you know where it comes from", f"{typed}{also} --trust"
    if not error.lacks_recipe:
        yield "or trust all files below a folder", _export(error)


def _is_teacher(error: UntrustedError, command: list[str]) -> bool:
    named = [value for option, value in itertools.pairwise(command) if option == "--teacher"]
    return any(os.path.realpath(value) == os.path.realpath(error.path) for value in named)


def _export(error: UntrustedError) -> str:
    """Return the shell command that trusts the folder of a file; links are resolved."""
    folder = Path(os.path.realpath(error.path)).parent
    return f"export BNPRUNE_TRUST={shlex.quote(str(folder))}"


def _recipe_of(path: Path) -> str:
    """Return the recipe of the run that a run directory or checkpoint belongs to, if there is one."""
    run = path if path.is_dir() else (path if len(path.parts) > 2 else path.absolute()).parent.parent
    recipe = run / "config.yaml"
    return str(recipe) if recipe.is_file() else _ANY_RECIPE
