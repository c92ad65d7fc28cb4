"""`save` and `load`: a network of a user's own program as a checkpoint, and back.

A network that bnprune cut or loaded remembers the plans of its cuts (`bnprune.pruning.cut_history`), and which dense
network they start from. They are attributes of plain text, so that copies of the network (averaged weights, a pickle)
have them as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from bnprune.channels.modules import unwrapped
from bnprune.errors import ConfigError, PruningError
from bnprune.models.zoo import ModelSpec
from bnprune.pruning.cut_history import change_since, input_of, plans_of, record_shapes
from bnprune.pruning.pruner import PruningResult
from bnprune.runs.checkpoint import Header, load_checkpoint, save_checkpoint
from bnprune.runs.outputs import require_checkpoint_name

_ORIGIN = "_bnprune_origin"
"""Attribute of a network that `load` built from a name: the name, its arguments, and the shape of one input."""

_TO_KEEP_CUT = "Change the dense network instead and cut that, or store the module itself with torch.save."
_TO_KEEP_DENSE = "Give the spec of the network that it is now."


def save(
    network: PruningResult | nn.Module,
    path: str | Path,
    *,
    spec: ModelSpec | str | None = None,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Save a pruned network: weights, the plans of all its cuts, and how to rebuild it.

    Args:
        network: The result of `bnprune.prune`, or a network that bnprune cut or loaded, as it is now: fine-tuned, a
            copy with averaged weights, wrapped in DistributedDataParallel, torch.compile or `AveragedModel`. A dense
            network works as well.
        path: A `.safetensors` file.
        spec: How to build the dense network (`"torchvision/resnet18"`, or a `ModelSpec` with arguments), so that
            `load` needs nothing else. By default, what the file said from which the network was loaded. Without it,
            `load` takes the dense network as `model=`.
        input_shape: Shape of one input, without the batch; the command line uses it. By default, that of the example
            input of the cut.

    Raises:
        DataError: The file cannot be written.
        ConfigError: `network` is something else, or the name of the file does not end in `.safetensors`.
        PruningError: A tensor has another shape than after the last cut (a new last layer for other classes), or one is
            missing or new, so that the file could not be loaded.

    Example::

        result = bnprune.prune(model, example_inputs, ratio=0.5)
        ...  # fine-tune result.model
        bnprune.save(result.model, "slim.safetensors")
    """
    require_checkpoint_name(Path(path), "path")
    model = unwrapped(network.model if isinstance(network, PruningResult) else network)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"save: expected a network or the result of bnprune.prune, got {type(network).__name__}.")
    plans = plans_of(model) or ((network.plan,) if isinstance(network, PruningResult) else ())
    origin = json.loads(vars(model).get(_ORIGIN, "{}"))
    if (plans or (origin and spec is None)) and (change := change_since(model)):
        since, fix = ("the cut", _TO_KEEP_CUT) if plans else ("it was loaded", _TO_KEEP_DENSE)
        raise PruningError(
            f"save: {change}: the network was changed after {since}, so that the file could not be loaded. {fix}"
        )
    if isinstance(spec, str):
        spec = ModelSpec.parse(spec, {})
    elif spec is None and origin:
        spec = ModelSpec(name=origin["name"], kwargs=origin["kwargs"])
    shape = input_shape or input_of(model) or origin.get("input")
    header = Header(
        spec or ModelSpec(factory=type(model).__name__),
        plans,
        tuple(shape) if shape is not None else None,
        stage="prune" if plans else None,
    )
    save_checkpoint(Path(path), model, header)


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    trust: bool = False,
) -> nn.Module:
    """Load a network saved by bnprune, in eval mode.

    Args:
        path: A `.safetensors` checkpoint.
        model: The dense network, any weights; needed only for a network of your own. It is not changed.
        device: Where to put the network.
        dtype: Data type of its floating-point parameters and buffers; by default, that of the file.
        trust: Let the file name code to build the network with. Without it, a file is data: nothing is imported,
            called, opened or downloaded because the file says so. The environment variable BNPRUNE_TRUST lists folders
            whose files are trusted.

    Returns:
        The network that was saved, which remembers its cuts: `save` writes it again, also after a fine-tuning.

    Raises:
        CheckpointError: The file is missing, damaged or not a bnprune checkpoint, or `model` is not its network.
        UntrustedError: The file names code, and neither `model` nor `trust` is given.

    Example::

        bnprune.save(bnprune.prune(model, example_inputs, ratio=0.5), "slim.safetensors")
        slim = bnprune.load("slim.safetensors", model=model)  # a network by name needs no model=
    """
    network, header = load_checkpoint(Path(path), model, trust=trust)
    if not header.spec.own:
        setattr(network, _ORIGIN, json.dumps({**header.spec.to_dict(), "input": header.input_shape}))
        record_shapes(network)
    return network.to(device=device, dtype=dtype).eval()
