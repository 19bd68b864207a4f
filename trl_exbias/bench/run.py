"""Runs a bench: cells side by side on the cores there are, results on disk as they come."""

import gc
import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.calm import calm_imports
from .plan import START_TOKENS, Bench, Cell


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tasks import Task


logger = logging.getLogger(__name__)
_TEACHER_SEED, _HELD_OUT_SEED, _ROWS_SEED = 777, 5, 1000


def run_bench(bench: Bench, workers: int, on_cell: Callable[[Cell, int, int], None]) -> None:
    """
    Runs every cell that lacks a result, `workers` at a time.

    Args:
        on_cell (`Callable[[Cell, int, int], None]`): Told of each cell that is done, how many are, and how many there are.
    """
    waiting = [cell for cell in bench.cells() if bench.missing(cell)]
    # A new interpreter each: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        if any(arm.has_teacher for arm in bench.arms):
            list(pool.map(_make_teacher, [bench] * len(bench.tasks), bench.tasks))
        running = {pool.submit(run_cell, bench, cell): cell for cell in waiting}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                future.result()
                on_cell(running[future], done, len(waiting))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_cell(bench: Bench, cell: Cell) -> None:
    """Trains a cell's starting model and every arm from it that has no result."""
    from .arms import ARMS
    from .measures import measure
    from .model import dataset_of, new_model, starting_dataset, tokenizer_of
    from .tasks import TASKS
    from .training import train

    task, sizes = TASKS[cell.task], bench.sizes
    tokenizer = tokenizer_of(task)
    rows, held_out = task.make(sizes.rows, _ROWS_SEED + cell.seed), task.make(sizes.held_out, _HELD_OUT_SEED)
    length = rows.responses.size(1) + 1  # and the end token
    started = starting_dataset(task, rows, cell.seed)
    start, _ = train(
        ARMS[0], lambda: new_model(task, cell.seed), tokenizer, started, length, START_TOKENS[task.name], cell.seed
    )
    weights = start.state_dict()

    def starting_model() -> "PreTrainedModel":
        model = new_model(task, cell.seed)
        model.load_state_dict(weights)
        return model

    def keep(name: str, model: "PreTrainedModel", consumed: dict, began: float) -> None:
        values = measure(model, task, held_out, tokenizer.pad_token_id)
        record = {"task": task.name, "seed": cell.seed, "arm": name, "consumed": consumed, "values": values}
        _write(path.with_name(f"{name}.json"), {**record, "seconds": time.perf_counter() - began})

    teacher = None
    for arm in bench.missing(cell):
        path, began = bench.result_file(cell, arm), time.perf_counter()
        if arm is bench.arms[0]:
            keep("start", starting_model().eval(), {}, began)
        if arm.has_teacher and teacher is None:
            teacher = _load_teacher(bench, task.name)
        model, consumed = train(
            arm,
            starting_model,
            tokenizer,
            dataset_of(task, rows),
            length,
            sizes.arm_tokens,
            seed=cell.seed + 100,
            teacher=teacher if arm.has_teacher else None,
        )
        keep(arm.name, model, {**consumed, "settings": arm.settings}, began)


def _make_teacher(bench: Bench, task_name: str) -> None:
    """A wider model, trained by SFT on other rows; the same for all seeds."""
    from safetensors.torch import save_file

    from .arms import ARMS
    from .model import dataset_of, tokenizer_of
    from .tasks import TASKS
    from .training import train

    path = _teacher_file(bench, task_name)
    if path.is_file():
        return
    task = TASKS[task_name]
    rows = task.make(bench.sizes.teacher_rows, _TEACHER_SEED)
    model, _ = train(
        ARMS[0],
        lambda: _new_teacher(task),
        tokenizer_of(task),
        dataset_of(task, rows),
        rows.responses.size(1) + 1,
        # Better than what the students become: else a teacher's labels would be judged by its faults.
        max(START_TOKENS[task_name], bench.sizes.teacher_tokens),
        _TEACHER_SEED,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # GPT-2 ties its head to its embedding: what is stored once is loaded twice.
    save_file({name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}, path)


def _load_teacher(bench: Bench, task_name: str) -> "PreTrainedModel":
    from safetensors.torch import load_file

    from .tasks import TASKS

    teacher = _new_teacher(TASKS[task_name])
    teacher.load_state_dict(load_file(_teacher_file(bench, task_name)), strict=False)
    return teacher.eval()


def _new_teacher(task: "Task") -> "PreTrainedModel":
    from .model import new_model

    return new_model(task, _TEACHER_SEED, width=96)


def _teacher_file(bench: Bench, task_name: str) -> Path:
    return bench.output / "teachers" / f"{task_name}.safetensors"


def _write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(partial, path)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _begin_worker() -> None:
    """Quiet, of one thread, and gone with the process that began it: a bench that is killed leaves nothing running."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    calm_imports()
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl_exbias").setLevel(logging.ERROR)
    from .arms import ARMS

    ARMS[0].trainer_class()
    # accelerate collects garbage whenever a training begins and ends: half a second through what libraries hold for good.
    gc.freeze()
