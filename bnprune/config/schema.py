"""The schema of recipes, for YAML files, `key=value` overrides and Python.

The text under each key is its entry in the reference of README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from bnprune.config.field_types import (
    Concentration,
    Count,
    Epochs,
    FilePath,
    Fraction,
    Name,
    NonNegative,
    OneOf,
    OutputPath,
    Positive,
    Rate,
    Switch,
    UserOnly,
)
from bnprune.config.prune_options import TARGETS, Option, PruneOptions, prune_options
from bnprune.config.tables import FORMATS, PENALTIES, TASKS, TaskEntry, listed, sentences


class Section(BaseModel):
    """A section of a recipe: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


class ModelConfig(Section):
    """The network."""

    name: Name | None = None
    """A name of the built-in zoo (`bnprune doctor` lists them), `torchvision/NAME` or `timm/NAME`."""
    factory: Annotated[Name | None, UserOnly()] = None
    """A function of your own that returns the network: `package.module:function`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the network's constructor or factory."""
    weights: Annotated[FilePath | None, UserOnly(needed=False)] = None
    """File of initial weights: `.safetensors`, or `.pt` with a state dict."""
    pretrained: Annotated[Switch, UserOnly(needed=False)] = False
    """Start from the weights that torchvision or timm publish; they are downloaded if they are not in the cache."""
    gamma_init: Positive | None = None
    """Initial value of every BatchNorm scale factor γ (the paper: 0.5). Default: γ is left as it is."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either 'name' or 'factory'")
        if self.pretrained and self.weights is not None:
            raise ValueError("give either 'weights' or 'pretrained'")
        return self


class DataConfig(Section):
    """The images."""

    name: Name | None = None
    """Data set. Classification: `digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `svhn`, `imagefolder`.
    Segmentation: `digits-segmentation`, `maskfolder`. Detection: `digits-detection`, `coco`."""
    factory: Annotated[Name | None, UserOnly()] = None
    """A function of your own, `package.module:function`. It returns three datasets of (image tensor, label) pairs, or
    with another task, of pairs of an image tensor and what its loss expects: train, validation and test; or two, train
    and test, and validation images are held out from the first; or a `bnprune.data.Splits`."""
    kwargs: Annotated[dict[str, Any], UserOnly()] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    unlabelled: Annotated[FilePath | None, UserOnly()] = None
    """Folder of images without labels, of any structure, in place of a data set. Only for fine-tuning, which then
    learns from the outputs of its teacher alone (`finetune.distill`)."""
    mean: Annotated[tuple[NonNegative, ...], Field(max_length=3)] | None = None
    """With `imagefolder`, `maskfolder`, `coco` or `unlabelled`: mean of the pixel values, which are between 0 and 1, to
    normalise images with: one number per channel, 3 for colour images or 1 for grey ones. Default: those of ImageNet,
    or, for images up to 64x64 of `imagefolder`, of the training images. With a factory: the mean that it normalises
    with, for exported files."""
    std: Annotated[tuple[Positive, ...], Field(max_length=3)] | None = None
    """Standard deviation of the pixel values, as for `mean`."""
    root: Annotated[FilePath, UserOnly()] = Path("data")
    """Folder of the files; for `imagefolder` and `maskfolder`, the folder with `train/` and `test/` (or, for
    `imagefolder`, `val/`); for `coco`, the one with `annotations/`."""
    download: Annotated[Switch, UserOnly(needed=False)] = False
    """Download the data set if it is missing."""
    batch_size: Count = 128
    """Images per micro-batch, summed over all processes."""
    image_size: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    """Height and width to which images are resized. Default: the size in the data set (`imagefolder`: of its first
    image)."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that is held out for validation. All choices are made on these images; the test
    images are used only once, at the end."""
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """With `imagefolder`, if the class folders are in `root` itself: share of the images of every class that is held
    out for testing, the same every time."""
    augment: Switch = True
    """Shift images at random and, except in data sets of digits, flip them horizontally."""
    in_memory: Switch | None = None
    """Keep all images in memory as uint8. Default: true for images up to 64x64."""
    workers: Annotated[int, Field(ge=0, le=256, strict=True), UserOnly(needed=False)] = 2
    """Number of loader processes, if images are not kept in memory."""
    limit: Annotated[int, Field(ge=1, le=2**31, strict=True)] | None = None
    """Largest number of training images to use, spread evenly over the classes; a fifth as many test images."""

    @property
    def held_out_limit(self) -> int | None:
        """Largest number of images of a split that is not trained on: a fifth of `limit`."""
        return None if self.limit is None else max(1, self.limit // 5)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [source for source in (self.name, self.factory, self.unlabelled) if source is not None]
        if len(given) != 1 and self.unlabelled is not None:
            raise ValueError("give one of 'name', 'factory' and 'unlabelled'")
        if len(given) != 1:
            raise ValueError("give either 'name' or 'factory'")
        return self

    @model_validator(mode="after")
    def _holds_out_files(self) -> Self:
        if self.test_share is not None and self.name != "imagefolder":
            raise ValueError("'test_share' is for 'imagefolder' only: other data sets have test images")
        return self

    @model_validator(mode="after")
    def _normalises_files(self) -> Self:
        if self.mean is None and self.std is None:
            return self
        if self.unlabelled is None and self.factory is None and self.name not in ("imagefolder", "maskfolder", "coco"):
            raise ValueError(f"'mean' and 'std' are not for '{self.name}': it has its own")
        if self.mean is None or self.std is None or len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("'mean' and 'std' must both have 3 numbers, or both 1")
        return self


_PENALTY_NAMES = listed({**sentences(PENALTIES), "none": "no penalty"}, "`")


class SparsityConfig(Section):
    """The penalty on BatchNorm scale factors γ."""

    penalty: Annotated[str, OneOf(PENALTIES, ("none",)), Field(description=f"Penalty on γ. {_PENALTY_NAMES}.")] = "l1"
    lambda_: Annotated[Literal["auto"] | NonNegative, Field(alias="lambda")] = "auto"
    """Strength λ of the penalty. `auto` adjusts λ during training so that `target` is reached, and then applies the
    penalty after each step (so that `l1` becomes `l1-proximal`). If `travel` is given, if no target is known, or for
    `polarization`, which finds the share by itself, `auto` computes a constant λ from `travel` instead."""
    target: Fraction | None = None
    """With `lambda: auto`: share of the prunable BatchNorm channels whose |γ| should be below `epsilon` after training.
    Default: `prune.ratio`, if that is a number; with `prune.macs` or `prune.params`, 1 - √value, because both costs of
    a network fall with the square of its widths (0.25 keeps half of the channels). `prune.latency_ms` and
    `ratio: auto` give no target."""
    travel: Positive | None = None
    """With `lambda: auto`: use a constant λ instead of a target. λ is chosen so that the penalty alone, without the
    gradient of the loss, would lower each |γ| by this multiple of the initial mean of |γ| during the training. Below
    1, an average γ cannot reach zero; larger values bring more γ to zero. Default: 5, if no target is known."""
    schedule: Literal["constant", "warmup", "ramp"] = "constant"
    """λ in the first part of the training: `warmup`: 0; `ramp`: rises from 0; `constant`: the same as later. With
    `lambda: auto`, the rest of the training compensates for a smaller λ at the start."""
    schedule_share: Fraction = 0.2
    """With `schedule: warmup` or `ramp`: length of that first part, as a share of the training."""
    polarization_t: Positive = 1.0
    """With `penalty: polarization`: weight t of the L1 term; a larger t moves more γ to zero."""
    epsilon: Positive = 0.01
    """A scale factor with |γ| below this counts as zero."""

    @model_validator(mode="after")
    def _one_of_target_and_travel(self) -> Self:
        if self.target is not None and self.travel is not None:
            raise ValueError("give either 'target' or 'travel'")
        if self.lambda_ != "auto" and self.target is not None:
            raise ValueError(f"'target' needs 'lambda: auto', not a number (got {self.lambda_:g})")
        if self.target is not None and self.penalty == "polarization":
            raise ValueError("'polarization' finds the share by itself: set 'polarization_t' instead of 'target'")
        return self


class OptimisationConfig(Section):
    """The keys that training and fine-tuning share."""

    epochs: Epochs = 30
    """Number of passes over the training images."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Optimizer. With `adam` and `adamw`, the penalty is decoupled from the gradient, in which they would normalise it
    away."""
    lr: Rate = 0.1
    """Peak learning rate of the schedule."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum, or the first beta of Adam."""
    nesterov: Switch = True
    """With `optimizer: sgd`: use Nesterov momentum."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of convolutions and linear layers; of γ, β and biases only with `paper`."""
    paper: Switch = False
    """Apply weight decay to γ, β and biases too, as in the paper. It shrinks all γ alike, so it does not help to select
    channels."""
    schedule: Literal["cosine", "step", "one-cycle", "constant"] = "cosine"
    """How the learning rate falls; it changes with each optimizer step."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """With `schedule: step`: shares of the training after which the learning rate is divided by 10."""
    warmup_epochs: NonNegative = 0
    """Number of epochs, of those in `epochs`, during which the learning rate rises to `lr`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target probability that is spread evenly over all classes."""
    mixup: Concentration = 0.0
    """Blend pairs of images and their labels, with shares drawn from Beta(mixup, mixup). 0: off; usual: 0.2."""
    cutmix: Concentration = 0.0
    """Paste a rectangle of one image into another, with areas drawn from Beta(cutmix, cutmix). 0: off; usual: 1. If
    `mixup` is given too, each batch gets one of both at random."""
    ema: Fraction | None = None
    """Decay per optimizer step of an exponential moving average of the weights (usual: 0.999; smaller in the first
    steps). The average is validated and saved; the raw weights are trained."""
    accumulate: Count = 1
    """Number of micro-batches per optimizer step."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; a larger gradient is scaled down to it."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of autocast; weights and γ stay in fp32."""
    channels_last: Switch = False
    """Use the memory format channels_last; often faster on GPUs with bf16 or fp16."""
    sync_bn: Switch = False
    """With several processes: compute BatchNorm statistics over the batches of all of them; for small batches."""
    compile: Annotated[Switch, UserOnly(needed=False)] = False
    """Train with `torch.compile`: it takes a minute or more at the start, and makes the steps faster. Evaluation is not
    compiled."""

    @model_validator(mode="after")
    def _compile_excludes_sync_bn(self) -> Self:
        if self.compile and self.sync_bn:
            raise ValueError("'compile' and 'sync_bn' do not go together: choose one")
        return self

    @model_validator(mode="after")
    def _warmup_ends_before_training(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"'warmup_epochs' must be below 'epochs', or the training ends during the warm-up "
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
        case "path":
            return OutputPath
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

    sensitivity: Annotated[FilePath | None, UserOnly()] = None
    """Sensitivity table of the network (see `bnprune sensitivity`), which decides how much each group of layers loses:
    all lose the same accuracy."""
    profile: Annotated[FilePath | None, UserOnly()] = None
    """Latency profile of the network (see `bnprune profile`) for `latency_ms`; gives batch size and backend."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """With `ratio: auto`: share of validation accuracy that may be lost before fine-tuning."""
    passes: Annotated[int, Field(ge=1, le=32, strict=True)] = 1
    """Rounds of pruning and fine-tuning, each of which removes an equal share of what is left."""
    compensate: Switch = True
    """Try to add the constant output of removed channels to the biases of the next layers. Of the ways that are tried,
    the best one on the validation images is kept; if they are equal there, the one with the lower loss."""
    reconstruct: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 512
    """Training images, without their labels, with which to try to compute new weights for the layers that
    lost inputs, so that their outputs change as little as possible. 0: do not try."""
    recalibrate: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 100
    """Batches with which to try to re-estimate the BatchNorm statistics after pruning. 0: do not try."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if len(self.targets) > 1:
            raise ValueError(f"give one target, not {' and '.join(self.targets)}")
        if self.passes > 1 and (self.latency_ms is not None or self.ratio == "auto"):
            raise ValueError(
                "'passes' needs a ratio, macs or params as the target: the others need one trained network"
            )
        return self

    @model_validator(mode="after")
    def _measurements_serve_the_target(self) -> Self:
        if self.profile is not None and self.latency_ms is None:
            raise ValueError("'profile' serves 'latency_ms'. Give it, or leave the profile out")
        if self.sensitivity is not None and self.profile is not None:
            raise ValueError("'sensitivity' and 'profile' both decide how much each layer loses. Give one")
        if self.sensitivity is not None and (self.passes > 1 or self.ratio == "auto"):
            raise ValueError(
                "'sensitivity' needs one pass and a target that is a number: it is measured on one network, and "
                "'ratio: auto' tries cuts without it"
            )
        return self

    @property
    def targets(self) -> list[str]:
        """Names of the targets that are given."""
        return [kind for kind in TARGETS if getattr(self, kind) is not None]


class DistillConfig(Section):
    """Distillation: learn from the network before pruning as well as from the labels (Hinton et al. 2015)."""

    temperature: Positive = 4.0
    """Divisor of the logits of both networks before they are compared."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Weight of the teacher in the loss; the labels have the rest. Without labels (`data.unlabelled`): always 1."""
    teacher: Annotated[FilePath | None, UserOnly()] = None
    """Checkpoint of the teacher, or its state dict (`.pt`). Default: the network before pruning, if the run has it."""


def _section_or_switch(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


class FinetuneConfig(OptimisationConfig):
    """Fine-tuning after pruning.

    The network as it was before counts as an epoch: if none is better on the validation images, it is kept.
    """

    epochs: Epochs = 15
    lr: Rate = 0.05
    distill: Annotated[DistillConfig | None, BeforeValidator(_section_or_switch)] = None
    """Learn from the network before pruning, too: `true`, or a section."""


_FORMAT_NAMES = listed(sentences(FORMATS), "`")


class ExportConfig(Section):
    """Export of the last network of the run, into `exports/` of the run directory; the files load without bnprune."""

    formats: Annotated[
        tuple[Annotated[str, OneOf(FORMATS)], ...], Field(description=f"Formats to write. {_FORMAT_NAMES}.")
    ] = ("onnx",)
    fold_bn: Switch = False
    """Fold BatchNorms into the preceding layers."""
    batch: Annotated[int, Field(ge=1, le=65_536, strict=True)] | None = None
    """Batch size of the exported files. By default, any size is accepted. Detectors return a list with one entry per
    image and need a fixed size."""


_TASK_NAMES = listed(sentences(TASKS), "`")


class TaskConfig(Section):
    """What the network is trained for, and judged by. `task: NAME` is short for a section with a name."""

    name: Annotated[Annotated[str, OneOf(TASKS)] | None, Field(description=f"A task of bnprune. {_TASK_NAMES}.")] = None
    factory: Annotated[Name | None, UserOnly()] = None
    """A function or class of your own that returns the task, an object with the methods `loss(model, batch)` and
    `evaluate(model, batches)`: `package.module:function`."""
    kwargs: Annotated[dict[str, Any], UserOnly()] = Field(default_factory=dict)
    """Keyword arguments of the factory."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either 'name' or 'factory'")
        return self

    @property
    def entry(self) -> TaskEntry:
        """The entry of the task in the table; for one of the user's own, an entry that requires nothing."""
        return TaskEntry("", "") if self.name is None else TASKS[self.name]

    @property
    def label(self) -> str:
        """Name of the task in messages."""
        return self.name or self.factory or ""


def _named_task(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class PipelineConfig(Section):
    """A recipe. Every stage is optional, but at least one is needed."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Random seed of the initial weights, the order of images, and augmentation."""
    device: Name = "auto"
    """Device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] | None = None
    """Number of CPU threads. Default: chosen by PyTorch."""
    model: ModelConfig
    data: DataConfig
    task: Annotated[TaskConfig, BeforeValidator(_named_task)] = Field(
        default_factory=lambda: TaskConfig(name="classification")
    )
    """What the network is trained for."""
    baseline: Switch = False
    """Also train the network without a penalty, with the same schedule, for comparison."""
    train: TrainConfig | None = None
    prune: PruneConfig | None = None
    finetune: FinetuneConfig | None = None
    export: ExportConfig | None = None
    scratch: Literal["epochs", "compute"] | None = None
    """Also train the slim architecture from new weights, without a penalty, for comparison (Liu et al. 2019). `epochs`:
    as many epochs as the pruned network had in all; `compute`: as many as cost the same compute."""
    tensorboard: Switch = False
    """Also write curves and histograms of γ for TensorBoard, into `tensorboard/` of the run directory."""

    @field_validator("scratch")
    @classmethod
    def _has_stages_to_repeat(cls, value: str | None, info: ValidationInfo) -> str | None:
        for stage in ("train", "prune"):
            if value is not None and info.data.get(stage, ...) is None:
                raise ValueError(f"needs 'train' and 'prune', whose architecture and length it repeats: add '{stage}'")
        return value

    @model_validator(mode="after")
    def _settings_fit_the_task(self) -> Self:
        for section in ("train", "finetune"):
            settings = getattr(self, section)
            if settings is None:
                continue
            if settings.label_smoothing and not self.task.entry.label_smoothing:
                raise ValueError(f"'{section}.label_smoothing' is not for the task '{self.task.label}'")
            if (settings.mixup or settings.cutmix) and self.task.name != "classification":
                raise ValueError(f"'{section}.mixup' and '{section}.cutmix' are for the task 'classification' only")
        return self
