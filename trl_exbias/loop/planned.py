"""A trainer that goes by a plan of phases: their epochs, the learning rate over them, and where a resumed run takes them up."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..core.upstream import has_length
from .extension import is_extension, resume_schedule
from .iteration_best import IterationBest
from .plan import RunPlan, batches_per_epoch, phases_of
from .preparation import PreparingSFTTrainer
from .schedule import restarting_schedule


logger = logging.getLogger(__name__)


class PlannedSFTTrainer(PreparingSFTTrainer):
    """A [`PreparingSFTTrainer`] with a [`RunPlan`]; a stream, whose length is not known, has none and runs as in TRL."""

    plan: RunPlan | None = None
    lr_scheduler: Any
    _is_extended = False
    _iteration_best: IterationBest | None = None

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        as_in_trl = super().set_initial_training_values(args, dataloader)
        if not has_length(dataloader):
            return as_in_trl
        batches: Callable[[int], int] = partial(
            batches_per_epoch, args, self._train_batch_size, self.accelerator.num_processes
        )
        if args.is_plain_sft:
            steps_in_epoch = as_in_trl[5]  # packed, sharded by sequence, or batched by a sampler of the user's
            batches = lambda num_rows: steps_in_epoch  # noqa: E731
        self.plan_for = partial(self._make_plan, batches=batches)
        self.plan = self.plan_for(args)
        unreached = self.plan.unreached(args.max_steps) if self.rolls_out else None
        if unreached is not None:
            logger.warning(unreached)
        first = self.plan.epochs[0]
        return (
            len(self.plan.epochs),
            first.num_updates,
            first.num_rows,
            self.plan.num_samples,
            self.get_total_train_batch_size(args),
            first.num_batches,
            self.plan.total_steps,
        )

    def _make_plan(self, settings: Any, batches: Callable[[int], int]) -> RunPlan:
        """The plan that some settings make of the data."""
        joint_rows = rows = len(self.train_dataset)
        if self.rolls_out and self.args.sft_weight == 0 and self.args.num_rollouts is not None:
            joint_rows = min(self.args.num_rollouts, int((self.response_lengths > 0).sum()))
        phases = phases_of(settings, rows, joint_rows)
        return RunPlan(phases, batches, self.args.gradient_accumulation_steps, settings.max_steps)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        in_trl = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.plan is None:
            return in_trl
        self._is_extended = resume_from_checkpoint is not None and is_extension(
            resume_from_checkpoint, self.identity(), self.plan, self.plan_for
        )
        if self._iteration_best is not None:
            self._iteration_best.replay()
            self.state.max_steps = self.plan.total_steps
        epoch, updates = self.plan.locate(self.state.global_step)
        return epoch, 0 if self.args.ignore_data_skip else updates * self.args.gradient_accumulation_steps

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.plan is not None and self._is_extended:
            resume_schedule(self.lr_scheduler, self.optimizer, self.state.global_step)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if not self.args.restart_lr_schedule or self.lr_scheduler is not None or self.plan is None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = restarting_schedule(self.args, optimizer, self.plan.segments())
        self._created_lr_scheduler = True
        return self.lr_scheduler
