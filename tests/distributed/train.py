"""What the processes of a distributed test run: one short training of a tiny model, and a record of what it did.

python -m tests.distributed.train METHOD OUTPUT_DIR PER_DEVICE_BATCH_SIZE
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

from trl_exbias import BASHConfig, BASHTrainer, DaDDaggerConfig, DaDDaggerTrainer, RACConfig, RACTrainer

from ..tiny import conversations, tiny_model
from ..trainers.runs import config, logged, trainer, weights


# Two documents of eight trajectories each: accelerate fills up an uneven last batch with rows from the start.
TEXT = ["The fox went out on a chilly night, and ", "prayed to the moon to give him light on."]


def main(method: str, output_dir: str, batch_size: int) -> None:
    """Trains, and writes losses, weights and the number of processes next to the run."""
    options, extra = {"per_device_train_batch_size": batch_size, "learning_rate": 1e-3, "ddp_backend": "gloo"}, {}
    if method == "dad-dagger":
        classes, data = (DaDDaggerConfig, DaDDaggerTrainer), Dataset.from_list([{"text": text} for text in TEXT])
        options |= {"context_length": 8, "rollout_length": 4, "num_iterations": 2, "num_train_epochs": 1}
        extra["teacher_model"] = tiny_model(seed=7)
    elif method == "bash-vllm":
        # Two shards: one for each of two processes.
        classes, data = (BASHConfig, BASHTrainer), conversations(128)
        options |= {"rollout_engine": "vllm", "beta": 0.3}
        extra["model"] = tiny_model("mistral", head_dim=32)
    else:
        classes, data = {"bash": (BASHConfig, BASHTrainer), "rac": (RACConfig, RACTrainer)}[method], conversations(16)
        options |= {"max_new_tokens": 12} if method == "rac" else {"beta": 0.3}
    done = trainer(classes[1], config(classes[0], output_dir, **options), data, **extra)
    done.train()
    if done.is_world_process_zero():
        record = {"world_size": done.accelerator.num_processes, "losses": logged(done, "loss")}
        (Path(output_dir) / "record.json").write_text(json.dumps(record))
        torch.save(weights(done), Path(output_dir) / "weights.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
