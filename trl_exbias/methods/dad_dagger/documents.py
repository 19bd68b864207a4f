"""Trajectories from plain text, cut from whole documents."""

import logging
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...core.branches import CONTEXT_LENGTH
from ...core.errors import UsageError
from .trajectories import DOCUMENT, add_trajectory, starts


logger = logging.getLogger(__name__)


def tokenize_documents(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, column: str, num_processes: int | None
) -> Dataset:
    """Documents as token ids (`input_ids`), each ended with EOS, as TRL ends plain text; those of ids already are as they are."""
    if "input_ids" in dataset.column_names:
        return dataset.select_columns(["input_ids"])

    def tokenize(row: dict[str, Any]) -> dict[str, list[int]]:
        return {"input_ids": [*tokenizer(row[column])["input_ids"], tokenizer.eos_token_id]}

    return dataset.map(
        tokenize, remove_columns=dataset.column_names, num_proc=num_processes, desc="Tokenizing documents"
    )


def cut_documents(documents: Dataset, context_length: int, rollout_length: int, stride: int, of: str = "") -> Dataset:
    """
    Cuts tokenised documents into trajectories of `context_length + rollout_length` tokens, one every `stride` tokens and
    never across documents. With `stride = rollout_length` every token after the first `context_length` is a target
    exactly once, except for a remainder shorter than a horizon.

    Args:
        documents (`datasets.Dataset`): A column `input_ids`.
        of (`str`, *optional*): What a message adds to "document": `" of the evaluation dataset"`.

    Returns:
        `datasets.Dataset`: `input_ids`, `labels` (-100 in the context), `context_length`, `document` (its row).

    Raises:
        ValueError: if no document is long enough.
    """
    length = context_length + rollout_length

    def cut(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows: dict[str, list] = {name: [] for name in ("input_ids", "labels", CONTEXT_LENGTH, DOCUMENT)}
        for document, ids in zip(indices, batch["input_ids"], strict=True):
            for start in starts(len(ids), length, stride):
                add_trajectory(rows, ids[start : start + length], context_length, document)
        return rows

    cut_rows = documents.map(
        cut,
        batched=True,
        with_indices=True,
        remove_columns=documents.column_names,
        desc="Cutting trajectories",
    )
    short = sum(len(ids) < length for ids in documents["input_ids"])
    if len(cut_rows) == 0:
        raise UsageError(
            f"No document{of} has the {length} tokens of a trajectory (`context_length` {context_length} + `rollout_length` "
            f"{rollout_length}); the longest of {len(documents)} has {max(map(len, documents['input_ids']))}. Lower them."
        )
    if short:
        logger.warning(
            f"{short} of {len(documents)} documents{of} are shorter than a trajectory ({length} tokens): dropped."
        )
    return cut_rows
