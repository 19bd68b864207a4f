"""Ends an iteration whose evaluations no longer improve, and hands on its best weights instead of its last."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.errors import UsageError
from ..run.run_directory import ITERATION_BEST
from .plan import RunPlan


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningPlan:
    """
    What ending an iteration early needs of a run in progress.

    Args:
        plan (`Callable`): The [`RunPlan`]; it is there when training begins.
        is_training (`Callable`): Whether the run is training; evaluations of a user's own are none of its.
        logged (`Callable`): What has been logged so far (`state.log_history`).
        save (`Callable`): Saves the current weights in a folder.
        load (`Callable`): Loads a folder's weights into the model.
    """

    plan: Callable[[], RunPlan]
    is_training: Callable[[], bool]
    logged: Callable[[], list[dict[str, Any]]]
    save: Callable[[str], None]
    load: Callable[[str], None]


def check_patience(args: TrainingArguments, eval_dataset: Any, is_sharded: bool) -> None:
    """
    Raises:
        ValueError: if there are several evaluation sets and nothing says which one counts; with DeepSpeed or FSDP.
    """
    if isinstance(eval_dataset, dict) and args.metric_for_best_model is None:
        raise UsageError(
            f"`iteration_patience` needs to know which of the evaluation sets counts ({', '.join(eval_dataset)}): "
            f"set `metric_for_best_model`, e.g. to `{next(iter(eval_dataset))}_loss`, or `iteration_patience` to "
            "None."
        )
    if args.eval_strategy != "no" and is_sharded:
        raise UsageError(
            "`iteration_patience` is not supported with DeepSpeed or FSDP: the best weights of an iteration could not be "
            "put back into a partitioned model. Set it to None."
        )


class IterationBest(TrainerCallback):
    """
    Early stopping within iterations: `iteration_patience` evaluations without a better metric end the iteration, not the
    run, and the weights of the best evaluation are what the next iteration rolls out with.

    What to do follows from the logged evaluations alone, which every checkpoint carries: a resumed run decides alike.

    Args:
        run ([`RunningPlan`]): Whose plan is shortened and whose weights are kept.
        args ([`IterativeSFTConfig`]): Its settings.
    """

    def __init__(self, run: RunningPlan, args: TrainingArguments):
        self.run, self.patience = run, args.iteration_patience
        name = args.metric_for_best_model or "loss"
        self.metric = name if name.startswith("eval_") else f"eval_{name}"
        self.sign = 1 if args.greater_is_better else -1
        self.folder = Path(args.output_dir) / ITERATION_BEST

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self.run.is_training() or self.metric not in (metrics or {}):  # one of several sets comes at a time
            return
        iteration = self.run.plan().iteration_at(state.global_step)
        if iteration == 0:
            return
        if self.best_step(iteration, state.global_step) == state.global_step:
            self._keep(state.global_step, args.should_save)
        elif self._is_over(iteration, state.global_step):
            dropped = self.run.plan().end_iteration(iteration, state.global_step)
            state.max_steps = self.run.plan().total_steps
            self._skip_in_schedule(kwargs["lr_scheduler"], dropped)
            control.should_epoch_stop = True
            logger.info(
                f"Iteration {iteration} ends at step {state.global_step}: {self.metric} has not improved for "
                f"{self.patience} evaluations ({dropped} planned steps are left out)."
            )

    def replay(self) -> None:
        """Shortens the plan of a resumed run as the interrupted one had been."""
        for step in sorted({entry["step"] for entry in self._evaluations()}):
            iteration = self.run.plan().iteration_at(step)
            if iteration and self._is_over(iteration, step):
                self.run.plan().end_iteration(iteration, step)

    def restore(self, iteration: int, step: int) -> None:
        """
        Loads the best weights of an iteration that ended at `step`, unless they are the current ones.

        Raises:
            ValueError: if they are not on disk any more.
        """
        best = self.best_step(iteration, step) if iteration else None
        if best is None or best == step:
            return
        folder = self.folder / f"step-{best}"
        if not folder.is_dir():
            raise UsageError(
                f"{folder}, the best weights of iteration {iteration}, is missing. Restore it, or resume from a checkpoint "
                f"before step {best}."
            )
        logger.info(f"Iteration {iteration} was best at step {best}: continuing with those weights.")
        self.run.load(str(folder))

    def best_step(self, iteration: int, step: int) -> int | None:
        """The step, up to `step`, of an iteration's best evaluation (the first of equals)."""
        evaluations = [entry for entry in self._evaluations() if entry["step"] <= step]
        own = [entry for entry in evaluations if self.run.plan().iteration_at(entry["step"]) == iteration]
        return max(own, key=lambda entry: (self.sign * entry[self.metric], -entry["step"]))["step"] if own else None

    def _is_over(self, iteration: int, step: int) -> bool:
        best = self.best_step(iteration, step)
        since = {entry["step"] for entry in self._evaluations() if best < entry["step"] <= step}
        return len(since) >= self.patience

    def _evaluations(self) -> list[dict]:
        return [entry for entry in self.run.logged() if self.metric in entry and entry["step"] > 0]

    def _keep(self, step: int, writes: bool) -> None:
        """Saves the current weights and removes those that no checkpoint would come back to."""
        target = self.folder / f"step-{step}"
        temporary = self.folder / f".step-{step}"
        self.run.save(str(temporary))
        if not writes:
            return
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        checkpoints = {int(path.name.split("-")[-1]) for path in self.folder.parent.glob("checkpoint-*")}
        wanted = {self.best_step(self.run.plan().iteration_at(at), at) for at in checkpoints if at <= step}
        for path in self.folder.glob("step-*"):
            if int(path.name.split("-")[-1]) not in wanted | {step}:
                shutil.rmtree(path)

    @staticmethod
    def _skip_in_schedule(lr_scheduler: Any, steps: int) -> None:
        """Moves a planned learning-rate schedule on to where the next iteration was planned to begin."""
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if steps and isinstance(schedule, LambdaLR):
            schedule.last_epoch += steps - 1
            schedule.step()
