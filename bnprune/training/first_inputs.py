"""The inputs of the first forward pass in a training loop of a user's own, to trace the network with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import unwrapped
from bnprune.channels.pytrees import Inputs, as_inputs, map_tensors
from bnprune.errors import PruningError
from bnprune.training.penalties.gamma import require_scale_factors


class FirstInputs:
    """The inputs of the first call of a network, or of the outermost part of it that holds all its scale factors.

    A loop need not call the network as a whole: `training_step` of a Lightning module often calls `self.net(images)`.
    """

    def __init__(self) -> None:
        self._found: tuple[nn.Module, Inputs] | None = None
        self._hooks: list[Any] = []

    def watch(self, model: nn.Module) -> None:
        """Store the inputs of the next call of a network, which may be wrapped."""
        network = unwrapped(model)
        compiled = hasattr(model, "_orig_mod")  # hooks inside a compiled network would be compiled as well
        for module in [model] if compiled else _holders(network):
            self._hooks.append(_on_call(module, self._keep, network if compiled else module))

    def _keep(self, module: nn.Module, inputs: Inputs) -> None:
        if self._found is None:
            self._found = module, map_tensors(lambda tensor: tensor.detach().clone(), inputs)

    def set(self, network: nn.Module, example_inputs: Any) -> None:
        """Store these inputs, and remove the hooks."""
        self._found = network, as_inputs(example_inputs)

    def taken(self) -> tuple[nn.Module, Any]:
        """Return the module that was called and its inputs as `trace` takes them, and remove the hooks.

        Raises:
            PruningError: There was no call.
        """
        if self._found is None:
            raise PruningError(
                "sparsify: the optimizer took a step, but neither the network nor a part that holds all its BatchNorms "
                "was called. Give example_inputs."
            )
        self.detach()
        module, (args, kwargs) = self._found
        self._found = None  # a batch may be large
        if args and kwargs:  # `trace` takes positional or keyword arguments, not both
            return module, dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        return module, kwargs or args

    def detach(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _on_call(module: nn.Module, keep: Any, owner: nn.Module) -> Any:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        keep(owner, (args, kwargs))

    return module.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True)


def _holders(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the network, and the parts inside it that hold all its scale factors, from the outside in."""
    wanted = {id(gamma) for gamma in require_scale_factors(model)}
    inside: nn.Module | None = model
    while inside is not None:
        yield inside
        parts = inside.children()
        inside = next((part for part in parts if wanted <= {id(p) for p in part.parameters()}), None)
