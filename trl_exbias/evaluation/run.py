"""`exbias evaluate` as a function: models and suites in, figures out, generations and verdicts kept on the way."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UsageError
from . import tasks
from .figures import Figure, paired_difference
from .options import EvaluationOptions
from .subject import EvaluatedModel
from .suites import JUDGED, load_suite
from .suites.suite import Suite
from .work import Work


if TYPE_CHECKING:
    from .judging import Estimate, JudgeClient, JudgeRequest

#: In the output folder.
EVALUATION_FILE = "evaluation.json"
#: For a dry run: stands before the reference where a response is not made yet. (Equal texts would not be judged.)
STAND_IN = "[no response yet; in its place the reference] "
_PACKAGES = ("rouge-score", "math-verify", "openai", "sentence-transformers", "alpaca-eval", "mauve-text")


def evaluate(models: dict[str, str], options: EvaluationOptions) -> dict[str, Any]:
    """
    Evaluates models alike and writes `evaluation.json` to `options.output`.

    Args:
        models (`dict[str, str]`): Hub id, folder, LoRA adapter or run directory, by the name to give it.
        options ([`EvaluationOptions`]): What to measure, and how.

    Returns:
        `dict`: What `evaluation.json` holds:

    ```python
    {
        "format": 1,
        "models": {
            name: {
                "model": "runs/bash",  # as given
                "folder": "runs/bash/checkpoint-8",  # what was loaded
                "fingerprint": "…",  # of its weights; an adapter's includes its base's
                "figures": {suite: {figure: Figure.as_dict()}},
                "curves": {suite: {figure: {"mean": […], "low": […], "high": […]}}},  # over the steps of free running
                "usage": {"generations": 0, "kept_generations": 0, "generated_tokens": 0, "seconds": 0.0, "judge": {…}},
            }
        },
        "differences": {name: {suite: {figure: Figure.as_dict()}}},  # to the first model, prompt by prompt
        "files": ["embedding_distance.png", …],  # plots and the like, in `options.output`
        "settings": EvaluationOptions.as_dict(),
        "versions": {"trl-exbias": "…", …},
    }
    ```

    Raises:
        ValueError: for data, models or options that cannot be used; says what to do.
        ImportError: if a suite needs a package that is not installed; names the extra.
    """
    from ..core.files import write_atomically

    prepared = _prepare(models, options)
    judge = judge_client(options) if set(options.suites) & set(JUDGED) else None
    if judge is not None:
        _check_key(options)
    found: dict[str, Any] = {}
    drawn: dict[str, dict[str, dict[str, Figure]]] = {}
    for subject in prepared.subjects:
        with _closing(subject):
            found[subject.name] = _evaluate_one(subject, prepared, options, judge, drawn)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    plots = [path for chosen in prepared.suites if chosen.plot for path in chosen.plot(drawn[chosen.name], folder)]
    report = {
        "format": 1,
        "models": found,
        "differences": differences(found),
        "files": [path.name for path in plots],
        "settings": options.as_dict(),
        "versions": _versions(),
    }
    write_atomically(folder / EVALUATION_FILE, json.dumps(report, indent=2).encode())
    return report


@dataclass(frozen=True)
class JudgingPlan:
    """
    What a judge would be asked of one model by one suite.

    Args:
        model, suite (`str`): Their names.
        requests (`list[JudgeRequest]`): The questions.
        estimate ([`Estimate`]): Tokens and cost.
        stand_ins (`int`): Responses that are not made yet; the reference stands in their place.
    """

    model: str
    suite: str
    requests: "list[JudgeRequest]"
    estimate: "Estimate"
    stand_ins: int


def plan_judging(models: dict[str, str], options: EvaluationOptions) -> list[JudgingPlan]:
    """
    What [`evaluate`] would ask its judge, without asking, generating, or loading any weights.

    Raises:
        ValueError: if no suite asks a judge; else as [`evaluate`].
    """
    if not set(options.suites) & set(JUDGED):
        raise UsageError(f"A dry run is of suites that ask a judge: {', '.join(JUDGED)}.")
    prepared, judge, plans = _prepare(models, options), judge_client(options), []
    for subject in prepared.subjects:
        for chosen in prepared.suites:
            if chosen.requests is None:
                continue
            work = Work(chosen, subject, prepared.rows[chosen.name], options)
            requests, stand_ins = [], 0
            for repetition in work.kept_repetitions():
                texts = {key: None if one is None else one.text for key, one in repetition.items()}
                stand_ins += sum(text is None for text in texts.values())
                stood_in = {
                    key: STAND_IN + work.references[key][0] if text is None else text for key, text in texts.items()
                }
                requests += chosen.requests(work, stood_in)
            plans.append(JudgingPlan(subject.name, chosen.name, requests, judge.estimate(requests), stand_ins))
    return plans


def judge_client(options: EvaluationOptions) -> "JudgeClient":
    """The judge asked for, with its answers kept next to the generations."""
    from .judging import JudgeClient

    read, written = options.judge_prices or (None, None)
    assert options.judge_url is not None and options.judge_model is not None  # its options have been checked
    return JudgeClient(
        options.judge_url,
        options.judge_model,
        api_key_env=options.judge_key_env,
        cache=options.verdicts_file,
        max_concurrency=options.judge_concurrency,
        max_tokens=options.judge_max_tokens,
        timeout=options.judge_timeout,
        extra_body=None if options.judge_extra_body is None else json.loads(options.judge_extra_body),
        prompt_price=read,
        completion_price=written,
    )


def _check_key(options: EvaluationOptions) -> None:
    if (options.judge_url or "").startswith("https") and not os.environ.get(options.judge_key_env):
        raise UsageError(
            f"{options.judge_url} needs a key: put it into the environment variable {options.judge_key_env}, or name another "
            "one with --judge_key_env."
        )


def differences(models: dict[str, Any]) -> dict[str, Any]:
    """
    For each model but the first, its figures minus the first's, prompt by prompt.

    Left out are figures that no prompt has a share of (a perplexity), and those that are not the same measurement (per
    token, of other tokenizers).
    """
    (_, first), *others = models.items()
    found: dict[str, Any] = {}
    for name, other in others:
        for suite_name, figures in other["figures"].items():
            for figure_name, record in figures.items():
                base = first["figures"].get(suite_name, {}).get(figure_name)
                if base is None or not base["per_prompt"]:
                    continue
                try:
                    difference = paired_difference(Figure.from_dict(record), Figure.from_dict(base))
                except ValueError:
                    continue
                found.setdefault(name, {}).setdefault(suite_name, {})[figure_name] = difference.as_dict()
    return found


@dataclass(frozen=True)
class _Prepared:
    suites: list[Suite]
    subjects: list[EvaluatedModel]
    rows: dict[str, tasks.Rows]


def _prepare(models: dict[str, str], options: EvaluationOptions) -> _Prepared:
    """Everything that can be wrong is, before anything is spent."""
    if not models:
        raise UsageError("There is no model to evaluate.")
    suites = [load_suite(name) for name in dict.fromkeys(options.suites)]
    # What generates comes first: an engine in a process of its own then makes way for the weights, once.
    suites.sort(key=lambda chosen: chosen.sampling is None)
    for chosen in suites:
        chosen.check(options)
    subjects = [EvaluatedModel(name, model, options) for name, model in models.items()]
    rows = {chosen.name: tasks.load(chosen, options) for chosen in suites}
    for chosen in suites:
        if chosen.sampling is not None:
            work = Work(chosen, subjects[0], rows[chosen.name], options)
            _ = work.sampling
            if chosen.min_prompts > 1:
                _ = work.items
    return _Prepared(suites, subjects, rows)


def _evaluate_one(
    subject: EvaluatedModel,
    prepared: _Prepared,
    options: EvaluationOptions,
    judge: "JudgeClient | None",
    drawn: dict[str, dict[str, dict[str, Figure]]],
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    asked = {} if judge is None else judge.usage.as_dict()
    for chosen in prepared.suites:
        work = Work(chosen, subject, prepared.rows[chosen.name], options, judge)
        settings = work.settings()
        figures[chosen.name] = {
            name: {**figure.as_dict(), "settings": {**settings, **figure.settings}}
            for name, figure in chosen.figures(work).items()
        }
        if work.curves:
            curves[chosen.name] = work.curves
        drawn.setdefault(chosen.name, {})[subject.name] = work.drawn
    usage = asdict(subject.made)
    if judge is not None:
        usage["judge"] = {
            key: value - (asked[key] or 0) if value is not None else None
            for key, value in judge.usage.as_dict().items()
        }
    return {
        "model": subject.given,
        "folder": str(subject.folder),
        "fingerprint": subject.fingerprint,
        "figures": {name: figures[name] for name in options.suites},
        "curves": curves,
        "usage": usage,
    }


@contextmanager
def _closing(subject: EvaluatedModel) -> Iterator[None]:
    try:
        yield
    finally:
        subject.close()


def _versions() -> dict[str, str]:
    from ..run.run_directory import versions

    found = versions()
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
