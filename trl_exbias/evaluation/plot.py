"""One picture of several models' free running over the horizon."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import MissingPackageError


if TYPE_CHECKING:
    from .exposure_bias import ExposureBias

#: What is dotted in the same panel, and the panel's title.
_DOTTED = {
    "free_running": ("teacher_forced", "free-running; dotted: teacher-forced"),
    "kl_own": ("kl_gold", "on own states; dotted: on true states"),
}
# Colours that stay apart in grey and for the colour-blind (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_exposure_bias(reports: dict[str, "ExposureBias"], path: str | Path, title: str | None = None) -> None:
    """
    Draws free-running CE and gap over the horizon's steps, with 95 % bands, as a PNG; with a teacher, first the KL on own
    states and its excess.

    Args:
        reports (`dict[str, ExposureBias]`): By the name in the legend.
        path (`str` or `Path`): The path of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingPackageError("The plot needs matplotlib: `pip install trl-exbias[plot]`.") from error

    panels = [("free_running", "cross-entropy (nats/token)"), ("gap", "free-running gap (nats/token)")]
    if any(report.kl_own is not None for report in reports.values()):
        panels = [("kl_own", "KL from the teacher (nats/token)"), ("excess_error", "excess on own states"), *panels]
    # A figure of its own, outside pyplot's registry: nothing to close, no display needed.
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for i, (model, report) in enumerate(reports.items()):
            values = getattr(report, name)
            if values is None:
                continue
            colour, steps = _COLOURS[i % len(_COLOURS)], range(1, len(values) + 1)
            low, high = zip(*report.intervals[name], strict=True)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, label=model)
            if beside := _DOTTED.get(name):
                axes.plot(steps, getattr(report, beside[0]), color=colour, linestyle=":", linewidth=1.2)
        if name in _DOTTED:
            axes.set_title(_DOTTED[name][1], fontsize=9)
        else:
            axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.set_xlabel("step of the horizon")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=150)
