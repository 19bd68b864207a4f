"""`exbias compare`: several methods at equal compute, evaluated alike, in one report; see `docs/comparing.md`."""

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

from ..core.errors import ExbiasError, UsageError
from ..settings.parser import Parser
from ..settings.recipe import RecipeError, exit_with
from ..settings.recipes import recipe_path


_DESCRIPTION = """\
Trains the runs of a comparison file so that all consume the same, evaluates them alike and writes report.md and report.html.
Called again, it continues where it was stopped and trains nothing twice. Runs that are trained already are compared as they are."""
_EPILOG = """\
With a file, any other argument overrides a key of its `base`, or, as --evaluate.KEY, an option of its evaluation:
  exbias compare recipes/compare/beta.yaml --dataset_train_split 'train[:256]' --evaluate.num_examples 100
With finished runs, any other argument is one of `exbias evaluate`:
  exbias compare runs/sft runs/bash --output runs/sft-bash --suite rouge --data test.jsonl
Exit status: 2 for mistakes in the arguments or the file, 1 if a run failed, 85 if a run was told to stop and has saved."""


def run(argv: list[str]) -> int:
    """The command."""
    options, rest = _parser().parse_known_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("trl_exbias").setLevel(logging.INFO)
    from ..comparing.training import RunFailedError
    from ..run.errors import RESUME_EXIT_CODE, RunStoppedError

    try:
        reports = _compare(options, rest)
    except RunStoppedError as stopped:
        print(stopped, file=sys.stderr)
        return RESUME_EXIT_CODE
    except KeyboardInterrupt:
        print("Stopped; the same command continues.", file=sys.stderr)
        return 130
    except RunFailedError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except (ExbiasError, OSError) as error:
        return exit_with(error)
    for path in reports:
        print(f"Written: {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="exbias compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="FILE.yaml | DIR | RUN",
        help="a comparison file or the name of a shipped one; the folder of an earlier comparison; or run directories, "
        "NAME=RUN to name one",
    )
    parser.add_argument("--output", type=Path, help="folder of the runs and the report (default: as the file says)")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SETTING",
        help="compare although runs differ in this; repeatable",
    )
    parser.add_argument("--untrained", metavar="MODEL", help="the model that finished runs began from")
    parser.add_argument("--title", help="title of the report on finished runs")
    return parser


def _compare(options: argparse.Namespace, rest: list[str]) -> list[Path]:
    from ..comparing.run import SOURCE_FILE

    first = Path(options.what[0])
    if len(options.what) == 1 and not _is_run(options.what[0]):
        if first.is_dir():
            if not (first / SOURCE_FILE).is_file():
                raise UsageError(f"{first} holds neither a run (run.json) nor a comparison ({SOURCE_FILE}).")
            return _compare_file(first / SOURCE_FILE, options, rest, first)
        path = first if first.suffix == ".yaml" or first.exists() else recipe_path(f"compare/{options.what[0]}")
        return _compare_file(path, options, rest, options.output)
    return _compare_runs(options, rest)


def _compare_file(path: Path, options: argparse.Namespace, rest: list[str], output: Path | None) -> list[Path]:
    from dataclasses import replace

    import yaml

    from ..comparing.comparison_file import read_comparison, read_content
    from ..comparing.run import compare

    if options.untrained or options.title:
        raise UsageError("--untrained and --title are for finished runs; a comparison file has `untrained` and `name`.")
    overrides = _overrides(rest)
    comparison = read_comparison(path, overrides)
    comparison = replace(comparison, allow=(*comparison.allow, *options.allow))
    # With the command line in it, so that `exbias compare OUTPUT` is the same comparison.
    source = path.read_text(encoding="utf-8")
    if overrides:
        source = yaml.safe_dump(read_content(path, overrides), sort_keys=False, allow_unicode=True)
    return compare(comparison, Path(comparison.output_dir) if output is None else output, source)


def _compare_runs(options: argparse.Namespace, rest: list[str]) -> list[Path]:
    from ..comparing.evaluate_options import check_options
    from ..comparing.finished import compare_finished
    from .evaluate import named_models

    if options.output is None:
        raise UsageError("--output is missing: the folder of the evaluation and the report.")
    runs = named_models(options.what)
    if len(runs) < 2:
        raise UsageError("There is nothing to compare: give two runs or more, or a comparison file.")
    evaluation = _overrides(rest)
    if "suite" in evaluation:
        evaluation["suites"] = evaluation.pop("suite")
    problems = check_options({"suites": (), **evaluation})
    if problems:
        raise RecipeError("command line", problems)
    return compare_finished(runs, options.output, evaluation, tuple(options.allow), options.untrained, options.title)


def _is_run(what: str) -> bool:
    return "=" in what or Path(what, "run.json").is_file()


def _overrides(argv: list[str]) -> dict[str, Any]:
    """`--key value …` as a mapping; values are read as in a recipe."""
    found: dict[str, list[Any]] = {}
    key = None
    for argument in argv:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            found[key] = [_value(value)] if equals else []
        elif key is None:
            raise UsageError(f"`{argument}` is neither a comparison nor an option.")
        else:
            found[key].append(_value(argument))
    return {key: True if not values else values[0] if len(values) == 1 else values for key, values in found.items()}


def _value(text: str) -> Any:
    import yaml

    with contextlib.suppress(ValueError):
        return float(text) if "e" in text.lower() else int(text)  # YAML takes 1e-4 for a text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # a template: '{{ question }}'
        return text
