"""Channel ids: which channels exist, which must be removed together, and which must stay.

A disjoint-set forest over integers, vectorised with NumPy: every operation takes whole arrays of ids, so that a network
with a hundred thousand channels needs a few hundred array operations and no Python loop per channel::

    ids.new(4), ids.new(4)                 [1 2 3 4], [5 6 7 8]
    ids.unite([1 2 3 4], [5 6 7 8])        units {1 5} {2 6} {3 7} {4 8}
    ids.freeze([2])                        2 and 6 stay
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int64]

NO_CHANNEL = 0
"""The id of elements that belong to no channel (padding, constants). It is never removed."""


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """Why channels at a place must stay, and what the user can change about it.

    `refusals` of the results of `bnprune.prune`, `bnprune.plan` and `bnprune.inspect`.

    Example::

        [refusal] = bnprune.inspect(model, example_inputs, exclude=["0"]).refusals
        print(refusal)  # 0.0: is excluded by '0'
        print(refusal.site)  # 0.0
    """

    site: str
    """Name of the module (dotted path), the layer or the tensor; "(network)" for the network itself."""
    reason: str
    """Why they must stay, in one clause whose subject is the channels."""
    fix: str
    """How to make them prunable; an empty string if nothing can or need be done."""

    def __post_init__(self) -> None:
        if not self.site:  # PyTorch's name of the outermost module
            object.__setattr__(self, "site", "(network)")

    def __str__(self) -> str:
        return f"{self.site}: {self.reason}" + (f" (fix: {self.fix})" if self.fix else "")


class ChannelIds:
    """Allocates channel ids, unites those that must be removed together, and freezes those that must stay."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1024, dtype=np.int64)
        self._count = 1  # id 0 is NO_CHANNEL
        self._pending: list[tuple[Ids, Ids]] = []  # united by the next `find`: one large operation, not many small
        self._frozen: list[tuple[Ids, Refusal]] = []

    def __len__(self) -> int:
        return self._count

    def new(self, count: int) -> torch.Tensor:
        """Return `count` fresh ids as an int64 tensor of shape (count,)."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = np.zeros(2 * self._count, dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        self._parent[start : self._count] = np.arange(start, self._count)
        return torch.arange(start, self._count, device="cpu")

    def find(self, ids: Ids) -> Ids:
        """Return the representative of each id, same shape."""
        if self._pending:
            left, right = (np.concatenate([ids.ravel() for ids in side]) for side in zip(*self._pending, strict=True))
            self._pending.clear()
            self._unite(left, right)
        parent = self._parent
        roots = parent[ids]
        while True:  # pointer jumping: every round halves the length of the chains from `ids` to their roots
            above = parent[roots]
            if np.array_equal(above, roots):
                return roots
            parent[ids] = above
            roots = parent[ids]

    def unite(self, left: Ids, right: Ids, why: Refusal) -> None:
        """State that `left[i]` and `right[i]` must be removed together, for every i.

        A channel united with NO_CHANNEL cannot be removed: it is frozen for the reason `why`.
        """
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        constant = (left == NO_CHANNEL) != (right == NO_CHANNEL)
        if constant.any():
            self.freeze(np.maximum(left, right)[constant], why)
            left, right = left[~constant], right[~constant]
        self._pending.append((left, right))

    def _unite(self, left: Ids, right: Ids) -> None:
        left, right = self.find(left), self.find(right)
        while True:
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))
            left, right = self.find(left), self.find(right)

    def freeze(self, ids: Ids, why: Refusal) -> None:
        """State that these channels must stay. The first reason given for a channel is the one that is reported."""
        self._frozen.append((ids.ravel(), why))

    def units(self) -> tuple[Ids, list[Refusal | None]]:
        """Return the unit of each id (dense integers from 0; unit 0 is NO_CHANNEL) and why each unit is frozen.

        Two ids are in one unit when a chain of `unite` calls connects them.
        """
        roots = self.find(np.arange(self._count))
        unique, unit_of = np.unique(roots, return_inverse=True)
        reasons: list[Refusal | None] = [None] * len(unique)
        for ids, why in reversed(self._frozen):
            for unit in np.unique(unit_of[ids]).tolist():
                reasons[unit] = why
        reasons[0] = Refusal("", "belongs to no channel", "")
        return unit_of.astype(np.int64), reasons
