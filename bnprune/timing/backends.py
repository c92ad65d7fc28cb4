"""The backends that can run a network: PyTorch in eager mode, `torch.compile`, ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.modules import set_mode
from bnprune.channels.pytrees import as_inputs
from bnprune.config.user_code import hint
from bnprune.errors import ConfigError, first_line
from bnprune.exporters.export import require_packages
from bnprune.exporters.onnx import onnx_runner, to_onnx
from bnprune.exporters.pt2 import record

Backend = Literal["eager", "compiled", "onnxruntime"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def parse_backends(texts: Sequence[str]) -> tuple[Backend, ...]:
    """Return the backends named in texts such as "eager" or "eager,compiled".

    Raises:
        ConfigError: There is no such backend.
    """
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in BACKENDS:
            raise ConfigError(f"'{name}' is unknown. {hint(name, BACKENDS)}", argument="backend")
    return tuple(backend for backend in BACKENDS if backend in names)


Dtype = Literal["float32", "bfloat16", "float16"]

ForwardPass = Callable[[], object]
"""Runs one forward pass."""


@dataclass(frozen=True)
class Setting:
    """The shape, type, memory layout and device of the inputs of a benchmark."""

    shape: tuple[int, ...]
    """Shape of one input, without the batch dimension."""
    dtype: Dtype = "float32"
    channels_last: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, backend: Backend) -> None:
        """Raise an error if a backend does not run in this setting.

        Raises:
            ConfigError: It is not installed, or does not support the shape, type or device.
        """
        if self.channels_last and len(self.shape) != 3:
            message = f"channels_last needs inputs of shape C,H,W (got {self.shape}). Leave it out."
            raise ConfigError(message, remedy={"channels_last": False})
        if backend != "onnxruntime":
            return
        require_packages("onnx", "the backend onnxruntime")
        if self.device.type != "cpu" or self.dtype != "float32":
            raise ConfigError(
                f"the backend onnxruntime is measured on the CPU in float32 (got {self.device} and {self.dtype}). "
                "Leave it out, or change the device and the type.",
                remedy={"device": "cpu", "dtype": "float32"},
            )

    def inputs(self, batch: int) -> torch.Tensor:
        """Return random inputs, shape (batch, *self.shape)."""
        noise = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.device, getattr(torch, self.dtype))
        return noise.to(memory_format=torch.channels_last) if self.channels_last else noise

    def placed(self, model: nn.Module) -> nn.Module:
        """Return a copy of a network, in eval mode, with the device, type and memory layout of this setting."""
        copied = copy.deepcopy(model).to(self.device, getattr(torch, self.dtype))
        if self.channels_last:
            copied = copied.to(memory_format=torch.channels_last)
        set_mode(copied, training=False)
        return copied


def forward_pass(model: nn.Module, backend: Backend, setting: Setting, inputs: torch.Tensor) -> ForwardPass:
    """Return a function that runs a network on a batch. The network has run once before this returns.

    Raises:
        ConfigError: The backend cannot compile it.
        ForwardError: Its forward pass fails.
        TraceError: It cannot be exported.
    """
    if backend == "onnxruntime":
        run = onnx_runner(to_onnx(record(model, setting.shape, len(inputs))))
        return lambda: run(inputs)
    network = setting.placed(model)
    ready = _once(network, inputs)
    if backend == "eager":
        return ready
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(inputs)
    except Exception as error:
        message = f"the backend compiled cannot be used: torch.compile fails: {first_line(error)}."
        raise ConfigError(message) from error
    return lambda: compiled(inputs)


def _once(network: nn.Module, inputs: torch.Tensor) -> ForwardPass:
    with torch.inference_mode(), raising_forward_errors(as_inputs(inputs)):
        network(inputs)
    return lambda: network(inputs)
