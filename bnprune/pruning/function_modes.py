"""Function modes of a dry run. Unlike operators, they also see the calls that fail before an operator runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from bnprune.channels.pytrees import operands

_DEVICE = torch.Tensor.device.__get__
_SIZES = (cast("Any", torch.Tensor).shape.__get__, torch.Tensor.size)


class ClaimedDevice(TorchFunctionMode):
    """Makes tensors on the meta device return the device of the trace, because code may branch on `x.device`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.device if func == _DEVICE else func(*args, **kwargs or {})


class FailingCall(TorchFunctionMode):
    """Records the operands of every call that raises an error.

    `y.reshape(4, 16, 48)` compares sizes before it calls an operator, and `if y.shape[1] != 48: raise ...` calls none,
    so that a dispatch mode sees nothing of them. A function mode slows down every call and every `y.shape`, and is
    therefore used only in a second run after a failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[tuple[Exception, list[torch.Tensor]]] = []
        self._measured: list[torch.Tensor] = []
        """The tensor whose size was read last; [] if none was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _SIZES:
            self._measured = [args[0]]
        try:
            return func(*args, **kwargs or {})
        except Exception as error:
            self._errors.append((error, operands(args, kwargs or {})))
            raise

    def operands_of(self, error: BaseException | None) -> list[torch.Tensor]:
        """Return the operands of the innermost call that raised an error or its cause.

        If Python code raised it, return the tensor whose size was read last.
        """
        while error is not None:
            for raised, tensors in self._errors:
                if raised is error:
                    return tensors
            error = error.__cause__ or error.__context__
        return self._measured
