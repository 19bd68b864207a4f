"""Rollouts that there is nothing to learn from: a warning with their rate, and an end to the run where it is nearly all."""

import logging
from pathlib import Path

from ..rollouts.counting import DEGENERATE, EMPTY, REPEATED, TRUNCATED, UNFINISHED
from ..run.errors import DegenerateRolloutsError


logger = logging.getLogger(__name__)

#: From this share of degenerate rollouts on, there is a warning.
WARN_FROM = 0.3
#: A share of fewer responses than these is not a reason to stop a run.
STOP_FROM_RESPONSES = 32


def check_rollouts(metrics: dict[str, float], num_responses: float, max_rate: float, folder: Path) -> None:
    """
    Judges a rollout phase by its metrics (see [`~trl_exbias.rollouts.counting.CountingEngine`]).

    Args:
        metrics (`dict[str, float]`): The whole phase's.
        num_responses (`float`): How many responses they are about.
        max_rate (`float`): Share of degenerate ones that is put up with.
        folder (`Path`): The folder of the rollouts.

    Raises:
        DegenerateRolloutsError: where more than `max_rate` of 32 or more sampled responses are degenerate.
    """
    rate = metrics.get(DEGENERATE, 0.0)
    if rate < WARN_FROM:
        return
    what = f"{rate:.0%} of the rollouts in {folder} are degenerate: {_kinds(metrics)}"
    if rate <= max_rate or num_responses < STOP_FROM_RESPONSES:
        logger.warning(f"{what}. {_remedy(metrics)}")
        return
    raise DegenerateRolloutsError(
        f"{what}; `max_degenerate_rate` is {max_rate:g}. They are kept: look at them (they are ordinary parquet files). "
        f"{_remedy(metrics)} Then continue with `resume_from_checkpoint=True`: with another `max_new_tokens` the phase is "
        "rolled out again. To train on them as they are, continue with `max_degenerate_rate=1`."
    )


def warn_of_first(metrics: dict[str, float], num_responses: float, folder: Path) -> None:
    """Says at once what the first rollouts of a phase look like, where they are degenerate: a phase may take hours."""
    if metrics.get(DEGENERATE, 0.0) >= WARN_FROM and num_responses >= STOP_FROM_RESPONSES:
        logger.warning(
            f"{metrics[DEGENERATE]:.0%} of the first {num_responses:.0f} rollouts in {folder} are degenerate: "
            f"{_kinds(metrics)}. {_remedy(metrics)} The phase continues; to change a setting, stop the run and resume it."
        )


def _kinds(metrics: dict[str, float]) -> str:
    return (
        f"{metrics[EMPTY]:.0%} empty, {metrics.get(UNFINISHED, 0):.0%} ended in the middle of a turn (right after `<think>`, say), "
        f"{metrics[TRUNCATED]:.0%} cut off at `max_new_tokens`, {metrics[REPEATED]:.0%} one token over and over"
    )


def _remedy(metrics: dict[str, float]) -> str:
    if metrics[TRUNCATED] >= metrics[DEGENERATE] / 2:
        return (
            "Raise `max_new_tokens` if the answers are longer than that; else the model does not end them: is the chat template "
            "its own, and does it end its answers with the stop token?"
        )
    return "Is the chat template the model's own, and does it end its answers with the stop token?"
