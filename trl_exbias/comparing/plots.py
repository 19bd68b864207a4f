"""The pictures of a report, as SVG: nothing in them is run or fetched."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingPackageError
from .compute import SORTS
from .content import Content
from .words import ARROWS, title_of


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Colours that stay apart in grey and for the colour-blind (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#8a8a8a"
# The parts of a run's cost: not to be taken for runs.
_PARTS = ("#4C6A92", "#E0A458", "#8FB8A8", "#B56576", "#6D6875", "#A3A3A3")
_MAX_CURVES = 4
_UNITS = ((10**9, "billion tokens"), (10**6, "million tokens"), (10**3, "thousand tokens"), (1, "tokens"))


@dataclass(frozen=True)
class Plot:
    """
    Args:
        name (`str`): The name of its file, without the ending.
        title (`str`): What it shows.
        svg (`bytes`): The picture.
    """

    name: str
    title: str
    svg: bytes


def plots(content: Content) -> list[Plot]:
    """
    The pictures that there is something to draw for.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
    """
    drawn = [
        ("figures", "Headline figures with 95 % intervals", _figures),
        ("curves", "Free running over the steps of the horizon", _curves),
        ("tokens", "Tokens by sort", _tokens),
        ("seconds", "Seconds by phase", _seconds),
    ]
    found = [(name, title, draw(content)) for name, title, draw in drawn]
    return [Plot(name, title, svg) for name, title, svg in found if svg is not None]


def _figures(content: Content) -> bytes | None:
    """A panel for each headline figure, a row for each model."""
    keys = content.headline_keys
    if not keys:
        return None
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    size = (3.3 * columns, rows * (0.9 + 0.3 * len(content.entries)))

    def draw(figure: "Figure") -> None:
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for axes, key in zip(panels, keys, strict=False):
            _panel(axes, content, key)
        for axes in panels[len(keys) :]:
            axes.set_axis_off()

    return _svg(size, draw)


def _panel(axes: Any, content: Content, key: str) -> None:
    better = None
    for place, entry in enumerate(content.entries):
        found = entry.figures.get(key)
        if found is None or found.mean != found.mean:
            continue
        better = found.higher_is_better
        colour = _colour(content, entry.name)
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(found.mean, place, "o", color=colour, markersize=5)
        if entry.name == content.reference.name:
            axes.axvline(found.mean, color="0.75", linewidth=0.8, zorder=0)
    low, high = axes.get_xlim()
    if high - low < 1e-9:  # all the same: matplotlib would draw the last digits of it
        axes.set_xlim(low - 0.5, high + 0.5)
    axes.set_yticks(range(len(content.entries)), [entry.name for entry in content.entries])
    axes.set_ylim(len(content.entries) - 0.5, -0.5)
    axes.set_title(f"{title_of(key)} {ARROWS[better]}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _curves(content: Content) -> bytes | None:
    names = list(dict.fromkeys(name for entry in content.entries for name in entry.curves))[:_MAX_CURVES]
    if not names:
        return None

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for entry in content.entries:
                if name in entry.curves:
                    curve, colour = entry.curves[name], _colour(content, entry.name)
                    steps = range(1, len(curve.mean) + 1)
                    axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
                    axes.plot(steps, curve.mean, color=colour, marker="o", markersize=3, label=entry.name)
            axes.set_title(f"{title_of(name)} (nats/token)", fontsize=9)
            axes.set_xlabel("step of the horizon", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, fontsize=8)

    return _svg((3.4 * len(names), 3.0), draw)


def _tokens(content: Content) -> bytes | None:
    runs = {entry.name: entry.compute for entry in content.runs if entry.compute is not None}
    most = max((found.tokens for found in runs.values()), default=0)
    size, unit = next((size, unit) for size, unit in _UNITS if most >= size or size == 1)
    parts = {sort: [getattr(found, sort) / size for found in runs.values()] for sort in SORTS}
    budget = content.equal.budget / size if content.equal and content.equal.what == "tokens" else None
    return _bars(list(runs), parts, unit, budget)


def _seconds(content: Content) -> bytes | None:
    runs = {entry.name: entry.compute for entry in content.runs if entry.compute is not None}
    phases = dict.fromkeys(phase for found in runs.values() for phase in found.seconds)
    parts = {phase: [found.seconds.get(phase, 0.0) for found in runs.values()] for phase in phases}
    budget = content.equal.budget if content.equal and content.equal.what == "seconds" else None
    return _bars(list(runs), parts, "seconds", budget)


def _bars(names: list[str], parts: dict[str, list[float]], unit: str, budget: float | None) -> bytes | None:
    """A row for each run, a stretch for each part."""
    parts = {part: values for part, values in parts.items() if any(values)}
    if not parts:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        left = [0.0] * len(names)
        for place, (part, values) in enumerate(parts.items()):
            axes.barh(names, values, left=left, height=0.6, color=_PARTS[place % len(_PARTS)], label=part)
            left = [start + value for start, value in zip(left, values, strict=True)]
        if budget is not None:
            axes.axvline(budget, color="0.3", linewidth=1, linestyle="--", label="budget")
        axes.invert_yaxis()
        axes.set_xlabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return _svg((6.2, 0.9 + 0.34 * len(names)), draw)


def _colour(content: Content, name: str) -> str:
    names = [entry.name for entry in content.runs]
    return _COLOURS[names.index(name) % len(_COLOURS)] if name in names else _GREY


def _svg(size: tuple[float, float], draw: Callable[[Any], None]) -> bytes:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("The report's plots need matplotlib: `pip install trl-exbias[plot]`.") from error
    # Text stays text; names are as they were given, not formulas; the same content gives the same file.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "trl-exbias", "text.parse_math": False, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
