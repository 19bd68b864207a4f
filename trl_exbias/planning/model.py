"""The model of a run on the meta device: which parameters there are, of which type, and which are trained."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..core.modeling import LMHead, base_causal_lm, model_class
from ..core.trainable import freeze_all_but
from ..core.upstream import checkpointed_layers, from_config, is_stateful, supports_sdpa
from .activations import ATTENTION
from .placement import Placement


_BITS_4 = 0.5 + 4 / 64  # half a byte, and a float32 scale for every 64 weights (bitsandbytes)
_BITS_4_NESTED = 0.5 + 1 / 64 + 4 / 16384  # the scales themselves in 8 bits
_BITS_8 = 1.0
_RECURRENT = ("conv", "mamba", "recurrent", "hybrid", "hybrid_sliding")


@dataclass(frozen=True)
class Parameter:
    """
    Args:
        shape (`tuple[int, ...]`): Its shape.
        dtype (`torch.dtype`): What it is loaded and trained in.
        trained (`bool`): Whether it has a gradient.
        layer (`int`, *optional*): The decoder layer that it is in.
        packed_bytes (`float`, *optional*): Bytes of each weight where it is quantized.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    layer: int | None = None
    packed_bytes: float | None = None

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        return round(self.numel * (self.packed_bytes or self.dtype.itemsize))


@dataclass(frozen=True)
class ModelFacts:
    """
    What a device's memory depends on.

    Args:
        parameters (`list[Parameter]`): Each once, tied ones too.
        buffer_bytes (`int`): Bytes of buffers.
        vocab_size, hidden_size (`int`): Sizes of the LM head.
        head_trained (`bool`): Whether the LM head (or the embedding that it is tied to) is trained.
        head_dtype (`torch.dtype`): What the LM head is stored in.
        softcap (`bool`): Whether the logits are soft-capped.
        kv_bytes (`int`): Bytes of one token's keys and values in all layers, in the type that the model computes in.
    """

    parameters: list[Parameter]
    buffer_bytes: int
    vocab_size: int
    hidden_size: int
    head_trained: bool
    head_dtype: torch.dtype
    softcap: bool
    kv_bytes: int

    @property
    def trained(self) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.trained]

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def num_trained(self) -> int:
        return sum(parameter.numel for parameter in self.trained)

    @property
    def bytes(self) -> int:
        """Bytes of the weights as they are loaded."""
        return sum(parameter.bytes for parameter in self.parameters) + self.buffer_bytes

    @property
    def largest_layer(self) -> int:
        """Numbers in the largest decoder layer."""
        sizes: dict[int, int] = {}
        for parameter in self.parameters:
            if parameter.layer is not None:
                sizes[parameter.layer] = sizes.get(parameter.layer, 0) + parameter.numel
        return max(sizes.values(), default=0)

    @property
    def outside_layers(self) -> int:
        """Numbers outside the decoder layers: embeddings, LM head, final norm."""
        return sum(parameter.numel for parameter in self.parameters if parameter.layer is None)


def meta_model(
    config: PretrainedConfig,
    dtype: torch.dtype,
    placement: Placement,
    peft_config: Any = None,
    trainable_modules: list[str] | None = None,
    attn_implementation: str | None = None,
    quantized: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """
    The model that a run trains, without its weights.

    Args:
        dtype (`torch.dtype`): What the weights are loaded in.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to put in.
        trainable_modules (`list[str]`, *optional*): As in [`DaDDaggerConfig`].

    Raises:
        ValueError: if the adapters or `trainable_modules` do not fit the model.
    """
    config = copy.deepcopy(config)  # a model writes its attention into it
    with torch.device("meta"):
        options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        try:
            if attn_implementation == "eager":
                raise KeyError
            model = _from_config(config, attn_implementation=ATTENTION, **options)
            if attn_implementation is None and not supports_sdpa(model):
                raise KeyError
        except (KeyError, ValueError):
            # What was asked for, what an architecture comes with where it has no fused attention, and those whose attention is
            # chosen from a table of their own (GPT-Neo).
            model = _from_config(config, attn_implementation="eager", **options)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
            # As TRL: float32 adapters, but on quantized weights and under ZeRO-3, where mixed types would not gather.
            adapters = torch.bfloat16 if quantized else dtype if placement.sharding == "zero3" else None
            if adapters is not None:
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.to(adapters)
        if trainable_modules:
            freeze_all_but(model, trainable_modules)
    return model.train()


def _from_config(config: PretrainedConfig, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    loader = model_class(config)
    if loader is AutoModelForCausalLM:
        return loader.from_config(config, trust_remote_code=trust_remote_code, **options)
    return from_config(loader, config, **options)


def model_facts(model: PreTrainedModel, compute_dtype: torch.dtype, load_in: str | None = None) -> ModelFacts:
    """
    Args:
        model: As [`meta_model`] makes it.
        compute_dtype (`torch.dtype`): What the model computes in.
        load_in (`str`, *optional*): `"4bit"`, `"4bit-nested"` or `"8bit"`: how the linear layers' weights are packed.
    """
    layers = checkpointed_layers(model)
    places = {id(parameter): i for i, layer in enumerate(layers) for parameter in layer.parameters()}
    packed: set[int] = set()
    if load_in is not None:
        linear = [module for layer in layers for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        packed = {id(module.weight) for module in linear if not module.weight.requires_grad}
    share = {"4bit": _BITS_4, "4bit-nested": _BITS_4_NESTED, "8bit": _BITS_8, None: None}[load_in]
    head = LMHead(model)
    config = base_causal_lm(model).config.get_text_config()
    return ModelFacts(
        parameters=[
            Parameter(tuple(p.shape), p.dtype, p.requires_grad, places.get(id(p)), share if id(p) in packed else None)
            for p in model.parameters()
        ],
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        vocab_size=head.projection.weight.size(0),
        hidden_size=head.projection.weight.size(1),
        head_trained=head.projection.weight.requires_grad,
        head_dtype=head.projection.weight.dtype,
        softcap=head.softcap is not None,
        kv_bytes=_kv_bytes(config, compute_dtype),
    )


def is_recurrent(config: PretrainedConfig | None) -> bool:
    """Whether some layers are recurrent, by what transformers says of the class and of its layers."""
    if config is None:
        return False
    text = config.get_text_config()
    loaded = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    kinds = set(getattr(text, "layer_types", None) or ())
    return is_stateful(loaded) or any(kind in _RECURRENT or "linear" in kind for kind in kinds)


def _kv_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    if not hasattr(config, "num_attention_heads"):
        return 0  # a recurrent model without attention: its state does not grow
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * dtype.itemsize
