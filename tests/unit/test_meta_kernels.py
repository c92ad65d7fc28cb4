"""The kernels for the meta device in the operator table return the same as those of PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnprune.channels.meta_kernels import run_kernel
from bnprune.channels.operator_mode import OwnGenerators
from bnprune.channels.ops.spec import _SPECS

aten = torch.ops.aten
SAMPLES = [
    torch.empty(2, 3, 4, 5, device="meta"),
    torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last),
    torch.empty(2, 3, 4, 5, device="meta").transpose(1, 2),
    torch.empty(2, 3, 4, 5, device="meta", dtype=torch.int64),
    torch.empty(1, 3, 1, 1, device="meta", dtype=torch.float16),
    torch.empty(3, 1, 1, device="meta"),
    torch.empty(5, device="meta"),
]
UNARY = [
    overload
    for name, spec in _SPECS.items()
    if spec.meta is not None
    for packet in (name, f"{name}_")
    if hasattr(aten, packet.removeprefix("aten::"))
    for overload in [getattr(getattr(aten, packet.removeprefix("aten::")), "default", None)]
    if overload is not None
    if len([a for a in overload._schema.arguments if not a.has_default_value()]) == 1
]


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


CALLS = [
    *((func, (x,)) for func, x in itertools.product(UNARY, SAMPLES)),
    *((f, pair) for f in (aten.add.Tensor, aten.mul.Tensor) for pair in itertools.product(SAMPLES, SAMPLES)),
    (aten.native_batch_norm.default, (meta(2, 3, 4), meta(3), meta(3), meta(3), meta(3), False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, (meta(2, 3, 4), meta(4), meta(4), meta(4), meta(4), False, 0.1, 1e-5)),
]


def described(tensors: object) -> list[tuple[object, ...]]:
    listed = tensors if isinstance(tensors, tuple) else (tensors,)
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in listed]


def test_in_place_operators_are_among_them() -> None:
    assert {aten.relu_.default, aten.hardtanh_.default, aten.hardswish_.default} <= set(UNARY)


@pytest.mark.parametrize(("func", "args"), CALLS, ids=str)
def test_a_kernel_gives_what_the_operator_gives(func, args) -> None:
    try:
        expected = described(func(*args))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        with pytest.raises((RuntimeError, TypeError, ValueError, NotImplementedError)):
            run_kernel(func, args, {}, OwnGenerators(), meta=True)
        return
    output = run_kernel(func, args, {}, OwnGenerators(), meta=True)
    assert (output is args[0]) == (torch.Tag.inplace in func.tags)
    got = described(output)
    count = 1 if "batch_norm" in func.name() else None  # statistics it saves for the backward pass are not used
    assert got[:count] == expected[:count]


def test_indices_and_constants_of_other_devices_are_moved() -> None:
    x = meta(5, 3)
    assert described(
        run_kernel(aten.index.Tensor, (x, [torch.tensor([1, 1])]), {}, OwnGenerators(), meta=True)
    ) == described(meta(2, 3))
    assert described(run_kernel(aten.mul.Tensor, (x, torch.ones(3)), {}, OwnGenerators(), meta=True)) == described(x)
