"""Artifacts: a network in a format of its own, verified against the eager one before anybody writes it to disk."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import nn

from bnprune.errors import ConfigError, TraceError, VerificationError
from bnprune.export.fold import fold_batchnorms
from bnprune.export.onnx import onnx_runner, require_onnx, to_onnx
from bnprune.export.parity import TOLERANCE, Parity, Runner, compare, dtype_of, eager
from bnprune.export.program import pt2_runner, record, to_pt2
from bnprune.export.source import to_python
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
        made, folded = fold_batchnorms(model, torch.zeros(2, *shape)) if wish.fold_bn else (model, None)
        files, runner, notes = _written(made, shape, wish, title, stem)
        random = found = None
        if wish.verify and runner is not None:
            random = _verified(compare(eager(model), runner, _noise(model, shape, wish.batch)), "random")
            batches = [batch.to(dtype_of(model)) for batch in real if wish.batch in (None, len(batch))]
            found = _verified(compare(eager(model), runner, batches), "real") if batches else None
    finally:
        for module, training in mode.items():
            module.training = training
    return Artifact(files, folded, _count(model), random, found, notes)


def _written(
    model: nn.Module, shape: tuple[int, ...], wish: Wish, title: str, stem: str
) -> tuple[dict[str, bytes], Runner | None, tuple[str, ...]]:
    if wish.format == "state-dict":
        return _state_dict(model, wish.suffix, title, stem)
    if wish.format == "onnx" and dtype_of(model) == torch.bfloat16:
        raise TraceError("ONNX Runtime is fed through NumPy, which has no bfloat16. Use --format pt2.")
    program = record(model, shape, wish.batch)
    content = to_onnx(program) if wish.format == "onnx" else to_pt2(program)
    if not wish.verify:
        return {wish.suffix: content}, None, ()
    return {wish.suffix: content}, (onnx_runner if wish.format == "onnx" else pt2_runner)(content), ()


def _state_dict(
    model: nn.Module, suffix: str, title: str, stem: str
) -> tuple[dict[str, bytes], Runner | None, tuple[str, ...]]:
    weights = _weights(model, suffix)
    try:
        code = to_python(model, title, f"{stem}{suffix}")
    except TraceError as error:
        return {suffix: weights}, None, (f"no Python file with the architecture: {error}",)
    return {suffix: weights, ".py": code.encode()}, source_runner(code, _read(weights, suffix)), ()


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


def _verified(parity: Parity, kind: str) -> Parity:
    if not parity.passed:
        raise VerificationError(
            f"the exported network does not compute what the eager one does: on {kind} inputs the relative error is "
            f"{parity.max_relative_error:.1e} (allowed {TOLERANCE:.0e}). Nothing was written."
        )
    return parity


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
