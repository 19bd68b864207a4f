"""Rollouts that there is nothing to learn from: a warning with their rate, and an end to the run where it is nearly all."""

import logging
from pathlib import Path

from ..rollouts.watched import DEGENERATE, EMPTY, REPEATED, TRUNCATED, UNFINISHED
from .run_stopped import DegenerateRolloutsError


logger = logging.getLogger(__name__)

#: From this share of degenerate rollouts on, there is a warning.
WARN_FROM = 0.3
#: A share of fewer responses than these is no ground to stop a run on.
STOP_FROM_RESPONSES = 32


def check_rollouts(metrics: dict[str, float], num_responses: float, max_rate: float, folder: Path) -> None:
    """
    Judges a rollout phase by its metrics (see [`~trl_exbias.rollouts.watched.WatchedEngine`]).

    Args:
        metrics (`dict[str, float]`): Of the whole phase.
        num_responses (`float`): How many responses they are about.
        max_rate (`float`): Share of degenerate ones that is put up with.
        folder (`Path`): Of the rollouts.

    Raises:
        DegenerateRolloutsError: where more than `max_rate` of 32 or more sampled responses are degenerate.
    """
    rate = metrics.get(DEGENERATE, 0.0)
    if rate < WARN_FROM:
        return
    what = (
        f"{rate:.0%} of the rollouts in {folder} are degenerate: {metrics[EMPTY]:.0%} empty, {metrics.get(UNFINISHED, 0):.0%} ended "
        f"in the middle of a turn (right after `<think>`, say), {metrics[TRUNCATED]:.0%} cut off at `max_new_tokens`, "
        f"{metrics[REPEATED]:.0%} one token over and over"
    )
    if rate <= max_rate or num_responses < STOP_FROM_RESPONSES:
        logger.warning(f"{what}.")
        return
    raise DegenerateRolloutsError(
        f"{what}; `max_degenerate_rate` is {max_rate:g}. They are kept: look at them (they are ordinary parquet files). "
        "Is the chat template the model's own, and does it end its answers with the stop token? To train on them as they "
        "are, go on with `max_degenerate_rate=1` and `resume_from_checkpoint=True`."
    )
