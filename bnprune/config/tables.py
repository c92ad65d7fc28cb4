"""Tables of criteria, penalties, tasks and export formats: each entry has a sentence and a function.

The flags, the recipe keys, the references and the messages list the names from here. Nothing here imports torch: an
entry names its function as "module:attribute", which is imported when the entry is first called.

To add one in a program of your own, assign to the table; a plain function will do, and the first line of its docstring
is its sentence:

>>> CRITERIA["gamma-squared"] = gamma_squared
>>> bnprune.prune(model, example_inputs, ratio=0.5, criterion="gamma-squared")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


def imported(reference: str) -> Callable[..., Any]:
    """Import a function of bnprune, given as "module:attribute"."""
    module, _, attribute = reference.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), attribute)
    return function


@dataclass(frozen=True)
class Entry:
    """A function that is imported when it is called."""

    sentence: str
    """Completes "NAME: ..." in help and references."""
    implementation: str
    """The function, as "module:attribute"."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the function and call it."""
        return imported(self.implementation)(*args, **kwargs)


@dataclass(frozen=True)
class Criterion(Entry):
    """A ranking of channels: a function (graph, tensors, reduce) -> one score per unit.

    A criterion that needs data has two functions: `measure` (model, calibration) -> statistics, and the ranking itself,
    which takes the statistics as its fourth argument.
    """

    measure: str = ""
    """Function that measures the statistics, as "module:attribute"; empty if no data is needed."""
    optional: bool = False
    """True if it also ranks without data."""
    least_width: float = 0.0
    """Every layer keeps at least this share of the width that it would have if all layers were pruned alike, unless
    `cap` is given; 0 for no such limit. See `pruning.least_widths`."""
    limits_ratio: bool = True
    """False if `least_width` does not count for the target `ratio`."""

    def measured(self, *args: Any) -> Any:
        """Import the function that measures, and call it."""
        return imported(self.measure)(*args)


@dataclass(frozen=True)
class PenaltyEntry(Entry):
    """A penalty on scale factors: a function from `PenaltySetting` to `GammaPenalty`."""

    needs_channels: bool = False
    """True if the penalty depends on which channels belong together, so that the network has to be traced."""


Targets = Literal["labels", "masks", "boxes", "any"]
"""What belongs to an image of a data set: the number of its class; a class per pixel; boxes with a class each; or
anything that the user's own task reads."""


@dataclass(frozen=True)
class TaskEntry(Entry):
    """A task: a function from `TaskSetting` to `Task`."""

    targets: Targets = "any"
    """What it expects beside an image."""
    label_smoothing: bool = False
    """True if its loss can smooth labels."""
    packages: tuple[str, ...] = ()
    """Packages that have to be installed."""


@dataclass(frozen=True)
class ExportFormat(Entry):
    """A file format of exported networks: a function from `ExportRequest` to `ExportedFiles`."""

    suffixes: tuple[str, ...]
    """Suffixes of the main file, the default one first."""
    packages: tuple[str, ...] = ()
    """Packages that have to be installed."""
    optional_files: tuple[str, ...] = ()
    """Suffixes of files beside the main one that are left out if they compute something else than the network."""
    has_batch_size: bool = True
    """True if a file is made for one batch size, or for any; False if it holds weights alone."""


_SCORES = "bnprune.pruning.scores"
_DATA_SCORES = "bnprune.pruning.data_scores"
_LEAST_WIDTH = 0.7
"""Chosen by validation accuracy: see the tables in `pruning.least_widths`."""
CRITERIA: dict[str, Callable[..., Any]] = {
    "gamma": Criterion(
        "|γ| of the BatchNorm (Liu et al. 2017)", f"{_SCORES}:gamma", least_width=_LEAST_WIDTH, limits_ratio=False
    ),
    "gamma-per-mac": Criterion(
        "|γ| / √MACs of the channel", f"{_SCORES}:gamma_per_mac", least_width=_LEAST_WIDTH, limits_ratio=False
    ),
    "uniform": Criterion(
        "rank of |γ| within its layer, which removes the same share of every layer", f"{_SCORES}:uniform"
    ),
    "random": Criterion("at random, as a baseline", f"{_SCORES}:random"),
    "l1": Criterion("mean |w| of the filters (Li et al. 2017)", f"{_SCORES}:l1", least_width=_LEAST_WIDTH),
    "l2": Criterion("root mean square of the filters", f"{_SCORES}:l2", least_width=_LEAST_WIDTH),
    "activation": Criterion(
        "standard deviation after the activation, times the norm of the weights that read it; needs calibration data",
        f"{_DATA_SCORES}:activation",
        measure=f"{_DATA_SCORES}:read_variances",
        least_width=_LEAST_WIDTH,
    ),
    "taylor": Criterion(
        "change of the loss without γ and β, to first order (Molchanov et al. 2019); needs calibration data and labels",
        f"{_DATA_SCORES}:taylor",
        measure=f"{_DATA_SCORES}:gate_gradients",
        least_width=_LEAST_WIDTH,
    ),
    "auto": Criterion(
        "activation with calibration data; without, gamma if a penalty has separated the γ into two groups, else "
        "uniform",
        "bnprune.pruning.criterion_choice:auto",
        measure=f"{_DATA_SCORES}:read_variances",
        optional=True,
        least_width=_LEAST_WIDTH,
    ),
}
"""Functions (graph, tensors, reduce) -> one score per unit; units with the lowest scores are removed first."""

REPAIR = Entry("repairs a slim network with calibration data", "bnprune.recovery.repair:repair")
"""`prune` calls it after the proof; it is named here because `pruning` does not import `recovery`."""

LAYER_MEASUREMENTS = Entry(
    "reads a sensitivity table or a latency profile", "bnprune.workflows.layer_measurements:layer_measurements"
)
"""`prune` and recipes call it; it is named here because `pruning` reads no files."""

_PENALTIES = "bnprune.training.penalties.table"
PENALTIES: dict[str, Callable[..., Any]] = {
    "l1": PenaltyEntry("adds λ·sign(γ) to the gradient (Liu et al. 2017)", f"{_PENALTIES}:l1"),
    "l1-proximal": PenaltyEntry(
        "soft-thresholds γ after each step, which gives exact zeros", f"{_PENALTIES}:l1_proximal"
    ),
    "polarization": PenaltyEntry("separates γ into two groups (Zhuang et al. 2020)", f"{_PENALTIES}:polarization"),
    "group-lasso": PenaltyEntry(
        "channels that must go together reach zero together, which gives exact zeros",
        f"{_PENALTIES}:group_lasso",
        needs_channels=True,
    ),
    "mac-weighted-l1": PenaltyEntry(
        "l1, in proportion to the MACs that each channel costs", f"{_PENALTIES}:mac_weighted_l1", needs_channels=True
    ),
}
"""Functions (`PenaltySetting`) -> `GammaPenalty`."""

_TASKS = "bnprune.training.tasks"
TASKS: dict[str, TaskEntry] = {
    "classification": TaskEntry(
        "one class per image; accuracy",
        f"{_TASKS}.classification:classification",
        targets="labels",
        label_smoothing=True,
    ),
    "segmentation": TaskEntry(
        "one class per pixel; mean intersection over union (mIoU)",
        f"{_TASKS}.segmentation:segmentation",
        targets="masks",
        label_smoothing=True,
        packages=("torchmetrics",),
    ),
    "detection": TaskEntry(
        "boxes with a class each, by a network with the contract of torchvision's detectors; mean average precision "
        "(mAP)",
        f"{_TASKS}.detection:detection",
        targets="boxes",
        packages=("torchmetrics", "pycocotools"),
    ),
}
"""Functions (`TaskSetting`) -> `Task`."""

FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(
        "ONNX, for other runtimes",
        "bnprune.exporters.onnx:export_onnx",
        (".onnx",),
        packages=("onnx", "onnxruntime", "onnxscript"),
    ),
    "pt2": ExportFormat("a program of torch.export", "bnprune.exporters.pt2:export_pt2", (".pt2",)),
    "state-dict": ExportFormat(
        "plain weights, and a Python file with the architecture",
        "bnprune.exporters.state_dict:export_state_dict",
        (".safetensors", ".pt", ".pth"),
        optional_files=(".py",),
        has_batch_size=False,
    ),
}


def format_of(suffix: str) -> str | None:
    """Return the name of the export format whose files have a suffix; None if there is none."""
    return next((name for name, entry in FORMATS.items() if suffix in entry.suffixes), None)


def sentences(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the sentence of each entry of a table; of a plain function, the first line of its docstring."""
    return {
        name: entry.sentence if isinstance(entry, Entry) else (entry.__doc__ or "").strip().partition("\n")[0]
        for name, entry in table.items()
    }


def listed(choices: Mapping[str, str], quote: str = "") -> str:
    """Return choices as text: "max: the largest; mean: the mean".

    Args:
        choices: The sentence of each name.
        quote: What to put around names, such as a backtick.
    """
    return "; ".join(
        f"{quote}{name}{quote}: {text}" if text else f"{quote}{name}{quote}" for name, text in choices.items()
    )
