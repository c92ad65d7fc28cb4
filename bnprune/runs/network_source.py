"""Where a network comes from: a run directory, a checkpoint, or `--model` with `--input`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.config.bounded_reading import LONGEST_NUMBER, require_shape
from bnprune.config.overrides import overridden_keys
from bnprune.config.recipe import amend_data
from bnprune.config.schema import PipelineConfig
from bnprune.config.yaml_loader import YamlError, read_yaml
from bnprune.errors import CheckpointError, ConfigError, quoted, shortened
from bnprune.models.zoo import ModelSpec, build
from bnprune.runs.checkpoint import Header, load_checkpoint, read_header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.trust import require_arguments, require_recipe
from bnprune.runs.weights import fit_state, read_weights


@dataclass(frozen=True)
class NetworkSource:
    """A network, and everything known about it."""

    model: nn.Module
    header: Header
    label: str
    """What to call it in messages: the path, or the model's name."""

    @property
    def inputs(self) -> torch.Tensor:
        """One input of zeros, for tracing.

        Raises:
            ConfigError: The shape is not known.
        """
        if self.header.input_shape is None:
            raise ConfigError(
                f"{self.label}: the shape of its input is not known. Give it: --input C,H,W, for example "
                "--input 3,224,224"
            )
        return torch.zeros(1, *self.header.input_shape)

    def config(self, overrides: Sequence[str] = (), sections: tuple[str, ...] = ()) -> PipelineConfig:
        """Return the recipe the network comes from.

        Args:
            overrides: `key=value` pairs of the user's.
            sections: Sections of the recipe that are needed, such as "data"; none for all.

        Raises:
            CheckpointError: It does not come from a recipe.
            UntrustedError: The recipe names code or paths that are needed, and the file is not trusted.
            ConfigError: An override is wrong.
        """
        if self.header.config is None:
            raise CheckpointError(f"{self.label}: no recipe is stored with this network. Give one: CONFIG.yaml")
        require_recipe(self.label, self.header.withheld, overridden_keys(overrides), sections)
        data = copy.deepcopy(dict(self.header.config))
        try:
            return amend_data(data, overrides)
        except ConfigError as error:
            if overrides:
                raise
            raise CheckpointError(f"{self.label}: the stored recipe is not valid here: {error}") from error


def open_source(
    path: Path | None,
    *,
    model: str | None = None,
    arguments: Sequence[str] = (),
    weights: Path | None = None,
    shape: str | None = None,
    recipe: ModelSpec | None = None,
    trust: bool = False,
) -> NetworkSource:
    """Load the network the command line names.

    Args:
        path: A run directory or a checkpoint.
        model: A name or `package.module:factory`; on its own, or to rebuild a checkpoint of a network of one's own.
        arguments: `key=value` arguments of the model.
        weights: Initial weights of `model`.
        shape: Shape of one input, such as "3,224,224".
        recipe: The model of a recipe; it rebuilds a checkpoint of a network of one's own where `model` is not given.
        trust: Let the file name code, paths and downloads.

    Raises:
        ConfigError: Neither or contradictory sources, an unknown model, or a malformed shape.
        CheckpointError: A file is missing, damaged or foreign.
    """
    input_shape = parse_shape(shape) if shape is not None else None
    if path is None and model is None:
        raise ConfigError(
            "no network given. Name a run directory or checkpoint, or use --model NAME --input 3,224,224."
        )
    if path is not None and weights is not None:
        raise ConfigError("--weights goes with --model; a checkpoint has its own weights.")
    if model is None and arguments:
        raise ConfigError("--model-arg goes with --model; a checkpoint knows the arguments of its network.")
    if path is None:
        assert model is not None
        return _from_model(model, arguments, weights, input_shape)
    spec = None if model is None else ModelSpec.parse(model, parse_arguments(arguments))
    return _from_file(path, spec, recipe, input_shape, trust=trust)


def _from_model(
    model: str, arguments: Sequence[str], weights: Path | None, shape: tuple[int, ...] | None
) -> NetworkSource:
    spec = ModelSpec.parse(model, parse_arguments(arguments))
    network = build(spec, "--model")
    if weights is not None:
        fit_state(network, read_weights(weights), f"--weights: '{weights}'")
    return NetworkSource(network, Header(spec, input_shape=shape), model)


def _from_file(
    path: Path, given: ModelSpec | None, recipe: ModelSpec | None, shape: tuple[int, ...] | None, *, trust: bool
) -> NetworkSource:
    file = RunDirectory(path).network() if path.is_dir() else path
    header = read_header(file, trust=trust)
    stored, dense = header.spec, None
    where = "--model"
    if given is None and stored.own and recipe is not None and recipe.own:
        given, where = recipe, "model.factory"
    if given is not None:
        if not given.kwargs:
            require_arguments(str(path), header.withheld)
        given = replace(given, kwargs=given.kwargs or stored.kwargs)
        dense = build(given, where)
    network, header = load_checkpoint(file, dense, trust=trust)
    spec = given if given is not None and stored.own else stored
    shape = shape or header.input_shape
    header = replace(header, spec=spec, config=_about(header.config, spec), input_shape=shape)
    return NetworkSource(network, header, str(path))


def _about(config: Mapping[str, Any] | None, spec: ModelSpec) -> Mapping[str, Any] | None:
    """Return a stored recipe with the network that is given in place of its own."""
    if config is None:
        return None
    model = config.get("model")
    stored = model if isinstance(model, Mapping) else {}
    same = all(stored.get(key) == value for key, value in spec.to_dict().items())
    return config if same else {**config, "model": spec.to_dict()}


def refuse_other_model(overrides: Sequence[str]) -> None:
    """Refuse `model...=value` where the network is given, and the recipe is asked for everything else.

    Raises:
        ConfigError: An override is about the model.
    """
    for text in overrides:
        if text.partition("=")[0].partition(".")[0].strip() == "model":
            raise ConfigError(f"command line: {quoted(text)}: the network is the one given; leave model keys out.")


def parse_shape(text: str) -> tuple[int, ...]:
    """Read "3,224,224" (or "3x224x224").

    Raises:
        ConfigError: The text is something else, or a shape too large.
    """
    parts = [part.strip() for part in text.lower().replace("x", ",").split(",")]
    wanted = f"--input: expected the shape of one input without the batch, such as 3,224,224 (got {quoted(text)})"
    if not all(part.isascii() and part.isdigit() and len(part) < LONGEST_NUMBER for part in parts):
        raise ConfigError(f"{wanted}.")
    try:
        return require_shape([int(part) for part in parts])
    except ValueError as error:
        raise ConfigError(f"{wanted}: {error}.") from error


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` arguments of a model; values are YAML.

    Raises:
        ConfigError: An argument is something else.
    """
    parsed = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--model-arg: expected key=value, such as num_classes=10 (got {quoted(text)}).")
        try:
            parsed[key] = read_yaml(value)
        except YamlError as error:
            raise ConfigError(f"--model-arg: {shortened(key)}: {quoted(value)} {error}.") from error
    return parsed
