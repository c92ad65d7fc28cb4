"""Profile: measure the latencies of a network's layers over their widths, and write them to a file; read it again."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.channels.pytrees import as_inputs, tensors
from bnprune.config.bounded_reading import DATA_BYTES, read_text, require_batch
from bnprune.errors import CheckpointError, ConfigError, Problems
from bnprune.notes import Note
from bnprune.pruning.latency_profile import LatencyProfile
from bnprune.pruning.latency_search import LatencyKnowledge
from bnprune.pruning.plan import identity
from bnprune.pruning.surgery import named_tensors
from bnprune.runs.directory import environment, processor
from bnprune.runs.display import NO_DISPLAY, Display
from bnprune.runs.files import write_text
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.outputs import require_output
from bnprune.timing.backends import Backend, Setting, parse_backends
from bnprune.timing.measure import threads as limited_threads
from bnprune.timing.profile import network_ms, profile_network
from bnprune.workflows.results import ProfiledLatency, ProfileResult

_BACKENDS: tuple[Backend, ...] = ("eager", "onnxruntime")
_SHOWN_EVERY = 10
"""Layers between two lines of progress."""


def profile(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_shape: Sequence[int] | None = None,
    trust: bool = False,
    backend: str = "eager",
    batch: int = 1,
    threads: int | None = None,
    out: str | Path = "profile.json",
    force: bool = False,
    display: Display = NO_DISPLAY,
) -> ProfileResult:
    """Measure the latency of every layer over its widths on the CPU of this machine, and write a latency profile.

    `prune` reads it, for a target in milliseconds.

    Args:
        source: A run directory or a checkpoint.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        input_shape: Shape of one input, without the batch.
        trust: Run the code and use the paths that the files name.
        backend: "eager" or "onnxruntime".
        batch: Batch size.
        threads: CPU threads; default: as they are.
        out: The file to write.
        force: Overwrite an existing file.
        display: Where to show progress.

    Raises:
        ConfigError: An argument is wrong.
        PruningError: The network has no layer that can be measured.
        ForwardError: The forward pass fails.
        DataError: A file cannot be read or written.
    """
    target = Path(out)
    sources = [None if path is None else Path(path) for path in (source, weights)]
    problems = Problems()
    with problems.noted():
        require_output(target, force=force, sources=sources)
    with problems.noted():
        name = _backend(backend)
        network = open_source(
            source,
            model=model,
            arguments=model_arguments,
            weights=weights,
            pretrained=pretrained and not problems,  # no download if something is wrong already
            shape=input_shape,
            needs_shape=True,
            trust=trust,
        )
        setting = Setting(tuple(network.inputs.shape[1:]))
        setting.check(name)
        require_batch(batch, setting.shape)
    problems.raise_all()
    started = time.perf_counter()
    with limited_threads(threads):
        made = profile_network(
            network.model, setting, batch, name, _machine(), _versions(name), lambda *done: _show(display, *done)
        )
    write_text(target, made.to_json() + "\n")
    return _result(network, made, time.perf_counter() - started, target)


def _backend(name: str) -> Backend:
    (backend,) = parse_backends([name]) if "," not in name else ("compiled",)
    if backend not in _BACKENDS:
        raise ConfigError(f"a profile is made for one of {' and '.join(_BACKENDS)} (got '{name}').", argument="backend")
    return backend


def _machine() -> dict[str, str]:
    return {"processor": processor(), "platform": platform.platform()}


def _versions(backend: Backend) -> dict[str, str]:
    names = ("bnprune", "torch", *(["onnxruntime"] if backend == "onnxruntime" else []))
    known = environment()["versions"]
    return {name: known[name] for name in names if name in known}


def _show(display: Display, done: int, count: int) -> None:
    if done == count or done % _SHOWN_EVERY == 0:
        display.note(f"measured {done} of {count} layers of different geometry")


def _result(network: NetworkSource, made: LatencyProfile, seconds: float, out: Path) -> ProfileResult:
    tables = [made.tables[layer.table] for layer in made.layers]
    layers = [
        ProfiledLatency(
            name=layer.name,
            inputs=table.inputs[-1],
            outputs=table.outputs[-1],
            ms=round(table.ms[-1][-1], 5),
            input_step=table.steps.inputs,
            output_step=table.steps.outputs,
        )
        for layer, table in zip(made.layers, tables, strict=True)
    ]
    return ProfileResult(
        model=network.header.spec.to_dict(),
        input=list(made.shape),
        backend=made.backend,
        batch=made.batch,
        threads=made.threads,
        processor=made.machine["processor"],
        total_ms=round(made.total_ms, 4),
        layers_ms=round(sum(table.ms[-1][-1] for table in tables), 4),
        layers=layers,
        seconds=round(seconds, 2),
        out=str(out),
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def read_profile(path: Path) -> LatencyProfile:
    """Read a profile.

    Raises:
        CheckpointError: The file cannot be read, or is no profile.
    """
    try:
        return LatencyProfile.from_json(read_text(path, DATA_BYTES))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.", argument="profile") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{path}' is not a text file.", argument="profile") from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}", argument="profile") from error


def fitting_profile(
    made: LatencyProfile, label: str, model: nn.Module, example_inputs: Any
) -> tuple[LatencyKnowledge, tuple[Note, ...]]:
    """Check that a profile fits a network and this process.

    On the machine of the profile, networks are measured as it says. On another one, latency is only estimated.

    Args:
        made: The profile.
        label: Its name in messages.
        model: The network.
        example_inputs: As for `bnprune.prune`.

    Returns:
        The profile with the way to measure networks, and warnings.

    Raises:
        CheckpointError: It was made for another network or input size.
        ConfigError: It was made with another number of threads, or its backend is not installed.
    """
    setting = _fitting_setting(label, made, model, example_inputs)
    backend = _backend(made.backend)
    if made.machine.get("processor") != processor():
        return LatencyKnowledge(made, None), ()
    if made.threads != torch.get_num_threads():
        raise ConfigError(
            f"{label} was measured with {made.threads} threads, and this process has {torch.get_num_threads()}. Make "
            f"a new profile (bnprune profile), or set OMP_NUM_THREADS={made.threads}.",
            argument="profile",
        )
    setting.check(backend)
    now = _versions(backend)
    changed = [
        f"{name} {made.versions.get(name)}, now {now[name]}" for name in now if made.versions.get(name) != now[name]
    ]
    text = f"{label} was measured with {' and '.join(changed)}: make a new profile if latencies are missed"
    notes = (Note("profile.versions", "warning", text),) if changed else ()
    return LatencyKnowledge(made, lambda slim: network_ms(slim, setting, made.batch, backend)), notes


def _fitting_setting(label: str, made: LatencyProfile, model: nn.Module, example_inputs: Any) -> Setting:
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    again = "Make a profile of this network: bnprune profile."
    if made.digest != identity(shapes):
        message = f"{label} is the latency profile of another network ({made.model}). {again}"
        raise CheckpointError(message, argument="profile")
    given = [tuple(tensor.shape[1:]) for tensor in tensors(as_inputs(example_inputs))]
    if given != [made.shape]:
        sizes = [",".join(map(str, size)) for size in (made.shape, *given)]
        message = (
            f"{label} was measured for inputs of shape {sizes[0]}, and these are {' and '.join(sizes[1:])}. {again}"
        )
        raise CheckpointError(message, argument="profile")
    return Setting(made.shape)
