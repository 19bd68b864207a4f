"""From a dataset in any of TRL's forms to contexts and responses, and the checks that come before.

Touches private surfaces of TRL 1.16: `trl.data_utils._tokenize` and `common_prefix_length`, so that a response starts
exactly where TRL's own completion mask would start it.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig
from trl.data_utils import _tokenize, common_prefix_length, is_conversational

from .branches import ROW
from .stop_tokens import stop_token_ids as stop_token_ids


logger = logging.getLogger(__name__)

CONTEXT_LENGTH = "context_length"
_SHOWN = 5  # rows named in a message


@dataclass(frozen=True)
class Example:
    """
    A row as a method sees it: token ids, split into what is given and what is answered.

    Args:
        id (`int`): Row of the prepared training data; the key of all randomness.
        context_ids (`list[int]`): The prompt, with the generation prompt of a chat template.
        response_ids (`list[int]`): The gold response y, with its end token.
        response_labels (`list[int]`): `response_ids`, or -100 where the gold loss has no label.
        row (`dict`): The row's other columns (`prompt`, `completion`, `messages`, …).
    """

    id: int
    context_ids: list[int]
    response_ids: list[int]
    response_labels: list[int]
    row: dict[str, Any]

    @classmethod
    def from_row(cls, index: int, row: dict[str, Any]) -> "Example":
        split = row[CONTEXT_LENGTH]
        rest = {k: v for k, v in row.items() if k not in ("input_ids", "labels", CONTEXT_LENGTH, ROW)}
        return cls(index, row["input_ids"][:split], row["input_ids"][split:], row["labels"][split:], rest)


def dataset_form(columns: list[str], text_field: str, has_formatting_func: bool = False) -> str:
    """
    Which of TRL's forms a dataset has: `"tokenized"`, `"prompt-completion"`, `"messages"` or `"text"`.

    Raises:
        ValueError: if it has none; the message names the columns it has and the ones it could have.
    """
    if "input_ids" in columns:
        return "tokenized"
    if has_formatting_func:
        return "text"
    # TRL reads a `prompt` column first, whatever else there is.
    if "prompt" in columns:
        if "completion" in columns:
            return "prompt-completion"
        raise ValueError(
            f"The training dataset has a `prompt` column but no `completion` column (columns: {', '.join(columns)}). "
            "Rename the column that holds the response to `completion`, or, if the conversation is in `messages`, "
            "select that column alone."
        )
    if "messages" in columns or "conversations" in columns:
        return "messages"
    if text_field in columns:
        return "text"
    raise ValueError(
        f"The training dataset has none of the columns that hold a response (columns: {', '.join(columns)}). Expected "
        f"`prompt` and `completion`, `messages`, `{text_field}`, or tokenised `input_ids` and `labels`."
    )


def check_train_dataset(dataset: Any, text_field: str, has_formatting_func: bool = False) -> str:
    """
    Rejects what cannot be trained on, before anything is loaded, and returns the dataset's form.

    Raises:
        TypeError: for something that is no map-style `datasets.Dataset`.
        ValueError: for vision data, missing columns, empty responses, conversations that do not end with the assistant.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "An `IterableDataset` cannot be rolled out: every row is visited again in each iteration, by its number. "
            "Load it without `streaming`, or take a part of it: `Dataset.from_list(list(dataset.take(50_000)))`."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(f"`train_dataset` must be a `datasets.Dataset`, got `{type(dataset).__name__}`.")
    if len(dataset) == 0:
        raise ValueError("The training dataset has no rows.")
    columns = dataset.column_names
    if "image" in columns or "images" in columns:
        raise ValueError("Vision datasets are not supported: rollouts are token ids without images.")
    form = dataset_form(columns, text_field, has_formatting_func)
    if form in ("prompt-completion", "messages"):
        column = (
            "completion" if form == "prompt-completion" else ("messages" if "messages" in columns else "conversations")
        )
        responses = dataset.select_columns([column])
        _reject(
            responses,
            lambda row: not _last_text(row[column]).strip(),
            f"have an empty response in `{column}`",
            "Drop them.",
        )
        if form == "messages":
            _reject(
                responses,
                lambda row: _role(row[column][-1]) not in ("assistant", "gpt"),
                "do not end with an assistant turn",
                "Drop the turns behind the last answer.",
            )
    return form


def check_prepared(before: Dataset, after: Dataset, max_length: int | None) -> None:
    """
    Rejects rows of which truncation left nothing to learn: TRL drops them without a word.

    Raises:
        ValueError: with how many there are and what to do.
    """
    lost = len(before) - len(after)
    if lost:
        raise ValueError(
            f"{lost} of {len(before)} rows have no response token within `max_length={max_length}`: their prompt fills "
            "it. Raise `max_length`, or drop these rows before training."
        )


def check_tokenizer(processing_class: Any, args: SFTConfig, dataset: Dataset, form: str) -> None:
    """
    Rejects a tokenizer that cannot end a response or render the data's conversations, before the model is loaded.

    Raises:
        ValueError: says which setting would help.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if form == "tokenized":
        return
    if args.eos_token is None and tokenizer.eos_token is None:
        raise ValueError(
            "The tokenizer has no EOS token, so a response has no end. Set `eos_token` in the config to a token of its "
            "vocabulary."
        )
    vocabulary = tokenizer.get_vocab()
    for name in ("eos_token", "pad_token"):
        token = getattr(args, name)
        if token is not None and token not in vocabulary:
            raise ValueError(
                f"`{name}: {token}` is no token of the tokenizer. Set it to one of its vocabulary, or leave it out."
            )
    column = next((c for c in ("messages", "conversations", "prompt") if c in dataset.column_names), None)
    is_conversation = column is not None and form != "text" and not isinstance(dataset[0][column], str)
    if is_conversation and tokenizer.chat_template is None and args.chat_template_path is None:
        raise ValueError(
            "The dataset is conversational, but the tokenizer has no chat template. Set `chat_template_path` to a "
            "`.jinja` file or to a model whose template to use, or turn the conversations into text."
        )


def mark_responses(
    dataset: Dataset,
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    num_proc: int | None,
) -> Dataset:
    """
    Adds the column `context_length`: how many tokens of `input_ids` precede the response that is rolled out.

    The response is the completion, the last assistant turn of a conversation, everything behind the first token of a
    plain text, and the last labelled stretch of tokenised data.
    """

    def mark(row: dict[str, Any]) -> dict[str, int]:
        return {CONTEXT_LENGTH: context_length(row, form, tokenizer, chat_template)}

    return dataset.map(mark, num_proc=num_proc, desc="Finding the responses")


def context_length(
    row: dict[str, Any], form: str, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
) -> int:
    """How many tokens of a row's `input_ids` precede the response that is rolled out; see [`mark_responses`]."""
    if form == "tokenized":
        return _last_labelled_stretch(row["labels"])
    if form == "text":
        return 1
    if not is_conversational(row):
        prompt_ids = _tokenize(tokenizer, row["prompt"])["input_ids"]
    else:
        prompt_ids = conversation_prompt_ids(tokenizer, conversation(row)[:-1], row, chat_template)
    return max(1, common_prefix_length(prompt_ids, row["input_ids"]))


def token_ids(row: dict[str, Any], form: str, tokenizer: PreTrainedTokenizerBase, text_field: str) -> list[int]:
    """The whole row as TRL 1.16 tokenises it, before truncation: a conversation through its template, text with EOS behind it."""
    if form == "tokenized":
        return row["input_ids"]
    if is_conversational(row):
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        kwargs = row.get("chat_template_kwargs") or {}
        return _tokenize(tokenizer, conversation(row), tools=tools, **kwargs)["input_ids"]
    text = row[text_field] if form == "text" else row["prompt"] + row["completion"]
    return _tokenize(tokenizer, text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"]


def response_lengths(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row, and tokens of each row's response."""
    lengths, contexts = [], []
    columns = dataset.select_columns(["input_ids", CONTEXT_LENGTH]).with_format("arrow")
    for table in columns.iter(batch_size=10_000):
        lengths.append(pc.list_value_length(table["input_ids"]).to_numpy())
        contexts.append(table[CONTEXT_LENGTH].to_numpy())
    lengths, contexts = np.concatenate(lengths), np.concatenate(contexts)
    return lengths, np.maximum(lengths - contexts, 0)


def report_cut_responses(lengths: np.ndarray, max_length: int | None) -> None:
    """Warns of rows that truncation left without a token of their last response."""
    cut = int((lengths == 0).sum())
    if cut:
        logger.warning(
            f"{cut} of {len(lengths)} rows keep no token of their last response within `max_length={max_length}`: they are "
            "trained on their gold labels and never rolled out."
        )


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole conversation of a conversational row, response included."""
    return [*row["prompt"], *row["completion"]] if "prompt" in row else row["messages"]


def conversation_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], row: dict[str, Any], chat_template: str | None
) -> list[int]:
    """Token ids of `messages` with the generation prompt, under the row's own template arguments."""
    tools = row.get("tools")
    return _tokenize(
        tokenizer,
        messages,
        add_generation_prompt=True,
        chat_template=chat_template,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    )["input_ids"]


def split_turns(dataset: Dataset) -> Dataset:
    """One prompt-completion row for every assistant turn of a conversation, instead of the last one alone."""

    def explode(batch: dict[str, list]) -> dict[str, list]:
        column = "messages" if "messages" in batch else "prompt"
        prompts, completions = [], []
        for i, messages in enumerate(batch[column]):
            messages = [*messages, *(batch["completion"][i] if column == "prompt" else [])]
            for k, message in enumerate(messages):
                if message["role"] == "assistant" and k > 0:
                    prompts.append(messages[:k])
                    completions.append([message])
        return {"prompt": prompts, "completion": completions}

    return dataset.map(explode, batched=True, remove_columns=dataset.column_names, desc="Splitting the turns")


def _last_labelled_stretch(labels: list[int]) -> int:
    """Where the last run of labels begins; at least 1, since the first token has nothing to be predicted from."""
    end = max((i for i, label in enumerate(labels) if label != -100), default=len(labels) - 1)
    start = end
    while start > 1 and labels[start - 1] != -100:
        start -= 1
    return max(start, 1)


def _last_text(response: Any) -> str:
    if isinstance(response, str):
        return response
    if not response:
        return ""
    message = response[-1]
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts of a multimodal message
        return "".join(part.get("text") or "" for part in content)
    # A turn may hold nothing but a tool call.
    return content or ("tool call" if message.get("tool_calls") else "")


def _role(message: dict[str, Any]) -> str:
    return message.get("role", message.get("from"))


def _reject(dataset: Dataset, is_bad: Callable[[dict], bool], what: str, remedy: str) -> None:
    bad = [i for i, row in enumerate(dataset) if is_bad(row)]
    if bad:
        shown = ", ".join(map(str, islice(bad, _SHOWN))) + (", …" if len(bad) > _SHOWN else "")
        raise ValueError(f"{len(bad)} of {len(dataset)} training rows {what} (rows {shown}). {remedy}")
