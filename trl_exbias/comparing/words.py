"""Numbers as a report writes them."""

import math


_GIB = 2**30
#: Which way a figure is better.
ARROWS = {True: "↑", False: "↓", None: ""}


def number(value: float) -> str:
    """Four digits that count; a dash where there is no value."""
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def signed(value: float) -> str:
    """The same with its sign; a true minus, so that columns line up."""
    return number(value) if math.isnan(value) else ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value))


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
