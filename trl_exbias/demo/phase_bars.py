"""The demo's progress: one bar a phase, and one line on a phase's rollouts."""

from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback


_WIDTH = 56
_BAR = f"{{desc:<{_WIDTH}}}" + "{bar:20} {n_fmt}/{total_fmt} steps, {elapsed}"


class PhaseBars(TrainerCallback):
    """
    Takes the place of the trainer's own bar, which is one for the whole run and prints every log as a dictionary.

    Args:
        trainer ([`IterativeSFTTrainer`]): Whose phases they are.
        name (`str`): Stands before each phase.
    """

    def __init__(self, trainer: Any, name: str):
        self.trainer, self.name = trainer, name
        self.bar: tqdm | None = None
        self.iteration = -1
        self.left = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        iteration = self.trainer.plan.iteration_at(state.global_step + 1)
        if iteration != self.iteration:
            self._close()
            self.iteration = iteration
            self.left = self.trainer.plan.num_updates(iteration)
            self.bar = tqdm(desc=self._title(iteration), total=self.left, bar_format=_BAR, delay=0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()
            self.left -= 1
            if self.left <= 0:
                self._close()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "rollout/num_tokens" in logs:
            # The phase's own bar is gone by now.
            said = f"{logs['rollout/num_tokens']:,} tokens in {logs['seconds/rollouts']:.0f} s"
            print(f"{self.name + ': rolling out':<{_WIDTH}}{said}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close()

    def _title(self, iteration: int) -> str:
        if iteration == 0:
            return f"{self.name}: training on gold"
        part = f", iteration {iteration}" if self.trainer.args.num_iterations > 1 else ""
        return f"{self.name}: training on gold and rollouts{part}"

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_phases(trainer: Trainer, name: str) -> None:
    """Gives a trainer [`PhaseBars`] in place of the bar that it has."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(PhaseBars(trainer, name))
