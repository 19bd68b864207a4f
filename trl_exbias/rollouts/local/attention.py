"""Attention over a cache without copies of it, where several query heads read the same keys and values.

Given a mask, transformers' `sdpa` first repeats keys and values for each query head that reads them: at every token drawn,
the whole cache is copied as many times. On a CPU these copies took half the time of a decoding step.
"""

import contextlib

import torch
from torch.nn.functional import scaled_dot_product_attention

from ...core.block_attention import attention_on_cpu


def attention_without_copies(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """
    Within the block, `sdpa` under a mask reads keys and values where they are. On a CPU alone: elsewhere torch takes a slower
    kernel for it, and transformers' choice stands.
    """
    return attention_on_cpu(device, _attend)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor | None:
    if key.size(1) >= query.size(1) or key.size(1) != value.size(1):
        return None
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
