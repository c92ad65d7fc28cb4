"""Artifacts: a network in a format of its own, verified against the eager one before anybody writes it to disk."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import nn

from bnprune.errors import BnpruneError, ConfigError, TraceError, VerificationError, first_line
from bnprune.exporters.batchnorm_folding import fold_batchnorms
from bnprune.exporters.onnx import onnx_runner, require_onnx, to_onnx
from bnprune.exporters.parity import Parity, Runner, compare, dtype_of, eager, tolerance_of
from bnprune.exporters.pt2 import pt2_runner, record, to_pt2
from bnprune.exporters.python_source import to_python
from bnprune.runs.checkpoint import stored

Format = Literal["onnx", "pt2", "state-dict"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "pt2": (".pt2",),
    "state-dict": (".safetensors", ".pt", ".pth"),
}
"""What the files of a format end in, the usual one first."""


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
        suffixes = SUFFIXES[format]
        suffix = suffix or suffixes[0]
        if suffix not in suffixes:
            raise ConfigError(f"a file of format {format} ends in {' or '.join(suffixes)} (got '{suffix}').")
        if format == "onnx":
            require_onnx("the format onnx")
        return cls(format, suffix, **options)


@dataclass(frozen=True)
class Artifact:
    """A network in a format of its own."""

    files: dict[str, bytes]
    """Contents by suffix."""
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
        files, notes, runner = _written(made, shape, wish, title, stem)
        random = found = None
        if wish.verify and runner is not None:
            reference = model
            if folded and dtype_of(model) in _HALVES:  # what folding rounds anew is no fault of the file
                reference, notes = made, (*notes, _FOLDED_HALF)
            try:
                random, found = _verified(reference, runner, shape, wish, real)
            except _UnlikeError as error:
                if wish.format != "state-dict":
                    raise VerificationError(f"{error} Nothing was written.") from error
                files, notes = _weights_alone(files[wish.suffix], wish.suffix, error)
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


def _written(
    model: nn.Module, shape: tuple[int, ...], wish: Wish, title: str, stem: str
) -> tuple[dict[str, bytes], tuple[str, ...], Runner | None]:
    if wish.format == "state-dict":
        return _state_dict(model, wish.suffix, title, stem)
    if wish.format == "onnx" and dtype_of(model) == torch.bfloat16:
        raise TraceError("ONNX Runtime is fed through NumPy, which has no bfloat16. Use --format pt2.")
    program = record(model, shape, wish.batch)
    content = to_onnx(program) if wish.format == "onnx" else to_pt2(program)
    if not wish.verify:
        return {wish.suffix: content}, (), None
    return {wish.suffix: content}, (), (onnx_runner if wish.format == "onnx" else pt2_runner)(content)


def _state_dict(
    model: nn.Module, suffix: str, title: str, stem: str
) -> tuple[dict[str, bytes], tuple[str, ...], Runner | None]:
    weights = _weights(model, suffix)
    try:
        code = to_python(model, title, f"{stem}{suffix}")
        runner = source_runner(code, _read(weights, suffix))
    except Exception as error:  # noqa: BLE001 - whatever plain Python cannot express, weights are weights
        return *_weights_alone(weights, suffix, error), None
    return {suffix: weights, ".py": code.encode()}, (), runner


def _weights_alone(weights: bytes, suffix: str, error: Exception) -> tuple[dict[str, bytes], tuple[str, ...]]:
    reason = str(error) if isinstance(error, BnpruneError) else first_line(error)
    return {suffix: weights}, (f"no Python file with the architecture: {reason}",)


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
