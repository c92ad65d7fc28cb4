"""The result of `export`."""

from __future__ import annotations

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.tables import show_rows
from bnprune.config.tables import FORMATS
from bnprune.workflows.results import ExportResult, ParityOutcome


def show_export(result: ExportResult) -> None:
    """Print the comparison with PyTorch, and the files."""
    console = stdout()
    parities = {"random inputs": result.verification.random, "real images": result.verification.real}
    rows = [_row(name, parity) for name, parity in parities.items() if parity is not None]
    if rows:
        show_rows(["compared with PyTorch on", "inputs", "max abs", "max relative", "same argmax"], rows)
    else:
        console.print("not verified")
    if result.fold_bn is not None:
        folding = result.fold_bn
        console.print(f"folded {folding.folded} of {folding.batchnorms} BatchNorms, proven equal in float64")
    for note in result.notes:
        print_text(console, f"note: {note}")
    batch = "any batch size" if result.batch == "any" else f"batch {result.batch}"
    remark = f", {batch}" if FORMATS[result.format].has_batch_size else ""
    for file in result.files:
        print_text(console, f"wrote {file.path} ({file.bytes / 1e6:.2f} MB{remark})")


def _row(name: str, parity: ParityOutcome) -> tuple[str, ...]:
    agreement = "" if parity.argmax_agreement is None else f"{parity.argmax_agreement:.1%}"
    return name, str(parity.inputs), f"{parity.max_absolute_error:.1e}", f"{parity.max_relative_error:.1e}", agreement
