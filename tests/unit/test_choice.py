"""The cuts that a sweep names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bnprune.recovery.sweep import Point, Sweep
from bnprune.recovery.sweep_choice import choose, find_knee, why_not_larger


def point(asked: float, accuracy: float, low: float | None = None, high: float | None = None) -> Point:
    return Point(asked, asked, 1 - asked, 1 - asked, 0.1, accuracy, low, high)


START = point(0, 0.9, 0.9, 0.9)


def asked(found: Point | None) -> float | None:
    return None if found is None else found.asked


def test_the_bound_decides_not_the_measured_loss() -> None:
    points = [START, point(0.3, 0.9, 0.895, 0.905), point(0.5, 0.899, 0.885, 0.91), point(0.7, 0.8, 0.78, 0.82)]
    choice = choose(points, 0.01)
    assert (asked(choice.recommended), asked(choice.measured), asked(choice.best)) == (0.3, 0.5, 0.3)
    assert asked(choose(points, 0.015).recommended) == 0.5


def test_one_unlucky_image_does_not_end_the_search_for_the_measured_cut() -> None:
    """On 143 images: a small cut loses two, three quarters of the channels lose one."""
    points = [point(0, 1.0, 1.0, 1.0), point(0.1, 1.0, 0.96, 1.0), point(0.2, 141 / 143, 0.93, 1.0)]
    points += [point(0.75, 142 / 143, 0.94, 1.0), point(0.8, 0.5, 0.4, 0.6), point(0.9, 1.0, 0.96, 1.0)]
    choice = choose(points, 0.01)
    assert (choice.recommended, asked(choice.measured), asked(choice.best)) == (None, 0.75, 0.75)


def test_a_recommendation_stops_at_the_first_cut_that_is_not_shown() -> None:
    """Otherwise, the more cuts are tried, the more often one would pass by chance."""
    points = [START, point(0.3, 0.9, 0.895, 0.905), point(0.5, 0.89, 0.88, 0.9), point(0.7, 0.9, 0.895, 0.905)]
    assert asked(choose(points, 0.01).recommended) == 0.3


def test_without_bounds_nothing_is_recommended() -> None:
    choice = choose([point(0, 0.9), point(0.3, 0.9), point(0.5, 0.8), point(0.7, 0.9)], 0.01)
    assert (choice.recommended, asked(choice.measured)) == (None, 0.3)
    assert choose([point(0, 0.9), point(0.3, 0.5)], 0.01).best is None


def test_the_knee_is_the_last_cut_before_the_fall() -> None:
    flat = [START, *(point(ratio, 0.9, 0.89, 0.91) for ratio in (0.2, 0.4, 0.6))]
    fall = [point(0.7, 0.6, 0.58, 0.62), point(0.8, 0.2, 0.18, 0.22), point(0.9, 0.1, 0.09, 0.11)]
    assert asked(find_knee([*flat, *fall])) == 0.6
    assert find_knee(flat) is None  # nothing falls
    at_once = [START, point(0.1, 0.3, 0.28, 0.32), point(0.5, 0.15, 0.13, 0.17), point(0.9, 0.1, 0.09, 0.11)]
    assert find_knee(at_once) is None
    losses = {0.05: 0.692, 0.1: 0.568, 0.2: 0.4975, 0.3: 0.464, 0.4: 0.361, 0.5: 0.288}  # falls from the first cut on
    points = [point(0, 0.7245, 0.7245, 0.7245), *(point(r, a, a - 0.02, a + 0.02) for r, a in losses.items())]
    assert asked(find_knee(points)) == 0.05
    noise = [START, point(0.4, 0.91, 0.89, 0.93), point(0.8, 0.895, 0.88, 0.91)]
    assert find_knee(noise) is None


def test_a_doubt_says_how_many_images_are_needed() -> None:
    swept = Sweep([point(0, 1.0, 1.0, 1.0), point(0.5, 1.0, 0.96, 1.0)], images=143, candidates=4)
    assert "on 143 images: even for equal answers, 594 are needed." in why_not_larger(
        swept, 0.01, choose(swept.points, 0.01)
    )
    swept = Sweep([START, point(0.5, 0.9, 0.8, 0.95)], images=5000, candidates=4)
    assert why_not_larger(swept, 0.01, choose(swept.points, 0.01)).endswith(
        "on 5000 images, not even for the smallest cut."
    )


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "simulate_sweeps.py"
    spec = importlib.util.spec_from_file_location("simulate_sweeps", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["simulate_sweeps"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["gradual", "worst"])
def test_what_is_recommended_is_within_the_tolerance_in_95_of_100_sweeps(simulation: ModuleType, name: str) -> None:
    """The largest tolerance makes wrong recommendations the most frequent at these few images."""
    few = simulation.simulate(getattr(simulation, name)(0.02), 143, 0.02, 1000)
    many = simulation.simulate(getattr(simulation, name)(0.02), 600, 0.02, 1000)
    assert few.within == few.none == 1  # too few images to recommend anything
    assert many.within >= 0.95
    assert many.none < 0.2
    assert many.recommended > 0.2
    assert many.measured_within < 0.6  # by the measured loss alone, most choices are wrong
