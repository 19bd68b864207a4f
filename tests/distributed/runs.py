"""Launches `train.py` in processes of its own, and reads what a run has left."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from trl_exbias.core.fingerprint import weights_fingerprint
from trl_exbias.run.rollout_store import RolloutStore

from ..tiny import tiny_model
from .train import BASE, TEACHER, base_model


ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """A finished run's folder and record."""

    folder: Path
    record: dict

    @property
    def losses(self) -> list[float]:
        return self.record["losses"]

    @cached_property
    def model(self) -> PreTrainedModel | PeftModel:
        """The final model as it was saved."""
        folder = self.folder / "model"
        if (folder / "adapter_config.json").exists():
            base = AutoModelForCausalLM.from_pretrained(self.folder / BASE)
            return PeftModel.from_pretrained(base, folder, is_trainable=True)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @property
    def weights(self) -> torch.Tensor:
        """What was trained, flat."""
        trained = sorted((name, p.detach()) for name, p in self.model.named_parameters() if p.requires_grad)
        return torch.cat([parameter.flatten() for _, parameter in trained])

    @property
    def rollouts(self) -> list[dict]:
        """Those of the last iteration; none where nothing is rolled out ahead."""
        if not (self.folder / "rollouts").exists():
            return []
        folder = max((self.folder / "rollouts").iterdir())
        return sorted(RolloutStore(folder).read().to_list(), key=lambda row: row["example_id"])


def run(method: str, folder: Path, num_processes: int, engine: str = "ddp", **options) -> Run:
    """Trains 8 rows a step, over all processes; see `train.py`."""
    if engine.startswith("zero"):
        # `--cpu` would quietly leave DeepSpeed out.
        launch = ["accelerate.commands.launch", "--use_deepspeed", "--zero_stage", engine[4]]
        launch += ["--num_processes", str(num_processes), "--main_process_port", "0"]
    else:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    base_model(method).save_pretrained(folder / BASE)
    tiny_model(seed=7).save_pretrained(folder / TEACHER)
    arguments = [method, str(folder), str(8 // num_processes), engine, json.dumps(options)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tests.distributed.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Run(folder, json.loads((folder / "record.json").read_text()))


def check_engine(two: Run, engine: str) -> None:
    """The run was one of two processes, under the engine that was asked for."""
    assert two.record["world_size"] == 2
    wrappers = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPModule"}
    assert two.record["engine"] == wrappers.get(engine, "DeepSpeedEngine")
    assert two.record["sharded"] == engine.startswith(("zero3", "fsdp2"))


def check_equal(one: Run, two: Run, tolerance: float = 1e-4) -> None:
    """Losses, rollouts and weights (their relative distance) of a run in one process and of one in two."""
    assert one.record["world_size"] == 1
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert (two.weights - one.weights).norm() < tolerance * one.weights.norm()
    assert tokens(two.rollouts) == tokens(one.rollouts), "the same rollouts, token for token"
    scores = [[row["score"] for row in made.rollouts] for made in (one, two)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    for made in (one, two):
        # A sharded model's fingerprint is that of the whole one.
        assert made.record["fingerprint"] == weights_fingerprint(made.model)


def tokens(rollouts: list[dict]) -> list[dict]:
    """Rollouts without their scores and weights, which are floating-point numbers of batches of another shape."""
    return [{name: value for name, value in row.items() if name not in ("score", "token_weights")} for row in rollouts]
