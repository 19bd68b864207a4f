"""What we use of TRL, transformers, accelerate, torch and DeepSpeed besides their public interfaces, under names of ours.

`surfaces.py` lists all of it, with what it must look like; a new release is compared with that list. Imports are inside the
functions: a release that has taken one thing away breaks what uses it, and the list still says all that is gone.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


#: From transformers' Trainer: what a checkpoint's folder begins with, and the file of pickled arguments.
CHECKPOINT_PREFIX = "checkpoint"
TRAINING_ARGS_FILE = "training_args.bin"
#: What models call the memory of the tokens read so far: all of them alike in new releases of transformers; before, attention,
#: Mamba and xLSTM, and RWKV.
CACHES = ("cache", "past_key_values", "cache_params", "state")
#: Environment variable: while it is "true", only the first process loads weights.
LOADED_BY_ONE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
#: How `GenerationConfig.validate` lists what has no effect.
WITHOUT_EFFECT = re.compile(r"^- `(\w+)`: ", re.MULTILINE)


# TRL


def tokenize(tokenizer: "PreTrainedTokenizerBase", text_or_messages: Any, **template_kwargs: Any) -> list[int]:
    """Token ids of a text or a conversation, as TRL tokenises them: its own completion mask starts where ours does."""
    from trl.data_utils import _tokenize

    return _tokenize(tokenizer, text_or_messages, **template_kwargs)["input_ids"]


def can_mark_assistant(tokenizer: "PreTrainedTokenizerBase", template: str | dict[str, str]) -> bool:
    """Whether TRL can tell what the assistant says in what a template renders: by the template's marks, or those of its own copy."""
    from trl import get_training_chat_template
    from trl.chat_template_utils import has_generation_markers

    if has_generation_markers(template):
        return True
    renderer = copy.copy(tokenizer)
    renderer.chat_template = template
    try:
        get_training_chat_template(renderer)
    except ValueError:
        return False
    return True


def common_prefix_length(ids: Sequence[Any], others: Sequence[Any]) -> int:
    """How many tokens two sequences begin alike with, as TRL counts them."""
    from trl.data_utils import common_prefix_length

    return common_prefix_length(ids, others)


def add_fused_head(model: "PreTrainedModel") -> None:
    """Gives a model TRL's fused LM head, as `SFTTrainer` does: it computes the loss of a training step."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))


#: Tokens of the tile of logits that TRL's fused LM head holds at one time; importing the number would import PEFT.
FUSED_HEAD_TOKENS = 32768


def fused_head_positions() -> int:
    """Positions of that tile."""
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

    return TOKEN_CHUNK_SIZE


def gathered_in_forward(parameters: "Iterable[nn.Parameter]") -> AbstractContextManager:
    """An LM head's parameters whole, for a loss inside the wrapped model's forward; TRL's docstring says why not anywhere else."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*(parameter for parameter in parameters if hasattr(parameter, "ds_status")))


def forward_redirection() -> Callable[..., Any]:
    """
    Runs a function inside the wrapped model's forward, so that DDP, DeepSpeed and FSDP see one: called with the wrapped model,
    the model, the function and its arguments. TRL's own `DistillationTrainer` uses it so.
    """
    from trl.models.utils import _ForwardRedirection

    return _ForwardRedirection()


def deepspeed_engine(model: "nn.Module", accelerator: "Accelerator") -> Any:
    """DeepSpeed's engine around a model that is not trained; `engine.module` is the model."""
    from trl.models import prepare_deepspeed

    return prepare_deepspeed(model, accelerator)


# transformers


def attention_implementation(config: "PretrainedConfig") -> str:
    """`"sdpa"`, `"eager"`, `"flash_attention_2"`, …"""
    return config._attn_implementation


def supports_sdpa(model: "PreTrainedModel") -> bool:
    """Whether the architecture has an attention with torch's fused kernels."""
    return model._supports_sdpa


def from_config(model_class: type[Any], config: "PretrainedConfig", **options: Any) -> "PreTrainedModel":
    """A model of a concrete class with fresh weights; the auto classes have a public `from_config`."""
    return model_class._from_config(config, **options)


def commit_hash(config: Any) -> str | None:
    """
    The hub's commit that a configuration was read from; `None` for one from a folder, and where it cannot be told.

    transformers has not noted it since 5.18. Then [`note_commit`] may have; else the cache says it, where it holds one alone.
    """
    known, name = getattr(config, "_commit_hash", None), getattr(config, "name_or_path", None)
    if known is not None or not name:
        return known
    file = _in_cache(name, None)
    return file.parent.name if file is not None and len([*file.parents[1].iterdir()]) == 1 else None


def note_commit(config: "PretrainedConfig", revision: str | None) -> None:
    """Keeps the commit of a configuration that was just read from this revision of its repository."""
    if getattr(config, "_commit_hash", None) is None and config.name_or_path:
        file = _in_cache(config.name_or_path, revision)
        config._commit_hash = None if file is None else file.parent.name


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # not a repository's name
        return None
    return Path(file) if isinstance(file, str) else None


def is_stateful(model_class: type | None) -> bool:
    """Whether a model carries a state that no cache can step back in."""
    return getattr(model_class, "_is_stateful", False)


def put_back_rescaled_weights(module: "nn.Module") -> None:
    """
    RWKV divides weights in place when it is run in evaluation mode, and undoes it at the next forward in training: a checkpoint
    written in between would hold the divided ones.
    """
    if hasattr(module, "_rescale_layers"):
        module._rescale_layers()


def cache_argument(module: "nn.Module") -> str:
    """What a backbone's forward calls the cache of its attention."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHES if name in parameters), "past_key_values")


def checkpointed_layers(model: "nn.Module") -> "list[nn.Module]":
    """The decoder layers: what gradient checkpointing runs again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_length_grouped(sampler: Any) -> bool:
    """Whether a sampler batches rows of similar length; it shuffles with its `generator`."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    return isinstance(sampler, LengthGroupedSampler)


def has_length(data: Any) -> bool:
    """Whether data are not a stream."""
    from transformers.trainer_utils import has_length

    return has_length(data)


def tensorboard_writers(callbacks: Iterable[Any]) -> list[Any]:
    """The open `SummaryWriter`s of a Trainer's callbacks."""
    from transformers.integrations import TensorBoardCallback

    found = [callback.tb_writer for callback in callbacks if isinstance(callback, TensorBoardCallback)]
    return [writer for writer in found if writer is not None]


def rotate_checkpoints(folder: Path, limit: int | None, best: str | None) -> None:
    """Removes a run's oldest checkpoints, except for the best one, until `limit` are left."""
    from transformers.trainer_utils import rotate_checkpoints

    rotate_checkpoints(output_dir=str(folder), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)


def adapter_config_file(name: str, **hub_options: Any) -> str | None:
    """The configuration of the PEFT adapter of this name, fetched where need be; `None` where it is not one."""
    from transformers.utils.peft_utils import find_adapter_config_file

    return find_adapter_config_file(name, **hub_options)


def cached_file(name: str, file: str, **hub_options: Any) -> str | None:
    """Where a file of a model is, fetched where need be. Raises `OSError` where there is none."""
    from transformers.utils import cached_file

    return cached_file(name, file, **hub_options)


def set_loading_plan(config: Any | None) -> None:
    """Says with which DeepSpeed configuration models are loaded from now on: in slices; with `None`, whole."""
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config() if config is None else deepspeed.set_hf_deepspeed_config(config)


# accelerate and torch


def shard_with_fsdp2(accelerator: "Accelerator", model: "nn.Module") -> None:
    """Shards a model that is not trained in place, in the units of the trained one."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    fsdp2_prepare_model(accelerator, model)


def forget_dataloaders(accelerator: "Accelerator") -> None:
    """Lets go of prepared loaders: a reference to each is kept, and the states of all would be saved."""
    accelerator._dataloaders.clear()


def launch_parser() -> Any:
    """The parser of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def launch(arguments: Any) -> None:
    """`accelerate launch`, with parsed arguments."""
    from accelerate.commands.launch import launch_command

    launch_command(arguments)


def set_rates(schedule: "torch.optim.lr_scheduler.LRScheduler", rates: list[float]) -> None:
    """The learning rates that a schedule reports, and hands to the log, until its next step."""
    schedule._last_lr = rates


def storage_id(tensor: "torch.Tensor") -> int:
    """What tensors of one storage have in common; also on the meta device, where addresses are all 0."""
    return tensor.untyped_storage()._cdata


#: Rows of a product that a layout of weights is made for. It serves one row and a thousand nearly as well as layouts of their own.
_LAID_OUT_FOR_ROWS = 16


def lay_out_weight(weight: "torch.Tensor") -> "torch.Tensor":
    """A linear layer's float32 weight, laid out as oneDNN multiplies it: what torch's compiler does when it freezes a model."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _LAID_OUT_FOR_ROWS)


def linear_with_laid_out(
    input: "torch.Tensor", laid_out: "torch.Tensor", bias: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """The product of a linear layer with what [`lay_out_weight`] made of its weight."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(input, laid_out, bias, "none", [], "")


@cache
def can_lay_out_weights() -> bool:
    """Whether this build of torch lays out weights and gets the same product, by trying."""
    import torch

    with torch.no_grad():
        weight, bias, input = torch.linspace(-1, 1, 64 * 32).view(64, 32), torch.ones(64), torch.ones(3, 32)
        try:
            found = linear_with_laid_out(input, lay_out_weight(weight), bias)
        except (AttributeError, RuntimeError):  # no such operator, or none for a CPU
            return False
        return torch.allclose(found, torch.nn.functional.linear(input, weight, bias), atol=1e-4)


def plain_name(parameter: str) -> str:
    """A parameter's name without what activation checkpointing and `torch.compile` put into it."""
    return parameter.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


# DeepSpeed


def is_partitioned(parameter: "torch.Tensor") -> bool:
    """Whether ZeRO-3 has spread a parameter over the processes."""
    return hasattr(parameter, "ds_tensor")


def whole_shape(parameter: "torch.Tensor") -> tuple[int, ...]:
    """A parameter's shape, also where ZeRO-3 has spread it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def zero3_part(parameter: "torch.Tensor") -> "tuple[torch.Tensor, int, torch.distributed.ProcessGroup]":
    """This process's slice of the flat weights, its place in them, and the group; the last slice comes without its padding."""
    import torch

    group, part = parameter.ds_process_group, parameter.ds_tensor
    offset = torch.distributed.get_rank(group) * part.ds_numel
    return part.detach()[: max(0, parameter.ds_numel - offset)], offset, group
