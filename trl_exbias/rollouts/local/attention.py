"""Attention over a cache without copies of it, where several query heads read the same keys and values.

Given a mask, transformers' `sdpa` first repeats keys and values for each query head that reads them: at every token drawn,
the whole cache is copied as many times. On a CPU these copies took half the time of a decoding step.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ...core.block_attention import replaced_attention


@contextlib.contextmanager
def attention_without_copies(device: torch.device) -> Iterator[None]:
    """
    Within the block, `sdpa` under a mask reads keys and values where they are. On a CPU alone: elsewhere torch takes a slower
    kernel for it, and transformers' choice stands.
    """
    if device.type != "cpu":
        yield
        return
    usual = AttentionInterface()["sdpa"]

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        shared = attention_mask is not None and key.size(1) < query.size(1) and key.size(1) == value.size(1)
        if not shared or kwargs.get("position_bias") is not None:
            return usual(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None

    with replaced_attention("sdpa", attention):
        yield
