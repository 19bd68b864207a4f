"""A learning-rate schedule that starts over, warm-up included, with each phase of a run."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from ..core.errors import UsageError


def restarting_schedule(
    args: TrainingArguments, optimizer: torch.optim.Optimizer, segments: list[tuple[int, int]]
) -> LambdaLR:
    """
    The configured schedule once for each segment, as separate runs of that length would have it.

    Args:
        args ([`~transformers.TrainingArguments`]): `lr_scheduler_type`, `lr_scheduler_kwargs`, `warmup_steps`.
        optimizer (`torch.optim.Optimizer`): What is scheduled.
        segments (`list[tuple[int, int]]`): First step and number of steps of each phase.

    Raises:
        ValueError: for a schedule that follows the metrics instead of a plan.
    """
    pieces = []
    for first_step, num_steps in segments:
        piece = get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0),
            num_warmup_steps=args.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        if not isinstance(piece, LambdaLR):
            raise UsageError(
                f"`restart_lr_schedule` needs a schedule that is planned ahead; `{args.lr_scheduler_type}` follows the "
                "metrics instead. Choose another `lr_scheduler_type`, or leave `restart_lr_schedule` off."
            )
        pieces.append((first_step, piece.lr_lambdas[0]))

    def factor(step: int) -> float:
        first_step, piece = max((p for p in pieces if p[0] <= step), key=lambda p: p[0])
        return piece(step - first_step)

    return LambdaLR(optimizer, factor)
