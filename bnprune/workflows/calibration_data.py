"""Calibration data of a command: a folder of images, a factory of the user's own, or the data of a stored recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnprune.config.schema import PipelineConfig
from bnprune.config.user_code import call_factory
from bnprune.data import splits_of
from bnprune.data.splits import Normalisation
from bnprune.data.unlabelled import Preprocessing, unlabelled_images
from bnprune.errors import BnpruneError, ConfigError, DataError, UntrustedError, about, shortened
from bnprune.notes import Note
from bnprune.pruning.calibration import Calibration
from bnprune.recovery.training_images import training_batches
from bnprune.runs.network_source import NetworkSource
from bnprune.workflows.results import PreprocessingUsed


@dataclass(frozen=True)
class CalibrationData:
    """Calibration data, and what is recorded about it."""

    calibration: Calibration
    source: str
    """"folder", "factory" or "recipe"."""
    preprocessing: PreprocessingUsed | None = None
    """How image files became inputs; None if they were not read here, or if it is not known."""
    notes: tuple[Note, ...] = ()


def open_calibration(
    network: NetworkSource,
    given: str | Path | None,
    count: int,
    *,
    required: bool,
    normalisation: Normalisation | None = None,
) -> tuple[CalibrationData | None, tuple[Note, ...]]:
    """Open calibration data.

    Args:
        network: The network; its stored recipe names data and preprocessing.
        given: A folder, or "package.module:factory"; None for the data of the recipe.
        count: Number of images to use; 0 for none.
        required: True to raise an error if the data of the recipe cannot be opened; otherwise a note says so.
        normalisation: Mean and standard deviation that the images of a folder are normalised with; default: those of
            the training images, or of ImageNet.

    Returns:
        The data, None if there is none; and remarks.

    Raises:
        ConfigError: The factory cannot be called, the network takes no images, or a normalisation is not for the data.
        DataError: The data cannot be read.
        UntrustedError: `required`, and the recipe names code or paths, and the file is not trusted.
    """
    if normalisation is not None and (given is None or _is_factory(given)):
        raise ConfigError("is for a folder of images.", argument="mean")
    if not count:
        return None, ()
    if given is not None:
        with about("calibrate"):
            data = _from_path(network, given, count, normalisation)
        return data, data.notes
    if network.header.config is None:
        return None, ()
    try:
        return _from_recipe(network, count), ()
    except BnpruneError as error:
        if required:
            raise
        reason = error.reason if isinstance(error, UntrustedError) else str(error)
        text = f"no calibration data, because that of the stored recipe cannot be opened: {shortened(reason, 400)}"
        return None, (Note("calibration.unavailable", "note", text),)


def normalisation_of(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalisation | None:
    """Return mean and standard deviation as given by the user; None if neither is given.

    Raises:
        ConfigError: One is missing, they do not have as many numbers, or a standard deviation is not positive.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std) or len(mean) not in (1, 3):
        raise ConfigError("mean and standard deviation must both have 3 numbers, or both 1.", argument="mean")
    scale = "Pixel values are from 0 to 1: divide values for 0 to 255 by 255."
    if not all(0 <= value <= 1 for value in mean):
        raise ConfigError(f"a mean must be between 0 and 1. {scale}", argument="mean")
    if not all(0 < value <= 1 for value in std):
        raise ConfigError(f"a standard deviation must be above 0, and at most 1. {scale}", argument="std")
    return tuple(mean), tuple(std)


def _is_factory(given: str | Path) -> bool:
    return ":" in str(given) and not Path(given).exists()


def _from_path(
    network: NetworkSource, given: str | Path, count: int, normalisation: Normalisation | None
) -> CalibrationData:
    if _is_factory(given):
        batches = call_factory(str(given), {}, "")
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise ConfigError(f"{given} must return an iterable of batches (got {type(batches).__name__}).")
        return CalibrationData(Calibration.of(batches, count), "factory")
    if normalisation is None:
        preprocessing, notes = preprocessing_of(network)
    else:
        preprocessing, notes = Preprocessing.of(tuple(network.inputs.shape[1:]), *normalisation), ()
    batches = unlabelled_images(Path(given), count, preprocessing)
    return CalibrationData(Calibration.of(batches, count), "folder", _recorded(preprocessing), notes)


def preprocessing_of(
    network: NetworkSource, recipe: PipelineConfig | None = None
) -> tuple[Preprocessing, tuple[Note, ...]]:
    """Return the preprocessing of the training data; that of ImageNet, and a remark, if it is not known.

    The data is that of `recipe`, or else of the recipe that is stored with the network.
    """
    shape = tuple(network.inputs.shape[1:])
    known = _known(network, recipe) if recipe or network.header.config is not None else None
    if known is not None:
        return Preprocessing.of(shape, *known), ()
    text = (
        "images of the folder are normalised with the mean and standard deviation of ImageNet, because those of the "
        "training images are not at hand"
    )
    return Preprocessing.of(shape), (Note("calibration.imagenet", "note", text),)


def _known(network: NetworkSource, recipe: PipelineConfig | None) -> Normalisation | None:
    try:
        return splits_of(recipe or network.config(sections=("data",)), needs_labels=False).normalisation
    except BnpruneError:
        return None


def _recorded(used: Preprocessing) -> PreprocessingUsed:
    return PreprocessingUsed(size=[used.height, used.width], crop=used.crop, mean=list(used.mean), std=list(used.std))


def _from_recipe(network: NetworkSource, count: int) -> CalibrationData:
    splits = splits_of(network.config(sections=("data",)))
    shape = network.header.input_shape
    if shape is not None and tuple(splits.shape) != tuple(shape):
        raise DataError(f"its images are {tuple(splits.shape)}, and the network takes {tuple(shape)}.")
    known = splits.normalisation
    used = None if known is None else _recorded(Preprocessing.of(splits.shape, *known))
    return CalibrationData(Calibration.of(training_batches(splits.train, count), count), "recipe", used)
