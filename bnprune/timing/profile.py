"""Measuring a latency profile: every layer of a network on its own, at some of its widths."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bnprune.channels.forward_pass import copy_on
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.modules import modules_by_name, temporary_mode
from bnprune.channels.op_context import Work
from bnprune.channels.operator_mode import OperatorMode
from bnprune.channels.pytrees import as_inputs
from bnprune.channels.torch_internals import OpOverload
from bnprune.channels.trace_network import trace
from bnprune.channels.union_find import Ids
from bnprune.errors import PruningError
from bnprune.pruning.latency import in_turn, thread_clock
from bnprune.pruning.latency_model import rest_of
from bnprune.pruning.latency_profile import LatencyProfile, LatencyTable, ProfiledLayer, Steps
from bnprune.pruning.plan import identity
from bnprune.timing.backends import Backend, Setting, forward_pass
from bnprune.timing.single_layer import LayerCall

_SHARES = (0.125, 0.375, 0.6875, 1.0)
"""Widths that are measured, as shares of a layer's width, rounded to multiples of `_ROUND`."""
_ROUND = 8
_ROUNDS: dict[str, int] = {"eager": 3, "onnxruntime": 2}
"""Rounds of measurements; in each, all widths of a layer are measured in turn. The shortest time counts, because other
programs only add to it."""
_LONGEST_STEP = 32
_STEP_LAYERS = 3
"""Number of layers of each geometry, those that take longest, in which the steps of latency are looked for."""
_STEP_EVIDENCE = 0.75
"""Share of the way between two multiples that latency has gone in the middle, from which on there is a step."""


def profile_network(
    model: nn.Module,
    setting: Setting,
    batch: int,
    backend: Backend,
    machine: dict[str, str],
    versions: dict[str, str],
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> LatencyProfile:
    """Measure the latency of every layer of a network over its widths.

    Only convolutions and linear layers are measured, at four widths per side that can shrink. With one thread on the
    CPU, the time of the thread counts, so that other programs on the machine disturb less.

    Args:
        model: The network; left untouched.
        setting: Shape of the inputs; float32 on the CPU.
        batch: Batch size.
        backend: "eager" or "onnxruntime".
        machine: Names of the processor and the platform.
        versions: Versions of the packages.
        progress: Called with the number of tables measured, and of all.

    Raises:
        PruningError: The network has no layer that can be measured.
        ForwardError: Its forward pass fails.
        TraceError: It cannot be traced or exported.
    """
    example = setting.inputs(1)
    graph = trace(model, example)
    named = _layer_calls(model, graph, setting.inputs(batch))
    calls = list(dict.fromkeys(call for _, call in named))
    if not calls:
        raise PruningError("the network has no convolution or linear layer that can be measured on its own.")
    tables = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for call in calls:
            tables.append(_table(call, backend))
            progress(len(tables), len(calls))
        tables = _with_steps(calls, tables, backend)
    return LatencyProfile(
        model=type(model).__name__,
        digest=identity(graph.shapes),
        shape=setting.shape,
        batch=batch,
        backend=backend,
        threads=torch.get_num_threads(),
        machine=machine,
        versions=versions,
        total_ms=network_ms(model, setting, batch, backend, own_time=True),
        layers=tuple(ProfiledLayer(name, calls.index(call)) for name, call in named),
        tables=tuple(tables),
        rest=_rest(model, graph, setting.inputs(batch)) if backend == "eager" else (),
    )


def network_ms(
    model: nn.Module, setting: Setting, batch: int, backend: Backend, *, own_time: bool = False, runs: int | None = None
) -> float:
    """Return the milliseconds of a forward pass: the lowest of three medians, or of all if the thread's time counts.

    Args:
        model: The network; left untouched.
        setting: Shape of the inputs; float32 on the CPU.
        batch: Batch size.
        backend: The backend that runs it.
        own_time: With one thread, count the time of the thread, not that of the clock.
        runs: Passes per median; None for half a second, but at least 5.
    """
    run = forward_pass(model, backend, setting, setting.inputs(batch))
    clock = thread_clock(torch.get_num_threads()) if own_time else None
    with torch.inference_mode():
        (once,) = in_turn([run], 2, 1, clock=clock)
        count = runs or int(min(max(0.5 / max(min(once), 1e-4), 5), 100))
        middle = min if own_time else statistics.median
        return 1e3 * min(middle(in_turn([run], count, clock=clock)[0]) for _ in range(3))


# -- the layer calls of a network --------------------------------------------------------------------------------------


def _layer_calls(model: nn.Module, graph: ChannelGraph, inputs: torch.Tensor) -> list[tuple[str, LayerCall]]:
    """Return name and description of every call of a layer that the trace has counted too."""
    shapes, modules = _input_shapes(model, inputs), modules_by_name(model)
    by_groups = {count.module for count in graph.counts if count.attribute == "groups"}
    found = []
    for work in graph.traces["eval"].work:
        if not work.layer or not shapes[work.site]:
            continue
        shape = shapes[work.site].pop(0)
        vary = _varies(graph, work.inputs), _varies(graph, work.outputs)
        call = LayerCall.of(modules[work.site], shape, whole_groups=work.site in by_groups, vary=vary)
        if call is not None and _fits(call, work):
            found.append((work.site, call))
    return found


def _input_shapes(model: nn.Module, inputs: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the inputs of every layer, in the order of the calls."""
    copied, shapes = copy_on(model, "cpu"), defaultdict(list)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: shapes[name].append(tuple(args[0].shape)) if args else None

    for name, module in modules_by_name(copied).items():
        if hasattr(module, "weight"):
            module.register_forward_pre_hook(hook(name))
    args, kwargs = as_inputs(inputs)
    with torch.inference_mode(), temporary_mode(copied, training=False):
        copied(*args, **kwargs)
    return shapes


def _varies(graph: ChannelGraph, axis: Ids | int) -> bool:
    return not isinstance(axis, int) and bool(graph.free[graph.units(axis)].any())


def _fits(call: LayerCall, work: Work) -> bool:
    """True if the widths of a module are those of its weight; a module that runs others is not measured."""
    sizes = [axis if isinstance(axis, int) else len(axis) for axis in (work.inputs, work.outputs)]
    return sizes == [call.inputs, call.outputs]


# -- the rest ----------------------------------------------------------------------------------------------------------

_REST_ROUNDS = 5


class _OperatorTimes(OperatorMode):
    """Measures every operator of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.ms: list[tuple[str, float]] = []
        self._clock = thread_clock(torch.get_num_threads())

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and record its name and its time."""
        started = self._clock()
        output = super().run_operator(func, args, kwargs)
        self.ms.append((func.name(), 1e3 * (self._clock() - started)))
        return output


def _rest(model: nn.Module, graph: ChannelGraph, inputs: torch.Tensor) -> tuple[float, ...]:
    """Return the milliseconds of the operators outside of the layers; none if other operators run than in the trace."""
    copied, rounds = copy_on(model, "cpu"), []
    args, kwargs = as_inputs(inputs)
    with torch.no_grad(), temporary_mode(copied, training=False):
        for _ in range(_REST_ROUNDS):
            times = _OperatorTimes()
            with times:
                copied(*args, **kwargs)
            rounds.append(times.ms)
    records = graph.traces["eval"].records
    if any([name for name, _ in ms] != [record.op for record in records] for ms in rounds):
        return ()
    shortest = {id(record): min(ms[index][1] for ms in rounds) for index, record in enumerate(records)}
    return tuple(shortest[id(record)] for record in rest_of(graph))


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(call: LayerCall, backend: Backend) -> LatencyTable:
    inputs = _widths(call.inputs, 1, varies=call.inputs_vary and not call.whole_groups)
    per_group = call.outputs // call.groups
    outputs = _widths(call.outputs, per_group if call.whole_groups else call.groups, varies=call.outputs_vary)
    ms = _measured(call, list(itertools.product(inputs, outputs)), backend)
    rows = [tuple(ms[start : start + len(outputs)]) for start in range(0, len(ms), len(outputs))]
    return LatencyTable(inputs, outputs, tuple(rows))


def _widths(width: int, unit: int, *, varies: bool) -> tuple[int, ...]:
    """Return the widths to measure, ascending: multiples of `unit`, and of 8 if there are enough channels."""
    if not varies:
        return (width,)
    each = max(unit, _ROUND // unit * unit) if width >= _ROUND else unit
    some = {max(round(share * width / each), 1) * each for share in _SHARES[:-1]}
    return tuple(sorted({min(size, width) for size in some} | {width}))


def _measured(call: LayerCall, widths: Sequence[tuple[int, int]], backend: Backend) -> list[float]:
    """Return the milliseconds of a layer at each pair of widths: the shortest run of several rounds."""
    timers = [call.timer(inputs, outputs, backend) for inputs, outputs in widths]
    rounds = [[timer() for timer in timers] for _ in range(_ROUNDS[backend])]
    return [min(times) for times in zip(*rounds, strict=True)]


# -- steps -------------------------------------------------------------------------------------------------------------


def _with_steps(calls: Sequence[LayerCall], tables: Sequence[LatencyTable], backend: Backend) -> list[LatencyTable]:
    """Find the steps of latency, for each geometry of layers: other kernels have other steps."""
    slowest = sorted(zip(calls, tables, strict=True), key=lambda pair: -pair[1].ms[-1][-1])
    alike: dict[Any, list[LayerCall]] = defaultdict(list)
    for call, _ in slowest:
        alike[call.kind, call.geometry].append(call)
    steps = {key: Steps(*(_step(group, axis, backend) for axis in (0, 1))) for key, group in alike.items()}
    return [replace(entry, steps=steps[call.kind, call.geometry]) for call, entry in zip(calls, tables, strict=True)]


def _step(calls: Sequence[LayerCall], axis: int, backend: Backend) -> int:
    """Return the multiple of one side's width at which latency changes.

    Between two multiples of m, the latency in the middle is halfway if a step is shorter than m. If it is m or longer,
    the latency in the middle is already that of the upper multiple (or longer: some kernels are slow at odd widths)::

        steps of 8:    widths 64, 68, 72: 1 ms, 2 ms, 2 ms     middle of m = 8 at 100% of the way
                       widths 64, 72, 80: 1 ms, 2 ms, 3 ms     middle of m = 16 at 50% of the way

    The multiple is the largest before the first at which this is not so.
    """
    calls = [call for call in calls if _has_room(call, axis)][:_STEP_LAYERS]
    halves = [1 << exponent for exponent in range(_LONGEST_STEP.bit_length() - 1)]
    ways: dict[int, list[float]] = {2 * half: [] for half in halves}
    for call in calls:
        start = (call.inputs, call.outputs)[axis] // 2 // _LONGEST_STEP * _LONGEST_STEP
        added = [0, *halves, _LONGEST_STEP]
        pairs = [(start + more, call.outputs) if axis == 0 else (call.inputs, start + more) for more in added]
        ms = dict(zip(added, _measured(call, pairs, backend), strict=True))
        for half in halves:
            rise = ms[2 * half] - ms[0]
            ways[2 * half].append((ms[half] - ms[0]) / rise if rise > 0 else 1.0)
    medians = [(multiple, statistics.median(way)) for multiple, way in ways.items() if way]
    found = [multiple for multiple, _ in itertools.takewhile(lambda pair: pair[1] >= _STEP_EVIDENCE, medians)]
    return max(found, default=1)


def _has_room(call: LayerCall, axis: int) -> bool:
    """True if one side of a plain layer can take all widths that show a step."""
    varies = (call.inputs_vary, call.outputs_vary)[axis]
    return varies and call.groups == 1 and (call.inputs, call.outputs)[axis] >= 2 * _LONGEST_STEP
