"""A figure of an evaluation: one number over many prompts, with what one must know to believe it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..core.errors import UsageError
from .bootstrap import bootstrap_interval


@dataclass(frozen=True)
class Figure:
    """
    A mean over prompts with its 95 % bootstrap interval, prompts being resampled whole.

    Args:
        name (`str`): What is measured, e.g. `"rouge_l"`.
        mean, low, high (`float`): The mean and the ends of its interval. NaN where no prompt has a value.
        n (`int`): Prompts in the mean.
        missing (`int`): Prompts without a value (an unparseable verdict): left out of the mean, never counted as a zero.
        higher_is_better (`bool`, *optional*): `None` where neither is better, e.g. a length.
        settings (`dict`): Everything that shapes the figure: two figures with unlike settings must not be compared.
        per_prompt (`dict[str, float]`): The value of each prompt that has one, by the prompt's id.
        std (`float`, *optional*): Standard deviation, over repeated generations, of the mean over prompts.
    """

    name: str
    mean: float
    low: float
    high: float
    n: int
    missing: int = 0
    higher_is_better: bool | None = True
    settings: dict[str, Any] = field(default_factory=dict)
    per_prompt: dict[str, float] = field(default_factory=dict)
    std: float | None = None

    @classmethod
    def over_prompts(cls, name: str, values: Mapping[str, float | None], **fields: Any) -> "Figure":
        """The figure of one value a prompt, by the prompt's id; `None` is a missing value."""
        there = {str(key): float(value) for key, value in values.items() if value is not None}
        mean, low, high = _mean_and_interval(np.array(list(there.values())))
        return cls(name, mean, low, high, len(there), len(values) - len(there), per_prompt=there, **fields)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, which has no NaN: `None` there. `from_dict` reads it back."""
        record = asdict(self)
        return record | {name: None for name in ("mean", "low", "high") if math.isnan(record[name])}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Figure":
        return cls(**{**record, **{name: math.nan for name in ("mean", "low", "high") if record[name] is None}})

    def __str__(self) -> str:
        text = f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"
        return text if self.std is None else f"{text} ± {self.std:.2g}"


def token_mean(name: str, ids: list[str], sums: np.ndarray, counts: np.ndarray, settings: dict[str, Any]) -> Figure:
    """
    A mean over tokens, `R = Σ sums / Σ counts`, one sum and one count a prompt.

    A ratio, linearised by prompt: a prompt's value is `R` plus its pull on it, `(sum − R · count) / mean count`. Their mean
    is `R`, their bootstrap interval that of the ratio, and of two models on the same tokens the mean of their differences
    is the difference of the ratios.
    """
    ratio = sums.sum() / counts.sum()
    values = ratio + (sums - ratio * counts) / counts.mean()
    per_prompt = dict(zip(ids, values.tolist(), strict=True))
    return Figure.over_prompts(name, per_prompt, higher_is_better=False, settings=settings)


def paired_difference(one: Figure, other: Figure) -> Figure:
    """
    `one − other`, prompt by prompt, over the prompts that both have, with its paired bootstrap interval.

    Raises:
        ValueError: if the two are not the same measurement; the message names what differs.
    """
    differing = sorted(
        key for key in {*one.settings, *other.settings} if one.settings.get(key) != other.settings.get(key)
    )
    if one.name != other.name or differing:
        what = ", ".join(f"`{k}` ({one.settings.get(k)!r} and {other.settings.get(k)!r})" for k in differing)
        raise UsageError(f"{one.name} and {other.name} cannot be compared: {what or 'they measure different things'}.")
    shared = {key: value - other.per_prompt[key] for key, value in one.per_prompt.items() if key in other.per_prompt}
    mean, low, high = _mean_and_interval(np.array(list(shared.values())))
    missing = len({*one.per_prompt, *other.per_prompt}) - len(shared)
    name = f"{one.name} (difference)"
    return Figure(name, mean, low, high, len(shared), missing, one.higher_is_better, one.settings, shared)


def _mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    if not len(values):
        return (float("nan"),) * 3
    low, high = bootstrap_interval(values)
    return float(values.mean()), float(low), float(high)
