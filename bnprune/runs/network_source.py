"""Opening a network from a run directory, from a checkpoint, or by name with the shape of its input."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.channels.forward_pass import forward, on_meta_or_cpu, raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.config.bounded_reading import require_shape
from bnprune.config.overrides import overridden_keys
from bnprune.config.recipe import amend_data
from bnprune.config.schema import PipelineConfig
from bnprune.errors import RECIPE_AS_NETWORK, CheckpointError, ConfigError, UntrustedError, about, quoted
from bnprune.models.pretrained import build_pretrained, has_random_weights
from bnprune.models.zoo import ModelSpec, build
from bnprune.notes import Note
from bnprune.pruning.cut_notes import ON_SCALE_FACTORS
from bnprune.runs.checkpoint import Header, load_checkpoint, read_header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.trust import missing_entries, require_arguments
from bnprune.runs.weights import fit_state, read_weights


@dataclass(frozen=True)
class NetworkSource:
    """A network, with the header of its checkpoint or what is known in place of one."""

    model: nn.Module
    header: Header
    label: str
    """Name of the network in messages: the path, or the model's name."""
    notes: tuple[Note, ...] = ()
    """Remarks on its weights."""

    def notes_with(self, others: Iterable[Note]) -> list[str]:
        """Return the remarks on this network, and the others that they do not explain.

        Random weights explain all that could be said about the scale factors.
        """
        return [*self.notes, *(note for note in others if not self.notes or note.code not in ON_SCALE_FACTORS)]

    @property
    def inputs(self) -> torch.Tensor:
        """One input of zeros, for tracing.

        Raises:
            ConfigError: The shape is not known.
        """
        if self.header.input_shape is None:
            raise _unknown_shape(self.label)
        return torch.zeros(1, *self.header.input_shape)

    def given(self, *keys: str) -> NetworkSource:
        """Return the same network; values that the user gives replace entries of its recipe, which may be withheld.

        Args:
            keys: Keys or sections of the recipe, such as "data".
        """
        withheld = {
            entry: shown
            for entry, shown in self.header.withheld.items()
            if not any(entry == key or entry.startswith(f"{key}.") for key in keys)
        }
        return replace(self, header=replace(self.header, withheld=withheld))

    def config(self, overrides: Sequence[str] = (), sections: tuple[str, ...] = ()) -> PipelineConfig:
        """Return the recipe that is stored with the network.

        Args:
            overrides: `key=value` pairs of the user.
            sections: Sections of the recipe that are needed, such as "data"; none for all.

        Raises:
            CheckpointError: There is none, or it is not valid here.
            UntrustedError: The recipe names code or paths that are needed, and the file is not trusted.
            ConfigError: An override is wrong.
        """
        if self.header.config is None:
            message = f"{self.label}: no recipe is stored with this network. Give one."
            raise CheckpointError(message, remedy={"recipe": "CONFIG.yaml"})
        if missing := missing_entries(self.header.withheld, overridden_keys(overrides), sections):
            raise UntrustedError(self.label, missing, "recipe")
        data = copy.deepcopy(dict(self.header.config))
        try:
            return amend_data(data, overrides)
        except ConfigError as error:
            if overrides:
                raise
            raise CheckpointError(f"{self.label}: the stored recipe is not valid here: {error}") from error


@dataclass(frozen=True)
class RecipeNeeds:
    """What a command takes from the recipe that is stored with a network, if the user has not given another."""

    given: set[str]
    """Keys that the user gives, such as "data.root"."""
    sections: tuple[str, ...] = ()
    """Sections that are needed, such as "data"; none for all."""

    def added_to(self, refusal: UntrustedError, header: Header) -> UntrustedError:
        """Return the refusal of a network with what would be refused next, so that the user can give both at once."""
        missing = missing_entries(header.withheld, self.given, self.sections)
        refused = refusal.refused | {key: text for key, text in missing.items() if not key.startswith("model.")}
        return UntrustedError(refusal.path, refused, refusal.needed, lacks_recipe=header.config is None)


def _unknown_shape(label: str) -> ConfigError:
    message = f"{label}: the shape of its input is not known. Give it as C,H,W."
    return ConfigError(message, remedy={"input_shape": "3,224,224"})


def open_source(
    source: str | Path | None,
    *,
    model: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    shape: Sequence[int] | None = None,
    needs_shape: bool = False,
    recipe: ModelSpec | None = None,
    needs: RecipeNeeds | None = None,
    trust: bool = False,
) -> NetworkSource:
    """Load a network. Arguments are checked before anything is downloaded.

    Args:
        source: A run directory or a checkpoint.
        model: A name or `package.module:factory`; in place of `source`, or to rebuild a checkpoint whose network is the
            user's own.
        arguments: Keyword arguments of the model.
        weights: File with the initial weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        shape: Shape of one input, without the batch.
        needs_shape: True if the caller needs `inputs`, so that published weights are useless without `shape`.
        recipe: The model of a recipe, to rebuild such a checkpoint if `model` is not given.
        needs: What the caller takes from the stored recipe; None for nothing.
        trust: Let the file name code, paths and downloads.

    Raises:
        ConfigError: No source or contradictory ones, an unknown model, or a shape that is missing or out of range.
        CheckpointError: A file is missing, damaged, or not a bnprune checkpoint, or the published weights cannot be
            loaded.
        ForwardError: A network with published weights does not take inputs of this shape.
    """
    input_shape = None if shape is None else checked_shape(shape)
    if source is None and model is None:
        message = "no network given. Name a run directory or checkpoint, or a model and the shape of its input."
        raise ConfigError(message, remedy={"model": "NAME", "input_shape": "3,224,224"})
    if source is not None and (weights is not None or pretrained):
        message = "a checkpoint has its own weights; only a network given by its name takes others."
        raise ConfigError(message, argument="pretrained" if pretrained else "weights")
    if weights is not None and pretrained:
        message = f"gives the network other weights than '{weights}'. Give one of them."
        raise ConfigError(message, argument="pretrained")
    if model is None and arguments:
        raise ConfigError(
            "a checkpoint has the arguments of its network; only a network given by its name takes others.",
            argument="model_arguments",
        )
    spec = None if model is None else ModelSpec.parse(model, dict(arguments or {}))
    if source is not None:
        return _from_file(Path(source), spec, recipe, input_shape, needs, trust=trust)
    assert spec is not None
    if needs_shape and pretrained and input_shape is None:  # before weights are downloaded; else, `inputs` says so
        raise _unknown_shape(spec.label)
    return _from_model(spec, None if weights is None else Path(weights), input_shape, pretrained=pretrained)


def _from_model(
    spec: ModelSpec, weights: Path | None, shape: tuple[int, ...] | None, *, pretrained: bool
) -> NetworkSource:
    if pretrained and shape is not None and not spec.own:  # before weights are downloaded
        with about("model"):
            drawn = build(spec, where="")
        with about("input_shape"):
            _require_input(drawn, shape)
    with about("model"):
        network = (build_pretrained if pretrained else build)(spec, where="")
    if weights is not None:
        state = read_weights(weights)
        with about("weights"):
            fit_state(network, state, f"'{weights}'")
    is_random = weights is None and not pretrained and has_random_weights(spec)
    notes = (_random_weights(spec),) if is_random else ()
    return NetworkSource(network, Header(spec, input_shape=shape), spec.label, notes)


def _require_input(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Check that a network takes inputs of a shape, by one forward pass on the meta device.

    Tensors there have no values, so that nothing is computed. A network that cannot run there runs on the CPU.

    Raises:
        ForwardError: The network does not take inputs of this shape.
    """
    inputs = as_inputs(torch.zeros(1, *shape))
    with raising_forward_errors(inputs):
        on_meta_or_cpu(lambda device: forward(model, inputs, device=device))


def _random_weights(spec: ModelSpec) -> Note:
    return Note(
        "weights.random",
        "warning",
        f"the weights of {spec.label} are random, because none were given: nothing tells which channels matter, and "
        "the result is good for sizes and speed only",
    )


def require_no_recipe(path: Path) -> None:
    """Refuse a recipe in the place of a network.

    Raises:
        CheckpointError: The file is a recipe.
    """
    if path.suffix in (".yaml", ".yml") and path.is_file():
        message = f"'{path}' is a recipe, not a network. `bnprune run {path}` trains and prunes one."
        raise CheckpointError(message, where=str(path), code=RECIPE_AS_NETWORK)


def _from_file(
    path: Path,
    given: ModelSpec | None,
    recipe: ModelSpec | None,
    shape: tuple[int, ...] | None,
    needs: RecipeNeeds | None,
    *,
    trust: bool,
) -> NetworkSource:
    require_no_recipe(path)
    file = RunDirectory(path).network() if path.is_dir() else path
    header = read_header(file, trust=trust)
    try:
        return _rebuilt(path, file, header, given, recipe, shape, trust=trust)
    except UntrustedError as refusal:
        raise (refusal if needs is None else needs.added_to(refusal, header)) from None


def _rebuilt(
    path: Path,
    file: Path,
    header: Header,
    given: ModelSpec | None,
    recipe: ModelSpec | None,
    shape: tuple[int, ...] | None,
    *,
    trust: bool,
) -> NetworkSource:
    stored, dense = header.spec, None
    where = ""
    if given is None and stored.own and recipe is not None and recipe.own:
        given, where = recipe, "model.factory"
    if given is not None:
        left_out = {key: text for key, text in header.withheld.items() if key.rpartition(".")[2] not in given.kwargs}
        require_arguments(str(path), left_out)
        given = replace(given, kwargs={**stored.kwargs, **given.kwargs})
        with about("" if where else "model"):
            dense = build(given, where)
    network, header = load_checkpoint(file, dense, trust=trust)
    spec = given if given is not None and stored.own else stored
    shape = shape or header.input_shape
    header = replace(header, spec=spec, config=_with_model(header.config, spec), input_shape=shape)
    return NetworkSource(network, header, str(path))


def _with_model(config: Mapping[str, Any] | None, spec: ModelSpec) -> Mapping[str, Any] | None:
    """Return a stored recipe whose `model` section is replaced by `spec`, unless they agree."""
    if config is None:
        return None
    model = config.get("model")
    stored = model if isinstance(model, Mapping) else {}
    same = all(stored.get(key) == value for key, value in spec.to_dict().items())
    return config if same else {**config, "model": spec.to_dict()}


def refuse_other_model(overrides: Sequence[str]) -> None:
    """Refuse overrides of the `model` section for verbs whose network is given separately.

    Raises:
        ConfigError: An override is about the model.
    """
    for text in overrides:
        if text.partition("=")[0].partition(".")[0].strip() == "model":
            raise ConfigError(f"command line: {quoted(text)}: the network is the one given; leave model keys out.")


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one input as a tuple.

    Raises:
        ConfigError: It is empty, or a dimension is out of range.
    """
    try:
        return require_shape(list(shape))
    except ValueError as error:
        wanted = "expected the shape of one input without the batch, such as 3,224,224"
        got = ",".join(map(str, shape))
        raise ConfigError(f"{wanted} (got {quoted(got)}): {error}.", argument="input_shape") from error
