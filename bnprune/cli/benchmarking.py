"""What `benchmark` does and prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.cli.display import count, print_json, show_rows, stderr, stdout, tell
from bnprune.config.bounded_reading import require_batch
from bnprune.errors import ConfigError
from bnprune.models.zoo import build
from bnprune.pruning.cost import Cost, cost
from bnprune.runs.checkpoint import read_header
from bnprune.runs.directory import RunDirectory, environment
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.timing.backends import Backend, Setting, forward_pass
from bnprune.timing.measure import Timing, measure, threads
from bnprune.timing.memory import peak_memory

BENCHMARK_SCHEMA = "bnprune.benchmark/1"


@dataclass(frozen=True)
class Subject:
    """A network to measure."""

    label: str
    model: nn.Module
    shape: tuple[int, ...]
    file_bytes: int
    """Of its checkpoint; of its weights where there is none."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    backends: Sequence[Backend]
    batches: Sequence[int]
    threads: int | None
    rounds: int | None


def open_subjects(
    first: Path | None,
    second: Path | None,
    *,
    model: str | None,
    arguments: Sequence[str],
    weights: Path | None,
    shape: str | None,
    dense: bool,
    trust: bool,
) -> list[Subject]:
    """Open the networks the command line names; with `dense`, the first is the one the given one was cut from.

    Raises:
        ConfigError: There is nothing to compare, or the inputs are of different shapes.
        CheckpointError: A file is missing, damaged or foreign.
    """
    if dense and second is not None:
        raise ConfigError(f"--dense names the second network already; leave '{second}' out.")
    if second is None:
        source = open_source(first, model=model, arguments=arguments, weights=weights, shape=shape, trust=trust)
        subjects = [_subject(source, first)]
    else:
        if weights is not None:
            raise ConfigError("--weights goes with --model alone; checkpoints have their own weights.")
        paths = [path for path in (first, second) if path is not None]
        subjects = [_subject(_rebuilt(path, model, arguments, shape, trust=trust), path) for path in paths]
    if dense:
        subjects.insert(0, _dense(source))
    if len({subject.shape for subject in subjects}) > 1:
        told = " and ".join(",".join(map(str, subject.shape)) for subject in subjects)
        raise ConfigError(f"the networks take inputs of different shapes, {told}. Give one: --input C,H,W")
    return subjects


def _rebuilt(
    path: Path, model: str | None, arguments: Sequence[str], shape: str | None, *, trust: bool
) -> NetworkSource:
    """Open one of two checkpoints; --model is for those that do not know how they are built."""
    if model is not None and not read_header(_file(path)).spec.own:
        return open_source(path, shape=shape, trust=trust)
    return open_source(path, model=model, arguments=arguments, shape=shape, trust=trust)


def _file(path: Path) -> Path:
    return RunDirectory(path).network() if path.is_dir() else path


def _subject(source: NetworkSource, path: Path | None) -> Subject:
    size = _file(path).stat().st_size if path is not None else _weight_bytes(source.model)
    return Subject(source.label, source.model, tuple(source.inputs.shape[1:]), size)


def _dense(source: NetworkSource) -> Subject:
    spec = source.header.spec
    if not source.header.plans:
        raise ConfigError(f"--dense: {source.label} was not cut from anything.")
    model = build(spec, "--dense")
    return Subject(f"dense {spec.label}", model, tuple(source.inputs.shape[1:]), _weight_bytes(model))


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def run_benchmark(subjects: Sequence[Subject], setting: Setting, plan: Plan, *, as_json: bool) -> None:
    """Measure networks and show the figures."""
    for backend in plan.backends:
        setting.check(backend)
    for batch in plan.batches:
        require_batch("--batch", batch, setting.shape)
    models = [subject.model for subject in subjects]
    progress = stderr()
    costs = [_cost(model, setting) for model in models]  # before the long wait: what is wrong with a network shows here
    memory = [[peak_memory(setting.placed(model), setting.inputs(batch)) for batch in plan.batches] for model in models]
    timings = []
    with threads(plan.threads) as used:
        machine = _machine(setting, used)
        for backend in plan.backends:
            for batch in plan.batches:
                tell(progress, f"{backend}, batch {batch} ...")
                timings.append(measure(models, backend, setting, batch, plan.rounds))
    if as_json:
        print_json(_document(subjects, setting, plan, machine, costs, memory, timings))
        return
    _show(subjects, plan, machine, costs, memory, timings)


def _cost(model: nn.Module, setting: Setting) -> Cost:
    inputs = setting.inputs(1)
    forward_pass(model, "eager", setting, inputs)  # says clearly what it cannot do
    return cost(setting.placed(model), inputs)


def _machine(setting: Setting, used: int) -> dict[str, Any]:
    known = environment()
    accelerator = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else None
    return {
        "processor": known["processor"],
        "cores": os.cpu_count(),
        "threads": used,
        "device": str(setting.device),
        "accelerator": accelerator,
        "platform": platform.platform(),
        "python": known["python"],
        "versions": {name: known["versions"].get(name) for name in ("bnprune", "torch", "onnxruntime")},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "dtype": setting.dtype,
        "channels_last": setting.channels_last,
    }


def _document(
    subjects: Sequence[Subject],
    setting: Setting,
    plan: Plan,
    machine: dict[str, Any],
    costs: Sequence[Cost],
    memory: Sequence[Sequence[int]],
    timings: Sequence[Timing],
) -> dict[str, Any]:
    networks = [
        {
            "name": subject.label,
            "params": counted.params,
            "macs": counted.macs,
            "channels": counted.channels,
            "file_bytes": subject.file_bytes,
            "peak_memory_bytes": dict(zip(map(str, plan.batches), peaks, strict=True)),
        }
        for subject, counted, peaks in zip(subjects, costs, memory, strict=True)
    ]
    return {
        "schema": BENCHMARK_SCHEMA,
        "machine": machine,
        "input": list(setting.shape),
        "networks": networks,
        "timings": [_timing(timing) for timing in timings],
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "backend": timing.backend,
        "batch": timing.batch,
        "rounds": timing.rounds,
        "networks": [
            {
                **{f"{name}_ms": round(1e3 * value, 4) for name, value in asdict(spread).items()},
                "throughput": round(timing.batch / spread.median, 2),
            }
            for spread in timing.seconds
        ],
        "ratio": None if timing.ratio is None else asdict(timing.ratio),
    }


def _show(
    subjects: Sequence[Subject],
    plan: Plan,
    machine: dict[str, Any],
    costs: Sequence[Cost],
    memory: Sequence[Sequence[int]],
    timings: Sequence[Timing],
) -> None:
    console = stdout()
    layout = ", channels_last" if machine["channels_last"] else ""
    tell(
        console,
        f"{machine['accelerator'] or machine['processor']}, {machine['cores']} CPU cores, "
        f"{_threads(machine['threads'])}, torch {machine['versions']['torch']}, {machine['dtype']}{layout}",
    )
    if machine["load"] is not None and machine["load"] > 1.5 * machine["cores"]:
        console.print(f"note: the machine is busy (load {machine['load']}): times are long, ratios less so")
    names = ["A", "B"][: len(subjects)] if len(subjects) > 1 else [""]
    for name, subject in zip(names, subjects, strict=True):
        tell(console, f"{name}: {subject.label}" if name else subject.label)
    console.print()
    rows = [
        _compared("parameters", [counted.params for counted in costs], count),
        _compared("MACs", [counted.macs for counted in costs], count),
        _compared("file", [subject.file_bytes for subject in subjects], _megabytes),
        *(
            _compared(f"peak memory, batch {batch}", [peaks[index] for peaks in memory], _megabytes)
            for index, batch in enumerate(plan.batches)
        ),
    ]
    show_rows(["", *names, *(["B / A"] if len(subjects) > 1 else [])], rows)
    console.print()
    compared = ["B / A", "p10 to p90"] if len(subjects) > 1 else []
    show_rows(
        ["backend", "batch", "", "median", "p10", "p90", "inputs/s", *compared],
        [row for timing in timings for row in _rows(timing, names)],
    )
    console.print("times in ms" + ("; B / A is of passes that ran one after the other" if compared else ""))


def _compared(title: str, values: Sequence[int], written: Any) -> tuple[str, ...]:
    share = (f"{values[1] / max(values[0], 1):.1%}",) if len(values) > 1 else ()
    return (title, *map(written, values), *share)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _rows(timing: Timing, names: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for index, (name, spread) in enumerate(zip(names, timing.seconds, strict=True)):
        setting = ("", "") if index else (timing.backend, str(timing.batch))
        times = [f"{1e3 * value:.2f}" for value in (spread.median, spread.p10, spread.p90)]
        rows.append((*setting, name, *times, f"{timing.batch / spread.median:.1f}"))
    if timing.ratio is not None:
        ratio = timing.ratio
        told = f"{ratio.median:.3f}", f"{ratio.p10:.2f} to {ratio.p90:.2f}"
        rows = [(*rows[0], "", ""), (*rows[1], *told)]
    return rows


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"
