"""Gold rows with their branches, looked up as they are read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from .branches import CONTEXT_LENGTH, GOLD, PROMPT, ROW, TEACHER, TOKEN_WEIGHTS, Branch, BranchedExample, concatenate
from .soft_labels import soft_label_key
from .tensor_cache import TensorCache, content_key


_GOLD_COLUMNS = ["input_ids", "labels", CONTEXT_LENGTH, PROMPT, TEACHER]
_BRANCH_COLUMNS = ["kind", "input_ids", "labels", "weight", "score", TOKEN_WEIGHTS]


class JointDataset(torch.utils.data.Dataset):
    """
    The data of a joint phase: each gold row, and under `branches` every branch that the given rollouts have for it.

    Args:
        gold (`datasets.Dataset`):
            The prepared training data (`input_ids`, `labels`, `context_length`; the prompts of rollouts where they differ).
        rollouts (`list[datasets.Dataset]`):
            Branches of one or more iterations, as [`~trl_exbias.run.rollout_store.RolloutStore.read`] returns them.
        rows (`list[int]`, *optional*):
            Rows of `gold` to keep, in order. Default: all.
        soft_labels (`Mapping[int, TensorCache]`, *optional*):
            Where every branch has its teacher's labels, by the teacher's place (0 where there is one); those of a row are added
            under `soft_labels`, in the order of its branches, gold first.

    Attributes:
        trunk_states ([`TensorCache`], *optional*):
            Where every segment (see [`segments`]) has the output of the model's frozen layers; a row's are added under
            `trunk_states`, one after the other.
    """

    def __init__(
        self,
        gold: Dataset,
        rollouts: list[Dataset],
        rows: list[int] | None = None,
        soft_labels: Mapping[int, TensorCache] | None = None,
    ):
        self.gold = gold.select_columns([name for name in _GOLD_COLUMNS if name in gold.column_names])
        self.rows = list(range(len(gold))) if rows is None else rows
        self.rollouts = [
            part.select_columns([name for name in _BRANCH_COLUMNS if name in part.column_names]) for part in rollouts
        ]
        self.soft_labels = soft_labels
        self.trunk_states: TensorCache | None = None
        self._places = [_places_by_example(part) for part in rollouts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.rows[index]
        row = {**self.gold[place], ROW: place, "branches": self._branches(place)}
        if self.soft_labels is not None:
            labels = self.soft_labels[row.get(TEACHER, 0)]
            row["soft_labels"] = concatenate(
                labels.get(soft_label_key(context_ids, branch)) for context_ids, branch in labelled(row)
            )
        if self.trunk_states is not None:
            keys = [segment_key(tokens, begin) for tokens, begin in segments(row)]
            row["trunk_states"] = torch.cat([self.trunk_states.get(key)["states"] for key in keys])
        return row

    def _branches(self, row: int) -> list[dict[str, Any]]:
        return [
            _fields(part[place])
            for part, places in zip(self.rollouts, self._places, strict=True)
            for place in places.get(row, ())
        ]


def labelled(row: dict[str, Any]) -> Iterator[tuple[list[int], Branch]]:
    """Each branch of a joint row that has a label at all, gold first, with the context that it stands after."""
    split, prompt = row[CONTEXT_LENGTH], row.get(PROMPT)
    context = row["input_ids"][:split]
    gold = Branch(GOLD, row["input_ids"][split:], row["labels"][split:])
    for branch in (gold, *(Branch(**fields) for fields in row["branches"])):
        if any(label != -100 for label in branch.labels):
            yield context if prompt is None or branch.kind == GOLD else prompt, branch


def segments(row: dict[str, Any]) -> Iterator[tuple[list[int], int]]:
    """The tokens of a joint row that are read of each branch, and from which one on they are its own; see [`BranchedExample`]."""
    return BranchedExample.of(row).rows()


def segment_key(tokens: list[int], begin: int) -> bytes:
    """The address of what a model makes of a segment."""
    return content_key([begin], tokens)


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The parts of a [`Branch`], from a row of a rollout store."""
    weights = stored.pop(TOKEN_WEIGHTS, None)
    return stored if weights is None else {**stored, "weight": weights}


def _places_by_example(rollouts: Dataset) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, example_id in enumerate(np.asarray(rollouts["example_id"])):
        places.setdefault(int(example_id), []).append(place)
    return places
