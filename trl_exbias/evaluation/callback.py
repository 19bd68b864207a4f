"""Logs what free running costs the model as training continues."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.token_ids import TokenIds
from .exposure_bias import ExposureBias, exposure_bias


class ExposureBiasCallback(TrainerCallback):
    """
    Measures [`exposure_bias`] before training and at the end of every iteration (of every epoch, with a trainer that has
    no iterations), and logs `exposure_bias/teacher_forced`, `free_running`, `gap` and, with a teacher, `excess_error`.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer it is added to.
        token_ids (`Sequence[Sequence[int]]`): Held-out documents.
        context_length, horizon, num_samples, stride, seed, teacher: As in [`exposure_bias`].

    Example:

    ```python
    trainer.add_callback(ExposureBiasCallback(trainer, held_out_ids, context_length=128, horizon=10, stride=50))
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        token_ids: Sequence[TokenIds],
        context_length: int,
        horizon: int,
        num_samples: int = 4,
        stride: int = 1,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ):
        self.trainer = trainer
        self.settings: dict[str, Any] = {
            "token_ids": token_ids,
            "context_length": context_length,
            "horizon": horizon,
            "num_samples": num_samples,
            "stride": stride,
            "seed": seed,
            "teacher": teacher,
        }
        #: Every report so far, with the step it was made at.
        self.reports: list[tuple[int, ExposureBias]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(state)

    def on_iteration_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not hasattr(self.trainer, "plan"):
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        report = exposure_bias(self.trainer.model, **self.settings)
        self.reports.append((state.global_step, report))
        logs = {f"exposure_bias/{name}": total.mean for name, total in report.totals.items()}
        # Past the trainer's averages of the logging interval, where it has a way.
        getattr(self.trainer, "log_now", self.trainer.log)({k: v for k, v in logs.items() if math.isfinite(v)})
