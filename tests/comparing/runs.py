"""Run directories and evaluations as the commands leave them behind, without the hours."""

import json
from pathlib import Path

import numpy as np

from trl_exbias.evaluation.figures import Figure


CONFIG = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 256,
    "num_train_epochs": 1.0,
    "sft_epochs": 1.0,
    "num_iterations": 1,
    "max_steps": -1,
    "bf16": False,
    "seed": 0,
    "model_init_kwargs": None,
}


def write_run(
    folder: Path,
    method: str = "BASH",
    own: dict | None = None,
    trained: tuple[int, ...] = (600, 1200),
    rolled_out: int = 300,
    data: str = "43b5f82a",
    seconds: dict[str, float] | None = None,
    logs: list[dict] = (),
    **run,
) -> Path:
    """A finished run of one step for each of `trained`, the logged count of tokens."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **(own or {})}
    record = {
        "method": method,
        "data": data,
        "rows": 48,
        "config": config,
        "seed": config["seed"],
        "world_size": 1,
        "versions": {"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "trl-exbias": "0.1.0"},
        "hardware": {"machine": "x86_64", "threads": 2, "accelerators": []},
        **run,
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": step, "loss": 1.0, "num_tokens": count} for step, count in enumerate(trained, start=1)]
    seconds = {"sft": 10.0, "rollouts": 30.0, "joint": 20.0} if seconds is None else seconds
    lines += [{"step": len(trained), f"seconds/{phase}": value} for phase, value in seconds.items()]
    lines += logs
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if rolled_out:
        iteration = folder / "rollouts" / "iteration-1"
        iteration.mkdir(parents=True)
        manifest = {"format": 1, "complete": True, "stats": {"rollout/length": [rolled_out, 48.0]}, "shards": []}
        (iteration / "manifest.json").write_text(json.dumps(manifest))
    return folder


def figure(name: str, mean: float, seed: int = 0, n: int = 60, spread: float = 0.3, **fields) -> Figure:
    """A figure over prompts whose values scatter about `mean`."""
    values = mean + spread * np.random.default_rng(seed).standard_normal(n)
    return Figure.over_prompts(name, {str(i): float(v) for i, v in enumerate(values)}, **fields)
