"""What a forward costs besides its tokens, in tokens: measured at the first use on a device. It decides speed, never a result."""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from ...core.modeling import base_causal_lm, inference, model_device, position_limit
from ...core.reading import read


#: SmolLM2-135M: 32 tokens in 0.20 s, 512 in 1.23 s. Not measured on a CPU, whose runs are equal to the bit: another width of
#: the windows rounds differently, and a tie could fall the other way.
_CPU_TOKENS = 64
_BOUNDS = 16, 16384
# Few enough tokens to be nearly all overhead, and enough for the device to be busy.
_FEW, _MANY = 16, 4096
_REPEATS = 3
_measured: dict[tuple, int] = {}


def forward_overhead_tokens(model: nn.Module) -> int:
    """
    The number of tokens whose reading takes as long as what every forward costs: launches, and reading the weights.

    A power of two, so that what differs from run to run is rounded away.
    """
    device = model_device(model)
    if device.type == "cpu":
        return _CPU_TOKENS
    base = base_causal_lm(model)
    # An adapter changes what a forward costs; the weights' values do not.
    key = (str(device), type(base), base.dtype, sum(p.numel() for p in model.parameters()))
    if key not in _measured:
        with inference(model):
            _measured[key] = overhead_tokens(lambda tokens: _seconds(model, device, tokens))
    return _measured[key]


def overhead_tokens(seconds_of: Callable[[int], float], few: int = _FEW, many: int = _MANY) -> int:
    """
    From the seconds of two forwards, of `few` and of `many` tokens: what a forward costs is taken to be linear in its tokens.
    """
    seconds_of(few)  # kernels are loaded, and may be chosen, at their first use
    short, long = seconds_of(few), seconds_of(many)
    a_token = max(long - short, 1e-9) / (many - few)
    exact = max(short / a_token - few, 1)
    low, high = _BOUNDS
    return min(max(2 ** round(math.log2(exact)), low), high)


def _seconds(model: nn.Module, device: torch.device, tokens: int) -> float:
    """The fastest of a few forwards, in rows of at most 512 tokens, and of no more than the model has positions."""
    length = min(tokens, 512, 2 ** int(math.log2(position_limit(model) or 512)))
    ids = torch.zeros(tokens // length, length, dtype=torch.long, device=device)
    fastest = math.inf
    for _ in range(_REPEATS):
        torch.accelerator.synchronize(device)
        started = time.perf_counter()
        read(model, input_ids=ids, use_cache=False)
        torch.accelerator.synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
