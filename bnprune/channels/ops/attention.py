"""Fused attention."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.labels import Labels, varying
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

    The scale 1/sqrt(d) comes from the width of the queries, so their channels stay; those of the values pass.
    """
    for tensor in (q, k, *rest, *options.values()):
        ctx.freeze(
            ctx.labels(tensor),
            "enters an attention product scaled by its width",
            "prune the layers around the attention",
        )
    last = v.dim() - 1
    passed = []
    for label in ctx.labels(v):
        over_heads = [dim for dim in varying(label) if dim != last]
        per_head = ctx.merge(label, over_heads, "is spread over heads") if over_heads else label
        if per_head is not None:
            passed.append(per_head)
    outputs = len(pytree.tree_leaves(ctx.output))
    return [tuple(passed)] + [()] * (outputs - 1)
