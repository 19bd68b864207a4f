"""What the package needs to know of a causal language model: its backbone, its LM head, which attention masks it takes.

Shapes: B batch, L tokens of a row, K keys, H hidden size, V vocabulary.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .block_attention import attention_by_blocks
from .laid_out_weights import laid_out_weights
from .sharding import compute_device, in_forward
from .upstream import attention_implementation, put_back_rescaled_weights, supports_sdpa


def base_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself: a PEFT model's adapters live inside its layers, so its base model is what computes."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the language model is a part of the model, next to those of other modalities."""
    return config.get_text_config() is not config


def model_class(config: PretrainedConfig) -> type[Any]:
    """What loads a model of this configuration, as TRL does: the whole of a multimodal one, of whatever auto class."""
    name = (config.architectures or [""])[0]
    if name.endswith("ForConditionalGeneration") and not config.is_encoder_decoder:
        return getattr(transformers, name, AutoModelForCausalLM)
    return AutoModelForCausalLM


def backbone(model: nn.Module) -> nn.Module:
    """The part of a causal LM that ends in the last hidden states (`LlamaModel` of a `LlamaForCausalLM`)."""
    base = base_causal_lm(model)
    if base.base_model is not base:
        return base.base_model
    # Llama 4 and Mllama: their prefix names a part that they do not have.
    embeddings = base.get_input_embeddings()
    parts = [part for part in base.children() if isinstance(part, PreTrainedModel)]
    part = next((part for part in parts if part.get_input_embeddings() is embeddings), None)
    return base if part is None else backbone(part)


def read_backbone(model: nn.Module, **inputs: Any) -> Any:
    """The backbone's output for `inputs`, without gradient; also outside the forward of a model that FSDP2 shards."""
    return in_forward(model, lambda: backbone(model)(**inputs))


def model_device(model: nn.Module) -> torch.device:
    """Where the model reads its input; with a `device_map`, the head may be elsewhere."""
    return compute_device(base_causal_lm(model).get_input_embeddings().weight)


def positions_of(config: PretrainedConfig | None) -> int | None:
    """The number of positions of a configuration; `None` where it names none."""
    return None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)


def position_limit(model: nn.Module) -> int | None:
    """The number of positions of a model; `None` where its configuration names none."""
    return positions_of(base_causal_lm(model).config)


class LMHead:
    """
    Turns last hidden states into logits exactly as the model's own forward does.

    Architectures scale or soft-cap their logits after the projection; the names of the scales are the ones TRL 1.16's
    fused LM head reads (`trl/trainer/utils.py`, `add_fused_lm_head`). That there is no other is what
    [`~trl_exbias.core.model_check.check_model`] makes sure of.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.
    """

    def __init__(self, model: nn.Module):
        base = base_causal_lm(model)
        config = base.config.get_text_config()
        self.projection = base.get_output_embeddings()
        # If the model is not sharded, nothing but the head is kept alive.
        self._root = model if isinstance(model, FSDPModule) else None
        self.softcap = next((cap for name in _SOFTCAPS if (cap := getattr(config, name, None)) is not None), None)
        self.scale = _logit_scale(config)

    def with_projection(self, projection: nn.Module) -> "LMHead":
        """The same head around another projection, which is whole."""
        head = copy.copy(self)
        head.projection, head._root = projection, None
        return head

    @property
    def vocab_size(self) -> int:
        """Number of rows of the output embedding, padding rows included."""
        return self.projection.out_features

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of `hidden` `(..., H)`: float32 of shape `(..., V)`."""
        return self.finish(self.raw(hidden))

    def raw(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the projection alone gives."""
        # The module is called, not its weight read: ZeRO-3 and FSDP2 gather a sharded weight in the module's hooks.
        hidden = hidden.to(compute_device(self.projection.weight))
        return in_forward(self._root, lambda: self.projection(hidden))

    def finish(self, projected: torch.Tensor) -> torch.Tensor:
        """Float32 logits of what the projection alone gives: scaled, then soft-capped."""
        logits = projected.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def finish_backward(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of the projection, from that of the finished logits."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap) ** 2)
        return grad * self.scale if self.scale != 1.0 else grad


# Gemma, RecurrentGemma, xLSTM.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _logit_scale(config: PretrainedConfig) -> float:
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        return scaling if config.model_type == "hyperclovax" else 1 / scaling
    return 1.0


def uses_flash_attention(config: PretrainedConfig) -> bool:
    """Whether attention takes rows of different length without padding, and no mask: FlashAttention-2, -3, a kernel of the hub."""
    return "flash" in attention_implementation(config)


#: Attention that takes a mask as a tensor.
MASKABLE_IMPLEMENTATIONS = ("sdpa", "eager")


def attention_mask_4d(allowed: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """
    Casts a boolean mask `(B, 1, L, K)`, true where a query may see a key, to the form the attention implementation takes.

    `sdpa` reads booleans; `eager` adds the mask to its scores, so a boolean one would be silently wrong.
    """
    if attention_implementation(config) == "sdpa":
        return allowed
    mask = torch.zeros(allowed.shape, device=allowed.device)
    # Half precision's range: the mask may be cast to the dtype of the scores.
    return mask.masked_fill(~allowed, torch.finfo(torch.float16).min)


@contextlib.contextmanager
def without_attention_plans() -> Iterator[None]:
    """
    Keeps cuDNN out of attention in the block, and puts back what was set, also on an exception.

    On Hopper and later, torch gives attention to cuDNN first, which plans every new shape: on an H200 a decoding step took
    130 ms at new shapes and 54 ms at known ones, on a B200 a plan 0.4 s forward and 0.5 s backward
    (https://github.com/modelscope/FunASR/issues/3704). In a rollout every step has a new shape, in joint training every batch.
    Without a GPU the flag has no effect.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextlib.contextmanager
def inference(model: nn.Module, own_attention: bool = False) -> Iterator[None]:
    """
    Runs the block with the model as a user would find it at inference, and puts everything back, also on an exception.

    Evaluation mode switches off dropout, NEFTune noise and gradient checkpointing (all of which act in training mode
    only); no graph is recorded; an attention implementation that takes no custom mask (FlashAttention-2) is replaced
    by `sdpa` for the time being (`eager`, where an architecture has no `sdpa`). What is read has another shape each time: see [`without_attention_plans`]. On a CPU,
    attention skips what a mask hides ([`~trl_exbias.core.block_attention.attention_by_blocks`]), and linear layers lay out their weights
    once ([`~trl_exbias.core.laid_out_weights.laid_out_weights`]).

    Args:
        own_attention (`bool`): Keep the attention implementation, whatever it is.
    """
    base = base_causal_lm(model)
    training = [module for module in model.modules() if module.training]
    implementation = attention_implementation(base.config)
    try:
        model.eval()
        if not own_attention and implementation not in MASKABLE_IMPLEMENTATIONS:
            base.set_attn_implementation("sdpa" if supports_sdpa(base) else "eager")
        attention = attention_by_blocks(model_device(model))
        with torch.no_grad(), without_attention_plans(), attention, laid_out_weights(model):
            yield
    finally:
        if attention_implementation(base.config) != implementation:
            base.set_attn_implementation(implementation)
        # Module by module: a frozen part that the user keeps in evaluation mode stays in it.
        for module in training:
            module.training = True
        for module in training:
            put_back_rescaled_weights(module)


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far two ways of computing the same hidden states are apart: to be below [`agreement_tolerance`]."""
    return ((found - expected).float().norm() / expected.float().norm()).item()


def agreement_tolerance(model: nn.Module, dtype: torch.dtype) -> float:
    """Relative distance of hidden states of this type below which two ways of computing them agree except for rounding."""
    exact = (torch.float32, torch.float64)
    # Float32 may hide products in half precision: under autocast, FSDP2's mixed precision, over a quantized base.
    if dtype not in exact or torch.is_autocast_enabled(model_device(model).type) or isinstance(model, FSDPModule):
        return 5e-2
    return 1e-3 if all(p.dtype in exact for p in base_causal_lm(model).parameters()) else 5e-2
