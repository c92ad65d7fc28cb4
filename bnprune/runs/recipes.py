"""The recipes that come with bnprune."""

from __future__ import annotations

import re
from pathlib import Path

from bnprune.config.user_code import hint
from bnprune.errors import ConfigError
from bnprune.runs.files import write_text
from bnprune.runs.outputs import require_output


def recipe_folder() -> Path:
    """Return the folder of the recipes: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_recipes() -> list[tuple[str, str]]:
    """Return the name of every recipe and the first line of its comment."""
    recipes = []
    for path in sorted(recipe_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        recipes.append((path.name, first.removeprefix("#").strip()))
    return recipes


def copy_recipe(name: str, out: Path | None, *, force: bool) -> tuple[Path, ...]:
    """Copy a recipe, and the Python file beside it that it names; return the paths of the copies, the recipe first.

    Raises:
        ConfigError: There is no such recipe, or a file exists.
        DataError: The file cannot be written.
    """
    names = [known for known, _ in list_recipes()]
    full = name if name.endswith(".yaml") else f"{name}.yaml"
    if full not in names:
        raise ConfigError(f"there is no recipe '{name}'. {hint(full, names)}")
    source = recipe_folder() / full
    target = out or Path(full)
    copies = {target: source} | {target.with_name(code.name): code for code in _code_of(source)}
    for path in copies:
        require_output(path, force=force)
    for path, original in copies.items():
        write_text(path, original.read_text(encoding="utf-8"))
    return tuple(copies)


def _code_of(recipe: Path) -> list[Path]:
    """Return the Python files beside a recipe that it names as `module:function`."""
    named = set(re.findall(r"\b(\w+):\w", recipe.read_text(encoding="utf-8")))
    return [path for path in sorted(recipe.parent.glob("*.py")) if path.stem in named]
