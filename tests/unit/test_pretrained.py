"""Published weights of torchvision and timm, from caches of the tests' own: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bnprune.errors import CheckpointError, ConfigError
from bnprune.models.pretrained import build_pretrained, has_random_weights
from bnprune.models.zoo import ModelSpec, build
from bnprune.runs.network_source import open_source
from tests.nets import norms, randomized
from tests.published import NAME, publish

TIMM = "timm/test_resnet"
SHAPE = (3, 64, 64)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    expected = one.state_dict()
    assert other.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_torchvision_weights_come_from_its_cache(hub: Path) -> None:
    network = publish(hub)
    assert_equal(network, build_pretrained(ModelSpec(NAME)))
    source = open_source(None, model=NAME, pretrained=True, shape=SHAPE)
    assert_equal(network, source.model)
    assert source.header.spec == ModelSpec(NAME), "a file made of it asks for no download"
    assert source.notes == ()


def test_a_network_of_another_number_of_classes_is_refused(hub: Path) -> None:
    publish(hub)
    with pytest.raises(ConfigError, match=r"are for 1000 classes \(got num_classes = 10\). Leave num_classes out"):
        build_pretrained(ModelSpec(NAME, kwargs={"num_classes": 10}))
    assert build_pretrained(ModelSpec(NAME, kwargs={"num_classes": 1000})).fc.out_features == 1000


@pytest.mark.usefixtures("hub")
def test_a_download_that_fails_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*no route to .* check the connection") as refused:
        open_source(None, model=NAME, pretrained=True)
    assert (refused.value.exit_code, refused.value.argument) == (5, "pretrained")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)


def test_a_cached_file_is_not_unpickled(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    publish(hub)
    [file] = hub.iterdir()
    torch.save({"fc.weight": Malicious()}, file)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        build_pretrained(ModelSpec(NAME))
    assert not (tmp_path / "executed").exists()


def test_a_damaged_file_in_the_cache_is_refused(hub: Path) -> None:
    publish(hub)
    [file] = hub.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="the published weights of .* cannot be loaded"):
        build_pretrained(ModelSpec(NAME))


def test_the_arguments_must_be_right_before_weights_matter(hub: Path) -> None:
    publish(hub)
    with pytest.raises(ConfigError, match="cannot be built with .*colour"):
        build_pretrained(ModelSpec(NAME, kwargs={"colour": "red"}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("vgg11"), "no published weights of 'vgg11': only networks of torchvision/ and timm/ have some"),
        (ModelSpec(factory="own:build"), "no published weights of 'own:build'"),
        (ModelSpec("torchvision/resnt18"), "torchvision has no 'resnt18'. Did you mean 'resnet18'"),
    ],
)
def test_networks_without_published_weights_are_refused(spec: ModelSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pretrained(spec)


def test_weights_are_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other weights than '.*w\.pt'. Give one of them") as both:
        open_source(None, model=NAME, weights=tmp_path / "w.pt", pretrained=True)
    with pytest.raises(ConfigError, match="a checkpoint has its own weights") as own:
        open_source(tmp_path, pretrained=True)
    assert both.value.argument == own.value.argument == "pretrained"


def publish_timm(cache: Path) -> nn.Module:
    """Write a file of weights where Hugging Face Hub looks for it, and return the network that has them."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    network = randomized(build(ModelSpec(TIMM)), seed=8)
    repository = timm.models.get_pretrained_cfg("test_resnet").hf_hub_id.replace("/", "--")
    revision = "0" * 40
    folder = cache / f"models--{repository}"
    for path in (folder / "refs", folder / "snapshots" / revision):
        path.mkdir(parents=True)
    (folder / "refs/main").write_text(revision)
    save_file(network.state_dict(), folder / "snapshots" / revision / "model.safetensors")
    return network


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face Hub, without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_timm_weights_come_from_the_cache_of_hugging_face(hugging_face: Path) -> None:
    network = publish_timm(hugging_face)
    assert_equal(network, build_pretrained(ModelSpec(TIMM)))
    ten = build_pretrained(ModelSpec(TIMM, kwargs={"num_classes": 10}))
    for one, other in zip(norms(network), norms(ten), strict=True):
        assert torch.equal(one.weight, other.weight), "timm replaces the last layer only"


@pytest.mark.usefixtures("hugging_face")
def test_timm_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"the published weights of 'timm/test_resnet' cannot be loaded"):
        build_pretrained(ModelSpec(TIMM))


@pytest.mark.usefixtures("hugging_face")
def test_a_timm_network_without_published_weights_is_refused() -> None:
    timm = pytest.importorskip("timm")
    name = next(name for name in timm.list_models() if not timm.models.get_pretrained_cfg(name).has_weights)
    with pytest.raises(ConfigError, match="no published weights of .*: timm publishes none"):
        build_pretrained(ModelSpec(f"timm/{name}"))


def test_weights_are_random_unless_given() -> None:
    assert has_random_weights(ModelSpec("vgg11"))
    assert has_random_weights(ModelSpec(NAME, kwargs={"num_classes": 10, "weights": None}))
    assert not has_random_weights(ModelSpec(NAME, kwargs={"weights": "DEFAULT"}))
    assert not has_random_weights(ModelSpec(factory="own:build")), "its weights may come from anywhere"
