"""Inspect: the channels of a network that can be pruned, and the reasons for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnprune.channels.trace_network import Coupling, Outputs
from bnprune.pruning.inspection import inspect as inspect_model
from bnprune.runs.files import plain
from bnprune.runs.network_source import open_source
from bnprune.workflows.results import InspectedChannels, InspectedLayer, InspectResult, RefusedSite


def inspect(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_shape: Sequence[int] | None = None,
    trust: bool = False,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    coupling: Coupling = "shared",
    outputs: Outputs | None = None,
) -> InspectResult:
    """Return which channels can be pruned in a network from a file or by name.

    For a network that is in memory, see `bnprune.inspect`.

    Args:
        source: A run directory or a checkpoint.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        input_shape: Shape of one input, without the batch.
        trust: Run the code and use the paths that the files name.
        exclude: Layers not to prune, as for `bnprune.prune`.
        include: The only layers to prune, as for `bnprune.prune`.
        coupling: As for `bnprune.prune`.
        outputs: As for `bnprune.prune`.

    Raises:
        ConfigError: An argument is wrong.
        TraceError: The forward pass fails.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint.
    """
    network = open_source(
        source,
        model=model,
        arguments=model_arguments,
        weights=weights,
        pretrained=pretrained,
        shape=input_shape,
        needs_shape=True,
        trust=trust,
    )
    found = inspect_model(
        network.model, network.inputs, exclude=exclude, include=include, coupling=coupling, outputs=outputs
    )
    shape = network.header.input_shape
    return InspectResult(
        model=network.header.spec.to_dict(),
        input=None if shape is None else list(shape),
        channels=InspectedChannels(total=found.channels, prunable=found.prunable),
        params=found.params,
        macs=found.macs,
        layers=[InspectedLayer(**plain(asdict(layer))) for layer in found.layers],
        refusals=[RefusedSite(site=r.site, reason=r.reason, fix=r.fix) for r in found.refusals],
        notes=network.notes_with(found.notes),
    )
