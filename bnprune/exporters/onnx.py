"""The format ONNX: write a model, check it with `onnx.checker`, run it in ONNX Runtime. Needs the extra `onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from bnprune.errors import TraceError, VerificationError, first_line
from bnprune.exporters.parity import Runner, dtype_of
from bnprune.exporters.pt2 import quiet, record
from bnprune.exporters.request import ExportedFiles, ExportRequest

_LIMIT = 2**31
"""Largest protobuf message, in bytes."""
_OTHER_FORMAT = {"format": "pt2"}


def export_onnx(request: ExportRequest) -> ExportedFiles:
    """Write an ONNX model.

    Raises:
        ForwardError: The forward pass fails.
        TraceError: The network cannot be traced, or not be written as ONNX.
        VerificationError: `onnx.checker` reports a fault in the model.
    """
    if dtype_of(request.model) == torch.bfloat16:
        message = "ONNX Runtime gets its inputs through NumPy, which has no bfloat16. Use another format."
        raise TraceError(message, remedy=_OTHER_FORMAT)
    content = to_onnx(record(request.model, request.shape, request.batch), request.metadata)
    return ExportedFiles({request.suffix: content}, lambda: onnx_runner(content))


def to_onnx(program: ExportedProgram, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the program as an ONNX model, with entries for its metadata.

    The input is named "input", a single output "output", several "output0" ...

    Raises:
        TraceError: An operator has no ONNX form, or the network is too large for one file.
        VerificationError: `onnx.checker` reports a fault in the model.
    """
    import onnx

    if sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values()) >= _LIMIT:
        raise TraceError("the weights do not fit into one ONNX file (2 GiB). Use another format.", remedy=_OTHER_FORMAT)
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
        message = f"the network has no ONNX form: {first_line(error)}. Use another format."
        raise TraceError(message, remedy=_OTHER_FORMAT) from error
    assert made is not None
    model = made.model_proto
    _name_batch(model)
    if metadata:
        onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **metadata})
    content: bytes = model.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:
        raise VerificationError(f"onnx.checker refuses the model: {first_line(error)}. Nothing was written.") from error
    return content


def _name_batch(model: Any) -> None:
    """Name the open dimension "batch", instead of a symbol such as s77."""
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
