"""What runs will consume: asked of `exbias check` before anything is trained, with every problem of every run at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings.recipe import RecipeError
from .comparison_file import PlannedRun
from .launching import launch_arguments


_PLACEMENT = ("accelerate_config", "config_file", "num_processes")


@dataclass(frozen=True)
class Forecast:
    """
    A run as `exbias check` plans it, at the length that the file declares.

    Args:
        steps (`int`): Optimizer updates.
        trained, generated, teacher (`float`): Tokens, as in [`Compute`]; sampled responses as long as possible.
        last_steps (`int`), last_tokens (`float`): Steps and tokens of the last phase, read in its steps: what a longer run has more of.
        sft_steps (`int`), sft_tokens (`float`): Those of the SFT phase, whose tokens are known except that the first rows
            stand for all; 0 where there is none.
    """

    steps: int
    trained: float
    generated: float
    teacher: float
    last_steps: int
    last_tokens: float
    sft_steps: int = 0
    sft_tokens: float = 0.0

    @classmethod
    def from_plan(cls, plan: dict[str, Any], draws_in_steps: bool) -> "Forecast | None":
        """From the plan that `exbias check --json` prints; `None` where it does not know the number of rows."""
        phases = plan["phases"]
        known = ("steps", "tokens", "rollout_tokens", "label_tokens", "online_tokens")
        if not phases or any(phase[key] is None for phase in phases for key in known):
            return None
        sft, last = phases[0], phases[-1]
        is_sft = sft["iteration"] == 0
        # Drawn by scheduled sampling; read by a teacher that stands in the step.
        online, draws = sum(phase["online_tokens"] for phase in phases), draws_in_steps
        return cls(
            steps=sum(phase["steps"] for phase in phases),
            trained=sum(phase["tokens"] for phase in phases),
            generated=sum(phase["rollout_tokens"] for phase in phases) + (online if draws else 0),
            teacher=sum(phase["label_tokens"] for phase in phases) + (0 if draws else online),
            last_steps=last["steps"],
            last_tokens=last["tokens"] + last["online_tokens"],
            sft_steps=sft["steps"] if is_sft else 0,
            sft_tokens=sft["tokens"] if is_sft else 0.0,
        )


def forecast_runs(
    runs: list[tuple[PlannedRun, Path]],
    launch: dict[str, Any],
    on_done: Callable[[], object] = lambda: None,
    jobs: int = 2,
) -> dict[str, Forecast | None]:
    """
    The forecast of each run, by its name, from its recipe file; `None` where its rows are not known.

    Args:
        launch (`dict`): Flags of the launcher; those that say on how many processes a run is made are of interest.

    Raises:
        RecipeError: with every problem of every run.
    """
    with ThreadPoolExecutor(jobs) as pool:
        checked = list(pool.map(lambda job: _check(job[0], job[1], launch, on_done), runs))
    problems = [
        f"{run.name}: {finding['subject']}: {finding['message']}"
        for (run, _), report in zip(runs, checked, strict=True)
        for finding in report["errors"]
    ]
    if problems:
        raise RecipeError("comparison", problems)
    return {
        run.name: None if report["plan"] is None else Forecast.from_plan(report["plan"], run.plan.draws_in_steps)
        for (run, _), report in zip(runs, checked, strict=True)
    }


def _check(run: PlannedRun, recipe: Path, launch: dict[str, Any], on_done: Callable[[], object]) -> dict[str, Any]:
    # It continues where a killed one stopped: a folder that holds a run is not a mistake here.
    command = [sys.executable, "-m", "trl_exbias.cli.main", "check", str(recipe), "--method", run.trains_with, "--json"]
    command += ["--resume_from_checkpoint", "true", *launch_arguments(launch, _PLACEMENT)]
    done = subprocess.run(command, capture_output=True, text=True)
    on_done()
    try:
        return json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        message = done.stderr.strip().removeprefix("error: ") or f"`exbias check` ended with status {done.returncode}."
        return {"errors": [{"subject": "check", "message": message}], "plan": None}
