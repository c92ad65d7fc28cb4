"""The kernels for the meta device in the operator table return the same as those of PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnprune.channels.meta_kernels import run_kernel
from bnprune.channels.operator_mode import OwnGenerators
from bnprune.channels.ops.spec import _SPECS

aten = torch.ops.aten
ERRORS = (RuntimeError, TypeError, ValueError, IndexError, ZeroDivisionError, NotImplementedError)
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


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def convolution(x, weight, bias=None, stride=2, padding=1, dilation=1, transposed=False, groups=1):
    space = x.dim() - 2
    numbers = ([number] * space for number in (stride, padding, dilation))
    return aten.convolution.default, (x, weight, bias, *numbers, transposed, [0] * space, groups)


CALLS = [
    *((func, (x,)) for func, x in itertools.product(UNARY, SAMPLES)),
    *((f, pair) for f in (aten.add.Tensor, aten.mul.Tensor) for pair in itertools.product(SAMPLES, SAMPLES)),
    (aten.native_batch_norm.default, (meta(2, 3, 4), meta(3), meta(3), meta(3), meta(3), False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, (meta(2, 3, 4), meta(4), meta(4), meta(4), meta(4), False, 0.1, 1e-5)),
    *(
        (aten.mean.dim, (x, dims, keep))
        for x in SAMPLES
        for dims in ([-1], [1, -1], [0, 2, 3], [1, 1], [4], [], None)
        for keep in (True, False)
    ),
    (aten.mm.default, (meta(2, 3), meta(3, 4))),
    (aten.mm.default, (meta(2, 3), meta(4, 3))),
    (aten.mm.default, (meta(2, 3), meta(3, 4, dtype=torch.float64))),
    (aten.addmm.default, (meta(4), meta(2, 3), meta(3, 4))),
    (aten.addmm.default, (meta(2, 4), meta(2, 3), meta(3, 4))),
    (aten.addmm.default, (meta(3), meta(2, 3), meta(3, 4))),
    (aten.addmm.default, (meta(4), meta(2, 3), meta(2, 4))),
    convolution(meta(2, 4, 9, 8), meta(6, 4, 3, 2), meta(6)),
    convolution(meta(2, 4, 9, 8), meta(6, 2, 3, 2), groups=2, dilation=2, stride=1),
    convolution(meta(2, 4, 9, 8).to(memory_format=torch.channels_last), meta(6, 4, 3, 3)),
    convolution(meta(2, 4, 9), meta(6, 4, 3)),
    convolution(meta(2, 4, 9, 8), meta(4, 6, 3, 3), transposed=True),
    convolution(meta(2, 4, 1, 1), meta(6, 4, 5, 5)),
    convolution(meta(2, 3, 9, 8), meta(6, 4, 3, 3)),
    convolution(meta(2, 0, 9, 8), meta(6, 0, 3, 3)),
    convolution(meta(2, 6, 9, 8), meta(4, 2, 3, 3), groups=3),
    convolution(meta(2, 4, 9, 8), meta(6, 4, 3, 3), stride=0),
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
    except ERRORS:
        with pytest.raises(ERRORS):
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
