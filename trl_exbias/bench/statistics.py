"""Means over seeds and paired intervals."""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """
    Args:
        mean (`float`): Mean of an arm's value minus the baseline's under the same seed.
        half_width (`float`): Half the width of its 95 % t-interval over seeds; infinite with one seed.
        seeds (`int`): How many pairs.
    """

    mean: float
    half_width: float
    seeds: int

    @property
    def is_above_zero(self) -> bool:
        return self.mean - self.half_width > 0

    @property
    def is_below_zero(self) -> bool:
        return self.mean + self.half_width < 0


def paired_difference(values: dict[int, float | None], baseline: dict[int, float | None]) -> Difference | None:
    """The paired difference of two arms, each by seed; `None` where they have no seed in common."""
    from scipy.stats import t

    pairs = [
        value - beside
        for seed, value in values.items()
        if value is not None and (beside := baseline.get(seed)) is not None
    ]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Difference(pairs[0], math.inf, 1)
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(statistics.mean(pairs), float(t.ppf(0.975, len(pairs) - 1)) * error, len(pairs))


def mean(values: dict[int, float | None]) -> float | None:
    """Over the seeds that have a value."""
    found = [value for value in values.values() if value is not None]
    return statistics.mean(found) if found else None
