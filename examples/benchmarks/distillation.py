"""DaD-DAgger's epoch in the shared layout against separate rows, and the whole method against TRL's on-policy distillers."""

import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from trl_exbias import DaDDaggerConfig, DaDDaggerTrainer
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.demo.word_problems import word_problems
from trl_exbias.methods.dad_dagger.students import keep_layers

from .common import QUIET, StepTimes, load_model, report


CONTEXT, HORIZON = 128, 10
SETTINGS = {**QUIET, "learning_rate": 2.5e-5}


def trajectories(num_rows: int, tokenizer) -> Dataset:
    """Documents of exactly one trajectory, out of the word problems' text."""
    text = " ".join(f"{r['prompt'][0]['content']} {r['completion'][0]['content']}" for r in word_problems(400, seed=0))
    ids, length = tokenizer(text)["input_ids"], CONTEXT + HORIZON
    assert len(ids) >= num_rows * length
    return Dataset.from_list([{"input_ids": ids[i * length : (i + 1) * length]} for i in range(num_rows)])


def student():
    """10 of SmolLM2's 30 layers."""
    return keep_layers(AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32), 10)


def dad_dagger(data: Dataset, tokenizer, teacher, folder: str, shared: bool = True, **options) -> DaDDaggerTrainer:
    """A finished run, contexts shared or not."""
    args = DaDDaggerConfig(
        folder, context_length=CONTEXT, rollout_length=HORIZON, num_rollouts_to_print=0, **{**SETTINGS, **options}
    )
    trainer = DaDDaggerTrainer(
        model=student(), args=args, train_dataset=data, processing_class=tokenizer, teacher_model=teacher
    )
    if not shared:
        trainer.data_collator.shared, trainer._layout_decided = False, True
    trainer.train()
    return trainer


def epoch_seconds(trainer: DaDDaggerTrainer) -> float:
    """Seconds of the last iteration's joint training."""
    return [entry["seconds/joint"] for entry in trainer.state.log_history if "seconds/joint" in entry][-1]


def shared_against_separate(teacher, tokenizer, num_rows: int = 16) -> None:
    """One epoch over a gold and 3 rollout branches, student and teacher in every step."""
    data = trajectories(num_rows, tokenizer)
    options = {"num_iterations": 4, "num_train_epochs": 1, "per_device_train_batch_size": 8, "cache_teacher": False}
    seconds, losses = {}, {}
    for shared in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            done = dad_dagger(data, tokenizer, teacher, folder, shared, **options)
        seconds[shared] = epoch_seconds(done)
        losses[shared] = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
    for a, b in zip(losses[True], losses[False], strict=True):
        assert abs(a - b) < 1e-3 * abs(b), losses
    report(
        "DaD-DAgger epoch, 3 rollout branches, shared ÷ separate rows",
        seconds[True] / seconds[False],
        "≤ 0.45",
        f"{seconds[True]:.1f} s ÷ {seconds[False]:.1f} s, {num_rows} trajectories, equal losses",
    )


class _PromptCollator:
    """Contexts as prompts, as `GKDTrainer` wants them: the same tokens that DaD-DAgger rolls out from."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        labels = ids.clone()
        labels[:, :CONTEXT] = -100
        prompts = ids[:, :CONTEXT]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "prompts": prompts,
            "prompt_attention_mask": torch.ones_like(prompts),
        }


def _peer(kind: str, data: Dataset, teacher, tokenizer, folder: str, steps: int, callback: StepTimes):
    """A trainer of TRL's that distils fully on-policy, 10 new tokens a prompt, forward KL."""
    common = {"max_steps": steps, "per_device_train_batch_size": len(data), **SETTINGS}
    if kind == "GKDTrainer":
        args = GKDConfig(folder, lmbda=1.0, beta=0.0, max_new_tokens=HORIZON, **common)
        return GKDTrainer(
            model=student(),
            teacher_model=teacher,
            args=args,
            train_dataset=data,
            data_collator=_PromptCollator(),
            processing_class=tokenizer,
            callbacks=[callback],
        )
    prompts = [{"prompt": tokenizer.decode(row["input_ids"][:CONTEXT])} for row in data]
    return DistillationTrainer(
        model=student(),
        teacher_model=teacher,
        args=DistillationConfig(folder, beta=0.0, max_completion_length=HORIZON, **common),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def against_peers(teacher, tokenizer, num_rows: int = 16, peer_steps: int = 4) -> None:
    """Label tokens trained on in a second, rollouts and teacher included."""
    data = trajectories(num_rows, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = dad_dagger(data, tokenizer, teacher, folder, per_device_train_batch_size=num_rows)
        seconds = time.perf_counter() - started
    # Three iterations of four epochs: gold, and one and two sets of rollouts without their first position.
    tokens = num_rows * 4 * sum(HORIZON + i * (HORIZON - 1) for i in range(3))
    ours = tokens / seconds
    for kind, goal in (("GKDTrainer", "≥ 3"), ("DistillationTrainer", "none set")):
        steps = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            _peer(kind, data, teacher, tokenizer, folder, peer_steps + 1, steps).train()
        # The first step is warm-up. No row is longer than the horizon, so this is the peer's best case.
        theirs = peer_steps * num_rows * HORIZON / sum(steps.seconds[1:])
        report(
            f"student label tokens per second, DaD-DAgger ÷ {kind}",
            ours / theirs,
            goal,
            f"{ours:.1f} ÷ {theirs:.1f} tokens/s, {done.state.global_step} steps, start of training included in ours",
        )


def main() -> None:
    """Both, with SmolLM2-135M as the teacher of 10 of its layers."""
    teacher, tokenizer = load_model()
    shared_against_separate(teacher, tokenizer)
    against_peers(teacher, tokenizer)


if __name__ == "__main__":
    main()
