"""Reading a recipe and the command line strictly: an unknown key or an impossible value is an error, not a shrug.

`check_keys` runs before torch is imported; `parse` afterwards, on TRL's own parser, before anything is loaded.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import UsageError, did_you_mean
from .keys import RECIPE_ONLY, launcher_flags, unknown_key_message, valid_keys
from .parser import raising


class RecipeError(UsageError):
    """Something is wrong with a recipe or a command line; the message lists all of it."""

    def __init__(self, source: str, problems: list[str]):
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{source}: {len(problems)} problem{'s'[: len(problems) > 1]}\n{lines}")
        self.problems = problems


def read_recipe(argv: list[str]) -> tuple[str | None, dict[str, Any]]:
    """
    Path and contents of the file that `--config` names, if there is one.

    Raises:
        RecipeError: if it cannot be read or is not a mapping.
    """
    path = _value_of("--config", argv)
    if path is None:
        return None, {}
    import yaml

    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(path, [f"cannot be read: {error}"]) from error
    if not isinstance(recipe, dict):
        raise RecipeError(path, ["a recipe is a mapping of keys to values."])
    return path, recipe


def check_keys(command: str, argv: list[str]) -> list[str]:
    """
    Checks every key of the recipe and of the command line, and returns the launcher's part of the latter.

    Raises:
        RecipeError: with every unknown key and the nearest known one.
    """
    path, recipe = read_recipe(argv)
    known = set(valid_keys(command))
    problems = [unknown_key_message(key, known) for key in recipe if key not in known and key not in RECIPE_ONLY]
    launcher = launcher_flags()
    launch_args: list[str] = []
    previous: str | None = None
    for argument in argv:
        if argument.startswith("--") or argument in ("-h", "-m"):
            flag = argument.split("=")[0].lstrip("-").replace("-", "_")
            previous = flag
            if flag not in known | launcher and not (flag.startswith("no_") and flag[3:] in known):
                problems.append(unknown_key_message(flag, known | launcher))
        is_launchers = previous in launcher and previous not in known and previous not in ("config", "help", "h")
        if is_launchers:
            launch_args.append(argument)
    if problems:
        raise RecipeError(path or f"exbias {command}", problems)
    return launch_args


def parse(dataclass_types: Iterable[type], argv: list[str]) -> tuple[Any, ...]:
    """
    The dataclasses of a command, from the recipe and the command line, which wins.

    Raises:
        RecipeError: for a value of the wrong type or outside its choices, all of them at once.
    """
    from trl import TrlParser

    path, recipe = read_recipe(argv)
    parser = raising(TrlParser)(dataclass_types)
    problems = [problem for _, problem in value_problems(parser, recipe)]
    if problems:
        raise RecipeError(path or "recipe", problems)
    try:
        return parser.parse_args_and_config(argv)
    except ValueError as error:
        raise RecipeError(path or "command line", _listed(error)) from error


def value_problems(parser: argparse.ArgumentParser, recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys of a recipe whose values are of the wrong type or outside their choices, and what is wrong with each."""
    actions = {action.dest: action for action in parser._actions}
    return [
        (key, problem)
        for key, value in recipe.items()
        if key in actions and (problem := _value_problem(key, value, actions[key])) is not None
    ]


def exit_with(error: Exception) -> int:
    """Prints a user's mistake without a traceback and returns the exit status for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def _listed(error: ValueError) -> list[str]:
    """The problems that a configuration lists under its headline; else the message's lines."""
    headline, *items = str(error).splitlines()
    return (
        [item.removeprefix("- ") for item in items]
        if headline.endswith(("problem", "problems"))
        else [headline, *items]
    )


def _value_problem(key: str, value: Any, action: Any) -> str | None:
    # argparse does not apply `choices` to a default, nor `type` unless it is a string, which is what a recipe sets.
    if action.choices and value is not None and value not in action.choices:
        choices = [str(choice) for choice in action.choices]
        return f"`{key}: {value}` is not one of {', '.join(choices)}.{did_you_mean(str(value), choices)}"
    if isinstance(value, str) and action.type in (int, float):
        try:
            action.type(value)
        except ValueError:
            return f"`{key}: {value}` is not a number."
    return None


def _value_of(flag: str, argv: list[str]) -> str | None:
    for i, argument in enumerate(argv):
        if argument == flag:
            if i + 1 == len(argv):
                raise RecipeError(flag, ["needs a value."])
            return argv[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None
