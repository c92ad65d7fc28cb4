"""Checkpoints: no pickle, no code from files, the network that was saved, or a clear refusal."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bnprune
from bnprune.models import ModelSpec, build
from bnprune.runs.checkpoint import Header, load_checkpoint, read_header, save_checkpoint
from bnprune.runs.network_source import open_source
from bnprune.runs.weights import read_weights
from tests.nets import Net, conv_bn, head, randomized

X = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def slim(tmp_path):
    spec = ModelSpec("resnet20", kwargs={"num_classes": 5})
    result = bnprune.prune(randomized(build(spec)), X, ratio=0.5)
    path = tmp_path / "slim.safetensors"
    bnprune.save(result, path, spec=spec)
    return result, path


def test_what_is_loaded_is_what_was_saved(slim) -> None:
    result, path = slim
    loaded = bnprune.load(path)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in result.model.state_dict().items())
    assert not loaded.training
    header = read_header(path)
    assert header.plans == (result.plan,)
    assert header.input_shape == (3, 32, 32)


def test_it_loads_in_a_new_process(slim) -> None:
    result, path = slim
    code = f"import bnprune; print(sum(p.numel() for p in bnprune.load({str(path)!r}).parameters()))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == result.report.params_after


def own() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8))


def test_a_network_of_ones_own_is_given_again(tmp_path) -> None:
    result = bnprune.prune(randomized(own()), X, ratio=0.5)
    path = tmp_path / "own.safetensors"
    bnprune.save(result, path)
    loaded = bnprune.load(path, model=own())
    assert torch.equal(loaded(X), result.model.eval()(X))
    with pytest.raises(bnprune.CheckpointError, match=r"network of your own \(Sequential\).*model=build\(\)"):
        bnprune.load(path)
    with pytest.raises(bnprune.CheckpointError, match="does not fit the network: the plan was made for another"):
        bnprune.load(path, model=nn.Sequential(conv_bn(3, 8), conv_bn(8, 9), head(9)))


def test_a_factory_named_by_a_file_is_never_imported(tmp_path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef build(): ...\n")
    path = tmp_path / "evil.safetensors"
    save_checkpoint(path, own(), Header(ModelSpec(factory="evil:build")))
    with pytest.raises(bnprune.CheckpointError, match="does not run code named by a file"):
        bnprune.load(path)
    assert not marker.exists()


def test_arguments_that_fetch_are_not_obeyed_from_a_file(tmp_path) -> None:
    spec = ModelSpec("torchvision/resnet18", kwargs={"weights": "DEFAULT", "num_classes": 3})
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, build(ModelSpec("torchvision/resnet18", kwargs={"num_classes": 3})), Header(spec))
    assert read_header(path).spec.kwargs == {"num_classes": 3}
    bnprune.load(path)


def test_two_cuts_load_in_order(tmp_path) -> None:
    spec = ModelSpec("vgg11", kwargs={"width": 0.25})
    first = bnprune.prune(randomized(build(spec)), X, ratio=0.4)
    second = bnprune.prune(first.model, X, ratio=0.3)
    path = tmp_path / "twice.safetensors"
    save_checkpoint(path, second.model, Header(spec, (first.plan, second.plan)))
    assert torch.equal(bnprune.load(path)(X), second.model.eval()(X))


def test_a_network_pruned_twice_in_python_is_loaded(tmp_path) -> None:
    first = bnprune.prune(randomized(own()), X, ratio=0.4)
    second = bnprune.prune(first.model, X, ratio=0.3)
    bnprune.save(second, tmp_path / "twice.safetensors")
    loaded = bnprune.load(tmp_path / "twice.safetensors", model=own())
    assert torch.equal(loaded(X), second.model.eval()(X))
    third = bnprune.prune(loaded, X, ratio=0.3)
    bnprune.save(third, tmp_path / "thrice.safetensors")
    assert torch.equal(bnprune.load(tmp_path / "thrice.safetensors", own())(X), third.model.eval()(X))


def tied() -> nn.Module:
    net = Net(lambda n, x: n.head(n.b(n.a(x))), a=conv_bn(8, 8), b=conv_bn(8, 8), head=head(8))
    net.b[0].weight = net.a[0].weight
    return net


def test_another_input_shape_changes_nothing_else_of_a_header(tmp_path) -> None:
    path = tmp_path / "tied.safetensors"
    spec = ModelSpec(factory="tests.unit.test_checkpoint:tied")
    save_checkpoint(path, tied(), Header(spec, input_shape=(8, 4, 4)))
    header = read_header(path)
    assert header.aliases
    found = open_source(path, model="tests.unit.test_checkpoint:tied", shape=(8, 5, 5)).header
    assert found == replace(header, input_shape=(8, 5, 5))


def test_shared_tensors_are_stored_once_and_shared_again(tmp_path) -> None:
    path = tmp_path / "tied.safetensors"
    model = randomized(tied())
    save_checkpoint(path, model, Header(ModelSpec(factory="x:tied")))
    assert path.stat().st_size < 2 * 8 * 8 * 9 * 4 + 4000
    loaded, _ = load_checkpoint(path, tied())
    assert loaded.b[0].weight is loaded.a[0].weight
    assert torch.equal(loaded.a[0].weight, model.a[0].weight)


def test_half_precision_survives(tmp_path) -> None:
    model = own().bfloat16()
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model, Header(ModelSpec(factory="x:own")))
    assert {p.dtype for p in load_checkpoint(path, own())[0].parameters()} == {torch.bfloat16}


def test_files_get_the_usual_permissions(slim) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(slim[1].stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "not a safetensors file, or is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a safetensors file, or is damaged"),
        (lambda path: path.write_text("PK: something else entirely, and long enough"), "not a safetensors file"),
        (lambda path: save_file({"a": torch.zeros(3)}, path), "was not written by bnprune"),
        (lambda path: save_file({"a": torch.zeros(3)}, path, {"bnprune": "{"}), "header is damaged"),
        (
            lambda path: save_file({"a": torch.zeros(3)}, path, {"bnprune": '{"schema": "bnprune.checkpoint/7"}'}),
            "got 'bnprune.checkpoint/7'. Update bnprune",
        ),
        (
            lambda path: save_file({"a": torch.zeros(3)}, path, {"bnprune": json.dumps(EMPTY)}),
            r"missing 116 \(conv1\.weight, .*unexpected 1 \(a\)",
        ),
    ],
)
def test_bad_files_are_refused(slim, spoil, message: str) -> None:
    spoil(slim[1])
    with pytest.raises(bnprune.CheckpointError, match=message):
        bnprune.load(slim[1])


EMPTY = {"schema": "bnprune.checkpoint/1", "model": {"name": "resnet20", "kwargs": {}}, "plans": []}


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_weights_from_anyone_without_running_code(tmp_path) -> None:
    state = own().state_dict()
    for name, content in {
        "plain": state,
        "wrapped": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
    }.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert read_weights(tmp_path / f"{name}.pt").keys() == state.keys()
    marker = tmp_path / "ran"
    torch.save({"state_dict": Evil(str(marker))}, tmp_path / "evil.pt")
    torch.save(own(), tmp_path / "whole.pt")
    for name in ("evil", "whole"):
        with pytest.raises(bnprune.CheckpointError, match=r"could run code.*state_dict\(\)"):
            read_weights(tmp_path / f"{name}.pt")
    assert not marker.exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(bnprune.CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "list.pt")


def test_the_name_of_a_checkpoint_tells_its_format(slim, tmp_path) -> None:
    result, _ = slim
    with pytest.raises(bnprune.ConfigError, match=r"got '.*net\.pt'\)\. Use '.*net\.safetensors'"):
        bnprune.save(result, tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


def test_a_full_disk_leaves_the_previous_checkpoint(slim, monkeypatch) -> None:
    result, path = slim
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bnprune.runs.checkpoint.save_file", full)
    with pytest.raises(
        bnprune.DataError, match="cannot be written: No space left on device. The previous file is intact"
    ):
        bnprune.save(result, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["slim.safetensors"]
