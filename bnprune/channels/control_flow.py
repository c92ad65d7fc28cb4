"""Decisions: what the values of a forward pass decide (indices, masks, branches), to be repeated in another pass.

`sort`, `topk`, `argmax`, `nms` and comparisons turn real numbers into integers. Two networks that compute the same
function up to rounding may still order two nearly equal scores differently, and everything after that would differ.
So the second network repeats the decisions of the first, and what they were based on is compared instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bnprune.channels.pytrees import map_tensors, operands


@dataclass(frozen=True, slots=True)
class Decision:
    """One operator call that made integers or booleans out of real numbers."""

    op: str
    shapes: tuple[torch.Size, ...]
    """Of the real numbers it saw."""
    evidence: tuple[torch.Tensor, ...]
    """These numbers; empty where they were not kept."""
    output: Any


class Decisions:
    """The decisions of one forward pass, in order."""

    def __init__(self, *, keep_evidence: bool = True) -> None:
        self._keep_evidence = keep_evidence
        self._made: list[Decision] = []
        self.asked = False
        """Whether Python code asked for a truth value, and may have taken a branch."""

    @property
    def any(self) -> bool:
        """Whether anything was decided."""
        return bool(self._made)

    @property
    def evidence(self) -> list[torch.Tensor]:
        """What the decisions were based on, as far as it was kept."""
        return [tensor for decision in self._made for tensor in decision.evidence]

    def record(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Note an operator call, if it decided something, and return its output.

        To be called before anything changes its operands.
        """
        self.asked |= isinstance(output, bool)
        if _decides(args, kwargs, output):
            seen = _seen(args, kwargs)
            evidence = tuple(tensor.clone() for tensor in seen) if self._keep_evidence else ()
            shapes = tuple(tensor.shape for tensor in seen)
            self._made.append(Decision(func.name(), shapes, evidence, map_tensors(torch.clone, output)))
        return output

    def repetition(self) -> Repetition:
        """Return what a second forward pass needs to decide the same."""
        return Repetition(self._made)


class Repetition:
    """Repeats decisions in a second forward pass."""

    def __init__(self, made: list[Decision]) -> None:
        self._made = made
        self._next = 0
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        """What each decision was based on, in the first and in this pass, where the shapes are equal."""

    @property
    def left(self) -> int:
        """Decisions that have not been repeated yet."""
        return len(self._made) - self._next

    def recalls(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether an operator call is the next decision, on real numbers of the same shapes."""
        if self._next >= len(self._made):
            return False
        before = self._made[self._next]
        return before.op == func.name() and before.shapes == tuple(tensor.shape for tensor in _seen(args, kwargs))

    def recall(self) -> Any:
        """Return the output of the next decision as it was the first time; real numbers in it have no value."""
        output = self._made[self._next].output
        self._next += 1
        return map_tensors(
            lambda tensor: torch.empty_like(tensor, device="meta") if is_real(tensor) else tensor.clone(), output
        )

    def repeat(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return the output of an operator call with its integers and booleans as they were the first time.

        Where shapes differ, the decision was taken channel by channel and concerns nothing but those channels: it
        stands as it is.
        """
        if not _decides(args, kwargs, output) or self._next >= len(self._made):
            return output
        before = self._made[self._next]
        if before.op != func.name():
            return output
        self._next += 1
        seen = _seen(args, kwargs)
        if before.shapes != tuple(tensor.shape for tensor in seen):
            return output
        self.pairs += [(then, now.clone()) for then, now in zip(before.evidence, seen, strict=False)]
        return _decided(before.output, output)


FORCED_BRANCHES = {"detour up": math.inf, "detour down": -math.inf}
"""Modes of a forward pass that takes the branches other inputs would have taken, and the number its code reads."""


class ForcedBranch:
    """Answers what a network's code asks about its values the other way round, so that the rest of the code runs."""

    def __init__(self, number: float, limit: int = 100) -> None:
        self._number = number
        self._left = limit  # a loop until something holds would never end
        self.is_stuck = False
        """Whether nothing has run since an answer: code that fails there fails with any values."""
        self.gave_number = False
        """Whether an answer was a number: without, all detours are the same."""

    def turn(self, output: Any) -> Any:
        """Return the output of an operator call; a truth value or a real number for Python code is another one."""
        self.is_stuck = isinstance(output, bool | float) and self._left > 0
        if not self.is_stuck:
            return output
        self._left -= 1
        self.gave_number |= isinstance(output, float)
        return not output if isinstance(output, bool) else self._number


def _decides(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        exact = not is_real(output)
    else:
        results = operands((output,), {})
        exact = any(not is_real(t) for t in results) if results else isinstance(output, bool | int | float)
    return exact and any(map(is_real, operands(args, kwargs)))


def _seen(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [tensor for tensor in operands(args, kwargs) if is_real(tensor)]


def is_real(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds real (or complex) numbers: whether rounding may change them."""
    return tensor.is_floating_point() or tensor.is_complex()


def _decided(before: Any, now: Any) -> Any:
    """Take integers and booleans from `before` (they may have another length: `nonzero`), real numbers from `now`."""
    if isinstance(now, list | tuple):
        return tuple(map(_decided, before, now))
    if isinstance(now, torch.Tensor) and is_real(now):
        return now if now.shape == before.shape else before.to(now.device, copy=True)
    return before.clone() if isinstance(before, torch.Tensor) else before
