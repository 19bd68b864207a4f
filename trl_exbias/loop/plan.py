"""The whole run as one list of epochs: what the LR schedule, the progress bar and a resumed run go by.

`Trainer` plans for epochs of equal length. Here they differ in their data and, with fractional epochs or methods that
drop rows, in their length, so the plan is made once, up front, from row counts alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainingArguments


SFT = "sft"
JOINT = "joint"


@dataclass(frozen=True)
class PlannedEpoch:
    """
    One pass over the data of a phase.

    Args:
        iteration (`int`): 0 for the SFT phase, 1.. for the joint phases.
        first_step (`int`): Global step (optimizer updates done) at which it begins.
        num_updates (`int`): Optimizer updates in it.
        num_batches (`int`): Batches that one process takes for them.
        num_rows (`int`): Rows of its data set.
    """

    iteration: int
    first_step: int
    num_updates: int
    num_batches: int
    num_rows: int

    @property
    def phase(self) -> str:
        return SFT if self.iteration == 0 else JOINT

    @property
    def last_step(self) -> int:
        return self.first_step + self.num_updates


@dataclass(frozen=True)
class Phase:
    """What the plan is made from: `num_epochs` (possibly fractional) over `num_rows` rows."""

    iteration: int
    num_epochs: float
    num_rows: int


class RunPlan:
    """
    Lays the phases of a run out as epochs.

    Args:
        phases (`list[Phase]`):
            In order. A fractional number of epochs ends in a shortened one, as in `Trainer`.
        batches_per_epoch (`Callable[[int], int]`):
            Batches that one process draws from a data set of a number of rows.
        gradient_accumulation_steps (`int`):
            Batches of one optimizer update.
        max_steps (`int`, *optional*, defaults to `-1`):
            If positive, the number of updates in all: a longer plan is cut, a shorter one continues with further epochs
            of its last phase.
    """

    def __init__(
        self,
        phases: list[Phase],
        batches_per_epoch: Callable[[int], int],
        gradient_accumulation_steps: int,
        max_steps: int = -1,
    ):
        self.epochs: list[PlannedEpoch] = []
        self._accumulation = gradient_accumulation_steps
        self._batches_per_epoch = batches_per_epoch
        for phase in phases:
            budget = math.ceil(phase.num_epochs * self._updates(phase.num_rows))
            self._append(phase, budget)
        self._planned = {phase.iteration: self.num_updates(phase.iteration) for phase in phases}
        if max_steps > 0:
            self._append(phases[-1], max_steps - self.total_steps)
            self._cut(max_steps)

    @property
    def total_steps(self) -> int:
        return self.epochs[-1].last_step if self.epochs else 0

    @property
    def num_samples(self) -> int:
        """Rows read over the whole run, counting a row each time."""
        return sum(epoch.num_rows for epoch in self.epochs)

    def num_updates(self, iteration: int) -> int:
        """Optimizer updates of a phase."""
        return sum(epoch.num_updates for epoch in self.epochs if epoch.iteration == iteration)

    def epoch_at(self, step: int) -> float:
        """Passes over the data in the first `step` updates, as `Trainer` counts them; a shortened one counts in part."""
        passes = 0.0
        for epoch in self.epochs:
            whole = self._batches_per_epoch(epoch.num_rows)
            if step <= epoch.last_step:
                return passes + min((step - epoch.first_step) * self._accumulation, epoch.num_batches) / whole
            passes += epoch.num_batches / whole
        return passes

    def unreached(self, max_steps: int) -> str | None:
        """What a run does not come to because `max_steps` ends it, as a warning; `None` if it comes to all."""
        left_out = [i for i, planned in self._planned.items() if planned and not self.num_updates(i)]
        if not left_out:
            return None
        last, first = self.epochs[-1].iteration, left_out[0]
        if last == 0:
            return (
                f"`max_steps={max_steps}` ends the run in its SFT phase of {self._planned[0]} steps: nothing is rolled out. "
                "Raise it, or lower `sft_epochs`."
            )
        missing = f"iteration {first} is" if len(left_out) == 1 else f"iterations {first} to {left_out[-1]} are"
        return f"`max_steps={max_steps}` ends the run in iteration {last}: {missing} left out."

    def segments(self) -> list[tuple[int, int]]:
        """`(first step, number of steps)` of each phase, in order."""
        firsts: dict[int, int] = {}
        for epoch in self.epochs:
            firsts.setdefault(epoch.iteration, epoch.first_step)
        bounds = [*firsts.values(), self.total_steps]
        return [(first, following - first) for first, following in zip(bounds, bounds[1:], strict=False)]

    def locate(self, global_step: int) -> tuple[int, int]:
        """`(epoch index, updates already done in it)` of a run that has done `global_step` updates."""
        for index, epoch in enumerate(self.epochs):
            if global_step < epoch.last_step:
                return index, global_step - epoch.first_step
        return len(self.epochs), 0

    def first_step(self, iteration: int) -> int:
        """Global step at which a phase begins."""
        return min(epoch.first_step for epoch in self.epochs if epoch.iteration == iteration)

    def iteration_at(self, step: int) -> int:
        """The phase whose updates led to global step `step` (0 for the SFT phase, and before the first update)."""
        reached = [epoch for epoch in self.epochs if epoch.first_step < step]
        return reached[-1].iteration if reached else 0

    def end_iteration(self, iteration: int, step: int) -> int:
        """
        Ends a phase at `step`, ahead of its time: drops what was planned after it and moves the later phases up.

        Returns:
            `int`: The number of updates dropped.
        """
        dropped, kept = 0, []
        for epoch in self.epochs:
            if epoch.iteration == iteration:
                taken = min(max(step - epoch.first_step, 0), epoch.num_updates)
                dropped += epoch.num_updates - taken
                if taken == 0:
                    continue
                if taken < epoch.num_updates:
                    epoch = replace(epoch, num_updates=taken, num_batches=taken * self._accumulation)
            elif epoch.first_step >= step:
                epoch = replace(epoch, first_step=epoch.first_step - dropped)
            kept.append(epoch)
        self.epochs = kept
        return dropped

    def _updates(self, num_rows: int) -> int:
        return max(1, math.ceil(self._batches_per_epoch(num_rows) / self._accumulation))

    def _append(self, phase: Phase, budget: int) -> None:
        batches, updates = self._batches_per_epoch(phase.num_rows), self._updates(phase.num_rows)
        while budget > 0:
            taken = min(updates, budget)
            num_batches = batches if taken == updates else taken * self._accumulation
            self.epochs.append(PlannedEpoch(phase.iteration, self.total_steps, taken, num_batches, phase.num_rows))
            budget -= taken

    def _cut(self, max_steps: int) -> None:
        kept = [epoch for epoch in self.epochs if epoch.first_step < max_steps]
        last = kept[-1]
        if last.last_step > max_steps:
            taken = max_steps - last.first_step
            kept[-1] = PlannedEpoch(last.iteration, last.first_step, taken, taken * self._accumulation, last.num_rows)
        self.epochs = kept


def phases_of(settings: Any, rows: int, joint_rows: int) -> list[Phase]:
    """
    The phases that some settings ask for.

    Args:
        settings (`Any`): Has `sft_epochs`, `num_iterations`, `num_train_epochs` and `epochs_per_iteration`.
        rows, joint_rows (`int`): Rows of the SFT phase's data set, and of the iterations'.
    """
    epochs = settings.epochs_per_iteration or [settings.num_train_epochs] * settings.num_iterations
    joint = [Phase(i, num_epochs, joint_rows) for i, num_epochs in enumerate(epochs, start=1)]
    return [Phase(0, settings.sft_epochs, rows), *joint]


def batches_per_epoch(args: TrainingArguments, batch_size: int, num_processes: int, num_rows: int) -> int:
    """Batches that a loader of `num_rows` rows gives to each process (the arithmetic of `DataLoader` and accelerate)."""
    divide = math.floor if args.dataloader_drop_last else math.ceil
    batches = divide(num_rows / batch_size)
    return batches if args.accelerator_config.split_batches else divide(batches / num_processes)
