"""The SFT of `BASHTrainer` against TRL's `SFTTrainer` on the same data: to the bit where nothing rolls out, packed elsewhere."""

import statistics
import tempfile

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.demo.word_problems import word_problems

from .common import QUIET, StepTimes, chat_pairs, load_model, report


def main(rounds: int = 4, num_rows: int = 24) -> None:
    """6 steps of 4 rows a round, the two trainers in turns; the first step of a run is warm-up."""
    load_model()
    data = word_problems(num_rows, seed=0).select_columns(["prompt", "completion"])
    losses, seconds = _race(data, ("plain", "trl"), rounds, per_device_train_batch_size=4, num_train_epochs=1)
    assert losses["plain"] == losses["trl"]
    ours, theirs = seconds["plain"], seconds["trl"]
    details = f"{ours:.1f} s ÷ {theirs:.1f} s for five steps, equal losses"
    report("SFT, BASHTrainer ÷ SFTTrainer", ours / theirs, "≤ 1.03", details)
    for name, goal in (("gsm8k", "≤ 0.75"), ("math", "≤ 0.60")):
        packed(name, goal)


def packed(name: str, goal: str, rounds: int = 2, steps: int = 5, rows: int = 8) -> None:
    """
    A few steps of the SFT phase of a run with rollouts (whose batches are packed) and of `SFTTrainer`, in turns.

    What counts is the sum over the steps: a batch with one long row costs several times what others cost.
    """
    pairs, source = chat_pairs(40 * rows, name)
    data = Dataset.from_list([{"prompt": [_user(q)], "completion": [_assistant(a)]} for q, a in pairs])
    losses, seconds = _race(
        data, ("packed", "trl"), rounds, per_device_train_batch_size=rows, max_steps=steps, max_length=2048
    )
    for ours, theirs in zip(losses["packed"], losses["trl"], strict=True):
        assert abs(ours / theirs - 1) < 1e-4, losses
    ours, theirs = seconds["packed"], seconds["trl"]
    report(
        f"SFT phase on {source}, packed ÷ SFTTrainer, {rows} rows",
        ours / theirs,
        goal,
        f"{ours:.1f} s ÷ {theirs:.1f} s for {steps - 1} steps, equal losses",
    )


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _race(data, names: tuple[str, str], num_rounds: int, **settings) -> tuple[dict[str, list], dict[str, float]]:
    """
    The logged losses of two trainers, who take turns at going first, and their seconds for all steps but the first: the sum of
    each step's median over the rounds.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {}
    common = {**QUIET, "learning_rate": 1e-5, **settings}
    for turn in range(num_rounds):
        # What the one leaves in the caches is the other's.
        for name in names[:: 1 if turn % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                times = StepTimes()
                if name == "trl":
                    trainer_class, args = SFTTrainer, SFTConfig(folder, **common)
                else:
                    epochs = {"sft_epochs": 1, "num_iterations": 0 if name == "plain" else 1}
                    trainer_class, args = BASHTrainer, BASHConfig(folder, **{**common, **epochs})
                trainer = trainer_class(model=str(embedded_model()), args=args, train_dataset=data, callbacks=[times])
                trainer.train()
                seconds[name].append(times.seconds[1:])
                losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: sum(map(statistics.median, zip(*rounds, strict=True))) for name, rounds in seconds.items()}


if __name__ == "__main__":
    main()
