"""What a user is shown and warned of while a network trains."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bnprune.cli.render.progress import RichDisplay, describe_gamma
from bnprune.config.schema import SparsityConfig, TrainConfig
from bnprune.models import ModelSpec
from bnprune.notes import Note
from bnprune.runs.checkpoint import Header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.training_log import TrainingLog
from bnprune.training.evaluate import Score
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import gamma_statistics
from bnprune.training.state import Progress, State
from bnprune.training.warnings import collapse, small_batches
from tests.nets import chain


def test_batches_too_small_for_batchnorm() -> None:
    assert small_batches(8) is None
    assert "below 8 (got 7)" in small_batches(7)
    assert "Raise data.batch_size" in small_batches(1)


@pytest.mark.parametrize(
    ("before", "now", "classes", "fell"),
    [
        (0.9, 0.1, 10, True),
        (0.9, 0.49, 10, True),  # half of the 80 points above chance are lost at 50%
        (0.9, 0.51, 10, False),
        (0.95, 0.6, 2, True),
        (0.95, 0.75, 2, False),
        (0.15, 0.1, 10, False),  # it had learned nothing yet
    ],
)
def test_a_collapse_is_measured_above_chance(before: float, now: float, classes: int, fell: bool) -> None:
    found = collapse(before, Score(1.0, now, 100), classes)
    assert (found is not None) == fell
    if fell:
        assert found == f"validation accuracy fell from {before:.2%} to {now:.2%}"


def test_other_metrics_start_at_zero_and_those_without_a_range_do_not_collapse() -> None:
    fallen = collapse(0.6, Score(1.0, 0.2, 100, name="miou"), 2)  # no chance of 1/2 is subtracted
    assert fallen == "validation mIoU fell from 60.00% to 20.00%"
    assert collapse(0.6, Score(1.0, 0.31, 100, name="miou"), 2) is None
    assert collapse(-1.0, Score(1.0, -90.0, 100, name="negative error"), 2) is None


def terminal(width: int = 200) -> tuple[RichDisplay, io.StringIO]:
    display, shown = RichDisplay(), io.StringIO()
    display.console = Console(file=shown, force_terminal=True, width=width, color_system=None)
    return display, shown


def training_log(folder: Path, display: RichDisplay) -> TrainingLog:
    sparsity = SparsityConfig()
    (folder / "checkpoints").mkdir()
    header = Header(ModelSpec("mlp", None, {}))
    return TrainingLog(RunDirectory(folder), display, "train", TrainConfig(), header, sparsity, classes=10)


def state() -> State:
    model = chain()
    return State(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize("quiet", [False, True])
def test_a_collapse_is_reported_once_with_what_to_do(tmp_path: Path, quiet: bool) -> None:
    display, shown = terminal(1000)
    display.quiet = quiet
    log, now, best = training_log(tmp_path, display), state(), 0.0
    for epoch, accuracy in enumerate((0.5, 0.9, 0.1, 0.1, 0.8, 0.2), 1):
        score = Score(1.0, accuracy, 100)
        is_best, best = accuracy > best, max(accuracy, best)
        now.progress = Progress(epoch=epoch, best=best, best_epoch=min(epoch, 2) - 1)
        log.on_epoch(EpochRecord(epoch, 0.1, score, score, is_best), now)
    warnings = [line for line in shown.getvalue().splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "fell from 90.00% to 10.00% (epochs 2 and 3)" in warnings[0]
    for fix in (
        "lower lr",
        "clip_norm",
        "warmup_epochs",
        "sparsity.target",
        "sparsity.lambda",
        str(tmp_path / "checkpoints"),
    ):
        assert fix in warnings[0]


def test_a_quiet_display_shows_warnings_only() -> None:
    display, shown = terminal()
    display.quiet = True
    display.note("warning: a line of which only the text says so")
    display.note(Note("code", "note", "a note"))
    display.note(Note("code", "warning", "a warning"))
    assert shown.getvalue() == "warning: a warning\n"


def test_warnings_have_a_code() -> None:
    few, fallen = small_batches(1), collapse(0.9, Score(1.0, 0.1, 100), 10)
    assert [(found.code, found.level) for found in (few, fallen)] == [
        ("train.small_batches", "warning"),
        ("train.collapse", "warning"),
    ]


def test_the_bar_shows_scale_factors_while_an_epoch_runs(tmp_path: Path) -> None:
    display, shown = terminal()
    log, now = training_log(tmp_path, display), state()
    for norm in (m for m in now.model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.weight.data.fill_(0.25)
    with display:
        display.begin("train", 5, "")
        log.on_step(now, 10, 2.5)
    assert "0% of γ ≈ 0  not yet apart from the others  |γ| from 0.25 to 0.25, median 0.25" in shown.getvalue()


APART = "40% of γ ≈ 0, apart from the others, |γ| from 0 to 0.5, median 0.5"


def test_a_line_about_scale_factors() -> None:
    values = torch.tensor([0.0001] * 4 + [0.5] * 6)
    assert describe_gamma(gamma_statistics([values])) == APART
