"""A pure-SFT phase of `BASHTrainer` against TRL's `SFTTrainer` on the same data: the same losses, the same time."""

import statistics
import tempfile

from trl import SFTConfig, SFTTrainer

from trl_exbias import BASHConfig, BASHTrainer
from trl_exbias.demo.embedded_model import embedded_model
from trl_exbias.demo.word_problems import word_problems

from .common import QUIET, StepTimes, load_model, report


def main(rounds: int = 4, num_rows: int = 24) -> None:
    """6 steps of 4 rows a round, the two trainers in turns; the first step of a run is warm-up."""
    load_model()
    settings = {**QUIET, "per_device_train_batch_size": 4, "learning_rate": 1e-5}
    data = word_problems(num_rows, seed=0).select_columns(["prompt", "completion"])
    seconds: dict[str, list[float]] = {"BASHTrainer": [], "SFTTrainer": []}
    losses: dict[str, list[float]] = {}
    for turn in range(rounds):
        # Who goes first alternates too: what the one leaves in the caches is the other's.
        for name in list(seconds)[:: 1 if turn % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                times = StepTimes()
                if name == "SFTTrainer":
                    trainer_class, args = SFTTrainer, SFTConfig(folder, num_train_epochs=1, **settings)
                else:
                    trainer_class, args = BASHTrainer, BASHConfig(folder, num_iterations=0, sft_epochs=1, **settings)
                trainer = trainer_class(model=str(embedded_model()), args=args, train_dataset=data, callbacks=[times])
                trainer.train()
                seconds[name] += times.seconds[1:]
                losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses["BASHTrainer"] == losses["SFTTrainer"]
    ours, theirs = statistics.median(seconds["BASHTrainer"]), statistics.median(seconds["SFTTrainer"])
    report(
        "SFT step, BASHTrainer ÷ SFTTrainer", ours / theirs, "≤ 1.03", f"{ours:.2f} s ÷ {theirs:.2f} s, equal losses"
    )


if __name__ == "__main__":
    main()
