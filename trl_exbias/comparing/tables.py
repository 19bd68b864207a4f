"""The tables of a report."""

from dataclasses import dataclass, field
from typing import Any

from ..evaluation.figures import Figure
from .compute import SORTS, Compute
from .content import BETTER, UNDECIDED, WORSE, Content, Entry, verdict
from .words import ARROWS, count, gib, number, ratio, seconds, signed, title_of


@dataclass(frozen=True)
class Cell:
    """
    Args:
        text (`str`): What stands in it.
        detail (`str`): Smaller, below it; a line of its own for each line.
        tone (`str`): `"better"`, `"worse"`, `"undecided"`, `"warning"`, or nothing: its colour. What it means is in the words.
    """

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; the first cell of a row is its name."""

    head: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def decision_table(content: Content) -> Table:
    """One row a run: the headline figures, compared with the first run's, and what it all cost."""
    keys = content.headline_keys
    head = ["run", "verdict", *(f"{title_of(key)} {_arrow(content, key)}".strip() for key in keys), "tokens", "seconds"]
    rows = []
    for entry in content.entries:
        name = Cell(entry.name, "" if entry.method == entry.name else entry.method or "no training")
        figures = [_figure_cell(content, entry, key) for key in keys]
        rows.append([name, _verdict_cell(content, entry, keys), *figures, *_cost_cells(content, entry)])
    reference = content.reference.name
    notes = [
        f"Mean and its 95 % interval over prompts; Δ: the paired difference to `{reference}` and its interval. Better, "
        "worse: that interval leaves zero out. One in twenty of many figures does so by chance."
    ]
    return Table(head, rows, notes)


def quality_table(content: Content) -> Table:
    """One row a figure, one column a run."""
    rows = [
        [
            Cell(f"{key} {_arrow(content, key)}".strip(), _number_of_prompts(content, key)),
            *(_figure_cell(content, entry, key) for entry in content.entries),
        ]
        for key in content.figure_keys
    ]
    return Table(["figure", *(entry.name for entry in content.entries)], rows)


def cost_table(content: Content) -> Table:
    """Tokens by sort, seconds by phase, peak memory."""
    runs = [(entry, entry.compute) for entry in content.runs if entry.compute is not None]
    head = ["run", "updates", *(f"{sort} tokens" for sort in SORTS), "tokens", "seconds"]
    head += ["s an update", "wall clock s", "peak memory"]
    rows = []
    for entry, found in runs:
        by_sort = [Cell(count(getattr(found, sort))) for sort in SORTS]
        by_phase = "\n".join(f"{phase} {seconds(value)}" for phase, value in found.seconds.items())
        tokens, time = _cost_cells(content, entry)
        time = Cell(time.text, "\n".join(filter(None, (time.detail, by_phase))), time.tone)
        wall = Cell(seconds(found.wall_seconds), f"{found.attempts} starts" if found.attempts > 1 else "")
        cells = [Cell(entry.name), Cell(count(found.steps)), *by_sort, tokens, time, _update_cell(found), wall]
        rows.append([*cells, _memory_cell(found)])
    beside = f"in proportion to `{content.reference.name}`" if content.equal is None else "as a share of the budget"
    notes = [
        f"Trained: tokens read in training, over all epochs. Generated: one decoding step each. Teacher: tokens read once "
        f"more for labels, by a teacher or by the policy itself. Below their sum: the same {beside}. They are added up as "
        "they are: training on a token takes about three times the arithmetic of reading it, and generating one takes "
        "more time than either.",
        "Seconds are those of the phases; the wall clock has loading and saving as well. Seconds an update: after the SFT "
        "phase, what was generated beforehand shared out over the updates that use it.",
    ]
    if any(found.attempts > 1 for _, found in runs):
        notes.append("A run with more than one start was interrupted: its phases' seconds lack what was lost.")
    return Table(head, rows, notes)


def improvement_table(content: Content) -> Table | None:
    """What each run has gained over the untrained model, for a million tokens and for an hour; `None` without that model."""
    keys = [key for key in content.headline_keys if _direction(content, key) is not None]
    if content.untrained is None or not keys:
        return None
    rows = [
        [
            Cell(f"{title_of(key)} {_arrow(content, key)}"),
            *(_gain_cell(content.difference(run, key, to=content.untrained), run.compute) for run in content.runs),
        ]
        for key in keys
    ]
    notes = [
        "The paired difference to the untrained model with its interval, turned so that above zero is better; then the same "
        "for each million tokens and for each hour that the run consumed. The rates hold for this length of training: they do "
        "not carry on."
    ]
    return Table(["gain", *(run.name for run in content.runs)], rows, notes)


def runs_table(content: Content) -> Table:
    """The keys by which the runs' recipes differ."""
    keys = list(dict.fromkeys(key for entry in content.runs for key in entry.own))
    rows = [
        [Cell(entry.name), Cell(entry.method or ""), *(Cell(_text(entry.own.get(key, ""))) for key in keys)]
        for entry in content.runs
    ]
    return Table(["run", "method", *keys], rows)


def settings_table(values: Any) -> Table:
    """A setting a row."""
    return Table(["setting", "value"], [[Cell(str(key)), Cell(_text(value))] for key, value in values.items()])


def _figure_cell(content: Content, entry: Entry, key: str) -> Cell:
    figure = entry.figures.get(key)
    if figure is None:
        return Cell("–")
    text = number(figure.mean) + ("" if figure.std is None else f" ± {number(figure.std)}")
    detail = f"[{number(figure.low)}, {number(figure.high)}]"
    difference = content.difference(entry, key)
    if difference is None:
        return Cell(text, detail)
    outcome = verdict(difference) or ""
    mark = f" {outcome}" if outcome in (BETTER, WORSE) else ""
    detail += f"\nΔ {signed(difference.mean)}{mark}\n[{signed(difference.low)}, {signed(difference.high)}]"
    return Cell(text, detail, outcome)


def _cost_cells(content: Content, entry: Entry) -> list[Cell]:
    found = entry.compute
    if found is None:
        return [Cell("–"), Cell("–")]
    share = _share_cell(content, found)
    tokens, time = Cell(count(found.tokens)), Cell(seconds(found.phase_seconds))
    if content.equal is None or content.equal.what == "tokens":
        return [Cell(tokens.text, share.text, share.tone), time]
    return [tokens, Cell(time.text, share.text, share.tone)]


def _share_cell(content: Content, found: Compute) -> Cell:
    if content.equal is None:
        return Cell(ratio(found.tokens, content.reference.compute.tokens if content.reference.compute else 0))
    # A run that missed the budget is not at equal compute, and whoever reads the table must see it.
    if content.equal.is_met(found):
        return Cell(f"{content.equal.share(found):.1%}")
    return Cell(f"{content.equal.share(found):.1%}, unequal", tone="warning")


def _update_cell(found: Compute) -> Cell:
    if found.seconds_an_update is None:
        return Cell("–")
    generating, training = found.seconds_an_update
    detail = f"generating {number(generating)}\ntraining {number(training)}" if generating else ""
    return Cell(number(generating + training), detail)


def _memory_cell(found: Compute) -> Cell:
    if found.device_bytes is not None:
        return Cell(gib(found.device_bytes), "device")
    return Cell(gib(found.host_bytes), "host" if found.host_bytes is not None else "")


def _verdict_cell(content: Content, entry: Entry, keys: tuple[str, ...]) -> Cell:
    if entry.name == content.reference.name:
        return Cell("the reference")
    found = {key: verdict(content.difference(entry, key)) for key in keys}
    words = [
        f"{outcome} on {', '.join(title_of(key) for key, one in found.items() if one == outcome)}"
        for outcome in (BETTER, WORSE)
        if outcome in found.values()
    ]
    if not words:
        return Cell("no clear difference" if UNDECIDED in found.values() else "–", tone=UNDECIDED)
    outcomes = {one for one in found.values() if one in (BETTER, WORSE)}
    return Cell("; ".join(words), tone=outcomes.pop() if len(outcomes) == 1 else UNDECIDED)


def _gain_cell(difference: Figure | None, found: Compute | None) -> Cell:
    if difference is None:
        return Cell("–")
    sign = 1 if difference.higher_is_better else -1
    low, high = sorted((sign * difference.low, sign * difference.high))
    gain, lines = sign * difference.mean, [f"[{signed(low)}, {signed(high)}]"]
    if found is not None:
        rates = ((found.tokens / 1e6, "a million tokens"), (found.phase_seconds / 3600, "an hour"))
        lines += [f"{signed(gain / amount)} {unit}" for amount, unit in rates if amount]
    return Cell(signed(gain), "\n".join(lines))


def _direction(content: Content, key: str) -> bool | None:
    return next(entry.figures[key].higher_is_better for entry in content.entries if key in entry.figures)


def _arrow(content: Content, key: str) -> str:
    return ARROWS[_direction(content, key)]


def _number_of_prompts(content: Content, key: str) -> str:
    figures = [entry.figures[key] for entry in content.entries if key in entry.figures]
    missing = max(figure.missing for figure in figures)
    return f"n = {count(figures[0].n)}" + (f", up to {count(missing)} missing" if missing else "")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
