"""The epoch that is logged: how often the run has read its data, whatever its phases and however they were cut."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .plan import RunPlan


class EpochAxis(TrainerCallback):
    """
    Corrects `state.epoch` after each step: `Trainer` counts a shortened epoch as a whole one.

    Args:
        plan (`Callable`): The [`RunPlan`] that says how much of an epoch a step is; `None` for a stream.
    """

    def __init__(self, plan: Callable[[], RunPlan | None]):
        self.plan = plan

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        plan = self.plan()
        if plan is not None:  # a stream's epochs are Trainer's own
            state.epoch = plan.epoch_at(state.global_step)
