"""Prune: score, plan, cut and prove. Every caller composes these steps through the functions of this module."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import as_inputs
from bnprune.channels.trace_network import Coupling, Outputs
from bnprune.config.tables import LAYER_MEASUREMENTS, REPAIR
from bnprune.config.user_code import hinting_arguments
from bnprune.notes import Note
from bnprune.pruning.calibration import Calibration, Loss
from bnprune.pruning.cut_history import record_input, record_plan
from bnprune.pruning.draft_plan import DraftPlan, describe_plan, require_cut
from bnprune.pruning.latency_search import LatencyKnowledge, plan_for_target
from bnprune.pruning.layer_measurements import LayerMeasurements, ProfileSource, SensitivitySource
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.planner import score_network
from bnprune.pruning.report import Report, make_report, recounted, report_of_plan
from bnprune.pruning.request import Request
from bnprune.pruning.result_tables import html_lines
from bnprune.pruning.scores import Reduce, measure_statistics
from bnprune.pruning.sensitivity import Sensitivity
from bnprune.pruning.sensitivity_order import sensitivity_notes, with_sensitivity
from bnprune.pruning.surgery import apply, copy_weights, require_bare, require_values
from bnprune.pruning.verify import Verification, require, verify


class RepairOutcome(Protocol):
    """The result of a repair; see `bnprune.recovery.repair.Repair`."""

    @property
    def model(self) -> nn.Module:
        """The repaired network."""
        ...

    @property
    def chosen(self) -> str:
        """Name of the repair method that was kept."""
        ...

    @property
    def held_out(self) -> int:
        """Number of images on which the repair methods were compared."""
        ...

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is wrong with the images, and repair methods that failed."""
        ...

    @property
    def distances(self) -> Mapping[str, float]:
        """Distance of the outputs to those of the dense network, for each repair method."""
        ...


@dataclass(frozen=True)
class PruningResult:
    """The result of `bnprune.prune`: the slim network, the plan that makes it, and the report.

    `print(result)` is a table; in a notebook, it is shown as HTML.

    Example::

        result = bnprune.prune(model, example_inputs, ratio=0.5)
        print(f"{result.report.params_after:,} parameters")
        outputs = result.model(example_inputs)
        bnprune.save(result, "slim.safetensors")
    """

    model: nn.Module
    """The slim network, an ordinary PyTorch module in the mode (train or eval) of the dense one."""
    plan: PruningPlan
    """The cut as data; `bnprune.apply(plan, dense)` makes the slim network again."""
    report: Report
    """Sizes before and after, the proof, and the reasons why channels stay."""
    repair: RepairOutcome | None = None
    """The repair of the slim network after the proof; None without calibration data."""
    dense_parameters: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)
    """Names of the dense network's parameters, by `id`: `carry_over` finds the parameters of an optimizer by them."""

    def __str__(self) -> str:
        return "\n".join([str(self.report), *self._repaired])

    def _repr_html_(self) -> str:
        return self.report._repr_html_() + html_lines(self._repaired)

    @property
    def _repaired(self) -> list[str]:
        if self.repair is None:
            return []
        before, after = (self.repair.distances[name] for name in ("plain", self.repair.chosen))
        return [f"repaired: {self.repair.chosen}; distance to the dense outputs {before:.3f} -> {after:.3f}"]


@hinting_arguments
@preserve_thread_state
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    min_channels: int = 1,
    cap: float | None = None,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    layer_ratios: Mapping[str, float] | None = None,
    criterion: str | None = None,
    reduce: Reduce = "max",
    coupling: Coupling = "shared",
    fold_bias: bool = False,
    outputs: Outputs | None = None,
    calibrate_images: int = 512,
    calibrate: Iterable[Any] | None = None,
    loss: Loss | None = None,
    sensitivity: SensitivitySource | None = None,
    profile: ProfileSource | None = None,
    proof: bool = True,
) -> PruningResult:
    """Prune a network by its BatchNorm scale factors (Liu et al., ICCV 2017).

    Args:
        model: Any module that runs a forward pass; it is left untouched.
        example_inputs: A tensor (usually (1, channels, height, width)), a tuple of positional or a mapping of keyword
            arguments of the forward pass. Shapes matter; values of floating-point tensors only if the network does
            not run on noise, which the proof uses otherwise.
        ratio: Fraction of the prunable BatchNorm channels to remove, in (0, 1). One target is given: this or one of the
            next three.
        macs: Fraction of the multiply-accumulates to keep at most, in (0, 1).
        params: Fraction of the parameters to keep at most, in (0, 1).
        latency_ms: Milliseconds a forward pass may take here, with `example_inputs` as the batch and the current number
            of threads.
        min_channels: Channels every layer keeps at least.
        cap: Largest share of a layer's channels to remove, in (0, 1]. By default there is none. Instead, for `macs` and
            `params`, and for the criteria l1, l2, activation and taylor, every layer keeps a part of the width that it
            would have if all were cut alike (`bnprune.pruning.least_widths`). With a cap, such as 1, it need not.
        round_to: Widths that are a multiple of this stay multiples of it.
        exclude: Layers not to prune: module names, names of parents, or globs.
        include: If given, the only layers to prune, with those that share their channels; as in `exclude`.
        layer_ratios: Fraction of the channels to remove in layers with a ratio of their own, by pattern as in
            `exclude`.
        criterion: Name of the score, see `bnprune.pruning.scores.CRITERIA`. By default "auto" for `macs` and
            `params`, and "gamma" for other targets.
        reduce: How the scores of channels that are removed together become one score: "max", "mean" or "sum".
        coupling: "shared": layers that read or write one stream of channels (residual adds, dense concatenations) lose
            the same ones; gates are set after grouped convolutions only, if no channel could be removed otherwise.
            "gates": each loses its own, and small modules select or fill channels (`bnprune.pruning.gates`); more
            freedom, at the cost of a copy per gate.
        fold_bias: True to fold the bias of a layer into the running mean of the BatchNorm that alone reads its output.
        outputs: The outputs that count, if not all do: a path of indices, keys and attributes (0, "0.1", "preds.0";
            several in one string are separated by commas), or a function that takes the output of the forward pass in
            eval mode and returns parts of it. The others may lose channels, and the proof does not compare them. In
            train mode all outputs keep their channels, except those of eval outputs that do not count and that the
            network itself reads.
        calibrate_images: Number of images of `calibrate` that are used; 0: none.
        calibrate: Calibration data: batches of inputs, each a tensor (N, ...), a mapping of keyword arguments, or a
            pair (inputs, labels). Criteria measure activations on them, and after the proof the slim network is
            repaired with them (`bnprune.recovery.repair`): of the results, the one whose outputs on held-out images
            are nearest to those of `model` is returned. They are kept in memory.
        loss: Loss for criterion "taylor": (outputs, labels) -> scalar; default: cross-entropy.
        sensitivity: Sensitivity table of this network, which decides how much each group of layers loses: all lose the
            same accuracy, as measured alone. A file, the result of `bnprune.sensitivity` that wrote it, or a
            `Sensitivity`. Inside a group, the criterion ranks.
        profile: Latency profile of this network, for `latency_ms`: a file that `bnprune profile` wrote, or a
            `LatencyProfile`. It gives the batch size and the backend.
        proof: Run both networks: prove in float64 (in float32, if the network runs in nothing else) that the slim one
            equals the masked original, and count MACs that depend on data (boxes per image) on the example inputs.
            Without it, such MACs are counted on surrogate values, and a note says so.

    Returns:
        The slim network, its plan and a report.

    Raises:
        ConfigError: An argument is out of range, a pattern matches nothing, the network does not return `outputs`, or
            `sensitivity` or `profile` serves another kind of target.
        CheckpointError: `sensitivity` or `profile` cannot be read, or is of another network.
        PruningError: The network cannot be pruned (no BatchNorm, everything frozen), or not to the requested target.
        TraceError: The analysis fails.
        ForwardError: The forward pass fails, or its outputs are not finite.
        VerificationError: The proof failed; this is a bug in bnprune worth a report.

    Example::

        result = bnprune.prune(model, example_inputs, macs=0.5, round_to=4, calibrate=batches)
        print(result)
        slim = result.model  # fine-tune it with a new optimizer, or that of `bnprune.carry_over`
    """
    request = Request(
        ratio=ratio,
        macs=macs,
        params=params,
        latency_ms=latency_ms,
        min_channels=min_channels,
        cap=cap,
        round_to=round_to,
        exclude=_patterns(exclude),
        include=_patterns(include),
        layer_ratios=layer_ratios,
        criterion=criterion,
        reduce=reduce,
        coupling=coupling,
        fold_bias=fold_bias,
        outputs=outputs,
        calibrate_images=calibrate_images,
    )
    calibration = _calibration(calibrate, request, loss)
    measured = _measured(model, example_inputs, request, sensitivity, profile)
    result = prune_as_requested(
        model,
        example_inputs,
        request,
        proof=proof,
        calibration=calibration,
        latency=measured.latency,
        sensitivity=measured.sensitivity,
    )
    result = replace(result, report=replace(result.report, notes=(*result.report.notes, *measured.notes)))
    return result if calibration is None else _repaired(result, model, example_inputs, calibration)


@hinting_arguments
@preserve_thread_state
def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    min_channels: int = 1,
    cap: float | None = None,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    layer_ratios: Mapping[str, float] | None = None,
    criterion: str | None = None,
    reduce: Reduce = "max",
    coupling: Coupling = "shared",
    fold_bias: bool = False,
    outputs: Outputs | None = None,
    calibrate_images: int = 512,
    calibrate: Iterable[Any] | None = None,
    loss: Loss | None = None,
    sensitivity: SensitivitySource | None = None,
    profile: ProfileSource | None = None,
) -> PruningPlan:
    """Choose the channels to remove, as `prune` does, without cutting anything.

    `bnprune.apply(plan, model)` carries the plan out.

    Args:
        model: As for `prune`.
        example_inputs: As for `prune`.
        ratio: As for `prune`; one target is given, this or one of the next three.
        macs: As for `prune`.
        params: As for `prune`.
        latency_ms: As for `prune`.
        min_channels: As for `prune`.
        cap: As for `prune`.
        round_to: As for `prune`.
        exclude: As for `prune`.
        include: As for `prune`.
        layer_ratios: As for `prune`.
        criterion: As for `prune`.
        reduce: As for `prune`.
        coupling: As for `prune`.
        fold_bias: As for `prune`.
        outputs: As for `prune`.
        calibrate_images: As for `prune`.
        calibrate: As for `prune`, for criteria that need data.
        loss: As for `prune`.
        sensitivity: As for `prune`.
        profile: As for `prune`.

    Returns:
        The plan: frozen data without tensors, which `to_json` writes and `PruningPlan.from_json` reads.

    Raises:
        ConfigError: An argument is out of range, a pattern matches nothing, the network does not return `outputs`, or
            `sensitivity` or `profile` serves another kind of target.
        CheckpointError: `sensitivity` or `profile` cannot be read, or is of another network.
        PruningError: The network cannot be pruned, or not to the requested target.
        TraceError: The analysis fails.
        ForwardError: The forward pass fails.

    Example::

        plan = bnprune.plan(model, example_inputs, ratio=0.5)
        print(f"{plan.realised['ratio']:.0%} of the prunable channels")  # 50% of the prunable channels
        slim = bnprune.apply(plan, model)
    """
    request = Request(
        ratio=ratio,
        macs=macs,
        params=params,
        latency_ms=latency_ms,
        min_channels=min_channels,
        cap=cap,
        round_to=round_to,
        exclude=_patterns(exclude),
        include=_patterns(include),
        layer_ratios=layer_ratios,
        criterion=criterion,
        reduce=reduce,
        coupling=coupling,
        fold_bias=fold_bias,
        outputs=outputs,
        calibrate_images=calibrate_images,
    )
    measured = _measured(model, example_inputs, request, sensitivity, profile)
    drafted = draft(
        model,
        example_inputs,
        request,
        calibration=_calibration(calibrate, request, loss),
        latency=measured.latency,
        sensitivity=measured.sensitivity,
    )
    require_cut(drafted)
    planned = describe_plan(drafted)
    return replace(planned, notes=(*planned.notes, *measured.notes))


def _measured(
    model: nn.Module,
    example_inputs: Any,
    request: Request,
    sensitivity: SensitivitySource | None,
    profile: ProfileSource | None,
) -> LayerMeasurements:
    if sensitivity is None and profile is None:
        return LayerMeasurements()
    require_bare(model)
    found: LayerMeasurements = LAYER_MEASUREMENTS(
        model, example_inputs, request, sensitivity=sensitivity, profile=profile
    )
    return found


def _calibration(batches: Iterable[Any] | None, request: Request, loss: Loss | None) -> Calibration | None:
    if batches is None or not request.calibrate_images:
        return None
    return Calibration.of(batches, request.calibrate_images, loss)


def draft(
    model: nn.Module,
    example_inputs: Any,
    request: Request,
    *,
    calibration: Calibration | None = None,
    latency: LatencyKnowledge | None = None,
    sensitivity: Sensitivity | None = None,
) -> DraftPlan:
    """Score the channels and select those to remove: the one composition of these two steps.

    Args:
        model: As for `prune`.
        example_inputs: As for `prune`.
        request: The target and the constraints.
        calibration: For criteria that need data.
        latency: The latencies of the layers, for a target in milliseconds.
        sensitivity: Decides how much each group of layers loses; inside a group, the criterion ranks.

    Raises:
        ConfigError: The criterion needs calibration data, and there is none; or no layer is in `sensitivity`.
        PruningError: The target cannot be reached, or `model` is wrapped (DataParallel, torch.compile).
        TraceError: The analysis fails.
    """
    require_bare(model)
    statistics = measure_statistics(model, request.ranked_by, calibration)
    scored = score_network(model, example_inputs, request, statistics=statistics)
    if sensitivity is not None:
        scored = with_sensitivity(scored, sensitivity)
    drafted = plan_for_target(model, example_inputs, scored, latency)
    notes = (*drafted.scored.criterion_notes, *sensitivity_notes(drafted))
    return replace(drafted, scored=replace(drafted.scored, criterion_notes=notes))


def prune_as_requested(
    model: nn.Module,
    example_inputs: Any,
    request: Request,
    *,
    proof: bool = True,
    calibration: Calibration | None = None,
    latency: LatencyKnowledge | None = None,
    sensitivity: Sensitivity | None = None,
) -> PruningResult:
    """Prune a network; `prune` with its keyword arguments as one object, and without repair. Errors as for `prune`."""
    drafted = draft(model, example_inputs, request, calibration=calibration, latency=latency, sensitivity=sensitivity)
    return carry_out(drafted, model, example_inputs, proof=proof)


def _repaired(result: PruningResult, model: nn.Module, example_inputs: Any, calibration: Calibration) -> PruningResult:
    repair: RepairOutcome = REPAIR(model, result.model, result.plan, example_inputs, calibration)
    report = replace(result.report, notes=(*result.report.notes, *repair.notes))
    return replace(result, model=repair.model, repair=repair, report=report)


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def carry_out(drafted: DraftPlan, model: nn.Module, example_inputs: Any, *, proof: bool = True) -> PruningResult:
    """Carry out a draft: cut the network and prove the result.

    Raises:
        PruningError: Nothing can be pruned.
        VerificationError: The proof failed.
    """
    require_cut(drafted)
    cuts = describe_plan(drafted)
    started = time.perf_counter()
    slim = copy_weights(drafted.meta_slim, cuts, model)
    record_plan(slim, model, cuts)
    record_input(slim, example_inputs)
    cut = time.perf_counter()
    verification: Verification | None = None
    if proof:
        verification = verify(model, slim, cuts, as_inputs(example_inputs), outputs=drafted.scored.request.outputs)
        require(verification)
    seconds = {
        "trace": drafted.scored.seconds,
        "select": drafted.seconds,
        "surgery": cut - started,
        "verify": time.perf_counter() - cut,
    }
    report = make_report(drafted, cuts, verification, seconds)
    report = recounted(report, model, slim, example_inputs) if proof else report
    return PruningResult(slim, cuts, report, dense_parameters=_names(model))


@preserve_thread_state
def replay(
    plan: PruningPlan, model: nn.Module, example_inputs: Any, *, outputs: Outputs | None = None
) -> PruningResult:
    """Apply a plan made earlier, and prove the result.

    Args:
        plan: The plan.
        model: The network that it was made for.
        example_inputs: As for `prune`.
        outputs: The outputs that count; by default those that the plan records. A function has to be given again.

    Raises:
        ConfigError: The plan was made with a function for `outputs`, and none is given.
        PruningError: The plan was made for another network.
        CheckpointError: The plan is damaged.
        VerificationError: The proof failed.
    """
    require_values(model, example_inputs)
    report = report_of_plan(plan, model, example_inputs)
    started = time.perf_counter()
    slim = apply(plan, model)
    cut = time.perf_counter()
    verification = verify(model, slim, plan, as_inputs(example_inputs), outputs=outputs)
    require(verification)
    seconds = {"surgery": cut - started, "verify": time.perf_counter() - cut}
    notes = (*report.notes, *verification.notes)
    report = replace(report, verification=verification, notes=notes, seconds=seconds)
    return PruningResult(slim, plan, report, dense_parameters=_names(model))


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}
