"""Data sets of the user's own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fuzzing.cases import (
    BOUNDED,
    MODEL,
    Builder,
    Case,
    take,
)

# fmt: off
MODULE = """\
import os, sys, warnings
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset


class Pictures({parent}):
    {targets}

    def __len__(self):
        {length}

    def __getitem__(self, n):
        {before}
        return {item}

    {more}


class Other(Pictures):
    def __getitem__(self, n):
        return {other}


def build(**_):
    {setup}
    return {splits}
"""
# fmt: on
_GOOD = {
    "parent": "Dataset",
    "targets": "pass",
    "length": "return 24",
    "before": "pass",
    "item": "torch.full((3, 8, 8), n / 24.0), n % 3",
    "other": "torch.full((1, 8, 8), 0.5), n % 3",
    "more": "",
    "setup": "pass",
    "splits": "Pictures(), Pictures()",
}
_IMAGES = (
    *("torch.zeros(3, 8, 8, dtype=torch.uint8)", "torch.zeros(3, 8, 8, dtype=torch.float64)", "torch.zeros(1, 8, 8)"),
    *("torch.zeros(3, 8)", "torch.zeros(3, 8, 8, 8)", "torch.zeros(0, 8, 8)", "np.zeros((3, 8, 8))", "None", "'x'"),
    *("torch.full((3, 8, 8), float('nan'))", "torch.full((3, 8, 8), 1e38)", "torch.zeros(3, 8, 8, dtype=torch.cfloat)"),
    *("torch.zeros(3, 8, 8).to_sparse()", "torch.zeros(3, 8, 8, device='meta')", "torch.zeros(3, 8, 8).half()"),
    *("torch.zeros(3, 8, 8).bool()", "torch.zeros(3, 8 + n % 2, 8)", "torch.zeros(3, 8, 8, requires_grad=True)"),
    *("torch.zeros(1 + 2 * (n == 0), 8, 8)", "[torch.zeros(3, 8, 8)]", "torch.zeros(3, 0, 0)", "torch.zeros(())"),
    "torch.zeros(3, 8, 8, dtype=torch.uint8) if n else torch.zeros(3, 8, 8)",
)
_LABELS = (
    *("-1", "3", "n", "float(n % 3)", "n % 3 + 0.5", "bool(n % 2)", "None", "'a'", "2**63", "10**9", "float('nan')"),
    *("torch.tensor([n % 3])", "torch.eye(3)[n % 3]", "torch.tensor(n % 3)", "torch.tensor(1.5)", "np.int64(n % 3)"),
    *(
        "[n % 3]",
        "{'label': 1}",
        "n % 3 if n < 7 else 9",
        "n % 3 if n else -1",
        "True",
        "torch.tensor(True)",
        "10**400",
    ),
)
# fmt: off
_BEFORE = (
    *(
        "raise RuntimeError('no such item')", "if n == 7: raise KeyError(n)", "if n == 0: raise ValueError",
        "sys.exit(3)",
    ),
    *(
        "if n == 7: sys.exit()", "print('hello')", "sys.stdout.write('x' * 10)", "os.write(1, b'{}')",
        "raise StopIteration",
    ),
    *(
        "raise MemoryError", "return None", "return n", "return torch.zeros(3, 8, 8)", "return 1, 2, 3",
        "return self[n]",
    ),
    *(
        "warnings.warn('x' * 1000)", "raise Exception('x' * 100_000)", "raise Exception('\\x1b[31m\\x07')",
        "raise Exception",
    ),
    *("if n > 4: raise IndexError", "raise OSError(5, 'x')", "torch.set_default_dtype(torch.float64)"),
    "if torch.utils.data.get_worker_info(): os._exit(1)",
    "torch.set_default_device('meta')",
)
# fmt: on
_LENGTH = (
    *(
        "return 0",
        "return 1",
        "return 2",
        "return -1",
        "raise TypeError",
        "return 'x'",
        "return None",
        "return 2.5",
        "sys.exit()",
    ),
    *("print('hello'); return 24", "return 10**30", "return True"),
)
_TARGETS = (
    *("targets = None", "targets = ['a'] * 24", "targets = [0] * 3", "targets = [-1] * 24", "targets = [9] * 24"),
    *("targets = torch.rand(24)", "targets = np.arange(24) % 3", "targets = 5", "targets = []", "targets = [[0]] * 24"),
    *("targets = property(lambda self: 1 / 0)", "targets = [None] * 24", "targets = [2**70] * 24", "targets = {}"),
)
# fmt: off
_SPLITS = (
    *("None", "(Pictures(),)", "[Pictures(), Pictures()]", "(Pictures(), Pictures(), Pictures())", "{}", "(1, 2)"),
    *(
        "Pictures(), Other()", "(Pictures(), Pictures(), Other())", "Other(), Pictures()", "Pictures",
        "Pictures(), None",
    ),
    *(
        "(Pictures(), 5, Pictures())", "(x for x in (Pictures(), Pictures()))", "(Pictures(),) * 9", "'ab'", "os",
        "[], []",
    ),
    *(
        "Subset(Pictures(), [0, 1]), Pictures()", "Subset(Pictures(), [99]), Pictures()",
        "Subset(Pictures(), []), Pictures()",
    ),
    *("(TensorDataset(torch.zeros(9, 3, 8, 8), torch.zeros(9)),) * 2", "(TensorDataset(torch.zeros(9, 3, 8, 8)),) * 2"),
)
_SETUP = (
    *(
        "raise RuntimeError('no')", "sys.exit(1)", "sys.exit()", "print('hello')", "raise Exception('\\x1b[31m' * 9)",
        "1 / 0",
    ),
    *(
        "raise MemoryError", "torch.set_grad_enabled(False)", "os.write(1, b'x')", "warnings.warn('x')",
        "raise SystemExit('x')",
    ),
)
ODD: dict[str, tuple[str, ...]] = {
    "item": (
        *(f"{image}, n % 3" for image in _IMAGES),
        *(f"torch.full((3, 8, 8), n / 24.0), {text}" for text in _LABELS),
    ),
    "before": _BEFORE, "length": _LENGTH, "targets": _TARGETS, "splits": _SPLITS, "setup": _SETUP,
    "other": tuple(f"{image}, n % 3" for image in _IMAGES) + tuple(f"torch.zeros(3, 8, 8), {text}" for text in _LABELS),
    "parent": ("IterableDataset", "object", "list", "TensorDataset"),
    "more": (
        "__len__ = None", "__getitem__ = None", "transform = 5", "def __iter__(self): return iter([1])", "dataset = 5",
    ),
}
# fmt: on


def on_factory(rng: random.Random, base: Path, changes: Mapping[str, str]) -> Case:
    """Use a data set of the user's own; what its module does is the user's doing, what comes of it is ours."""
    take(base, "own.yaml")
    Path("own.py").write_text(MODULE.format(**{**_GOOD, **changes}))
    verb = rng.choices(("evaluate", "validate", "run"), (4, 4, 3))[0]
    rest = (f"data.workers={rng.choice((0, 0, 1))}", *(("--json",) if rng.random() < 0.4 else ()))
    if verb == "evaluate":
        return Case(("evaluate", *MODEL, "--config", "own.yaml", *rest), imports=("own",))
    return Case((verb, "own.yaml", *(BOUNDED if verb == "run" else ()), *rest), imports=("own",))


def known_factory(changes: Mapping[str, str], rng: random.Random, base: Path) -> Case:
    return on_factory(rng, base, changes)


KNOWN_FACTORIES: list[Builder] = [
    partial(known_factory, {key: value})
    for key in ("item", "before", "length", "targets", "splits", "setup")
    for value in ODD[key]
]


def draw_factory(rng: random.Random, base: Path) -> Case:
    keys = rng.sample(list(ODD), rng.choice((1, 2, 2, 3)))
    changes = {key: rng.choice(ODD[key]) for key in keys}
    if "other" in changes:
        changes["splits"] = rng.choice([text for text in _SPLITS if "Other" in text])
    return on_factory(rng, base, changes)
