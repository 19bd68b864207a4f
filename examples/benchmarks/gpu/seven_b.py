"""Part 1: a 7B model with LoRA, random weights: an SFT step, a joint step, rollouts, memory against the plan."""

import gc
import tempfile

import torch
from transformers import MistralConfig

from .common import arguments, device, matrix_rate
from .planned import model_config
from .random_policy import random_policy
from .results import Results
from .rollout_speed import COMPLETE, measure_rollouts
from .training_steps import make_trainer, measure_steps, take_model


#: Cen 2024, Table 9: seconds of BASH for a global batch of 512, 7B, 8 A6000.
PAPER = {"batch": 512, "generation_seconds": 370, "training_seconds": 75}
MODES = {"with checkpointing": True, "without checkpointing": False}
#: On an H200, by what its first run took: start and policy 25 s, steps of a shape 30 s, rollouts 45 s of either shape.
FULL = {
    "config": {},  # Mistral-7B's own sizes
    "matrix": 8192,
    "lora_rank": 64,
    # Without checkpointing, 78 to 86 GB are planned for a joint step of 8 rows: too much for an H100.
    "training_rows": {"with checkpointing": 8, "without checkpointing": 4},
    "rollout_rows": 64,
    "rollout_batch_tokens": 16384,
    # The first shape also against decoding, and with gold that is not a guess at all.
    "shapes": [[512, 256], [128, 512]],
    "repeats": 3,
}
DRY = {
    "config": {
        "vocab_size": 200,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "matrix": 128,
    "lora_rank": 4,
    "training_rows": {"with checkpointing": 2, "without checkpointing": 2},
    "rollout_rows": 3,
    "rollout_batch_tokens": 64,
    "shapes": [[6, 8], [3, 10]],
    "repeats": 1,
}


def run(results: Results, sizes: dict) -> None:
    """Every figure of the part that is not there yet."""
    config = MistralConfig(**sizes["config"], bos_token_id=None, eos_token_id=None)
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    if "matrix_rate" not in results:
        results.put("matrix_rate", matrix_rate(sizes["matrix"]))
    policy = random_policy(config, dtype)
    results.put("parameters", sum(p.numel() for p in policy.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        model_args = model_config(folder, sizes["lora_rank"], str(dtype).removeprefix("torch."))
        for prompt, response in sizes["shapes"]:
            shape = f"{prompt}/{response}"
            for mode, checkpointing in MODES.items():
                key = f"steps {shape} {mode}"
                if key in results:
                    continue
                batch = sizes["training_rows"][mode], sizes["rollout_batch_tokens"], checkpointing
                trainer = make_trainer(f"{folder}/run", policy, model_args, prompt, response, *batch)
                results.put(key, measure_steps(trainer, model_args, results["matrix_rate"], sizes["repeats"]))
                policy = take_model(trainer)
                del trainer
                gc.collect()
            key = f"rollouts {shape}"
            if key not in results or not results[key].get(COMPLETE):
                batch = config.vocab_size, prompt, response, sizes["rollout_rows"]
                thorough = [prompt, response] == sizes["shapes"][0]
                for figures in measure_rollouts(policy, *batch, thorough):
                    results.put(key, figures)
            for mode in MODES:
                results.put(f"global batch {shape} {mode}", global_batch(results, shape, mode))
    results.finish()


def global_batch(results: Results, shape: str, mode: str) -> dict[str, float]:
    """Generation and training of the paper's global batch, from the rates measured on fewer rows."""
    rollouts, joint = results[f"rollouts {shape}"], results[f"steps {shape} {mode}"]["joint"]
    generation = PAPER["batch"] / rollouts["rows"] * rollouts["mix_own"]["seconds"]
    training = PAPER["batch"] / joint["rows"] * joint["seconds"]
    return {
        "rows": PAPER["batch"],
        "generation_seconds": generation,
        "training_seconds": training,
        "generation_to_training": generation / training,
        "paper_generation_to_training": PAPER["generation_seconds"] / PAPER["training_seconds"],
    }


def main() -> None:
    path, dry_run = arguments(__doc__)
    sizes = DRY if dry_run else FULL
    run(Results(path, sizes), sizes)


if __name__ == "__main__":
    main()
