"""The epoch that is logged: how often the run has read its data, whatever its phases and however they were cut."""

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


if TYPE_CHECKING:
    from .iterative import IterativeSFTTrainer


class EpochAxis(TrainerCallback):
    """
    Corrects `state.epoch` after each step: `Trainer` counts a shortened epoch as a whole one.

    Args:
        trainer ([`IterativeSFTTrainer`]): Whose plan says how much of an epoch a step is.
    """

    def __init__(self, trainer: "IterativeSFTTrainer"):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer.plan is not None:  # a stream's epochs are Trainer's own
            state.epoch = self.trainer.plan.epoch_at(state.global_step)
