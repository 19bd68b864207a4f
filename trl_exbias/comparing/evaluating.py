"""Evaluates the models of a comparison alike: one call of `exbias evaluate` for all of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .evaluate_options import arguments, evaluation_options
from .training import RunFailedError


FOLDER, FILE = "evaluation", "evaluation.json"


def check_evaluation(options: dict[str, Any]) -> None:
    """
    Loads the evaluation's data and looks at its options, so that a mistake is found before hours of training.

    Raises:
        ValueError, ImportError: as `exbias evaluate` would, except for what is wrong with a model.
    """
    from ..evaluation import tasks
    from ..evaluation.suites import load_suite

    asked = evaluation_options(options)
    for name in asked.suites:
        chosen = load_suite(name)
        chosen.check(asked)
        tasks.load(chosen, asked)


def evaluate(models: dict[str, str], options: dict[str, Any], output: Path) -> dict[str, Any]:
    """
    Evaluates models by their names, and returns what `evaluation.json` holds.

    What an earlier call generated is kept and not made again.

    Raises:
        RunFailedError: if the command failed; it has said why.
    """
    folder = output / FOLDER
    # The models first: an option with several values would take them for its own.
    command = [sys.executable, "-m", "trl_exbias.cli.main", "evaluate", *(f"{n}={m}" for n, m in models.items())]
    done = subprocess.run([*command, *arguments(options), "--output", str(folder)])
    if done.returncode:
        raise RunFailedError(
            f"`exbias evaluate` failed (status {done.returncode}); the trained runs are kept in {output}."
        )
    return json.loads((folder / FILE).read_text(encoding="utf-8"))
