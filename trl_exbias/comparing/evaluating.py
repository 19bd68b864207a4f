"""Evaluates the models of a comparison alike: one call of `exbias evaluate` for all of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .evaluate_options import arguments
from .training import RunFailedError


FOLDER, FILE = "evaluation", "evaluation.json"


def check_evaluation(model: str, options: dict[str, Any], output: Path) -> None:
    """
    Looks at the evaluation's data and options with a model at hand, so that a mistake is found before hours of training.

    Raises:
        ValueError: with what `exbias evaluate` says of it.
    """
    command = [sys.executable, "-m", "trl_exbias.cli.main", "evaluate", model, *arguments(options), "--dry_run"]
    done = subprocess.run([*command, "--output", str(output / FOLDER)], capture_output=True, text=True)
    if done.returncode:
        message = done.stderr.strip().rpartition("error: ")[2] or f"status {done.returncode}"
        raise ValueError(f"The evaluation cannot be made: {message}")


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
