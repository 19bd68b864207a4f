"""Linear layers on a CPU that lay out their weights once, instead of in every call.

Given float32, torch multiplies with a library that rearranges the weights before each product. For the 16 rows of a decoding step,
that takes longer than the product itself: SmolLM2's layers took three times as long as with weights that are laid out
already. Here a layer does so once for a block in which its weights do not change. The result is the same except for rounding.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from .upstream import can_lay_out_weights, is_partitioned, lay_out_weight, linear_with_laid_out


#: Weights of a layer below which its product is cheap however it is made.
SMALLEST_LAYER = 1 << 16
#: Rows that a layer reads before its weights are laid out: to do it costs what some 150 rows save.
_ROWS_BEFORE = 256
#: The most that laid-out weights may take of the free memory: they are a second copy.
_LARGEST_SHARE = 0.25


@contextlib.contextmanager
def laid_out_weights(model: nn.Module) -> Iterator[None]:
    """
    Within the block, the model's linear layers on a CPU keep a second copy of their weights, laid out for products.

    Applies to plain float32 layers of some size without a graph to record; all others compute as always, and so does a model whose
    copy would take more than a quarter of the memory that is free.
    """
    layers = [module for module in model.modules() if _suits(module)]
    if not layers or not can_lay_out_weights() or not _has_room(layers):
        yield
        return
    for layer in layers:
        layer.forward = _LaidOut(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def copy_bytes(num_weights: int) -> int:
    """Bytes of a second copy of a number of float32 weights."""
    return num_weights * torch.float32.itemsize


def _suits(module: nn.Module) -> bool:
    # Exact types: a quantized layer, an adapter's or a sharded weight has a product of its own. A `forward` of the instance is
    # someone else's hook.
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.weight.numel() >= SMALLEST_LAYER
        and not module.weight.is_inference()
        and not is_partitioned(module.weight)
    )


def _has_room(layers: list[nn.Module]) -> bool:
    import psutil

    needed = copy_bytes(sum(layer.weight.numel() for layer in layers))
    return needed <= _LARGEST_SHARE * psutil.virtual_memory().available


class _LaidOut:
    """A layer's forward."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.rows = 0
        self.laid_out: torch.Tensor | None = None
        self.made_of: tuple[int, int] | None = None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if input.dtype != torch.float32 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return nn.Linear.forward(layer, input)
        self.rows += input.numel() // layer.in_features
        if self.rows < _ROWS_BEFORE:
            return nn.Linear.forward(layer, input)
        # A model may change its weights in place at its first forward (RWKV), or merge an adapter into them.
        state = layer.weight.data_ptr(), layer.weight._version
        if self.laid_out is None or self.made_of != state:
            self.laid_out, self.made_of = lay_out_weight(layer.weight), state
        return linear_with_laid_out(input, self.laid_out, layer.bias)
