"""From examples with branches to a batch: branches that share the encoding of their context, or rows of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from .branches import GOLD, OWN_COLUMNS, ROW, BranchedExample, concatenate
from .packing import pack


@dataclass
class BranchCollator:
    """
    Lays out examples with branches; rows without branches go to `base`, unchanged.

    Args:
        base (`Callable`):
            The collator of plain rows.
        kinds (`tuple[str, ...]`):
            Names of the branch kinds; a target's kind is its index in it.
        pad_token_id (`int`):
            Padding token.
        shared (`bool`, *optional*, defaults to `True`):
            Whether branches share the encoding of their context. `False`: separate rows.
        packed (`bool`, *optional*, defaults to `True`):
            Whether several contexts share a row where that saves padding. `False`: a row for each.
        one_row (`bool`, *optional*, defaults to `False`):
            Whether separate rows stand one after the other in a single one, their positions starting again: for attention that
            keeps them apart by these (see [`~trl_exbias.core.packed_rows`]).
        break_even (`float`, *optional*):
            Tokens of a row at which its attention costs as much as everything else; see [`~trl_exbias.core.packing.pack`].
        window (`int`, *optional*):
            Attention window of the model. A batch with a shared row longer than it falls back to separate rows, whose
            mask the model makes by itself.
        pad_to_multiple_of (`int`, *optional*):
            As in TRL's collator.
        with_states (`bool`, *optional*, defaults to `False`):
            Whether rows bring `trunk_states`, the output of [`~trl_exbias.core.frozen_trunk.FrozenTrunk`] for their segments
            (see [`~trl_exbias.core.joint_dataset.segments`]).

    Returns a dictionary of tensors of shape `(rows, length)`: `input_ids`, `shift_labels` (the target of each
    position), `branch_kinds` (index in `kinds`, -1 where there is no target), `branch_weights`, `num_tokens` (a
    scalar), `example_ids` (which example of the batch a position belongs to, -1 padding), and either `position_ids` and
    `segment_ids` (0 context, 1.. branches, -1 padding), or `attention_mask`, or `position_ids` alone where all is one row. Where
    rows bring `soft_labels`, theirs too: tensors over the targets, in the order of the batch. Where they bring `trunk_states`,
    those of all rows as one tensor, and `state_ids`: which of them each position has.
    """

    base: Callable[[list[dict[str, Any]]], dict[str, Any]]
    kinds: tuple[str, ...]
    pad_token_id: int
    shared: bool = True
    packed: bool = True
    one_row: bool = False
    break_even: float = 3000.0
    window: int | None = None
    pad_to_multiple_of: int | None = None
    with_states: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if "branches" not in features[0]:
            own = (ROW, *OWN_COLUMNS)
            batch = self.base([{k: v for k, v in row.items() if k not in own} for row in features])
            return self._with_rows(batch, features)
        examples = [BranchedExample.of(row) for row in features]
        arranged = self.arrange(examples)
        batch = self.collate(examples, arranged)
        if "soft_labels" in features[0]:
            # Labelled positions come in the order of the rows: example by example, branch by branch.
            batch["soft_labels"] = concatenate(features[i]["soft_labels"] for row in arranged for i in row)
        if self.with_states:
            batch["trunk_states"] = torch.cat([row["trunk_states"] for row in features])
        return self._with_rows(batch, features)

    @staticmethod
    def _with_rows(batch: dict[str, Any], features: list[dict[str, Any]]) -> dict[str, Any]:
        if ROW in features[0]:
            batch[ROW] = torch.tensor([row[ROW] for row in features])
        return batch

    def arrange(self, examples: list[BranchedExample]) -> list[list[int]]:
        """Which examples share a row, by their places in the batch."""
        if not self.packed or not self._shares(examples):
            return [[i] for i in range(len(examples))]
        return pack([_shared_length(example) for example in examples], self.break_even, self.window)

    def _shares(self, examples: list[BranchedExample]) -> bool:
        return self.shared and not (self.window is not None and max(map(_shared_length, examples)) > self.window)

    def collate(
        self, examples: list[BranchedExample], arranged: list[list[int]] | None = None
    ) -> dict[str, torch.Tensor]:
        """
        The batch of some [`BranchedExample`]s.

        Args:
            arranged (`list[list[int]]`, *optional*): Which of them share a row. Default: what [`arrange`] says.
        """
        shared = self._shares(examples)
        before = [0, *accumulate(example.num_states if self.with_states else 0 for example in examples)]
        rows: list[dict[str, list]] = []
        for places in self.arrange(examples) if arranged is None else arranged:
            parts = []
            for place in places:
                for part in (self._shared if shared else self._separate)(examples[place]):
                    part["example_ids"] = [place] * len(part["input_ids"])
                    part["state_ids"] = [before[place] + state for state in part["state_ids"]]
                    parts.append(part)
            rows += [_joined(parts)] if shared else parts
        one_row = self.one_row and not shared
        if one_row:
            rows = [_joined([{**row, "position_ids": list(range(len(row["input_ids"])))} for row in rows])]
        length = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        layout = {"position_ids": 0, "segment_ids": -1} if shared else {"attention_mask": 0}
        padding = self._padding() | ({"position_ids": 0} if one_row else layout)
        batch = {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
            for name, value in padding.items()
        }
        batch["num_tokens"] = torch.tensor(sum(len(row["input_ids"]) for row in rows))
        return batch

    def _padding(self) -> dict[str, Any]:
        """What is kept of each position, and its value in the padding."""
        return {
            "input_ids": self.pad_token_id,
            "shift_labels": -100,
            "branch_kinds": -1,
            "branch_weights": 0.0,
            "example_ids": -1,
            # Any state: nothing looks at padding, but what is computed of it has to be finite.
            **({"state_ids": 0} if self.with_states else {}),
        }

    def _shared(self, example: BranchedExample) -> list[dict[str, list]]:
        context = example.context_ids
        # Targets of x_1 … x_{P-1} are x_2 … x_P: what the context predicts of itself is gold.
        row = _row(context, example.context_labels, self.kinds.index(GOLD), [], len(context))
        row["position_ids"] = list(range(len(row["input_ids"])))
        row["segment_ids"] = [0] * len(row["input_ids"])
        for segment, branch in enumerate(filter(example.is_trained, example.branches), start=1):
            rest, rest_labels = example.rest_of_context(branch)
            # Where nothing is shared, nothing predicts a branch's first token.
            part = _row(
                [*context[-1:], *rest, *branch.input_ids],
                [*context[-1:], *rest_labels, *branch.labels],
                self.kinds.index(branch.kind),
                branch.token_weights,
                len(context[-1:]) + len(rest),
            )
            start, length = max(0, len(context) - 1), len(part["input_ids"])
            part["position_ids"] = list(range(start, start + length))
            part["segment_ids"] = [segment] * length
            for name, values in part.items():
                row[name] += values
        row["state_ids"] = list(range(len(row["input_ids"])))
        return [row]

    def _separate(self, example: BranchedExample) -> list[dict[str, list]]:
        context, rows = example.context_ids, []
        begin = known = max(0, len(context) - 1)
        for branch in example.branches:
            if not branch.input_ids and branch.kind != GOLD:
                continue
            rest, rest_labels = example.rest_of_context(branch)
            context_labels = example.context_labels if branch.kind == GOLD else [-100] * len(context)
            row = _row(
                [*context, *rest, *branch.input_ids],
                [*context_labels, *rest_labels, *branch.labels],
                self.kinds.index(branch.kind),
                branch.token_weights,
                len(context) + len(rest),
            )
            row["attention_mask"] = [1] * len(row["input_ids"])
            own = len(row["input_ids"]) - begin
            row["state_ids"] = [*range(begin), *range(known, known + own)]
            known += own
            rows.append(row)
        return rows


def _row(tokens: list[int], labels: list[int], kind: int, weights: list[float], context_length: int) -> dict[str, list]:
    """Positions that read all tokens but the last, each with the next one's label as its target; `weights` are of the last ones."""
    targets = labels[1:]
    factors = [1.0] * len(tokens) + weights
    return {
        "input_ids": list(tokens[:-1]),
        "shift_labels": list(targets),
        "branch_kinds": [kind if target != -100 else -1 for target in targets],
        "branch_weights": factors[len(factors) - len(targets) :],
        "in_response": [place >= context_length for place in range(1, len(tokens))],
    }


def _joined(parts: list[dict[str, list]]) -> dict[str, list]:
    """One row of several, name by name."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _shared_length(example: BranchedExample) -> int:
    """Tokens of a shared row. (The row's, not those of a branch with its context: GPT-Neo windows by index.)"""
    branches = sum(len(b.input_ids) + len(example.rest_of_context(b)[0]) for b in example.branches)
    return len(example.context_ids) + branches
