"""The cells of the arena: one network, seed, arm and share of the MACs each; their order and what they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arena.arms import ARMS, BASES

NETWORKS = ("resnet20", "vgg11")
SHARES = (0.5, 0.3)
MAIN_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One training: of a base, or of what an arm makes of one."""

    network: str
    seed: int
    arm: str
    """Name of an arm, or of a base."""
    macs: float | None = None
    """Largest share of the MACs; None for a base."""

    @property
    def name(self) -> str:
        """Name of its file of results."""
        return f"{self.network}-seed{self.seed}-{self.arm}" + ("" if self.macs is None else f"-{self.macs:g}")

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The cells that must be finished before."""
        if self.macs is None:
            return ()
        arm = ARMS[self.arm]
        if arm.scratch is not None:
            return (Cell(self.network, self.seed, "default", self.macs),)
        return (self.base,)

    @property
    def base(self) -> Cell:
        """The network that is cut."""
        return Cell(self.network, self.seed, ARMS[self.arm].base)


DEFAULT_ARMS = ("sparse", "dense", *ARMS)


def ordered(networks: Sequence[str], seeds: Sequence[int], arms: Sequence[str]) -> list[Cell]:
    """Return the cells in the order in which they run, each after those that it needs.

    The bases and the main arms of every network and seed, then the other arms of the first seed alone.

    Args:
        networks: Names of networks.
        seeds: Seeds.
        arms: Names of arms, and of bases to train even if no arm needs them.
    """
    main = [name for name in arms if name in ARMS and ARMS[name].main]
    others = [name for name in arms if name in ARMS and name not in main]
    cells: dict[Cell, None] = {}
    for network in networks:
        for seed in seeds:
            bases = [Cell(network, seed, base) for base in BASES if base in arms]
            for cell in [*bases, *_of_arms(network, seed, main)]:
                cells.update(dict.fromkeys([*_all_needed(cell), cell]))
    for network in networks:
        for cell in _of_arms(network, seeds[0], others):
            cells.update(dict.fromkeys([*_all_needed(cell), cell]))
    return list(cells)


def _of_arms(network: str, seed: int, arms: Sequence[str]) -> list[Cell]:
    return [Cell(network, seed, name, share) for share in SHARES for name in arms]


def _all_needed(cell: Cell) -> Iterator[Cell]:
    for needed in cell.needs:
        yield from _all_needed(needed)
        yield needed
