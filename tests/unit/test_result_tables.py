"""Results that are printed or shown in a notebook, and reports as plain data."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas
import pytest
import torch

import bnprune
from bnprune.pruning.report import LayerChange
from bnprune.pruning.result_tables import text_table
from tests.nets import chain, noise, randomized, residual

X = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def result() -> bnprune.PruningResult:
    return bnprune.prune(randomized(residual()), X, ratio=0.5)


def test_a_report_prints_what_was_removed(result: bnprune.PruningResult) -> None:
    report, text = result.report, str(result)
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    share = f"{report.params_after / report.params_before:.1%}"
    assert ["parameters", f"{report.params_before:,}", f"{report.params_after:,}", share] in lines
    for layer in report.layers:
        row = [layer.name, str(layer.before), str(layer.after), f"{layer.after / layer.before:.1%}"]
        assert (row in lines) == (layer.after < layer.before and layer.kind != "norm")
    assert f"relative error {report.max_relative_error:.1e}" in text
    assert all(note in text for note in report.notes)


def test_a_batchnorm_that_alone_becomes_narrower_has_a_row() -> None:
    """Behind a gate, a BatchNorm loses channels that no layer before it loses."""
    report = bnprune.prune(randomized(residual()), X, ratio=0.5).report
    changes = (LayerChange("conv", "conv", 16, 8), LayerChange("bn", "norm", 16, 8), LayerChange("read", "norm", 16, 5))
    rows = str(replace(report, layers=changes)).splitlines()
    assert [row.split()[0] for row in rows[-2:]] == ["conv", "read"]


def test_a_report_is_plain_data(result: bnprune.PruningResult) -> None:
    data = json.loads(json.dumps(result.report.to_dict()))
    assert data["macs"] == {"before": result.report.macs_before, "after": result.report.macs_after}
    assert data["ratio"]["realised"] == result.report.ratio_realised
    assert data["layers"][0].keys() == {"name", "kind", "before", "after"}
    assert len(data["layers"]) == len(result.report.layers)


def test_layers_make_a_table_in_pandas(result: bnprune.PruningResult) -> None:
    table = pandas.DataFrame(result.report.layers)
    assert list(table["after"]) == [layer.after for layer in result.report.layers]


def test_plans_inspections_and_repairs_print_as_tables() -> None:
    model = randomized(chain())
    plan = bnprune.plan(model, X, macs=0.5)
    assert "plan for Sequential: macs 0.5" in str(plan)
    assert f"{plan.cuts[0].at[0][0]}" in str(plan)
    inspected = str(bnprune.inspect(model, X))
    assert "36 of 36 BatchNorm channels can be pruned" in inspected
    assert re.search(r"4\.2 +linear +5 +0 +output: is an output of the network", inspected)
    repaired = bnprune.prune(model, X, ratio=0.5, calibrate=[noise(8, 3, 8, 8).float()])
    assert f"repaired: {repaired.repair.chosen}; distance to the dense outputs" in str(repaired)


def test_notebooks_get_html_without_markup_from_names(result: bnprune.PruningResult) -> None:
    html = result._repr_html_()
    assert html.count("<table>") == 2
    assert f"<td>{result.report.layers[0].name}</td>" in html
    plan = bnprune.PruningPlan.from_dict({**result.plan.to_dict(), "model": {"name": "<b>", "digest": "0"}})
    assert "&lt;b&gt;" in plan._repr_html_()


def test_columns_are_aligned_and_long_tables_are_cut() -> None:
    rows = [(f"layer{number}", str(10**number)) for number in range(3)]
    assert text_table(("name", "width"), rows) == ["name    width", "layer0      1", "layer1     10", "layer2    100"]
    assert text_table(("name", "width"), rows * 20)[-1] == "... and 30 more"
