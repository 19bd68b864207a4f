"""Which form a data set has, and what is checked of data and tokenizer before anything is trained."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from trl import SFTConfig

from ..core.branches import OWN_COLUMNS, ROW, TEACHER
from ..core.errors import UsageError, UsageTypeError
from ..core.upstream import can_mark_assistant
from .row_checks import raise_problems, row_problems, unknown_roles
from .token_checks import special_token_problem, tokenised_problems


logger = logging.getLogger(__name__)

#: How messages call the training data.
TRAINING = "training dataset"

# Columns by which rows carry what belongs to training: a data set's own would be taken for it.
_OURS = ("branches", "soft_labels", "trunk_states", ROW, TEACHER, *OWN_COLUMNS)
# Columns that TRL reads as what tokenising made of a row.
_OF_TOKENS = ("labels", "completion_mask", "assistant_masks", "seq_lengths")


def dataset_form(columns: list[str], text_field: str, has_formatting_func: bool = False, name: str = TRAINING) -> str:
    """
    Which of TRL's forms a dataset has: `"tokenized"`, `"prompt-completion"`, `"messages"` or `"text"`.

    Args:
        name (`str`): What a message calls it.

    Raises:
        UsageError: if it has none; the message names the columns it has and the ones it could have.
    """
    if "input_ids" in columns:
        return "tokenized"
    if has_formatting_func:
        return "text"
    # TRL reads a `prompt` column first, whatever else there is.
    if "prompt" in columns:
        if "completion" in columns:
            return "prompt-completion"
        raise UsageError(
            f"The {name} has a `prompt` column but no `completion` column (columns: {', '.join(columns)}). "
            "Rename the column that holds the response to `completion`, or, if the conversation is in `messages`, "
            "select that column alone."
        )
    if "messages" in columns or "conversations" in columns:
        return "messages"
    if text_field in columns:
        return "text"
    raise UsageError(
        f"The {name} has none of the columns that hold a response (columns: {', '.join(columns)}). Expected "
        f"`prompt` and `completion`, `messages`, `{text_field}`, or tokenised `input_ids` and `labels`."
    )


def named_parts(train_dataset: Any, eval_dataset: Any = None) -> dict[str, Any]:
    """The data sets of a run, by what a message calls each: the training set first, then each evaluation set."""
    parts = {} if train_dataset is None else {TRAINING: train_dataset}
    if isinstance(eval_dataset, dict):
        parts |= {evaluation_name(key): part for key, part in eval_dataset.items()}
    elif eval_dataset is not None and not isinstance(eval_dataset, str):
        parts[evaluation_name("eval")] = eval_dataset
    return parts


def rows_of(name: str, number: int) -> str:
    """How a message calls all the rows of a data set: `"24 training rows"`."""
    kinds = {TRAINING: "training rows", evaluation_name("eval"): "evaluation rows"}
    return f"{number} {kinds.get(name, f'rows of the {name}')}"


def evaluation_name(key: str) -> str:
    """How a message calls the evaluation data that TRL calls `"eval"`, or the set of this name."""
    return "evaluation dataset" if key == "eval" else f"evaluation set `{key}`"


def readable_parts(train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """Training and evaluation data after [`readable`]."""
    if isinstance(eval_dataset, dict):
        evaluation = {key: readable(part, evaluation_name(key)) for key, part in eval_dataset.items()}
    else:
        evaluation = readable(eval_dataset, evaluation_name("eval"))
    return readable(train_dataset, TRAINING), evaluation


def readable(dataset: Any, name: str) -> Any:
    """
    A data set as rows are read here: without a format (`with_format("torch")`, …), and without columns whose names are ours.

    Raises:
        UsageError: for one with a transform, whose rows are another each time they are read.
    """
    if not isinstance(dataset, Dataset):
        return dataset
    if dataset.format["type"] == "custom":
        raise UsageError(
            f"The {name} has a transform (`with_transform`), which may give other rows each time they are read; rollouts are "
            "kept with their rows. Apply it once, with `Dataset.map`."
        )
    dataset = dataset.with_format(None)
    reserved = _OURS if "input_ids" in dataset.column_names else (*_OURS, *_OF_TOKENS)
    taken = [column for column in reserved if column in dataset.column_names]
    if taken:
        logger.warning(
            f"The {name} has columns whose names have a meaning in training ({', '.join(taken)}). They are left out. Rename "
            "them if you need them."
        )
        dataset = dataset.remove_columns(taken)
    return dataset


def check_train_dataset(
    dataset: Any,
    text_field: str,
    has_formatting_func: bool = False,
    eval_dataset: Any = None,
    num_embeddings: int | None = None,
    reads_documents: bool = False,
    forms: tuple[str, ...] | None = None,
    method: str = "",
) -> str:
    """
    Rejects what cannot be trained on, before anything is loaded, and returns the training set's form.

    Args:
        eval_dataset (`datasets.Dataset` or `dict`, *optional*): Is checked alike.
        num_embeddings (`int`, *optional*): Tokens that the model has embeddings for, where that is known.
        reads_documents (`bool`, *optional*, defaults to `False`): Whether plain text is read as whole documents.
        forms (`tuple[str, ...]`, *optional*): Those that `method` can train on. Default: all.

    Raises:
        UsageTypeError: for something other than a map-style `datasets.Dataset`.
        UsageError: for vision data, missing columns, and rows that cannot be trained on: one message for all of them.
    """
    if isinstance(dataset, IterableDataset):
        raise UsageTypeError(
            "An `IterableDataset` cannot be rolled out: every row is visited again in each iteration, by its number. "
            "Load it without `streaming`, or take a part of it: `Dataset.from_list(list(dataset.take(50_000)))`."
        )
    if not isinstance(dataset, Dataset):
        raise UsageTypeError(f"`train_dataset` must be a `datasets.Dataset`, got `{type(dataset).__name__}`.")
    if len(dataset) == 0:
        raise UsageError("The training dataset has no rows.")
    columns = dataset.column_names
    form, messages = dataset_form(columns, text_field, has_formatting_func), []
    if forms is not None and form not in forms:
        raise UsageError(
            f"{method} needs data in the form {' or '.join(forms)}; this dataset is of the form {form} (columns: "
            f"{', '.join(columns)})."
        )
    for name, part in named_parts(dataset, eval_dataset).items():
        messages += check_rows(part, name, text_field, has_formatting_func, num_embeddings, reads_documents)
    raise_problems(messages)
    return form


def check_rows(
    dataset: Any,
    name: str,
    text_field: str,
    has_formatting_func: bool = False,
    num_embeddings: int | None = None,
    reads_documents: bool = False,
    of: str | None = None,
) -> list[str]:
    """
    What is wrong with the rows of one data set; see [`check_train_dataset`]. Reports nothing for anything other than a `Dataset`.

    Args:
        of (`str`, *optional*): The name of the rows in a message. Default: [`rows_of`].

    Raises:
        UsageError: for a set without rows, vision data and missing columns.
    """
    if not isinstance(dataset, Dataset):
        return []
    if len(dataset) == 0:
        raise UsageError(f"The {name} has no rows.")
    columns = dataset.column_names
    if "image" in columns or "images" in columns:
        raise UsageError("Vision datasets are not supported: rollouts are token ids without images.")
    form, of = dataset_form(columns, text_field, has_formatting_func, name), of or rows_of(name, len(dataset))
    if form == "tokenized":
        return tokenised_problems(dataset, of, num_embeddings, reads_documents)
    if has_formatting_func:
        return []
    return row_problems(dataset, form, of, text_field, reads_documents)


def check_responses(lengths: np.ndarray, max_length: int | None, rolls_out: bool) -> None:
    """
    Rejects data of which no response is left to roll out, for a run that would.

    Args:
        lengths (`np.ndarray`): Tokens of each row's response.

    Raises:
        UsageError: says what to do.
    """
    if rolls_out and not lengths.any():
        raise UsageError(
            f"None of the {len(lengths)} training rows keeps a token of its last response within `max_length={max_length}`: there "
            "is nothing to roll out. Raise `max_length`."
        )


_UNMARKED = (
    "`assistant_only_loss=True` needs a chat template that marks what the assistant says: this one has no `{% generation %}`, and TRL "
    "cannot replace it. Put `{% generation %}` and `{% endgeneration %}` around it in a template of your own (`chat_template_path`), "
    "or leave `assistant_only_loss` out: with `rollout_turns='all'`, each assistant turn is a row, and that turn alone is trained on."
)


def check_tokenizer(
    processing_class: Any,
    args: SFTConfig,
    dataset: Dataset,
    form: str,
    eval_dataset: Any = None,
    num_embeddings: int | None = None,
) -> None:
    """
    Rejects a tokenizer that cannot end a response, render the data's conversations, pad, or mark what the assistant says where
    that alone is trained on (`assistant_only_loss`), before the model is loaded.

    Raises:
        UsageError: says which setting would help.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    has_turns = _conversational_column(dataset) is not None
    adds_eos = form == "text" or (form != "tokenized" and not has_turns)
    _check_special_tokens(tokenizer, args, num_embeddings, adds_eos)
    # Turns of which a formatting function makes text are TRL's to decide about.
    if args.assistant_only_loss and not has_turns:
        raise UsageError(
            "`assistant_only_loss=True` trains on what the assistant says, and the training dataset is not conversational. Leave it "
            "out: with `prompt` and `completion`, the completion alone is trained on anyway."
        )
    if form == "tokenized":
        return
    if args.eos_token is None and tokenizer.eos_token is None:
        raise UsageError(
            "The tokenizer has no EOS token, so a response has no end. Set `eos_token` in the config to a token of its "
            "vocabulary."
        )
    vocabulary = tokenizer.get_vocab()
    for name in ("eos_token", "pad_token"):
        token = getattr(args, name)
        if token is not None and token not in vocabulary:
            raise UsageError(
                f"`{name}: {token}` is not a token of the tokenizer. Set it to one of its vocabulary, or leave it out."
            )
    messages = []
    for name, part in named_parts(dataset, eval_dataset).items():
        column = _conversational_column(part)
        if column is None or (part is dataset and form == "text"):
            continue
        if tokenizer.chat_template is None and args.chat_template_path is None:
            raise UsageError(
                f"The {'dataset' if part is dataset else name} is conversational, but the tokenizer has no chat template. Set "
                "`chat_template_path` to a `.jinja` file or to a model whose template to use, or turn the conversations into "
                "text."
            )
        template = tokenizer.chat_template
        if args.chat_template_path is not None:
            template = _template_text(args.chat_template_path)
        if template is not None:  # another model's template is not known yet
            kind = "prompt-completion" if column == "prompt" else "messages"
            messages += unknown_roles(part, kind, rows_of(name, len(part)), template)
            if args.assistant_only_loss and part is dataset and not can_mark_assistant(tokenizer, template):
                messages.append(_UNMARKED)
    raise_problems(messages)


def _check_special_tokens(tokenizer: Any, args: SFTConfig, num_embeddings: int | None, adds_eos: bool) -> None:
    template = args.chat_template_path
    # A model whose template is taken over lends its special tokens too, and TRL enlarges the embeddings for them.
    if num_embeddings is None or (template is not None and not Path(template).is_file()):
        return
    vocabulary, eos = tokenizer.get_vocab(), args.eos_token or tokenizer.eos_token
    used = {"padding": args.pad_token or tokenizer.pad_token or eos} | ({"end-of-text": eos} if adds_eos else {})
    raise_problems(
        [
            message
            for use, token in used.items()
            if (message := special_token_problem(use, token, vocabulary.get(token), num_embeddings)) is not None
        ]
    )


def _conversational_column(dataset: Any) -> str | None:
    if not isinstance(dataset, Dataset) or "input_ids" in dataset.column_names:
        return None
    column = next((c for c in ("prompt", "messages", "conversations") if c in dataset.column_names), None)
    return None if column is None or isinstance(dataset[0][column], str) else column


def _template_text(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
