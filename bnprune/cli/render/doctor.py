"""The result of `doctor`."""

from __future__ import annotations

from bnprune.cli.verbosity import say
from bnprune.workflows.results import DoctorResult


def show_doctor(result: DoctorResult) -> None:
    """Print versions, extras, devices and problems."""
    say(f"python {result.python} on {result.platform}")
    for package, version in result.versions.items():
        say(f"  {package:12} {version}")
    for extra, there in result.extras.items():
        say(f"  {extra:12} {'installed' if there else f'missing: pip install bnprune[{extra}]'}")
    say(f"devices: {', '.join(result.devices)} ({result.threads} threads)")
    say(f"models: {', '.join(result.models)}, torchvision/NAME, timm/NAME, package.module:factory")
    for problem in result.problems:
        say(f"problem: {problem}", fg="red")
    if not result.problems:
        say("no problems found")
