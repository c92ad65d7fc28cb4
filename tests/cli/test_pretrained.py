"""Published and random weights on the command line, in recipes, and in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnprune.config.recipe import load_recipe
from bnprune.errors import ConfigError
from bnprune.models.zoo import ModelSpec
from bnprune.runs.checkpoint import read_header
from bnprune.runs.network_source import open_source
from bnprune.runs.preflight import initial
from bnprune.runs.trust import recipe_from_file
from bnprune.workflows.prune import prune
from tests.cli.harness import CHAIN, RECIPE, bnprune, document, done, refusal, write
from tests.nets import norms
from tests.published import NAME, publish

SHAPE = ("--input", "3,64,64")
VGG = ("--model", "vgg11", "--model-arg", "width=0.25", "--input", "3,32,32")


def test_prune_loads_published_weights(hub: Path) -> None:
    network = publish(hub)
    found = document("prune", "--model", NAME, *SHAPE, "--pretrained", "--ratio", "0.3", "--no-compensate")
    assert found["verification"]["passed"] is True
    assert "torchvision" in read_header(Path("slim.safetensors")).spec.name
    slim = open_source("slim.safetensors").model
    every = torch.cat([norm.weight.detach() for norm in norms(network)])
    kept = torch.cat([norm.weight.detach() for norm in norms(slim)])
    assert torch.isin(kept, every).all(), "the scale factors are those of the file"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("verb", ["prune", "inspect", "benchmark", "export --out w.onnx"])
def test_every_verb_that_takes_weights_takes_published_ones(verb: str) -> None:
    message = refusal(5, *verb.split(), "--model", NAME, *SHAPE, "--pretrained")
    assert f"error: --pretrained: the published weights of '{NAME}' cannot be loaded: " in message
    assert "check the connection and the arguments, or give a file of weights" in message


@pytest.mark.parametrize("verb", ["prune", "inspect", "benchmark", "profile", "export --out w.onnx"])
@pytest.mark.parametrize(
    ("shape", "code", "message"),
    [
        ((), 2, "the shape of its input is not known. Give it as C,H,W: --input 3,224,224"),
        (("--input", "1,64,64"), 2, "expected input[1, 1, 64, 64] to have 3 channels"),
        (("--input", "3,64"), 2, "--input: the forward pass of the network fails"),
        (("--input", "3,0,64"), 2, "--input: expected the shape of one input"),
    ],
)
def test_a_shape_is_checked_before_weights_are_downloaded(
    verb: str, shape: tuple[str, ...], code: int, message: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, *_, **__: fetched.append(url))
    assert message in refusal(code, *verb.split(), "--model", NAME, *shape, "--pretrained")
    assert not fetched
    assert not [*hub.iterdir()]


def test_the_flag_is_refused_beside_other_weights() -> None:
    message = refusal(2, "inspect", "--model", NAME, *SHAPE, "--weights", "w.pt", "--pretrained")
    assert "--pretrained: gives the network other weights than 'w.pt'. Give one of them." in message
    assert "--pretrained: a checkpoint has its own weights" in refusal(2, "inspect", "run", "--pretrained")
    assert "--pretrained: there are no published weights of 'vgg11'" in refusal(2, "inspect", *VGG, "--pretrained")


def test_random_weights_are_named_and_explain_the_scale_factors() -> None:
    for verb in ("inspect", "prune --dry-run"):
        text = done(*verb.split(), *VGG).stdout
        assert text.count("warning: ") == 1
        assert "warning: the weights of vgg11 are random, because none were given" in text
        assert "(--weights FILE, or --pretrained for torchvision/ and timm/)" in text
        [note] = document(*verb.split(), *VGG)["notes"]
        assert note in text


def test_in_python_the_note_has_no_word_of_the_command_line() -> None:
    from bnprune.pruning.request import Request

    result = prune(None, Request(ratio=0.5), model="vgg11", input_shape=(3, 32, 32), dry_run=True)
    [note] = result.notes
    assert (note.code, note.level) == ("weights.random", "warning")
    assert "--" not in note


def test_a_factory_of_ones_own_may_have_weights() -> None:
    """Nothing is said about its weights, but its scale factors are all 1."""
    text = done("inspect", *CHAIN).stdout
    assert "random" not in text
    assert "warning: all scale factors are equal" in text
    assert "(bnprune train CONFIG)" in text


def test_weights_that_are_given_are_not_random() -> None:
    from bnprune.models.zoo import build

    torch.save(build(ModelSpec("vgg11", kwargs={"width": 0.25})).state_dict(), "w.pt")
    assert "random" not in done("inspect", *VGG, "--weights", "w.pt").stdout


def test_a_sweep_tells_what_matters_about_the_network(recipe: Path) -> None:
    line = ("--model", "mlp", "--model-arg", "in_channels=1", "--model-arg", "image_size=16", "--config", recipe)
    [note] = document("sweep", *line, "--at", "0.3", "--tolerance", "0.9")["notes"]
    assert note.startswith("the weights of mlp are random")
    assert f"warning: {note}" in done("sweep", *line, "--at", "0.3", "--tolerance", "0.9").stdout


def test_a_sparse_trained_network_gets_no_note(run: Path) -> None:
    assert document("sweep", run, "--at", "0.3", "--tolerance", "0.9")["notes"] == []
    assert document("inspect", run)["notes"] == []


def test_a_recipe_starts_from_published_weights(hub: Path) -> None:
    network = publish(hub)
    model = f"model: {{name: {NAME}, pretrained: true}}"
    path = write(
        "pretrained.yaml", "\n".join(model if line.startswith("model") else line for line in RECIPE.split("\n"))
    )
    built, header = initial(load_recipe(path))
    assert torch.equal(built.fc.weight, network.fc.weight)
    assert header.spec == ModelSpec(NAME)


def test_a_recipe_names_one_kind_of_weights(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="give either 'weights' or 'pretrained'"):
        load_recipe(recipe, ["model.pretrained=true", "model.weights=w.pt"])
    with pytest.raises(ConfigError, match="model: there are no published weights of 'mlp'"):
        initial(load_recipe(recipe, ["model.pretrained=true"]))


def test_a_file_from_a_stranger_fetches_no_weights() -> None:
    data = {"model": {"name": NAME, "pretrained": True}, "data": {"name": "digits"}}
    recipe, withheld = recipe_from_file(data, ModelSpec(NAME), trusted=False)
    assert "pretrained" not in recipe["model"]
    assert withheld == {}, "the weights of the file take their place"


def test_the_help_names_the_flag() -> None:
    for verb in ("prune", "inspect", "sweep", "evaluate", "export", "benchmark"):
        assert "--pretrained" in bnprune(verb, "--help").stdout
