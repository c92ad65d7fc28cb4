"""The format pt2: the graph that `torch.export` records of a network, and the archive that holds it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.modules import temporary_mode
from bnprune.channels.pytrees import as_inputs, tensors
from bnprune.errors import TraceError, first_line
from bnprune.exporters.parity import Runner
from bnprune.exporters.preprocessing import input_values_of
from bnprune.exporters.request import ExportedFiles, ExportRequest

_ANY = 2
"""Batch size of the example if any batch size is allowed: `torch.export` takes a size of 1 for a constant."""


def export_pt2(request: ExportRequest) -> ExportedFiles:
    """Write a pt2 archive.

    Raises:
        ForwardError: The forward pass fails.
        TraceError: `torch.export` cannot trace the network.
    """
    content = to_pt2(record(request.model, request.shape, request.batch), request.metadata)
    return ExportedFiles({request.suffix: content}, lambda: pt2_runner(content))


def record(model: nn.Module, shape: tuple[int, ...], batch: int | None = None) -> ExportedProgram:
    """Record the network in eval mode.

    Args:
        model: Any network; left untouched.
        shape: Shape of one input, without the batch dimension.
        batch: The only batch size; None for any.

    Raises:
        ForwardError: The forward pass fails on inputs of that shape.
        TraceError: `torch.export` cannot trace the network, or can for one batch size only.
    """
    example = torch.zeros(batch or _ANY, *shape, dtype=input_values_of(model).dtype)
    dynamic = None if batch else ({0: Dim("batch")},)
    with temporary_mode(model, training=False):
        with raising_forward_errors(as_inputs(example)):
            model(example)
        try:
            return _recorded(model, example, dynamic)
        except Exception as error:
            reason = first_line(error).rstrip(".")
            message = f"torch.export cannot follow the network: {reason}."
            if dynamic and _can_be_recorded(model, example):
                raise TraceError(f"{message} Export for one batch size.", remedy={"batch": 1}) from error
            raise TraceError(message) from error


def _recorded(model: nn.Module, example: torch.Tensor, dynamic: Any) -> ExportedProgram:
    with quiet():
        return torch.export.export(model, (example,), dynamic_shapes=dynamic)


def _can_be_recorded(model: nn.Module, example: torch.Tensor) -> bool:
    """Return True if the network can be exported for one batch size: the message of the error does not always say."""
    try:
        _recorded(model, example, None)
    except Exception:  # noqa: BLE001 - the error that the user reads is the first one
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters of PyTorch: warnings, log messages, and generated code on stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_pt2(program: ExportedProgram, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the program as a pt2 archive, with entries for its metadata.

    `torch.export.load(file, extra_files={"bnprune.classes": ""})` reads both, without bnprune.
    """
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files=dict(metadata or {}))
    return file.getvalue()


def pt2_runner(content: bytes) -> Runner:
    """Load a pt2 archive and run it."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            return list(tensors(module(batch)))

    return run
