"""Faulty data sets of the user: the error names the sample and the reason, however the sample is read."""

from __future__ import annotations

import pickle
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import bnprune
from bnprune.config.schema import DataConfig
from bnprune.data import Splits, load_data
from bnprune.models.zoo import ModelSpec, build
from bnprune.training.compatibility import require_fit
from tests import faulty_data

CPU = torch.device("cpu")
SPOILT = [case for case in faulty_data.SAMPLES if case not in faulty_data.FINE]


def load(factory: str, workers: int = 0, **kwargs: Any) -> Splits:
    return load_data(DataConfig(factory=f"tests.faulty_data:{factory}", kwargs=kwargs, workers=workers))


def read(splits: Splits, times: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Read every split, so many times."""
    return [
        batch
        for split in (splits.train, splits.validation, splits.test)
        for time in range(times)
        for batch in split.serve(list(torch.arange(len(split)).split(20)), CPU, seed=time)
    ]


@pytest.mark.parametrize("case", faulty_data.FINE)
def test_samples_are_served_as_float32_images_and_int64_labels(case: str) -> None:
    served = read(load("samples", case=case, start=4))
    assert {(images.dtype, labels.dtype, labels.dim()) for images, labels in served} == {
        (torch.float32, torch.int64, 1)
    }
    assert not any(images.requires_grad for images, _ in served)


@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_sample_is_named(case: str, where: int) -> None:
    name = ("training", "validation", "test")[where]
    if case == "label 100" and where == 0:  # the training set says which classes there are
        assert load("samples", case=case, start=77).classes == 101
        return
    with pytest.raises(bnprune.DataError, match=rf"^data: .*sample 77 of the {name} set"):
        read(load("samples", case=case, start=77, where=where))


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_first_sample_is_named_before_anything_is_trained(case: str) -> None:
    with pytest.raises(bnprune.DataError, match="sample 0 of the test set"):
        load("samples", case=case, where=2)


@pytest.mark.parametrize("case", ["raises", "exits", "label -1", "float label", "grey image", "uint8 image"])
def test_a_spoilt_sample_is_named_by_loader_processes(case: str) -> None:
    with pytest.raises(bnprune.DataError, match="sample 77 of the test set"):
        read(load("samples", workers=2, case=case, start=77, where=2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", ["raises", "exits", "label 100"])
def test_a_sample_that_goes_wrong_in_the_second_epoch(case: str, workers: int) -> None:
    splits = load("late", workers=workers, case=case, reads=100)
    read(splits)
    with pytest.raises(bnprune.DataError, match=r"sample \d+ of the training set"):
        read(splits)


@pytest.mark.parametrize("case", faulty_data.TARGETS)
def test_targets_that_are_no_labels_are_passed_over(case: str) -> None:
    splits = load("targets", case=case)
    assert splits.classes == faulty_data.CLASSES
    read(splits)


def test_targets_are_checked_before_anything_is_trained() -> None:
    with pytest.raises(bnprune.DataError, match=r"sample 77 of the training set of .* must be .* from 0 up \(got -1\)"):
        load("negative_targets")
    with pytest.raises(bnprune.DataError, match=r"sample 3 of the test set of .* must be .* from 0 to 3, .* \(got 7\)"):
        load("targets_of_test_beyond")


def use(case: str) -> None:
    splits = load("made", case=case)
    network = build(ModelSpec.parse("mlp", {"in_channels": 3, "image_size": 8, "hidden": [8], "num_classes": 4}))
    require_fit(network, splits, "model", 20)
    read(splits)


@pytest.mark.parametrize("case", faulty_data.MADE)
def test_what_a_factory_must_not_return_is_refused(case: str) -> None:
    with pytest.raises((bnprune.DataError, bnprune.ConfigError), match="^(data|model)[.:]"):
        use(case)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("exits", r"made\(case='exits'\) failed: SystemExit: 0"),
        ("four", "two or three datasets .got tuple of 4"),
        ("iterable", "must be a map-style dataset, with __len__ and __getitem__ .got a Endless"),
        ("length 10**12", "says it has 1000000000000 samples"),
        ("shape of zeros", r"must have the shape \(channels, height, width\)"),
        ("memory, label beyond", "the label of sample 4 of the training set .* from 0 to 3"),
        ("custom, grey", r"images of a batch of the training set .* of shape \(20, 3, 8, 8\)"),
        ("one class", "all images are of one class"),
        ("one image", "the validation split holds no images"),
    ],
)
def test_the_message_says_what_was_got(case: str, expected: str) -> None:
    with pytest.raises(bnprune.BnpruneError, match=expected):
        use(case)


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        load("samples", case="ctrl-c")


def test_a_loader_process_that_dies_does_not_interrupt_what_else_goes_on() -> None:
    """torch's handler of SIGCHLD raises an error wherever the main thread is."""
    before = signal.getsignal(signal.SIGCHLD)
    served = load("killed", workers=2).train.serve([torch.arange(4), torch.tensor([79])], CPU)
    next(served)
    assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(bnprune.DataError, match="a loader process failed"):
        next(served)


def test_as_many_classes_as_samples_take_no_time() -> None:
    labels = torch.randperm(20_000)
    splits = load_data(DataConfig(factory="tests.unit.test_user_data:listed", kwargs={"labels": labels.tolist()}))
    assert splits.classes == 20_000


def listed(labels: list[int]) -> Any:
    made = faulty_data.Samples(count=len(labels))
    made.targets = labels  # type: ignore[attr-defined]
    return made, faulty_data.Samples()


# -- data sets of torchvision --------------------------------------------------------------------------------------


def mnist(root: Path, images: bytes, labels: bytes) -> DataConfig:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return DataConfig(name="mnist", root=root, validation=0.5)


def idx(*shape: int, values: bytes | None = None) -> bytes:
    count = 1
    for size in shape:
        count *= size
    return struct.pack(f">{len(shape) + 1}I", 0x800 + len(shape), *shape) + (bytes(count) if values is None else values)


def test_files_of_mnist_are_read(tmp_path: Path) -> None:
    splits = load_data(mnist(tmp_path, idx(8, 4, 4), idx(8, values=bytes([0, 1] * 4))))
    assert (splits.shape, splits.classes, len(splits.test)) == ((1, 4, 4), 2, 8)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (b"", b""),
        (b"\x00" * 100, idx(8)),
        (idx(8, 4, 4)[:40], idx(8)),
        (idx(8, 4, 4), idx(6)),
        (idx(0, 4, 4), idx(0)),
        (idx(8, 4), idx(8)),
    ],
    ids=["empty", "zeros", "cut off", "fewer labels", "no images", "no pictures"],
)
def test_damaged_files_of_mnist(tmp_path: Path, images: bytes, labels: bytes) -> None:
    with pytest.raises(bnprune.DataError, match="'mnist' cannot be read from"):
        load_data(mnist(tmp_path, images, labels))


def test_damaged_files_of_cifar_are_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(bnprune.DataError, match=r"'cifar10' cannot be read from .*data\.download=true"):
        load_data(DataConfig(name="cifar10", root=tmp_path))
    assert not Trap.sprung


class Trap:
    sprung = False

    def __reduce__(self) -> Any:
        return spring, ()


def spring() -> None:
    Trap.sprung = True


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.__getitem__)  # 4 GiB
    with pytest.raises(bnprune.ConfigError, match=r"data\.image_size: 1797 images of .* of memory"):
        load_data(DataConfig(name="digits", image_size=1024))


def test_a_limit_does_not_change_the_classes() -> None:
    assert load_data(DataConfig(name="digits", limit=40)).classes == 10
    assert load_data(DataConfig(name="digits", limit=5)).classes == 10
