"""What scheduled sampling costs compared with BASH: seconds for a global batch, generation and training (Cen 2024 Tables 7-9)."""

import tempfile
import time

from datasets import Dataset

from trl_exbias import BASHConfig, BASHTrainer, ScheduledSamplingConfig, ScheduledSamplingTrainer
from trl_exbias.rollouts import TransformersEngine

from .common import QUIET, chat_pairs, chat_rows, load_model, report
from .mix import decode, masks_of


BATCH, MICRO_BATCH = 16, 4
STEPS = 2
BETA = 0.2


def seconds_of_a_batch(trainer_class, config_class, batch: int = BATCH, steps: int = STEPS) -> dict[str, float]:
    """Seconds for one global batch of the joint phase, by what they are spent on."""
    model, tokenizer = load_model()
    pairs, _ = chat_pairs(batch * steps)
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    options = {**QUIET, "sft_epochs": 0, "beta": BETA, "max_length": None}
    options |= {"per_device_train_batch_size": MICRO_BATCH, "gradient_accumulation_steps": batch // MICRO_BATCH}
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(folder, num_rollouts_to_print=0, **options)
        trainer = trainer_class(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.train()
    assert trainer.state.global_step == steps
    spent: dict[str, float] = {}
    for entry in trainer.state.log_history:
        for key in ("seconds/rollouts", "seconds/mixing", "seconds/joint"):
            spent[key] = spent.get(key, 0.0) + entry.get(key, 0.0) / steps
    # Scheduled sampling mixes inside its joint phase.
    generation = spent["seconds/rollouts"] + spent["seconds/mixing"]
    return {"generation": generation, "training": spent["seconds/joint"] - spent["seconds/mixing"]}


def decoding_a_batch() -> float:
    """Seconds to draw one global batch token by token with a KV cache, all its rows at once."""
    model, tokenizer = load_model()
    prompts, responses, _ = chat_rows(BATCH * STEPS, tokenizer)
    engine = TransformersEngine(model, tokenizer.pad_token_id)
    masks = masks_of(responses, BETA)
    started = time.perf_counter()
    decode(engine, prompts, responses, masks, [list(range(i, i + BATCH)) for i in range(0, len(prompts), BATCH)])
    return (time.perf_counter() - started) / STEPS


def main() -> None:
    """Three ways to the same objective, with the same sampled tokens in expectation."""
    seconds_of_a_batch(BASHTrainer, BASHConfig, MICRO_BATCH, 1)  # a warm-up
    bash = seconds_of_a_batch(BASHTrainer, BASHConfig)
    online = seconds_of_a_batch(ScheduledSamplingTrainer, ScheduledSamplingConfig)
    by_token = {"generation": decoding_a_batch(), "training": online["training"]}
    for name, cost in (("decoding token by token", by_token), ("by sweeps, as shipped", online)):
        report(
            f"a global batch, scheduled sampling ({name}) ÷ BASH",
            sum(cost.values()) / sum(bash.values()),
            "report",
            f"{cost['generation']:.1f} + {cost['training']:.1f} s ÷ {bash['generation']:.1f} + {bash['training']:.1f} s, "
            f"generation + training, {BATCH} rows; generation alone {cost['generation'] / bash['generation']:.2f}",
        )


if __name__ == "__main__":
    main()
