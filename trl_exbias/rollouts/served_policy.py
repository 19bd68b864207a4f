"""Hands a policy in training over to a server: a folder of weights, or a LoRA adapter beside the weights it came from."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..modeling import base_causal_lm
from ..sharding import full_state


logger = logging.getLogger(__name__)

# What vLLM 0.31 compiles its LoRA kernels for (`config/lora.py`, `MaxLoRARanks`).
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MAX_SHARD_SIZE = "2GB"


@dataclass(frozen=True)
class ServedPolicy:
    """
    Where a policy's weights are.

    Args:
        model (`str`): Folder or hub id.
        adapter (`Path`, *optional*): Folder of a LoRA adapter over them.
        options (`dict`): What the server has to be told besides: revision, LoRA rank, quantization.
    """

    model: str
    adapter: Path | None
    options: dict[str, Any]


def write_policy(model: nn.Module, wrapped: nn.Module, folder: Path, accelerator: Accelerator) -> ServedPolicy:
    """
    Writes the weights that training has arrived at, as safetensors. Called by every process; the main one writes,
    and the others return before it is done.

    A LoRA adapter goes alone, to be served unmerged over the weights it was made for: exact over a quantized base, and the
    training model is not touched. What vLLM cannot serve beside a base (fully trained modules, DoRA, …) is merged, in a
    copy, with one line in the log.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy.
        wrapped (`nn.Module`): The same, as the process group wrapped it.
        folder (`Path`): Empty or absent.

    Raises:
        ValueError: for a quantized base with an adapter that would have to be merged.
    """
    has_adapter = hasattr(model, "peft_config")
    reason = why_merge(model) if has_adapter else None
    as_adapter = has_adapter and reason is None
    quantized = getattr(base_causal_lm(model), "quantization_method", None)
    if quantized is not None and not as_adapter:
        raise ValueError(
            f"vLLM cannot serve this policy: its base is quantized ({quantized}), and {reason or 'it has no adapter'}. Set "
            "`rollout_engine='transformers'`."
        )
    state = full_state(model, wrapped, accelerator, trainable_only=as_adapter)
    if accelerator.is_main_process:
        if as_adapter:
            model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        elif has_adapter:
            logger.info(f"The adapter is merged for vLLM, in a copy: {reason}.")
            _merged(model, state).save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)
        else:
            model.save_pretrained(folder, state_dict=state, max_shard_size=_MAX_SHARD_SIZE)
    if not as_adapter:
        return ServedPolicy(str(folder), None, {})
    base = base_causal_lm(model)
    rank = model.active_peft_config.r
    options = {
        "revision": getattr(base.config, "_commit_hash", None),
        "max_lora_rank": next(r for r in _LORA_RANKS if r >= rank),
        "max_loras": 1,
        "quantization": "bitsandbytes" if quantized is not None else None,
    }
    return ServedPolicy(base.name_or_path, folder, options)


def why_merge(model: nn.Module) -> str | None:
    """Why vLLM cannot serve a PEFT model's adapter beside its base, `None` where it can."""
    config, base = model.active_peft_config, base_causal_lm(model)
    if len(model.active_adapters) != 1:
        return "several adapters are active"
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return f"{config.peft_type} is not LoRA"
    for name in ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "trainable_token_indices"):
        if getattr(config, name, None):
            return f"it has `{name}`"
    if config.bias != "none":
        return f"it has `bias={config.bias!r}`"
    if config.r > _LORA_RANKS[-1]:
        return f"its rank {config.r} is above {_LORA_RANKS[-1]}"
    heads = (base.get_input_embeddings(), base.get_output_embeddings())
    if any(hasattr(module, "lora_A") or hasattr(module, "lora_embedding_A") for module in heads):
        return "it adapts the embeddings"
    if not base.name_or_path:
        return "the base model was not loaded from a folder or hub"
    return None


def _merged(model: nn.Module, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A copy with the adapter merged, built from a gathered state: the model itself may be sharded, and is not touched."""
    from peft import get_peft_model

    base = base_causal_lm(model)
    with torch.device("meta"):
        copy = get_peft_model(AutoModelForCausalLM.from_config(base.config), model.active_peft_config)
    cpu = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
    copy.load_state_dict(cpu, assign=True)
    copy.get_base_model().tie_weights()
    return copy.merge_and_unload()
