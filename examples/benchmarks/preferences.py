"""A step of `SPINTrainer` against the same loss of the same pairs by TRL's `DPOTrainer` with precomputed references."""

import statistics
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_exbias import SPINConfig, SPINTrainer
from trl_exbias.core.likelihood import label_nll
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.run.rollout_store import RolloutStore

from .common import QUIET, StepTimes, chat_pairs, load_model, report


ROWS = 4
SETTINGS = {**QUIET, "per_device_train_batch_size": ROWS, "learning_rate": 1e-6}


def spin(data: Dataset, tokenizer, folder: str) -> tuple[SPINTrainer, StepTimes]:
    """A finished run without SFT and without gold's own loss: pairs alone."""
    times = StepTimes()
    args = SPINConfig(
        folder,
        sft_epochs=0,
        num_iterations=1,
        num_train_epochs=1,
        sft_weight=0.0,
        spin_lambda=0.1,
        max_new_tokens=128,
        max_length=1024,
        max_degenerate_rate=1.0,
        num_rollouts_to_print=0,
        **SETTINGS,
    )
    trainer = SPINTrainer(
        model=str(embedded_model()), args=args, train_dataset=data, processing_class=tokenizer, callbacks=[times]
    )
    trainer.train()
    return trainer, times


def pairs_of(trainer: SPINTrainer, model, tokenizer) -> Dataset:
    """The pairs that it was trained on, as `DPOTrainer` has them once they are tokenized, with their reference."""
    store = RolloutStore(next(Path(trainer.args.output_dir).glob("rollouts/*")))
    own = {row["example_id"]: row["input_ids"] for row in store.read()}
    rows = []
    for i, row in enumerate(trainer.train_dataset):
        split = row["context_length"]
        rows.append(
            {
                "prompt_ids": row["input_ids"][:split],
                "chosen_ids": row["input_ids"][split:],
                "rejected_ids": own[i],
            }
        )
    for side in ("chosen", "rejected"):
        responses = [row[f"{side}_ids"] for row in rows]
        nll = label_nll(model, [row["prompt_ids"] for row in rows], responses, responses, tokenizer.pad_token_id)
        for row, values in zip(rows, nll, strict=True):
            row[f"ref_{side}_logps"] = -sum(values)
    return Dataset.from_list(rows)


def dpo(pairs: Dataset, tokenizer, folder: str) -> tuple[DPOTrainer, StepTimes]:
    """A finished run on given pairs."""
    times = StepTimes()
    some = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(embedded_model()),
        args=DPOConfig(
            folder, beta=0.1, num_train_epochs=1, precompute_ref_log_probs=True, max_length=None, **SETTINGS
        ),
        train_dataset=some,
        processing_class=tokenizer,
        callbacks=[times],
    )
    trainer.train_dataset = pairs
    trainer.train()
    return trainer, times


def main(num_rows: int = 5 * ROWS) -> None:
    """Steps of 4 pairs of GSM8K's answers and the policy's own, the same order in both; the first step is warm-up."""
    model, tokenizer = load_model()
    texts, source = chat_pairs(num_rows)
    data = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
            for q, a in texts
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, our_times = spin(data, tokenizer, folder)
        pairs = pairs_of(ours, model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        theirs, their_times = dpo(pairs, tokenizer, folder)
    losses = [[entry["loss"] for entry in done.state.log_history if "loss" in entry] for done in (ours, theirs)]
    for a, b in zip(*losses, strict=True):
        assert abs(a - b) < 1e-3 * abs(b), losses
    found, peer = (statistics.median(times.seconds[1:]) for times in (our_times, their_times))
    report(
        f"SPIN's step on {source}, {ROWS} pairs ÷ DPOTrainer, references precomputed",
        found / peer,
        "none set",
        f"{found:.1f} s ÷ {peer:.1f} s, equal losses",
    )


if __name__ == "__main__":
    main()
