"""What a report of a comparison says, before it is written down in any form."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from ..core.errors import UsageError
from ..evaluation.figures import Figure, paired_difference
from .alike import Difference
from .compute import Compute
from .equal_compute import spent


#: The name of the model that the runs begin from.
UNTRAINED = "untrained"
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
_MAX_HEADLINE = 6
# Read side by side: a model can buy one with another.
_LIKELIHOOD = ("likelihood/cross_entropy", "likelihood/free_running", "likelihood/gap")


@dataclass(frozen=True)
class Curve:
    """A figure over the steps of the horizon, with its 95 % intervals; element 0 is step 1."""

    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Sample:
    """
    One prompt, and what each model answered.

    Args:
        prompt (`str`): As the models were given it.
        completions (`dict[str, str]`): By the model's name.
    """

    prompt: str
    completions: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """
    A run, or the model that the runs begin from.

    Args:
        name (`str`): In every table.
        method (`str`, *optional*): `None` for the untrained model.
        own (`dict`): The keys by which its recipe differs from the others'.
        compute ([`Compute`], *optional*): What it has consumed.
        figures (`dict[str, Figure]`): By `suite/figure`.
        curves (`dict[str, Curve]`): By `suite/curve`.
        model (`str`): What was evaluated.
    """

    name: str
    method: str | None
    own: dict[str, Any] = field(default_factory=dict)
    compute: Compute | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class EqualCompute:
    """What every run was to consume: `budget` of `what` (`tokens` or `seconds`), within `tolerance`, a share of it."""

    what: str
    budget: float
    tolerance: float

    def share(self, found: Compute) -> float:
        """The share of the budget that a run has consumed."""
        return spent(found, self.what) / self.budget

    def is_met(self, found: Compute) -> bool:
        return abs(self.share(found) - 1) <= self.tolerance


class Page(Protocol):
    """What the text and the page are written around: a [`Content`], or another command's heading."""

    @property
    def title(self) -> str: ...

    @property
    def runs(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Content:
    """
    Everything that a report says.

    Args:
        title (`str`): The comparison's.
        entries (`tuple[Entry, ...]`): The untrained model first, where it was evaluated; then the runs.
        equal ([`EqualCompute`], *optional*): `None` where lengths are as declared.
        allowed (`tuple[Difference, ...]`): Settings in which the runs differ all the same.
        headline (`tuple[str, ...]`): Figures of the decision table; empty for the default.
        samples (`tuple[Sample, ...]`): Prompts and answers, side by side.
        settings (`dict[str, dict]`): Whatever else shapes the figures, by a heading.
    """

    title: str
    entries: tuple[Entry, ...]
    equal: EqualCompute | None = None
    allowed: tuple[Difference, ...] = ()
    headline: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[Entry, ...]:
        """The entries that were trained."""
        return tuple(entry for entry in self.entries if entry.method is not None)

    @property
    def reference(self) -> Entry:
        """The first run: what the others are compared with."""
        return self.runs[0]

    @property
    def untrained(self) -> Entry | None:
        """The model that the runs begin from, where it was evaluated."""
        return next((entry for entry in self.entries if entry.method is None), None)

    @cached_property
    def figure_keys(self) -> tuple[str, ...]:
        """Every figure that any model has, as `suite/figure`, in the order of the evaluation."""
        return tuple(dict.fromkeys(key for entry in self.entries for key in entry.figures))

    @cached_property
    def headline_keys(self) -> tuple[str, ...]:
        """
        Figures of the decision table: those asked for, else the first of each suite that can be better or worse; for
        likelihoods, the three that belong side by side.

        Raises:
            ValueError: for a figure that was asked for and is not there.
        """
        missing = [key for key in self.headline if key not in self.figure_keys]
        if missing:
            raise UsageError(
                f"`headline`: there is no figure {', '.join(missing)}. There are: {', '.join(self.figure_keys)}."
            )
        if self.headline:
            return self.headline
        found = [key for key in _LIKELIHOOD if key in self.figure_keys]
        suites = {key.split("/")[0] for key in found}
        for key in self.figure_keys:
            figure = next(entry.figures[key] for entry in self.entries if key in entry.figures)
            if key.split("/")[0] not in suites and figure.higher_is_better is not None and figure.per_prompt:
                suites.add(key.split("/")[0])
                found.append(key)
        return tuple(found[:_MAX_HEADLINE])

    def difference(self, entry: Entry, key: str, to: Entry | None = None) -> Figure | None:
        """
        A figure minus the first run's (or another entry's), prompt by prompt; `None` where there is none.

        Raises:
            ValueError: if the two were measured otherwise, and that was not allowed.
        """
        to = self.reference if to is None else to
        if entry.name == to.name or key not in entry.figures or key not in to.figures:
            return None
        names = {difference.setting.rpartition(": ")[2] for difference in self.allowed}
        one, other = (
            replace(figure, settings={k: v for k, v in figure.settings.items() if k not in names})
            for figure in (entry.figures[key], to.figures[key])
        )
        found = paired_difference(one, other)
        return found if found.n else None


def verdict(difference: Figure | None) -> str | None:
    """Whether a paired difference is better or worse: where its interval has zero within, that is undecided."""
    if difference is None or difference.higher_is_better is None or math.isnan(difference.mean):
        return None
    if difference.low <= 0 <= difference.high:
        return UNDECIDED
    return BETTER if (difference.mean > 0) == difference.higher_is_better else WORSE


def figures_and_curves(record: Mapping[str, Any]) -> tuple[dict[str, Figure], dict[str, Curve]]:
    """The figures and curves of one model in `evaluation.json`, by `suite/figure`."""
    figures = {
        f"{suite}/{name}": Figure.from_dict(figure)
        for suite, own in record["figures"].items()
        for name, figure in own.items()
    }
    curves = {
        f"{suite}/{name}": Curve(curve["mean"], curve["low"], curve["high"])
        for suite, own in record.get("curves", {}).items()
        for name, curve in own.items()
    }
    return figures, curves
