"""`prune --calibrate`: where calibration images come from, how they are read, and what is recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bnprune as library
from bnprune.data.unlabelled import Preprocessing, unlabelled_images
from bnprune.errors import ConfigError, DataError
from tests.cli.harness import CHAIN, RECIPE, bnprune, document, done, refusal, squeezed, write
from tests.cli.test_trust import forged, header_of
from tests.nets import chain

BATCHES = """\
import torch


def labelled():
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        yield torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 5


def plain():
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def nothing():
    return 3


def fails():
    yield torch.zeros(2, 3, 8, 8)
    raise RuntimeError("no luck today")
"""


@pytest.fixture
def images(here: Path) -> Path:
    """Images of several sizes, modes and formats, in folders of several depths, among other files."""
    rng = np.random.default_rng(0)
    root = here / "images"
    for index, name in enumerate(("a.png", "deep/er/b.jpg", "deep/c.bmp", "d.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (9 + index, 14, 3) if index < 3 else (8, 8)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(path)
    (root / "deep" / "notes.txt").write_text("no image")
    return root


def test_a_folder_of_any_structure(images: Path) -> None:
    found = document("prune", *CHAIN, "--criterion", "activation", "--calibrate", images, "--macs", "0.5")
    calibration = found["calibration"]
    assert (calibration["source"], calibration["images"], calibration["held_out"]) == ("folder", 4, 1)
    assert calibration["preprocessing"] == {
        "size": [8, 8],
        "crop": False,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    distances = calibration["distances"]
    assert distances[calibration["chosen"]] == min(distances.values())
    assert any("mean and standard deviation of ImageNet" in note for note in found["notes"])
    assert header_of(Path("slim.safetensors"))["metrics"]["calibration"] == calibration


def test_the_number_of_images(images: Path) -> None:
    found = document("prune", *CHAIN, "--calibrate", images, "--calibrate-images", "2")
    assert found["calibration"]["images"] == 2
    assert "calibration" not in document("prune", *CHAIN, "--calibrate", images, "--calibrate-images", "0", "--force")


@pytest.mark.parametrize(("factory", "count"), [("labelled", 64), ("plain", 40)])
def test_a_factory_of_the_users_own(factory: str, count: int) -> None:
    write("mine.py", BATCHES)
    criterion = "taylor" if factory == "labelled" else "activation"
    found = document("prune", *CHAIN, "--criterion", criterion, "--calibrate", f"mine:{factory}")
    assert (found["calibration"]["source"], found["calibration"]["images"]) == ("factory", count)
    assert found["calibration"]["preprocessing"] is None
    assert "repaired with" in done("prune", *CHAIN, "--calibrate", f"mine:{factory}", "--force").stdout


def test_a_run_uses_its_training_images(run: Path) -> None:
    found = document("prune", run, "--ratio", "0.5")
    assert found["calibration"]["source"] == "recipe"
    assert found["calibration"]["images"] == 512
    assert found["calibration"]["preprocessing"]["size"] == [16, 16]
    plain = document("prune", run, "--ratio", "0.5", "--calibrate-images", "0", "--out", "plain.safetensors")
    assert "calibration" not in plain
    assert plain["layers"] == found["layers"]
    if found["calibration"]["chosen"] != "plain":
        changed, as_cut = load_file("slim.safetensors"), load_file("plain.safetensors")
        assert any(not torch.equal(tensor, as_cut[name]) for name, tensor in changed.items())


def test_the_normalisation_of_the_recipe_is_used_for_a_folder(run: Path, images: Path) -> None:
    found = document("prune", run, "--calibrate", images)
    recorded = found["calibration"]["preprocessing"]
    assert len(recorded["mean"]) == 1
    assert recorded["mean"][0] == pytest.approx(0.305, abs=0.02)  # digits are mostly black
    assert not any("ImageNet" in note for note in found["notes"])


@pytest.fixture
def trained_on(images: Path) -> tuple[object, ...]:
    """A network whose statistics are those of the images, normalised with 0.3 and 0.05."""
    rng = np.random.default_rng(1)
    for index in range(32):  # with fewer, nothing is said
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(images / f"more{index}.png")
    of_training = Preprocessing.of((3, 8, 8), [0.3] * 3, [0.05] * 3)
    model = library.recalibrate(chain(), unlabelled_images(images, 36, of_training))
    torch.save(model.state_dict(), "own.pt")
    return ("prune", *CHAIN, "--weights", "own.pt", "--ratio", "0.5", "--calibrate", images)


def test_images_that_are_normalised_in_another_way_are_noticed(trained_on: tuple[object, ...]) -> None:
    other = squeezed(done(*trained_on).output)
    assert "warning: the images differ from those that the network was trained on" in other
    assert "(--mean and --std for images of a folder" in other
    own = done(*trained_on, "--mean", "0.3,0.3,0.3", "--std", "0.05,0.05,0.05", "--out", "own.safetensors")
    assert "differ from those" not in squeezed(own.output)
    assert "ImageNet" not in squeezed(own.output)
    alike = document(*trained_on, "--mean", "0.3", "--std", "0.05", "--dry-run", "--criterion", "activation")
    assert alike["calibration"]["preprocessing"]["mean"] == [0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--mean", "a,b"), "--mean: expected numbers, such as 0.485,0.456,0.406 (got 'a,b')"),
        (("--mean", "0.5"), "--mean: mean and standard deviation must both have 3 numbers, or both 1"),
        (("--mean", "0.5", "--std", "0"), "--std: a standard deviation must be above 0, and at most 1"),
        (("--mean", "0.5", "--std", "nan"), "--std: a standard deviation must be above 0"),
        (("--mean", "123.7", "--std", "58"), "--mean: a mean must be between 0 and 1. Pixel values are from 0 to 1"),
    ],
)
def test_a_wrong_normalisation_is_refused(given: tuple[str, ...], message: str, images: Path) -> None:
    assert message in refusal(2, "prune", *CHAIN, "--ratio", "0.5", "--calibrate", images, *given)


def test_a_normalisation_is_for_a_folder() -> None:
    message = refusal(2, "prune", *CHAIN, "--ratio", "0.5", "--mean", "0.5", "--std", "0.5")
    assert "--mean: is for a folder of images" in message


def test_data_that_an_untrusted_file_names_is_not_opened(run: Path, images: Path) -> None:
    def name_own_data(header: dict[str, Any]) -> None:
        header["config"]["data"] = {"name": "imagefolder", "root": str(images)}

    stranger = forged(next((run / "checkpoints").glob("train*.safetensors")), "stranger.safetensors", name_own_data)
    found = document("prune", stranger, "--ratio", "0.5")
    assert "calibration" not in found
    assert any("no calibration data, because that of the stored recipe" in note for note in found["notes"])
    message = refusal(5, "prune", stranger, "--criterion", "activation", "--out", "other.safetensors")
    assert "data.root" in message
    assert "--trust" in message


def test_a_dry_run_measures_but_does_not_repair(images: Path) -> None:
    found = document("prune", *CHAIN, "--criterion", "activation", "--calibrate", images, "--dry-run")
    assert found["calibration"]["chosen"] is None
    assert "calibration" not in document("prune", *CHAIN, "--calibrate", images, "--dry-run")


def test_a_plan_is_repaired_too(images: Path) -> None:
    plan = library.prune(chain(), torch.zeros(1, 3, 8, 8), ratio=0.5).plan
    write("plan.json", plan.to_json())
    found = document("prune", *CHAIN, "--plan", "plan.json", "--calibrate", images)
    assert set(found["calibration"]["distances"]) >= {"plain", "recalibrated"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "--calibrate: 'nowhere' is not a folder"),
        ("empty", "--calibrate: 'empty' holds no images"),
        ("broken", "broken/a.png' cannot be read as an image"),
        ("mine:nothing", "--calibrate: mine:nothing must return an iterable of batches (got int)"),
        ("mine:missing", "--calibrate: the module 'mine' has no 'missing'"),
        ("mine:fails", "--calibrate: reading the calibration data failed: RuntimeError: no luck today"),
    ],
)
def test_data_that_cannot_be_read_is_refused(here: Path, given: str, message: str) -> None:
    write("mine.py", BATCHES)
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken" / "a.png").write_bytes(b"not a picture")
    result = bnprune("prune", *CHAIN, "--calibrate", given)
    assert result.exit_code in (2, 5)
    assert message in squeezed(result.stderr)
    assert not Path("slim.safetensors").exists()


def test_a_dry_run_checks_the_folder() -> None:
    assert "--calibrate: 'nowhere' is not a folder" in refusal(
        5, "prune", *CHAIN, "--calibrate", "nowhere", "--dry-run"
    )


def test_a_criterion_without_data_says_what_to_give() -> None:
    assert "Give some: --calibrate DIR" in refusal(2, "prune", *CHAIN, "--criterion", "activation")


def test_a_recipe_may_rank_by_activations() -> None:
    ordinary = RECIPE.replace("lr: 2e-2}", "lr: 2e-2, sparsity: {penalty: none}}")
    recipe = write("recipe.yaml", ordinary.replace("{ratio: 0.5}", "{ratio: 0.5, criterion: taylor, passes: 2}"))
    stages = document("run", recipe, "--out", "run")["stages"]
    assert stages["prune"]["ratio"]["realised"] > 0.2
    assert json.loads(Path("run/plan.json").read_text())["requested"]["criterion"] == "taylor"


# -- reading images ----------------------------------------------------------------------------------------------------


def test_images_are_resized_and_normalised(here: Path) -> None:
    (here / "one").mkdir()
    Image.new("RGB", (20, 10), (255, 0, 51)).save(here / "one" / "a.png")
    [batch] = unlabelled_images(here / "one", 5, Preprocessing.of((3, 8, 4), (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)))
    assert batch.shape == (1, 3, 8, 4)
    assert batch[0, :, 0, 0].tolist() == pytest.approx([2.0, -1.0, -0.3])
    [grey] = unlabelled_images(here / "one", 5, Preprocessing.of((1, 8, 8)))
    assert grey.shape == (1, 1, 8, 8)


def test_the_middle_of_large_images_is_taken(here: Path) -> None:
    """Black bars at the sides of a wide picture are cut off, and would not be by resizing alone."""
    (here / "one").mkdir()
    picture = Image.new("RGB", (400, 100), (0, 0, 0))
    picture.paste((255, 255, 255), (130, 0, 270, 100))
    picture.save(here / "one" / "a.png")
    [batch] = unlabelled_images(here / "one", 1, Preprocessing.of((3, 96, 96), (0.0,) * 3, (1.0,) * 3))
    assert batch.shape == (1, 3, 96, 96)
    assert batch.min() == 1


def test_a_choice_of_images_is_drawn_from_all_folders(here: Path) -> None:
    for folder in range(4):
        (here / "many" / str(folder)).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (4, 4), (60 * folder, 0, 0)).save(here / "many" / str(folder) / f"{index}.png")
    shown = Preprocessing.of((3, 4, 4), (0.0,) * 3, (1.0,) * 3)
    first, again = (torch.cat(list(unlabelled_images(here / "many", 12, shown))) for _ in range(2))
    assert len(first) == 12
    assert torch.equal(first, again)
    assert len(first[:, 0, 0, 0].unique()) == 4


def test_networks_that_take_no_images_need_a_factory() -> None:
    with pytest.raises(ConfigError, match="the network takes 4,8,8"):
        Preprocessing.of((4, 8, 8))
    with pytest.raises(ConfigError, match="package.module:factory"):
        Preprocessing.of((12,))


def test_bounds_hold_for_unlabelled_images(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnprune.data.folder._MOST_PIXELS", 100)
    (here / "one").mkdir()
    Image.new("RGB", (20, 10)).save(here / "one" / "a.png")
    with pytest.raises(DataError, match="is an image of 20x10"):
        next(unlabelled_images(here / "one", 1, Preprocessing.of((3, 8, 8))))
    shutil.rmtree(here / "one")
    (here / "one").mkdir()
    Image.new("RGB", (90, 1)).save(here / "one" / "a.png")
    with pytest.raises(DataError, match="once the shorter side is resized to 110"):
        next(unlabelled_images(here / "one", 1, Preprocessing.of((3, 96, 96))))
