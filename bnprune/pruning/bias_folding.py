"""Bias folding: a bias right before a BatchNorm is redundant, because the BatchNorm subtracts the mean again.

With y = conv(x) + b, BatchNorm computes γ·(y - mean(y))/σ + β, and b is part of mean(y): of the batch in train mode, of
the running mean m in eval mode. Without b, and with m - b instead of m, the network computes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.forward_pass import copy_on, on_meta_or_cpu
from bnprune.channels.modules import module_stack, modules_by_name, temporary_mode
from bnprune.channels.operator_mode import OperatorMode
from bnprune.channels.ops import spec_of
from bnprune.channels.pytrees import Inputs, map_tensors, operands, tensors
from bnprune.channels.torch_internals import Convolution, OpOverload
from bnprune.config.bounded_reading import items, words
from bnprune.pruning.gates import gated_name


@dataclass(frozen=True, slots=True)
class Fold:
    """A bias that is removed, and the BatchNorm whose running mean becomes smaller by it."""

    bias: str
    """Name of the parameter."""
    into: str
    """Name of the BatchNorm."""


class _ReaderRecorder(OperatorMode):
    """Records which BatchNorm reads the output of a layer, and which outputs are read by anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = [""]
        self.pairs: list[tuple[str, str]] = []
        self.read_elsewhere: set[str] = set()
        self.layers: Counter[str] = Counter()
        """Number of calls of each layer."""
        self.norms: Counter[str] = Counter()
        """Number of BatchNorm calls in each module."""
        self._output_of: dict[int, tuple[torch.Tensor, str]] = {}

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and record which layers' outputs it reads."""
        output = super().run_operator(func, args, kwargs)
        kind = spec_of(func).kind
        for position, operand in enumerate(operands(args, kwargs)):
            _, layer = self._output_of.get(id(operand), (None, None))
            if layer is not None and kind == "batch_norm" and position == 0:
                self.pairs.append((layer, self.stack[-1]))
            elif layer is not None:
                self.read_elsewhere.add(layer)
        self.norms[self.stack[-1]] += kind == "batch_norm"
        if kind in ("convolution", "linear"):
            self.layers[self.stack[-1]] += 1
            self._output_of[id(output)] = output, self.stack[-1]  # kept alive, so that no other tensor gets its id
        return output

    def leave(self, output: Any) -> None:
        """Record which layers' outputs the network returns."""
        self.read_elsewhere |= {
            self._output_of[id(tensor)][1] for tensor in tensors(output) if id(tensor) in self._output_of
        }


def find_folds(model: nn.Module, inputs: Inputs) -> tuple[Fold, ...]:
    """Find the biases of layers whose output only one BatchNorm reads. Errors of the forward pass are raised."""
    modules = modules_by_name(model)
    owners = Counter(id(m.bias) for m in modules.values() if isinstance(getattr(m, "bias", None), torch.Tensor))
    folds = []
    for layer, norm in sole_norms(model, inputs).items():
        bias, mean = getattr(modules[layer], "bias", None), getattr(modules[norm], "running_mean", None)
        if isinstance(bias, nn.Parameter) and mean is not None and owners[id(bias)] == 1:
            folds.append(Fold(f"{layer}.bias", norm))
    return tuple(folds)


def sole_norms(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Return the only reader of each layer's output, if it is a BatchNorm, by layer name.

    Both run exactly once per forward pass, in eval and in train mode.
    """
    passes = [_recorded(model, inputs, training=False)]
    with suppress(Exception):  # BatchNorm over a single value, missing targets: the pass in eval mode decides alone
        passes.append(_recorded(model, inputs, training=True))
    read_elsewhere = {layer for recorder in passes for layer in recorder.read_elsewhere}
    pairs = [pair for pair in passes[0].pairs if all(pair in recorder.pairs for recorder in passes)]
    layers, norms = (Counter(pair[side] for pair in passes[0].pairs) for side in (0, 1))
    ran, modules = passes[0].norms, modules_by_name(model)
    return {
        layer: norm
        for layer, norm in pairs
        if isinstance(modules[layer], nn.Linear | Convolution)
        and layer not in read_elsewhere
        and layers[layer] == norms[norm] == ran[norm] == passes[0].layers[layer] == 1
    }


def _recorded(model: nn.Module, inputs: Inputs, *, training: bool) -> _ReaderRecorder:
    def run(device: str) -> _ReaderRecorder:
        recorder, copied = _ReaderRecorder(), copy_on(model, device)
        args, kwargs = map_tensors(lambda tensor: tensor.to(device, copy=True), inputs)
        with temporary_mode(copied, training=training) as modules, module_stack(modules) as recorder.stack, recorder:
            output = copied(*args, **kwargs)
        recorder.leave(output)
        return recorder

    return on_meta_or_cpu(run)


def fold(slim: nn.Module, folds: Iterable[Fold], gated: Collection[str], biases: dict[str, torch.Tensor]) -> None:
    """Remove biases from a network, in place; `biases` holds their values by name, none for a network on meta."""
    for entry in folds:
        layer, norm = slim.get_submodule(entry.bias.removesuffix(".bias")), gated_name(entry.into, gated)
        if entry.bias in biases:
            mean = slim.get_submodule(norm).running_mean
            assert isinstance(mean, torch.Tensor)
            with torch.no_grad():
                mean -= biases[entry.bias].to(mean.dtype)
        layer.register_parameter("bias", None)


def misfits(
    folds: Iterable[Fold], modules: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Yield a sentence for every fold from a file that does not fit the modules and tensors of the network."""
    for entry in folds:
        bias = tensors.get(entry.bias)
        mean = getattr(modules.get(entry.into), "running_mean", None)
        if not isinstance(bias, torch.Tensor) or not isinstance(mean, torch.Tensor) or bias.shape != mean.shape:
            yield f"'{entry.bias}' cannot be folded into '{entry.into}'"


def to_data(folds: Iterable[Fold]) -> list[dict[str, str]]:
    """Return folds as plain data."""
    return [asdict(entry) for entry in folds]


def from_data(entries: Any) -> tuple[Fold, ...]:
    """Read folds from plain data.

    Raises:
        ValueError: An entry is not a fold.
    """
    folds = tuple(Fold(words(entry["bias"]), words(entry["into"])) for entry in items(entries))
    if not all(entry.bias.endswith(".bias") for entry in folds) or len({f.bias for f in folds}) < len(folds):
        raise ValueError("'folds' must name biases, each once")
    return folds
