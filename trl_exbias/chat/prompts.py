"""The prompt that inference gives the model, and where a row's gold response stands to it.

A rollout continues from inference's prompt. Gold's training tokens need not begin with that: a template may render an answer
otherwise in a conversation (without the `<think>` that the prompt ends with), tokens may merge across the boundary, and TRL
trains with another template where it needs marks of what the assistant says (`assistant_only_loss`). Then the gold branch
keeps its own tokens, and a row has the prompt in columns of its own, with a **reference**: the part of the gold answer that comes after
the prompt. Where gold's text begins with that of the prompt (as gold's template renders it), that is the rest of the text, in
gold's tokens except for one that spans the boundary; elsewhere it is gold's tokens from where the two part.
"""

import logging
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..core.branches import CONTEXT_LENGTH, OWN_COLUMNS, PROMPT, REFERENCE, REFERENCE_LABELS
from ..core.errors import UsageError
from ..core.upstream import common_prefix_length, tokenize
from .conversations import conversation, message_of, template_kwargs_of, tools_of
from .stop_tokens import silence_test, turn_end
from .template_form import Message, adapted, form_of


logger = logging.getLogger(__name__)

_WITHOUT_PROMPT = ("tokenized", "text")
_SHOWN = 30  # characters of a prompt's end


def prompt_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> list[int]:
    """
    The token ids that inference gives the model for a prompt-completion or conversational row.

    A conversation goes through the chat template (by default the tokenizer's own) with the generation prompt, the row's
    `tools` and its `chat_template_kwargs`.
    """
    if isinstance(row.get("prompt"), str):
        return tokenize(tokenizer, row["prompt"])
    return conversation_prompt_ids(tokenizer, conversation(row)[:-1], row, chat_template)


def conversation_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], row: dict[str, Any], chat_template: str | None = None
) -> list[int]:
    """Token ids of `messages` with the generation prompt, under the row's own template arguments."""
    return _conversation_ids(tokenizer, messages, row, chat_template, add_generation_prompt=True)


def token_ids(
    row: dict[str, Any],
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    text_field: str = "text",
    chat_template: str | None = None,
) -> list[int]:
    """The whole row as TRL tokenises it, before truncation: a conversation through its template, text with EOS after it."""
    if form == "tokenized":
        return row["input_ids"]
    if form == "text" or isinstance(row.get("prompt"), str):
        text = row[text_field] if form == "text" else row["prompt"] + row["completion"]
        end = tokenizer.eos_token or ""
        return tokenize(tokenizer, text if text.endswith(end) else text + end)
    return _conversation_ids(tokenizer, conversation(row), row, chat_template)


def response_after_prompt(
    row: dict[str, Any], form: str, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
) -> tuple[list[int], list[int]]:
    """Inference's prompt of a row, and the tokens of its gold answer after it."""
    ids = token_ids(row, form, tokenizer, chat_template=chat_template)
    found = place_response({**row, "input_ids": ids, "labels": ids}, form, tokenizer, chat_template)
    if found.get(PROMPT) is not None:
        return found[PROMPT], found[REFERENCE]
    return ids[: found[CONTEXT_LENGTH]], ids[found[CONTEXT_LENGTH] :]


def mark_responses(
    dataset: Dataset,
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    num_proc: int | None = None,
    training_template: str | None = None,
) -> Dataset:
    """
    Adds the column `context_length`: how many tokens of `input_ids` precede the response that is rolled out; and, only where
    some row's `input_ids` do not begin with inference's prompt, the columns `PROMPT`, `REFERENCE` and `REFERENCE_LABELS`,
    null in the other rows. How many these are is said in a warning, with an example.

    The response is the completion, the last assistant turn of a conversation, everything after the first token of a
    plain text, and the last labelled stretch of tokenised data.

    Args:
        chat_template (`str`, *optional*): What inference renders with. Default: the tokenizer's own.
        training_template (`str`, *optional*): What `input_ids` were rendered with. Default: the same.

    Raises:
        ValueError: for an answer of which the chat template renders nothing; names the row.
    """

    inner = getattr(tokenizer, "tokenizer", tokenizer)
    # Rows without a prompt are marked without a tokenizer too.
    says_nothing = None if form in _WITHOUT_PROMPT else silence_test(inner, turn_end(inner, chat_template))

    def mark(row: dict[str, Any], index: int) -> dict[str, Any]:
        found = place_response(row, form, tokenizer, chat_template, training_template)
        response = found.get(REFERENCE) or row["input_ids"][found[CONTEXT_LENGTH] :]
        if says_nothing is not None and says_nothing(response):
            raise UsageError(
                f"Row {index}: its answer is rendered as {inner.decode(response)!r}, which says nothing. Does the chat template "
                "render calls of tools? Drop such rows, or set `chat_template_path` to a template that renders them."
            )
        return found

    features = {name: feature for name, feature in dataset.features.items() if name not in OWN_COLUMNS}
    features[CONTEXT_LENGTH] = Value("int64")
    if form not in _WITHOUT_PROMPT:
        features |= dict.fromkeys(OWN_COLUMNS[1:], List(Value("int64")))
    # A column of such a name would be taken for ours.
    dataset = dataset.remove_columns([name for name in OWN_COLUMNS if name in dataset.column_names])
    marked = dataset.map(
        mark, with_indices=True, features=Features(features), num_proc=num_proc, desc="Finding the responses"
    )
    if form in _WITHOUT_PROMPT:
        return marked
    differing = np.flatnonzero(~_is_null(marked, PROMPT))
    if not len(differing):
        return marked.remove_columns([*OWN_COLUMNS[1:]])
    _report_differing(marked, int(differing[0]), len(differing), tokenizer)
    return marked


def place_response(
    row: dict[str, Any],
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    training_template: str | None = None,
) -> dict[str, Any]:
    """Where a tokenised row's response stands, and where it stands to inference's prompt: what [`mark_responses`] adds to it."""
    if form == "tokenized":
        return {CONTEXT_LENGTH: _last_labelled_stretch(row["labels"])}
    if form == "text":
        return {CONTEXT_LENGTH: 1}
    ids, labels = row["input_ids"], row["labels"]
    prompt = prompt_ids(row, tokenizer, chat_template)
    own = prompt if training_template in (None, chat_template) else prompt_ids(row, tokenizer, training_template)
    split = common_prefix_length(own, ids)
    # The first token has nothing to be predicted from.
    context_length = max(1, split)
    found = {CONTEXT_LENGTH: context_length, PROMPT: None, REFERENCE: None, REFERENCE_LABELS: None}
    # Nothing is left of a response that was cut off before it began; and an empty prompt can be no context.
    if context_length >= len(ids) or prompt in ([], ids[:context_length]):
        return found
    piece, rest = _reference(own, ids, split, tokenizer)
    is_labelled = rest > 0 and labels[rest - 1] != -100
    return found | {
        PROMPT: prompt,
        REFERENCE: [*piece, *ids[rest:]],
        REFERENCE_LABELS: [*(piece if is_labelled else [-100] * len(piece)), *labels[rest:]],
    }


def row_prompt(row: dict[str, Any]) -> list[int]:
    """The context that the rollouts of a marked row stand after."""
    prompt = row.get(PROMPT)
    return row["input_ids"][: row[CONTEXT_LENGTH]] if prompt is None else prompt


def response_lengths(dataset: Dataset, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row, prompt and response; and tokens of each row's response, so far as `max_length` leaves room."""
    columns: dict[str, list] = {name: [] for name in ("input_ids", *OWN_COLUMNS[:3]) if name in dataset.column_names}
    for table in dataset.select_columns([*columns]).with_format("arrow").iter(batch_size=10_000):
        for name, parts in columns.items():
            column = table[name]
            numbers = column if name == CONTEXT_LENGTH else pc.list_value_length(column)
            parts.append(pc.fill_null(numbers, -1).to_numpy())
    found = {name: np.concatenate(parts) for name, parts in columns.items()}
    lengths = found["input_ids"]
    responses = np.maximum(lengths - found[CONTEXT_LENGTH], 0)
    if PROMPT in found:
        has_prompt, after = found[PROMPT] >= 0, found[REFERENCE]
        if max_length is not None:
            after = np.clip(max_length - found[PROMPT], 0, after.clip(0))
        responses = np.where(has_prompt, after, responses)
        lengths = np.where(has_prompt, np.maximum(lengths, found[PROMPT] + after), lengths)
    return lengths, responses


def report_cut_responses(lengths: np.ndarray, max_length: int | None) -> None:
    """Warns of rows that truncation left without a token of their last response."""
    cut = int((lengths == 0).sum())
    if cut:
        logger.warning(
            f"{cut} of {len(lengths)} rows keep no token of their last response within `max_length={max_length}`: they are "
            "trained on their gold labels and never rolled out."
        )


def _conversation_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    row: dict[str, Any],
    chat_template: str | None,
    **more: Any,
) -> list[int]:
    messages = adapted([message_of(message) for message in messages], form_of(tokenizer, chat_template))
    kwargs = {**more, **template_kwargs_of(row)}
    return tokenize(tokenizer, messages, chat_template=chat_template, tools=tools_of(row), **kwargs)


def _reference(
    prompt: list[int], ids: list[int], split: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], int]:
    """What of `ids` comes after `prompt`: tokens of their own for text that a token shares with the prompt, and from where on gold's."""

    def text(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    said, whole = text(prompt), text(ids)
    if whole.startswith(said):
        rest = next(n for n in range(split, len(ids) + 1) if text(ids[:n]).startswith(said))
        shared = text(ids[:rest])[len(said) :]
        piece = tokenizer(shared, add_special_tokens=False)["input_ids"] if shared else []
        if text([*prompt, *piece, *ids[rest:]]) == whole:
            return piece, rest
    return [], split


def _is_null(dataset: Dataset, column: str) -> np.ndarray:
    return dataset.with_format("arrow")[column][:].is_null().to_numpy(zero_copy_only=False)


def _report_differing(marked: Dataset, first: int, number: int, tokenizer: PreTrainedTokenizerBase) -> None:
    row = marked[first]
    split = common_prefix_length(row[PROMPT], row["input_ids"])
    own = tokenizer.decode(row["input_ids"][split:])
    logger.warning(
        f"The training tokens of {number} of {len(marked)} rows do not begin with the prompt that the model is given "
        "at inference: the chat template renders an answer differently in a conversation, or tokens merge across the boundary. "
        f"In row {first} the prompt ends with {tokenizer.decode(row[PROMPT])[-_SHOWN:]!r}, where the training tokens "
        f"continue with {own[:_SHOWN]!r}. Rollouts stand after the prompt of inference, gold after its own context."
    )


def _last_labelled_stretch(labels: list[int]) -> int:
    """Where the last run of labels begins; at least 1, since the first token has nothing to be predicted from."""
    end = max((i for i, label in enumerate(labels) if label != -100), default=len(labels) - 1)
    start = end
    while start > 1 and labels[start - 1] != -100:
        start -= 1
    return max(start, 1)
