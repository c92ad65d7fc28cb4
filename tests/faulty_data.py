"""Faulty data sets, one per kind of fault; `tests.faulty_data:data` is the factory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bnprune.data import MemorySplit, Splits, StreamSplit

CLASSES = 4


def _raise(error: BaseException) -> Any:
    raise error


SAMPLES: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "good": lambda image, label: (image, label),
    "list": lambda image, label: [image, label],
    "numpy label": lambda image, label: (image, np.int64(label)),
    "array label": lambda image, label: (image, np.array([label])),
    "0-d label": lambda image, label: (image, torch.tensor(label)),
    "shape (1,)": lambda image, label: (image, torch.tensor([label], dtype=torch.uint8)),
    "bool label": lambda image, label: (image, bool(label % 2)),
    "float64 image": lambda image, label: (image.double(), label),
    "float16 image": lambda image, label: (image.half(), label),
    "image with a gradient": lambda image, label: (image.clone().requires_grad_() * 2, label),
    "raises": lambda image, label: _raise(RuntimeError("no luck today")),
    "raises without a word": lambda image, label: _raise(RuntimeError()),
    "raises an index error": lambda image, label: _raise(IndexError("there is no such page")),
    "stops the iteration": lambda image, label: _raise(StopIteration()),
    "exits": lambda image, label: sys.exit(0),
    "label -1": lambda image, label: (image, -1),
    "label 100": lambda image, label: (image, 100),
    "label 2**70": lambda image, label: (image, 2**70),
    "float label": lambda image, label: (image, float(label)),
    "float tensor label": lambda image, label: (image, torch.tensor(float(label))),
    "one-hot label": lambda image, label: (image, torch.eye(CLASSES)[label]),
    "one-hot whole label": lambda image, label: (image, torch.eye(CLASSES).long()[label]),
    "string label": lambda image, label: (image, "cat"),
    "no label": lambda image, label: (image, None),
    "dict label": lambda image, label: (image, {"label": label}),
    "image alone": lambda image, label: image,
    "None": lambda image, label: None,
    "three": lambda image, label: (image, label, label),
    "dict": lambda image, label: {"image": image, "label": label},
    "nested": lambda image, label: ((image, label), label),
    "array image": lambda image, label: (image.numpy(), label),
    "uint8 image": lambda image, label: (image.to(torch.uint8), label),
    "bool image": lambda image, label: (image > 0, label),
    "complex image": lambda image, label: (image.to(torch.complex64), label),
    "sparse image": lambda image, label: (image.to_sparse(), label),
    "meta image": lambda image, label: (image.to("meta"), label),
    "grey image": lambda image, label: (image[:1], label),
    "small image": lambda image, label: (image[:, :4, :4], label),
    "2-d image": lambda image, label: (image[0], label),
    "empty image": lambda image, label: (image[:, :0], label),
}
"""What becomes of a sample, by name."""

FINE = (
    "good",
    "list",
    "numpy label",
    "array label",
    "0-d label",
    "shape (1,)",
    "bool label",
    "float64 image",
    "float16 image",
    "image with a gradient",
)


class Samples(Dataset[Any]):
    """Images 3x8x8 of four classes; those from `start` on are spoilt."""

    def __init__(self, case: str = "good", start: int = 0, count: int = 80) -> None:
        self.case, self.start, self.count = case, start, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        image, label = torch.full((3, 8, 8), index / 80), index % CLASSES
        if self.case == "ctrl-c":
            raise KeyboardInterrupt
        return SAMPLES[self.case if index >= self.start else "good"](image, label)


class Listed(Samples):
    """Tells its labels, rightly or wrongly."""

    def __init__(self, targets: Any, case: str = "good") -> None:
        super().__init__(case, start=77)
        self.targets = targets


class Late(Samples):
    """Goes wrong from a number of reads on, of all processes: in the second epoch, for one."""

    def __init__(self, case: str, reads: int) -> None:
        super().__init__(case)
        self.targets = [index % CLASSES for index in range(80)]
        self.left = torch.tensor(reads).share_memory_()

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        self.start = 0 if self.left < 0 else 80
        return super().__getitem__(index)


class Printing(Samples):
    """Prints whenever it is read."""

    def __getitem__(self, index: int) -> Any:
        sys.stdout.write(f"sample {index}\n")
        return super().__getitem__(index)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Samples())


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return Samples()[index]


class Sized(Samples):
    def __len__(self) -> Any:
        return self.count() if callable(self.count) else self.count


def samples(case: str, start: int = 0, where: int = 0) -> Any:
    """Three sets, one of them spoilt from a sample on."""
    made = [Samples(), Samples(), Samples()]
    made[where] = Samples(case, start)
    return tuple(made)


def late(case: str = "raises", reads: int = 100) -> Any:
    return Late(case, reads), Samples(), Samples()


def printing() -> Any:
    sys.stdout.write("the factory prints\n")
    return Printing(), Printing(), Printing()


TARGETS: dict[str, Any] = {
    "None": None,
    "strings": ["cat"] * 80,
    "too few": [0, 1, 2, 3],
    "none at all": [],
    "floats": [0.5] * 80,
    "nested": [[0]] * 80,
    "a number": 5,
    "ragged": [[0], [1, 2]] * 40,
}


def targets(case: str) -> Any:
    return Listed(TARGETS[case]), Samples(), Samples()


def negative_targets() -> Any:
    return Listed([0, 1, 2, 3] * 19 + [0, -1, 2, 3]), Samples(), Samples()


def targets_of_test_beyond() -> Any:
    return Samples(), Samples(), Listed([0, 1, 2, 7] * 20)


class Custom:
    """A split of the user's own."""

    def __init__(self, batch: Any = None, count: Any = 80) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> Any:
        return self.count

    def serve(self, batches: Any, device: Any, seed: Any = None) -> Any:
        for indices in batches:
            images, labels = torch.randn(len(indices), 3, 8, 8), indices % CLASSES
            yield (images, labels) if self.batch is None else self.batch(images, labels)


def _memory(labels: torch.Tensor, channels: int = 3) -> MemorySplit:
    images = torch.zeros(len(labels), channels, 8, 8, dtype=torch.uint8)
    return MemorySplit(images, labels, torch.zeros(channels), torch.ones(channels))


def _splits(train: Any = None, shape: Any = (3, 8, 8), classes: Any = CLASSES, notes: Any = ()) -> Splits:
    good = StreamSplit(Samples())
    return Splits(good if train is None else train, good, good, shape=shape, classes=classes, notes=notes)


MADE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "raises": lambda: _raise(RuntimeError("no luck today")),
    "exits": lambda: sys.exit(0),
    "one": lambda: (Samples(),),
    "four": lambda: (Samples(),) * 4,
    "a dataset": lambda: Samples(),
    "a generator": lambda: (Samples() for _ in range(3)),
    "nested": lambda: ((Samples(), Samples()), (Samples(), Samples())),
    "iterable": lambda: (Endless(), Endless()),
    "loaders": lambda: (DataLoader(Samples()), DataLoader(Samples())),
    "no length": lambda: (Unsized(), Unsized()),
    "nones": lambda: (None, None),
    "strings": lambda: ("train", "test"),
    "classes": lambda: (Samples, Samples),
    "networks": lambda: (nn.Linear(1, 1), nn.Linear(1, 1)),
    "length -1": lambda: (Sized(count=-1), Samples()),
    "length 'a'": lambda: (Sized(count="a"), Samples()),  # type: ignore[arg-type]
    "length 2**70": lambda: (Sized(count=2**70), Samples()),
    "length 10**12": lambda: (Sized(count=10**12), Samples()),
    "length raises": lambda: (Sized(count=lambda: _raise(RuntimeError("no luck today"))), Samples()),  # type: ignore[arg-type]
    "length exits": lambda: (Sized(count=lambda: sys.exit(0)), Samples()),  # type: ignore[arg-type]
    "empty test": lambda: (Samples(), Samples(count=0)),
    "no dataset in it": lambda: Splits(None, None, None, shape=(3, 8, 8), classes=4),  # type: ignore[arg-type]
    "datasets in it": lambda: _splits(Samples()),
    "shape None": lambda: _splits(shape=None),
    "shape of two": lambda: _splits(shape=(3, 8)),
    "shape of zeros": lambda: _splits(shape=(3, 0, 8)),
    "shape of floats": lambda: _splits(shape=(3.0, 8.0, 8.0)),
    "huge shape": lambda: _splits(shape=(3, 10**9, 10**9)),
    "classes None": lambda: _splits(classes=None),
    "classes -1": lambda: _splits(classes=-1),
    "classes 4.5": lambda: _splits(classes=4.5),
    "notes None": lambda: _splits(notes=None),
    "another shape": lambda: _splits(shape=(3, 16, 16)),
    "fewer classes": lambda: _splits(classes=3),
    "memory, label beyond": lambda: _splits(_memory(torch.arange(80) % 5)),
    "memory, float labels": lambda: _splits(_memory((torch.arange(80) % 4).float())),
    "memory, other channels": lambda: _splits(_memory(torch.arange(80) % 4, channels=1)),
    "memory, fewer images": lambda: _splits(
        MemorySplit(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(80) % 4, torch.zeros(3), torch.ones(3))
    ),
    "custom, not a pair": lambda: _splits(Custom(lambda images, labels: images)),
    "custom, label beyond": lambda: _splits(Custom(lambda images, labels: (images, labels + 1))),
    "custom, float labels": lambda: _splits(Custom(lambda images, labels: (images, labels.float()))),
    "custom, grey": lambda: _splits(Custom(lambda images, labels: (images[:, :1], labels))),
    "custom, uint8": lambda: _splits(Custom(lambda images, labels: (images.byte(), labels))),
    "custom, fewer labels": lambda: _splits(Custom(lambda images, labels: (images, labels[:1]))),
    "custom, raises": lambda: _splits(Custom(lambda images, labels: _raise(KeyError("luck")))),
    "custom, exits": lambda: _splits(Custom(lambda images, labels: sys.exit(0))),
    "custom, length None": lambda: _splits(Custom(count=None)),
    "one image": lambda: (Samples(count=1), Samples()),
    "one class": lambda: (Samples(count=1), Samples(count=1), Samples(count=1)),
}
"""What the factory returns, by name."""


def made(case: str) -> Any:
    return MADE[case]()


class Killed(Samples):
    """Kills its loader process, while others still have batches to deliver."""

    def __getitem__(self, index: int) -> Any:
        if index == 79:
            os._exit(9)
        return super().__getitem__(index)


def killed() -> Any:
    test = Killed()
    test.targets = [index % CLASSES for index in range(80)]  # type: ignore[attr-defined]
    return test, Samples(), Samples()
