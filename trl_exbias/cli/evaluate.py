"""`exbias evaluate MODEL… --suite SUITE…`: quality, exposure bias and degeneration of any model; see `docs/evaluation.md`."""

import argparse
import logging
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..core.errors import ExbiasError, UsageError
from ..evaluation.options import EvaluationOptions
from ..evaluation.suites import SUITES
from ..settings.parser import Parser
from ..settings.recipe import exit_with


# Questions that a dry run shows for each suite and model.
_SHOWN = 2


def run(argv: list[str]) -> int:
    """The command."""
    args = vars(_parser().parse_args(argv))
    try:
        models = named_models(args.pop("models"))
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in args.items()}
        options = EvaluationOptions(**values)
        return _evaluate(models, options)
    except (ExbiasError, OSError) as error:
        return exit_with(error)


def named_models(given: list[str]) -> dict[str, str]:
    """
    Models by their names: `NAME=MODEL`, or the last part of a path.

    Raises:
        ValueError: if two have the same name.
    """
    models: dict[str, str] = {}
    for model in given:
        name, equals, path = model.partition("=")
        name, path = (name, path) if equals else (Path(model).name or model, model)
        if name in models:
            raise UsageError(f"{models[name]} and {path} are both called `{name}`: name one of them, NAME=MODEL.")
        models[name] = path
    return models


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="exbias evaluate",
        description=__doc__,
        epilog="suites:\n" + "\n".join(f"  {name:<21} {what}" for name, what in SUITES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="hub id, folder, LoRA adapter or run directory; NAME=MODEL to name it",
    )
    parser.add_argument(
        "--suite", "--suites", dest="suites", nargs="+", required=True, metavar="SUITE", help="what to measure"
    )
    hints = get_type_hints(EvaluationOptions)
    for field in fields(EvaluationOptions):
        if field.default is not MISSING:
            parser.add_argument(f"--{field.name}", default=field.default, **_argument(field, hints[field.name]))
    return parser


def _argument(field: Any, hint: Any) -> dict[str, Any]:
    """How argparse reads an option: as the kind that its dataclass field has."""
    given = dict(field.metadata)
    kinds = [kind for kind in (*get_args(hint), hint) if kind in (bool, int, float, str, Path)]
    if hint is bool:
        return {**given, "action": "store_true"}
    if bool in kinds:
        return {**given, "action": argparse.BooleanOptionalAction}
    if "nargs" in given:
        return {**given, "type": float if "float" in str(hint) else str}
    shown = field.default not in (None, ()) and "choices" not in given
    return {**given, "type": kinds[0], "help": given["help"] + (f" (default: {field.default})" if shown else "")}


def _evaluate(models: dict[str, str], options: EvaluationOptions) -> int:
    import datasets
    import transformers

    from ..evaluation.run import EVALUATION_FILE, evaluate, plan_judging
    from ..evaluation.tables import table
    from ..rollouts import RolloutEngineError
    from .memory import keep_freed_memory

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("trl_exbias").setLevel(logging.INFO)
    if options.dry_run:
        for plan in plan_judging(models, options):
            print(_shown(plan))
        return 0
    try:
        report = evaluate(models, options)
    except RolloutEngineError as error:
        return exit_with(error)
    print("\n" + table(report))
    print(
        "\n95 % bootstrap intervals over prompts; ± std over repeated generations. Missing: prompts without a value (an "
        "unparseable\nverdict, say), left out of the mean. Differences are paired by prompt: an interval without 0 is one "
        "that the prompts do not explain."
    )
    for name, found in report["models"].items():
        print(f"{name}: {_usage(found['usage'])}")
    for file in [*report["files"], EVALUATION_FILE]:
        print(f"Written: {Path(options.output) / file}")
    return 0


def _usage(usage: dict[str, Any]) -> str:
    text = (
        f"{usage['generations']} responses made ({usage['generated_tokens']} tokens, {usage['seconds']:.0f} s), "
        f"{usage['kept_generations']} were there"
    )
    judge = usage.get("judge")
    if judge:
        text += (
            f"; judge: {judge['requests']} requests, {judge['cached']} answers were there, {judge['failed']} failed, "
            f"{judge['prompt_tokens']} tokens read, {judge['completion_tokens']} written"
        )
        text += "" if judge["cost"] is None else f", cost {judge['cost']:.4f}"
    return text


def _shown(plan: Any) -> str:
    lines = [f"{plan.suite} of {plan.model}: {plan.estimate}"]
    if plan.stand_ins:
        lines.append(f"{plan.stand_ins} responses are not made yet: the reference stands in for each.")
    for number, request in enumerate(plan.requests[:_SHOWN], start=1):
        lines.append(f"--- question {number} of {len(plan.requests)}")
        lines += [f"[{message['role']}]\n{message['content']}" for message in request.messages]
    return "\n".join(lines) + "\n"
