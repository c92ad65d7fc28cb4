"""The types of `result.json`: the file is written from them and read back through them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from bnprune.config.metrics import metric_of
from bnprune.runs.files import plain

Count = Annotated[int, Field(ge=0, le=10**18)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[float, Field(ge=-1e18, le=1e18)]
"""The bounds exclude values that only a damaged file can have."""
Value = Bound
"""The main value of a task; for classification, the accuracy in [0, 1]."""


class Document(BaseModel):
    """A result that has a JSON form.

    A field with a default is left out of the JSON while it has that default; a field without one is always there, as
    null if it is None. Keys that this version does not know, from a file of a later one, are kept.
    """

    model_config = ConfigDict(strict=True, extra="allow", populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form as plain data: paths as text, NaN and infinity as None."""
        data: dict[str, Any] = plain(self.model_dump(by_alias=True))
        return data

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {
            key
            for name, field in type(self).model_fields.items()
            if name != "schema_"
            and not field.is_required()
            and getattr(self, name) == field.get_default(call_default_factory=True)
            for key in (name, field.alias)
        }
        return {key: value for key, value in serialize(self).items() if key not in absent}


class Change(Document):
    """A number before and after pruning."""

    before: Count
    after: Count


class Pruned(Document):
    """Sizes before and after pruning."""

    channels: Change
    """Prunable BatchNorm channels."""
    params: Change
    macs: Change


class LayerChange(Document):
    """Width of one layer before and after pruning."""

    name: str
    kind: str
    """"conv", "linear" or "norm"."""
    before: Count
    after: Count


class WrittenDeviation(Document):
    """The standard deviation γ̂ of what a layer without a BatchNorm writes; see `bnprune.pruning.draft_plan`."""

    layer: str
    units: int
    median: float
    kept: int


class RefusedSite(Document):
    """Why channels of one layer were not pruned."""

    site: str
    reason: str
    fix: str


class TargetOutcome(Document):
    """The target that was requested, and the value that was reached."""

    kind: str
    """"ratio", "macs", "params" or "latency_ms"."""
    requested: float | None
    realised: float | None


class RatioOutcome(Document):
    """The removed share of the prunable channels, in [0, 1]."""

    requested: float | None
    """None if another target was requested."""
    realised: float


class ProofOutcome(Document):
    """The comparison of the slim network with the masked original."""

    max_relative_error: float | None
    """None if nothing was compared."""
    tolerance: float
    passed: bool | None
    dtype: Literal["float64", "float32"] | None = None
    """Precision in which both ran: float32 if the network runs in nothing else. Older files, which lack it: float64."""
    inputs: Literal["noise", "example inputs"] | None = None
    """Values on which both ran."""
    outputs: str | None = None
    """The outputs that were compared; None for all."""


class SweepPoint(Document):
    """One pruned network of a sweep; see `bnprune.recovery.sweep.Point`."""

    asked: float
    ratio: float
    macs: Amount
    params: Amount
    plain: Value
    accuracy: Value
    lower: Bound | None = None
    """Lower confidence bound of the accuracy, compared with the first point on the same images; None if unknown."""
    upper: Bound | None = None


class NotCompensated(Document):
    """A layer whose lost inputs are not compensated, and why."""

    site: str
    reason: str


class RecoveryOutcome(Document):
    """The ways of recovery that were tried after pruning."""

    chosen: str
    """The one with the best validation accuracy."""
    validation: dict[str, Value]
    """Validation accuracy, the main value of the task, of each."""
    compensated_layers: dict[str, int]
    """Number of layers by outcome of the compensation."""
    not_compensated: list[NotCompensated]


class Sparsity(Document):
    """The penalty of a training stage and the scale factors at its end."""

    lambda_: float | Literal["auto"] | None = Field(alias="lambda")
    travel: float | None = None
    """With a constant λ: the largest decrease of γ that the penalty alone can cause during the training."""
    target: float | None = None
    """Share of the scale factors that a steered λ brings to zero."""
    below: float | None = None
    """Share of the scale factors that are near zero."""
    split: bool | None = None
    """True if the distribution has two separate parts."""
    quantiles: list[float | None] | None = None
    """Minimum, quartiles and maximum of |γ|."""


class TeacherComparison(Document):
    """A network that was trained without labels, compared with its teacher on held-out images."""

    agreement: Share
    """Share of the images for which both predict the same class."""
    divergence: float | None
    """T²·KL(teacher ‖ network) of scores divided by the temperature T, the mean over the images."""
    images: Count
    agreement_before: Share | None = None
    """The agreement before training; None in older files, as the next one."""
    divergence_before: float | None = None


class StageResult(Document):
    """The figures of one finished stage."""

    accuracy: Value | None
    """The main value of the task on test images: for classification, the top-1 accuracy in [0, 1]. None without labels,
    as the next two."""
    validation_accuracy: Value | None
    loss: float | None
    """On test images; None if it is not finite, or the task has none."""
    channels: Count
    """BatchNorm channels of the network."""
    params: Count
    macs: Count
    """Of one input."""
    file_bytes: Count
    """Size of the checkpoint."""

    metric: str = "top1"
    """Name of the main value."""
    values: dict[str, Value] = {}
    """All values of the task on test images by name, if it has others than the main one and the loss."""

    epochs: int | None = None
    chosen: str | None = None
    """The epoch whose weights the stage keeps: "best", "last", or "start" if no epoch was better than the network
    before it."""
    sparsity: Sparsity | None = None
    teacher: TeacherComparison | None = None

    target: TargetOutcome | None = None
    ratio: RatioOutcome | None = None
    verification: ProofOutcome | None = None
    pruned: Pruned | None = None
    layers: list[LayerChange] | None = None
    written: list[WrittenDeviation] | None = None
    refusals: list[RefusedSite] | None = None
    notes: list[str] | None = None
    steps_seconds: dict[str, float] | None = None
    sweep: list[SweepPoint] | None = None
    recovery: RecoveryOutcome | None = None
    skipped: str | None = None
    """The reason why a later pass removed nothing."""

    checkpoint: str
    """Path in the run directory."""
    seconds: Amount = 0.0
    latency_ms: Amount | None = None
    """Median time of a forward pass with one input."""

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        known = [value for value in (self.accuracy, self.validation_accuracy) if value is not None]
        if metric_of(self.metric).share and not all(0 <= value <= 1 for value in known):
            raise ValueError(f"{metric_of(self.metric).label} must be from 0 to 1")
        return self


class ExportedFile(Document):
    """A file that was written."""

    path: str
    bytes: int


class Folding(Document):
    """Number of BatchNorms that were folded into the layers before them."""

    folded: int
    batchnorms: int


class ParityOutcome(Document):
    """The comparison of an exported network with the one in PyTorch, on one kind of input."""

    inputs: int
    max_absolute_error: float
    max_relative_error: float
    argmax_agreement: float | None


class ExportVerification(Document):
    """The comparisons of an exported network with the one in PyTorch."""

    passed: bool | None
    """None if nothing was compared."""
    tolerance: float
    random: ParityOutcome | None
    """On noise."""
    real: ParityOutcome | None
    """On images of the data set."""


class ExportFigures(Document):
    """One exported network."""

    format: str
    batch: int | Literal["any"]
    fold_bn: Folding | None
    files: list[ExportedFile]
    verification: ExportVerification
    notes: list[str]


class PreprocessingUsed(Document):
    """How image files became inputs of the network."""

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    """Height and width."""
    crop: bool
    """True if the middle of a larger image was taken; false if images were resized to the size."""
    mean: Annotated[list[Bound], Field(max_length=64)]
    """Mean of each channel, which is subtracted from pixel values between 0 and 1."""
    std: Annotated[list[Bound], Field(max_length=64)]
    """Standard deviation of each channel, by which the difference is divided."""


class InputFormat(PreprocessingUsed):
    """What a network takes and returns: how images become its inputs, and the names of the classes."""

    classes: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=100_000)] = []


class RunResult(Document):
    """The figures of every finished stage of a run: `result.json`, and what `run --json` prints."""

    schema_: Literal["bnprune.run/1"] = Field(default="bnprune.run/1", alias="schema")
    seed: int | None = None
    stages: dict[str, StageResult] = Field(description="By name of the stage, in the order in which they ended.")
    before: dict[str, StageResult] = {}
    """The networks before this run, if it starts from a pruned checkpoint: "baseline" (sizes only) and "prune"."""
    inputs: InputFormat | None = None
    """How images became inputs; None if that is not known, because the data is the user's own."""
    metrics_bytes: int | None = Field(default=None, ge=0)
    """Length of `metrics.jsonl` at the end of the last finished stage."""
    exports: list[ExportFigures] = []
    path: Path | None = Field(default=None, exclude=True)
    """The run directory; not in the JSON."""
