"""The recipes that come with bnprune."""

from __future__ import annotations

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


def copy_recipe(name: str, out: Path | None, *, force: bool) -> Path:
    """Copy a recipe; return the path of the copy.

    Raises:
        ConfigError: There is no such recipe, or the file exists.
        DataError: The file cannot be written.
    """
    names = [known for known, _ in list_recipes()]
    full = name if name.endswith(".yaml") else f"{name}.yaml"
    if full not in names:
        raise ConfigError(f"there is no recipe '{name}'. {hint(full, names)}")
    target = out or Path(full)
    require_output(target, force=force)
    write_text(target, (recipe_folder() / full).read_text(encoding="utf-8"))
    return target
