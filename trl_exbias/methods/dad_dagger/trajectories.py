"""A trajectory: a true context of H tokens and a horizon of T (Pozzi 2025, §5)."""

from typing import Any

from ...core.branches import CONTEXT_LENGTH


#: The column with the row that a trajectory was cut from.
DOCUMENT = "document"


def starts(num_tokens: int, length: int, stride: int) -> range:
    """Where trajectories of `length` tokens begin in a document of `num_tokens`."""
    return range(0, max(0, num_tokens - length + 1), stride)


def add_trajectory(
    rows: dict[str, list[Any]], ids: list[int], context_length: int, document: int, labels: list[int] | None = None
) -> None:
    """Adds one to the columns of a batch; its labels are its tokens after the context, unless others are given."""
    rows["input_ids"].append(ids)
    rows["labels"].append([-100] * context_length + (ids[context_length:] if labels is None else labels))
    rows[CONTEXT_LENGTH].append(context_length)
    rows[DOCUMENT].append(document)
