"""A model card: a page in Markdown about an exported network, for the people who will use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnprune import __version__
from bnprune.config.metrics import metric_of
from bnprune.config.prune_options import TARGETS
from bnprune.errors import printable
from bnprune.exporters.preprocessing import InputValues
from bnprune.runs.checkpoint import Header
from bnprune.runs.input_format import per_channel, sizing_of
from bnprune.runs.results import ExportFigures, InputFormat


def model_card(header: Header, shape: Sequence[int], figures: ExportFigures, values: InputValues) -> str:
    """Return the text of a model card.

    Args:
        header: The header of the network's checkpoint.
        shape: Shape of one input, without the batch.
        figures: The exported files, and how they were compared with PyTorch.
        values: The numbers that the network takes.
    """
    lines = [
        f"# {printable(header.spec.label)}{', pruned' if header.plans else ''}",
        "",
        *_files(figures),
        "",
        "## Inputs and outputs",
        "",
        f"- One input has the shape {' × '.join(map(str, shape))} (channels, height, width).",
        f"- Its numbers are of type {values.type_name}.",
        *_inputs(header.inputs, values),
        "",
        "## What it is",
        "",
        f"- The network before pruning: `{printable(header.spec.label)}`, arguments {dict(header.spec.kwargs)}.",
        *_cuts(header),
        *_figures(header),
        "",
        f"Written by bnprune {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _files(figures: ExportFigures) -> Iterator[str]:
    for file in figures.files:
        yield f"- `{printable(file.path)}`: {file.bytes / 1e6:.2f} MB, format {figures.format}, batch {figures.batch}"
    for name, parity in (("random inputs", figures.verification.random), ("real images", figures.verification.real)):
        if parity is not None:
            error = f"{parity.max_relative_error:.1e}"
            yield f"- Compared with PyTorch on {parity.inputs} {name}: relative error {error}."


def _inputs(inputs: InputFormat | None, values: InputValues) -> Iterator[str]:
    if inputs is None:
        yield "- How images become inputs is not known: the data was the user's own."
        return
    pixels = "pixel values between 0 and 1" if values.white == 1 else f"pixel values from 0 to {values.white}"
    itself = "" if values.normalised else " The network normalises them itself."
    yield f"- Images: {sizing_of(inputs)}, {pixels}.{itself}"
    if values.normalised:
        mean, std = per_channel(inputs.mean), per_channel(inputs.std)
        yield f"- Then subtract the mean {mean} and divide by {std}, per channel."
    if inputs.classes:
        yield f"- Classes, in the order of the scores: {', '.join(map(printable, inputs.classes))}."


def _cuts(header: Header) -> Iterator[str]:
    for plan in header.plans:
        asked = ", ".join(f"{kind} {plan.requested[kind]}" for kind in TARGETS if kind in plan.requested)
        share = plan.realised.get("ratio")
        removed = "" if share is None else f": {share:.0%} of the prunable BatchNorm channels were removed"
        yield f"- Pruned to {asked or 'a plan'}{removed}."


def _figures(header: Header) -> Iterator[str]:
    accuracy = header.metrics.get("accuracy")
    if isinstance(accuracy, float):
        metric = metric_of(str(header.metrics.get("metric", "top1")))
        yield f"- Test {metric.label}: {metric.text(accuracy)}."
    names = {"params": "parameters", "macs": "multiply-accumulates"}
    sizes = [f"{header.metrics[key]:,} {name}" for key, name in names.items() if type(header.metrics.get(key)) is int]
    if sizes:
        yield f"- {' and '.join(sizes)} for one input."
