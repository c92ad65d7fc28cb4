"""Short cuts on the meta device give what the operators themselves give."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnprune.channels.meta_kernels import _SHORT_CUTS, run_kernel
from bnprune.channels.operator_mode import Draws

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
CONVOLUTION = ([1, 2], [1, 0], [1, 1], False, [0, 0])


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


CALLS = [
    *((func, (x,)) for func, x in itertools.product(_SHORT_CUTS, SAMPLES) if len(func._schema.arguments) == 1),
    *((f, pair) for f in (aten.add.Tensor, aten.div.Tensor) for pair in itertools.product(SAMPLES, SAMPLES)),
    *((aten.mean.dim, (x, dims, keep)) for x in SAMPLES[:3] for dims in ([-1], [2, 3]) for keep in (False, True)),
    *((aten.convolution.default, (x, meta(6, 3, 3, 2), meta(6), *CONVOLUTION, 1)) for x in SAMPLES[:2]),
    (aten.convolution.default, (SAMPLES[0], meta(6, 1, 3, 2), None, *CONVOLUTION, 3)),
    (aten.convolution.default, (SAMPLES[0], meta(6, 2, 3, 2), None, *CONVOLUTION, 1)),
    (aten.addmm.default, (meta(4), meta(2, 3), meta(3, 4))),
    (aten.addmm.default, (meta(4), meta(2, 3), meta(2, 4))),
    (aten.mm.default, (meta(2, 3), meta(3, 4))),
    (aten.native_layer_norm.default, (meta(2, 7, 5), [5], meta(5), meta(5), 1e-5)),
    (aten.grid_sampler_2d.default, (meta(2, 3, 4, 5), meta(2, 6, 7, 2), 0, 0, False)),
    *((aten.upsample_bilinear2d.default, (x, [6, 7], False)) for x in SAMPLES[:3]),
    (aten.upsample_nearest2d.default, (SAMPLES[0], [6, 7])),
    *((aten.clamp.default, (x, 0, 1)) for x in SAMPLES),
    *((aten.index.Tensor, (x, [torch.empty(6, 2, device="meta", dtype=torch.int64)])) for x in SAMPLES),
    (aten.index.Tensor, (SAMPLES[0], [None, torch.empty(6, device="meta", dtype=torch.int64)])),
    (aten.native_batch_norm.default, (meta(2, 3, 4), meta(3), meta(3), meta(3), meta(3), False, 0.1, 1e-5)),
    (aten.native_batch_norm.default, (meta(2, 3, 4), meta(4), meta(4), meta(4), meta(4), False, 0.1, 1e-5)),
]


def described(tensors: object) -> list[tuple[object, ...]]:
    listed = tensors if isinstance(tensors, tuple) else (tensors,)
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in listed]


@pytest.mark.parametrize(("func", "args"), CALLS, ids=str)
def test_a_short_cut_gives_what_the_operator_gives(func, args) -> None:
    try:
        expected = described(func(*args))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        with pytest.raises((RuntimeError, TypeError, ValueError, NotImplementedError)):
            run_kernel(func, args, {}, Draws(), meta=True)
        return
    got = described(run_kernel(func, args, {}, Draws(), meta=True))
    count = 1 if "batch_norm" in func.name() else None  # statistics it saves for the backward pass are not used
    assert got[:count] == expected[:count]


def test_short_cuts_take_indices_and_constants_of_other_devices() -> None:
    x = meta(5, 3)
    assert described(run_kernel(aten.index.Tensor, (x, [torch.tensor([1, 1])]), {}, Draws(), meta=True)) == described(
        meta(2, 3)
    )
    assert described(run_kernel(aten.mul.Tensor, (x, torch.ones(3)), {}, Draws(), meta=True)) == described(x)
