"""The result of `doctor`."""

from __future__ import annotations

from bnprune.cli.verbosity import echo
from bnprune.workflows.results import DoctorResult


def show_doctor(result: DoctorResult) -> None:
    """Print versions, extras, devices and problems."""
    echo(f"python {result.python} on {result.platform}")
    for package, version in result.versions.items():
        echo(f"  {package:12} {version}")
    for extra, there in result.extras.items():
        echo(f"  {extra:12} {'installed' if there else _missing(extra)}")
    echo(f"devices: {', '.join(result.devices)} ({result.threads} threads)")
    echo(f"models: {', '.join(result.models)}, torchvision/NAME, timm/NAME, package.module:factory")
    for problem in result.problems:
        echo(f"problem: {problem}", fg="red")
    if not result.problems:
        echo("no problems found")


def _missing(extra: str) -> str:
    return f"missing: pip install '.[{extra}]' in the clone of bnprune"
