"""Reports: the result of pruning, or of a plan, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from bnprune.channels.modules import parameter_count
from bnprune.channels.network_outputs import note_on
from bnprune.channels.trace_network import DATA_DEPENDENT_MACS
from bnprune.channels.union_find import Refusal
from bnprune.errors import CheckpointError, first_line
from bnprune.notes import Note
from bnprune.pruning.cost import Cost, cost
from bnprune.pruning.draft_plan import DraftPlan, Target, WrittenDeviation
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.request import TARGETS, TargetKind
from bnprune.pruning.result_tables import CHANGES, Row, change_row, html_lines, html_table, text_table
from bnprune.pruning.surgery import apply, require_bare, require_plan_fits, slim_on_meta
from bnprune.pruning.verify import Verification


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Width of one layer before and after."""

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Report:
    """The result of pruning in numbers: `result.report` of `bnprune.prune`.

    `print(report)` is a table; in a notebook, it is shown as HTML.

    Example::

        report = bnprune.prune(model, example_inputs, ratio=0.5).report
        print(f"{report.channels_before} -> {report.channels_after} channels")
        print(f"{report.macs_after / report.macs_before:.0%} of the MACs are left")
        for refusal in report.refusals:
            print(refusal)
    """

    target: Target
    """Requested and realised value: for "ratio" the removed share, for "macs" and "params" the share that is left."""
    ratio_requested: float | None
    """None if another target was given."""
    ratio_realised: float
    """Removed share of the prunable BatchNorm channels."""
    channels_before: int
    """Prunable BatchNorm channels (those of units that are neither frozen nor excluded)."""
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    """Multiply-accumulates for the example input (its batch included). A note says so if they were counted on surrogate
    values."""
    macs_after: int
    verification: Verification | None
    """The proof; None without one."""
    layers: tuple[LayerChange, ...]
    """In the order of the network; `pandas.DataFrame(report.layers)` makes a table of them."""
    refusals: tuple[Refusal, ...]
    """Why channels stay, one entry per place and reason."""
    notes: tuple[Note, ...]
    """Remarks for people; each is a string with a `code` and a `level`."""
    written: tuple[WrittenDeviation, ...]
    """Layers without a BatchNorm that write ranked channels, with γ̂; empty for a plan made earlier."""
    seconds: dict[str, float]
    """Wall-clock seconds of "trace", "select" (with dry run), "surgery" and "verify"."""

    def __str__(self) -> str:
        return "\n".join([*text_table(CHANGES, self._sizes), *self._remarks, "", *text_table(CHANGES, self._widths)])

    def _repr_html_(self) -> str:
        return html_table(CHANGES, self._sizes) + html_lines(self._remarks) + html_table(CHANGES, self._widths)

    @property
    def _sizes(self) -> list[Row]:
        return [
            change_row("prunable BN channels", self.channels_before, self.channels_after),
            change_row("parameters", self.params_before, self.params_after),
            change_row("MACs", self.macs_before, self.macs_after),
        ]

    @property
    def _widths(self) -> list[Row]:
        """The layers that have become narrower; a BatchNorm only if no other layer tells its widths."""
        changed = [layer for layer in self.layers if layer.after < layer.before]
        told = {(layer.before, layer.after) for layer in changed if layer.kind != "norm"}
        changed = [layer for layer in changed if layer.kind != "norm" or (layer.before, layer.after) not in told]
        return [change_row(layer.name, layer.before, layer.after) for layer in changed]

    @property
    def _remarks(self) -> list[str]:
        proof = self.verification
        lines = [] if proof is None else [f"verified in {proof.dtype}: relative error {proof.max_relative_error:.1e}"]
        return [*lines, *(f"not pruned: {why.site} ({why.reason})" for why in self.refusals), *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, which `json.dumps` can write."""
        plain: dict[str, Any] = {
            "target": {**asdict(self.target)},
            "ratio": {"requested": self.ratio_requested, "realised": self.ratio_realised},
            "layers": [asdict(layer) for layer in self.layers],
            "refusals": [{"site": why.site, "reason": why.reason, "fix": why.fix} for why in self.refusals],
            "notes": [str(note) for note in self.notes],
            "written": [asdict(entry) for entry in self.written],
            "seconds": dict(self.seconds),
            "max_relative_error": self.max_relative_error,
        }
        for name in ("channels", "params", "macs"):
            plain[name] = {when: getattr(self, f"{name}_{when}") for when in ("before", "after")}
        return plain

    @property
    def max_relative_error(self) -> float | None:
        """Largest relative error that the proof found; None without a proof."""
        return None if self.verification is None else self.verification.max_relative_error


def make_report(
    draft: DraftPlan,
    plan: PruningPlan,
    verification: Verification | None,
    seconds: Mapping[str, float],
) -> Report:
    """Return the report of a draft."""
    graph, removed = draft.scored.graph, draft.removed
    before, after = draft.channels
    return Report(
        target=draft.target,
        ratio_requested=plan.requested.get("ratio"),
        ratio_realised=draft.ratio,
        channels_before=before,
        channels_after=after,
        params_before=draft.scored.params,
        params_after=parameter_count(draft.meta_slim),
        macs_before=graph.traces["eval"].macs,
        macs_after=draft.macs,
        verification=verification,
        layers=tuple(
            LayerChange(layer.name, layer.kind, len(layer.ids), int((~removed[graph.units(layer.ids)]).sum()))
            for layer in graph.layers
        ),
        refusals=plan.refusals,
        notes=(*plan.notes, *(verification.notes if verification else ())),
        written=draft.written,
        seconds=dict(seconds),
    )


def recounted(report: Report, model: nn.Module, slim: nn.Module, example_inputs: Any) -> Report:
    """Replace MACs that were counted on surrogate values by those of both networks on the example inputs.

    Each network takes its own decisions. If one of them fails on these inputs, the report stays as it is.
    """
    if not any(note.code == DATA_DEPENDENT_MACS.code for note in report.notes):
        return report
    try:
        before, after = (cost(network, example_inputs).macs for network in (model, slim))
    except Exception:  # noqa: BLE001 - the proof has passed, on other inputs; this is about a figure
        return report
    notes = tuple(_COUNTED if note.code == DATA_DEPENDENT_MACS.code else note for note in report.notes)
    return replace(report, macs_before=before, macs_after=after, notes=notes)


_COUNTED = Note(
    "macs.counted",
    "note",
    "MACs depend on data (on the number of boxes, for example): they are those of the example inputs",
)


def report_of_plan(plan: PruningPlan, model: nn.Module, example_inputs: Any) -> Report:
    """Return the report of a plan made earlier; nothing is cut, and no weight is copied.

    Raises:
        PruningError: The plan was made for another network.
        CheckpointError: The plan is damaged.
    """
    require_bare(model)
    require_plan_fits(plan, model)
    meta_slim = slim_on_meta(plan, model)
    before, after = cost(model, example_inputs), _cost_of(meta_slim, plan, model, example_inputs)
    channels = plan.realised.get("channels", {"before": before.channels, "after": after.channels})
    widths, slim_widths = _widths(model), _widths(meta_slim)
    gated = {gate.at for gate in plan.gates}
    return Report(
        target=_target(plan),
        ratio_requested=plan.requested.get("ratio"),
        ratio_realised=plan.realised.get("ratio", 0.0),
        channels_before=channels["before"],
        channels_after=channels["after"],
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
        verification=None,
        layers=tuple(
            LayerChange(name, kind, width, slim_widths[gated_name(name, gated)][1])
            for name, (kind, width) in widths.items()
        ),
        refusals=plan.refusals,
        notes=() if plan.requested.get("outputs") is None else (note_on(plan.requested["outputs"]),),
        written=(),
        seconds={},
    )


def _cost_of(meta_slim: nn.Module, plan: PruningPlan, model: nn.Module, example_inputs: Any) -> Cost:
    try:
        return cost(meta_slim, example_inputs)
    except Exception:  # noqa: BLE001 - a network that decides on its values does not run without weights
        slim = apply(plan, model)
    try:
        return cost(slim, example_inputs)
    except Exception as error:
        raise CheckpointError(
            f"the plan is damaged: the network that it gives does not run: {first_line(error)}."
        ) from error


def _target(plan: PruningPlan) -> Target:
    """Return the target of a plan from a file; NaN for values that the plan lacks."""
    kind: TargetKind = next((kind for kind in TARGETS if kind in plan.requested), "ratio")
    return Target(kind, plan.requested.get(kind, math.nan), plan.realised.get(kind, math.nan))


def _widths(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Return kind and output width of every layer that has one, by module name."""
    widths = {}
    for name, module in model.named_modules():
        for kind, attribute in (("conv", "out_channels"), ("linear", "out_features"), ("norm", "num_features")):
            if isinstance(getattr(module, attribute, None), int):
                widths[name] = kind, int(getattr(module, attribute))
    return widths
