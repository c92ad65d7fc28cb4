"""Networks by name: the small zoo, torchvision, timm, and factories of the user's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from bnprune.channels.torch_internals import BatchNorm
from bnprune.config.user_code import call_factory, hint, prefix, require_known_arguments
from bnprune.errors import BnpruneError, ConfigError, first_line, quoted
from bnprune.models.centernet import CenterNet
from bnprune.models.densenet import DenseNet
from bnprune.models.mlp import MLP
from bnprune.models.resnet import PreResNet, ResNet
from bnprune.models.unet import UNet
from bnprune.models.vgg import VGG

ZOO: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    **{f"vgg{depth}": partial(VGG, depth) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (20, 32, 44, 56, 110)},
    "preresnet164": partial(PreResNet, 164),
    "densenet40": partial(DenseNet, 40),
    "unet": UNet,
    "centernet": CenterNet,
}
"""The networks of this package, all for small images, each with `num_classes` and `in_channels`: classifiers, one for
segmentation (unet) and one for detection (centernet)."""


@dataclass(frozen=True)
class ModelSpec:
    """The specification of a network: a name, which is safe to read from a file, or a factory of the user's own.

    Raises:
        ConfigError: Neither a name nor a factory is given, or both are.

    Example::

        spec = bnprune.ModelSpec("torchvision/resnet18", kwargs={"num_classes": 10})
        network = bnprune.build(spec)
    """

    name: str | None = None
    """A zoo name, `torchvision/NAME` or `timm/NAME`."""
    factory: str | None = None
    """`package.module:function`, or the class name of a network handed over in Python."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor or the factory."""

    def __post_init__(self) -> None:
        if (self.name is None) == (self.factory is None):
            raise ConfigError("a model specification needs either a name or a factory.")

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data."""
        key, value = ("name", self.name) if self.name is not None else ("factory", self.factory)
        return {key: value, "kwargs": dict(self.kwargs)}

    @classmethod
    def parse(cls, text: str, kwargs: Mapping[str, Any]) -> ModelSpec:
        """Read NAME or package.module:function."""
        return cls(factory=text, kwargs=kwargs) if ":" in text else cls(name=text, kwargs=kwargs)

    @property
    def label(self) -> str:
        """Name of the network in messages."""
        return self.name or self.factory or ""

    @property
    def own(self) -> bool:
        """True if the network is built by a factory of the user's own."""
        return self.name is None


def build(spec: ModelSpec, where: str = "model") -> nn.Module:
    """Build a network with random weights, as its constructor draws them.

    Args:
        spec: Name or factory of the network, and its arguments.
        where: Name of the setting in messages; empty for none.

    Returns:
        The network, on the default device.

    Raises:
        ConfigError: There is no network of that name, or its constructor fails.

    Example::

        network = bnprune.build(bnprune.ModelSpec("resnet20", kwargs={"num_classes": 10}))
        print(network(torch.zeros(2, 3, 32, 32)).shape)  # torch.Size([2, 10])
    """
    if spec.factory is not None:
        made = call_factory(spec.factory, spec.kwargs, where)
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f"{prefix(where)}{spec.factory} must return a torch.nn.Module (got {type(made).__name__})."
            )
        return made
    name = spec.name or ""
    source, slash, short = name.partition("/")
    try:
        if source == "torchvision" and slash:
            return _torchvision(short, spec.kwargs, where)
        if source == "timm" and slash:
            return _timm(short, spec.kwargs, where)
        if name in ZOO:
            require_known_arguments(ZOO[name], spec.kwargs, f"{prefix(where)}'{name}'")
            return ZOO[name](**spec.kwargs)
    except (BnpruneError, OSError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{prefix(where)}'{name}' cannot be built with {quoted(dict(spec.kwargs), 200)}: {first_line(error)}."
        ) from error
    raise ConfigError(f"{prefix(where)}'{name}' is unknown. {_where_else(name)}")


def _torchvision(name: str, kwargs: Mapping[str, Any], where: str) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ConfigError(f"{prefix(where)}torchvision has no '{name}'. {hint(name, known)}")
    quiet = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    arguments = {"weights": None, **quiet, **kwargs}
    if "weights_backbone" in models.get_model_builder(name).__annotations__:
        arguments.setdefault("weights_backbone", None)
    made: nn.Module = models.get_model(name, **arguments)
    return made


def _timm(name: str, kwargs: Mapping[str, Any], where: str) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"{prefix(where)}'timm/{name}' needs timm: pip install timm")
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"{prefix(where)}timm has no '{name}'. {hint(name, timm.list_models())}")
    made: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    return made


def _where_else(name: str) -> str:
    if ":" in name:  # of a recipe or a ModelSpec: `--model` takes both
        return f"A function or class of your own goes into 'factory' instead of 'name': factory: {name}."
    known = [*ZOO, *(f"torchvision/{other}" for other in ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2"))]
    if importlib.util.find_spec("torchvision"):
        from torchvision import models

        if name in models.list_models():
            return f"Did you mean 'torchvision/{name}'?"
    return f"{hint(name, known)} Your own: package.module:function."


def set_gamma(model: nn.Module, value: float) -> None:
    """Set every BatchNorm scale factor, as before sparse training (Liu et al. 2017, section 4.2: 0.5)."""
    for module in model.modules():
        if isinstance(module, BatchNorm) and module.weight is not None:
            with torch.no_grad():
                module.weight.fill_(value)
