"""Trajectories: a true context of H tokens and a horizon of T, cut from documents or from responses (Pozzi 2025, §5)."""

import logging
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from ...core.branches import CONTEXT_LENGTH, OWN_COLUMNS, PROMPT, REFERENCE, REFERENCE_LABELS
from ...core.errors import UsageError


logger = logging.getLogger(__name__)

DOCUMENT = "document"


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
                _append(rows, ids[start : start + length], context_length, document)
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


def cut_responses(rows: Dataset, rollout_length: int, stride: int) -> Dataset:
    """
    Cuts prompt-completion rows: the context is the prompt and the first tokens of the response, the horizon the next
    `rollout_length` tokens, one trajectory every `stride` tokens; the last horizon ends with the response.

    Args:
        rows (`datasets.Dataset`): As [`~trl_exbias.chat.prompts.mark_responses`] makes them.

    Returns:
        `datasets.Dataset`: As [`cut_documents`].
    """

    prompts = [name for name in OWN_COLUMNS[1:] if name in rows.column_names]

    def cut(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        out: dict[str, list] = {name: [] for name in ("input_ids", "labels", CONTEXT_LENGTH, DOCUMENT, *prompts)}
        for i, row in enumerate(indices):
            ids, labels, begin = batch["input_ids"][i], batch["labels"][i], batch[CONTEXT_LENGTH][i]
            for start in range(begin, len(ids), stride):
                stop = min(start + rollout_length, len(ids))
                if any(label != -100 for label in labels[start:stop]):
                    _append(out, ids[:stop], start, row, labels[start:stop])
                    own = {name: batch[name][i] for name in prompts}
                    for name, value in _prompt_at(own, len(ids) - start, stop - start).items():
                        out[name].append(value)
        return out

    features = {name: rows.features[name] for name in ("input_ids", "labels", CONTEXT_LENGTH, *prompts)}
    features = Features({**features, DOCUMENT: Value("int64")})
    return rows.map(
        cut,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=features,
        desc="Cutting trajectories",
    )


def report_uncut(num_rows: int, trajectories: Dataset, name: str, max_length: int | None) -> None:
    """
    Warns of rows that [`cut_responses`] has cut no trajectory from.

    Args:
        name (`str`): What a message calls the rows' data set.

    Raises:
        ValueError: if there is no trajectory at all.
    """
    uncut = num_rows - len(np.unique(np.asarray(trajectories[DOCUMENT])))
    where = f"a token of their last response within `max_length={max_length}`"
    if uncut == num_rows:
        raise UsageError(
            f"None of the {num_rows} rows of the {name} keeps {where.replace('their', 'its')}: no trajectory can be cut. Raise "
            "`max_length`."
        )
    if uncut:
        logger.warning(f"{uncut} of {num_rows} rows of the {name} do not keep {where}: no trajectory is cut from them.")


def _prompt_at(own: dict[str, list[int] | None], left: int, horizon: int) -> dict[str, list[int] | None]:
    """
    A row's prompt and reference for a trajectory that begins where `left` of the response's tokens are to come: the prompt
    continues with the part of the reference that lies before.
    """
    prompt, reference, labels = own.get(PROMPT), own.get(REFERENCE), own.get(REFERENCE_LABELS)
    if prompt is None or reference is None or labels is None:
        return own
    # Counted from the end: both have the same last tokens, not the same first ones.
    start = max(0, len(reference) - left)
    rest = slice(start, start + horizon)
    return {
        PROMPT: [*prompt, *reference[:start]],
        REFERENCE: reference[rest],
        REFERENCE_LABELS: labels[rest],
    }


def starts(num_tokens: int, length: int, stride: int) -> range:
    """Where trajectories of `length` tokens begin in a document of `num_tokens`."""
    return range(0, max(0, num_tokens - length + 1), stride)


def _append(
    rows: dict[str, list[Any]], ids: list[int], context_length: int, document: int, labels: list[int] | None = None
) -> None:
    rows["input_ids"].append(ids)
    rows["labels"].append([-100] * context_length + (ids[context_length:] if labels is None else labels))
    rows[CONTEXT_LENGTH].append(context_length)
    rows[DOCUMENT].append(document)
