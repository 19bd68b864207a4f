"""What an optimizer keeps for each parameter that it trains, and what else a step of it needs."""

import math
from collections.abc import Iterable

import torch

from .model import Parameter


# States of a parameter, each of its size and type: `torch.optim` makes them with `zeros_like`.
_FULL = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_torch_npu_fused": 2,
    "adamw_torch_xla": 2,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,  # transformers sets no momentum
}
# bitsandbytes: states in 8 bits with a float32 scale for every 256, or in float32, whatever the parameter's type.
_BITS_8 = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "ademamix_8bit": 3, "lion_8bit": 1, "rmsprop_bnb_8bit": 1}
_BITS_32 = {"adamw_32bit": 2, "ademamix": 3, "ademamix_32bit": 3, "lion_32bit": 1, "rmsprop_bnb": 1}
_BITS_32["rmsprop_bnb_32bit"] = 1
_BLOCK = 256
_SMALL = 4096  # parameters below are kept in float32


def state_bytes(optim: str, parameters: Iterable[Parameter], shards: int = 1, in_float32: bool = False) -> int | None:
    """
    Bytes of an optimizer's states on one device; `None` for an optimizer that is not known here.

    Args:
        optim (`str`): A name of transformers' `optim`.
        parameters (`Iterable[Parameter]`): What is trained.
        shards (`int`, *optional*, defaults to `1`): Devices that share the states.
        in_float32 (`bool`, *optional*, defaults to `False`): Whether the optimizer sees float32 copies (ZeRO, FSDP).
    """
    optim = optim.removeprefix("paged_")
    total = 0.0
    for parameter in parameters:
        size = torch.float32.itemsize if in_float32 else parameter.dtype.itemsize
        if optim in _FULL:
            total += _FULL[optim] * parameter.numel * size
        elif optim in _BITS_8:
            each = 4.0 if parameter.numel < _SMALL else 1 + 4 / _BLOCK
            total += _BITS_8[optim] * parameter.numel * each
        elif optim in _BITS_32:
            total += _BITS_32[optim] * parameter.numel * 4
        elif optim == "adafactor":
            total += 4 * _factored(parameter.shape)
        else:
            return None
    return math.ceil(total / shards)


def step_bytes(optim: str, parameters: Iterable[Parameter], on_cpu: bool) -> int:
    """Bytes that a step needs in addition: the `foreach` form of torch's optimizers, taken on GPUs, has one more of each parameter."""
    if on_cpu or optim not in _FULL or optim == "adamw_torch_fused":
        return 0
    return sum(parameter.bytes for parameter in parameters)


def _factored(shape: tuple[int, ...]) -> int:
    """Numbers that Adafactor keeps: a row's and a column's sums for a matrix."""
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]
