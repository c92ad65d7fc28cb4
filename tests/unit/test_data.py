"""Data: splits that do not overlap, batches that can be reproduced from any step, files that may be broken."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import bnprune
from bnprune.config.schema import DataConfig
from bnprune.data import MemorySplit, Splits, StreamSplit, load_data
from bnprune.data.memory import Augmentation, augment, statistics, uniforms
from bnprune.data.splits import combined_seed, evenly, stratified

CPU = torch.device("cpu")


def make_folder(root: Path, size: int = 12, per_class: int = 6) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = torch.arange(size * size * 3).add(40 * index + 90 * number).remainder(256).to(torch.uint8)
                Image.fromarray(pixels.view(size, size, 3).numpy()).save(folder / f"{index}.png")
    return root


def test_digits_are_split_evenly_and_without_overlap() -> None:
    splits = load_data(DataConfig(name="digits"))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
    assert splits.shape == (1, 16, 16)
    assert splits.classes == 10
    images = [
        set(map(bytes, s.images.numpy().reshape(len(s), -1))) for s in (splits.train, splits.validation, splits.test)
    ]
    assert not images[0] & images[1]
    assert not images[0] & images[2]
    shares = torch.bincount(splits.validation.labels) / torch.bincount(splits.train.labels)
    assert (shares - 1 / 9).abs().max() < 0.02


def test_stratified_holds_out_the_same_samples_every_time() -> None:
    labels = torch.arange(100) % 4
    fit, held = stratified(labels, 0.2)
    assert torch.equal(held, stratified(labels, 0.2)[1])
    assert torch.bincount(labels[held]).tolist() == [5, 5, 5, 5]
    assert sorted(torch.cat([fit, held]).tolist()) == list(range(100))


@pytest.mark.parametrize("limit", [4, 10, 11, 1000])
def test_a_limit_takes_classes_evenly(limit: int) -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 5)
    chosen = evenly(labels, limit)
    counts = torch.bincount(labels[chosen], minlength=3)
    assert len(chosen) == min(limit, 85)
    if limit < 15:
        assert counts.max() - counts.min() <= 1


def test_normalised_images_have_mean_zero_and_deviation_one() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    mean, std = statistics(images)
    torch.testing.assert_close(mean, (images / 255.0).mean((0, 2, 3)))
    (served, _), *_ = MemorySplit(images, torch.zeros(50).long(), mean, std).serve([torch.arange(50)], CPU)
    torch.testing.assert_close(served.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(served.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_draws_are_uniform_and_independent() -> None:
    """Against the moments of the uniform distribution; 100,000 draws of three, standard error 1e-3."""
    drawn = uniforms(3, torch.arange(100_000), 3).double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 0.5).double(), atol=5e-3, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), torch.eye(3).double() / 12, atol=2e-3, rtol=0)
    assert (drawn[1:, 0] - drawn[:-1, 0]).abs().mean() == pytest.approx(1 / 3, abs=5e-3)
    counts = torch.histc(uniforms(4, torch.arange(100_000), 1), bins=10, min=0, max=1)
    assert ((counts - 10_000).abs() < 500).all()


def test_a_sample_is_augmented_alike_whatever_batch_it_is_in() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    split = MemorySplit(images, torch.arange(40), torch.zeros(3), torch.ones(3), Augmentation(2, flip=True))
    order = torch.randperm(40)
    ((whole, _),) = split.serve([order], CPU, seed=5)
    parts = [images for images, _ in split.serve(list(order.split(7)), CPU, seed=5)]
    assert torch.equal(torch.cat(parts), whole)


def test_batches_depend_on_seed_and_indices_only() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    split = MemorySplit(images, torch.arange(40), torch.zeros(3), torch.ones(3), Augmentation(2, flip=True))
    batches = list(torch.arange(40).split(10))
    whole = list(split.serve(batches, CPU, seed=5))
    torch.manual_seed(123)
    resumed = list(split.serve(batches[2:], CPU, seed=5))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], resumed, strict=True))
    other = next(iter(split.serve(batches, CPU, seed=6)))
    assert not torch.equal(whole[0][0], other[0])
    plain = next(iter(split.serve(batches, CPU)))
    torch.testing.assert_close(plain[0], images[:10].float() / 255)


def test_augmentation_shifts_and_mirrors_against_a_loop() -> None:
    images = torch.randint(1, 256, (32, 2, 6, 6), dtype=torch.uint8)
    changed = augment(images, Augmentation(2, flip=True), uniforms(0, torch.arange(32), 3))
    seen = set()
    for before, after in zip(images, changed, strict=True):
        found = [
            (flip, dy, dx)
            for flip in (False, True)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(after, shifted(before.flip(-1) if flip else before, dy, dx))
        ]
        assert found
        seen.add(found[0])
    assert len(seen) > 15


def shifted(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    result = torch.zeros_like(image)
    for y in range(6):
        for x in range(6):
            if 0 <= y + dy < 6 and 0 <= x + dx < 6:
                result[:, y, x] = image[:, y + dy, x + dx]
    return result


def test_seeds_are_stable_and_spread() -> None:
    assert combined_seed(1, 2) == combined_seed(1, 2) != combined_seed(2, 1)
    assert len({combined_seed(a, b) for a in range(50) for b in range(50)}) == 2500
    assert combined_seed(0) == 6080981106521087202, "changing this changes every recorded run"


def test_image_folder_in_memory_and_streamed_hold_the_same_images(tmp_path) -> None:
    root = make_folder(tmp_path)
    memory = load_data(DataConfig(name="imagefolder", root=root, validation=0.3))
    assert memory.shape == (3, 12, 12)
    assert isinstance(memory.train, MemorySplit)
    stream = load_data(
        DataConfig(name="imagefolder", root=root, validation=0.3, in_memory=False, workers=0, image_size=12)
    )
    assert isinstance(stream.train, StreamSplit)
    assert [len(s) for s in (stream.train, stream.validation, stream.test)] == [8, 4, 12]
    labels = next(iter(stream.train.serve([torch.arange(8)], CPU)))[1]
    assert torch.equal(labels, memory.train.labels)


def test_a_share_of_every_class_is_for_testing_if_there_is_no_split(tmp_path) -> None:
    config = DataConfig(name="imagefolder", root=make_folder(tmp_path) / "train", test_share=0.25, validation=0.3)
    splits = load_data(config)
    parts = [split.labels for split in (splits.train, splits.validation, splits.test)]
    assert splits.test.labels.bincount().tolist() == [round(0.25 * 6)] * 2
    assert sum(map(len, parts)) == 12
    pixels = torch.cat([split.images.flatten(1) for split in (splits.train, splits.validation, splits.test)])
    assert len(pixels.unique(dim=0)) == 12  # no image is in two splits
    assert torch.equal(load_data(config).test.images, splits.test.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_depend_on_seed_and_sample_only(tmp_path, workers: int) -> None:
    config = DataConfig(name="imagefolder", root=make_folder(tmp_path), in_memory=False, workers=workers, image_size=8)
    split = load_data(config).train
    batches = list(torch.arange(8).split(4))
    whole = [images for images, _ in split.serve(batches, CPU, seed=1)]
    assert torch.equal(next(iter(split.serve(batches[1:], CPU, seed=1)))[0], whole[1])
    assert not torch.equal(next(iter(split.serve(batches[1:], CPU, seed=2)))[0], whole[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train").rename(root / "fit"), "has no folder 'train'. Expected train/<class>/"),
        (lambda root: (root / "test" / "dog").rename(root / "test" / "cow"), "lacks the classes cow, which"),
        (lambda root: [f.unlink() for f in root.glob("test/*/*")], "holds no images"),
        (
            lambda root: (root / "train" / "cat" / "3.png").write_bytes(b"no image"),
            r"3\.png' cannot be read as an image",
        ),
        (lambda root: (root / "train" / "cat" / "3.png").write_bytes(b""), r"3\.png' cannot be read as an image"),
        (lambda root: cut_short(root / "train" / "cat" / "3.png"), r"3\.png' cannot be read as an image"),
        (lambda root: (root / "train" / "cat" / "x.png").write_bytes(EPS), r"x\.png' cannot be read as an image"),
        (lambda root: os.mkfifo(root / "train" / "cat" / "x.png"), r"x\.png' is not a regular file"),
        (lambda root: (root / "train" / "cat" / "x.png").symlink_to("/dev/zero"), r"x\.png' is not a regular file"),
        (lambda root: (root / "train" / "cat" / "x.png").symlink_to("x.png"), r"x\.png' is not a regular file"),
        (lambda root: (root / "train" / "cat" / "x.png").symlink_to("none"), r"x\.png' is not a regular file"),
        (lambda root: bomb(root / "train" / "cat" / "x.png", 8000), r"x\.png' is an image of 10000x8000: 80000000 pix"),
        (lambda root: bomb(root / "train" / "cat" / "x.png", 10000), r"x\.png' is too large"),
        (lambda root: bomb(root / "train" / "cat" / "x.png", 90000), r"x\.png' is too large"),
        (lambda root: [f.unlink() for f in root.glob("train/dog/*")], "train' holds no images of dog"),
        (lambda root: [f.unlink() for f in root.glob("*/dog/*")], "train' holds no images of dog"),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_broken_folders(tmp_path, spoil, message: str, in_memory: bool) -> None:
    spoil(make_folder(tmp_path))
    with pytest.raises(bnprune.DataError, match=message):
        read_all(load_data(DataConfig(name="imagefolder", root=tmp_path, in_memory=in_memory, workers=0)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n%%EOF\n"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path: Path, height: int) -> None:
    """A PNG of a few bytes, 10,000 pixels wide."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 10_000, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def read_all(splits: Splits) -> torch.Tensor:
    served = [split.serve([torch.arange(len(split))], CPU) for split in (splits.train, splits.validation, splits.test)]
    return torch.cat([images for batches in served for images, _ in batches])


def test_a_file_is_not_handed_to_another_program(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the file was taken for an EPS, which Ghostscript reads")

    monkeypatch.setattr("PIL.EpsImagePlugin.EpsImageFile._open", refuse)
    (make_folder(tmp_path) / "train" / "cat" / "x.png").write_bytes(EPS)
    with pytest.raises(bnprune.DataError, match=r"\(BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP\)"):
        load_data(DataConfig(name="imagefolder", root=tmp_path))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_read_as_colours(tmp_path, mode: str, in_memory: bool) -> None:
    grey = Image.new("RGB", (12, 12), (128, 128, 128))
    image = Image.fromarray(np.full((12, 12), 128 << 8, np.uint16)) if mode == "I;16" else grey.convert(mode)
    for path in make_folder(tmp_path).glob("train/cat/*"):
        image.save(path, "TIFF" if mode == "CMYK" else "PNG")
    config = DataConfig(name="imagefolder", root=tmp_path, in_memory=in_memory, workers=0, augment=False)
    split = load_data(config).train
    ((images, labels),) = split.serve([torch.arange(len(split))], CPU)
    assert images.shape[1:] == (3, 12, 12)
    pixels = images[labels == 0].mean((0, 2, 3))
    if isinstance(split, MemorySplit) and mode != "1":
        pixels = (pixels * split.std + split.mean) * 255
        assert (pixels - 128).abs().max() < 2


def test_a_folder_whose_name_ends_like_an_image_is_a_folder(tmp_path) -> None:
    (make_folder(tmp_path) / "train" / "cat" / "1.png").rename(tmp_path / "moved.png")
    (tmp_path / "train" / "cat" / "x.png").mkdir()
    (tmp_path / "moved.png").rename(tmp_path / "train" / "cat" / "x.png" / "1.png")
    assert len(load_data(DataConfig(name="imagefolder", root=tmp_path, validation=0.3)).train) == 8


def test_an_image_that_would_be_resized_to_gigabytes(tmp_path) -> None:
    Image.new("RGB", (500_000, 1)).save(make_folder(tmp_path) / "train" / "cat" / "x.png")
    splits = load_data(DataConfig(name="imagefolder", root=tmp_path, in_memory=False, workers=0))
    with pytest.raises(bnprune.DataError, match="500000x1: 98000000 pixels once the shorter side is resized to 14"):
        read_all(splits)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("limit", [None, 1])
def test_classes_are_counted_alike_in_memory_and_streamed(tmp_path, in_memory: bool, limit: int | None) -> None:
    root = make_folder(tmp_path)
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "zebra")
    [path.unlink() for path in root.glob("test/zebra/*")]
    config = DataConfig(name="imagefolder", root=root, in_memory=in_memory, workers=0, limit=limit)
    assert load_data(config).classes == 2


def test_a_broken_image_in_a_stream(tmp_path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"no image")
    split = load_data(DataConfig(name="imagefolder", root=tmp_path, in_memory=False, workers=1, image_size=8)).train
    with pytest.raises(bnprune.DataError, match="cannot be read as an image"):
        list(split.serve([torch.arange(len(split))], CPU))


def test_unknown_and_absent_data_sets(tmp_path) -> None:
    with pytest.raises(bnprune.ConfigError, match=r"data\.name: 'cifar' is unknown\. Did you mean 'cifar100?'"):
        load_data(DataConfig(name="cifar"))
    with pytest.raises(bnprune.DataError, match="'cifar10' cannot be read from .*data.download=true"):
        load_data(DataConfig(name="cifar10", root=tmp_path))


def own_data(count: int = 20, channels: int = 3):
    images = torch.randn(count, channels, 8, 8)
    labels = torch.arange(count) % 4
    return TensorDataset(images, labels), TensorDataset(images, labels)


def test_data_of_ones_own() -> None:
    splits = load_data(
        DataConfig(factory="tests.unit.test_data:own_data", kwargs={"count": 40}, validation=0.25, workers=0)
    )
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [32, 8, 40]
    assert splits.shape == (3, 8, 8)
    assert splits.classes == 4


@pytest.mark.parametrize(
    ("factory", "kwargs", "error", "message"),
    [
        ("tests.unit.test_data:nothing", {}, bnprune.ConfigError, "has no 'nothing'"),
        (
            "tests.unit.test_data:own_data",
            {"counts": 3},
            bnprune.ConfigError,
            "no argument 'counts'. Did you mean 'count'",
        ),
        ("builtins:int", {}, bnprune.ConfigError, r"must return bnprune\.data\.Splits, or two or three datasets"),
        ("tests.unit.test_data:own_data", {"count": 0}, bnprune.DataError, "is empty"),
    ],
)
def test_data_factories_that_do_not_work(factory, kwargs, error, message) -> None:
    with pytest.raises(error, match=message):
        load_data(DataConfig(factory=factory, kwargs=kwargs))


class Noisy(Dataset):
    """Images of zeros, and a transform that draws from every generator there is."""

    def __init__(self, transform=None, count: int = 20) -> None:
        self.transform = transform
        self.targets = [index % 4 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = torch.zeros(3, 8, 8)
        return (self.transform(image) if self.transform else image), self.targets[index]


def draws(image: torch.Tensor) -> torch.Tensor:
    return image + torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]).view(3, 1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_depend_on_their_seed_whatever_generator_transforms_use(workers: int) -> None:
    split = StreamSplit(Noisy(draws), workers=workers)
    batches = list(torch.arange(20).split(5))
    before = random.getstate(), np.random.get_state()[1].tolist()
    whole = [images for images, _ in split.serve(batches, CPU, seed=1)]
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
    resumed = [images for images, _ in split.serve(batches[2:], CPU, seed=1)]
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole[2:], strict=True))
    other = next(iter(split.serve(batches[2:], CPU, seed=2)))[0]
    assert (other != whole[2]).all()
    assert len(torch.cat(whole)[:, :, 0, 0].unique()) == 60


def noisy(train=draws, test=None):
    return Noisy(train), Noisy(test)


def noisy_subsets():
    return Subset(Noisy(draws, 40), list(range(20))), Subset(Noisy(), list(range(10)))


def noisy_three():
    return Noisy(draws), Noisy(count=8), Noisy()


class Bare(Dataset):
    """Augments by itself; nobody can tell."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int):
        return draws(torch.zeros(3, 8, 8)), index % 4


def bare():
    return Bare(), Noisy()


@pytest.mark.parametrize("factory", ["noisy", "noisy_subsets", "noisy_three"])
def test_validation_images_are_not_augmented(factory: str) -> None:
    splits = load_data(DataConfig(factory=f"tests.unit.test_data:{factory}", validation=0.4, workers=0))
    held, _ = next(iter(splits.validation.serve([torch.arange(8)], CPU)))
    assert len(splits.validation) == 8
    assert held.abs().max() == 0
    fit, _ = next(iter(splits.train.serve([torch.arange(8)], CPU, seed=1)))
    assert fit.abs().min() > 0
    assert splits.notes == ()


def test_validation_images_that_may_be_augmented_get_a_note() -> None:
    splits = load_data(DataConfig(factory="tests.unit.test_data:bare", workers=0))
    assert "return three datasets (train, validation, test)" in splits.notes[0]
    assert load_data(DataConfig(factory="tests.unit.test_data:own_data", workers=0)).notes == ()
