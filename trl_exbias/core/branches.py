"""One context, several branches: the example shape of every method, and how a batch of it is laid out.

A context is encoded once. Its branches (the gold response, a mixed one, the policy's own) stand after it in one row,
each seeing the context and itself, never a sibling:

```
row       x_1 … x_{P-1} | x_P y_1 … y_{L-1} | x_P ŷ_1 … ŷ_{L-1}      each branch repeats the last context token, so
target    x_2 … x_P     | y_1 y_2 … y_L     | ŷ's labels              that its first target is predicted in its own
position  0   …  P-2    | P-1 …             | P-1 …                   segment; a branch's last token is never read
```

Where the attention implementation cannot take such a mask, every branch becomes a row of its own after a copy of its
context: the same targets, hence the same loss.

The contexts of gold and of the rollouts may differ (see `prompts`). They share what they have in common; each branch then
begins with the rest of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .upstream import common_prefix_length


GOLD = "gold"
#: Column and batch entry: where in the training data a row stands.
ROW = "exbias_row"
#: Which of several teachers labels a row, by its place in their list.
TEACHER = "exbias_teacher"
#: The column of the data in which a row names its teacher.
TEACHER_NAME = "teacher"
#: Column: how many of a row's tokens precede its response.
CONTEXT_LENGTH = "context_length"
#: Column of a rollout: a weight for each of its tokens, where they differ.
TOKEN_WEIGHTS = "token_weights"
#: Columns of a row whose tokens do not begin with inference's prompt: the prompt, the part of the gold answer that comes after it, and
#: the labels of that.
PROMPT, REFERENCE, REFERENCE_LABELS = "exbias_prompt_ids", "exbias_reference_ids", "exbias_reference_labels"
OWN_COLUMNS = (CONTEXT_LENGTH, PROMPT, REFERENCE, REFERENCE_LABELS)


@dataclass(frozen=True)
class Branch:
    """
    A continuation of a context, and what the model shall say along it.

    Args:
        kind (`str`):
            What it is: `"gold"`, `"mixed"` (BASH), `"own"` (RAC), or a method's own name. Losses are taken and logged
            for each kind.
        input_ids (`list[int]`):
            The tokens, as the model reads them.
        labels (`list[int]`):
            The target at each position, given the context and the tokens before it; -100 for none. Aligned with
            `input_ids`, as in transformers: where a branch is imitated, `labels == input_ids`.
        weight (`float` or `list[float]`, *optional*, defaults to `1.0`):
            Factor of the branch's token losses, or one for each token. The mean that they enter still counts each label once.
        score (`float`, *optional*, defaults to `0.0`):
            A number that the method finds out when it makes the branch and wants back in its loss (SPIN: the reference's
            log-probability ratio). Kept with the branch; by itself it changes nothing.
    """

    kind: str
    input_ids: list[int]
    labels: list[int]
    weight: float | list[float] = 1.0
    score: float = 0.0

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise ValueError(
                f"A branch needs one label for each token (-100 for none), got {len(self.labels)} labels for "
                f"{len(self.input_ids)} tokens in a branch of kind {self.kind!r}."
            )
        if isinstance(self.weight, list) and len(self.weight) != len(self.input_ids):
            raise ValueError(
                f"A branch needs one weight, or one for each token, got {len(self.weight)} weights for {len(self.input_ids)} "
                f"tokens in a branch of kind {self.kind!r}."
            )

    @property
    def token_weights(self) -> list[float]:
        """The factor of each token's loss."""
        return self.weight if isinstance(self.weight, list) else [self.weight] * len(self.input_ids)


@dataclass(frozen=True)
class BranchedExample:
    """
    A context and its branches.

    Args:
        context_ids (`list[int]`): What the contexts of all branches begin with.
        context_labels (`list[int]`): Targets inside the context, aligned with `context_ids`; they count as gold.
        branches (`list[Branch]`): In any order: it changes nothing.
        gold_rest (`tuple[list[int], list[int]]`, *optional*): Tokens and labels of the rest of the gold branch's context.
        prompt_rest (`list[int]`, *optional*): Tokens of the rest of every other branch's.
    """

    context_ids: list[int]
    context_labels: list[int]
    branches: list[Branch]
    gold_rest: tuple[Sequence[int], Sequence[int]] = ((), ())
    prompt_rest: Sequence[int] = ()

    @classmethod
    def from_row(
        cls,
        input_ids: list[int],
        labels: list[int],
        context_length: int,
        branches: Sequence[Branch],
        prompt_ids: Sequence[int] | None = None,
    ) -> "BranchedExample":
        """
        Splits a tokenised row into context and gold branch and puts `branches` next to the latter.

        Args:
            prompt_ids (`Sequence[int]`, *optional*): The context of `branches`, where it is not gold's.
        """
        gold = Branch(GOLD, input_ids[context_length:], labels[context_length:])
        if prompt_ids is None:
            return cls(input_ids[:context_length], labels[:context_length], [gold, *branches])
        shared = common_prefix_length(input_ids[:context_length], prompt_ids)
        rest = slice(shared, context_length)
        return cls(
            input_ids[:shared],
            labels[:shared],
            [gold, *branches],
            (input_ids[rest], labels[rest]),
            prompt_ids[shared:],
        )

    @classmethod
    def of(cls, row: dict[str, Any]) -> "BranchedExample":
        """The example of a row of [`~trl_exbias.core.joint_dataset.JointDataset`]."""
        branches = [Branch(**fields) for fields in row["branches"]]
        return cls.from_row(row["input_ids"], row["labels"], row[CONTEXT_LENGTH], branches, row.get(PROMPT))

    def is_trained(self, branch: Branch) -> bool:
        """Whether there is anything of a branch besides the shared context: a gold response may have been cut off."""
        return bool(branch.input_ids) or (branch.kind == GOLD and bool(self.gold_rest[0]))

    def rows(self) -> Iterator[tuple[list[int], int]]:
        """
        The tokens that are read of each branch, gold's first, and how many of them gold's row begins with and other branches'
        rows do not have of their own. In a shared row, these are its segments, one after the other.
        """
        own_from = max(0, len(self.context_ids) - 1)
        for branch in self.branches:
            if branch.kind == GOLD or self.is_trained(branch):
                rest, _ = self.rest_of_context(branch)
                yield [*self.context_ids, *rest, *branch.input_ids][:-1], 0 if branch.kind == GOLD else own_from

    @property
    def num_states(self) -> int:
        """Positions that are read, the context's once."""
        return sum(len(tokens) - begin for tokens, begin in self.rows())

    def rest_of_context(self, branch: Branch) -> tuple[Sequence[int], Sequence[int]]:
        """Tokens and labels between the shared context and a branch."""
        return self.gold_rest if branch.kind == GOLD else (self.prompt_rest, [-100] * len(self.prompt_rest))


def concatenate(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors over several stretches of positions as tensors over all of them, name by name; a stretch may have none."""
    parts = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
