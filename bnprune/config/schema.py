"""The schema of recipes, for YAML files, `key=value` overrides and Python. The text under each key is its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bnprune.config.prune_options import Option, PruneOptions, prune_options, target_names
from bnprune.config.tables import FORMATS, PENALTIES, listed, sentences

# Bounds are far beyond what is sensible, and keep everything within float32, memory and a lifetime.
Positive = Annotated[float, Field(ge=1e-12, le=1e6, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1e-12, le=1e20, allow_inf_nan=False)]
"""A learning rate at which a training diverges is a matter of the training, which says so."""
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Whole = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Epochs = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Name = Annotated[str, Field(max_length=500)]
Switch = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class OneOf:
    """Restricts text to the names of a table, which is read anew each time: names can be registered in Python."""

    table: Mapping[str, Any]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are allowed now."""
        return (*self.table, *self.others)

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(str))

    def _check(self, value: Any) -> Any:
        if value not in self.names:
            *first, last = map(repr, self.names)
            expected = f"{', '.join(first)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return value


@dataclass(frozen=True)
class UserOnly:
    """Marks a key that names code, a path or a download, or starts a program.

    Such a key counts in a recipe that the user names, and not in one that comes out of a checkpoint: a file from a
    stranger is data.
    """

    needed: bool = True
    """True if the recipe means something else without the key, so that the user has to give it again."""


def _usable(path: Path) -> Path:
    text = str(path)
    if "\0" in text or len(text) > 4096:
        raise ValueError("must be a path: at most 4096 characters, none of them NUL")
    return path


FilePath = Annotated[Path, AfterValidator(_usable)]


def _concentration(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError(f"must be 0, or at least 0.01 (got {value:g})")
    return value


Concentration = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), AfterValidator(_concentration)]
"""Of a Beta distribution: samples near its limits are not numbers."""


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


class ModelConfig(Section):
    """Which network."""

    name: Name | None = None
    """A zoo name (`bnprune doctor` lists them), `torchvision/NAME` or `timm/NAME`."""
    factory: Annotated[Name | None, UserOnly()] = None
    """A callable of your own that returns the network: `package.module:function`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the constructor or factory."""
    weights: Annotated[FilePath | None, UserOnly(needed=False)] = None
    """Initial weights: `.safetensors`, or `.pt` holding a state dict."""
    gamma_init: Positive | None = None
    """Set every BatchNorm scale factor to this before training (the paper: 0.5)."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either 'name' or 'factory'")
        return self


class DataConfig(Section):
    """Which images."""

    name: Name | None = None
    """`digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `svhn` or `imagefolder`."""
    factory: Annotated[Name | None, UserOnly()] = None
    """A callable of your own, `package.module:function`, that returns three datasets of (image tensor, label) pairs:
    train, validation, test; or two, and validation images are held out from the first; or `bnprune.data.Splits`."""
    kwargs: Annotated[dict[str, Any], UserOnly()] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    root: Annotated[FilePath, UserOnly()] = Path("data")
    """Where the files are; for `imagefolder` the folder that holds `train/` and `test/`."""
    download: Annotated[Switch, UserOnly(needed=False)] = False
    """Fetch the data set if it is not there."""
    batch_size: Count = 128
    """Images per micro-batch, of all processes together."""
    image_size: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    """Height and width images are resized to; default: as the data set has them (`imagefolder`: of its first image)."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images held out; choices are made on them, the test images are used once."""
    augment: Switch = True
    """Random shifts and, except for digits and numbers, horizontal flips."""
    in_memory: Switch | None = None
    """Keep all images in memory as uint8; default: for images up to 64x64."""
    workers: Annotated[int, Field(ge=0, le=256, strict=True)] = 2
    """Loader processes for images that are not kept in memory."""
    limit: Annotated[int, Field(ge=1, le=2**31, strict=True)] | None = None
    """Use only so many training images (and a fifth as many test images), evenly over the classes."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either 'name' or 'factory'")
        return self


_PENALTY_NAMES = listed({**sentences(PENALTIES), "none": "no penalty"}, "`")


class SparsityConfig(Section):
    """The penalty on BatchNorm scale factors γ."""

    penalty: Annotated[str, OneOf(PENALTIES, ("none",)), Field(description=f"{_PENALTY_NAMES}.")] = "l1"
    lambda_: Annotated[Literal["auto"] | NonNegative, Field(alias="lambda")] = "auto"
    """Strength. `auto` steers it so that `target` is reached, and pulls after the step whatever the penalty (so that
    `l1` is `l1-proximal`); given `travel`, or where nothing says how much is to go, it solves the travel budget, as for
    `polarization`, which finds the share by itself."""
    target: Fraction | None = None
    """With `lambda: auto`: share of the prunable BatchNorm channels whose |γ| is to be below `epsilon` in the end.
    Default: `prune.ratio`, where that is a number."""
    travel: Positive | None = None
    """With `lambda: auto`, instead of a target: how far the penalty could move γ over the whole training, in units of
    its initial mean; 5 where nothing says how much is to go."""
    schedule: Literal["constant", "warmup", "ramp"] = "constant"
    """λ in the first part of the training: `warmup`: 0, until the network has learned something; `ramp`: rising from 0.
    `auto` makes up for what is missed."""
    schedule_share: Fraction = 0.2
    """With `schedule: warmup` or `ramp`: how long that part is, as a share of the training."""
    polarization_t: Positive = 1.0
    """With `penalty: polarization`: the larger, the more goes to zero."""
    epsilon: Positive = 0.01
    """A scale factor below this counts as zero in the statistics."""

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if self.target is not None and self.travel is not None:
            raise ValueError("give either 'target' or 'travel'")
        if self.lambda_ != "auto" and self.target is not None:
            raise ValueError(f"'target' goes with 'lambda: auto', not with a number (got {self.lambda_:g})")
        if self.target is not None and self.penalty == "polarization":
            raise ValueError("'polarization' finds the share by itself; 'polarization_t' moves it, a 'target' does not")
        return self


class OptimisationConfig(Section):
    """What training and fine-tuning have in common."""

    epochs: Epochs = 30
    """Passes over the training images."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The penalty of adaptive optimizers is decoupled: a term in the gradient would be normalised away."""
    lr: Rate = 0.1
    """Learning rate at the top of the schedule."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum, or the first beta of Adam."""
    nesterov: Switch = True
    weight_decay: NonNegative = 5e-4
    """Of convolutions and linear layers; γ, β and biases are left out, unless `paper`."""
    paper: Switch = False
    """Apply weight decay to γ, β and biases too, as the paper did; it shrinks every γ and selects none."""
    schedule: Literal["cosine", "step", "one-cycle", "constant"] = "cosine"
    """How the learning rate falls, step by step."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """With `schedule: step`: shares of the training after which the learning rate is divided by 10."""
    warmup_epochs: NonNegative = 0
    """Epochs, out of `epochs`, in which the learning rate rises to `lr`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes."""
    mixup: Concentration = 0.0
    """Blend pairs of images and their labels, by shares drawn from Beta(mixup, mixup); 0: do not. Usual: 0.2."""
    cutmix: Concentration = 0.0
    """The same, by pasting a rectangle; usual: 1. Where both are given, each batch gets one of them at random."""
    ema: Fraction | None = None
    """Keep an exponential moving average of the weights, with this decay per optimizer step (usual: 0.999; shorter at
    the start). It is what is validated and saved; the raw weights go on training."""
    accumulate: Count = 1
    """Micro-batches per optimizer step."""
    clip_norm: Positive | None = None
    """Largest gradient norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of autocast; weights and γ stay in fp32."""
    channels_last: Switch = False
    """Memory format; often faster on GPUs with bf16 or fp16."""
    sync_bn: Switch = False
    """With several processes: BatchNorm over the batches of all of them, for small batches per process."""
    compile: Annotated[Switch, UserOnly(needed=False)] = False
    """Train through `torch.compile`; a minute or more at the start, faster steps after it. Evaluation is not compiled.
    """

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.compile and self.sync_bn:
            raise ValueError("'compile' and 'sync_bn' do not go together: choose one")
        return self

    @model_validator(mode="after")
    def _leaves_the_warmup(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"'warmup_epochs' must be below 'epochs', or the training ends inside its warm-up "
                f"(got {self.warmup_epochs:g} of {self.epochs})"
            )
        return self


class TrainConfig(OptimisationConfig):
    """Training with sparsity."""

    sparsity: SparsityConfig = Field(default_factory=SparsityConfig)


def _recipe_type(option: Option) -> Any:
    """Return the type of a prune option in a recipe, with its bounds."""
    match option.kind:
        case "number":
            return Annotated[float, Field(**option.bounds())]
        case "count":
            return Annotated[int, Field(**{"le": 1_000_000, **option.bounds()}, strict=True)]
        case "switch":
            return Switch
        case "patterns":
            return tuple[Name, ...]
        case "ratios":
            return dict[Name, Annotated[float, Field(**option.bounds())]]
        case "choice":
            return Name if option.extensible else Literal[tuple(option.choices())]


def _recipe_key(option: Option) -> tuple[Any, Any]:
    """Return the type and the field of a prune option in a recipe."""
    kind = _recipe_type(option)
    if option.recipe_words:
        kind = Literal[tuple(option.recipe_words)] | kind
    default = f" Default: {option.default_text}." if option.default_text else ""
    about = option.description("`") + default
    if option.kind == "ratios":
        return kind, Field(default_factory=dict, description=about)
    return kind | None if option.default is None else kind, Field(option.default, description=about)


if TYPE_CHECKING:

    class _PruneKeys(PruneOptions, Section):  # type: ignore[misc]
        ratio: Literal["auto"] | float | None = None  # type: ignore[assignment]
        layer_ratios: dict[str, float] = Field(default_factory=dict)
else:
    _PruneKeys = create_model(
        "_PruneKeys", __base__=Section, **{name: _recipe_key(option) for name, option in prune_options().items()}
    )


class PruneConfig(_PruneKeys):  # type: ignore[misc]
    """How much to remove, and what to keep."""

    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """With `ratio: auto`: share of validation accuracy that may be lost before fine-tuning."""
    passes: Annotated[int, Field(ge=1, le=100, strict=True)] = 1
    """Rounds of pruning and fine-tuning, each of which removes an equal share of what is left."""
    compensate: Switch = True
    """Try to add the constant output of removed channels to the biases of the next layers; kept if validation accuracy
    improves."""
    recalibrate: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 100
    """Batches with which to try to re-estimate the BatchNorm statistics after pruning; kept if validation accuracy
    improves. 0: do not try."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if len(self.targets) > 1:
            raise ValueError(f"give one target, not {' and '.join(self.targets)}")
        if self.passes > 1 and (self.latency_ms is not None or self.ratio == "auto"):
            raise ValueError("'passes' goes with a ratio, macs or params: the others are solved on one trained network")
        return self

    @property
    def targets(self) -> list[str]:
        """Names of the targets that are given."""
        return [kind for kind in target_names() if getattr(self, kind) is not None]


class DistillConfig(Section):
    """Learning from the network before the cut as well as from the labels (Hinton et al. 2015)."""

    temperature: Positive = 4.0
    """What the scores of both networks are divided by before they are compared."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the teacher in the loss; the rest is that of the labels."""
    teacher: Annotated[FilePath | None, UserOnly()] = None
    """A checkpoint; default: the network before the cut, where the run has it."""


def _section_or_switch(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


class FinetuneConfig(OptimisationConfig):
    """Recovering accuracy after the cut."""

    epochs: Epochs = 15
    lr: Rate = 0.05
    distill: Annotated[DistillConfig | None, BeforeValidator(_section_or_switch)] = None
    """Learn from the network before the cut, too: `true`, or a section."""


_FORMAT_NAMES = listed(sentences(FORMATS), "`")


class ExportConfig(Section):
    """Formats that need nothing of bnprune; written into the run directory, below `exports/`."""

    formats: Annotated[tuple[Annotated[str, OneOf(FORMATS)], ...], Field(description=f"{_FORMAT_NAMES}.")] = ("onnx",)
    fold_bn: Switch = False
    """Fold BatchNorms into the layers before them."""


class PipelineConfig(Section):
    """A recipe: every stage is optional, but there must be one."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Of the initial weights, the order of images, and augmentation."""
    device: Name = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] | None = None
    """CPU threads; default: PyTorch's choice."""
    model: ModelConfig
    data: DataConfig
    baseline: Switch = False
    """Also train the network without sparsity (same schedule), for comparison."""
    train: TrainConfig | None = None
    prune: PruneConfig | None = None
    finetune: FinetuneConfig | None = None
    export: ExportConfig | None = None
    scratch: Literal["epochs", "compute"] | None = None
    """Control arm: also train the slim architecture from new weights, without a penalty, for as many `epochs` as the
    pruned network had in all, or for as many as cost the same `compute` (Liu et al. 2019)."""
    tensorboard: Switch = False
    """Write curves and histograms of γ for TensorBoard too, into `tensorboard/` of the run directory."""

    @field_validator("scratch")
    @classmethod
    def _has_something_to_compare(cls, value: str | None, info: ValidationInfo) -> str | None:
        for stage in ("train", "prune"):
            if value is not None and info.data.get(stage, ...) is None:
                raise ValueError(f"trains the architecture that 'prune' finds as long as 'train': add '{stage}'")
        return value
