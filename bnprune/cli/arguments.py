"""Values of options, from text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnprune.cli.verbosity import VERBOSITY, echo
from bnprune.config.bounded_reading import LONGEST_NUMBER
from bnprune.config.yaml_loader import YamlError, read_yaml
from bnprune.errors import ConfigError, quoted, shortened


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Read "3,224,224" (or "3x224x224"); None for None.

    Raises:
        ConfigError: The text is something else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.lower().replace("x", ",").split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < LONGEST_NUMBER for part in parts):
        wanted = "expected the shape of one input without the batch, such as 3,224,224"
        raise ConfigError(f"--input: {wanted} (got {quoted(text)}).")
    return tuple(map(int, parts))


def parse_numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    """Read "0.5,0.5,0.5"; None for None.

    Raises:
        ConfigError: The text is something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{flag}: expected numbers, such as 0.485,0.456,0.406 (got {quoted(text)}).") from error


def parse_arguments(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Read `key=value` arguments of a model; values are YAML.

    Raises:
        ConfigError: An argument is something else.
    """
    parsed = {}
    for text in arguments or ():
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--model-arg: expected key=value, such as num_classes=10 (got {quoted(text)}).")
        try:
            parsed[key] = read_yaml(value)
        except YamlError as error:
            raise ConfigError(f"--model-arg: {shortened(key)}: {quoted(value)} {error}.") from error
    return parsed


def parse_shares(text: str | None) -> list[float]:
    """Read "0.5,0.7,0.9"; empty for None.

    Raises:
        ConfigError: The text is something else.
    """
    try:
        return [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--at: expected numbers such as 0.5,0.7,0.9 (got {quoted(text)}).") from error


def checkpoint_of(source: Path | None, stage: str | None, default: str | None = None) -> Path | None:
    """Return the checkpoint that SOURCE and --stage name, and print which one that is if SOURCE is a run directory.

    Args:
        source: A run directory or a checkpoint; None if the network is given otherwise.
        stage: The stage of a run directory; None for the default.
        default: Stage whose network is taken by default, if there is one: else, that of the last finished stage.

    Raises:
        ConfigError: A stage is given, and SOURCE is no run directory.
        CheckpointError: The run has no such checkpoint.
    """
    if source is None or not source.is_dir():
        if stage is not None:
            raise ConfigError("a stage chooses among the networks of a run directory.", argument="stage")
        return source
    from bnprune.runs.directory import RunDirectory

    run = RunDirectory(source)
    path = run.network(default) if stage is None else run.network_of(stage)
    if not VERBOSITY.quiet:
        echo(f"network: {path}", err=True)
    return path


def source_and_overrides(source: Path | None, overrides: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """Separate SOURCE from `key=value` overrides: without a SOURCE, the first override stands in its place."""
    if source is not None and "=" in str(source) and not source.exists():
        return None, [str(source), *(overrides or ())]
    return source, list(overrides or ())


def recipe_and_overrides(arguments: Sequence[str], given: Path | None = None) -> tuple[Path | None, list[str]]:
    """Separate the path of a recipe, which exists or ends in .yaml, from `key=value` overrides.

    Args:
        arguments: Overrides, and perhaps a recipe among them.
        given: The recipe, if a flag names it.

    Raises:
        ConfigError: There are several recipes.
    """
    named = [text for text in arguments if "=" not in text and (Path(text).suffix in _YAML or Path(text).exists())]
    recipes = [*([] if given is None else [given]), *map(Path, named)]
    if len(recipes) > 1:
        raise ConfigError(f"expected one recipe, got {', '.join(map(str, recipes))}.")
    return (recipes[0] if recipes else None), [text for text in arguments if text not in named]


_YAML = (".yaml", ".yml")
