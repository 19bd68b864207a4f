"""Whole checkpoints: one that was being written when the run died is never resumed from.

`Trainer` writes a checkpoint file by file into the folder that it is then found under. So a whole one says so: when
every file is on the disk, not merely in the kernel's buffers, `whole.json` is put next to them, with their sizes and
with what the run was.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from ..core.errors import UsageError
from ..core.files import flush, write_atomically
from ..core.upstream import CHECKPOINT_PREFIX, rotate_checkpoints
from .errors import NotWrittenError
from .processes import Processes


logger = logging.getLogger(__name__)

WHOLE = "whole.json"
_NAME = re.compile(rf"{CHECKPOINT_PREFIX}-(\d+)")
# TRL's and transformers' own settings that a step depends on. Those of our configs all count, except for what follows.
_INHERITED = (
    *("seed", "data_seed", "full_determinism", "max_steps", "num_train_epochs", "max_length", "bf16", "fp16", "optim"),
    *("optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "per_device_train_batch_size", "eos_token"),
    *("gradient_accumulation_steps", "completion_only_loss", "assistant_only_loss", "neftune_noise_alpha", "loss_type"),
    *("dataloader_drop_last", "average_tokens_across_devices"),
)
#: How long the phases are: a run may be extended; see `extension`.
PLAN_SETTINGS = ("max_steps", "num_train_epochs", "num_iterations", "sft_epochs", "epochs_per_iteration")
# How fast, or how loudly, but not what: a run may be resumed with others.
_FREE = (
    *("rollout_engine", "vllm_", "rollout_batch_tokens", "num_rollouts_to_print", "log_completions"),
    "overwrite_output_dir",
    # (What rollouts follow from is checked where they are: a phase that was trained on must be the same.)
    "max_new_tokens",
    "max_degenerate_rate",
    "soft_label_dir",
    "teacher_model_init_kwargs",
    "teacher_server_base_url",
    "cache_teacher",
    "cache_trunk",
)


def run_identity(args: TrainingArguments, method: str, data: str | None) -> dict[str, Any]:
    """What the steps of a run follow from, besides its model: method, data, settings, number of processes."""
    inherited = {field.name for field in fields(SFTConfig)}
    own = [f.name for f in fields(args) if f.name not in inherited and not f.name.startswith(_FREE)]
    settings = {name: getattr(args, name, None) for name in (*_INHERITED, *own)}
    # As they will be read back: enums as their values, whatever else as text.
    settings = json.loads(json.dumps(settings, default=lambda value: str(getattr(value, "value", value))))
    return {"method": method, "data": data, "world_size": args.world_size, **settings}


def save_complete(
    folder: Path,
    write: Callable[[], None],
    args: TrainingArguments,
    identity: dict[str, Any],
    iteration: int,
    processes: Processes,
    best: str | None,
) -> None:
    """
    Lets `write()` put a checkpoint into `folder`, and marks it as whole when all of it is on the disk.

    Older checkpoints go (`save_total_limit`) only then.

    Args:
        identity (`dict`): The run's, as [`run_identity`] gives it.
        iteration (`int`): In which the run is.
        best (`str`, *optional*): A checkpoint that stays, however old.

    Raises:
        NotWrittenError: what was half written is removed, and the newest whole checkpoint is named.
    """
    limit = args.save_total_limit
    if args.should_save and folder.is_dir():
        shutil.rmtree(folder)  # half written, or of a run that was resumed from before it
    processes.wait()
    try:
        args.save_total_limit = None
        try:
            write()
        finally:
            args.save_total_limit = limit
        processes.wait()
        if args.should_save:
            _mark(folder, identity, iteration)
    except Exception as error:
        # Whatever a writer raises (torch, safetensors, DeepSpeed: each its own) means the same: it is not there.
        if args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        newest = newest_complete(folder.parent)
        kept = f"{newest.name} is whole." if newest else "No checkpoint came before it."
        raise NotWrittenError(folder, error, kept) from error
    processes.wait()  # none looks for it before it is whole
    if args.should_save:
        rotate_checkpoints(folder.parent, limit, best)


def newest_complete(output_dir: str | Path) -> Path | None:
    """The checkpoint with the most steps that is whole; others are named in a warning and skipped."""
    found = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}-*")
    steps = {path: int(match[1]) for path in found if (match := _NAME.fullmatch(path.name)) is not None}
    for path in sorted(steps, key=lambda path: -steps[path]):
        problem = completeness_problem(path)
        if problem is None:
            return path
        logger.warning(f"{path} is skipped: {problem}.")
    return None


def completeness_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint; `None` if it is whole."""
    try:
        files = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["files"]
    except OSError:
        return f"it was not finished (it has no {WHOLE})"
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"its {WHOLE} cannot be read"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def checkpoint_to_resume(
    wanted: str | bool | None, args: TrainingArguments, identity: dict[str, Any], loads_optimizer: bool
) -> str | None:
    """
    The checkpoint that a run continues from: the one named, or for `True` the newest whole one.

    `None` means the beginning: not asked to resume, or nothing whole to resume from (then with a warning).

    Args:
        identity (`dict`): The run's, as [`run_identity`] gives it.
        loads_optimizer (`bool`): Whether transformers can put an optimizer's state back into this run's processes.

    Raises:
        ValueError: where the checkpoint named is not whole, or the run that made it was another one.
    """
    if not wanted:
        return None
    if wanted is True:
        folder = newest_complete(args.output_dir)
        if folder is None:
            logger.warning(f"{args.output_dir} has no whole checkpoint: the run starts from the beginning.")
            return None
    else:
        folder = Path(wanted)
        problem = completeness_problem(folder) if folder.is_dir() else "it is not a folder"
        if problem is not None:
            raise UsageError(
                f"`resume_from_checkpoint={wanted}` cannot be resumed from: {problem}. Use `resume_from_checkpoint=True` for "
                "the newest whole checkpoint."
            )
    _check_same_run(folder, identity, {field.name: field.default for field in fields(args)})
    if not loads_optimizer:
        raise UsageError(
            "transformers cannot load an optimizer's state into several processes on CPUs. Resume under DeepSpeed, or on GPUs."
        )
    return str(folder)


def _check_same_run(folder: Path, identity: dict[str, Any], defaults: dict[str, Any]) -> None:
    made_by = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["run"]
    # A setting that an earlier release did not have was off, as it is by default.
    made_by |= {key: defaults[key] for key in identity if key not in made_by and key in defaults}
    differing = [
        f"`{key}` was {made_by.get(key)!r} and is now {identity.get(key)!r}"
        for key in dict.fromkeys([*made_by, *identity])
        if key not in PLAN_SETTINGS and made_by.get(key) != identity.get(key)
    ]
    if differing:
        raise UsageError(
            f"{folder} was made by another run: {'; '.join(differing)}. Resume with the settings, the data and the number of "
            f"processes of that run, or start a new one from its weights: the model `{folder}`, another `output_dir`."
        )


def _mark(folder: Path, identity: dict[str, Any], iteration: int) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        flush(path)
        files[str(path.relative_to(folder))] = path.stat().st_size
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder.parent]:
        flush(path)
    write_atomically(
        folder / WHOLE, json.dumps({"run": identity, "iteration": iteration, "files": files}, indent=2).encode()
    )
