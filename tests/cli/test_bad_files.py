"""Checkpoints, weights and data that are missing, damaged, foreign, or a trap: exit code 5, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bnprune.runs.weights import fit_state
from tests.cli.harness import CHAIN, bnprune, document, done, refusal, squeezed, tensor_bytes, write
from tests.nets import chain, conv_bn

# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_does_not_exist() -> None:
    message = refusal(5, "prune", "absent.safetensors")
    assert "'absent.safetensors' does not exist. Expected a checkpoint (.safetensors) or a run directory." in message


def test_an_empty_checkpoint() -> None:
    write("empty.safetensors", "")
    message = refusal(5, "prune", "empty.safetensors")
    assert "'empty.safetensors' is empty; the disk may have been full when it was written." in message


@pytest.mark.parametrize("kept", [4, 100, 0.5, -1], ids=["length", "header", "half", "last-byte"])
def test_a_truncated_checkpoint(kept: float, here: Path, trained: Path) -> None:
    data = trained.read_bytes()
    (here / "cut.safetensors").write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert "'cut.safetensors' is not a safetensors file, or is damaged:" in refusal(5, "prune", "cut.safetensors")


def test_a_text_file_as_a_checkpoint() -> None:
    write("notes.safetensors", "not a checkpoint, by any means\n" * 9)
    message = refusal(5, "inspect", "notes.safetensors")
    assert "'notes.safetensors' is not a safetensors file, or is damaged:" in message


def test_a_pt_file_as_a_checkpoint_gets_told_about_weights(here: Path) -> None:
    torch.save(chain().state_dict(), here / "weights.pt")
    message = refusal(5, "prune", "weights.pt")
    assert "'weights.pt' is not a safetensors file: it looks like one of torch.save" in message
    assert "Weights from elsewhere (.pt) go with the name of a network: --model NAME --weights FILE." in message


def test_a_checkpoint_of_someone_else_gets_told_about_weights(here: Path) -> None:
    save_file(chain().state_dict(), here / "foreign.safetensors")
    message = refusal(5, "prune", "foreign.safetensors")
    assert "'foreign.safetensors' holds weights, but was not written by bnprune." in message
    advice = "--model NAME_OR_pkg.mod:factory --weights foreign.safetensors"
    assert advice in message
    done("prune", *advice.replace("NAME_OR_pkg.mod:factory", "tests.nets:chain").split(), "--input", "3,8,8")


def test_a_folder_that_is_no_run(here: Path) -> None:
    (here / "folder").mkdir()
    message = refusal(5, "prune", "folder")
    assert "'folder' holds no checkpoint yet. Expected a run directory or a .safetensors file." in message


def forged(trained: Path, **changes: Any) -> Path:
    """The checkpoint of the run with another header."""
    with safe_open(trained, "pt") as file:
        header = json.loads(file.metadata()["bnprune"])
    path = Path.cwd() / "forged.safetensors"
    save_file(load_file(trained), path, {"bnprune": json.dumps(header | changes)})
    return path


@pytest.mark.parametrize("header", ["no JSON", "[]", "{}", '"text"'])
def test_a_damaged_header(header: str, here: Path, trained: Path) -> None:
    save_file(load_file(trained), here / "damaged.safetensors", {"bnprune": header})
    assert "'damaged.safetensors': its header is damaged" in refusal(5, "inspect", "damaged.safetensors")


def test_a_checkpoint_of_a_later_version(trained: Path) -> None:
    message = refusal(5, "inspect", forged(trained, schema="bnprune.checkpoint/9"))
    assert "expected schema 'bnprune.checkpoint/1', got 'bnprune.checkpoint/9'. Update bnprune." in message


def test_a_checkpoint_whose_weights_are_of_another_network(trained: Path) -> None:
    kwargs = {"in_channels": 1, "image_size": 16, "hidden": [8]}
    message = refusal(5, "inspect", forged(trained, model={"name": "mlp", "kwargs": kwargs}))
    assert "does not fit the network (MLP): other shapes" in message
    assert "layers.1.weight is (32, 256), not (8, 256)" in message


def test_a_checkpoint_cannot_choose_code_to_run(here: Path, trained: Path) -> None:
    spec = {"factory": "os:mkdir", "kwargs": {"path": str(here / "pwned")}}
    message = refusal(5, "inspect", forged(trained, model=spec))
    assert "bnprune does not run code named by a file" in message
    assert not (here / "pwned").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"input": "abc"},
        {"input": [1, 0, 16]},
        {"input": []},
        {"config": [1]},
        {"metrics": "good"},
        {"aliases": [1]},
        {"plans": 3},
        {"model": "mlp"},
    ],
    ids=str,
)
def test_a_header_with_a_damaged_part(change: dict[str, Any], trained: Path) -> None:
    assert "forged.safetensors': its header is damaged" in refusal(5, "inspect", forged(trained, **change))


def test_a_header_with_a_damaged_plan_names_the_file(trained: Path) -> None:
    assert "forged.safetensors" in refusal(5, "inspect", forged(trained, plans=[{}]))


@pytest.mark.parametrize(
    ("spec", "expected_message"),
    [
        ({"name": "vgg99", "kwargs": {}}, "'vgg99' is unknown"),
        ({"name": "mlp", "kwargs": {"hiden": [8]}}, "'mlp' has no argument 'hiden'"),
    ],
)
def test_a_header_that_names_a_network_that_cannot_be_built(
    spec: dict[str, Any], expected_message: str, trained: Path
) -> None:
    message = refusal(5, "inspect", forged(trained, model=spec))
    assert "forged.safetensors'" in message
    assert expected_message in message


# -- checkpoints of a user's own network ------------------------------------------------------------------------------


def test_a_network_of_ones_own_is_loaded_with_its_factory_only(own: Path) -> None:
    done("prune", "--model", "own:build", "--input", "1,8,8", "--out", "slim.safetensors")
    for line in ("inspect slim.safetensors", "prune slim.safetensors --out slimmer.safetensors"):
        message = refusal(5, *line.split())
        assert "'slim.safetensors' holds a network of your own (own:build)" in message
        assert "--model own:build" in message
        done(*line.split(), "--model", "own:build")


def test_the_factory_must_build_the_same_network(own: Path) -> None:
    done("prune", "--model", "own:build", "--input", "1,8,8", "--out", "slim.safetensors")
    message = refusal(5, "inspect", "slim.safetensors", "--model", "own:build", "--model-arg", "width=12")
    assert "'slim.safetensors' does not fit the network: the plan was made for another network" in message
    assert "has size 12 in dimension 0, the plan 8" in message


def overwriting(plan: dict[str, Any]) -> dict[str, Any]:
    module = next(iter(plan["attributes"]))
    plan["attributes"][module]["forward"] = 3
    return plan


def test_a_plan_in_a_checkpoint_cannot_overwrite_methods(run: Path) -> None:
    slim = run / "checkpoints" / "prune.safetensors"
    plan = overwriting(json.loads((run / "plan.json").read_text()))
    message = refusal(5, "inspect", forged(slim, plans=[plan]))
    assert "forged.safetensors': the plan is damaged: the network has no size" in message


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_plan_given_cannot_overwrite_methods(option: tuple[str, ...], run: Path, trained: Path) -> None:
    plan = overwriting(json.loads((run / "plan.json").read_text()))
    write("plan.json", json.dumps(plan))
    message = refusal(5, "prune", trained, "--plan", "plan.json", *option)
    assert "--plan: 'plan.json': the plan is damaged: the network has no size" in message


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_plan_that_forgets_a_tensor(option: tuple[str, ...], run: Path, trained: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["cuts"][0]["at"] = plan["cuts"][0]["at"][:1]
    write("plan.json", json.dumps(plan))
    assert "the network that it gives does not run" in refusal(5, "prune", trained, "--plan", "plan.json", *option)


# -- weights ----------------------------------------------------------------------------------------------------------


class Trap:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("pwned",)


def test_weights_that_would_run_code_are_refused(here: Path) -> None:
    torch.save({"0.0.weight": Trap()}, here / "evil.pt")
    message = refusal(5, "prune", *CHAIN, "--weights", "evil.pt")
    assert "'evil.pt' was refused" in message
    assert "could run code" in message
    assert "torch.save(model.state_dict(), path), or use .safetensors" in message
    assert not (here / "pwned").exists()
    torch.load(here / "evil.pt", weights_only=False)
    assert (here / "pwned").exists()  # the trap was armed


def test_a_pickled_module_is_refused_with_what_to_save_instead(here: Path) -> None:
    torch.save(conv_bn(3, 8), here / "module.pt")
    message = refusal(5, "prune", *CHAIN, "--weights", "module.pt")
    assert "'module.pt' was refused" in message
    assert "Save plain weights instead: torch.save(model.state_dict(), path)" in message


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_that_do_not_fit(ending: str, here: Path) -> None:
    state = chain().state_dict()
    del state["0.0.weight"]
    state |= {"extra.weight": torch.zeros(2), "0.1.weight": torch.zeros(3)}
    path = here / f"other.{ending}"
    torch.save(state, path) if ending == "pt" else save_file(state, path)
    message = refusal(5, "prune", *CHAIN, "--weights", path.name)
    assert f"--weights: 'other.{ending}' does not fit the network (Sequential):" in message
    assert "missing 1 (0.0.weight)" in message
    assert "unexpected 1 (extra.weight)" in message
    assert "other shapes 1 (0.1.weight is (3,), not (8,))" in message


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}])
def test_a_pt_file_without_a_state_dict(content: Any, here: Path) -> None:
    torch.save(content, here / "other.pt")
    message = refusal(5, "prune", *CHAIN, "--weights", "other.pt")
    assert "'other.pt' holds no state dict (names mapped to tensors)." in message


WEIGHT = "0.0.weight"
KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int32": torch.Tensor.int,
    "bool": torch.Tensor.bool,
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "meta float32": lambda tensor: tensor.to("meta"),
    "sparse float32": torch.Tensor.to_sparse,
    "qint8": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "nested float32": lambda tensor: torch.nested.nested_tensor([tensor[0], tensor[1]]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_kind_are_refused_by_name(kind: str, here: Path) -> None:
    state = chain().state_dict()
    torch.save(state | {WEIGHT: KINDS[kind](state[WEIGHT])}, here / "w.pt")
    message = refusal(5, "prune", *CHAIN, "--weights", "w.pt")
    assert "'w.pt' does not fit the network (Sequential): other kinds of tensors 1" in message
    assert f"({WEIGHT} is {kind}, not float32). Save weights as dense floating-point tensors." in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_taken_as_they_are(dtype: torch.dtype) -> None:
    """Some store the counters of BatchNorm in half precision, too."""
    network = chain()
    fit_state(network, {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}, "'w.pt'")
    assert {tensor.dtype for tensor in network.parameters()} == {dtype}
    assert network.state_dict()["0.1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "expected_message"),
    [
        ({"encoder": {"a": torch.ones(1)}}, "In it 'encoder' is mapped to a dict."),
        ({0: torch.ones(1)}, "In it a int is mapped to a Tensor."),
        ({"k" * 100_000: 3}, "kkk...' is mapped to a int."),
        ("x" * 100_000, "xxx...'."),
    ],
    ids=["nested", "number", "long-name", "long-text"],
)
def test_what_is_no_state_dict_is_said(content: Any, expected_message: str, here: Path) -> None:
    torch.save(content, here / "w.pt")
    message = refusal(5, "prune", *CHAIN, "--weights", "w.pt")
    assert expected_message in message
    assert len(message) < 500


def test_the_advice_of_torch_to_unpickle_is_never_shown(here: Path) -> None:
    torch.save(Path("a pickle that holds more than tensors"), here / "w.pt")
    result = bnprune("prune", *CHAIN, "--weights", "w.pt", "--debug")
    assert result.exit_code == 5
    assert "Traceback" in result.stderr
    assert "Re-running `torch.load`" not in result.stderr
    assert "do those steps only if you trust the source" not in result.stderr.lower()


def test_a_device_is_not_a_file_that_is_missing() -> None:
    assert "'/dev/zero' is not a regular file." in refusal(5, "inspect", "/dev/zero")


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors"])
def test_weights_that_do_not_exist(name: str) -> None:
    assert f"'{name}' does not exist." in refusal(5, "prune", *CHAIN, "--weights", name)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_empty_weights(ending: str) -> None:
    write(f"empty.{ending}", "")
    assert f"'empty.{ending}' is empty" in refusal(5, "prune", *CHAIN, "--weights", f"empty.{ending}")


def test_weights_that_are_a_folder(here: Path) -> None:
    (here / "folder").mkdir()
    assert "'folder' is a folder" in refusal(5, "prune", *CHAIN, "--weights", "folder")


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_weights_as_training_scripts_save_them(wrap: Callable[[Any], Any], here: Path) -> None:
    state = chain().state_dict()
    torch.save(wrap(state), here / "weights.pt")
    done("prune", *CHAIN, "--weights", "weights.pt", "--exclude", "3", "--out", "slim.safetensors")
    assert tensor_bytes(here / "slim.safetensors")["4.2.weight"] == state["4.2.weight"].numpy().tobytes()


def test_weights_of_a_recipe(recipe: Path) -> None:
    write("empty.pt", "")
    assert "'empty.pt' is empty" in refusal(5, "validate", recipe, "model.weights=empty.pt")


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_that_does_not_exist() -> None:
    assert "--plan: 'absent.json' cannot be read" in refusal(5, "prune", *CHAIN, "--plan", "absent.json")


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"schema": "bnprune.plan/1"}'])
def test_a_file_that_is_no_plan(text: str) -> None:
    write("plan.json", text)
    assert "not a pruning plan" in refusal(5, "prune", *CHAIN, "--plan", "plan.json")


def test_a_file_that_is_no_plan_is_named() -> None:
    write("plan.json", "no JSON")
    assert "--plan: 'plan.json': not a pruning plan" in refusal(5, "prune", *CHAIN, "--plan", "plan.json")


def test_a_plan_for_another_network(run: Path) -> None:
    message = refusal(3, "prune", *CHAIN, "--plan", run / "plan.json")
    assert "the plan was made for another network: it fits a MLP, and this Sequential differs" in message


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["result.json", "checkpoints/last.state.pt"])
def test_a_run_with_a_damaged_file_is_not_resumed(name: str, recipe: Path, run: Path, here: Path) -> None:
    shutil.copytree(run, here / "run")
    (here / "run" / "result.json").unlink()
    write(f"run/{name}", "{")
    message = refusal(5, "train", recipe, "--out", "run", "--resume")
    assert f"'run/{name}' is damaged" in message


# -- data -------------------------------------------------------------------------------------------------------------

IMAGES = """\
model: {name: mlp, kwargs: {num_classes: 2, in_channels: 3, image_size: 8, hidden: [8]}}
data: {name: imagefolder, root: images, augment: false, batch_size: 8}
train: {epochs: 1}
"""


@pytest.fixture
def images(here: Path) -> Path:
    """A recipe, and two classes of five tiny images for training and testing."""
    for split in ("train", "test"):
        for number, name in enumerate(("cats", "dogs")):
            folder = here / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(5):
                Image.new("RGB", (8, 8), (50 * index, 100 * number, 9)).save(folder / f"{index}.png")
    return write("images.yaml", IMAGES)


def test_a_folder_of_images_is_fine(images: Path) -> None:
    done("train", images, "--out", "run")


@pytest.mark.parametrize("verb", ["train", "validate"])
def test_a_missing_image_folder(verb: str, images: Path) -> None:
    result = bnprune(verb, images, "data.root=nowhere", *(["--out", "run"] if verb == "train" else []))
    assert result.exit_code == 5
    message = result.stderr
    assert "data.root: 'nowhere' has no folder 'train'. Expected train/<class>/ and test/<class>/." in message


def test_a_folder_without_test_images(images: Path, here: Path) -> None:
    shutil.rmtree(here / "images" / "test")
    assert "data.root: 'images' has no folder 'test'." in refusal(5, "validate", images)


def test_class_folders_without_a_split_are_split_on_request(images: Path, here: Path) -> None:
    message = squeezed(refusal(5, "validate", images, "data.root=images/train"))
    assert "'images/train' has no folder 'train'" in message
    assert "If 'cats' and 'dogs' are classes, set data.test_share=0.2" in message
    found = document("validate", images, "data.root=images/train", "data.test_share=0.25")
    whole = document("validate", images)
    assert found["images"]["test"] == 2 * round(0.25 * sum(1 for _ in Path("images/train/dogs").iterdir()))
    assert found["classes"] == whole["classes"]
    both = refusal(2, "validate", images, "data.test_share=0.25")
    assert "data.test_share: 'images' has a folder 'train' already" in both
    other = refusal(2, "validate", images, "data.name=digits", "data.test_share=0.25")
    assert "'test_share' is for 'imagefolder' only" in other


def test_folders_without_images(images: Path, here: Path) -> None:
    for path in (here / "images" / "train").rglob("*.png"):
        path.unlink()
    message = refusal(5, "validate", images)
    assert "data.root: 'images/train' holds no images. Expected train/<class>/*.jpg or *.png." in message


def test_folders_with_other_classes(images: Path, here: Path) -> None:
    (here / "images" / "test" / "dogs").rename(here / "images" / "test" / "wolves")
    message = refusal(5, "validate", images)
    assert "'images/train' lacks the classes wolves, which 'images/test' has." in message


@pytest.mark.parametrize("name", ["train/cats/0.png", "train/dogs/3.png", "test/cats/1.png"])
def test_an_image_that_is_no_image(name: str, images: Path) -> None:
    write(f"images/{name}", "a cat, described in words")
    message = refusal(5, "validate", images)
    assert f"'images/{name}' cannot be read as an image" in message
    assert "Remove or repair it." in message


def test_a_truncated_image(images: Path, here: Path) -> None:
    path = here / "images/train/dogs/3.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert "'images/train/dogs/3.png' cannot be read as an image" in refusal(5, "validate", images)


def test_an_image_that_is_no_image_among_those_read_while_training(images: Path) -> None:
    for split in ("train", "test"):
        write(f"images/{split}/cats/1.png", "a cat, described in words")
    result = bnprune("train", images, "data.in_memory=false", "data.workers=0", "--out", "run")
    assert result.exit_code == 5
    assert "cats/1.png' cannot be read as an image" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_image_that_is_no_image_in_a_loader_process(images: Path) -> None:
    for split in ("train", "test"):
        write(f"images/{split}/cats/1.png", "a cat, described in words")
    result = bnprune("train", images, "data.in_memory=false", "data.workers=1", "--out", "run")
    assert result.exit_code == 5
    assert "cats/1.png' cannot be read as an image" in result.stderr
    assert "Traceback" not in result.stderr


BROKEN_SAMPLES = """\
import torch
from torch.utils.data import Dataset


class Images(Dataset):
    targets = [index % 10 for index in range(40)]

    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if self.broken == "index" and index == 13:
            raise KeyError(index)
        return torch.zeros(1, 16, 17 if self.broken == "size" and index == 13 else 16), index % 10


def build(broken):
    return Images(broken), Images(broken)
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("broken", "expected_message"),
    [
        ("size", "data: the image of sample 13 of the training set of samples:build must have shape (1, 16, 16)"),
        ("index", "data: sample 13 of the training set of samples:build cannot be read: KeyError: 13"),
    ],
)
def test_samples_of_ones_own_that_cannot_be_read(
    broken: str, expected_message: str, workers: int, recipe: Path
) -> None:
    write("samples.py", BROKEN_SAMPLES)
    data = f"data={{factory: samples:build, kwargs: {{broken: {broken}}}, batch_size: 8, workers: {workers}}}"
    recipe.write_text(recipe.read_text().replace("data: {name: digits, augment: false}\n", ""))
    result = bnprune("train", recipe, data, "--out", "run")
    assert result.exit_code == 5, result.output
    assert expected_message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_a_data_set_that_was_not_downloaded(name: str, recipe: Path) -> None:
    message = refusal(5, "validate", recipe, f"data.name={name}", "data.root=nowhere")
    assert f"data.name: '{name}' cannot be read from 'nowhere'" in message
    assert "Set data.root to where it is, or data.download=true to fetch it." in message


OWN_DATA = """\
import torch
from torch.utils.data import TensorDataset


def number():
    return 3


def fails():
    raise OSError("the cable is out")


def empty():
    return [TensorDataset(torch.zeros(0, 1, 16, 16), torch.zeros(0))] * 2


def images_only():
    return [TensorDataset(torch.zeros(20, 1, 16, 16))] * 2


def flat():
    return [TensorDataset(torch.zeros(20, 256), torch.arange(20) % 10)] * 2
"""


@pytest.mark.parametrize(
    ("name", "exit_code", "expected_message"),
    [
        ("number", 2, "must return bnprune.data.Splits, or two or three datasets (got int)."),
        ("fails", 2, "own_data:fails() failed: OSError: the cable is out"),
        ("empty", 5, "the training set of own_data:empty is empty."),
        ("images_only", 5, "the training set of own_data:images_only must be an (image tensor, label) pair"),
        ("flat", 5, "the training set of own_data:flat must have shape (C, H, W) (got (256,))."),
    ],
)
def test_a_data_factory_that_returns_something_else(
    name: str, exit_code: int, expected_message: str, recipe: Path
) -> None:
    write("own_data.py", OWN_DATA)
    message = refusal(exit_code, "validate", recipe, "data.name=", f"data.factory=own_data:{name}")
    assert message.startswith("error: data")
    assert expected_message in message


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_below_a_file(trained: Path) -> None:
    write("file", "mine")
    assert "Not a directory" in refusal(5, "prune", trained, "--out", "file/slim.safetensors")


def test_an_output_below_a_file_is_named_as_it_was_given(trained: Path) -> None:
    write("file", "mine")
    assert "'file/slim.safetensors' cannot be written" in refusal(5, "prune", trained, "--out", "file/slim.safetensors")


def test_an_output_that_is_a_folder(here: Path, trained: Path) -> None:
    (here / "folder").mkdir()
    message = refusal(5, "prune", trained, "--out", "folder")
    assert message == "error: --out: 'folder' is a folder. Give the name of a file."


def test_a_run_that_is_a_file(recipe: Path) -> None:
    message = refusal(5, "train", recipe, "--out", recipe, "--force")
    assert message == f"error: --out: '{recipe}' is a file. Give the name of a folder."
