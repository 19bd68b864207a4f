"""Runs the training command for a comparison, in a process of its own; continues where an earlier call was stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from ..core.errors import UsageError
from ..run.errors import RunStoppedError
from .comparison_file import PlannedRun
from .compute import ATTEMPTS_FILE, METRICS_FILE, read_attempts
from .launching import launch_arguments


RECIPE_FILE, LOG_FILE = "recipe.yaml", "train.log"
_POLL_SECONDS = 0.5
_RECORD_EVERY = 5.0  # seconds: what a killed comparison can lose of its account
_LOG_LINES = 15
# How a run is watched, not what it does: may change between two calls.
_LOUDNESS = ("report_to", "logging_steps", "num_rollouts_to_print", "log_completions", "disable_tqdm", "env")


class RunFailedError(RuntimeError):
    """A training run ended otherwise than well; the message has the end of its log."""


def write_recipe(run: PlannedRun, folder: Path, max_steps: int | None = None) -> Path:
    """
    The recipe that the run is trained from, in its own folder.

    A run that was begun keeps the number of steps it was begun with.

    Raises:
        ValueError: if the folder holds a run with another recipe; names every key that differs.
    """
    path = folder / RECIPE_FILE
    keys = {**run.keys, "output_dir": str(folder)}
    before = read_recipe(folder)
    begun = (folder / METRICS_FILE).is_file() or (folder / ATTEMPTS_FILE).is_file()
    if max_steps is not None:
        keys["max_steps"] = max_steps
    if before is not None and begun:
        if "max_steps" in before and "max_steps" not in run.keys:
            keys["max_steps"] = before["max_steps"]
        differing = [
            f"`{key}` was {before.get(key)!r} and is now {keys.get(key)!r}"
            for key in dict.fromkeys([*before, *keys])
            # Its length is what the comparison works out, once the budget is known.
            if before.get(key) != keys.get(key) and key not in (*_LOUDNESS, "max_steps", "output_dir")
        ]
        if differing:
            raise UsageError(
                f"{folder} was trained with other settings: {'; '.join(differing)}. Delete the folder to train again, or "
                "choose another output folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe that the run in a folder was begun with; `None` where `exbias compare` has begun none."""
    path = folder / RECIPE_FILE
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_finished(folder: Path) -> bool:
    """Whether `exbias compare` has trained the run in this folder to its end."""
    attempts = read_attempts(folder)
    return bool(attempts) and attempts[-1]["status"] == 0


def train(
    run: PlannedRun, folder: Path, total_steps: int | None, title: str, launch: dict[str, Any] | None = None
) -> None:
    """
    Trains a run from its recipe, or continues it; returns at once where it is finished.

    Args:
        total_steps (`int`, *optional*): For the progress bar.
        title (`str`): The title of the bar.
        launch (`dict`, *optional*): Flags of `accelerate launch`.

    Raises:
        RunFailedError: if the command failed.
        RunStoppedError: if it was told to go.
    """
    if is_finished(folder):
        return
    attempts = read_attempts(folder)
    _refuse_second_trainer(folder, attempts)
    command = [sys.executable, "-m", "trl_exbias.cli.main", *run.command, "--config", str(folder / RECIPE_FILE)]
    command += ["--resume_from_checkpoint", "true", *launch_arguments(launch or {})]
    record: dict[str, Any] = {"seconds": 0.0, "status": None, "host_bytes": None, "pid": None}
    started = time.perf_counter()
    with open(folder / LOG_FILE, "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    record["pid"] = process.pid
    with _handing_on_sigterm(process) as asked, tqdm(total=total_steps, desc=title, unit="step", leave=False) as bar:
        recorded, status = float("-inf"), None
        while status is None:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            record["seconds"] = time.perf_counter() - started
            if pid == 0:
                status = None
                if record["seconds"] - recorded >= _RECORD_EVERY:
                    recorded = record["seconds"]
                    _write_attempts(folder, [*attempts, record])
                bar.update(_steps_done(folder) - bar.n)
                time.sleep(_POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    # The peak of the largest of its processes: the launcher's children that it waited for are counted.
    record |= {"status": process.returncode, "host_bytes": usage.ru_maxrss * _RSS_UNIT, "pid": None}
    _write_attempts(folder, [*attempts, record])
    if process.returncode == 0:
        return
    from ..run.errors import RESUME_EXIT_CODE

    if process.returncode == RESUME_EXIT_CODE or asked:
        raise RunStoppedError(f"{run.name} was told to stop and is kept in {folder}: the same command continues.")
    end = "\n".join(_last_lines(folder / LOG_FILE))
    raise RunFailedError(f"Training {run.name} failed (status {process.returncode}); {folder / LOG_FILE} ends:\n{end}")


#: Bytes that `ru_maxrss` counts in.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@contextlib.contextmanager
def _handing_on_sigterm(process: subprocess.Popen) -> Iterator[list[int]]:
    """A scheduler's SIGTERM reaches the trainer, which saves; yields what has arrived."""
    arrived: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        arrived.append(number)
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield arrived
    except KeyboardInterrupt:
        # The terminal has told it too; it is let finish, so that nothing is left running.
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_second_trainer(folder: Path, attempts: list[dict[str, Any]]) -> None:
    pid = attempts[-1]["pid"] if attempts else None
    if pid is None:
        return
    import psutil

    with contextlib.suppress(psutil.Error):
        if str(folder / RECIPE_FILE) in psutil.Process(pid).cmdline():
            raise UsageError(
                f"{folder} is being trained by process {pid}, which an earlier call has left. Wait for it, or end it; "
                "then call again."
            )


def _write_attempts(folder: Path, attempts: list[dict[str, Any]]) -> None:
    from ..core.files import write_atomically

    write_atomically(folder / ATTEMPTS_FILE, json.dumps(attempts, indent=2).encode())


def _steps_done(folder: Path) -> int:
    lines = _last_lines(folder / METRICS_FILE, 2)
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def _last_lines(path: Path, number: int = _LOG_LINES) -> list[str]:
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        return file.read().decode(errors="replace").splitlines()[-number:]
