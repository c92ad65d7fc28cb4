"""The outputs of a network that count: they keep their channels, and the proof compares them.

A network may return more than its user wants, for example neck features beside the predictions. `outputs` names the
part that counts::

    returns (predictions, [p3, p4, p5])         outputs="0"        the predictions
    returns {"logits": x, "hidden": [h0, h1]}   outputs="logits, hidden.1"
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bnprune.channels.labels import Labels
from bnprune.channels.pytrees import tensors
from bnprune.channels.union_find import NO_CHANNEL, ChannelIds, Ids, Refusal
from bnprune.config.prune_options import Outputs
from bnprune.errors import ConfigError, first_line, quoted, shortened
from bnprune.notes import Note


def counted_outputs(output: Any, outputs: Outputs | None) -> list[torch.Tensor]:
    """Return the tensors of the outputs that count.

    Args:
        output: The output of a forward pass.
        outputs: A path of indices, keys and attributes ("0", "0.1", "preds.0"; several are separated by commas), a
            function that takes the output and returns parts of it, or None for the whole output.

    Raises:
        ConfigError: The output has no such part, or there is no tensor in it.
    """
    every = list(tensors(output))
    if outputs is None:
        return every
    chosen = list(tensors(_called(outputs, output) if callable(outputs) else _at_paths(output, str(outputs))))
    if not chosen:
        raise ConfigError(f"outputs: {described(outputs)} holds no tensor: {_summary(output)}.", where="outputs")
    own = {id(tensor) for tensor in every}
    if any(id(tensor) not in own for tensor in chosen):
        raise ConfigError(
            f"outputs: {described(outputs)} returns a tensor that the network does not return. It must pick parts of "
            "the output, not compute with them.",
            where="outputs",
        )
    return chosen


class OutputChannels:
    """Freezes the channels of the outputs that count, forward pass by forward pass.

    `outputs` refers to the output in eval mode. In train mode, where a network may return something else (raw tensors
    for a loss), all tensors count except those with two properties: their channels are those of an eval output that
    does not count, and the network itself reads them. A tensor that nothing reads is computed for the loss. Example
    with outputs="0"::

        eval     (main, aux, features)      main counts
        train    (main, aux, features)      main and aux count; features, which the heads read, do not
    """

    def __init__(self, ids: ChannelIds, outputs: Outputs | None) -> None:
        self._ids, self._outputs = ids, outputs
        self._free: list[Ids] = []
        """Channels of outputs that do not count."""
        self._read: dict[int, weakref.ref[torch.Tensor]] = {}

    def note_read(self, entering: Sequence[torch.Tensor]) -> None:
        """Note that an operator reads these tensors."""
        if self._free:
            self._read.update((id(tensor), weakref.ref(tensor)) for tensor in entering)

    def freeze(self, output: Any, labels_of: Callable[[torch.Tensor], Labels], *, training: bool, forced: bool) -> None:
        """Freeze the channels of the outputs that count, after a forward pass.

        Args:
            output: The output of the pass.
            labels_of: Returns the labels of a tensor.
            training: True after a pass in train mode.
            forced: True after a pass along a forced branch, where the output may lack the chosen part: then all count.

        Raises:
            ConfigError: The output has no such part.
        """
        every = list(tensors(output))
        if training:
            counted = [t for t in every if not (self._is_read(t) and self._is_free(_ids_of(labels_of(t))))]
        else:
            counted = self._counted_in_eval(output, forced=forced)
            chosen = {id(tensor) for tensor in counted}
            self._free += [_ids_of(labels_of(tensor)) for tensor in every if id(tensor) not in chosen]
        for tensor in counted:
            self._ids.freeze(_ids_of(labels_of(tensor)), _SEVERAL if len(every) > 1 else _OUTPUT)

    def _counted_in_eval(self, output: Any, *, forced: bool) -> list[torch.Tensor]:
        try:
            return counted_outputs(output, self._outputs)
        except ConfigError:
            if not forced:
                raise
            return list(tensors(output))

    def _is_read(self, tensor: torch.Tensor) -> bool:
        known = self._read.get(id(tensor))
        return known is not None and known() is tensor

    def _is_free(self, ids: Ids) -> bool:
        free = np.concatenate([np.array([NO_CHANNEL]), *(self._ids.find(own) for own in self._free)])
        return bool(np.isin(self._ids.find(ids), free).all())


_OUTPUT = Refusal("output", "is an output of the network", "")
_SEVERAL = Refusal("output", "is an output of the network", "name the outputs that count (outputs), if not all do")


def _ids_of(labels: Labels) -> Ids:
    return np.concatenate([np.zeros(0, dtype=np.int64), *(label.numpy().ravel() for label in labels)])


def described(outputs: Outputs | Mapping[str, str]) -> str:
    """Return a path in quotes, or the name of a function; also of outputs as a plan records them."""
    known = recorded(outputs) if callable(outputs) else outputs
    return f"the function {known['function']}" if isinstance(known, Mapping) else quoted(str(known))


def recorded(outputs: Outputs) -> str | dict[str, str]:
    """Return `outputs` as a plan records it: a path as text, and a function by its name, which is not looked up."""
    return {"function": name_of(outputs)} if callable(outputs) else str(outputs)


def note_on(outputs: Outputs | Mapping[str, str]) -> Note:
    """Return the note that not all outputs count."""
    text = f"only {described(outputs)} of the output counts: other parts may lose channels and are not compared"
    return Note("outputs.named", "note", text)


def name_of(outputs: Outputs) -> str:
    """Return a path as text, or the name of a function."""
    return shortened(str(getattr(outputs, "__qualname__", type(outputs).__name__) if callable(outputs) else outputs))


def _called(function: Callable[[Any], Any], output: Any) -> Any:
    try:
        return function(output)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(
            f"outputs: {described(function)} fails on the output of the network ({_summary(output)}): {reason}.",
            where="outputs",
        ) from error


def _at_paths(output: Any, paths: str) -> list[Any]:
    return [_at(output, path.strip()) for path in paths.split(",")]


def _at(output: Any, path: str) -> Any:
    part, keys = output, path.split(".")
    for depth, key in enumerate(keys):
        try:
            part = _item(part, key)
        except LookupError as error:
            place = f"{quoted('.'.join(keys[:depth]))} of the output" if depth else "the output"
            message = f"outputs: {quoted(path)} does not exist: {place} is {_summary(part)}."
            raise ConfigError(message, where="outputs") from error
    return part


def _item(part: Any, key: str) -> Any:
    """Return an item of a list or a mapping, or an attribute of an object.

    Raises:
        LookupError: There is none.
    """
    index = int(key) if key.removeprefix("-").isdecimal() and len(key) < 10 else None
    if isinstance(part, Mapping):
        return part[key] if key in part else part[index]
    if isinstance(part, list | tuple) and index is not None:
        return part[index]
    missing = object()
    value = missing if isinstance(part, torch.Tensor) or key.startswith("_") else getattr(part, key, missing)
    if value is missing:
        raise LookupError(key)
    return value


_MOST_PARTS = 12


def _summary(part: Any) -> str:
    """Return the type of a part of the output, and its own parts: "a tuple of 2 (0: tensor (1, 8), 1: list of 3)"."""
    named = _parts(part)
    if not named:
        return f"a {_kind(part)}"
    listed = [f"{shortened(str(key), 60)}: {_kind(value)}" for key, value in named[:_MOST_PARTS]]
    return f"a {_kind(part)} ({', '.join([*listed, *(['...'] if len(named) > _MOST_PARTS else [])])})"


def _kind(part: Any) -> str:
    if isinstance(part, torch.Tensor):
        return f"tensor {tuple(part.shape)}"
    if isinstance(part, Mapping | list | tuple):
        return f"{type(part).__name__} of {len(part)}"
    return type(part).__name__


def _parts(part: Any) -> list[tuple[Any, Any]]:
    if isinstance(part, torch.Tensor):
        return []
    if isinstance(part, Mapping):
        return list(part.items())
    if isinstance(part, list | tuple):
        return list(enumerate(part))
    return [(name, value) for name, value in getattr(part, "__dict__", {}).items() if not name.startswith("_")]
