"""The data of a run for its report: the files of a run directory, read and checked. Independent of HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

import torch

from bnprune.config.bounded_reading import DATA_BYTES, LOG_BYTES, RECIPE_BYTES, parse_json, read_text
from bnprune.config.metrics import Metric, metric_of
from bnprune.config.yaml_loader import read_yaml
from bnprune.errors import CheckpointError, ConfigError, first_line, printable
from bnprune.pruning.plan import PruningPlan
from bnprune.reporting.values import MOST, amount, count, loss, number, plain_data, share
from bnprune.runs.directory import RunDirectory
from bnprune.runs.results import InputFormat, LayerChange, RunResult, StageResult
from bnprune.runs.scale_factors import read_gammas
from bnprune.runs.stages import is_stage, kind_of, title_of

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One finished stage, by its name."""

    name: str
    figures: StageResult
    """As in result.json, with all texts made printable."""
    before: bool = False
    """True for a network that the run started from, or one before that."""

    @property
    def title(self) -> str:
        """Name of the network that the stage produced."""
        return _title(self.name)


@dataclass(frozen=True)
class Curve:
    """Metrics of one training, per epoch."""

    stage: str
    title: str
    epochs: tuple[int, ...] = ()
    train_loss: tuple[float | None, ...] = ()
    validation_loss: tuple[float | None, ...] = ()
    train_value: tuple[float | None, ...] = ()
    """Of the main value of the task: for classification, accuracy."""
    validation_value: tuple[float | None, ...] = ()
    metric: str = "top1"
    """Name of the main value."""
    quantiles: tuple[tuple[float, ...], ...] = ()
    """Minimum, quartiles and maximum of |γ| per epoch; empty without a penalty."""


@dataclass(frozen=True)
class Gammas:
    """All scale factors of one network."""

    title: str
    values: torch.Tensor
    """|γ| of every BatchNorm channel, shape (channels,), float64."""
    removed: torch.Tensor | None = None
    """Mask of the channels that the first pruning removed, shape (channels,); None if it is not known."""

    @property
    def threshold(self) -> float | None:
        """The largest |γ| of a removed channel."""
        if self.removed is None or not bool(self.removed.any()):
            return None
        return float(self.values[self.removed].max())

    @property
    def kept_below(self) -> int:
        """Number of kept channels whose |γ| is below the threshold."""
        if self.threshold is None or self.removed is None:
            return 0
        return int(((self.values < self.threshold) & ~self.removed).sum())


@dataclass(frozen=True)
class RunData:
    """A run, finished or not."""

    path: Path
    name: str
    model: str
    data: str
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    stages: tuple[Stage, ...]
    curves: tuple[Curve, ...]
    gammas: tuple[Gammas, ...]
    inputs: InputFormat | None = None
    """How images became inputs, and the names of the classes; None if it is not known."""
    gated: bool = False
    """True if the first pruning inserted gates."""
    by_threshold: bool = False
    """True if one threshold on |γ| decided the first pruning."""
    criterion: str = ""
    """Criterion by which the channels of the first pruning were ranked; empty if nothing was pruned."""
    notes: tuple[str, ...] = field(default=())
    """Sentences about files that are missing or incomplete."""

    @property
    def metric(self) -> Metric:
        """The main value of the task."""
        return metric_of(next((stage.figures.metric for stage in self.stages), "top1"))

    @property
    def reference(self) -> Stage | None:
        """The network that the slim one is compared with: the dense one, or else the sparse-trained one."""
        return next((stage for stage in self.stages if kind_of(stage.name) in ("baseline", "train")), None)

    @property
    def final(self) -> Stage | None:
        """The last slim network, or else the last network."""
        slim = [stage for stage in self.stages if kind_of(stage.name) in ("prune", "finetune")]
        return next(reversed(slim or list(self.stages)), None)

    @property
    def pruned(self) -> list[Stage]:
        """The stages in which channels were removed, in order."""
        return [stage for stage in self.stages if stage.figures.pruned is not None]

    @property
    def layers(self) -> list[LayerChange]:
        """Channels of each layer before the first pruning and after the last.

        Without gates, of convolutions and linear layers: a BatchNorm has the width of the layer before it. With gates,
        of norms: a gate between the two selects channels, so that only the width of the norm shows what was pruned.
        """
        changes = [stage.figures.layers or [] for stage in self.pruned]
        if not any(changes):
            return []
        first = [layer for layer in changes[0] if (layer.kind == "norm") == self.gated]
        known = {layer.name for layer in first}
        after = {_ungated(layer.name, known): layer.after for layers in changes for layer in layers}
        return [layer.model_copy(update={"after": after[layer.name]}) for layer in first]


def read_run_data(path: Path) -> RunData:
    """Read a run directory.

    Raises:
        ConfigError: It is not a run directory.
        CheckpointError: A file in it is damaged.
    """
    directory = RunDirectory(path)
    if not directory.config_file.is_file():
        fix = "A directory made by `bnprune run`, `train` or `finetune` holds one."
        raise ConfigError(f"'{path}' is not a run directory (it has no config.yaml). {fix}")
    notes: list[str] = []
    config_text = _text(directory.config_file, RECIPE_BYTES)
    config = _checked(directory.config_file, lambda: plain_data(read_yaml(config_text)))
    environment = _environment(path / "env.json", notes)
    _checked(path / "env.json", lambda: _require_environment(environment))
    result = _result(directory, notes)
    curves = _checked(directory.metrics_file, lambda: _curves(directory, notes))
    plan = _plan(directory.plan_file("prune"))
    return RunData(
        path=path,
        name=printable(path.resolve().name),
        model=_named(config.get("model")),
        data=_named(config.get("data")),
        config=config,
        config_text=printable(config_text),
        environment=environment,
        stages=_stages(result),
        curves=curves,
        gammas=tuple(_gammas(directory, plan, notes)),
        inputs=result.inputs,
        gated=plan is not None and bool(plan.gates),
        by_threshold=plan is not None and _is_by_threshold(plan),
        criterion="" if plan is None else printable(str(plan.requested.get("criterion", ""))),
        notes=tuple(notes),
    )


# -- files -----------------------------------------------------------------------------------------------------------


def _checked(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {type(error).__name__}: {first_line(error)}") from error


def _text(path: Path, limit: int = DATA_BYTES) -> str:
    try:
        return _checked(path, lambda: read_text(path, limit))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error


def _result(directory: RunDirectory, notes: list[str]) -> RunResult:
    if not directory.result_file.is_file():
        notes.append("result.json is not there yet: no stage is finished.")
    return RunResult.model_validate(plain_data(directory.result().to_dict()))


def _stages(result: RunResult) -> tuple[Stage, ...]:
    earlier = (Stage(name, figures, before=True) for name, figures in result.before.items())
    return (*earlier, *starmap(Stage, result.stages.items()))


def _title(stage: str) -> str:
    return title_of(stage) if is_stage(stage) else stage


def _environment(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        notes.append("env.json is not there.")
        return {}
    return _checked(path, lambda: plain_data(parse_json(_text(path))))


def _require_environment(environment: Mapping[str, Any]) -> None:
    for name, kind in (("argv", list), ("accelerators", list), ("versions", dict)):
        if not isinstance(environment.get(name), kind | None):
            raise TypeError(f"{name} is not a {kind.__name__}")


def _ungated(name: str, known: Collection[str]) -> str:
    """Return the name that a layer had before a gate replaced it: the gate holds it as its attribute `norm`."""
    while name not in known and name.endswith(".norm"):
        name = name.removesuffix(".norm")
    return name


def _plan(path: Path) -> PruningPlan | None:
    if not path.is_file():
        return None
    try:
        return PruningPlan.from_json(_text(path))
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error


def _named(section: Any) -> str:
    if not isinstance(section, Mapping):
        return "?"
    return str(section.get("name") or section.get("factory") or "?")


# -- curves ----------------------------------------------------------------------------------------------------------


def _curves(directory: RunDirectory, notes: list[str]) -> tuple[Curve, ...]:
    if not directory.metrics_file.is_file():
        return ()
    lines: dict[str, list[dict[str, Any]]] = {}
    broken = 0
    for text in _text(directory.metrics_file, LOG_BYTES).splitlines():
        try:
            record = plain_data(parse_json(text))
        except json.JSONDecodeError:  # the last line of a run that is being written, or was killed
            broken += 1
            continue
        if "epoch" in record:
            lines.setdefault(str(record["stage"]), []).append(record)
    if broken:
        which = "a line that is" if broken == 1 else f"{broken} lines that are"
        notes.append(f"metrics.jsonl has {which} not complete, left out here.")
    return tuple(_curve(stage, records) for stage, records in lines.items())


def _curve(stage: str, records: list[dict[str, Any]]) -> Curve:
    return Curve(
        stage=stage,
        title=_title(stage),
        epochs=tuple(count(record["epoch"]) for record in records),
        train_loss=tuple(loss(record["train"]["loss"]) for record in records),
        validation_loss=tuple(loss(record["validation"]["loss"]) for record in records),
        train_value=tuple(_main(record, "train") for record in records),
        validation_value=tuple(_main(record, "validation") for record in records),
        metric=str(records[-1].get("metric", "top1")),
        quantiles=tuple(_quantiles(record["gamma"]["quantiles"]) for record in records if "gamma" in record),
    )


def _main(record: Mapping[str, Any], split: str) -> float | None:
    """Return the main value of an epoch; None if it is not a number, or out of the range of its metric."""
    name = str(record.get("metric", "top1"))
    value = record[split][name]
    return share(value) if metric_of(name).share else number(value)


def _quantiles(values: Any) -> tuple[float, ...]:
    """Return minimum, quartiles and maximum."""
    numbers = tuple(checked for value in values if (checked := amount(value)) is not None)
    if len(numbers) != 5:
        raise ValueError(f"expected five quantiles, got {len(numbers)}")
    return numbers


# -- scale factors ---------------------------------------------------------------------------------------------------


def _is_by_threshold(plan: PruningPlan) -> bool:
    """Return True if channels were ranked by |γ|, and no least widths kept some of those below the threshold."""
    return plan.requested.get("criterion") == "gamma" and not plan.requested.keys().isdisjoint(("ratio", "cap"))


def _gammas(directory: RunDirectory, plan: PruningPlan | None, notes: list[str]) -> list[Gammas]:
    """Return scale factors before training, trained without the penalty, and trained with it, if there are files."""
    if not directory.gamma_file.is_file():
        notes.append("gamma.safetensors is not there: no histograms of the scale factors.")
        return []
    start = read_gammas(directory.gamma_file)
    names = list(start)
    networks = [("before training", start)]
    for stage, title in (("baseline", "trained without the penalty"), ("train", "trained with the penalty")):
        path = directory.checkpoint(stage)
        trained = read_gammas(path, names) if path.is_file() else {}
        if trained.keys() == start.keys() and all(trained[name].shape == start[name].shape for name in names):
            networks.append((title, trained))
    finite = [Gammas(title, values) for title, gammas in networks if (values := _joined(gammas, names)) is not None]
    if len(finite) < len(networks):
        notes.append("some scale factors are not finite: no histograms of those networks.")
    if plan is not None and finite:
        finite[-1] = Gammas(finite[-1].title, finite[-1].values, _removed(plan, start, names))
    return finite


def _joined(gammas: Mapping[str, torch.Tensor], names: list[str]) -> torch.Tensor | None:
    """Return all scale factors in a row; None if there are none, or some are not finite."""
    values = torch.cat([torch.zeros(0, dtype=torch.float64), *(gammas[name].flatten() for name in names)])
    return values if len(values) and bool((values < MOST).all()) else None


def _removed(plan: PruningPlan, gammas: Mapping[str, torch.Tensor], names: list[str]) -> torch.Tensor | None:
    """Return a mask of the scale factors that the plan removes; None if it was made for a network of other sizes."""
    cuts = {place: cut for cut in plan.cuts for place in cut.at}
    masks = []
    for name in names:
        mask = torch.zeros(gammas[name].numel(), dtype=torch.bool)
        cut = cuts.get((name, 0))
        if cut is not None:
            if cut.size != mask.numel():
                return None
            mask[cut.removed] = True
        masks.append(mask)
    return torch.cat(masks)
