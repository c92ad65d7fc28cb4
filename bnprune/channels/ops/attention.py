"""Fused attention."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.labels import Label, Labels, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.spec import rule
from bnprune.channels.torch_internals import pytree


@rule(
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def attention(
    ctx: OpContext, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any
) -> list[Labels]:
    """Attend: q, k, v of shape (N, heads, tokens, d).

    The scale 1/sqrt(d) comes from the width of the queries, so their channels stay; those of the values pass. Whole
    heads can be removed: the rest of q, k, v and of a mask of shape (N, heads, tokens, tokens) keeps its width.
    """
    last = v.dim() - 1
    masks = [tensor for tensor in (*rest, *options.values()) if isinstance(tensor, torch.Tensor)]
    over_heads: list[Labels] = []
    for tensor in (q, k, *masks):
        heads = [_of_heads(ctx, label) for label in ctx.labels(tensor)] if ctx.whole_heads else []
        over_heads.append(tuple(label for label in heads if label is not None))
        ctx.freeze(
            () if ctx.whole_heads else ctx.labels(tensor),
            "enters an attention product scaled by its width",
            "prune the layers around the attention",
        )
    passed = []
    for label in ctx.labels(v):
        dims = [dim for dim in varying(label) if dim != last]
        per_head = ctx.merge(label, dims, "is spread over heads") if dims and not ctx.whole_heads else label
        if per_head is not None:
            passed.append(per_head)
    outputs = len(pytree.tree_leaves(ctx.output))
    return [ctx.join([*over_heads, tuple(passed)], v.dim())] + [()] * (outputs - 1)


def _of_heads(ctx: OpContext, label: Label) -> Label | None:
    """Return the label of the heads, shape (1, heads, 1, 1); channels that vary along no head are frozen."""
    if any(size > 1 for size in label.shape[:-2]):
        return ctx.merge(label, [label.dim() - 2, label.dim() - 1], "is mixed within a head")
    ctx.freeze([label], "enters an attention product scaled by its width", "prune the layers around the attention")
    return None
