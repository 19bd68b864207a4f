"""Hands a policy in training over to a server: a folder of weights, or a LoRA adapter with the weights that it came from."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ...core.errors import UsageError
from ...core.merging import merged_copy, why_not_merged
from ...core.modeling import base_causal_lm, is_multimodal
from ...core.sharding import full_state
from ...core.upstream import commit_hash
from .base_weights import differs_from_disk
from .upstream import LORA_RANKS


logger = logging.getLogger(__name__)

_MAX_SHARD_SIZE = "2GB"
# Fields of a LoRA configuration that vLLM reads (`lora/peft_helper.py`), that name layers, whose weights are
# there to be seen, or that matter in training alone. It passes over any other without a word.
_UNDERSTOOD = {
    *("r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "init_lora_weights", "inference_mode", "ephemeral_gpu_offload", "eva_config", "lora_ga_config"),
    *(
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "runtime_config",
    ),
}
_LEAVE_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class ServedPolicy:
    """
    Where a policy's weights are.

    Args:
        model (`str`): Folder or hub id.
        adapter (`Path`, *optional*): Folder of a LoRA adapter over them.
        options (`dict`): What else the server has to be told: revision, LoRA rank, quantization.
    """

    model: str
    adapter: Path | None
    options: dict[str, Any]


def check_servable(model: nn.Module) -> None:
    """
    Refuses a policy that vLLM cannot be given as it is, ahead of training.

    Raises:
        ValueError: for a multimodal model, for a quantized base without an adapter that can be served with it, and for an
            adapter that can neither be served nor merged exactly.
    """
    if is_multimodal(base_causal_lm(model).config):
        raise UsageError(
            f"vLLM would serve {type(base_causal_lm(model)).__name__} with the parts that read pictures or sound, which is not "
            "supported. Set `rollout_engine='transformers'`, or pass its language model alone, loaded with its own class."
        )
    has_adapter = hasattr(model, "peft_config")
    reason = why_merge(model) if has_adapter else None
    if has_adapter and reason is None:
        return
    problem = None
    quantized = getattr(base_causal_lm(model), "quantization_method", None)
    if quantized is not None:
        problem = f"its base is quantized ({quantized}), and {reason or 'it has no adapter'}"
    elif has_adapter and (inexact := why_not_merged(model)) is not None:
        problem = f"{reason}, so its adapter would have to be merged, which PEFT cannot do exactly: {inexact}"
    if problem is not None:
        raise UsageError(f"vLLM cannot serve this policy: {problem}. Set `rollout_engine='transformers'`.")


def write_policy(model: nn.Module, wrapped: nn.Module, folder: Path, accelerator: Accelerator) -> ServedPolicy:
    """
    Writes the weights that training has arrived at, as safetensors. Called by every process; the main one writes,
    and the others return before it is done.

    A LoRA adapter goes alone, to be served unmerged over the weights it was made for: exact over a quantized base, and the
    training model is not touched. What vLLM cannot serve with a base (fully trained modules, DoRA, …) is merged, in a
    copy, with one line in the log.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        wrapped (`nn.Module`): The same, as the process group wrapped it.
        folder (`Path`): Empty or absent.

    """
    has_adapter = hasattr(model, "peft_config")
    reason = why_merge(model) if has_adapter else None
    as_adapter = has_adapter and reason is None
    quantized = getattr(base_causal_lm(model), "quantization_method", None)
    state = full_state(model, wrapped, accelerator, trainable_only=as_adapter)
    if accelerator.is_main_process:
        if as_adapter:
            model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        elif has_adapter:
            logger.info(f"The adapter is merged for vLLM, in a copy: {reason}.")
            merged_copy(model, state).save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)
        else:
            model.save_pretrained(folder, state_dict=state, max_shard_size=_MAX_SHARD_SIZE)
    if not as_adapter:
        return ServedPolicy(str(folder), None, {})
    base = base_causal_lm(model)
    rank = model.active_peft_config.r
    options = {
        "revision": commit_hash(base.config),
        "max_lora_rank": next(r for r in LORA_RANKS if r >= rank),
        "max_loras": 1,
        "quantization": "bitsandbytes" if quantized is not None else None,
    }
    return ServedPolicy(base.name_or_path, folder, options)


def why_merge(model: nn.Module) -> str | None:
    """Why vLLM cannot serve a PEFT model's adapter with its base, `None` where it can."""
    config, base = model.active_peft_config, base_causal_lm(model)
    if len(model.active_adapters) != 1:
        return "several adapters are active"
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return f"it is not a LoRA adapter but {getattr(config.peft_type, 'value', config.peft_type)}"
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(type(config)(), field.name)
        if value and value != default and field.name not in _UNDERSTOOD:
            return f"it has `{field.name}={value!r}`" if isinstance(value, str) else f"it has `{field.name}`"
    if config.init_lora_weights not in _LEAVE_THE_BASE:
        return f"`init_lora_weights={config.init_lora_weights!r}` has changed the base's weights"
    if config.r > LORA_RANKS[-1]:
        return f"its rank {config.r} is above {LORA_RANKS[-1]}"
    heads = (base.get_input_embeddings(), base.get_output_embeddings())
    if any(hasattr(module, "lora_A") or hasattr(module, "lora_embedding_A") for module in heads):
        return "it adapts the embeddings"
    if not base.name_or_path:
        return "the base model was not loaded from a folder or hub"
    changed = differs_from_disk(base)
    if changed is not None:
        return f"{changed} of the base model is not what {base.name_or_path} holds"
    return None
