"""Where these tests run: on a GPU, or on a CPU where a dry run is asked for."""

import os
from collections.abc import Callable

import torch


#: `cpu`: every test on a CPU. `cpu-quick`: those that take a second or two. Unset: on a GPU, or not at all.
VARIABLE = "EXBIAS_GPU_TESTS_DEVICE"
ASKED = os.environ.get(VARIABLE, "")
if ASKED not in ("", "cpu", "cpu-quick"):
    raise ValueError(f"`{VARIABLE}` must be 'cpu' or 'cpu-quick', or unset for a GPU; got {ASKED!r}.")

# With several visible cards, transformers would train on all.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
ON_CUDA = not ASKED and torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_CUDA else "cpu")


def on_gpu_or_cpu(on_gpu, on_cpu):
    """A size for a GPU, or a smaller one for a dry run."""
    return on_gpu if ON_CUDA else on_cpu


def bf16_autocast() -> torch.autocast:
    """Mixed precision on the device, as `accelerate` has it."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def gpu_name() -> str:
    """The card, or the CPU of a dry run."""
    return torch.cuda.get_device_name() if ON_CUDA else "CPU (dry run)"


def flat(model: torch.nn.Module, of: Callable[[torch.nn.Parameter], torch.Tensor | None]) -> torch.Tensor:
    """What `of` says of each parameter (its gradient, its value), in one float64 vector; `None` is left out."""
    found = (of(parameter) for parameter in model.parameters())
    return torch.cat([value.detach().flatten().double() for value in found if value is not None])


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative distance of two vectors."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()
