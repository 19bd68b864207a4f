"""Compares runs that were trained before, wherever they are."""

from pathlib import Path
from typing import Any

from .alike import check_alike, differences, settings_of_run
from .compute import read_compute, read_run
from .content import UNTRAINED, Entry
from .run import report


# How a run was watched and kept: says nothing of what it did.
_UNTOLD = (
    "output_dir",
    "run_name",
    "logging_dir",
    "overwrite_output_dir",
    "num_rollouts_to_print",
    "log_completions",
    "resume_from_checkpoint",
)


def compare_finished(
    runs: dict[str, str],
    output: Path,
    options: dict[str, Any],
    allow: tuple[str, ...] = (),
    untrained: str | None = None,
    title: str | None = None,
) -> list[Path]:
    """
    Evaluates finished runs alike and reports on them.

    Args:
        runs (`dict[str, str]`): Run directories, by the names to give them; differences are to the first.
        options (`dict`): Options of `exbias evaluate`.
        allow (`tuple[str, ...]`): Settings in which they may differ.
        untrained (`str`, *optional*): The model that they began from, to be evaluated too.

    Returns:
        `list[Path]`: The reports.

    Raises:
        ValueError: if a folder holds no run, or the runs differ in what must be alike.
        RunFailedError: if the evaluation failed.
    """
    records = {name: read_run(folder) for name, folder in runs.items()}
    allowed = check_alike(differences({n: settings_of_run(r) for n, r in records.items()}), allow, "runs")
    configs = {name: record["config"] for name, record in records.items()}
    varying = [
        key
        for key in dict.fromkeys(key for config in configs.values() for key in config)
        if key not in _UNTOLD and len({repr(config.get(key, "")) for config in configs.values()}) > 1
    ]
    entries = [
        Entry(name, record["method"], {key: configs[name].get(key, "") for key in varying}, read_compute(runs[name]))
        for name, record in records.items()
    ]
    models = dict(runs)
    if untrained is not None:
        entries.insert(0, Entry(UNTRAINED, None))
        models = {UNTRAINED: untrained, **models}
    title = title or f"Comparison of {', '.join(runs)}"
    output.mkdir(parents=True, exist_ok=True)
    return report(title, entries, models, output, options, (), allow, None, allowed, {})
