"""The layers that are not pruned, and why."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from bnprune.cli.render.console import print_text
from bnprune.cli.verbosity import VERBOSITY
from bnprune.workflows.results import RefusedSite


def show_refusals(console: Console, refusals: Iterable[RefusedSite]) -> None:
    """Print one line per reason, with the layers it concerns."""
    sites: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        sites.setdefault((refusal.reason, refusal.fix), []).append(refusal.site)
    for (reason, fix), names in sites.items():
        few = len(names) if VERBOSITY.verbose else 3
        shown = ", ".join(names[:few]) + (f" and {len(names) - few} more" if len(names) > few else "")
        print_text(console, f"not pruned: {shown}: {reason}" + (f"\n      fix: {fix}" if fix else ""))
