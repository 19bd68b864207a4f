"""Students made of their teachers."""

import torch
from transformers import PreTrainedModel

from ...core.errors import UsageError


def keep_layers(model: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """
    Drops layers of a Llama-like model (`model.model.layers`) in place.

    Raises:
        ValueError: for a number that the model cannot keep.
    """
    layers = model.model.layers
    if not 2 <= num_layers <= len(layers):
        raise UsageError(f"`num_layers` must be between 2 and {len(layers)}, got {num_layers}.")
    kept = torch.linspace(0, len(layers) - 1, num_layers).round().int().tolist()
    model.model.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i  # its place in the KV cache
    model.config.num_hidden_layers = num_layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    return model
