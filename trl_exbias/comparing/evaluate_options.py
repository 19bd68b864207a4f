"""The options of `exbias evaluate` in a comparison file."""

from dataclasses import fields
from typing import Any

from ..evaluation.options import EvaluationOptions
from ..settings.keys import unknown_key_message


_SET_BY_US = ("output", "dry_run")


def check_options(options: dict[str, Any]) -> list[str]:
    """Everything that is wrong with the options of `exbias evaluate`, before anything is trained."""
    known = [f.name for f in fields(EvaluationOptions)]
    problems = [f"`evaluate`: {unknown_key_message(key, known)}" for key in options if key not in known]
    problems += [
        f"`evaluate`: `{key}` is set by the comparison itself. Leave it out." for key in _SET_BY_US if key in options
    ]
    if not problems:
        try:
            evaluation_options(options)
        except (ValueError, TypeError) as error:
            problems += [f"`evaluate`: {line}" for line in str(error).splitlines()]
    return problems


def evaluation_options(options: dict[str, Any]) -> EvaluationOptions:
    """
    As `exbias evaluate` reads them.

    Raises:
        ValueError, TypeError: for what cannot be.
    """
    return EvaluationOptions(**{key: _as_tuple(key, value) for key, value in options.items()})


def arguments(options: dict[str, Any]) -> list[str]:
    """The options as a command line of `exbias evaluate`."""
    argv = []
    defaults = {f.name: f.default for f in fields(EvaluationOptions)}
    for key, value in options.items():
        if value is None or value is False and defaults[key] is False:
            continue
        if isinstance(value, bool):
            argv.append(f"--{key}" if value else f"--no-{key}")
        else:
            values = _as_tuple(key, value)
            argv += [f"--{key}", *map(str, values if isinstance(values, tuple) else (values,))]
    return argv


def _as_tuple(key: str, value: Any) -> Any:
    """A list as a tuple, and a single value of an option that takes several."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if key in ("suites", "data") and isinstance(value, str) else value
