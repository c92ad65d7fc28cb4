"""Artifacts: a network in a format of its own, verified against the eager one before anybody writes it to disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from bnprune.config.tables import FORMATS
from bnprune.errors import BnpruneError, ConfigError, TraceError, VerificationError, first_line
from bnprune.exporters.batchnorm_folding import fold_batchnorms
from bnprune.exporters.onnx import onnx_runner, to_onnx
from bnprune.exporters.parity import Parity, Runner, compare, dtype_of, eager, tolerance_of
from bnprune.exporters.pt2 import pt2_runner, record, to_pt2
from bnprune.exporters.python_source import to_python
from bnprune.runs.checkpoint import stored

Format = str
"""A name in `config.tables.FORMATS`."""
SUFFIXES: dict[Format, tuple[str, ...]] = {name: entry.suffixes for name, entry in FORMATS.items()}
"""File name suffixes of each format, the usual one first."""


@dataclass(frozen=True)
class Wish:
    """What is to be made of a network."""

    format: Format
    suffix: str
    """Of the main file; `.pt` makes a state dict that `torch.load` reads."""
    fold_bn: bool = False
    batch: int | None = None
    """The only batch size; None for any."""
    verify: bool = True

    @classmethod
    def of(cls, format: Format, suffix: str | None = None, **options: Any) -> Wish:
        """Check what is wished for.

        Raises:
            ConfigError: The suffix belongs to another format, or the format needs an extra that is missing.
        """
        suffixes = FORMATS[format].suffixes
        suffix = suffix or suffixes[0]
        if suffix not in suffixes:
            raise ConfigError(f"a file of format {format} ends in {' or '.join(suffixes)} (got '{suffix}').")
        FORMATS[format].require_packages()
        return cls(format, suffix, **options)


Files = dict[str, bytes]
"""Contents by suffix."""
Notes = tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """The files of one format: the result of the functions in `config.tables.FORMATS`.

    These are called with a network in the mode it has, the shape of one input, a `Wish`, the title of the network and
    the name of the files without suffix.
    """

    files: Files
    runner: Runner | None
    """Runs the exported network, so that it can be compared; None if there is nothing to run."""
    notes: Notes = ()
    without_code: Callable[[Exception], tuple[Files, Notes]] | None = None
    """Returns the files that are still right if the exported network turns out to differ; None if there are none."""


@dataclass(frozen=True)
class Artifact:
    """A network in a format of its own."""

    files: Files
    folded: int | None
    """BatchNorms folded into the layers before them; None where nobody asked."""
    batchnorms: int
    """BatchNorms of the network."""
    random: Parity | None
    """Compared on noise; None where nothing was verified, or there was nothing to run."""
    real: Parity | None
    """Compared on images of the network's data set; None where it is not known."""
    notes: tuple[str, ...]


def make_artifact(
    model: nn.Module,
    shape: tuple[int, ...],
    wish: Wish,
    *,
    title: str = "network",
    stem: str = "network",
    real: Iterable[torch.Tensor] = (),
) -> Artifact:
    """Export a network and compare it with the eager one.

    Args:
        model: Any network that takes one batch of inputs; left untouched.
        shape: Shape of one input, without the batch.
        wish: What to make.
        title: What the network is called in files for people.
        stem: Name of the files, without suffix.
        real: Batches of real inputs to compare on, besides noise.

    Raises:
        TraceError: The network cannot be followed.
        VerificationError: What came out does not compute what the network computes.
    """
    mode = {module: module.training for module in model.modules()}
    try:
        made, folded = _folded(model, shape) if wish.fold_bn else (model, None)
        written: Written = FORMATS[wish.format](made, shape, wish, title, stem)
        files, notes = written.files, written.notes
        random = found = None
        if wish.verify and written.runner is not None:
            reference = model
            if folded and dtype_of(model) in _HALVES:  # what folding rounds anew is no fault of the file
                reference, notes = made, (*notes, _FOLDED_HALF)
            try:
                random, found = _verified(reference, written.runner, shape, wish, real)
            except _UnlikeError as error:
                if written.without_code is None:
                    raise VerificationError(f"{error} Nothing was written.") from error
                files, notes = written.without_code(error)
    finally:
        for module, training in mode.items():
            module.training = training
    return Artifact(files, folded, _count(model), random, found, notes)


_HALVES = (torch.bfloat16, torch.float16)
_FOLDED_HALF = (
    "compared with the folded network, whose weights are rounded anew; before that, folding was proven in float64"
)


class _UnlikeError(VerificationError):
    """What came out does not compute what the network computes."""


def _folded(model: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    return fold_batchnorms(model, torch.zeros(2, *shape, dtype=dtype_of(model)))


def write_onnx(model: nn.Module, shape: tuple[int, ...], wish: Wish, title: str, stem: str) -> Written:
    """Write ONNX.

    Raises:
        TraceError: The network cannot be recorded, or is in bfloat16.
    """
    if dtype_of(model) == torch.bfloat16:
        raise TraceError("ONNX Runtime is fed through NumPy, which has no bfloat16. Use the format pt2.")
    content = to_onnx(record(model, shape, wish.batch))
    return Written({wish.suffix: content}, onnx_runner(content) if wish.verify else None)


def write_pt2(model: nn.Module, shape: tuple[int, ...], wish: Wish, title: str, stem: str) -> Written:
    """Write the format of `torch.export`.

    Raises:
        TraceError: The network cannot be recorded.
    """
    content = to_pt2(record(model, shape, wish.batch))
    return Written({wish.suffix: content}, pt2_runner(content) if wish.verify else None)


def write_state_dict(model: nn.Module, shape: tuple[int, ...], wish: Wish, title: str, stem: str) -> Written:
    """Write plain weights and, if the architecture can be expressed in plain Python, a file with it."""
    weights = _weights(model, wish.suffix)

    def weights_alone(error: Exception) -> tuple[Files, Notes]:
        reason = str(error) if isinstance(error, BnpruneError) else first_line(error)
        return {wish.suffix: weights}, (f"no Python file with the architecture: {reason}",)

    try:
        code = to_python(model, title, f"{stem}{wish.suffix}")
        runner = source_runner(code, _read(weights, wish.suffix))
    except Exception as error:  # noqa: BLE001 - whatever plain Python cannot express, weights are weights
        files, notes = weights_alone(error)
        return Written(files, None, notes)
    return Written({wish.suffix: weights, ".py": code.encode()}, runner, without_code=weights_alone)


def _weights(model: nn.Module, suffix: str) -> bytes:
    state = model.state_dict()
    if suffix == ".safetensors":
        kept, aliases = stored(state)
        return safetensors.torch.save({**kept, **{name: kept[own].clone() for name, own in aliases.items()}})
    file = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in state.items()}, file)
    return file.getvalue()


def _read(weights: bytes, suffix: str) -> dict[str, torch.Tensor]:
    if suffix == ".safetensors":
        return safetensors.torch.load(weights)
    found: dict[str, torch.Tensor] = torch.load(io.BytesIO(weights), weights_only=True)
    return found


def source_runner(code: str, state: dict[str, torch.Tensor]) -> Runner:
    """Run a Python file of ours with its weights."""
    names: dict[str, Any] = {"__name__": "network"}
    exec(compile(code, "network.py", "exec"), names)
    network = names["Network"]()
    network.load_state_dict(state)
    return eager(network)


def _noise(model: nn.Module, shape: tuple[int, ...], batch: int | None) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for size in (batch,) if batch else (1, 3):
        yield torch.randn(size, *shape, generator=generator).to(dtype_of(model))


def _verified(
    model: nn.Module, runner: Runner, shape: tuple[int, ...], wish: Wish, real: Iterable[torch.Tensor]
) -> tuple[Parity, Parity | None]:
    """Compare on noise, and on real inputs where there are any.

    Raises:
        VerificationError: They differ, or there is nothing to compare.
    """
    batches = [batch.to(dtype_of(model)) for batch in real if wish.batch in (None, len(batch))]
    random = _compared(model, runner, _noise(model, shape, wish.batch), "random inputs")
    return random, _compared(model, runner, batches, "real inputs") if batches else None


def _compared(model: nn.Module, runner: Runner, batches: Iterable[torch.Tensor], what: str) -> Parity:
    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        try:
            return runner(batch)
        except Exception as error:
            raise _UnlikeError(
                f"the exported network does not run on {what} of shape {tuple(batch.shape)}: {first_line(error)}."
            ) from error

    parity = compare(eager(model), run, batches, what=what, tolerance=tolerance_of(dtype_of(model)))
    if not parity.passed:
        raise _UnlikeError(
            f"the exported network does not compute what the eager one does: on {what} the relative error is "
            f"{parity.max_relative_error:.1e} (allowed {parity.tolerance:.0e})."
        )
    return parity


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
