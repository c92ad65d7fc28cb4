"""Networks of torchvision and timm with the weights that these packages publish.

The files come from the caches of the packages (`torch.hub`, Hugging Face Hub), which download what is missing. Only a
user asks for that: nothing in a file does (`bnprune.runs.trust`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout

from torch import nn

from bnprune.config.user_code import prefix
from bnprune.errors import BnpruneError, CheckpointError, ConfigError, first_line, quoted
from bnprune.models.zoo import ModelSpec, build

_WEIGHT_ARGUMENTS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path")
"""Arguments of torchvision and timm that can give a network its weights."""


def has_random_weights(spec: ModelSpec) -> bool:
    """Return True if `build` draws the weights of this network; of a factory of the user's own, nobody knows."""
    return not spec.own and not any(spec.kwargs.get(name) for name in _WEIGHT_ARGUMENTS)


def build_pretrained(spec: ModelSpec, where: str = "model") -> nn.Module:
    """Build a network of torchvision or timm with its published weights.

    Args:
        spec: Name of the network, and its arguments.
        where: Name of the setting in messages; empty for none.

    Raises:
        ConfigError: There are no published weights of the network, or not with these arguments.
        CheckpointError: The weights cannot be downloaded, or the file in the cache is damaged.
    """
    source, _, name = (spec.name or "").partition("/")
    if source not in _BUILDERS or not name:
        raise _no_weights(spec, where, "only networks of torchvision/ and timm/ have some")
    try:
        with redirect_stdout(sys.stderr):  # torch.hub reports downloads on stdout, which is for results
            return _BUILDERS[source](spec, name, where)
    except BnpruneError:
        raise
    except Exception as error:
        build(spec, where)  # raises if the weights are not the reason
        raise CheckpointError(
            f"{prefix(where)}the published weights of '{spec.name}' cannot be loaded: {first_line(error)}. They are "
            "downloaded once, and must fit the arguments of the network: check the connection and the arguments, or "
            "give a file of weights.",
            argument="" if where else "pretrained",
        ) from error


def _torchvision(spec: ModelSpec, name: str, where: str) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        return build(spec, where)  # raises, with names that are similar
    published = getattr(models.get_model_weights(name), "DEFAULT", None)
    if published is None:
        raise _no_weights(spec, where, "torchvision publishes none")
    _require_classes(spec, len(published.meta.get("categories", ())), where)
    # The builder unpickles without restrictions. Load the file as plain tensors first: this downloads what is missing,
    # and refuses a file that holds anything else.
    published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    made: nn.Module = models.get_model(name, **{**spec.kwargs, "weights": published})
    return made


def _require_classes(spec: ModelSpec, classes: int, where: str) -> None:
    """Refuse another number of classes: torchvision does not replace the last layer, as timm does."""
    asked = spec.kwargs.get("num_classes", classes)
    if classes and asked != classes:
        raise ConfigError(
            f"{prefix(where)}the published weights of '{spec.name}' are for {classes} classes (got num_classes = "
            f"{quoted(asked)}). Leave num_classes out, or replace the last layer in a function of your own that "
            "returns the network.",
            argument="" if where else "pretrained",
        )


def _timm(spec: ModelSpec, name: str, where: str) -> nn.Module:
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        return build(spec, where)  # raises, with names that are similar
    known = get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise _no_weights(spec, where, "timm publishes none")
    made: nn.Module = timm.create_model(name, pretrained=True, **spec.kwargs)
    return made


_BUILDERS: Mapping[str, Callable[[ModelSpec, str, str], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}


def _no_weights(spec: ModelSpec, where: str, why: str) -> ConfigError:
    return ConfigError(
        f"{prefix(where)}there are no published weights of '{spec.label}': {why}. Give a file of weights.",
        argument="" if where else "pretrained",
    )
