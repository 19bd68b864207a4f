"""From a dataset in any of TRL's forms to contexts and responses."""

from dataclasses import dataclass
from typing import Any

from .branches import CONTEXT_LENGTH, OWN_COLUMNS, PROMPT, REFERENCE, REFERENCE_LABELS, ROW


@dataclass(frozen=True)
class Example:
    """
    A row as a method sees it: token ids, split into what is given and what is answered.

    Args:
        id (`int`): Row of the prepared training data; the key of all randomness.
        context_ids (`list[int]`): The prompt as inference gives it to the model, with the generation prompt of a chat template.
        response_ids (`list[int]`): The gold response y after that prompt, with its end token.
        response_labels (`list[int]`): `response_ids`, or -100 where the gold loss has no label.
        row (`dict`): The row's other columns (`prompt`, `completion`, `messages`, …).
        trained (`tuple`, *optional*): Context, response and labels as gold is trained on, where its tokens do not begin with
            the prompt; see [`~trl_exbias.chat.prompts`].
    """

    id: int
    context_ids: list[int]
    response_ids: list[int]
    response_labels: list[int]
    row: dict[str, Any]
    trained: tuple[list[int], list[int], list[int]] | None = None

    @classmethod
    def from_row(cls, index: int, row: dict[str, Any], max_length: int | None = None) -> "Example":
        """A row that [`mark_responses`] has marked; what does not fit into `max_length` tokens after the prompt is cut off."""
        split, ids, labels = row[CONTEXT_LENGTH], row["input_ids"], row["labels"]
        rest = {k: v for k, v in row.items() if k not in ("input_ids", "labels", ROW, *OWN_COLUMNS)}
        own = (ids[:split], ids[split:], labels[split:])
        if row.get(PROMPT) is None:
            return cls(index, *own, rest)
        room = None if max_length is None else max(0, max_length - len(row[PROMPT]))
        return cls(index, row[PROMPT], row[REFERENCE][:room], row[REFERENCE_LABELS][:room], rest, own)

    @property
    def gold(self) -> tuple[list[int], list[int], list[int]]:
        """Context, response and labels of the gold branch."""
        return self.trained or (self.context_ids, self.response_ids, self.response_labels)
