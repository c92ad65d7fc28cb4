"""The result of `run`, `train` and `finetune`."""

from __future__ import annotations

from collections.abc import Callable

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.output import output
from bnprune.cli.render.progress import RichDisplay
from bnprune.cli.render.tables import show_rows
from bnprune.config.metrics import metric_of
from bnprune.reporting.number_format import count
from bnprune.runs.display import Display
from bnprune.runs.stages import title_of
from bnprune.training.distributed import torchrun_env
from bnprune.workflows.results import RunResult, StageResult


def run_with_progress(work: Callable[[Display], RunResult], *, as_json: bool) -> None:
    """Show the progress of a run, and its result at the end; of several processes, the first one shows it."""
    with RichDisplay() as display:
        result = work(display)
    if torchrun_env.rank() == 0:
        output(result, show_run, as_json=as_json)


def show_run(result: RunResult) -> None:
    """Print the figures of every stage side by side, and the path of the run directory."""
    metric = metric_of(next((figures.metric for figures in result.stages.values()), "top1"))
    compared = next((figures.teacher for figures in result.stages.values() if figures.teacher is not None), None)
    judged = f"test {metric.label}" if compared is None else "agreement with teacher"
    columns = ["network", judged, "parameters", "MACs", "BN channels", "file", "latency"]
    before = None if compared is None else compared.agreement_before
    rows = [_row(stage, figures, before if stage == "prune" else None) for stage, figures in result.before.items()]
    show_rows(columns, [*rows, *(_row(stage, figures) for stage, figures in result.stages.items())])
    proofs = [figures.verification for figures in result.stages.values() if figures.verification is not None]
    errors = [
        (proof.max_relative_error, proof.dtype or "float64") for proof in proofs if proof.max_relative_error is not None
    ]
    console = stdout()
    if errors:
        error, dtype = max(errors)
        console.print(f"Verified: the slim network equals the masked original to {error:.1e} in {dtype}.")
    print_text(console, f"All files are in {result.path}")


def _row(stage: str, figures: StageResult, agreement: float | None = None) -> tuple[str, ...]:
    """Return the cells of a network, judged by its accuracy, or without labels by its agreement with the teacher."""
    value = figures.accuracy if figures.teacher is None else figures.teacher.agreement
    return (
        title_of(stage),
        metric_of(figures.metric).text(value if agreement is None else agreement),
        count(figures.params),
        count(figures.macs),
        str(figures.channels),
        f"{figures.file_bytes / 1e6:.2f} MB" if figures.file_bytes else "",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.2f} ms",
    )
