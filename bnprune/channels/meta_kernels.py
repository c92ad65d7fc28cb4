"""Running an operator on meta tensors, without PyTorch's slow decompositions for the commonest ones.

Meta kernels written in Python take up to 25 ms each (grid_sampler); for some operators the output's shape is plain to
see. Every short cut checks the shapes the real operator checks, and leaves anything unusual to it: it returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bnprune.channels.operator_mode import Draws
from bnprune.channels.pytrees import map_tensors, operands

aten = torch.ops.aten
ShortCut = Callable[..., Any]


def run_kernel(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], draws: Draws, *, meta: bool
) -> Any:
    """Run an operator; with `meta`, stray tensors of other devices are moved to the meta device first."""
    if not meta:
        return draws.run(func, args, kwargs)
    short_cut = _SHORT_CUTS.get(func)
    if short_cut is not None and not kwargs and any(tensor.is_meta for tensor in operands(args, kwargs)):
        output = short_cut(*args)
        if output is not None:
            return output
    try:
        return draws.run(func, args, kwargs)
    except RuntimeError:
        if not any(tensor.dim() and not tensor.is_meta for tensor in operands(args, kwargs)):
            raise
        moved_args, moved_kwargs = map_tensors(lambda tensor: tensor.to("meta"), (args, kwargs))
        output = draws.run(func, moved_args, moved_kwargs)
        return args[0] if torch.Tag.inplace in func.tags else output


def _batch_norm(x: torch.Tensor, *rest: Any) -> Any:
    fits = all(tensor is None or tensor.shape == x.shape[1:2] for tensor in rest[:4])
    return (_empty_like(x), _empty(x, [0]), _empty(x, [0])) if fits else None


def _layer_norm(x: torch.Tensor, shape: Sequence[int], weight: Any, bias: Any, _: float) -> Any:
    fits = tuple(x.shape[x.dim() - len(shape) :]) == tuple(shape)
    if not fits or any(tensor is not None and tuple(tensor.shape) != tuple(shape) for tensor in (weight, bias)):
        return None
    kept = _empty(x, [*x.shape[: x.dim() - len(shape)], *[1] * len(shape)])
    return torch.empty_like(x, memory_format=torch.contiguous_format), kept, torch.empty_like(kept)


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    space = x.dim() - 2
    plain = not transposed and x.is_contiguous() and weight.is_contiguous() and x.dim() == weight.dim()
    steps = len(stride) == len(padding) == len(dilation) == space
    fits = x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    if not (plain and steps and fits and (bias is None or tuple(bias.shape) == (weight.shape[0],))):
        return None
    sizes = [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in range(space)
    ]
    return _empty(x, [x.shape[0], weight.shape[0], *sizes]) if all(size > 0 for size in sizes) else None


def _add_product(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
    fits = a.shape[1] == b.shape[0] and tuple(bias.shape) == (b.shape[1],)
    return _empty(a, [a.shape[0], b.shape[1]]) if fits else None


def _product(a: torch.Tensor, b: torch.Tensor) -> Any:
    return _empty(a, [a.shape[0], b.shape[1]]) if a.shape[1] == b.shape[0] else None


def _mean(x: torch.Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Any:
    if not dims:
        return None
    gone = {dim % x.dim() for dim in dims}
    sizes = [1 if dim in gone else size for dim, size in enumerate(x.shape) if keepdim or dim not in gone]
    return _empty(x, sizes) if x.is_contiguous() and x.is_floating_point() else None


def _grid_sample(x: torch.Tensor, grid: torch.Tensor, *_: Any) -> Any:
    fits = x.dim() == 4 and grid.dim() == 4 and x.shape[0] == grid.shape[0] and grid.shape[3] == 2
    return _empty(x, [*x.shape[:2], *grid.shape[1:3]]) if fits else None


def _upsample(x: torch.Tensor, size: Sequence[int], *_: Any) -> Any:
    fits = x.dim() == len(size) + 2 and x.is_contiguous() and x.is_floating_point()
    return _empty(x, [*x.shape[:2], *size]) if fits and min(size) > 0 else None


def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Any:
    """Pick along the first dimension."""
    first = indices[0]
    fits = len(indices) == 1 and first is not None and first.dtype == torch.int64 and x.is_contiguous()
    return _empty(x, [*first.shape, *x.shape[1:]]) if fits and first is not None else None


def _like(x: torch.Tensor, *_: Any) -> Any:
    return _empty_like(x) if x.is_floating_point() else None


def _empty(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")  # `new_empty` is written in Python there


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return _empty(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def _itself(x: torch.Tensor, *_: Any) -> Any:
    return x


def _combined(x: Any, y: Any, *_: Any) -> Any:
    """Elementwise; where one operand has the shape of the output, the output is laid out like it."""
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor) or x.dtype != y.dtype or not x.dim():
        return None
    if not x.is_floating_point():  # integers divide to real numbers
        return None
    if x.shape == y.shape:
        return _empty(x, x.shape) if x.is_contiguous() and y.is_contiguous() else None
    whole = x if x.numel() >= y.numel() else y
    part = y if whole is x else x
    offset = whole.dim() - part.dim()
    fits = offset >= 0 and all(size in (1, whole.shape[offset + dim]) for dim, size in enumerate(part.shape))
    return _empty(whole, whole.shape) if fits and whole.is_contiguous() else None


_SHORT_CUTS: dict[torch._ops.OpOverload, ShortCut] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.convolution.default: _convolution,
    aten.addmm.default: _add_product,
    aten.mm.default: _product,
    aten.mean.dim: _mean,
    aten.grid_sampler_2d.default: _grid_sample,
    aten.upsample_nearest2d.default: _upsample,
    aten.upsample_bilinear2d.default: _upsample,
    aten.upsample_bicubic2d.default: _upsample,
    aten.index.Tensor: _index,
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor), _combined),
    **dict.fromkeys((aten.relu_.default, aten.hardtanh_.default, aten.silu_.default, aten.hardswish_.default), _itself),
    **dict.fromkeys(
        (
            aten.relu.default,
            aten.silu.default,
            aten.sigmoid.default,
            aten.gelu.default,
            aten.hardswish.default,
            aten.hardsigmoid.default,
            aten.hardtanh.default,
            aten.tanh.default,
            aten.clamp.default,
        ),
        _like,
    ),
}
