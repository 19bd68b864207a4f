"""Scheduled sampling (SCS), a baseline: BASH's mixing at every training step."""

import time
from dataclasses import asdict
from typing import Any

import torch

from ..core.branches import ROW
from ..core.data import Example
from ..core.joint_dataset import JointDataset
from ..rollouts.noise import derive_seed
from .bash import BASHTrainer
from .configs import ScheduledSamplingConfig
from .plans import ScheduledSamplingPlan


class ScheduledSamplingTrainer(BASHTrainer):
    """
    Scheduled sampling: the response is mixed again at every training step, from the weights of that step.

    As [`BASHTrainer`], with `ŷ_j = z_j ~ p_θ(· | x, ŷ_<j)` where m_j = 1 (Cen 2024 Eq. 3–4) for the θ of the step instead of the
    iteration's. Slow on purpose: sampling is sequential, and no step can begin before its samples are drawn. BASH exists to
    replace it.

    Differs from [`BASHTrainer`] in when it mixes; nothing is kept on disk, because nothing is used twice.

    References: Bengio et al., *Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks*, NeurIPS 2015; Cen et
    al. (see [`BASHTrainer`]), Tables 7–9.

    Example:

    ```python
    from datasets import load_dataset
    from trl_exbias import ScheduledSamplingConfig, ScheduledSamplingTrainer

    dataset = load_dataset("trl-lib/tldr", split="train")
    args = ScheduledSamplingConfig("runs/scheduled-sampling", beta=0.2)
    trainer = ScheduledSamplingTrainer(model="Qwen/Qwen3-0.6B", args=args, train_dataset=dataset)
    trainer.train()
    ```
    """

    _tag_names = ["trl", "trl-exbias", "scheduled-sampling"]
    _name = ScheduledSamplingPlan.title
    _paper = {
        "title": "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks",
        "id": "1506.03099",
        # docstyle-ignore
        "citation": """\
@inproceedings{bengio2015scheduled,
    title        = {{Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks}},
    author       = {Samy Bengio and Oriol Vinyals and Navdeep Jaitly and Noam Shazeer},
    year         = 2015,
    booktitle    = {Advances in Neural Information Processing Systems}
}""",
    }
    config_class = ScheduledSamplingConfig
    phase_plan = ScheduledSamplingPlan()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mixed_rows: frozenset[int] = frozenset()
        self._mixing_seconds = 0.0
        self._mixed_tokens = 0

    def iteration_data(self, iteration: int) -> JointDataset:
        """Nothing is rolled out ahead: says which rows will be mixed when they come up."""
        rows = self.rows_to_roll_out(iteration)
        self._mixed_rows = frozenset(rows)
        return self.joint_dataset([], rows if self.args.sft_weight == 0 else None)

    def batches_of_step(self, batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """The same rows, with branches drawn from the weights of this step."""
        started = time.perf_counter()
        places = [batch[ROW].tolist() for batch in batches]
        examples = {
            place: Example.from_row(place, self.train_dataset[place], self.args.max_length)
            for batch in places
            for place in batch
            if place in self._mixed_rows
        }
        # Another draw at every step, the same one in a run that is resumed.
        options = self.sampling_options(derive_seed(self.args.seed, "scheduled sampling", self.state.global_step))
        with self.make_engine(lambda rows, tokens: None) as engine:
            branches = self.build_branches(list(examples.values()), engine, options)
        self._mixed_tokens += sum(len(branch.input_ids) for row in branches for branch in row)
        mixed = dict(zip(examples, ([asdict(branch) for branch in row] for row in branches), strict=True))
        self._mixing_seconds += time.perf_counter() - started
        return [
            self.data_collator(
                [{**self.train_dataset[place], ROW: place, "branches": mixed.get(place, [])} for place in batch]
            )
            for batch in places
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self._mixing_seconds:
            (tokens,) = self.processes.sum([self._mixed_tokens])
            logs = {**logs, "seconds/mixing": self._mixing_seconds, "mixing/num_tokens": tokens}
            self._mixing_seconds, self._mixed_tokens = 0.0, 0
        super().log(logs, start_time)
