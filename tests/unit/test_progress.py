"""Lines of progress fit the terminal, and say how fast a training is and how long the run will take."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from bnprune.cli.render import progress, training_clock
from bnprune.cli.render.fitted_line import Part, clock, fitted_line, wrapped
from bnprune.cli.render.progress import RichDisplay
from bnprune.cli.render.training_clock import TrainingClock
from bnprune.config.schema import PipelineConfig
from bnprune.runs.pipeline import _epochs
from bnprune.training.evaluate import Score
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import gamma_statistics
from tests.cli.harness import spawn

GAMMA = gamma_statistics([torch.tensor([0.0] * 7 + [0.5] * 3)])


class Time:
    """A clock that moves when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    passing = Time()
    for module in (progress, training_clock):
        monkeypatch.setattr(module, "time", passing)
    return passing


def display_of(width: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[RichDisplay, io.StringIO]:
    """Return a display on a terminal, or in a file if `width` is None."""
    monkeypatch.delenv("COLUMNS", raising=False)
    shown, display = io.StringIO(), RichDisplay()
    display.console = Console(file=shown, force_terminal=width is not None, width=width, color_system=None)
    return display, shown


def trained(display: RichDisplay, time: Time, epochs: int = 3) -> None:
    """Train one of three stages: 10 steps of 100 images per epoch and second."""
    display.schedule({"baseline": epochs, "train": epochs, "prune": 0, "finetune": 2 * epochs})
    display.begin("train", epochs, "", 1000)
    score = Score(1.2345, 0.875, 100)
    for epoch in range(epochs):
        for step in range(1, 11):
            time.now += 0.1
            display.step(epoch, step, 10, 1.2345, GAMMA, 0.05)
        display.epoch(EpochRecord(epoch + 1, 0.05, score, score, epoch == 0), epochs, GAMMA)


def lines_of(shown: io.StringIO) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_lines_fit_the_terminal_without_cutting_a_number(
    width: int, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    display, shown = display_of(width, monkeypatch)
    with display:
        trained(display, time)
    lines = lines_of(shown)
    assert max(map(len, lines)) <= width
    assert "…" not in shown.getvalue()
    finished = [line for line in lines if "validation" in line]
    assert len(finished) == 3
    assert all("validation 87.50%" in line for line in finished)
    assert finished[0].count("best") == 1
    assert "best" not in finished[1]


def test_the_live_line_of_80_columns_shows_speed_and_time_left(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    display, shown = display_of(80, monkeypatch)
    with display:
        trained(display, time)
    live = [line for line in lines_of(shown) if "━" in line][-1]
    # two fine-tuning epochs for each of the three are left, a second each
    assert re.search(r"epoch 3/3 ━+ loss 1.234  70% of γ ≈ 0  1,000 images/s  about 0:06 left", live)


def test_a_file_gets_every_figure(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    display, shown = display_of(None, monkeypatch)
    with display:
        trained(display, time)
    first = next(line for line in lines_of(shown) if "epoch 1/3" in line)
    for figure in ("loss 1.234", "train 87.50%", "best", "70% of γ ≈ 0", "lr 0.05", "1,000 images/s", "0:08 left"):
        assert figure in first


def test_a_file_gets_a_line_in_long_epochs(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    display, shown = display_of(None, monkeypatch)
    display.begin("train", 1, "", 1000)
    for step in range(1, 100):
        time.now += 1
        display.step(0, step, 100, 2.0, None, 0.1)
    assert [line[:16] for line in lines_of(shown)[1:]] == ["  epoch 1/1, 30%", "  epoch 1/1, 60%", "  epoch 1/1, 90%"]


@pytest.mark.parametrize("width", [None, 80])
def test_a_display_says_what_is_being_done(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    display, shown = display_of(width, monkeypatch)
    with display:
        display.doing("measuring the latency")
        display.begin("train", 1, "")
    assert "measuring the latency" in shown.getvalue()


def test_a_quiet_display_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    display, shown = display_of(80, monkeypatch)
    display.quiet = True
    with display:
        display.doing("measuring the latency")
    assert not shown.getvalue()


def test_a_resumed_stage_counts_only_what_this_process_did(time: Time) -> None:
    measured = TrainingClock()
    measured.begin("train", 10, 100)
    measured.step(8, 0.5)
    assert measured.seconds_left() is None
    time.now += 5
    measured.step(9, 0.0)
    assert measured.seconds_left() == pytest.approx(10)


def test_the_parts_of_the_largest_rank_go_first() -> None:
    parts = [Part("one", 2), Part("two", 0), Part("three", 1), Part("", 0)]
    found = {width: fitted_line(parts, width) for width in (None, 15, 14, 9, 1)}
    assert list(found.values()) == ["one  two  three", "one  two  three", "two  three", "two", "two"]


def test_long_lines_break_between_words() -> None:
    text = "  after pruning: plain 9.79%, compensated 61.54%; kept: /a/path/that/is/longer/than/the/terminal"
    lines = wrapped(text, 30).splitlines()
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) <= 30 for line in lines[:-1])
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(not before[-1].isalnum() or after[0] == " " for before, after in pairwise(lines))
    assert wrapped(text, None) == text


def test_durations() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


def test_the_epochs_of_a_run() -> None:
    recipe = {
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "baseline": True,
        "train": {"epochs": 3},
        "prune": {"ratio": 0.5},
        "finetune": {"epochs": 2},
        "scratch": "epochs",
    }
    stages = ("baseline", "train", "prune", "finetune", "scratch")
    found = _epochs(PipelineConfig.model_validate(recipe), stages)
    assert found == {"baseline": 3, "train": 3, "prune": 0, "finetune": 2, "scratch": 5}


def test_loading_pytorch_is_said() -> None:
    assert spawn("train", "absent.yaml").communicate(timeout=120)[1].startswith("loading PyTorch ...\n")
