#!/usr/bin/env python
"""How sure is the recommendation of a sweep, and how much does it leave on the table? On simulated outcomes.

Every simulated image has a margin, positive if the network before pruning gets it right. A cut changes the margins by
random amounts, which are mostly the same for all networks that recovery tries after the cut, and the best of these on
the simulated images is taken, as in a real sweep. The true loss of every cut is known in closed form.

    python scripts/simulate_sweeps.py --draws 1000 --tolerance 0.01
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import NormalDist

import torch

from bnprune.recovery.paired import CONFIDENCE, loss_bounds
from bnprune.recovery.sweep import Point
from bnprune.recovery.sweep_choice import Choice, choose

NORMAL = NormalDist()
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
IMAGES = (143, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Scenario:
    """The true losses of the cuts, and how much each changes the margins of the images."""

    losses: tuple[float, ...]
    changes: tuple[float, ...]
    """Standard deviation of the change, relative to that of the margins."""
    accuracy: float = 0.9

    @property
    def shifts(self) -> list[float]:
        """Mean change of the margins of each cut, so that the true loss is as stated."""
        before = NORMAL.inv_cdf(self.accuracy)
        return [
            NORMAL.inv_cdf(self.accuracy - loss) * (1 + change**2) ** 0.5 - before
            for loss, change in zip(self.losses, self.changes, strict=True)
        ]


CHANGES = (0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.2, 0.26, 0.34, 0.45, 0.6)


def gradual(tolerance: float) -> Scenario:
    """Losses that grow faster and faster; the ninth cut is the first that loses more than the tolerance."""
    shares = (0, 0, 0.01, 0.03, 0.08, 0.15, 0.3, 0.6, 1.3, 3, 8, 20)
    return Scenario(tuple(share * tolerance for share in shares), CHANGES)


def worst(tolerance: float) -> Scenario:
    """Three harmless cuts, and nine that lose just more than the tolerance, by small changes of the margins."""
    return Scenario((0.0,) * 3 + (1.001 * tolerance,) * 9, (0.01, 0.02, 0.03) + (0.03,) * 9)


@dataclass(frozen=True)
class Outcome:
    """The score of a simulated network."""

    samples: torch.Tensor
    halves: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        """Share of the images that are right."""
        return self.samples.sum().item() / len(self.samples)

    @property
    def count(self) -> int:
        """Number of the images."""
        return len(self.samples)


def draw(scenario: Scenario, images: int, generator: torch.Generator, candidates: int = 4) -> list[Point]:
    """Return the points of one simulated sweep."""
    margins = torch.randn(images, generator=generator) + NORMAL.inv_cdf(scenario.accuracy)
    start = Outcome(margins > 0)
    points = [Point(0.0, 0.0, 1.0, 1.0, start.value, start.value, start.value, start.value)]
    for ratio, change, shift in zip(RATIOS, scenario.changes, scenario.shifts, strict=True):
        common, own = torch.randn(1, images, generator=generator), torch.randn(candidates, images, generator=generator)
        changed = margins + shift + change * (0.7**0.5 * common + 0.3**0.5 * own) > 0
        best = Outcome(changed[int(changed.sum(1).argmax())])
        bounds = loss_bounds(start, best, (1 - CONFIDENCE) / candidates)
        assert bounds is not None
        accuracy = best.value
        low, high = start.value - bounds.upper, start.value - bounds.lower
        points.append(Point(ratio, ratio, 1 - ratio, 1 - ratio, accuracy, accuracy, low, high))
    return points


@dataclass(frozen=True)
class Summary:
    """The choices of many sweeps."""

    within: float
    """Share of the sweeps that recommend nothing with a larger true loss than the tolerance."""
    none: float
    """Share of the sweeps that recommend nothing."""
    recommended: float
    """Mean share of channels to remove; 0 if nothing is recommended."""
    measured_within: float
    measured: float
    """The same for the cuts whose measured loss is within the tolerance."""
    best: float
    """The largest ratio whose true loss is within the tolerance."""


def simulate(scenario: Scenario, images: int, tolerance: float, draws: int, seed: int = 0) -> Summary:
    """Return how the sweeps of a scenario end."""
    generator = torch.Generator().manual_seed(seed)
    choices = [choose(draw(scenario, images, generator), tolerance) for _ in range(draws)]
    allowed = {0.0} | {ratio for ratio, loss in zip(RATIOS, scenario.losses, strict=True) if loss <= tolerance}
    recommended, measured = ([_ratio(choice, name) for choice in choices] for name in ("recommended", "measured"))
    return Summary(
        within=sum(ratio in allowed for ratio in recommended) / draws,
        none=recommended.count(0.0) / draws,
        recommended=sum(recommended) / draws,
        measured_within=sum(ratio in allowed for ratio in measured) / draws,
        measured=sum(measured) / draws,
        best=max(allowed),
    )


def _ratio(choice: Choice, name: str) -> float:
    point = getattr(choice, name)
    return 0.0 if point is None else point.asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--tolerance", type=float, default=0.01)
    asked = parser.parse_args()
    for scenario in (gradual, worst):
        print(f"\n{scenario.__doc__}\nallowed loss {asked.tolerance:.1%}, {asked.draws} draws")
        print("         recommended                               measured")
        print(" images  within  none  ratio  left on the table   within  ratio   (best ratio)")
        for images in IMAGES:
            one = simulate(scenario(asked.tolerance), images, asked.tolerance, asked.draws)
            recommended = f"{one.within:6.1%}  {one.none:4.0%}  {one.recommended:5.2f}"
            left, measured = one.best - one.recommended, f"{one.measured_within:6.1%}  {one.measured:5.2f}"
            print(f"{images:7,}  {recommended}  {left:17.2f}   {measured}   {one.best:12.2f}")


if __name__ == "__main__":
    main()
