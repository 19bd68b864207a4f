"""A short run of three phases in a process of its own, and the faults that can strike it.

python -m tests.faults.run OUTPUT_DIR          # for a launcher of several processes: resumes, without a fault
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.loop import rollout_rows

from ..loop.runs import config, trainer
from ..tiny import conversations, tiny_model


SHARDS = 4
# SFT is steps 1 to 3, iteration 1 steps 4 to 6, iteration 2 steps 7 to 9; checkpoints 2, 3, 4, 6, 8, 9.
OPTIONS = {
    "beta": 0.5,
    "num_iterations": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "max_degenerate_rate": 1.0,
}
CALLS = "calls.jsonl"


class Run(BASHTrainer):
    """Keeps a record, outside the run directory, of the rows that it rolled out."""

    before_shard: Callable[[int], None] = staticmethod(lambda made: None)

    def build_branches(self, examples, engine, options):
        record = Path(self.args.output_dir).with_name(CALLS)
        made = len(record.read_text().splitlines()) if record.exists() else 0
        self.before_shard(made)
        branches = super().build_branches(examples, engine, options)
        with open(record, "a") as file:
            file.write(json.dumps([options.seed, [example.id for example in examples]]) + "\n")
        return branches


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def out_of_room() -> None:
    """From here on a file can grow no further than 64 bytes: the kernel refuses, as it does when a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


class AtStep(TrainerCallback):
    """Strikes when a step begins or ends."""

    def __init__(self, step: int, strike: Callable[[], Any], begins: bool = False):
        self.step, self.strike, self.begins = step, strike, begins

    def on_step_begin(self, args, state, control, **kwargs):
        if self.begins and state.global_step == self.step:
            self.strike()

    def on_step_end(self, args, state, control, **kwargs):
        if not self.begins and state.global_step == self.step:
            self.strike()


def at_file(event: str, part: str, strike: Callable[[], None]) -> None:
    """Strikes when Python opens for writing, renames (to), or removes a path that contains `part`."""

    def hook(name: str, arguments: tuple) -> None:
        if name != event or (event == "open" and "w" not in str(arguments[1])):
            return
        if part in str(arguments[1] if event == "os.rename" else arguments[0]):
            strike()

    sys.addaudithook(hook)


def strike_at(fault: str, run: Run) -> None:
    """Arms a fault."""
    folder = run.args.output_dir
    match fault:
        case "none":
            pass
        case "kill in SFT, before any checkpoint":
            run.add_callback(AtStep(1, die))
        case "kill in SFT":
            run.add_callback(AtStep(3, die))
        case "kill while a shard is made":
            at_file("os.rename", "iteration-1/shard-00001", die)
        case "kill between shards":
            run.before_shard = lambda made: die() if made == 2 else None
        case "kill between rollouts and training":
            run.add_callback(AtStep(3, die, begins=True))
        case "kill in an epoch":
            run.add_callback(AtStep(5, die))
        case "kill in the second rollouts":
            run.before_shard = lambda made: die() if made == SHARDS + 1 else None
        case "kill as a checkpoint begins":
            at_file("open", "checkpoint-4/config.json", die)
        case "kill in a checkpoint":
            at_file("open", "checkpoint-4/trainer_state.json", die)
        case "kill as a checkpoint ends":
            at_file("os.rename", "checkpoint-4/whole.json", die)
        case "kill as an old checkpoint goes":
            at_file("os.remove", "checkpoint-2/", die)
        case "kill in the final save":
            at_file("open", f"{folder}/config.json", die)
        case "no room for a shard":
            at_file("open", "iteration-1/.shard-00001", out_of_room)
        case "no room for a checkpoint":
            at_file("open", "checkpoint-4/config.json", out_of_room)
        case "no room for the log":
            run.add_callback(AtStep(5, out_of_room))
        case "SIGTERM in SFT":
            run.add_callback(AtStep(1, terminate))
        case "SIGTERM in an epoch":
            run.add_callback(AtStep(5, terminate))
        case "SIGTERM in rollouts":
            run.before_shard = lambda made: terminate() if made == 1 else None
        case _:
            raise ValueError(fault)


def main(output_dir: str, fault: str = "none", resume: str | bool = True, **options: Any) -> None:
    """Begins the run, or continues it."""
    torch.set_num_threads(1)
    rollout_rows._MIN_SHARD_ROWS, rollout_rows._SHARDS_WANTED = 3, SHARDS
    args = config(BASHConfig, output_dir, **{**OPTIONS, **options})
    run = trainer(Run, args, conversations(12), tiny_model(attention_dropout=0.2))
    strike_at(fault, run)
    run.train(resume_from_checkpoint=resume)
    run.save_model(output_dir)


def in_process(said: Connection, output_dir: str, fault: str, options: dict[str, Any]) -> None:
    """What a process of the matrix does; what it says goes into a pipe (a file would have no room either)."""
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    said.close()
    main(output_dir, fault, **options)


if __name__ == "__main__":
    main(sys.argv[1], use_cpu=True, ddp_backend="gloo")
