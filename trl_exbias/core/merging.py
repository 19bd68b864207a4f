"""Adapters merged into their base: whether PEFT can do it exactly, and a copy in which it is done."""

import copy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from .modeling import base_causal_lm
from .upstream import from_config


# Relative to a layer's output in float32.
_TOLERANCE = 1e-4


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter in its weights, in place, and with a configuration that says whether its embeddings are tied."""
    base = model.merge_and_unload()
    inputs, outputs = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    if not inputs.is_meta:
        # An adapter that trains one of two tied embeddings has a copy of it: they are tied no longer.
        tied = inputs.shape == outputs.shape and torch.equal(inputs, outputs)
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = tied
    return base


def merged_copy(model: PeftModel, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A merged copy on the CPU, built from a gathered state: the model itself may be sharded, and is not touched."""
    outline = _outline(model)
    cpu = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
    outline.load_state_dict(cpu, assign=True)
    for name, buffer in model.named_buffers():
        if name not in state:  # what is not saved with the weights
            parent, _, own = name.rpartition(".")
            outline.get_submodule(parent).register_buffer(own, buffer.detach().to("cpu", copy=True), persistent=False)
    return merged(outline)


def why_not_merged(model: PeftModel) -> str | None:
    """
    Why no exact [`merged_copy`] of a PEFT model can be made, `None` where it can: found by trying it on a copy without weights,
    and on copies of single layers.
    """
    try:
        outline = _outline(model)
        missing = set(outline.state_dict()) ^ set(model.state_dict())
        if missing:
            return f"a copy of it would have other weights ({min(missing)}, for one)"
        if hidden := next(filter(None, map(_tensor_beside_the_state, outline.modules())), None):
            return f"its layers keep `{hidden}` outside of their weights"
        merged(outline)
        return _inexact(model)
    except Exception as error:
        # Whatever PEFT raises where it is asked to merge means the same: it cannot.
        return f"{type(error).__name__}: {error}"


def _outline(model: PeftModel) -> PeftModel:
    """The modules, without weights."""
    adapter = copy.deepcopy(model.active_peft_config)
    if hasattr(adapter, "init_lora_weights"):
        adapter.init_lora_weights = True  # others compute on the base's weights
    base = base_causal_lm(model)
    plain: Any = next(cls for cls in type(base).__mro__ if not issubclass(cls, FSDPModule))
    with torch.device("meta"):
        return get_peft_model(from_config(plain, copy.deepcopy(base.config)), adapter)


def _tensor_beside_the_state(module: nn.Module) -> str | None:
    """The name of an attribute that holds a tensor which is neither a parameter nor a buffer."""
    if not isinstance(module, BaseTunerLayer):
        return None
    for name, value in vars(module).items():
        values = value.values() if isinstance(value, dict) and not name.startswith("_") else [value]
        if any(isinstance(part, torch.Tensor) for part in values):
            return name
    return None


def _inexact(model: PeftModel) -> str | None:
    """The smallest adapted layer of each kind, merged with other weights than those it begins with, which may do nothing."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(not parameter.numel() for layer in layers for parameter in layer.parameters()):
        return None  # ZeRO-3 has spread them; what is served is compared with the policy before a rollout all the same
    smallest: dict[tuple[type, type], nn.Module] = {}
    for layer in sorted(layers, key=lambda layer: sum(p.numel() for p in layer.parameters())):
        smallest.setdefault((type(layer), type(layer.get_base_layer())), layer)
    for layer in smallest.values():
        distance = _distance_by_merging(copy.deepcopy(layer).float().cpu().eval())
        if distance > _TOLERANCE:
            return f"its {type(layer).__name__} layers give other results when they are merged ({distance:.1e} off)"
    return None


@torch.no_grad()
def _distance_by_merging(layer: BaseTunerLayer) -> float:
    generator = torch.Generator().manual_seed(0)
    base = layer.get_base_layer()
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    if isinstance(base, nn.Embedding):
        given = torch.arange(min(8, base.num_embeddings)).unsqueeze(0)
    elif isinstance(base, nn.Linear):
        given = torch.randn(1, 8, base.in_features, generator=generator)
    else:
        return 0.0
    apart = layer(given)
    layer.merge()
    return ((layer(given) - apart).norm() / apart.norm()).item()
