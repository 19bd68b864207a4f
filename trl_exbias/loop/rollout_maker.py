"""From rows to branches: the method, with an engine, on one shard after another."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from datasets import Dataset

from ..core.branches import Branch
from ..core.data import Example
from ..core.token_ids import TokenIds
from ..rollouts.counting import CountingEngine
from ..rollouts.engine import RolloutEngine, SamplingOptions
from .rollout_stats import RolloutStats


@dataclass(frozen=True)
class RolloutMaker:
    """
    A method as a rollout phase sees it.

    Args:
        data (`datasets.Dataset`): The prepared training data.
        max_length (`int`, *optional*): Tokens after which a row is cut off.
        build_branches (`Callable`): The method; see [`~trl_exbias.IterativeSFTTrainer.build_branches`].
        make_engine (`Callable`): Gives the engine of the phase, told whom to report progress to.
        sampling_options (`Callable`): The configured sampling with a seed.
        stats ([`RolloutStats`]): Where the method, and the engine's counts, go.
        is_unfinished (`Callable`): Whether a response that has ended broke off.
    """

    data: Dataset
    max_length: int | None
    build_branches: Callable[[list[Example], RolloutEngine, SamplingOptions], list[list[Branch]]]
    make_engine: Callable[[Callable[[int, int], None]], AbstractContextManager[RolloutEngine]]
    sampling_options: Callable[[int], SamplingOptions]
    stats: RolloutStats
    is_unfinished: Callable[[TokenIds], bool]

    def make(
        self, rows: list[int], engine: RolloutEngine, options: SamplingOptions
    ) -> tuple[dict[int, list[Branch]], dict[str, list[float]]]:
        """
        The branches of some rows, by row, and the numerators and denominators of their metrics.

        Raises:
            ValueError: if the method does not return a list of branches for each example.
        """
        examples = [Example.from_row(row, self.data[row], self.max_length) for row in rows]
        self.stats.clear()
        counting = CountingEngine(engine, self.stats.add, self.is_unfinished)
        branches = self.build_branches(examples, counting, options)
        if len(branches) != len(examples):
            raise ValueError(
                f"{self.build_branches.__qualname__} must return one list of branches for each example: got {len(branches)} for "
                f"{len(examples)}."
            )
        return {example.id: own for example, own in zip(examples, branches, strict=True)}, self.stats.as_dict()
