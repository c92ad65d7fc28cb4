"""The result of `profile`."""

from __future__ import annotations

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.tables import show_rows
from bnprune.cli.verbosity import VERBOSITY
from bnprune.workflows.results import ProfileResult

_SHOWN = 10
"""Layers that are listed without --verbose."""


def show_profile(result: ProfileResult) -> None:
    """Print the slowest layers, with the multiples of channels at which their latency changes, and the file."""
    console = stdout()
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    print_text(console, f"{result.processor}, {threads}, {result.backend}, batch {result.batch}")
    layers = sorted(result.layers, key=lambda layer: -layer.ms)
    shown = layers if VERBOSITY.verbose else layers[:_SHOWN]
    rows = [
        (
            layer.name,
            f"{layer.inputs} x {layer.outputs}",
            f"{layer.ms:.3f}",
            f"{layer.ms / result.total_ms:.1%}",
            f"{layer.input_step} x {layer.output_step}",
        )
        for layer in shown
    ]
    show_rows(["layer", "inputs x outputs", "ms", "share", "steps"], rows)
    if len(layers) > len(shown):
        console.print(f"and {len(layers) - len(shown)} more (to list all: --verbose)")
    console.print("steps: latency changes at multiples of these numbers of input x output channels")
    console.print(f"convolutions and linear layers: {result.layers_ms:.2f} of {result.total_ms:.2f} ms")
    print_text(console, f"wrote {result.out}")
