"""What can run a network: PyTorch op by op, PyTorch compiled, ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from bnprune.channels.modules import set_mode
from bnprune.config.user_code import hint
from bnprune.errors import ConfigError, ForwardError, first_line
from bnprune.exporters.onnx import onnx_runner, require_onnx, to_onnx
from bnprune.exporters.pt2 import record

Backend = Literal["eager", "compiled", "onnxruntime"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def parse_backends(texts: Sequence[str]) -> tuple[Backend, ...]:
    """Read names of backends, one by one or joined by commas.

    Raises:
        ConfigError: There is no such backend.
    """
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in BACKENDS:
            raise ConfigError(f"--backend: '{name}' is unknown. {hint(name, BACKENDS)}")
    return tuple(backend for backend in BACKENDS if backend in names)


Dtype = Literal["float32", "bfloat16", "float16"]

Pass = Callable[[], object]
"""One forward pass."""


@dataclass(frozen=True)
class Setting:
    """How networks are run."""

    shape: tuple[int, ...]
    """Of one input, without the batch."""
    dtype: Dtype = "float32"
    channels_last: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self, backend: Backend) -> None:
        """Refuse what a backend cannot do.

        Raises:
            ConfigError: It is missing here, or does not run in this setting.
        """
        if self.channels_last and len(self.shape) != 3:
            raise ConfigError(f"--channels-last goes with inputs of shape C,H,W (got {self.shape}).")
        if backend != "onnxruntime":
            return
        require_onnx("--backend onnxruntime")
        if self.device.type != "cpu" or self.dtype != "float32":
            raise ConfigError(
                "--backend onnxruntime is measured on the CPU in float32 "
                f"(got {self.device} and {self.dtype}). Leave it out, or add --device cpu --dtype float32."
            )

    def inputs(self, batch: int) -> torch.Tensor:
        """Return a batch of noise, (batch, *shape)."""
        noise = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.device, getattr(torch, self.dtype))
        return noise.to(memory_format=torch.channels_last) if self.channels_last else noise

    def placed(self, model: nn.Module) -> nn.Module:
        """Return a copy of a network, in eval mode, as the setting wants it."""
        made = copy.deepcopy(model).to(self.device, getattr(torch, self.dtype))
        if self.channels_last:
            made = made.to(memory_format=torch.channels_last)
        set_mode(made, training=False)
        return made


def forward_pass(model: nn.Module, backend: Backend, setting: Setting, inputs: torch.Tensor) -> Pass:
    """Make a network ready to run on a batch; it has run once.

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
        raise ConfigError(f"--backend compiled: torch.compile fails here: {first_line(error)}.") from error
    return lambda: compiled(inputs)


def _once(network: nn.Module, inputs: torch.Tensor) -> Pass:
    try:
        with torch.inference_mode():
            network(inputs)
    except Exception as error:
        raise ForwardError(
            f"the forward pass fails on an input of shape {tuple(inputs.shape)} in {inputs.dtype}: "
            f"{first_line(error)}. Is --input the shape of one input?"
        ) from error
    return lambda: network(inputs)
