"""A file is data: what it names is not imported, called, opened or downloaded, unless the user trusts it."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bnprune as library
from bnprune.models.construction import TooLarge, construct, construct_on_meta
from bnprune.runs.trust import spec_from_file
from tests.cli.harness import RECIPE, bnprune, contents, document, done, refusal, write

TRAP = """\
from pathlib import Path

Path("ran").write_text("at import")


def run(**kwargs):
    Path("ran").write_text("called")
    raise SystemExit
"""
"""Code that nothing but a file names."""

OWN_DATA = """\
import torch
from torch.utils.data import TensorDataset


def build(classes=10):
    images = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return [TensorDataset(images, torch.arange(200) % classes) for _ in range(3)]
"""


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["bnprune"])
    return found


def forged(source: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with another header, in the current folder."""
    header = header_of(source)
    edit(header)
    path = Path.cwd() / name
    save_file(load_file(source), path, {"bnprune": json.dumps(header)})
    return path


@pytest.fixture
def trap() -> Path:
    """A module that must not run; its marker is the file `ran`."""
    return write("trap.py", TRAP)


@pytest.fixture
def slim(run: Path) -> Path:
    return run / "checkpoints" / "prune.safetensors"


VERBS = {
    "inspect": ["inspect", "FILE"],
    "evaluate": ["evaluate", "FILE"],
    "prune": ["prune", "FILE", "--out", "out.safetensors"],
    "export": ["export", "FILE", "--format", "state-dict"],
    "finetune": ["finetune", "FILE", "--out", "out"],
    "benchmark": ["benchmark", "FILE", "--rounds", "1"],
    "benchmark, second": ["benchmark", "GOOD", "FILE", "--rounds", "1"],
    "sweep": ["sweep", "FILE"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("named", [True, False], ids=["beside a name", "alone"])
def test_no_verb_calls_a_model_factory_of_a_file(verb: str, named: bool, slim: Path, trap: Path) -> None:
    model = {"factory": "trap:run", "kwargs": {"command": "touch x"}} | ({"name": "vgg11"} if named else {})
    file = forged(slim, "evil.safetensors", lambda header: header.update(model=model))
    message = refusal(5, *(str({"FILE": file, "GOOD": slim}.get(word, word)) for word in VERBS[verb]))
    assert ("needs either a name or a factory" if named else "network of your own (trap:run)") in message
    with pytest.raises(library.CheckpointError):
        library.load(file)
    assert not Path("ran").exists()


@pytest.mark.parametrize("verb", ["evaluate", "export", "finetune", "sweep"])
def test_no_verb_calls_a_data_factory_of_a_file(verb: str, slim: Path, trap: Path) -> None:
    data = {"factory": "trap:run", "kwargs": {"command": "touch x"}}
    file = forged(slim, "evil.safetensors", lambda header: header["config"].update(data=data))
    words = [str({"FILE": file}.get(word, word)) for word in VERBS[verb]]
    if verb == "export":  # works without the data, and says so
        assert "compared on random inputs only: 'evil.safetensors' names code" in done(*words).stdout.replace(
            f"{file}", file.name
        )
    else:
        assert "data.factory = trap:run" in refusal(5, *words)
    assert not Path("ran").exists()


def test_the_network_beside_a_file_is_data_too(slim: Path, trap: Path) -> None:
    folder = Path("given")
    folder.mkdir()
    shutil.copy(slim, folder / "slim.safetensors")
    evil = forged(slim, "evil.safetensors", lambda header: header.update(model={"factory": "trap:run"}))
    evil.rename(folder / "train.safetensors")
    asked = ("finetune", folder / "slim.safetensors", "finetune.distill=true", "--out", "out")
    assert "network of your own (trap:run)" in refusal(5, *asked)
    teacher = ("finetune", slim, "--teacher", folder / "train.safetensors", "--out", "out")
    assert "network of your own (trap:run)" in refusal(5, *teacher)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("keys", "printed"),
    [
        ({"data": {"name": "cifar10", "root": "elsewhere", "download": True}}, "data.root = elsewhere"),
        ({"data": {"name": "imagefolder", "root": "/"}}, "data.root = /"),
        ({"finetune": {"epochs": 1, "distill": {"teacher": "/dev/zero"}}}, "finetune.distill.teacher = /dev/zero"),
    ],
)
def test_paths_of_a_file_are_not_opened(keys: dict[str, Any], printed: str, slim: Path) -> None:
    file = forged(slim, "evil.safetensors", lambda header: header["config"].update(keys))
    message = refusal(5, "finetune", file, "--out", "out")
    assert printed in message
    assert f"bnprune finetune {file} --out out --trust" in message


def test_a_download_is_not_started_because_a_file_asks_for_it(slim: Path) -> None:
    data = {"name": "cifar10", "download": True}
    file = forged(slim, "evil.safetensors", lambda header: header["config"].update(data=data))
    assert "data.download=true" in refusal(5, "evaluate", file)


def test_what_a_verb_does_not_need_is_not_asked_for(slim: Path) -> None:
    tuning = {"epochs": 1, "distill": {"teacher": "elsewhere.safetensors"}}
    file = forged(slim, "mixed.safetensors", lambda header: header["config"].update(finetune=tuning))
    done("evaluate", file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrained_cfg", {"file": "x"}),
        ("pretrained_cfg_overlay", {"url": "https"}),
        ("cache_dir", "x"),
        ("num_classes", "hf-hub:someone/something"),
        ("act_layer", "os:system"),
        ("norm_layer", "../x"),
        ("local_dir", "x"),
        ("num_classes", 2**40),
        ("layers", [[[[[[1]]]]]]),
        ("checkpoint", "x"),
        ("a b", 1),
    ],
)
def test_arguments_that_could_read_or_fetch_are_refused(key: str, value: Any) -> None:
    spec, withheld = spec_from_file({"name": "timm/resnet18", "kwargs": {key: value, "width": 1}}, trusted=False)
    assert spec.kwargs == {"width": 1}
    assert list(withheld) == [f"model.kwargs.{key}"]


def test_ordinary_arguments_are_kept_and_initial_weights_do_not_matter() -> None:
    kwargs = {
        "num_classes": 5,
        "drop_path_rate": 0.1,
        "act_layer": "silu",
        "channels": [8, 16],
        "aux": None,
        "se": True,
    }
    given = {"name": "x", "kwargs": {**kwargs, "weights": "DEFAULT", "pretrained": True, "checkpoint_path": "/x"}}
    spec, withheld = spec_from_file(given, trusted=False)
    assert (dict(spec.kwargs), withheld) == (kwargs, {})
    assert spec_from_file(given, trusted=True)[0].kwargs == given["kwargs"]


def test_a_network_that_lost_an_argument_is_not_built(slim: Path) -> None:
    kwargs = {"pretrained_cfg": {"file": "weights.bin"}}
    file = forged(slim, "evil.safetensors", lambda header: header["model"]["kwargs"].update(kwargs))
    message = refusal(5, "inspect", file)
    assert "model.kwargs.pretrained_cfg = {'file': 'weights.bin'}" in message
    assert f"bnprune inspect {file} --model NAME --model-arg pretrained_cfg=VALUE" in message


# -- trust ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_run(own: Path) -> Path:
    """A finished run with a network and data of one's own."""
    write("mydata.py", OWN_DATA)
    write(
        "own.yaml",
        "model: {factory: 'own:build', kwargs: {width: 16}}\ndata: {factory: 'mydata:build', workers: 0}\n"
        "train: {epochs: 1}\nprune: {ratio: 0.5}\n",
    )
    done("run", "own.yaml", "--out", "run")
    return Path("run")


def test_daily_work_with_ones_own_code_meets_no_refusal(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("run", "own.yaml", "--out", "run", "--resume")
    slim = own_run / "checkpoints" / "prune.safetensors"
    done("finetune", slim, "own.yaml", "finetune.epochs=1", "--out", "tuned")
    done("evaluate", own_run, "--model", "own:build", "--config", "own.yaml")
    done("evaluate", own_run, "--trust")
    monkeypatch.setenv("BNPRUNE_TRUST", f"/nowhere:{Path.cwd()}")
    done("evaluate", own_run)
    done("finetune", slim, "finetune.epochs=1", "--out", "tuned-too")
    assert yaml.safe_load(Path("tuned-too/config.yaml").read_text())["data"]["factory"] == "mydata:build"


def test_the_refusal_ends_with_commands_that_go_on(own_run: Path) -> None:
    message = bnprune("evaluate", own_run).stderr
    assert "network of your own (own:build)" in message
    command = "bnprune evaluate run --model own:build --config run/config.yaml"
    assert f"\n  if that is code of yours:  {command}\n" in message
    done(*command.split()[1:])
    then = bnprune("evaluate", own_run, "--model", "own:build").stderr
    assert "data.factory = mydata:build" in then
    assert f"\n  name the recipe yourself, if you have read it:  {command}\n" in then
    assert f"{command.partition(' --config')[0]} --trust\n" in then
    assert document("evaluate", own_run, exit_code=5)["code"] == "untrusted"


def test_folders_of_the_variable_are_compared_after_links_are_followed(
    own_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "run").symlink_to(own_run.absolute())
    monkeypatch.setenv("BNPRUNE_TRUST", str(outside))
    refusal(5, "inspect", outside / "run")
    monkeypatch.setenv("BNPRUNE_TRUST", f"{own_run.absolute()}x")
    refusal(5, "inspect", own_run)
    monkeypatch.setenv("BNPRUNE_TRUST", "")
    refusal(5, "inspect", own_run)


def test_what_was_refused_is_not_carried_over(own_run: Path) -> None:
    done("prune", own_run, "--model", "own:build", "--ratio", "0.5", "--out", "slim.safetensors")
    header = header_of(Path("slim.safetensors"))
    assert "mydata" not in json.dumps(header)
    assert header["withheld"] == ["data.factory"]
    message = refusal(5, "finetune", "slim.safetensors", "--model", "own:build", "--out", "out")
    assert "has a recipe without data.factory, because it was made from a file that was not trusted" in message
    assert "--trust" not in message
    done("prune", own_run, "--trust", "--ratio", "0.5", "--out", "trusted.safetensors")
    assert header_of(Path("trusted.safetensors"))["config"]["data"]["factory"] == "mydata:build"


@pytest.mark.parametrize("verb", ["finetune", "evaluate", "sweep", "sensitivity"])
@pytest.mark.parametrize("way", ["if that is code of yours", "or trust this file, if you know where it comes from"])
def test_a_network_and_a_recipe_are_asked_for_at_once(verb: str, way: str, own: Path, recipe: Path) -> None:
    own_model = ("--model", "own:build", "--input", "1,16,16")
    done("prune", *own_model, "--ratio", "0.5", "--out", "slim.safetensors")
    message = bnprune(verb, "slim.safetensors").stderr
    assert "network of your own (own:build)" in message
    assert "It has no recipe, which is needed as well." in message
    command = next(line.partition(":  bnprune ")[2] for line in message.splitlines() if line.startswith(f"  {way}:"))
    assert "--config CONFIG.yaml" in command
    assert "CONFIG.yaml is a recipe of yours that names the data; bnprune init own-network.yaml writes one" in message
    recipe.rename("CONFIG.yaml")
    done(*command.split())


def test_a_network_of_ones_own_may_be_named_by_the_recipe(own: Path) -> None:
    done("prune", "--model", "own:build", "--input", "1,16,16", "--ratio", "0.5", "--out", "slim.safetensors")
    recipe = write("recipe.yaml", RECIPE.replace(RECIPE.split("\n")[1], "model: {factory: own:build}"))
    done("evaluate", "slim.safetensors", "--config", recipe)


def test_a_user_gives_what_was_refused_as_an_override(slim: Path) -> None:
    data = {"factory": "trap:run", "batch_size": 64}
    file = forged(slim, "mixed.safetensors", lambda header: header["config"].update(data=data))
    done("evaluate", file, "data.name=digits")


def test_trust_in_python_is_for_one_call(own_run: Path) -> None:
    slim = own_run / "checkpoints" / "prune.safetensors"
    assert isinstance(library.load(slim, trust=True), torch.nn.Module)
    with pytest.raises(library.UntrustedError, match=r"Give the network again: .*model=build\(\).*trust=True"):
        library.load(slim)


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "printed"),
    [
        ({"name": "vgg11", "kwargs": {"num_classes": 6_000_000}}, "it has 3,087,"),
        ({"name": "torchvision/regnet_x_400mf", "kwargs": {"num_classes": 6_000_000}}, "it has more than"),
        ({"name": "timm/resnet18", "kwargs": {"layers": [4096] * 64}}, "far more layers than the file has tensors"),
        ({"name": "resnet20", "kwargs": {"num_classes": 7}}, "does not fit the network"),
        ({"name": 7, "kwargs": {}}, "'name' must be text"),
        ({"name": "vgg11", "kwargs": [1]}, "header is damaged"),
        (7, "header is damaged"),
    ],
)
def test_nothing_is_allocated_before_the_file_fits(model: Any, printed: str, slim: Path) -> None:
    file = forged(slim, "bomb.safetensors", lambda header: header.update(model=model))
    assert printed in refusal(5, "inspect", file)


def test_the_header_of_a_file_is_bounded(slim: Path, here: Path) -> None:
    file = here / "bomb.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + slim.read_bytes()[8:])
    assert "its header claims 4,611,686,018,427,387,904 bytes" in refusal(5, "inspect", file)
    forged(slim, "bomb.safetensors", lambda header: header.update(metrics={"x": "y" * 17_000_000}))
    assert "at most 16,777,216 are read" in refusal(5, "inspect", file)
    forged(slim, "bomb.safetensors", lambda header: header.update(plans=header["plans"] * 33))
    assert "expected a list of at most 32 pruning plans" in refusal(5, "inspect", file)


def test_nothing_else_is_written_by_a_refusal(slim: Path, trap: Path) -> None:
    before = contents()
    file = forged(slim, "evil.safetensors", lambda header: header.update(model={"factory": "trap:run"}))
    bnprune("prune", file, "--out", "out.safetensors")
    assert set(contents()) - set(before) == {file.name}


def test_a_name_that_is_not_utf8_is_not_called_damage(slim: Path, here: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(here / "sl") + b"\xff.safetensors"))
    shutil.copy(slim, path)
    assert "its name is not UTF-8. Rename the file or folder." in refusal(5, "inspect", path)


def test_true_and_false_are_ordinary_arguments_unless_they_fetch() -> None:
    kwargs = {"init_weights": False, "class_token": True, "use_pretrained": True}
    spec, withheld = spec_from_file({"name": "x", "kwargs": kwargs}, trusted=False)
    assert spec.kwargs == {"init_weights": False, "class_token": True}
    assert list(withheld) == ["model.kwargs.use_pretrained"]


def test_an_argument_that_is_given_again_joins_those_of_the_file(slim: Path) -> None:
    kwargs = {"weights_file": "x/y"}
    file = forged(slim, "odd.safetensors", lambda header: header["model"]["kwargs"].update(kwargs))
    message = refusal(5, "inspect", file, "--model", "mlp")
    assert "--model-arg weights_file=VALUE" in message
    done("inspect", file, "--model", "tests.cli.test_trust:with_file", "--model-arg", "weights_file=none")


def with_file(weights_file: str, **kwargs: Any) -> torch.nn.Module:
    """A network of one's own that takes a file."""
    assert weights_file == "none"
    return library.build(library.ModelSpec("mlp", kwargs=kwargs))


def test_a_loop_over_a_huge_tensor_ends_the_construction() -> None:
    def deep() -> torch.nn.Module:
        return torch.nn.ModuleList(torch.nn.ReLU() for _ in torch.linspace(0, 1, 10**7, device="cpu"))

    for build in (lambda: construct_on_meta(deep, 1), lambda: construct(deep, 1, 2**28)):
        with pytest.raises(TooLarge):
            build()


@pytest.mark.parametrize("make", ["compressed", "slow"])
def test_weights_that_take_far_more_than_their_size(make: str, here: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, here / "good.pt")
    with zipfile.ZipFile(here / "good.pt") as good, zipfile.ZipFile(here / "bad.pt", "w") as bad:
        for entry in good.infolist():
            data = good.read(entry)
            if make == "slow" and entry.filename.endswith(".pkl"):
                data = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x08\x00\x00\x00punycodetR."
            bad.writestr(entry.filename, data, zipfile.ZIP_DEFLATED if make == "compressed" else zipfile.ZIP_STORED)
    assert "was refused" in refusal(5, "inspect", "--model", "mlp", "--weights", "bad.pt", "--input", "3,32,32")


def test_the_command_for_a_teacher_is_one_that_works(
    slim: Path, own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = own_run / "checkpoints" / "train.safetensors"
    asked = ("finetune", slim, "--teacher", teacher, "--out", "out")
    result = bnprune(*asked)
    assert result.exit_code == 5
    assert "network of your own (own:build)" in result.stderr
    assert "--trust" not in result.stderr
    command = f"export BNPRUNE_TRUST={teacher.parent.absolute()}"
    assert command in result.stderr
    monkeypatch.setenv("BNPRUNE_TRUST", command.partition("=")[2])
    assert "own:build" not in bnprune(*asked).stderr


def test_the_folder_to_trust_is_that_of_the_file_and_not_of_a_link(
    own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("links").mkdir()
    link = Path("links/slim.safetensors")
    link.symlink_to((own_run / "checkpoints" / "prune.safetensors").absolute())
    folder = (own_run / "checkpoints").absolute()
    assert f"export BNPRUNE_TRUST={folder}" in bnprune("inspect", link).stderr
    monkeypatch.setenv("BNPRUNE_TRUST", str(folder))
    assert "network of your own" not in bnprune("inspect", link).stderr


def test_another_data_set_replaces_the_arguments_of_a_factory_too(slim: Path) -> None:
    data = {"factory": "trap:run", "kwargs": {"command": "x"}, "batch_size": 64}
    file = forged(slim, "mixed.safetensors", lambda header: header["config"].update(data=data))
    done("evaluate", file, "data.name=digits")


def test_a_model_that_is_given_is_not_asked_for_again(slim: Path) -> None:
    file = forged(slim, "odd.safetensors", lambda header: header["model"]["kwargs"].update({"weights_file": "x/y"}))
    assert "--model NAME" not in refusal(5, "inspect", file, "--model=mlp")
