"""What a run writes: checkpoints, the model, rollouts, the teacher's labels; and whether there is room for it."""

import os
from typing import Any

from ..core.files import existing_parent
from ..loop.plan import RunPlan
from .memory import precision
from .model import ModelFacts
from .optimizer import state_bytes
from .phases import PlannedPhase
from .placement import Placement


_ROLLOUT_BYTES = 8  # a token and its label, before parquet compresses them: at most
_TOP_K_BYTES = 8  # an id and a log-probability


def write_problem(folder: str) -> str | None:
    """Why nothing could be written to `folder`; `None` where it could."""
    parent = existing_parent(folder)
    if not parent.is_dir():
        return f"`output_dir: {folder}` cannot be made: {parent} is a file."
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"`output_dir: {folder}` cannot be written to: no permission in {parent}."
    return None


def saved_model_bytes(facts: ModelFacts, placement: Placement, is_adapter: bool) -> int:
    """Bytes of the model as it is saved: adapters alone where there are some, half precision under ZeRO with mixed precision."""
    saved = facts.trained if is_adapter else facts.parameters
    mixed = precision(placement)
    if placement.is_zero and mixed is not None:
        return sum(parameter.numel * mixed.itemsize for parameter in saved)
    return sum(parameter.bytes for parameter in saved)


def checkpoint_bytes(facts: ModelFacts, placement: Placement, args: Any, is_adapter: bool) -> int:
    """Bytes of one checkpoint: the model and, unless `save_only_model`, what the optimizer keeps of it on all devices."""
    model = saved_model_bytes(facts, placement, is_adapter)
    if args.save_only_model:
        return model
    states = state_bytes(args.optim, facts.trained, in_float32=placement.shards_optimizer > 1 or placement.is_zero) or 0
    # DeepSpeed's own files: the float32 weights, and the model once more.
    return model + states + (4 * facts.num_trained + model if placement.is_zero else 0)


def num_checkpoints(args: Any, plan: RunPlan) -> int:
    """Checkpoints that stand at the end, with those that are saved before each rollout phase."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    ends = {epoch.last_step for epoch in plan.epochs}
    phase_ends = {first for first, _ in plan.segments() if first > 0}
    steps: set[int] = set()
    if strategy == "epoch":
        steps = ends
    elif strategy == "steps":
        every = args.save_steps if args.save_steps >= 1 else max(1, int(plan.total_steps * args.save_steps))
        steps = {*range(int(every), plan.total_steps + 1, int(every)), plan.total_steps}
    elif strategy == "best":
        steps = {plan.total_steps}
    if steps and not args.save_only_model:
        steps = steps | phase_ends
    number = len(steps)
    return number if args.save_total_limit is None else min(number, args.save_total_limit)


def rollout_bytes(phases: list[PlannedPhase]) -> int | None:
    """Bytes of all rollouts of a run, at most; `None` where their tokens are not known."""
    tokens = [phase.rollout_tokens for phase in phases if phase.rollout_tokens is not None]
    return _ROLLOUT_BYTES * sum(tokens) if len(tokens) == len(phases) else None


def soft_label_bytes(positions: int, teacher: ModelFacts | None, top_k: int | None) -> int:
    """Bytes of the teacher's labels at `positions` positions: its last hidden states, or its top k and the mass of the rest."""
    if top_k is None:
        assert teacher is not None, "hidden states are of a model that is known"
        return positions * teacher.hidden_size * teacher.head_dtype.itemsize
    return positions * (_TOP_K_BYTES * top_k + 4)


def trunk_bytes(phases: list[PlannedPhase], row_tokens: float, state_bytes: int) -> int:
    """Bytes of the frozen layers' output for every row once, and for every rollout."""
    rows = max(phase.rows or 0 for phase in phases)
    return state_bytes * round(rows * row_tokens + sum(phase.rollout_tokens or 0 for phase in phases))
