"""Decisions: integers and booleans that a forward pass computes from real numbers, to be repeated in another pass.

`sort`, `topk`, `argmax`, `nms` and comparisons turn real numbers into integers. Two networks that compute the same
function up to rounding may still order two nearly equal scores differently, and everything computed from them would
differ::

    masked network    scores [0.7, 0.3000001, 0.3]    topk(2) -> [0, 1]
    slim network      scores [0.7, 0.3, 0.3000001]    topk(2) -> [0, 2], and other boxes from here on

So the second network takes the decisions of the first, and the scores are compared instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bnprune.channels.pytrees import map_tensors, operands
from bnprune.channels.torch_internals import OpOverload


@dataclass(frozen=True, slots=True)
class Decision:
    """One operator call that computed integers or booleans from real numbers."""

    op: str
    shapes: tuple[torch.Size, ...]
    """Shapes of its real operands."""
    operands: tuple[torch.Tensor, ...]
    """Copies of its real operands; empty if no copies were kept."""
    output: Any


class Decisions:
    """The decisions of one forward pass, in order."""

    def __init__(self, *, keep_operands: bool = True) -> None:
        self._keep_operands = keep_operands
        self._decisions: list[Decision] = []
        self.read_by_python = False
        """True if Python code read a truth value (`if x.max() > 0`), and may have taken a branch."""

    @property
    def any(self) -> bool:
        """True if there is at least one decision."""
        return bool(self._decisions)

    @property
    def operands(self) -> list[torch.Tensor]:
        """The real numbers that the decisions were computed from; none if they were not kept."""
        return [tensor for decision in self._decisions for tensor in decision.operands]

    def record(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Record an operator call if it is a decision, and return its output.

        Call it before any other operator runs, which may change the operands in place.
        """
        self.read_by_python |= isinstance(output, bool)
        if _is_decision(args, kwargs, output):
            real = _real_operands(args, kwargs)
            kept = tuple(tensor.clone() for tensor in real) if self._keep_operands else ()
            shapes = tuple(tensor.shape for tensor in real)
            self._decisions.append(Decision(func.name(), shapes, kept, map_tensors(torch.clone, output)))
        return output

    def replay(self) -> Replay:
        """Return an object that repeats these decisions in a second forward pass."""
        return Replay(self._decisions)


class Replay:
    """Repeats the decisions of a forward pass in a second one."""

    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions = decisions
        self._next = 0
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Real operands of each decision, in the first and in this pass, if their shapes are equal."""

    @property
    def remaining(self) -> int:
        """Number of decisions that have not been repeated yet."""
        return len(self._decisions) - self._next

    def matches(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """True if an operator call is the next decision, on real numbers of the same shapes."""
        if self._next >= len(self._decisions):
            return False
        recorded = self._decisions[self._next]
        return recorded.op == func.name() and recorded.shapes == tuple(t.shape for t in _real_operands(args, kwargs))

    def next_output(self) -> Any:
        """Return the recorded output of the next decision; real numbers in it are on the meta device."""
        output = self._decisions[self._next].output
        self._next += 1
        return map_tensors(
            lambda tensor: torch.empty_like(tensor, device="meta") if is_real(tensor) else tensor.clone(), output
        )

    def apply(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return the output of an operator call with the integers and booleans of the first pass.

        If the shapes differ, the decision was taken for each channel separately (a maximum over space), and
        affects no other channel: the output stays as it is.
        """
        if not _is_decision(args, kwargs, output) or self._next >= len(self._decisions):
            return output
        recorded = self._decisions[self._next]
        if recorded.op != func.name():
            return output
        self._next += 1
        real = _real_operands(args, kwargs)
        if recorded.shapes != tuple(tensor.shape for tensor in real):
            return output
        self.pairs += [(first, second.clone()) for first, second in zip(recorded.operands, real, strict=False)]
        return _combined(recorded.output, output)


FORCED_BRANCHES = {"forced branch, +inf": math.inf, "forced branch, -inf": -math.inf}
"""Names of the additional forward passes, which take the branches that the normal one does not take, and the number
that `.item()` returns in them."""


class ForcedBranch:
    """Inverts what Python code reads from tensors, so that the code of the other branches runs, too."""

    def __init__(self, number: float, limit: int = 100) -> None:
        self._number = number
        self._replacements_left = limit  # `while x.max() > 1` would never end
        self.is_stuck = False
        """True if no operator has run since the last inverted value: code that fails here fails for any values."""
        self.replaced_number = False
        """True if a number was replaced; if only truth values were inverted, +inf and -inf give the same pass."""

    def invert(self, output: Any) -> Any:
        """Return the output of an operator call, with a truth value inverted and a real number replaced."""
        self.is_stuck = isinstance(output, bool | float) and self._replacements_left > 0
        if not self.is_stuck:
            return output
        self._replacements_left -= 1
        self.replaced_number |= isinstance(output, float)
        return not output if isinstance(output, bool) else self._number


def _is_decision(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        is_discrete = not is_real(output)
    else:
        results = operands((output,), {})
        is_discrete = any(not is_real(t) for t in results) if results else isinstance(output, bool | int | float)
    return is_discrete and any(map(is_real, operands(args, kwargs)))


def _real_operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [tensor for tensor in operands(args, kwargs) if is_real(tensor)]


def is_real(tensor: torch.Tensor) -> bool:
    """True if a tensor holds real or complex numbers, which rounding may change."""
    return tensor.is_floating_point() or tensor.is_complex()


def _combined(recorded: Any, computed: Any) -> Any:
    """Take integers and booleans from `recorded`, and real numbers from `computed`.

    The integers may have another length than the computed ones (`nonzero`).
    """
    if isinstance(computed, list | tuple):
        return tuple(map(_combined, recorded, computed))
    if isinstance(computed, torch.Tensor) and is_real(computed):
        same_shape = computed.shape == recorded.shape
        return computed if same_shape else recorded.to(computed.device, copy=True)
    return recorded.clone() if isinstance(recorded, torch.Tensor) else recorded
