"""Batches of similar length whose order a resumed run finds again."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from ..rollouts.noise import derive_seed


class GroupedByEpoch(Sampler):
    """
    A sampler of batches of similar length whose shuffling follows from the seed and the epoch.

    By itself it draws from the global generator, whose state in the middle of an epoch is not the one that the epoch began
    with: a resumed run would shuffle once more, see some rows twice and others never.

    Args:
        grouped (`torch.utils.data.Sampler`): Does the grouping; transformers' `LengthGroupedSampler`.
        seed (`int`): The run's.
        epoch (`Callable[[], int]`): Says which epoch is being iterated over.
    """

    def __init__(self, grouped: Sampler, seed: int, epoch: Callable[[], int]):
        self.grouped, self.seed, self.epoch = grouped, seed, epoch

    def __len__(self) -> int:
        return len(self.grouped)

    def __iter__(self) -> Iterator[int]:
        seed = derive_seed(self.seed, "grouping", self.epoch()) & (2**63 - 1)
        self.grouped.generator = torch.Generator().manual_seed(seed)
        return iter(self.grouped)
