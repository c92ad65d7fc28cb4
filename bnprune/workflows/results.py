"""The results of the workflows: every JSON document that bnprune prints or writes, typed.

What a run writes into its directory is defined in `bnprune.runs.results`, and listed here as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from bnprune.runs.results import (
    Change,
    Document,
    ExportedFile,
    ExportFigures,
    ExportVerification,
    Folding,
    LayerChange,
    NotCompensated,
    ParityOutcome,
    PreprocessingUsed,
    ProofOutcome,
    Pruned,
    RatioOutcome,
    RecoveryOutcome,
    RefusedSite,
    RunResult,
    Sparsity,
    StageResult,
    SweepPoint,
    TargetOutcome,
    WrittenDeviation,
)

__all__ = [
    "BenchmarkNetwork",
    "BenchmarkResult",
    "BenchmarkTiming",
    "CalibrationOutcome",
    "Change",
    "CompensationOutcome",
    "DoctorResult",
    "Document",
    "ErrorResult",
    "EvaluateResult",
    "ExportFigures",
    "ExportResult",
    "ExportVerification",
    "ExportedFile",
    "Folding",
    "GroupCuts",
    "ImageCounts",
    "InspectResult",
    "InspectedChannels",
    "InspectedLayer",
    "LayerChange",
    "Machine",
    "NetworkTiming",
    "NotCompensated",
    "ParityOutcome",
    "PreprocessingUsed",
    "ProfileResult",
    "ProfiledLatency",
    "ProofOutcome",
    "PruneResult",
    "Pruned",
    "RatioOutcome",
    "RecoveryOutcome",
    "RefusedSite",
    "ReportResult",
    "RunResult",
    "SensitivityPoint",
    "SensitivityResult",
    "Sparsity",
    "SplitScore",
    "StageResult",
    "SweepPoint",
    "SweepResult",
    "TargetOutcome",
    "TimeRatio",
    "ValidateResult",
    "WrittenDeviation",
]


def _as_given(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    check(value)
    return value


Remark = Annotated[str, WrapValidator(_as_given)]
"""A text; a `bnprune.notes.Note` keeps its code and its level, which the JSON leaves out."""


class CompensationOutcome(Document):
    """The compensation of one layer that lost inputs; see `bnprune.Compensation`."""

    site: str
    channels: int
    """Input channels the layer lost."""
    compensated: int = Field(alias="made_up")
    """Those of them whose contribution was added to the bias."""
    outcome: str
    """"exact", "interior", "mean" or "none"."""
    reason: str


class CalibrationOutcome(Document):
    """Calibration data, and the repair with it; see `bnprune.recovery.repair.Repair`."""

    source: str
    """"folder", "factory" or "recipe"."""
    images: int
    """Images that were used, those held out included."""
    preprocessing: PreprocessingUsed | None
    """None if it is not known, because the data is the user's own."""
    chosen: str | None
    """The way of repair that was kept; None in a dry run."""
    held_out: int
    """Images on which the repair methods were compared."""
    distances: dict[str, float | None]
    """Distance of the outputs to those of the dense network, relative to their size, by way of repair."""


class CutEffect(Document):
    """The main value of the task before and after a cut, on validation images of the network's recipe."""

    metric: str
    images: int
    before: float
    after: float
    """Of the network that was written."""


class PruneResult(Document):
    """The result of `prune`."""

    schema_: Literal["bnprune.prune/1"] = Field(default="bnprune.prune/1", alias="schema")
    target: TargetOutcome
    ratio: RatioOutcome
    channels: Change
    """Prunable BatchNorm channels."""
    params: Change
    macs: Change
    verification: ProofOutcome
    layers: list[LayerChange]
    written: list[WrittenDeviation]
    """Layers without a BatchNorm that write ranked channels."""
    refusals: list[RefusedSite]
    notes: list[Remark]
    seconds: dict[str, float]
    """Of every step, and "total"."""
    compensation: list[CompensationOutcome]
    out: str | None
    """The checkpoint that was written; None in a dry run."""
    calibration: CalibrationOutcome | None = None
    """None if there was no calibration data."""
    effect: CutEffect | None = None
    """None in a dry run, or if the data of the network is not known or cannot be opened."""
    plan: dict[str, Any] | None = None
    """In a dry run, the plan; see `bnprune.PruningPlan.to_dict`."""


class InspectedChannels(Document):
    """BatchNorm channels of a network."""

    total: int
    prunable: int


class InspectedLayer(Document):
    """One layer with a width of its own; see `bnprune.pruning.inspection.LayerInspection`."""

    name: str
    kind: str
    width: int
    prunable: int
    units: int
    gamma_median: float | None
    deviation_median: float | None
    reason: str
    position: int | None
    macs: int
    norm: str | None
    groups: list[int]
    gamma_quantiles: list[float] | None


class InspectResult(Document):
    """The result of `inspect`."""

    schema_: Literal["bnprune.inspect/1"] = Field(default="bnprune.inspect/1", alias="schema")
    model: dict[str, Any]
    input: list[int] | None
    """Shape of one input, without the batch."""
    channels: InspectedChannels
    params: int
    macs: int
    layers: list[InspectedLayer]
    refusals: list[RefusedSite]
    notes: list[Remark]


class SplitScore(Document):
    """The values of a network on one split of the data."""

    top1: float
    """The main value: for classification, the top-1 accuracy in [0, 1]."""
    loss: float | None
    """None if the task has none."""
    count: int
    """Number of images."""
    values: dict[str, float] = Field(default_factory=dict)
    """All values of the task by name, the main one first."""


class EvaluateResult(Document):
    """The result of `evaluate`."""

    schema_: Literal["bnprune.evaluate/1"] = Field(default="bnprune.evaluate/1", alias="schema")
    accuracy: float
    """The main value on test images: for classification, the top-1 accuracy in [0, 1]."""
    metric: str = "top1"
    """Name of the main value."""
    validation: SplitScore
    test: SplitScore


class SweepResult(Document):
    """The result of `sweep`: the first point is the network before pruning; the others remove more and more."""

    schema_: Literal["bnprune.sweep/1"] = Field(default="bnprune.sweep/1", alias="schema")
    by: Literal["ratio", "macs"]
    metric: str = "top1"
    """Name of the main value of the task, which stands under "accuracy" in every point."""
    tolerance: float
    """Loss of validation accuracy that is allowed, in the unit of the main value."""
    images: int
    """Validation images on which the networks were compared."""
    confidence: float
    """Confidence of each bound of a point, and of the recommendation."""
    points: list[SweepPoint]
    recommended: SweepPoint | None
    """The largest cut whose true loss is within the tolerance with that confidence."""
    reason: str
    """The reason if no point is recommended; otherwise empty."""
    notes: list[Remark]
    """Remarks on the network, such as that its weights are random."""
    measured: SweepPoint | None
    """The largest cut whose measured loss is within the tolerance; its true loss may be larger."""
    knee: SweepPoint | None
    """The last cut before accuracy falls steeply."""
    source: str | None
    """The checkpoint that was pruned; None if the network was given by its name."""
    input: list[int]
    """Shape of one input, without the batch."""
    constraints: dict[str, Any]
    """The constraints of pruning that differ from their defaults."""


class ExportResult(ExportFigures):
    """The result of `export`."""

    schema_: Literal["bnprune.export/1"] = Field(default="bnprune.export/1", alias="schema")
    model: dict[str, Any]
    input: list[int]
    """Shape of one input, without the batch."""


class Machine(Document):
    """The machine that a benchmark ran on, and how it ran."""

    processor: str
    cores: int | None
    threads: int
    device: str
    accelerator: str | None
    platform: str
    python: str
    versions: dict[str, str | None]
    load: float | None
    """Load average of the last minute, if the system provides it."""
    dtype: str
    channels_last: bool


class BenchmarkNetwork(Document):
    """The size of one network."""

    name: str
    params: int
    macs: int
    channels: int
    file_bytes: int
    peak_memory_bytes: dict[str, int]
    """By batch size."""


class NetworkTiming(Document):
    """The time that one network takes for a batch, in milliseconds, and its throughput in inputs per second."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    throughput: float


class TimeRatio(Document):
    """The time of the second network over that of the first, of passes that ran in turn."""

    median: float
    p10: float
    p90: float


class BenchmarkTiming(Document):
    """The times of all networks on one backend, for one batch size."""

    backend: str
    batch: int
    rounds: int
    networks: list[NetworkTiming]
    ratio: TimeRatio | None
    """None for a single network."""


class BenchmarkResult(Document):
    """The result of `benchmark`."""

    schema_: Literal["bnprune.benchmark/1"] = Field(default="bnprune.benchmark/1", alias="schema")
    machine: Machine
    input: list[int]
    """Shape of one input, without the batch."""
    networks: list[BenchmarkNetwork]
    timings: list[BenchmarkTiming]


class SensitivityPoint(Document):
    """A cut of one group of layers; see `bnprune.pruning.sensitivity.CutAlone`."""

    share: float
    removed: int
    plain: float
    accuracy: float


class GroupCuts(Document):
    """The cuts of layers whose channels go together, the smallest first."""

    layers: list[str]
    channels: int
    points: list[SensitivityPoint]


class SensitivityResult(Document):
    """The result of `sensitivity`."""

    schema_: Literal["bnprune.sensitivity/1"] = Field(default="bnprune.sensitivity/1", alias="schema")
    model: dict[str, Any]
    input: list[int]
    """Shape of one input, without the batch."""
    images: int
    """Validation images on which the networks were evaluated."""
    metric: str = "top1"
    """Name of the main value of the task, which stands under "accuracy"."""
    accuracy: float
    """Validation accuracy before the cuts."""
    shares: list[float]
    """Shares of the channels that were tried."""
    groups: list[GroupCuts]
    """In the order of the network."""
    notes: list[Remark]
    """Remarks on the network, such as that its weights are random."""
    seconds: float
    """Time that the measurements took, without those of an earlier call."""
    out: str
    """The file that was written."""


class ProfiledLatency(Document):
    """The latency of one call of a layer at its full width."""

    name: str
    inputs: int
    """Input width; of a grouped convolution, that of one group."""
    outputs: int
    ms: float
    input_step: int
    """The multiple of input channels at which latency changes."""
    output_step: int
    """The multiple of output channels at which latency changes."""


class ProfileResult(Document):
    """The result of `profile`."""

    schema_: Literal["bnprune.profile/1"] = Field(default="bnprune.profile/1", alias="schema")
    model: dict[str, Any]
    input: list[int]
    """Shape of one input, without the batch."""
    backend: str
    batch: int
    threads: int
    processor: str
    total_ms: float
    """Milliseconds of a forward pass of the whole network."""
    layers_ms: float
    """Milliseconds of all measured layers together."""
    layers: list[ProfiledLatency]
    seconds: float
    """Time that the measurements took."""
    out: str
    """The profile that was written."""


class ReportResult(Document):
    """The result of `report`."""

    schema_: Literal["bnprune.report/1"] = Field(default="bnprune.report/1", alias="schema")
    out: Path
    """The page."""
    plots: list[Path]
    """The image files."""
    runs: dict[str, dict[str, StageResult]]
    """The stages of every run, by name of the run."""


class ImageCounts(Document):
    """Number of images in every split."""

    train: int
    validation: int
    test: int


class ValidateResult(Document):
    """The result of `validate`."""

    schema_: Literal["bnprune.validate/1"] = Field(default="bnprune.validate/1", alias="schema")
    valid: Literal[True]
    images: ImageCounts
    input: list[int]
    """Shape of one image."""
    classes: int
    """1 if the images have no labels."""
    params: int
    macs: int
    channels: int
    """BatchNorm channels of the network."""
    prunable: int | None = None
    """Those that the prune stage may remove, if there is one."""
    warnings: list[str]
    config: dict[str, Any]
    """The recipe with all defaults."""
    notes: list[str] = Field(default=[], exclude=True)
    """Remarks about the data and the network; not in the JSON."""


class DoctorResult(Document):
    """The result of `doctor`."""

    schema_: Literal["bnprune.doctor/1"] = Field(default="bnprune.doctor/1", alias="schema")
    python: str
    platform: str
    versions: dict[str, str]
    extras: dict[str, bool]
    """True if every package of an extra is installed."""
    devices: list[str]
    threads: int
    models: list[str]
    problems: list[str]


class ErrorResult(Document):
    """The document that a command prints with `--json` if it fails."""

    schema_: Literal["bnprune.error/1"] = Field(default="bnprune.error/1", alias="schema")
    code: str
    problems: list[str]
