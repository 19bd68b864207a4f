"""The accuracy of graded completions, and how many had each outcome; the graders are in `trl_exbias.grading`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..grading.grades import (
    GSM8K_METHODS,
    Grading,
    Outcome,
    grade_gsm8k,
    grade_math,
    gsm8k_correct,
    math_correct,
)
from .figures import Figure


__all__ = [
    "GSM8K_METHODS",
    "Grading",
    "Outcome",
    "accuracy",
    "grade_gsm8k",
    "grade_math",
    "gsm8k_correct",
    "math_correct",
    "outcome_counts",
]


def accuracy(name: str, gradings: Mapping[str, Sequence[Grading]], settings: dict[str, Any] | None = None) -> Figure:
    """
    The accuracy over prompts, each prompt's value being the mean of its completions that could be judged.

    With the same number of completions for each prompt, `std` is the (population) standard deviation of the accuracy from
    one repetition to the next, as in the tables of Cen 2024.

    Args:
        gradings (`Mapping[str, Sequence[Grading]]`): Gradings of each prompt's completions, by the prompt's id.
    """
    values = {prompt: [grading.value for grading in row] for prompt, row in gradings.items()}
    means = {prompt: _mean(row) for prompt, row in values.items()}
    lengths, std = {len(row) for row in values.values()}, None
    if len(lengths) == 1 and max(lengths) > 1:
        columns = [_mean(column) for column in zip(*values.values(), strict=True)]
        std = float(np.std(np.array(columns, dtype=float)))  # NaN where a repetition could not be judged
    return Figure.over_prompts(name, means, settings=settings or {}, std=std)


def outcome_counts(gradings: Iterable[Grading]) -> dict[str, int]:
    """How many gradings had each outcome: to be reported with the accuracy."""
    counts = Counter(grading.outcome for grading in gradings)
    return {outcome.value: counts[outcome] for outcome in Outcome}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
