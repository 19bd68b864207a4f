"""The report of a bench: `report.md`, `report.html` and `report.json`, made again from the results that are there."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..comparing.html import render_html
from ..comparing.report import render_markdown
from ..comparing.sections import Section
from ..comparing.tables import Cell, Table
from ..comparing.words import ARROWS, count, number, signed
from .arms import BASELINE
from .measures import MEASURES, Measure
from .statistics import Difference, mean, paired_difference
from .tasks import TASKS


#: By arm, measure and seed.
Values = dict[str, dict[str, dict[int, float | None]]]


@dataclass(frozen=True)
class _Page:
    title: str
    runs: list = field(default_factory=list)


def write_report(results: list[dict[str, Any]], starts: list[dict[str, Any]], folder: Path) -> list[Path]:
    """
    Writes the three files and returns their paths.

    Args:
        results (`list[dict]`): Results of the arms, in their order.
        starts (`list[dict]`): Results of the starting models.
    """
    values = by_task([*starts, *results])
    consumed = _consumed(results)
    parts = [_overview(values), *(_section(task, arms, consumed) for task, arms in values.items()), _meaning()]
    page = _Page("Does it cure?")
    written = {
        "report.md": render_markdown(page, parts, []),
        "report.html": render_html(page, parts, []),
        "report.json": json.dumps(_as_dict(values), indent=1),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def by_task(results: list[dict[str, Any]]) -> dict[str, Values]:
    """Values by task, arm, measure and seed; tasks in the order of [`TASKS`]."""
    found: dict[str, Values] = {}
    for name in TASKS:
        arms: Values = defaultdict(lambda: defaultdict(dict))
        for result in results:
            if result["task"] == name:
                for key, value in result["values"].items():
                    arms[result["arm"]][key][result["seed"]] = value
        if arms:
            found[name] = {arm: dict(measures) for arm, measures in arms.items()}
    return found


def differences(arms: Values, arm: str) -> dict[str, Difference | None]:
    """Each measure of an arm against the baseline's."""
    return {m.key: paired_difference(arms[arm][m.key], arms[BASELINE][m.key]) for m in MEASURES}


def _overview(values: dict[str, Values]) -> Section:
    rows = []
    for name, arms in values.items():
        if BASELINE not in arms:
            continue
        for arm in arms:
            if arm in ("start", BASELINE):
                continue
            found = differences(arms, arm)
            cells = [_difference_cell(found[key], 100, "", True) for key in ("final_greedy", "whole_sampled")]
            cells += [_difference_cell(found["kl_own"], 1, "", False)]
            rows.append([Cell(f"{name}: {arm}"), Cell("yes" if TASKS[name].gold_stays_right else "no"), *cells])
    head = [
        "task: method",
        "gold stays right",
        "final answer, points",
        "whole response (T = 1), points",
        "KL on own states, nats",
    ]
    return Section(
        "What a method changes",
        [
            "Every arm of a seed starts from the same weights and consumes as many tokens: trained, generated, and read for "
            f"labels. Differences are against `{BASELINE}`, as many tokens of SFT, with paired 95 % intervals over seeds.",
            "*Gold stays right* says whether, after a wrong or a different token, gold is still the right next token and can be "
            "found: the question to ask of one's own data first.".replace("*", ""),
        ],
        tables=[Table(head, rows)],
    )


def _section(name: str, arms: Values, consumed: dict[tuple[str, str], float]) -> Section:
    head = ["method", *(f"{m.title} {ARROWS[m.higher_is_better]}" for m in MEASURES), "tokens"]
    rows = []
    for arm, measures in arms.items():
        found = differences(arms, arm) if BASELINE in arms and arm not in ("start", BASELINE) else {}
        cells = [_value_cell(m, mean(measures[m.key]), found.get(m.key)) for m in MEASURES]
        tokens = consumed.get((name, arm))
        rows.append([Cell(arm), *cells, Cell(count(None if tokens is None else round(tokens)))])
    seeds = max(len(measures[MEASURES[0].key]) for measures in arms.values())
    return Section(
        name, [f"{TASKS[name].about} Means over {seeds} seed{'s'[: seeds > 1]}."], tables=[Table(head, rows)]
    )


def _meaning() -> Section:
    rows = [[Cell(m.title), Cell("yes" if m.is_evidence else "no"), Cell(m.meaning)] for m in MEASURES]
    return Section("What the columns mean", tables=[Table(["column", "evidence of a cure", "verdict"], rows)])


def _value_cell(measure: Measure, value: float | None, difference: Difference | None) -> Cell:
    text = "–" if value is None else f"{value:.3f}"
    if difference is None:
        return Cell(text)
    marked = _difference_cell(difference, 1, "", measure.higher_is_better)
    return Cell(text, marked.text, marked.tone if measure.is_evidence else "")


def _difference_cell(difference: Difference | None, factor: float, unit: str, higher_is_better: bool) -> Cell:
    if difference is None:
        return Cell("–")
    better, worse = difference.is_above_zero, difference.is_below_zero
    if not higher_is_better:
        better, worse = worse, better
    tone = "better" if better else "worse" if worse else ""
    width = "" if difference.seeds == 1 else f" ± {number(difference.half_width * factor)}"
    return Cell(f"{signed(difference.mean * factor)}{width}{unit}", tone=tone)


def _consumed(results: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Mean tokens of each task and arm."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for result in results:
        spent = result["consumed"]
        found[result["task"], result["arm"]].append(spent["trained"] + spent["generated"] + spent["labels"])
    return {key: sum(tokens) / len(tokens) for key, tokens in found.items()}


def _as_dict(values: dict[str, Values]) -> dict[str, Any]:
    return {
        task: {
            arm: {
                m.key: {
                    "mean": mean(measures[m.key]),
                    "by_seed": measures[m.key],
                    "difference": _plain(paired_difference(measures[m.key], arms[BASELINE][m.key]))
                    if BASELINE in arms
                    else None,
                }
                for m in MEASURES
            }
            for arm, measures in arms.items()
        }
        for task, arms in values.items()
    }


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {**asdict(difference), "half_width": None if difference.seeds == 1 else difference.half_width}
