"""The result of `prune`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.refusals import show_refusals
from bnprune.cli.render.tables import bar, show_rows
from bnprune.cli.verbosity import VERBOSITY
from bnprune.config.metrics import metric_of
from bnprune.reporting.number_format import count, plural
from bnprune.workflows.results import (
    CalibrationOutcome,
    Change,
    CompensationOutcome,
    CutEffect,
    LayerChange,
    PruneResult,
    TargetOutcome,
)


def show_prune(result: PruneResult) -> None:
    """Print widths, costs, refusals and the result of the verification."""
    console = stdout()
    dry_run = result.out is None
    _show_layers(console, result.layers, every=dry_run)
    changes = {"prunable BN channels": result.channels, "parameters": result.params, "MACs": result.macs}
    show_rows(["", "before", "after", "kept", ""], [(name, *_change(change)) for name, change in changes.items()])
    if line := _target(result.target):
        console.print(line)
    show_refusals(console, result.refusals)
    show_notes(console, result.notes)
    proof = result.verification
    if proof.max_relative_error is not None:
        error = f"{proof.max_relative_error:.1e} in {proof.dtype}"
        console.print(f"verified: the slim network equals the masked original, relative error {error}")
    steps = {name: seconds for name, seconds in result.seconds.items() if name != "total"}
    if VERBOSITY.verbose and steps:
        console.print("took: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()))
    if result.calibration is not None and result.calibration.chosen is not None:
        print_text(console, _repair(result.calibration))
    elif result.compensation:
        print_text(console, _summary(result.compensation))
    if result.effect is not None:
        print_text(console, _effect(result.effect))
    print_text(console, "dry run: nothing was written" if dry_run else f"wrote {result.out}")
    if result.effect is not None:
        print_text(console, f"to recover more: bnprune finetune {shlex.quote(str(result.out))} --out DIR")


def _effect(effect: CutEffect) -> str:
    """Return a line with the value of the task's metric before and after the cut."""
    metric = metric_of(effect.metric)
    return (
        f"validation {metric.label} on {plural(effect.images, 'image')}: {metric.text(effect.before)} before, "
        f"{metric.text(effect.after)} after pruning"
    )


def _repair(calibration: CalibrationOutcome) -> str:
    """Return a line with the way of repair that was kept, and the distance of the outputs before and after."""
    chosen, distances = calibration.chosen or "", calibration.distances
    before, after = (f"{distances[name] or 0:.3f}" for name in ("plain", chosen))
    return (
        f"repaired with {plural(calibration.images, 'image')}: {chosen}; distance to the outputs of the dense network "
        f"{before} -> {after} (to turn it off: --calibrate-images 0)"
    )


_WORDS = {
    "exact": "exactly",
    "interior": "except at the borders of feature maps, where padding replaces some of them",
    "none": "not at all",
}


def _summary(compensation: Sequence[CompensationOutcome]) -> str:
    """Return a line with the number of layers that are compensated exactly, except at borders, or not at all."""
    counts = Counter(done.outcome for done in compensation)
    parts = "; ".join(f"{counts[outcome]} {word}" for outcome, word in _WORDS.items() if counts[outcome])
    return (
        "compensated layers, whose biases now hold the constant outputs of the channels that they read no longer: "
        f"{parts} (reasons: --json; to turn it off: --no-compensate)"
    )


_MANY_LAYERS = 24
_TARGETS = {
    "ratio": "ratio: requested {:.3g}, removed {:.3f}",
    "macs": "MACs: requested {:.3g}, kept {:.3f}",
    "params": "parameters: requested {:.3g}, kept {:.3f}",
    "latency_ms": "latency: requested {:.3g} ms, reached {:.3g} ms",
}


def _target(target: TargetOutcome) -> str:
    """Return a line about the target; empty if a replayed plan does not name it."""
    requested, realised = target.requested, target.realised
    if requested is None or requested != requested or realised is None:
        return ""
    return _TARGETS[target.kind].format(requested, realised)


def _change(change: Change) -> tuple[str | Text, ...]:
    before, after = change.before, change.after
    return count(before), count(after), f"{after / max(before, 1):.1%}", bar(after, before)


def _show_layers(console: Console, every_layer: Sequence[LayerChange], *, every: bool) -> None:
    """Print the width of every layer; of deep networks only their number, unless every layer is wanted."""
    layers = [layer for layer in every_layer if layer.kind != "norm"]
    if len(layers) > _MANY_LAYERS and not every and not VERBOSITY.verbose:
        console.print(f"{len(layers)} layers (--verbose lists them)\n")
        return
    longest = max((layer.before for layer in layers), default=1)
    show_rows(
        ["layer", "kind", "before", "after", ""],
        [
            (layer.name, layer.kind, str(layer.before), str(layer.after), bar(layer.after, layer.before, longest))
            for layer in layers
        ],
    )
    console.print()
