"""A comparison from its file to its report: train what is missing, evaluate, hold against each other."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..settings.recipe import RecipeError
from .alike import Difference, check_alike, differences, figure_differences, settings_of_recipe, settings_of_run
from .comparison_file import Comparison, PlannedRun
from .compute import METRICS_FILE, Compute, read_compute, read_logs, read_run, trained_tokens
from .content import UNTRAINED, Content, Entry, EqualCompute, figures_and_curves
from .demo_inputs import with_demo
from .equal_compute import Price, answered, calibrated, spent, steps_for
from .evaluating import FOLDER, check_evaluation, evaluate
from .forecast import Forecast, forecast_runs
from .report import write_report
from .samples import GENERATIONS, read_samples
from .training import is_finished, read_recipe, train, write_recipe


logger = logging.getLogger(__name__)

RUNS, FORECAST_FILE = "runs", "forecast.json"
#: The comparison file that the folder of a comparison belongs to.
SOURCE_FILE = "comparison.yaml"


def compare(comparison: Comparison, output: Path, source: str | None = None) -> list[Path]:
    """
    Trains, evaluates and reports a comparison; what an earlier call has done is taken as it is.

    Args:
        output (`Path`): Folder of the runs, the evaluation and the report.
        source (`str`, *optional*): The comparison file's text, to be kept there once it is known to fit what is there.

    Returns:
        `list[Path]`: The reports.

    Raises:
        ValueError: for settings that cannot be compared or trained, all of them at once.
        RunFailedError, RunStoppedError: where a run did not come to its end; the same call continues.
    """
    allowed = check_alike(
        differences({run.name: settings_of_recipe(run) for run in comparison.runs}), comparison.allow, "runs"
    )
    comparison = with_demo(comparison, output)
    folders = {run.name: output / RUNS / run.name for run in comparison.runs}
    forecasts = _forecasts(comparison, folders)
    if source is not None:
        (output / SOURCE_FILE).write_text(source, encoding="utf-8")
    if not all(map(is_finished, folders.values())):
        check_evaluation(comparison.evaluate)
    equal = _train_all(comparison, folders, forecasts)
    records = {name: read_run(folder) for name, folder in folders.items()}
    # What a recipe names and a run records are the same thing said twice: one line is enough.
    known = {difference.setting for difference in allowed}
    found = [d for d in differences({n: settings_of_run(r) for n, r in records.items()}) if d.setting not in known]
    allowed += check_alike(found, comparison.allow, "runs")
    entries = [Entry(run.name, run.method, run.own, read_compute(folders[run.name])) for run in comparison.runs]
    models = {name: str(folder) for name, folder in folders.items()}
    start = comparison.runs[0].keys.get("model_name_or_path")
    if comparison.untrained and start is not None:
        entries.insert(0, Entry(UNTRAINED, None))
        models = {UNTRAINED: start, **models}
    settings = {"of all runs": comparison.base}
    options = (comparison.evaluate, comparison.headline, comparison.allow)
    return report(comparison.name, entries, models, output, *options, equal, allowed, settings)


def report(
    title: str,
    entries: list[Entry],
    models: dict[str, str],
    output: Path,
    options: dict[str, Any],
    headline: tuple[str, ...],
    allow: tuple[str, ...],
    equal: EqualCompute | None,
    allowed: list[Difference],
    settings: dict[str, dict[str, Any]],
) -> list[Path]:
    """
    Evaluates models alike and writes the report on them.

    Args:
        entries (`list[Entry]`): Without figures yet.
        models (`dict[str, str]`): What to evaluate, by the entries' names.
        options (`dict`): Options of `exbias evaluate`.
        equal, allowed, settings: As in [`Content`].
    """
    found = evaluate(models, options, output)
    filled = []
    for entry in entries:
        figures, curves = figures_and_curves(found["models"][entry.name])
        filled.append(Entry(entry.name, entry.method, entry.own, entry.compute, figures, curves, models[entry.name]))
    unlike = figure_differences({entry.name: entry.figures for entry in filled})
    allowed = [*allowed, *check_alike(unlike, allow, "evaluations")]
    generations = Path(found["settings"].get("generations") or output / FOLDER / GENERATIONS)
    content = Content(
        title,
        tuple(filled),
        equal,
        tuple(allowed),
        headline,
        read_samples(generations, found["models"]),
        {**settings, "of the evaluation": found["settings"], "versions": found["versions"]},
    )
    return write_report(content, output)


def _forecasts(comparison: Comparison, folders: dict[str, Path]) -> dict[str, Forecast]:
    """What each run will consume; for a finished run, what was forecast before. Empty where lengths are as declared."""
    found: dict[str, Forecast | None] = {}
    missing = []
    for run in comparison.runs:
        recipe, path = write_recipe(run, folders[run.name]), folders[run.name] / FORECAST_FILE
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if before is not None and before["keys"] == _plain(run.keys):
            found[run.name] = Forecast(**before["forecast"]) if before["forecast"] else None
        elif comparison.equal != "none" or not is_finished(folders[run.name]):
            missing.append((run, recipe))
    if missing:
        with tqdm(total=len(missing), desc="Checking the runs", unit="run", leave=False) as bar:
            forecasts = forecast_runs(missing, comparison.launch, bar.update)
        for run, _ in missing:
            forecast = found[run.name] = forecasts[run.name]
            record = {"keys": _plain(run.keys), "forecast": forecast and asdict(forecast)}
            (folders[run.name] / FORECAST_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
    if comparison.equal == "none":
        return {}
    unknown = [name for name, forecast in found.items() if forecast is None]
    if unknown:
        raise RecipeError(
            comparison.name,
            [f"{name}: its number of rows is not known before it is trained, so it cannot be given the length of the "
             "others: make its data available, or write `equal: none`." for name in unknown],
        )  # fmt: skip
    return {name: forecast for name, forecast in found.items() if forecast is not None}


def _train_all(comparison: Comparison, folders: dict[str, Path], forecasts: dict[str, Forecast]) -> EqualCompute | None:
    """Trains every run that is not finished; the one whose total is the budget comes first."""
    runs, launch = list(comparison.runs), comparison.launch
    if comparison.equal == "none":
        for number, run in enumerate(runs, start=1):
            _train(run, folders[run.name], None, None, f"{run.name} ({number}/{len(runs)})", launch)
        return None
    price, budget, anchor = Price(), comparison.budget, None
    if not isinstance(budget, (int, float)):
        anchor = next((run for run in runs if run.name == budget), None)
        anchor = anchor or max(runs, key=lambda run: price.of(forecasts[run.name]))
        runs.sort(key=lambda run: run is not anchor)
        _train(
            anchor, folders[anchor.name], None, forecasts[anchor.name].steps, f"{anchor.name} (1/{len(runs)})", launch
        )
        measured = read_compute(folders[anchor.name])
        budget = spent(measured, comparison.equal)
        if comparison.equal == "seconds":
            price = Price.in_seconds(measured)
        logger.info(f"The budget is what {anchor.name} consumed: {budget:,.0f} {comparison.equal}.")
    for number, run in enumerate(runs, start=1):
        if run is anchor:
            continue
        forecast = forecasts[run.name]
        if anchor is not None:
            planned = forecasts[anchor.name]
            sft_tokens = trained_tokens(read_logs(folders[anchor.name]), up_to_step=planned.sft_steps)
            forecast = calibrated(forecast, planned, sft_tokens)
            # A forecast only knows the limit of answers whose length the policy decides.
            if run.plan.answers_freely and anchor.plan.answers_freely:
                forecast = answered(forecast, calibrated(planned, planned, sft_tokens), measured)
        steps = steps_for(budget, forecast, price)
        _train(run, folders[run.name], steps, steps, f"{run.name} ({number}/{len(runs)})", launch)
    return EqualCompute(comparison.equal, float(budget), comparison.tolerance)


def _train(
    run: PlannedRun, folder: Path, max_steps: int | None, total: int | None, title: str, launch: dict[str, Any]
) -> None:
    write_recipe(run, folder, max_steps)
    if is_finished(folder):
        logger.info(f"{run.name} is trained already: {folder}.")
        return
    begun = (folder / METRICS_FILE).is_file()
    steps = (read_recipe(folder) or {}).get("max_steps", total)
    length = "at its declared length" if max_steps is None else f"for {steps} updates"
    logger.info(f"{'Going on with' if begun else 'Training'} {run.name} {length}; log: {folder / 'train.log'}.")
    train(run, folder, steps, title, launch)
    logger.info(f"{run.name}: {_in_words(read_compute(folder))}")


def _in_words(found: Compute) -> str:
    return (
        f"{found.trained:,} tokens trained, {found.generated:,} generated, {found.teacher:,} read for labels, "
        f"{found.phase_seconds:,.0f} s."
    )


def _plain(keys: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(keys, default=str))
