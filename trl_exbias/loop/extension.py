"""Extending a run: more epochs, iterations or steps than it was begun with, from where it is."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..core.errors import UsageError
from ..core.upstream import set_rates
from ..run.checkpoints import PLAN_SETTINGS, WHOLE
from .plan import RunPlan


logger = logging.getLogger(__name__)


def is_extension(
    checkpoint: str, now: dict[str, Any], plan: RunPlan, plan_for: Callable[[SimpleNamespace], RunPlan]
) -> bool:
    """
    Whether a run is resumed with another plan than the one it was begun with.

    Args:
        now (`dict`): The run's identity, as [`run_identity`] gives it.
        plan ([`RunPlan`]): The run's.
        plan_for (`Callable`): The plan that other settings make of its data.

    Raises:
        ValueError: if a phase that is done would have been another, or the one that it is in would be shorter.
    """
    record = json.loads(Path(checkpoint, WHOLE).read_text(encoding="utf-8"))
    was = record["run"]
    changed = [
        f"`{name}` was {was[name]!r} and is now {now[name]!r}" for name in PLAN_SETTINGS if was[name] != now[name]
    ]
    if not changed:
        return False
    before = plan_for(SimpleNamespace(**{name: was[name] for name in PLAN_SETTINGS}))
    problem = _difference(before, plan, record.get("iteration", math.inf))
    if problem is not None:
        raise UsageError(
            f"{checkpoint} cannot be resumed from: {'; '.join(changed)}. With that, {problem}. A run can be extended in the "
            "phase that it is in and by further ones: raise `num_iterations`, or give `epochs_per_iteration` a number for each "
            "iteration that leaves the first ones as they were."
        )
    if plan.total_steps == before.total_steps:
        return False
    logger.info(f"{'; '.join(changed)}: the run has {plan.total_steps} steps instead of {before.total_steps}.")
    return True


def _difference(before: RunPlan, now: RunPlan, current: float) -> str | None:
    """What keeps a plan from being a continuation of another that has come to the phase `current`."""
    for iteration in sorted({epoch.iteration for epoch in before.epochs}):
        name = f"iteration {iteration}" if iteration else "the SFT phase"
        was, is_now = before.num_updates(iteration), now.num_updates(iteration)
        if iteration < current and was != is_now:
            return f"{name}, which is done, would have had {is_now} steps instead of {was}"
        if iteration == current and is_now < was:
            return f"{name}, in which the run is, would have {is_now} steps instead of {was}"
    return None


def resume_schedule(lr_scheduler: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Puts an extended run onto its new schedule at once: the optimizer's state has the old one's rate for the next step."""
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
    if not isinstance(schedule, LambdaLR):
        return
    rates = [
        base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    was = [group["lr"] for group in optimizer.param_groups]
    if rates != was:
        logger.warning(
            f"The learning-rate schedule is planned over the new length: at step {step} the rate goes from "
            f"{was[0]:.3g} to {rates[0]:.3g}."
        )
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_rates(schedule, rates)
