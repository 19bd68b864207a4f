"""Which form a dataset has, and the checks of its rows and of the tokenizer that come before training."""

from collections.abc import Callable
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from trl import SFTConfig


_SHOWN = 5  # rows named in a message


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
