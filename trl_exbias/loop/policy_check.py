"""Whether the policy's probabilities are computed as the model itself does, found before the first step."""

import torch

from ..core.model_check import check_model, check_training_head
from ..core.modeling import inference
from ..rollouts.local.cache_probe import rows_of


def check_policy(model: torch.nn.Module, decodes: bool) -> None:
    """
    Tries the model on a few tokens, under the training's autocast: its logits, the head that computes the loss, the caches of
    a rollout.

    Args:
        decodes (`bool`): Whether the model itself rolls out.

    Raises:
        ValueError: names the model and what is different about it.
    """
    check_model(model)
    check_training_head(model)
    if decodes:
        with inference(model):
            rows_of(model, length=1)
