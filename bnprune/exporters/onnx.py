"""ONNX: writing, checking and running it. Needs the `onnx` extra."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.export import ExportedProgram

from bnprune.errors import ConfigError, TraceError, VerificationError, first_line
from bnprune.exporters.parity import Runner
from bnprune.exporters.pt2 import quiet

_MODULES = ("onnx", "onnxruntime", "onnxscript")
_LIMIT = 2**31
"""Bytes a protobuf message can hold."""


def require_onnx(where: str) -> None:
    """Refuse where the extra is missing.

    Args:
        where: What needs it, for the message.

    Raises:
        ConfigError: A package is not installed.
    """
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{where} needs {' and '.join(missing)}: pip install 'bnprune[onnx]'")


def to_onnx(program: ExportedProgram) -> bytes:
    """Return the program as an ONNX model; its input is called "input", an only output "output".

    Raises:
        TraceError: An operator has no ONNX form, or the network is too large for one file.
        VerificationError: `onnx.checker` finds fault with the model.
    """
    import onnx

    if sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values()) >= _LIMIT:
        raise TraceError("the weights do not fit into one ONNX file (2 GiB). Use --format pt2.")
    outputs = len(program.graph_signature.user_outputs)
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["input"],
                output_names=["output"] if outputs == 1 else [f"output{index}" for index in range(outputs)],
            )
    except Exception as error:
        raise TraceError(f"the network has no ONNX form: {first_line(error)}. Use --format pt2.") from error
    assert made is not None
    model = made.model_proto
    _name_batch(model)
    content: bytes = model.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:
        raise VerificationError(f"onnx.checker refuses the model: {first_line(error)}. Nothing was written.") from error
    return content


def _name_batch(model: Any) -> None:
    """Call the open dimension by its name, in place of a symbol such as s77."""
    symbols = {d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_param}
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for dimension in (d for info in infos for d in info.type.tensor_type.shape.dim):
        if dimension.dim_param in symbols:
            dimension.dim_param = "batch"


def onnx_runner(content: bytes) -> Runner:
    """Load an ONNX model into ONNX Runtime, on the CPU and as many threads as PyTorch has, and run it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: batch.numpy()})]

    return run
