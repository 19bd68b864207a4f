"""Models whose weights are spread over processes, by ZeRO-3 or FSDP2: read outside their own forward, whole, or not spread."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from .upstream import (
    LOADED_BY_ONE,
    deepspeed_engine,
    gathered_in_forward,
    is_partitioned,
    set_loading_plan,
    shard_with_fsdp2,
    zero3_part,
)


_T = TypeVar("_T")


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward of the model is a collective operation, since no process has all of its weights."""
    return isinstance(model, FSDPModule) or any(map(is_partitioned, model.parameters()))


def in_forward(model: nn.Module, function: Callable[[], _T]) -> _T:
    """
    Calls `function`, which runs modules of the model on their own and records no gradient, within the model's forward.

    FSDP2 has the weights of no unit but the root whole during the forward of the whole model alone, and takes for the root
    the first unit that it sees running. Does nothing but call for other models.
    """
    if not isinstance(model, FSDPModule):
        return function()
    if not hasattr(model, "_call_in_forward"):
        model._call_in_forward = lambda function: function()
        register_fsdp_forward_method(model, "_call_in_forward")
    # Not returned through the forward, which would cast it to the mixed precision's type.
    results: list[_T] = []
    model._call_in_forward(lambda: results.append(function()))
    return results[0]


def reshard(model: nn.Module) -> None:
    """Lets go of what FSDP2 keeps whole after a forward without a backward: its root and its last unit."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def gathered(*projections: nn.Module) -> Iterator[None]:
    """
    LM heads whole, for a loss that reads their weights. Inside the wrapped model's forward only. Does
    nothing for heads that are whole already.
    """
    for projection in projections:
        if isinstance(projection, FSDPModule):
            # Not `DTensor.full_tensor`: its backward would leave each process with its own rows' gradient.
            projection.unshard()
    parameters = (parameter for projection in projections for parameter in (projection.weight, projection.bias))
    with gathered_in_forward(parameters):
        yield


@contextlib.contextmanager
def loaded_whole(args: TrainingArguments) -> Iterator[None]:
    """Models loaded in the block are whole on each process, also where others are loaded in slices or by one process."""
    config = getattr(args, "hf_deepspeed_config", None)
    by_one = os.environ.get(LOADED_BY_ONE)
    set_loading_plan(None)
    os.environ[LOADED_BY_ONE] = "false"
    try:
        yield
    finally:
        if by_one is None:
            del os.environ[LOADED_BY_ONE]
        else:
            os.environ[LOADED_BY_ONE] = by_one
        if config is not None:
            set_loading_plan(config)


def shard_for_inference(model: nn.Module, accelerator: Accelerator) -> tuple[nn.Module, object]:
    """
    Spreads a model that is not trained over the processes as the trained one is: with ZeRO-3 or FSDP2, in place; not at
    all without.

    Returns:
        The model, and what has to be kept for as long as it is used.
    """
    if accelerator.state.deepspeed_plugin is not None:
        # The engine takes its hooks off the model when it goes.
        engine = deepspeed_engine(model, accelerator)
        return engine.module, engine
    if accelerator.is_fsdp2:
        # Not TRL's `prepare_fsdp`, which makes one unit of a whole model: it would stay whole after its first forward.
        shard_with_fsdp2(accelerator, model)
    return model, None


def full_state(model: nn.Module, wrapped: nn.Module, accelerator: Accelerator, trainable_only: bool) -> dict:
    """
    Whole weights by name, on the main process in CPU memory where they are sharded; the others take part and get none, or
    the same. Called by every process.

    Args:
        model (`nn.Module`): The model.
        wrapped (`nn.Module`): The same, as the process group wrapped it.
        trainable_only (`bool`): Gathers nothing else: only the adapter of a LoRA model.
    """
    if not trainable_only:
        # accelerate 1.15 (`extract_model_from_parallel`) takes DDP out of a compiled model that it unwraps, for good: so
        # it gets nothing to unwrap.
        return accelerator.get_state_dict(model if accelerator.state.deepspeed_plugin is None else wrapped)
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(model, options=options)
    return copied_whole({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})


def copied_whole(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of parameters in CPU memory, whole where they are sharded. Called by every process."""
    with _whole([*filter(is_partitioned, parameters.values())]):
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().to("cpu", copy=True)
            for name, p in parameters.items()
        }


def _whole(parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager:
    if not parameters:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def local_part(parameter: torch.Tensor) -> tuple[torch.Tensor, int, "torch.distributed.ProcessGroup | None"]:
    """
    What this process holds of a parameter: the elements, the place of the first one in the whole flat parameter, and the
    group over which the parts make it up (`None`: the whole is here).
    """
    if is_partitioned(parameter):
        return zero3_part(parameter)
    if not isinstance(parameter, DTensor):
        return parameter.detach(), 0, None
    sharded = [dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    if not sharded:
        return parameter.detach().to_local(), 0, None
    if len(sharded) > 1 or not parameter.placements[sharded[0]].is_shard(dim=0):
        return parameter.detach().full_tensor(), 0, None
    # FSDP2: blocks of rows, as `torch.chunk` cuts them; the last processes may have fewer, or none.
    mesh, (dim,) = parameter.device_mesh, sharded
    rows = -(-parameter.size(0) // mesh.size(dim))
    offset = mesh.get_local_rank(dim) * rows * math.prod(parameter.shape[1:])
    return parameter.detach().to_local(), offset, mesh.get_group(dim)


def compute_device(parameter: torch.Tensor) -> torch.device:
    """Where a parameter is computed with; the part of a sharded one that is here may be in CPU memory."""
    if not isinstance(parameter, DTensor):
        return parameter.device
    kind = parameter.device_mesh.device_type
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())
