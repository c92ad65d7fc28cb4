"""The result of `benchmark`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.tables import show_rows
from bnprune.reporting.number_format import count
from bnprune.workflows.results import BenchmarkResult, BenchmarkTiming, Machine

_BUSY = 1.5
"""Load per core above which a note warns of long times."""


def show_benchmark(result: BenchmarkResult) -> None:
    """Print the machine, the sizes of the networks, and their times."""
    console = stdout()
    _show_machine(console, result.machine)
    names = ["A", "B"] if len(result.networks) > 1 else [""]
    for name, network in zip(names, result.networks, strict=True):
        print_text(console, f"{name}: {network.name}" if name else network.name)
    console.print()
    show_rows(["", *names, *(["B / A"] if len(names) > 1 else [])], _sizes(result))
    console.print()
    compared = ["B / A", "p10 to p90"] if len(names) > 1 else []
    show_rows(
        ["backend", "batch", "", "median", "p10", "p90", "inputs/s", *compared],
        [row for timing in result.timings for row in _times(timing, names)],
    )
    percentiles = "times in ms; p10 and p90: 10th and 90th percentile"
    console.print(percentiles + ("; B / A compares passes that ran one after the other" if compared else ""))


def _show_machine(console: Console, machine: Machine) -> None:
    layout = ", channels_last" if machine.channels_last else ""
    threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''}"
    print_text(
        console,
        f"{machine.accelerator or machine.processor}, {machine.cores} CPU cores, "
        f"{threads}, torch {machine.versions['torch']}, {machine.dtype}{layout}",
    )
    if machine.load is not None and machine.cores is not None and machine.load > _BUSY * machine.cores:
        console.print(f"note: the machine is busy (load {machine.load}): times are too long; ratios are more reliable")


def _sizes(result: BenchmarkResult) -> list[tuple[str, ...]]:
    networks = result.networks
    peaks = {
        batch: [network.peak_memory_bytes[batch] for network in networks] for batch in networks[0].peak_memory_bytes
    }
    return [
        _compared("parameters", [network.params for network in networks], count),
        _compared("MACs", [network.macs for network in networks], count),
        _compared("file", [network.file_bytes for network in networks], _megabytes),
        *(_compared(f"peak memory, batch {batch}", values, _megabytes) for batch, values in peaks.items()),
    ]


def _compared(title: str, values: Sequence[int], format_value: Callable[[int], str]) -> tuple[str, ...]:
    share = (f"{values[1] / max(values[0], 1):.1%}",) if len(values) > 1 else ()
    return (title, *map(format_value, values), *share)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _times(timing: BenchmarkTiming, names: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for index, (name, figures) in enumerate(zip(names, timing.networks, strict=True)):
        setting = ("", "") if index else (timing.backend, str(timing.batch))
        times = [f"{value:.2f}" for value in (figures.median_ms, figures.p10_ms, figures.p90_ms)]
        rows.append((*setting, name, *times, f"{figures.throughput:.1f}"))
    if timing.ratio is not None:
        ratio = timing.ratio
        rows = [(*rows[0], "", ""), (*rows[1], f"{ratio.median:.3f}", f"{ratio.p10:.2f} to {ratio.p90:.2f}")]
    return rows
