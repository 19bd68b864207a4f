"""DaD-DAgger's epoch from kept states of the frozen lower layers, against the same epoch that computes them in every step."""

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from trl_exbias import DaDDaggerTrainer

from .common import load_model, report
from .distillation import dad_dagger, trajectories


BATCH = 32  # the paper's
#: The paper's set-up: the last block and the final norm.
TRAINED = ["model.layers.9", "model.norm"]


def main(num_rows: int = 32, repeats: int = 3) -> None:
    """A student of 10 layers, its last block and norm trained; the data alone, and with a rollout of every row."""
    teacher, tokenizer = load_model()
    data = trajectories(num_rows, tokenizer)
    for alpha in (0.5, 1.0):
        for iterations in (1, 2):
            measure(alpha, iterations, data, tokenizer, teacher if alpha < 1 else None, repeats)


def measure(alpha: float, iterations: int, data, tokenizer, teacher, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = {"alpha": alpha, "num_iterations": iterations, "num_train_epochs": 2 // iterations}
        trainer = dad_dagger(
            *(data, tokenizer, teacher, folder),
            trainable_modules=TRAINED,
            per_device_train_batch_size=BATCH,
            **options,
        )
        states = trainer._joint_data.trunk_states
        assert states is not None, "kept"

        def epoch(kept: bool) -> float:
            trainer._joint_data.trunk_states = states if kept else None
            trainer.data_collator.with_states = kept
            return losses_of_an_epoch(trainer)

        kept, computed = epoch(True), epoch(False)
        assert abs(kept / computed - 1) < 1e-5, (kept, computed)
        seconds = alternate_on_the_processor({name: lambda name=name: epoch(name) for name in (True, False)}, repeats)
    rows = "gold" if iterations == 1 else "gold and a rollout"
    report(
        f"DaD-DAgger epoch, {rows}, α = {alpha:g}, frozen layers kept ÷ computed",
        seconds[True] / seconds[False],
        "≤ 0.35",
        f"{seconds[True]:.1f} s ÷ {seconds[False]:.1f} s of CPU time, {len(data)} trajectories, equal losses",
    )


def losses_of_an_epoch(trainer: DaDDaggerTrainer) -> float:
    """Reads and collates every row, forward, backward and update; with a learning rate of 0, so that each epoch is the same."""
    total = 0.0
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    for batch in DataLoader(trainer._joint_data, batch_size=BATCH, collate_fn=trainer.data_collator):
        counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        total += trainer.training_step(trainer.model, batch, counts).item()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    return total


def alternate_on_the_processor(contestants: dict[bool, Callable[[], object]], repeats: int) -> dict[bool, float]:
    """Median CPU seconds of each contestant, taken in turns: what else runs on the machine does not count."""
    seconds: dict[bool, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
