"""What the parts share: their command line, the device, a timer, and settings of a trainer."""

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from trl_exbias.cli.memory import keep_freed_memory


#: Settings of every run that is measured.
QUIET: dict[str, Any] = {
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "num_rollouts_to_print": 0,
    "overwrite_output_dir": True,
    "max_degenerate_rate": 1.0,
}


def device() -> torch.device:
    """The GPU, or in a dry run the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> dict[str, Any]:
    """bfloat16 on a GPU; on a CPU what is quick there."""
    on_gpu = device().type == "cuda"
    return {"bf16": on_gpu, "use_cpu": not on_gpu}


def arguments(about: str) -> tuple[Path, bool]:
    """A part's command line: the path of its JSON, and whether this is a dry run."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("path", type=Path)
    parser.add_argument("--dry_run", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    keep_freed_memory()
    return options.path, options.dry_run


def seconds_of(run: Callable[[], object], repeats: int = 1, warm_ups: int = 1) -> float:
    """Mean seconds of a call, after some that do not count."""
    for _ in range(warm_ups):
        run()
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - started) / repeats


def synchronize() -> None:
    """Waits for what the GPU has been told to do."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(run: Callable[[], object]) -> int | None:
    """Peak of allocated bytes while `run` is called; `None` on a CPU."""
    if device().type != "cuda":
        run()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def matrix_rate(size: int, repeats: int = 20) -> float:
    """Floating-point operations a second of a square bfloat16 matrix product: what this card really does."""
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, repeats, warm_ups=3)
