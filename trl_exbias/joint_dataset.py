"""Gold rows with their branches, looked up as they are read."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from .data import CONTEXT_LENGTH


_GOLD_COLUMNS = ["input_ids", "labels", CONTEXT_LENGTH]
_BRANCH_COLUMNS = ["kind", "input_ids", "labels", "weight"]


class JointDataset(torch.utils.data.Dataset):
    """
    The data of a joint phase: each gold row, and under `branches` every branch that the given rollouts have for it.

    Args:
        gold (`datasets.Dataset`):
            The prepared training data (`input_ids`, `labels`, `context_length`).
        rollouts (`list[datasets.Dataset]`):
            Branches of one or more iterations, as [`~trl_exbias.rollouts.store.RolloutStore.read`] returns them.
        rows (`list[int]`, *optional*):
            Rows of `gold` to keep, in order. Default: all.
    """

    def __init__(self, gold: Dataset, rollouts: list[Dataset], rows: list[int] | None = None):
        self.gold = gold.select_columns(_GOLD_COLUMNS)
        self.rows = list(range(len(gold))) if rows is None else rows
        self.rollouts = [part.select_columns(_BRANCH_COLUMNS) for part in rollouts]
        self._places = [_places_by_example(part) for part in rollouts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        branches = [
            part[place]
            for part, places in zip(self.rollouts, self._places, strict=True)
            for place in places.get(row, ())
        ]
        return {**self.gold[row], "branches": branches}


def _places_by_example(rollouts: Dataset) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, example_id in enumerate(np.asarray(rollouts["example_id"])):
        places.setdefault(int(example_id), []).append(place)
    return places
