"""Layers on their own, at any width: what a latency profile measures."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from bnprune.pruning.latency import thread_clock
from bnprune.timing.backends import Backend

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
T = TypeVar("T")
Timer = Callable[[], float]
"""Runs a layer several times, and returns the milliseconds of the shortest run."""
_RUNS, _SECONDS = (3, 50), 0.01
"""Fewest and most runs of a timer; in between, as many as fit into `_SECONDS`. The first one warms up."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a convolution or a linear layer. Calls that are equal take equally long."""

    kind: type[nn.Module]
    """`nn.Conv2d`, `nn.Linear`, ..."""
    shape: tuple[int, ...]
    """Shape of its input, with the batch."""
    geometry: tuple[tuple[str, Any], ...]
    """Arguments of the convolution besides its widths: kernel size, stride, ..."""
    inputs: int
    """Input width; of a grouped convolution, that of one group."""
    outputs: int
    groups: int
    whole_groups: bool
    """True if groups go as a whole, so that their number shrinks with the output width."""
    inputs_vary: bool
    outputs_vary: bool

    @classmethod
    def of(
        cls, module: nn.Module, shape: tuple[int, ...], *, whole_groups: bool, vary: tuple[bool, bool]
    ) -> LayerCall | None:
        """Describe a call of a module; None if it is no convolution or linear layer."""
        kind = next((kind for kind in (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear) if isinstance(module, kind)), None)
        if isinstance(module, nn.Linear):
            bias = (("bias", module.bias is not None),)
            return cls(nn.Linear, shape, bias, module.in_features, module.out_features, 1, False, *vary)
        if kind is None:
            return None
        names = ("kernel_size", "stride", "padding", "dilation", *(["output_padding"] if kind in _TRANSPOSED else []))
        geometry = tuple((name, getattr(module, name)) for name in names)
        geometry += (("bias", module.bias is not None), ("padding_mode", module.padding_mode))
        groups: Any = module.groups
        inputs: Any = module.in_channels
        outputs: Any = module.out_channels
        return cls(kind, shape, geometry, inputs // groups, outputs, groups, whole_groups, *vary)

    def built(self, inputs: int, outputs: int) -> tuple[nn.Module, torch.Tensor]:
        """Return the layer with other widths, and an input for it."""
        if self.kind is nn.Linear:
            return nn.Linear(inputs, outputs, **dict(self.geometry)), torch.randn(*self.shape[:-1], inputs)
        groups = outputs * self.groups // self.outputs if self.whole_groups else self.groups
        layer = self.kind(inputs * groups, outputs, groups=groups, **dict(self.geometry))
        return layer, torch.randn(self.shape[0], inputs * groups, *self.shape[2:])

    def timer(self, inputs: int, outputs: int, backend: Backend) -> Timer:
        """Return a function that runs the layer with these widths once."""
        layer, x = self.built(inputs, outputs)
        return _onnx_timer(layer.eval(), x) if backend == "onnxruntime" else _eager_timer(layer.eval(), x)


def _eager_timer(layer: nn.Module, x: torch.Tensor) -> Timer:
    clock = thread_clock(torch.get_num_threads())

    def run() -> float:
        started = clock()
        layer(x)
        return clock() - started

    return lambda: 1e3 * min(_repeated(run)[1:])


def _repeated(run: Callable[[], T]) -> list[T]:
    """Return the results of several runs."""
    low, high = _RUNS
    results: list[T] = []
    started = time.perf_counter()
    while len(results) < low or (len(results) < high and time.perf_counter() - started < _SECONDS):
        results.append(run())
    return results


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


def _onnx_timer(layer: nn.Module, x: torch.Tensor) -> Timer:
    """Time the operator alone, by the profiler of ONNX Runtime.

    ONNX Runtime keeps activations of a network in blocks of channels. Around a single layer, it adds operators that
    reorder its input and output, which do not run in the network, and must not count.
    """
    content = _onnx_model(layer, x)
    inputs = {"x": x.numpy()}

    return lambda: min(_kernel_times(content, inputs)[1:])


def _kernel_times(content: bytes, inputs: dict[str, np.ndarray[Any, Any]]) -> list[float]:
    """Return the milliseconds of the layer in each run of one session."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        runs = len(_repeated(lambda: session.run(None, inputs)))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    times = [event["dur"] for event in kernels if not event["args"]["op_name"].startswith("Reorder")]
    each = len(times) // runs
    return [sum(times[run * each : (run + 1) * each]) / 1e3 for run in range(runs)]


def _onnx_model(layer: nn.Module, x: torch.Tensor) -> bytes:
    """Return an ONNX model of a single layer; `torch.onnx.export` would take a second for each."""
    from onnx import TensorProto, helper, numpy_helper

    weight: Any = layer.weight
    weights = [numpy_helper.from_array(weight.detach().numpy(), "w")]
    if layer.bias is not None:
        weights.append(numpy_helper.from_array(np.asarray(layer.bias.detach().numpy()), "b"))  # type: ignore[operator]
    names = ["x", *(tensor.name for tensor in weights)]
    if isinstance(layer, nn.Linear):
        nodes = _linear_nodes(helper, weights, numpy_helper, x.dim())
    else:
        kind = "ConvTranspose" if isinstance(layer, _TRANSPOSED) else "Conv"
        nodes = [helper.make_node(kind, names, ["y"], **_attributes(layer, x.dim() - 2))]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _linear_nodes(helper: Any, weights: list[Any], numpy_helper: Any, rank: int) -> list[Any]:
    names = [tensor.name for tensor in weights]
    if rank == 2:
        return [helper.make_node("Gemm", ["x", *names], ["y"], transB=1)]
    weights[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weights[0]).T), "w"))
    product = helper.make_node("MatMul", ["x", "w"], ["y" if len(names) == 1 else "xw"])
    return [product] if len(names) == 1 else [product, helper.make_node("Add", ["xw", "b"], ["y"])]


def _attributes(layer: Any, dims: int) -> dict[str, Any]:
    found = {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    if layer.padding == "same":
        return {**found, "auto_pad": "SAME_UPPER"}
    padding = [0] * dims if layer.padding == "valid" else list(layer.padding)
    return {**found, "pads": padding * 2}
