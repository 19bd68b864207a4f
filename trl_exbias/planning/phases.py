"""The phases of a run: rows, steps, and tokens trained on and rolled out."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..loop.plan import Phase, RunPlan, batches_per_epoch, phases_of
from ..settings.phase_plan import MeanLengths, PhasePlan
from .lengths import Lengths


@dataclass(frozen=True)
class Layout:
    """
    The longest micro-batch of a phase: what its memory is planned for.

    Args:
        rows, length (`int`): The shape of `input_ids`.
        scored (`int`): Positions with a label.
    """

    rows: int
    length: int
    scored: int


@dataclass(frozen=True)
class PlannedPhase:
    """
    Args:
        name (`str`): `"SFT"` or `"iteration <k>"`.
        iteration (`int`): 0 for the SFT phase.
        rows (`int`, *optional*): Rows of its data set; `None` where not known, like all that follows from it.
        epochs (`float`): Passes over them.
        steps (`int`, *optional*): Optimizer updates.
        tokens (`int`, *optional*): Trained on, over all epochs, without padding.
        rollout_rows (`int`, *optional*): Rows rolled out before it; 0 where it trains on gold alone.
        rollout_tokens (`int`, *optional*): Tokens of these rollouts; for RAC and SPIN at most.
        label_tokens (`int`, *optional*):
            Read for labels before it: by the policy itself (RAC, SPIN), by a teacher whose labels are kept (DaD-DAgger).
        online_tokens (`int`, *optional*):
            Over all epochs, besides those trained on: drawn as it trains (scheduled sampling), or read along by a teacher.
        layout ([`Layout`], *optional*): Its longest micro-batch.
    """

    name: str
    iteration: int
    rows: int | None
    epochs: float
    steps: int | None
    tokens: int | None
    rollout_rows: int | None
    rollout_tokens: int | None
    label_tokens: int | None
    online_tokens: int | None
    layout: Layout | None


@dataclass(frozen=True)
class RunShape:
    """
    What a method makes of a row, in numbers.

    Args:
        plan ([`PhasePlan`]): The method's.
        args (`Any`): The method's configuration.
        lengths ([`Lengths`], *optional*): Lengths of the first rows; `None` if there is no tokenizer or no data.
        shared (`bool`): Whether the branches of a context share its encoding.
        labels_prompts (`bool`): Whether prompts are trained on too (conversations, plain text).
    """

    plan: PhasePlan
    args: Any
    lengths: Lengths | None
    shared: bool = True
    labels_prompts: bool = False

    @property
    def rolls_out(self) -> bool:
        """Whether any iteration has rollouts."""
        return any(self.branches(i + 1) for i in range(self.args.num_iterations))

    def branches(self, iteration: int) -> int:
        """Rollouts that a row has in addition to its gold branch."""
        return self.plan.branches(self.args, iteration)

    def new_branches(self, iteration: int) -> int:
        """Rollouts of a row that are made just before the iteration."""
        return self.plan.new_branches(self.args, iteration)

    def branch_length(self, context: float, response: float) -> float:
        """Tokens of a rollout; where it may stop earlier, at most."""
        return self.plan.branch_length(self.args, context, response)

    @property
    def mean(self) -> MeanLengths:
        """Mean tokens of a row."""
        lengths = self.lengths
        assert lengths is not None, "asked for where rows have been looked at"
        return MeanLengths(lengths.mean_context, lengths.mean_response, mean_branch(self), lengths.mean_correction)

    def tokens(self, iteration: int, rolled_out: float) -> float | None:
        """Mean tokens of a row of an iteration, `rolled_out` being the share of rows with branches."""
        if self.lengths is None:
            return None
        total = 0.0
        for context, response in self.lengths.rows:
            branch, number = self.branch_length(context, response), rolled_out * self.branches(iteration)
            total += context + response + number * (branch if self.shared else branch + context)
        return total / max(1, len(self.lengths.rows))

    def label_tokens(self, iteration: int, rows: int, rolled_out: int) -> int:
        """Tokens read for labels before an iteration of that many rows and new rollouts."""
        return round(self.plan.label_tokens(self.args, self.mean, iteration, rows, rolled_out))

    def online_tokens(self, iteration: int, mixed: float, trained: int) -> int:
        """Tokens drawn, or read by a teacher, in the steps of an iteration, which mixes `mixed` rows and trains on `trained`."""
        return round(self.plan.online_tokens(self.args, self.mean, iteration, mixed, trained))

    def layout(self, iteration: int) -> Layout | None:
        """A micro-batch of the longest rows: as long as `max_length` allows, with the first rows' share of prompt."""
        longest = self.args.max_length
        if self.lengths is not None and self.lengths.rows:
            seen = max(context + response for context, response in self.lengths.rows)
            is_fixed = self.plan.has_teacher and len({sum(row) for row in self.lengths.rows}) == 1
            longest = seen if longest is None or is_fixed else longest
            share = self.lengths.mean_context / max(1.0, self.lengths.mean_context + self.lengths.mean_response)
        else:
            share = 0.0
        if longest is None:
            return None
        context = share * longest
        response = longest - context
        number, branch = self.branches(iteration), self.branch_length(context, response)
        batch = self.args.per_device_train_batch_size
        scored = batch * (response + number * branch + (context if self.labels_prompts else 0))
        if not number or self.shared:
            return Layout(batch, math.ceil(longest + number * branch), math.ceil(scored))
        return Layout(batch * (1 + number), math.ceil(max(longest, context + branch)), math.ceil(scored))


def plan_phases(
    shape: RunShape, args: Any, num_rows: int | None, num_processes: int
) -> tuple[list[PlannedPhase], RunPlan | None]:
    """
    The phases of a run, and its epochs where the number of rows is known.

    Args:
        num_rows (`int`, *optional*): Rows that the trainer trains on (turns, trajectories).
    """
    joint_rows = num_rows
    if num_rows is not None and shape.rolls_out and args.sft_weight == 0 and args.num_rollouts is not None:
        joint_rows = min(args.num_rollouts, num_rows)
    planned = phases_of(args, num_rows, joint_rows)  # type: ignore[arg-type]  # of unknown rows, no run is planned
    plan = None
    if num_rows is not None:
        batches = partial(batches_per_epoch, args, args.per_device_train_batch_size, num_processes)
        plan = RunPlan(planned, batches, args.gradient_accumulation_steps, args.max_steps)
    phases = []
    for phase in planned:
        own = [] if plan is None else [epoch for epoch in plan.epochs if epoch.iteration == phase.iteration]
        if phase.num_epochs == 0 or (plan is not None and not own):
            continue
        phases.append(_planned(shape, args, phase, own, plan is not None))
    return phases, plan


def _planned(shape: RunShape, args: Any, phase: Phase, epochs: list, is_known: bool) -> PlannedPhase:
    rows, iteration = phase.num_rows, phase.iteration
    rollout_rows: int | None = 0
    if shape.branches(iteration):
        # A number of rollouts is exact only where it is known that there are as many rows.
        rollout_rows = args.num_rollouts if rows is None else min(args.num_rollouts or rows, rows)
    share = 1.0 if not rows or rollout_rows is None else rollout_rows / rows
    per_row = shape.tokens(iteration, share)
    steps = sum(epoch.num_updates for epoch in epochs) if is_known else None
    # A pass that is cut short reads fewer rows.
    num_epochs = phase.num_epochs
    if is_known:
        full = max(epoch.num_updates for epoch in epochs)
        num_epochs = round(steps / full, 2) if args.max_steps > 0 else phase.num_epochs
    rollout_tokens: int | None = 0
    if made := shape.new_branches(iteration):
        known = shape.lengths is not None and rollout_rows is not None
        rollout_tokens = round((rollout_rows or 0) * made * mean_branch(shape)) if known else None
    tokens = None if rows is None or per_row is None else round(rows * num_epochs * per_row)
    labels = online = None
    if tokens is not None and rollout_rows is not None:
        labels = shape.label_tokens(iteration, rows, rollout_rows if shape.new_branches(iteration) else 0)
        online = shape.online_tokens(iteration, rollout_rows * num_epochs, tokens)
    return PlannedPhase(
        name="SFT" if iteration == 0 else f"iteration {iteration}",
        iteration=iteration,
        rows=rows,
        epochs=num_epochs,
        steps=steps,
        tokens=tokens,
        rollout_rows=rollout_rows if shape.new_branches(iteration) else 0,
        rollout_tokens=rollout_tokens,
        label_tokens=labels,
        online_tokens=online,
        layout=shape.layout(iteration),
    )


def mean_branch(shape: RunShape) -> float:
    """Mean tokens of a rollout; where it may stop earlier, at most."""
    assert shape.lengths is not None
    rows = shape.lengths.rows
    return sum(shape.branch_length(context, response) for context, response in rows) / max(1, len(rows))
