"""The teacher of a fine-tuning: the checkpoint that the recipe names, or else the network before pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from bnprune.config.schema import DistillConfig, FinetuneConfig, PipelineConfig
from bnprune.data import Splits
from bnprune.errors import CheckpointError, ConfigError, UntrustedError
from bnprune.models.zoo import ModelSpec, build
from bnprune.runs.checkpoint import Header, holds_plain_weights
from bnprune.runs.directory import RunDirectory
from bnprune.runs.preflight import Network, initial, load_stage, spec_of
from bnprune.runs.stages import kind_of
from bnprune.runs.weights import fit_state, read_weights
from bnprune.training.compatibility import require_fit
from bnprune.training.evaluate import CLASSIFICATION
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.task import Task


def require_teacher(
    config: PipelineConfig, stages: Sequence[str], splits: Splits, student: nn.Module, task: Task
) -> None:
    """Check that there will be a teacher if the recipe asks for one, or if there are no labels.

    Args:
        config: The recipe.
        stages: The stages of the run.
        splits: The data that the teacher must fit.
        student: The network that the first stage starts from, whose outputs the teacher must have.
        task: The task of the recipe.

    Raises:
        ConfigError: None is named, and no stage prunes a network; or it does not fit the data or the student.
        CheckpointError: It cannot be read.
    """
    distill = config.finetune.distill if config.finetune else None
    if not any(kind_of(stage) == "finetune" for stage in stages):
        return
    if not splits.labelled and (distill is None or distill.teacher is None):
        raise ConfigError(
            "data.unlabelled: without labels, the network learns from the outputs of the network before pruning, and "
            "that is not known. Name its checkpoint (finetune.distill.teacher).",
            remedy={"teacher": "FILE"},
        )
    if distill is None:
        return
    used = task if splits.labelled else CLASSIFICATION
    size = None if isinstance(used, Classification) else config.data.batch_size  # the loss tells if there are scores
    wanted = require_fit(student, splits, "model", size, used)
    if wanted is None:
        raise ConfigError(
            f"finetune.distill: the task '{config.task.label}' has no class scores to learn from. Leave it out."
        )
    if distill.teacher is not None:
        found = require_fit(_named(config, distill.teacher)[0], splits, "finetune.distill.teacher", size, used)
        if found != wanted:
            raise ConfigError(
                f"finetune.distill.teacher: must return as many scores as the network that learns from it "
                f"(got {found}, and {wanted})."
            )
    elif "prune" not in stages:
        raise ConfigError(
            "finetune.distill: the network before pruning is not known. Fine-tune the run directory that has both, or "
            "name its checkpoint (finetune.distill.teacher).",
            remedy={"teacher": "FILE"},
        )


def find_teacher(config: PipelineConfig, directory: RunDirectory) -> Network | None:
    """Return the teacher of a fine-tuning; None if the recipe asks for none.

    Raises:
        CheckpointError: It cannot be read.
    """
    distill = config.finetune.distill if config.finetune else None
    if distill is None:
        return None
    if distill.teacher is not None:
        return _named(config, distill.teacher)
    if "train" in directory.result().stages:
        return load_stage(config, directory.checkpoint("train"))
    return initial(config)  # no `train` stage: the network that was pruned first is the initial one


def teacher_beside(pruned: Path) -> Path | None:
    """Return the checkpoint of the network before pruning, if it is in the same run as the pruned one; else None."""
    folder = pruned / "checkpoints" if pruned.is_dir() else pruned.parent
    dense = folder / "train.safetensors"
    return dense if dense.is_file() and dense != pruned else None


def with_teacher(config: PipelineConfig, teacher: Path | None, *, asked: bool) -> PipelineConfig:
    """Return a recipe that names a checkpoint as the teacher.

    Args:
        config: The recipe.
        teacher: The checkpoint; None to change nothing.
        asked: True if the user named it: it then replaces another teacher, and turns distillation on. Otherwise, it is
            used only if the recipe asks for distillation and names no teacher.
    """
    tuning = config.finetune or FinetuneConfig()
    if teacher is None or not (asked or (tuning.distill and tuning.distill.teacher is None)):
        return config
    distill = (tuning.distill or DistillConfig()).model_copy(update={"teacher": teacher})
    return config.model_copy(update={"finetune": tuning.model_copy(update={"distill": distill})})


def _plain(spec: ModelSpec, path: Path) -> Network:
    """Return the dense network of a recipe with weights that were not written by bnprune."""
    model = build(spec)
    fit_state(model, read_weights(path), f"'{path}'")
    return model, Header(spec)


def _named(config: PipelineConfig, path: Path) -> Network:
    try:
        if holds_plain_weights(path):
            return _plain(spec_of(config), path)
        return load_stage(config, path)
    except UntrustedError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"finetune.distill.teacher: {error}") from error
