"""Peak memory of a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bnprune.channels.forward_pass import forward, on_meta_or_cpu
from bnprune.channels.operator_mode import OperatorMode
from bnprune.channels.pytrees import as_inputs, tensors
from bnprune.channels.torch_internals import OpOverload


class _MemoryCounter(OperatorMode):
    """Adds up the bytes of all storages that were allocated in this mode and not yet freed."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now: int = 0
        self.peak: int = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and count the storages of its outputs."""
        output = super().run_operator(func, args, kwargs)
        for tensor in tensors(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return output

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_memory(model: nn.Module, inputs: torch.Tensor) -> int:
    """Return the most bytes in use at once in an eager forward pass: weights, input and activations.

    Workspaces of kernels are not counted. The network runs on the meta device, without computing anything, or on the
    CPU if its control flow depends on values.
    """

    def run(device: str) -> int:
        counter = _MemoryCounter([inputs, *model.parameters(), *model.buffers()])
        with counter:
            forward(model, as_inputs(inputs), device=device)
        return counter.peak

    return on_meta_or_cpu(run)
