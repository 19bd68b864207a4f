"""The rollout phase and the joint phase on two processes of one thread each, against one process of one thread."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from trl_exbias.core.leaving import leave

from .common import report


ROWS = 96


def train(output_dir: str, zero_stage: int) -> None:
    """One iteration of RAC on SmolLM2-135M and word problems; what a process of the benchmark does."""
    import deepspeed.ops
    from datasets import Dataset
    from transformers import TrainerCallback

    from trl_exbias import RACConfig, RACTrainer
    from trl_exbias.cli.memory import keep_freed_memory
    from trl_exbias.demo.word_problems import word_problems

    from .common import QUIET, load_model

    keep_freed_memory()

    class StopAfter(TrainerCallback):
        """The joint phase is timed over a few steps."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    options = {**QUIET, "sft_epochs": 0, "max_new_tokens": 48, "rollout_batch_tokens": 8192, "max_degenerate_rate": 1.0}
    if zero_stage:
        # Compiled at the first collective operation otherwise.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        options["deepspeed"] = {
            "zero_optimization": {"stage": zero_stage},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    options["per_device_train_batch_size"] = 8 // world_size
    model, tokenizer = load_model()
    trainer = RACTrainer(
        model=model,
        args=RACConfig(output_dir, num_rollouts_to_print=0, **options),
        train_dataset=Dataset.from_list(word_problems(ROWS, seed=0)),
        processing_class=tokenizer,
        callbacks=[StopAfter()],
    )
    assert trainer.accelerator.num_processes == world_size
    trainer.train()
    if zero_stage:
        assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine"
    if trainer.is_world_process_zero():
        logs = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
        record = {
            "rollouts": logs["seconds/rollouts"],
            "samples_per_second": 8 * trainer.state.global_step / logs["seconds/joint"],
        }
        Path(output_dir, "record.json").write_text(json.dumps(record), encoding="utf-8")


def measure(num_processes: int, zero_stage: int) -> dict[str, float]:
    """Runs `train` in processes of one thread each."""
    launch = ["-m"]
    if num_processes > 1:
        launch += ["accelerate.commands.launch", "--use_deepspeed", "--zero_stage", str(zero_stage)]
        launch += ["--num_processes", str(num_processes), "--main_process_port", "0", "-m"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, *launch, __spec__.name, folder, str(zero_stage)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            check=True,
        )
        return json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))


def main() -> None:
    """Both phases."""
    one, two = measure(1, 0), measure(2, 2)
    report(
        "rollout phase (RAC), 1 process ÷ 2 processes, a thread each",
        one["rollouts"] / two["rollouts"],
        "≥ 1.6",
        f"{one['rollouts']:.1f} s ÷ {two['rollouts']:.1f} s, {ROWS} rows",
    )
    report(
        "joint phase, samples per second, 2 processes (ZeRO-2) ÷ 1, a thread each",
        two["samples_per_second"] / one["samples_per_second"],
        "reported",
        f"{two['samples_per_second']:.2f} ÷ {one['samples_per_second']:.2f}, global batch of 8",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], int(sys.argv[2]))
        leave(0)
    else:
        main()
