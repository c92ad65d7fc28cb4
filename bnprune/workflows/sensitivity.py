"""Sensitivity: measure how accuracy falls as each group of layers is cut alone; write it to a file, read it again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bnprune.config.bounded_reading import DATA_BYTES, read_text
from bnprune.config.schema import PruneConfig
from bnprune.errors import CheckpointError
from bnprune.notes import Note
from bnprune.pruning.plan import identity
from bnprune.pruning.request import Request
from bnprune.pruning.sensitivity import Sensitivity
from bnprune.pruning.surgery import named_tensors
from bnprune.recovery.sensitivity import SHARES, measure_sensitivity, start_of, weights_digest
from bnprune.runs.display import NO_DISPLAY, Display
from bnprune.runs.files import write_text
from bnprune.runs.outputs import require_output
from bnprune.runs.passes import request_of
from bnprune.training.evaluate import validation_score
from bnprune.workflows.data_source import NetworkWithData, open_with_data
from bnprune.workflows.results import GroupCuts, SensitivityPoint, SensitivityResult
from bnprune.workflows.sweep import constraints_of, notes_on_network, require_values, sparse_trained

_OF_RECOVERY = ("reconstruct", "recalibrate")


def sensitivity(
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    recipe: str | Path | None = None,
    trust: bool = False,
    values: Sequence[float] = (),
    out: str | Path = "sensitivity.json",
    force: bool = False,
    display: Display = NO_DISPLAY,
) -> SensitivityResult:
    """Cut each group of layers alone, by several shares of its channels; recover and evaluate each network.

    The file is written after each cut. If it exists, of the same network and settings, the measurement continues it.
    `prune` reads it, to decide how much each group loses. Accuracies are of validation images.

    Args:
        source: A run directory (its sparse-trained network) or a checkpoint.
        overrides: `key=value` pairs that replace keys of the recipe.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        recipe: Recipe that names the data; default: the one in the checkpoint.
        trust: Run the code and use the paths that the files name.
        values: Shares of the channels to remove, in (0, 1); default: 0.1, 0.2, ... 0.9.
        out: The file to write, or to continue.
        force: Overwrite an existing file.
        display: Where to show progress.

    Returns:
        The accuracy after each cut, by group of layers; `bnprune.prune` takes it as `sensitivity=`.

    Raises:
        ConfigError: A value is out of range, or there is no recipe.
        PruningError: Nothing can be pruned.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint; or `out` has another network.
        DataError: `out` cannot be written.

    Example::

        table = bnprune.sensitivity("runs/digits", values=[0.5], out="sensitivity.json")
        for group in table.groups:
            print(group.layers, [point.accuracy for point in group.points])
        network = bnprune.load("runs/digits/checkpoints/train.safetensors")
        result = bnprune.prune(network, torch.zeros(1, 1, 16, 16), macs=0.7, sensitivity=table)
    """
    tried, target = _ascending(values), Path(out)
    paths = [None if path is None else Path(path) for path in (source, weights)]
    require_output(target, force=True, sources=paths, recipe=None if recipe is None else Path(recipe))
    known = read_table(target, "out") if target.exists() and not force else None
    opened = open_with_data(
        sparse_trained(source),
        overrides,
        model=model,
        model_arguments=model_arguments,
        weights=weights,
        pretrained=pretrained,
        recipe=recipe,
        trust=trust,
    )
    started = time.perf_counter()
    table = _measured(opened, tried, known, target, display)
    return _result(opened, table, time.perf_counter() - started, target)


def _ascending(values: Sequence[float]) -> tuple[float, ...]:
    require_values(values)
    return tuple(sorted({*(values or SHARES)}))


def _measured(
    opened: NetworkWithData, shares: tuple[float, ...], known: Sensitivity | None, out: Path, display: Display
) -> Sensitivity:
    config, network = opened.config.prune or PruneConfig(), opened.source
    request = _request(config)
    score = validation_score(opened.splits, opened.device, opened.task)
    start = start_of(network.model, opened.device, score)
    table = Sensitivity(
        model=type(network.model).__name__,
        digest=_identity(network.model),
        weights=weights_digest(network.model),
        shape=tuple(opened.splits.shape),
        shares=shares,
        settings=_settings(request, config, start.name),
        images=len(opened.splits.validation),
        accuracy=start.value,
    )
    if known is not None:
        table = _continued(out, known, table, display)
    for progress in measure_sensitivity(
        network.model,
        opened.splits,
        opened.device,
        request,
        config,
        opened.config.data.batch_size,
        score=score,
        table=table,
    ):
        if progress.table != known:
            write_text(out, progress.table.to_json() + "\n")
        table = progress.table
        display.advance(progress.done, progress.count, "cuts")
    return table


def _request(config: PruneConfig) -> Request:
    """Return the request whose criterion ranks the channels of a group; by default, the one for MACs."""
    request = request_of(config)
    if config.criterion is not None:
        return request
    return replace(request, criterion="activation" if request.calibrate_images else "gamma")


def _settings(request: Request, config: PruneConfig, metric: str) -> dict[str, Any]:
    """Return what the accuracies depend on, besides the network, the data and the shares."""
    asked = {name: value for name, value in constraints_of(request).items() if name not in ("cap", "layer_ratios")}
    recovery = {name: getattr(config, name) for name in _OF_RECOVERY}
    judged = {} if metric == "top1" else {"metric": metric}
    return {"criterion": request.ranked_by, **asked, **recovery, **judged}


def _continued(out: Path, known: Sensitivity, wanted: Sensitivity, display: Display) -> Sensitivity:
    """Return the table of an earlier measurement, to be continued.

    Raises:
        CheckpointError: It is that of another network, or was measured in another way.
    """
    names = {
        "digest": "network",
        "weights": "weights",
        "shape": "input shape",
        "shares": "shares",
        "settings": "settings of pruning",
        "images": "validation images",
        "accuracy": "accuracy before the cuts",
    }
    other = [name for key, name in names.items() if getattr(known, key) != getattr(wanted, key)]
    if other:
        raise CheckpointError(
            f"'{out}' cannot be continued: it was measured with other {' and other '.join(other)}. Choose another "
            "file, or overwrite it.",
            argument="out",
            remedy={"force": True},
        )
    display.note(f"continuing {out}: {sum(len(group.points) for group in known.groups)} cuts have been evaluated")
    return replace(wanted, groups=known.groups)


def _result(opened: NetworkWithData, table: Sensitivity, seconds: float, out: Path) -> SensitivityResult:
    return SensitivityResult(
        model=opened.source.header.spec.to_dict(),
        input=list(table.shape),
        images=table.images,
        metric=str(table.settings.get("metric", "top1")),
        accuracy=table.accuracy,
        shares=list(table.shares),
        groups=[
            GroupCuts(
                layers=list(group.layers),
                channels=group.channels,
                points=[
                    SensitivityPoint(share=p.share, removed=p.removed, plain=p.plain, accuracy=p.accuracy)
                    for p in group.points
                ],
            )
            for group in table.groups
        ],
        notes=notes_on_network(opened, opened.config.prune or PruneConfig()),
        seconds=round(seconds, 2),
        out=str(out),
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def fitting_table(table: Sensitivity, label: str, model: nn.Module) -> tuple[Note, ...]:
    """Check that a sensitivity table fits a network, and return warnings.

    Args:
        table: The table.
        label: Its name in messages.
        model: The network.

    Raises:
        CheckpointError: It was made for another network, or holds nothing yet.
    """
    again = "Make a table of this network: bnprune sensitivity."
    if table.digest != _identity(model):
        message = f"{label} is the sensitivity table of another network ({table.model}). {again}"
        raise CheckpointError(message, argument="sensitivity")
    if not any(group.points for group in table.groups):
        raise CheckpointError(
            f"{label} has no measured cut yet. Let bnprune sensitivity finish.", argument="sensitivity"
        )
    if table.weights == weights_digest(model):
        return ()
    text = f"{label} was measured with other weights of this network: make a new table if they differ much"
    return (Note("sensitivity.weights", "warning", text),)


def read_table(path: Path, argument: str) -> Sensitivity:
    """Read a sensitivity table; `argument` names the file in errors.

    Raises:
        CheckpointError: The file cannot be read, or is no sensitivity table.
    """
    try:
        return Sensitivity.from_json(read_text(path, DATA_BYTES))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.", argument=argument) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{path}' is not a text file.", argument=argument) from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}", argument=argument) from error


def _identity(model: nn.Module) -> str:
    return identity({name: tuple(tensor.shape) for name, tensor in named_tensors(model)})
