"""`bnprune init`: copy a recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.options import Force


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("init", epilog="Example:\nbnprune init cifar10-vgg11.yaml --out mine.yaml")(init)


def _recipes(incomplete: str) -> list[tuple[str, str]]:
    """Return the names of recipes that start with a text, and their descriptions, for shell completion."""
    from bnprune.runs.recipes import list_recipes

    return [(name, summary) for name, summary in list_recipes() if name.startswith(incomplete)]


def init(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="Name of a recipe.", autocompletion=_recipes)
    ] = "digits.yaml",
    listed: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="File to write. Default: the name of the recipe.", show_default=False
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Copy a recipe to edit and run."""
    from bnprune.cli.verbosity import echo
    from bnprune.runs.recipes import copy_recipe, list_recipes

    if listed:
        recipes = list_recipes()
        width = max(len(name) for name, _ in recipes)
        for name, summary in recipes:
            echo(f"{name:{width}}  {summary}")
        return
    paths = copy_recipe(recipe, out, force=force)
    written, edited = " and ".join(map(str, paths)), "them" if len(paths) > 1 else "it"
    enter = f"cd {paths[0].parent} && " if len(paths) > 1 and paths[0].parent != Path() else ""
    run = paths[0].name if enter else paths[0]
    echo(f"Wrote {written}. Edit {edited}, then: {enter}bnprune run {run}")
