"""What `accelerate launch` starts in its test: one optimizer step, and a line of JSON on what is in use.

accelerate launch --config_file FILE -m tests.cli.accelerate_probe OUTPUT_FILE
"""

import json
import sys

import torch
from transformers import TrainingArguments

from ..tiny import tiny_model


def main(output_file: str) -> None:
    """A step of a tiny model through an accelerator made as `Trainer` makes it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    args = TrainingArguments(output_dir="unused", use_cpu=True, per_device_train_batch_size=1)
    # Asking for it starts the process group, with gloo.
    assert args.device.type == "cpu"
    accelerator = Accelerator()
    if accelerator.state.deepspeed_plugin is not None:
        import deepspeed.ops

        # Compiled for a minute otherwise: a collective operation's, and an optimizer's for CPUs.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["zero_force_ds_cpu_optimizer"] = False
        # What `Trainer` fills in.
        config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    model = tiny_model().train()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    tokens = torch.arange(8)[None]
    loss = model(input_ids=tokens, labels=tokens).loss
    accelerator.backward(loss)
    optimizer.step()
    state = AcceleratorState()
    record = {
        "world_size": accelerator.num_processes,
        "distributed_type": state.distributed_type.value,
        "mixed_precision": state.mixed_precision,
        "engine": type(model).__name__,
        "zero_stage": None if state.deepspeed_plugin is None else state.deepspeed_plugin.zero_stage,
        "loss": loss.item(),
    }
    if accelerator.is_main_process:
        with open(output_file, "w") as file:
            json.dump(record, file)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
