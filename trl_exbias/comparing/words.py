"""Numbers as a report writes them."""

import math


_GIB = 2**30
#: Which way a figure is better.
ARROWS = {True: "↑", False: "↓", None: ""}


def number(value: float) -> str:
    """Four digits or so; a dash where there is no value, and a true minus, so that columns line up."""
    if math.isnan(value):
        return "–"
    size = abs(value)
    text = f"{size:.3f}" if 0.001 <= size < 10 else f"{size:,.1f}" if size >= 10 else f"{size:.3g}"
    return f"−{text}" if value < 0 else text


def signed(value: float) -> str:
    """The same with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def count(value: int | None) -> str:
    """A whole number with separated thousands."""
    return "–" if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """Seconds, with a decimal where there are few."""
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def gib(value: int | None) -> str:
    return "–" if value is None else f"{value / _GIB:.2f} GiB"


def ratio(value: float, other: float) -> str:
    return f"× {value / other:.2f}" if other else "–"


def title_of(key: str) -> str:
    """A figure's name without its suite, in words."""
    return key.split("/")[-1].replace("_", " ")
