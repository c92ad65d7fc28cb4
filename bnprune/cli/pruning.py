"""What `prune` and `inspect` do with a network and print about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text
from torch import nn

from bnprune.channels.union_find import Refusal
from bnprune.cli.display import bar, count, print_json, show_rows, stderr, stdout, tell
from bnprune.cli.verbosity import VERBOSITY
from bnprune.config.bounded_reading import DATA_BYTES, read_text
from bnprune.errors import CheckpointError, ConfigError, ForwardError
from bnprune.pruning.draft_plan import describe_plan, require_cut
from bnprune.pruning.inspection import Inspection, inspect
from bnprune.pruning.latency_search import plan_for_target
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.planner import score_network
from bnprune.pruning.pruner import PruningResult, carry_out, replay
from bnprune.pruning.report import Report, foresee, make_report
from bnprune.pruning.request import Request
from bnprune.pruning.surgery import require_bare, require_plan_fits
from bnprune.recovery.compensate import Compensation, Outcome, compensate
from bnprune.runs.checkpoint import save_checkpoint
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.outputs import require_output
from bnprune.runs.summary import describe_prune

INSPECT_SCHEMA = "bnprune.inspect/1"


@dataclass(frozen=True)
class PruneRequest:
    """What the command line asks of `prune`."""

    what: Request
    plan: Path | None
    compensate: bool
    given: tuple[str, ...]
    """Which options about what to remove stand on the command line."""
    dry_run: bool
    out: Path
    force: bool
    as_json: bool


def run_prune(
    request: PruneRequest,
    path: Path | None,
    *,
    model: str | None,
    arguments: Sequence[str],
    weights: Path | None,
    shape: str | None,
    trust: bool,
) -> None:
    """Prune the network the command line names."""
    if request.plan is not None and request.given:
        raise ConfigError(f"--plan replays a plan as it is; leave {' and '.join(request.given)} out.")
    if not request.dry_run:
        require_output(request.out, force=request.force, sources=(path, weights, request.plan))
    source = open_source(path, model=model, arguments=arguments, weights=weights, shape=shape, trust=trust)
    if request.plan is not None:
        plan = _read_plan(request.plan, source.model)
        if request.dry_run:
            _show(request, foresee(plan, source.model, source.inputs), plan)
            return
        result = replay(plan, source.model, source.inputs)
    else:
        require_bare(source.model)
        draft = plan_for_target(source.model, source.inputs, score_network(source.model, source.inputs, request.what))
        if request.dry_run:
            require_cut(draft)
            plan = describe_plan(draft)
            _show(request, make_report(draft, plan, None, {}), plan)
            return
        result = carry_out(draft, source.model, source.inputs)
    done: tuple[Compensation, ...] = ()
    if request.compensate:
        try:
            done = compensate(source.model, result.model, result.plan, source.inputs)
        except ForwardError as error:
            tell(stderr(), f"note: not compensated: {error}")
    _save(request.out, source, result)
    _show(request, result.report, result.plan, done)


def _read_plan(path: Path, model: nn.Module) -> PruningPlan:
    try:
        plan = PruningPlan.from_json(read_text(path, DATA_BYTES))
        require_plan_fits(plan, model)
    except OSError as error:
        raise CheckpointError(f"--plan: '{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"--plan: '{path}' is not a text file.") from error
    except CheckpointError as error:
        raise CheckpointError(f"--plan: '{path}': {error}") from error
    return plan


def _save(path: Path, source: NetworkSource, result: PruningResult) -> None:
    header = source.header
    pruned = replace(
        header,
        plans=(*header.plans, result.plan),
        stage="prune",
        metrics={"params": result.report.params_after, "macs": result.report.macs_after},
    )
    save_checkpoint(path, result.model, pruned)


def _show(
    request: PruneRequest, report: Report, plan: PruningPlan, compensation: tuple[Compensation, ...] = ()
) -> None:
    if request.as_json:
        document = describe_prune(report)
        document["compensation"] = [asdict(done) for done in compensation]
        document["out"] = None if request.dry_run else str(request.out)
        if request.dry_run:
            document["plan"] = plan.to_dict()
        print_json(document)
        return
    console = stdout()
    _show_layers(console, report, every=request.dry_run)
    show_rows(
        ["", "before", "after", "kept", ""],
        [
            ("prunable BN channels", *_change(report.channels_before, report.channels_after)),
            ("parameters", *_change(report.params_before, report.params_after)),
            ("MACs", *_change(report.macs_before, report.macs_after)),
        ],
    )
    if report.target.requested == report.target.requested:  # not NaN: a plan may not say what it was made for
        console.print(_TARGETS[report.target.kind].format(report.target.requested, report.target.realised))
    show_refusals(console, report.refusals)
    for note in report.notes:
        tell(console, f"note: {note}")
    if report.max_relative_error is not None:
        console.print(f"proof: slim equals masked, relative error {report.max_relative_error:.1e} in float64")
    if VERBOSITY.verbose and report.seconds:
        steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.seconds.items())
        console.print(f"took: {steps}")
    if compensation:
        tell(console, _summary(compensation))
    said = "dry run: nothing was written" if request.dry_run else f"wrote {request.out}"
    tell(console, said)


def _summary(compensation: tuple[Compensation, ...]) -> str:
    """Say how many layers have what they lost in their biases now."""
    counts = Counter(done.outcome for done in compensation)
    words: dict[Outcome, str] = {"exact": "exactly", "interior": "except at borders", "none": "not at all"}
    told = ", ".join(f"{counts[outcome]} {word}" for outcome, word in words.items() if counts[outcome])
    return f"compensated, per layer that lost inputs: {told} (--json says why; --no-compensate leaves it out)"


_MANY_LAYERS = 24
_TARGETS = {
    "ratio": "ratio: asked {:.3g}, removed {:.3f}",
    "macs": "MACs: asked for {:.3g}, kept {:.3f}",
    "params": "parameters: asked for {:.3g}, kept {:.3f}",
    "latency_ms": "latency: asked for {:.3g} ms, measured {:.3g} ms",
}


def _change(before: int, after: int) -> tuple[str | Text, ...]:
    return count(before), count(after), f"{after / max(before, 1):.1%}", bar(after, before)


def _show_layers(console: Console, report: Report, *, every: bool) -> None:
    """Print the width of every layer; of deep networks, where nobody asked, only how many there are."""
    layers = [layer for layer in report.layers if layer.kind != "norm"]
    if len(layers) > _MANY_LAYERS and not every and not VERBOSITY.verbose:
        console.print(f"{len(layers)} layers (--verbose lists them)\n")
        return
    longest = max((layer.before for layer in layers), default=1)
    show_rows(
        ["layer", "kind", "before", "after", ""],
        [
            (layer.name, layer.kind, str(layer.before), str(layer.after), bar(layer.after, layer.before, longest))
            for layer in layers
        ],
    )
    console.print()


def show_refusals(console: Console, refusals: Iterable[Refusal]) -> None:
    """Print why channels stay, one line per reason, with the layers it concerns."""
    sites: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        sites.setdefault((refusal.reason, refusal.fix), []).append(refusal.site)
    for (reason, fix), names in sites.items():
        few = len(names) if VERBOSITY.verbose else 3
        shown = ", ".join(names[:few]) + (f" and {len(names) - few} more" if len(names) > few else "")
        tell(console, f"kept: {shown}: {reason}" + (f"\n      fix: {fix}" if fix else ""))


def run_inspect(
    path: Path | None,
    *,
    model: str | None,
    arguments: Sequence[str],
    weights: Path | None,
    shape: str | None,
    trust: bool,
    exclude: tuple[str, ...],
    coupling: Literal["shared", "gates"],
    as_json: bool,
) -> None:
    """Inspect the network the command line names."""
    source = open_source(path, model=model, arguments=arguments, weights=weights, shape=shape, trust=trust)
    found = inspect(source.model, source.inputs, exclude=exclude, coupling=coupling)
    if as_json:
        print_json(_document(source, found))
        return
    console = stdout()
    longest = max((layer.width for layer in found.layers), default=1)
    show_rows(
        ["layer", "kind", "width", "prunable", "|γ| median", ""],
        [
            (
                layer.name,
                layer.kind,
                str(layer.width),
                str(layer.prunable),
                "" if layer.gamma_median is None else f"{layer.gamma_median:.2g}",
                bar(layer.prunable, layer.width, longest),
            )
            for layer in found.layers
        ],
    )
    console.print(
        f"\n{found.prunable} of {found.channels} BN channels are prunable; "
        f"{count(found.params)} parameters, {count(found.macs)} MACs"
    )
    show_refusals(console, found.refusals)
    for note in found.notes:
        tell(console, f"note: {note}")


def _document(source: NetworkSource, found: Inspection) -> dict[str, Any]:
    return {
        "schema": INSPECT_SCHEMA,
        "model": source.header.spec.to_dict(),
        "input": source.header.input_shape,
        "channels": {"total": found.channels, "prunable": found.prunable},
        "params": found.params,
        "macs": found.macs,
        "layers": [asdict(layer) for layer in found.layers],
        "refusals": [{"site": r.site, "reason": r.reason, "fix": r.fix} for r in found.refusals],
        "notes": list(found.notes),
    }
