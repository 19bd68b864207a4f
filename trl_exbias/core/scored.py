"""TRL's fused LM head at the positions that have a label, also on a CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .modeling import backbone


def score_labels(wrapped: nn.Module, model: nn.Module, inputs: dict[str, Any], is_compiled: bool) -> Any:
    """
    The output of TRL's fused LM head for a batch.

    On a GPU TRL scores the positions that have a label. Elsewhere it scores all, so that a compiler sees one shape: on a CPU that
    is most of a step where contexts have no labels. So there the backbone hands on the labelled positions alone.

    Args:
        wrapped (`nn.Module`): What is called: the model as its processes wrapped it.
        model (`nn.Module`): The model.
        inputs (`dict`): What its forward reads, with `shift_labels` of shape `(rows, length)`.
        is_compiled (`bool`): Whether `torch.compile` has compiled it: then it is left as it is.

    Returns:
        TRL's output: `log_probs`, `entropy` and `is_top1` of shape `(rows, length)`, 0 where there is no label; `aux_loss`.
    """
    labels = inputs["shift_labels"]
    if not scores_all(labels, is_compiled):
        return wrapped(**inputs, use_cache=False, fused_lm_head=True)
    scored = labels != -100
    with handing_on(model, scored):
        inputs = {**inputs, "shift_labels": labels[scored].unsqueeze(0)}
        output = wrapped(**inputs, use_cache=False, fused_lm_head=True)
    for name in ("log_probs", "entropy", "is_top1"):
        found = output[name]
        output[name] = found.new_zeros(labels.shape).masked_scatter(scored, found)
    return output


def scores_all(labels: torch.Tensor, is_compiled: bool) -> bool:
    """Whether TRL's fused head would score positions without a label too."""
    return labels.device.type == "cpu" and not is_compiled


@contextlib.contextmanager
def handing_on(model: nn.Module, scored: torch.Tensor) -> Iterator[None]:
    """In the block the backbone hands on its last hidden states where `scored` `(rows, length)` is true, as `(1, N, H)`."""

    def hand_on(module: nn.Module, args: tuple, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"][scored].unsqueeze(0)
        return output

    handle = backbone(model).register_forward_hook(hand_on)
    try:
        yield
    finally:
        handle.remove()
