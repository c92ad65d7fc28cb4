"""The teacher of a fine-tuning: the checkpoint that the recipe names, or else the network before pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnprune.config.schema import DistillConfig, FinetuneConfig, PipelineConfig
from bnprune.data import Splits
from bnprune.errors import CheckpointError, ConfigError, UntrustedError
from bnprune.runs.directory import RunDirectory
from bnprune.runs.preflight import Network, initial, load_stage
from bnprune.runs.stages import kind_of
from bnprune.training.compatibility import require_fit


def require_teacher(config: PipelineConfig, stages: Sequence[str], splits: Splits) -> None:
    """Check that there will be a teacher if the recipe asks for one.

    Args:
        config: The recipe.
        stages: The stages of the run.
        splits: The data that the teacher must fit.

    Raises:
        ConfigError: None is named, and no stage prunes a network; or it does not fit the data.
        CheckpointError: It cannot be read.
    """
    distill = config.finetune.distill if config.finetune else None
    if distill is None or not any(kind_of(stage) == "finetune" for stage in stages):
        return
    if distill.teacher is not None:
        require_fit(_named(config, distill.teacher)[0], splits, "finetune.distill.teacher")
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


def _named(config: PipelineConfig, path: Path) -> Network:
    try:
        return load_stage(config, path)
    except UntrustedError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"finetune.distill.teacher: {error}") from error
