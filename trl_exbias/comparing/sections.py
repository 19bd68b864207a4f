"""What a report has, in order: first what to decide by, last what it all depends on."""

from dataclasses import dataclass, field

from .content import Content, Sample
from .tables import (
    Table,
    cost_table,
    decision_table,
    improvement_table,
    quality_table,
    runs_table,
    settings_table,
)
from .words import count, seconds


# Below it a percentile bootstrap's interval covers less than it says.
_FEW = 30


@dataclass(frozen=True)
class Section:
    """
    Args:
        title (`str`), texts (`list[str]`): Its heading, and paragraphs with code spans in backticks.
        warnings (`list[str]`): What a reader must not miss.
        tables (`list[Table]`), plots (`list[str]`), samples (`list[Sample]`): What it shows; plots by their names.
    """

    title: str
    texts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def sections(content: Content) -> list[Section]:
    """All parts of the report that there is something to say in."""
    has_costs = any(entry.compute is not None for entry in content.runs)
    improvement = improvement_table(content)
    found = [
        Section("Decision", _equality(content), warnings(content), [decision_table(content)], ["figures"]),
        Section("Exposure bias", _CURVES, plots=["curves"]) if any(e.curves for e in content.entries) else None,
        Section("All figures", tables=[quality_table(content)]),
        Section("Cost", tables=[cost_table(content)], plots=["tokens", "seconds"]) if has_costs else None,
        Section("Improvement for what was spent", tables=[improvement]) if improvement is not None else None,
        Section("Samples", _SAMPLES, samples=list(content.samples)) if content.samples else None,
        Section("Runs and settings", tables=[runs_table(content), *map(settings_table, content.settings.values())]),
    ]
    return [section for section in found if section is not None]


_CURVES = [
    "Cross-entropy of the true token, step by step, after the model's own words (free running) and after the true ones "
    "(teacher-forced); the gap is their difference and 0 at step 1. It compares models on the same data and is not an absolute "
    "measure of exposure bias: even the true distribution has a positive gap. A model can lower it by hedging, so read it "
    "together with the teacher-forced figure."
]
_SAMPLES = ["The first response of each model to the same prompts, spread evenly over the data; not chosen."]


def _equality(content: Content) -> list[str]:
    equal = content.equal
    if equal is None:
        return ["Run lengths are as declared: the runs did not consume the same. See the cost before the quality."]
    budget = count(round(equal.budget)) if equal.what == "tokens" else seconds(equal.budget)
    counted = "trained + generated + teacher tokens" if equal.what == "tokens" else "seconds of all phases"
    return [
        f"Equal compute: every run was to consume {budget} {counted}, within {equal.tolerance:.0%}. What each consumed is "
        "next to its figures."
    ]


def warnings(content: Content) -> list[str]:
    """What makes the comparison less than it says."""
    found = [f"The runs differ, as was allowed, in {difference}." for difference in content.allowed]
    sizes = [figure.n for entry in content.entries for figure in entry.figures.values() if figure.n]
    if min(sizes, default=_FEW) < _FEW:
        found.append(f"Some figures are over {min(sizes)} prompts: intervals over fewer than {_FEW} are too narrow.")
    if content.equal is not None:
        found += [
            f"`{entry.name}` consumed {content.equal.share(entry.compute):.1%} of the budget: not at equal compute."
            for entry in content.runs
            if entry.compute is not None and not content.equal.is_met(entry.compute)
        ]
    return found
