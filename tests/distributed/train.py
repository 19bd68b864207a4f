"""What the processes of a distributed test run: one short training of a tiny model, and a record of what it did.

python -m tests.distributed.train METHOD OUTPUT_DIR PER_DEVICE_BATCH_SIZE STAGE      # STAGE: of ZeRO, 0 for none of it
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

from trl_exbias import BASHConfig, BASHTrainer, DaDDaggerConfig, DaDDaggerTrainer, RACConfig, RACTrainer

from ..tiny import conversations, tiny_model
from ..trainers.runs import config, logged, trainer


# Two documents of eight trajectories each: accelerate fills up an uneven last batch with rows from the start.
TEXT = ["The fox went out on a chilly night, and ", "prayed to the moon to give him light on."]
DAD = {"context_length": 8, "rollout_length": 4, "num_iterations": 2, "num_train_epochs": 1}
METHODS = {
    "bash": (BASHTrainer, BASHConfig, {"beta": 0.3}),
    # Two shards: one for each of two processes.
    "bash-vllm": (BASHTrainer, BASHConfig, {"beta": 0.3, "rollout_engine": "vllm"}),
    "rac": (RACTrainer, RACConfig, {"max_new_tokens": 12}),
    "dad-dagger": (DaDDaggerTrainer, DaDDaggerConfig, DAD),
    "dad-dagger-on-the-fly": (DaDDaggerTrainer, DaDDaggerConfig, DAD | {"cache_teacher": False}),
}


def deepspeed_config(stage: int) -> dict:
    """ZeRO with torch's optimizer: DeepSpeed's own for CPUs is compiled for a minute."""
    import deepspeed.ops

    # Compiled at the first collective operation otherwise.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            # Every weight is partitioned: small ones would otherwise stay whole, and a tiny model has no others.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def teacher_parameters(done) -> list:
    engine = getattr(done, "_teacher_engine", None)
    return [] if engine is None else list(engine.parameters())


def main(method: str, output_dir: str, batch_size: int, stage: int) -> None:
    """Trains, and writes losses, weights and the number of processes next to the run."""
    trainer_class, config_class, options = METHODS[method]
    options = {"per_device_train_batch_size": batch_size, "learning_rate": 1e-3, **options}
    options |= {"deepspeed": deepspeed_config(stage)} if stage else {"ddp_backend": "gloo"}
    extra = {}
    if method.startswith("dad-dagger"):
        data, teacher = Dataset.from_list([{"text": text} for text in TEXT]), Path(output_dir) / "teacher"
        # By name: under ZeRO-3 it is then loaded in slices, or must not be.
        tiny_model(seed=7).save_pretrained(teacher)
        extra["teacher_model"] = str(teacher)
    else:
        data = conversations(128 if method == "bash-vllm" else 16)
    model = tiny_model("mistral", head_dim=32) if method == "bash-vllm" else tiny_model()
    done = trainer(trainer_class, config(config_class, output_dir, **options), data, model, **extra)
    done.train()
    done.save_model(str(Path(output_dir) / "model"))
    if done.is_world_process_zero():
        record = {
            "world_size": done.accelerator.num_processes,
            "engine": type(done.model_wrapped).__name__,
            "sharded": any(hasattr(p, "ds_tensor") for p in done.model.parameters()),
            "teacher_sharded": any(hasattr(p, "ds_tensor") for p in teacher_parameters(done)),
            "losses": logged(done, "loss"),
        }
        (Path(output_dir) / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    # The launcher's processes have one name: one of them makes the teacher's folder, the other finds it.
    torch.manual_seed(0)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
