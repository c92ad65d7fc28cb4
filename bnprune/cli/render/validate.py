"""The result of `validate`."""

from __future__ import annotations

from pathlib import Path

import yaml

from bnprune.cli.verbosity import echo
from bnprune.errors import printable
from bnprune.reporting.number_format import count
from bnprune.workflows.results import ValidateResult


def show_validate(result: ValidateResult, recipe: Path, *, print_config: bool) -> None:
    """Print the size of the data and of the network, warnings, and the resolved recipe if it is wanted."""
    if print_config:
        echo(_as_yaml(result), nl=False)
    warnings = "".join(f"\nwarning: {text}" for text in result.warnings)
    notes = "".join(f"\nnote: {note}" for note in result.notes)
    echo(f"{recipe} is valid.\n{_summary(result)}{warnings}{notes}", err=print_config)


def _as_yaml(result: ValidateResult) -> str:
    """Return the recipe as YAML; in ASCII if it holds characters that a terminal would not show."""
    text: str = yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True)
    return text if text == printable(text) else str(yaml.safe_dump(result.config, sort_keys=False))


def _summary(result: ValidateResult) -> str:
    images, shape = result.images, "x".join(map(str, result.input))
    classes = _classes(result)
    prunable = "" if result.prunable is None else f", {result.prunable} of them prunable"
    return (
        f"  data:    {images.train} images to train, {images.validation} to validate, {images.test} to test; "
        f"{shape}, {classes}\n"
        f"  network: {count(result.params)} parameters, {count(result.macs)} MACs, "
        f"{result.channels} BN channels{prunable}"
    )


def _classes(result: ValidateResult) -> str:
    if (result.config.get("data") or {}).get("unlabelled"):
        return "no labels"
    return f"{result.classes} classes" if result.classes > 1 else "targets without classes"
