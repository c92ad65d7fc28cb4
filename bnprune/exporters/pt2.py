"""The graph of a network as `torch.export` records it, and its file format, pt2."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from bnprune.channels.modules import still
from bnprune.channels.pytrees import tensors
from bnprune.errors import ForwardError, TraceError, first_line
from bnprune.exporters.parity import Runner, dtype_of

_ANY = 2
"""Batch size of the example where the batch is to stay open; 1 would be taken for a constant."""


def record(model: nn.Module, shape: tuple[int, ...], batch: int | None = None) -> ExportedProgram:
    """Record the network in eval mode.

    Args:
        model: Any network; left untouched.
        shape: Shape of one input, without the batch.
        batch: Its only batch size; None for any.

    Raises:
        ForwardError: The forward pass fails on inputs of that shape.
        TraceError: `torch.export` cannot follow the network, or only for one batch size.
    """
    example = torch.zeros(batch or _ANY, *shape, dtype=dtype_of(model))
    dynamic = None if batch else ({0: Dim("batch")},)
    with still(model, training=False):
        try:
            model(example)
        except Exception as error:
            raise ForwardError(
                f"the forward pass fails on an input of shape {tuple(example.shape)}: {first_line(error)}. "
                "Is --input the shape of one input?"
            ) from error
        try:
            return _recorded(model, example, dynamic)
        except Exception as error:
            reason = first_line(error).rstrip(".")
            fix = " Export for one batch size: --batch 1." if dynamic and _can_be_recorded(model, example) else ""
            raise TraceError(f"torch.export cannot follow the network: {reason}.{fix}") from error


def _recorded(model: nn.Module, example: torch.Tensor, dynamic: Any) -> ExportedProgram:
    with quiet():
        return torch.export.export(model, (example,), dynamic_shapes=dynamic)


def _can_be_recorded(model: nn.Module, example: torch.Tensor) -> bool:
    """Tell whether it was about the batch: messages do not always say."""
    try:
        _recorded(model, example, None)
    except Exception:  # noqa: BLE001 - the first error is the one to tell
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters say about themselves: warnings, log, and pages of code on stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_pt2(program: ExportedProgram) -> bytes:
    """Return the program as a pt2 archive; `torch.export.load` reads it, without bnprune."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file)
    return file.getvalue()


def pt2_runner(content: bytes) -> Runner:
    """Load a pt2 archive and run it."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            return list(tensors(module(batch)))

    return run
