"""A run stops at the first loss that is not a number, and saves nothing over its last good state."""

import torch

from ..core.sharding import local_part
from ..run.errors import NonFiniteLossError


def check_loss(loss: torch.Tensor, rows: torch.Tensor | None, step: int) -> None:
    """
    Looks at the loss of a micro-batch before its gradient reaches the weights.

    Args:
        loss (`torch.Tensor`): A scalar.
        rows (`torch.Tensor`, *optional*): Rows of the training data in the batch.
        step (`int`): Updates done so far.

    Raises:
        NonFiniteLossError: names the rows.
    """
    if torch.isfinite(loss):
        return
    where = "" if rows is None else f" on the rows {rows.tolist()} of the training data"
    raise NonFiniteLossError(
        f"The loss is {loss.item()} at step {step}{where}. No weight was changed by it and nothing was saved over the last "
        "checkpoint. Look at these rows; a lower learning rate, a longer warm-up or bfloat16 instead of float16 are the "
        "usual cures. `resume_from_checkpoint=True` continues from the last checkpoint."
    )


@torch.no_grad()
def check_weights(model: torch.nn.Module, step: int) -> None:
    """
    Looks at the trainable weights before they are saved.

    Raises:
        NonFiniteLossError: names the first tensor that is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(local_part(parameter)[0]).all():
            raise NonFiniteLossError(
                f"{name} is not finite after step {step}: the checkpoint is not saved, the last one is kept. A lower "
                "learning rate, or `max_grad_norm`, are the usual cures."
            )
