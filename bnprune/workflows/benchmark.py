"""Benchmark: latency, throughput, memory and size of one network, or of two side by side."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.config.bounded_reading import require_batch
from bnprune.errors import ConfigError, about
from bnprune.models.zoo import build
from bnprune.pruning.cost import Cost, cost
from bnprune.runs.checkpoint import read_header
from bnprune.runs.directory import RunDirectory, environment
from bnprune.runs.display import NO_DISPLAY, Display
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.preflight import choose_device
from bnprune.timing.backends import Dtype, Setting, forward_pass, parse_backends
from bnprune.timing.measure import Timing, measure
from bnprune.timing.measure import threads as limited_threads
from bnprune.timing.memory import peak_memory
from bnprune.workflows.results import (
    BenchmarkNetwork,
    BenchmarkResult,
    BenchmarkTiming,
    Machine,
    NetworkTiming,
    TimeRatio,
)


def benchmark(
    source: str | Path | None = None,
    other: str | Path | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_shape: Sequence[int] | None = None,
    trust: bool = False,
    dense: bool = False,
    backends: Sequence[str] = ("eager",),
    batch: int = 32,
    threads: int | None = None,
    dtype: Dtype = "float32",
    channels_last: bool = False,
    device: str = "auto",
    rounds: int | None = None,
    display: Display = NO_DISPLAY,
) -> BenchmarkResult:
    """Measure latency, throughput, memory and size, for batches of one and of `batch` inputs.

    Two networks run in turn, pass by pass, so that other work of the machine slows both; their ratio is the median over
    such pairs.

    Args:
        source: A run directory or a checkpoint.
        other: A second one, to compare with the first.
        model: A name or `package.module:factory`, in place of `source` or to rebuild checkpoints.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        input_shape: Shape of one input, without the batch.
        trust: Run the code and use the paths that the files name.
        dense: Compare with the dense network that `source` was pruned from.
        backends: "eager", "compiled" or "onnxruntime".
        batch: Batch size, besides 1.
        threads: CPU threads; default: as they are.
        dtype: Number format.
        channels_last: Memory layout (N, H, W, C).
        device: "auto", "cpu", "cuda" or "mps".
        rounds: Passes per network and setting; default: as many as fit into fifteen seconds.
        display: Where to show progress.

    Returns:
        The machine, the sizes, and the times in milliseconds; `to_dict()` is what `benchmark --json` prints.

    Raises:
        ConfigError: An argument is wrong, there is nothing to compare, or the inputs have different shapes.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint.
        ForwardError: A network does not run.

    Example::

        result = bnprune.benchmark("runs/digits", dense=True, batch=8, rounds=5, device="cpu")
        for timing in result.timings:
            print(timing.batch, [network.median_ms for network in timing.networks])
    """
    names = parse_backends(backends)
    given = _NetworkArguments(model, model_arguments, weights, pretrained, input_shape, trust)
    networks = _open_networks(source, other, given, dense=dense)
    setting = Setting(networks[0].shape, dtype, channels_last, choose_device(device))
    batches = tuple(dict.fromkeys((1, batch)))
    for backend in names:
        setting.check(backend)
    for size in batches:
        require_batch(size, setting.shape)
    sizes = [_network(network, setting, batches) for network in networks]  # first: fails if a network does not run
    timings = []
    with limited_threads(threads) as used:
        machine = _machine(setting, used)
        for backend, size in itertools.product(names, batches):
            display.note(f"{backend}, batch {size} ...")
            timing = measure([network.model for network in networks], backend, setting, size, rounds)
            timings.append(_timing(timing))
    return BenchmarkResult(machine=machine, input=list(setting.shape), networks=sizes, timings=timings)


@dataclass(frozen=True)
class _NetworkArguments:
    """The arguments that describe a network, besides its file."""

    model: str | None
    arguments: Mapping[str, Any] | None
    weights: str | Path | None
    pretrained: bool
    shape: Sequence[int] | None
    trust: bool

    def open(self, source: str | Path | None) -> NetworkSource:
        """Open a single network."""
        return open_source(
            source,
            model=self.model,
            arguments=self.arguments,
            weights=self.weights,
            pretrained=self.pretrained,
            shape=self.shape,
            needs_shape=True,
            trust=self.trust,
        )

    def rebuild(self, path: Path) -> NetworkSource:
        """Open one of two checkpoints; `model` is used only for those of the user's own networks."""
        if self.model is not None and not read_header(_file(path)).spec.own:
            return open_source(path, shape=self.shape, trust=self.trust)
        return self.open(path)


@dataclass(frozen=True)
class _Network:
    """A network to measure."""

    label: str
    model: nn.Module
    shape: tuple[int, ...]
    file_bytes: int
    """Size of its checkpoint, or of its weights if there is none."""


def _open_networks(
    source: str | Path | None, other: str | Path | None, given: _NetworkArguments, *, dense: bool
) -> list[_Network]:
    """Open the networks; with `dense`, the first is the dense network of `source`.

    Raises:
        ConfigError: There is nothing to compare, or the inputs have different shapes.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint.
    """
    if dense and other is not None:
        raise ConfigError(f"it is the second network already; leave '{other}' out.", argument="dense")
    if other is None:
        opened = given.open(source)
        networks = [_measured(opened, None if source is None else Path(source))]
        if dense:
            networks.insert(0, _dense(opened))
    else:
        if given.weights is not None or given.pretrained:
            message = "a checkpoint has its own weights; only a network given by its name takes others."
            raise ConfigError(message, argument="pretrained" if given.pretrained else "weights")
        paths = [Path(path) for path in (source, other) if path is not None]
        networks = [_measured(given.rebuild(path), path) for path in paths]
    if len({network.shape for network in networks}) > 1:
        shapes = " and ".join(",".join(map(str, network.shape)) for network in networks)
        message = f"the networks take inputs of different shapes, {shapes}. Give one shape."
        raise ConfigError(message, remedy={"input_shape": "C,H,W"})
    return networks


def _file(path: Path) -> Path:
    return RunDirectory(path).network() if path.is_dir() else path


def _measured(source: NetworkSource, path: Path | None) -> _Network:
    size = _file(path).stat().st_size if path is not None else _weight_bytes(source.model)
    return _Network(source.label, source.model, tuple(source.inputs.shape[1:]), size)


def _dense(source: NetworkSource) -> _Network:
    spec = source.header.spec
    if not source.header.plans:
        raise ConfigError(f"{source.label} is not a pruned network.", argument="dense")
    with about("dense"):
        model = build(spec, where="")
    return _Network(f"dense {spec.label}", model, tuple(source.inputs.shape[1:]), _weight_bytes(model))


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _cost(model: nn.Module, setting: Setting) -> Cost:
    inputs = setting.inputs(1)
    forward_pass(model, "eager", setting, inputs)  # raises a clear error if the network does not run
    return cost(setting.placed(model), inputs)


def _machine(setting: Setting, used: int) -> Machine:
    known = environment()
    cuda = setting.device.type == "cuda"
    return Machine(
        processor=known["processor"],
        cores=os.cpu_count(),
        threads=used,
        device=str(setting.device),
        accelerator=torch.cuda.get_device_name(setting.device) if cuda else None,
        platform=platform.platform(),
        python=known["python"],
        versions={name: known["versions"].get(name) for name in ("bnprune", "torch", "onnxruntime")},
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        dtype=setting.dtype,
        channels_last=setting.channels_last,
    )


def _network(network: _Network, setting: Setting, batches: Sequence[int]) -> BenchmarkNetwork:
    """Return the size of a network.

    Raises:
        ForwardError: The network does not run.
    """
    counted, placed = _cost(network.model, setting), setting.placed(network.model)
    return BenchmarkNetwork(
        name=network.label,
        params=counted.params,
        macs=counted.macs,
        channels=counted.channels,
        file_bytes=network.file_bytes,
        peak_memory_bytes={str(size): peak_memory(placed, setting.inputs(size)) for size in batches},
    )


def _timing(timing: Timing) -> BenchmarkTiming:
    return BenchmarkTiming(
        backend=timing.backend,
        batch=timing.batch,
        rounds=timing.rounds,
        networks=[
            NetworkTiming(
                median_ms=round(1e3 * spread.median, 4),
                p10_ms=round(1e3 * spread.p10, 4),
                p90_ms=round(1e3 * spread.p90, 4),
                throughput=round(timing.batch / spread.median, 2),
            )
            for spread in timing.seconds
        ],
        ratio=None if timing.ratio is None else TimeRatio(**asdict(timing.ratio)),
    )
