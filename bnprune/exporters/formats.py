"""The table of export formats.

To add a format, write a function from `ExportRequest` to `ExportedFiles` and add an entry here. The names and sentences
that users read stand in the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bnprune.exporters.onnx import export_onnx
from bnprune.exporters.pt2 import export_pt2
from bnprune.exporters.request import ExportedFiles, ExportRequest
from bnprune.exporters.state_dict import export_state_dict


@dataclass(frozen=True)
class ExportFormat:
    """How networks are written in one format."""

    suffixes: tuple[str, ...]
    """Suffixes of the main file, the default one first."""
    export: Callable[[ExportRequest], ExportedFiles]
    packages: tuple[str, ...] = ()
    """Packages that have to be installed."""
    extra: str = ""
    """The extra of bnprune that installs them."""
    optional_files: tuple[str, ...] = ()
    """Suffixes of files beside the main one that are left out if they compute something else than the network."""
    has_batch_size: bool = True
    """True if a file is made for one batch size, or for any; False if it holds weights alone."""


FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat((".onnx",), export_onnx, ("onnx", "onnxruntime", "onnxscript"), extra="onnx"),
    "pt2": ExportFormat((".pt2",), export_pt2),
    "state-dict": ExportFormat(
        (".safetensors", ".pt", ".pth"), export_state_dict, optional_files=(".py",), has_batch_size=False
    ),
}


def format_of(suffix: str) -> str | None:
    """Return the name of the format whose files have a suffix; None if there is none."""
    return next((name for name, format in FORMATS.items() if suffix in format.suffixes), None)
