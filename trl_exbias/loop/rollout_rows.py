"""Which rows an iteration rolls out, and in which shards they are dealt out to the processes."""

import itertools
from dataclasses import dataclass

import numpy as np

from ..rollouts.noise import derive_seed
from ..run.processes import longest_first


# What a killed run loses is at most the shard being written; what a shard costs is a file and a shorter batch.
_MAX_SHARD_ROWS = 512
_MIN_SHARD_ROWS = 64
_SHARDS_WANTED = 32
_SHARDS_A_WORKER = 4


@dataclass(frozen=True)
class RolloutRows:
    """
    Args:
        sequence_lengths (`np.ndarray`): Tokens of each row of the training data.
        response_lengths (`np.ndarray`): Lengths of the responses; a row with none is not rolled out.
        wanted (`int`, *optional*): How many rows to roll out. Default: all.
        workers (`int`): Processes that roll out, each with an engine of its own.
    """

    sequence_lengths: np.ndarray
    response_lengths: np.ndarray
    wanted: int | None = None
    workers: int = 1

    def chosen(self, seed: int) -> list[int]:
        """The rows of an iteration, in order: those with a response, or a random `wanted` of them."""
        rows = np.flatnonzero(self.response_lengths > 0)
        if self.wanted is not None and self.wanted < len(rows):
            generator = np.random.Generator(np.random.Philox(derive_seed(seed, "rows")))
            rows = np.sort(generator.choice(rows, self.wanted, replace=False))
        return rows.tolist()

    def shards(self, seed: int) -> list[list[int]]:
        """The rows of an iteration, dealt out into shards of similar length."""
        rows = self.chosen(seed)
        # Rows of similar length together: a shard is what the engine batches.
        rows.sort(key=lambda row: (-self.sequence_lengths[row], row))
        wanted = max(_SHARDS_WANTED, _SHARDS_A_WORKER * self.workers)
        size = min(_MAX_SHARD_ROWS, max(_MIN_SHARD_ROWS, -(-len(rows) // wanted)))
        # As many shards as workers at a time, dealt row by row: each has as much to do, however few the rows are.
        hands = max(1, -(-len(rows) // (size * self.workers)))
        bounds = [len(rows) * hand // hands for hand in range(hands + 1)]
        dealt = [
            rows[a:b][worker :: self.workers] for a, b in itertools.pairwise(bounds) for worker in range(self.workers)
        ]
        return [shard for shard in dealt if shard]

    def of_worker(self, shards: list[list[int]], worker: int) -> list[int]:
        """Which of some shards are a worker's, by their places."""
        costs = [float(self.sequence_lengths[shard].sum()) for shard in shards]
        return longest_first(costs, self.workers)[worker]
