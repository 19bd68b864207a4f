"""Tokenised rows against the model and against each other: labels, embeddings, doubled special tokens."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..core.branches import OWN_COLUMNS, ROW
from ..core.errors import UsageError
from .row_checks import Problems, batches
from .turns import is_list


#: Columns of TRL's that say which tokens have a label, where there are no labels.
_MASKS = ("completion_mask", "assistant_masks")
_LOOKED_AT = 100  # prepared rows in which doubled tokens are looked for


def tokenised_problems(
    dataset: Dataset, of: str, num_embeddings: int | None = None, reads_documents: bool = False
) -> list[str]:
    """
    What is wrong with tokenised rows: nulls, no tokens, labels or masks of another length than the tokens, nothing to
    predict, ids that the model has no embedding for.

    Args:
        of (`str`): See [`~trl_exbias.chat.row_checks.Problems`].
        num_embeddings (`int`, *optional*): Tokens that the model has embeddings for, where that is known.
        reads_documents (`bool`, *optional*, defaults to `False`): Whether rows without labels are cut into trajectories.

    Returns:
        `list[str]`: Messages; none where all rows are fine.
    """
    problems, names = Problems(of), dataset.column_names
    beside = [name for name in (("labels",) if "labels" in names else _MASKS) if name in names]
    for start, batch in batches(dataset, ["input_ids", *beside]):
        problems.begin_batch(start)
        good = [name for name in batch if _check_lists(problems, batch[name], name)]
        if good != list(batch):
            continue
        ids = _Lists(batch["input_ids"])
        problems.add((ids.lengths == 0), "have no tokens in `input_ids`", "Drop them.")
        for name in beside:
            other = _Lists(batch[name])
            problems.add(
                (other.lengths != ids.lengths) & (other.lengths >= 0) & (ids.lengths > 0),
                f"have another number of {name.removesuffix('s')}s in `{name}` than tokens in `input_ids`",
                "Give each token its own" + (" (-100 for none) or leave `labels` out." if name == "labels" else "."),
            )
        labels = _Lists(batch["labels"]) if "labels" in beside else ids
        if "labels" in beside or not (beside or reads_documents):
            problems.add(
                (ids.lengths > 0) & (labels.lengths >= 0) & ~_has_target(labels), *_no_target("labels" in beside)
            )
        if num_embeddings is not None:
            both = {"input_ids": ids} | ({"labels": labels} if "labels" in beside else {})
            _check_ids(problems, both, num_embeddings)
    return problems.messages()


def labelled_rows(dataset: Dataset, name: str) -> Dataset:
    """
    Tokenised rows with `labels`: every token is one where there is no such column, as TRL's collator has it.

    Raises:
        UsageError: for rows that are not tokenised, and for masks without labels; `name` is what the message calls them.
    """
    columns = dataset.column_names
    if "input_ids" not in columns:
        raise UsageError(
            f"`skip_prepare_dataset` leaves the {name} as it is, and it is not tokenised (columns: {', '.join(columns)}). Leave "
            "it out, or give `input_ids` and `labels`."
        )
    if "labels" in columns:
        return dataset
    masks = [column for column in _MASKS if column in columns]
    if masks:
        raise UsageError(
            f"`skip_prepare_dataset` leaves the {name} as it is, so that no labels are made of {', '.join(masks)}. Leave it out, "
            "or give `labels` (-100 where a token has none)."
        )
    return dataset.map(lambda rows: {"labels": rows["input_ids"]}, batched=True, desc="Labelling every token")


def _no_target(has_labels: bool) -> tuple[str, str]:
    if has_labels:
        return (
            "have no label in `labels` after the first token, which nothing precedes: nothing is predicted",
            "Drop them.",
        )
    return "have a single token in `input_ids`: nothing is predicted", "Drop them."


def prepared_problems(before: Dataset, after: Dataset, of: str, max_length: int | None, prepare: Callable) -> list[str]:
    """
    Rows of which truncation left nothing to learn: TRL drops them without a word, and one that keeps only its first token
    has no loss.

    Args:
        before, after (`datasets.Dataset`): What TRL prepared, and what it made of it.
        prepare (`Callable`): Prepares a data set as `after` was: called where rows are missing, to find out which.
    """
    problems = Problems(of)
    if len(after) < len(before):
        names = [name for name in (ROW,) if name in before.column_names]
        numbered = before.remove_columns(names).add_column(ROW, np.arange(len(before)))
        lost = np.ones(len(before), bool)
        lost[np.asarray(prepare(numbered)[ROW], int)] = False
        problems.add(
            lost,
            f"have no response token within `max_length={max_length}`: their prompt fills it",
            "Raise `max_length`, or drop these rows before training.",
        )
        return problems.messages()
    room = "" if max_length is None else f" within `max_length={max_length}`"
    remedy = "Drop them." if max_length is None else "Raise `max_length`, or drop these rows before training."
    for start, batch in batches(after, ["labels"]):
        problems.begin_batch(start)
        problems.add(~_has_target(_Lists(batch["labels"])), f"have nothing to predict{room}", remedy)
    return problems.messages()


def embedding_problems(
    dataset: Dataset, of: str, num_embeddings: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[str]:
    """Messages about prepared rows with tokens that the model has no embedding for, in whichever column."""
    lists = [name for name in ("input_ids", "labels", *OWN_COLUMNS[1:]) if name in dataset.column_names]
    problems, unknown = Problems(of), set()
    for start, batch in batches(dataset, lists):
        problems.begin_batch(start)
        tokens = {name: _Lists(batch[name]) for name in lists}
        _check_ids(problems, tokens, num_embeddings)
        for found in tokens.values():
            unknown.update(np.unique(found.flat[found.flat >= num_embeddings]).tolist())
    messages = problems.messages()
    if messages and tokenizer is not None:
        named = tokenizer.convert_ids_to_tokens([id_ for id_ in sorted(unknown) if id_ < len(tokenizer)])
        shown = ", ".join(f"`{token}`" for token in named[:5]) + (", …" if len(named) > 5 else "")
        messages[0] += f" The tokens are {shown}." if named else ""
    return messages


def special_token_problem(use: str, token: str | None, token_id: int | None, num_embeddings: int) -> str | None:
    """
    What is wrong with a special token that the model has no embedding for; `None` where it has one.

    Args:
        use (`str`): What it is there for: `"padding"`, `"end-of-text"`.
    """
    if token_id is None or token_id < num_embeddings:
        return None
    return (
        f"The {use} token `{token}` has the id {token_id}, and the model has embeddings for {num_embeddings} tokens alone. Set "
        f"`{'pad' if use == 'padding' else 'eos'}_token` to one of these, or {_RESIZE}."
    )


_RESIZE = "enlarge the model (`model.resize_token_embeddings(len(tokenizer))`)"


def _check_ids(problems: Problems, columns: dict[str, "_Lists"], num_embeddings: int) -> None:
    said = None
    for name, tokens in columns.items():
        lowest = -100 if "label" in name else 0
        is_bad = tokens.rows_with((tokens.flat >= num_embeddings) | (tokens.flat < lowest))
        # Labels follow the tokens: a row is named once.
        problems.add(
            is_bad if said is None else is_bad & ~said,
            f"have tokens in `{name}` that the model, with {num_embeddings} embeddings, has none for",
            f"Take the tokenizer that belongs to the model, or {_RESIZE}.",
        )
        said = is_bad if said is None else said | is_bad


class _Lists:
    """
    A column of lists of integers, flat.

    Args:
        column (`pa.Array`): A column of lists.

    Attributes: `flat`, all the numbers; `lengths` of the lists, -1 for null.
    """

    def __init__(self, column: pa.Array):
        self.lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = column.flatten()
        self.flat = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False) if len(flat) else np.zeros(0, np.int64)

    def rows_with(self, holds: np.ndarray) -> np.ndarray:
        """Whether something holds for any number of a list, for each list."""
        # By where the lists end: a row number for each of a hundred million tokens would take as much memory as they do.
        ends = np.concatenate([[0], np.cumsum(self.lengths.clip(0))])
        counts = np.concatenate([[0], np.cumsum(holds)])
        return counts[ends[1:]] > counts[ends[:-1]]


def _has_target(labels: _Lists) -> np.ndarray:
    """Whether a row has a label after its first token, for each row."""
    labelled = labels.flat != -100
    starts = np.cumsum(labels.lengths.clip(0)) - labels.lengths.clip(0)
    labelled[starts[labels.lengths > 0]] = False
    return labels.rows_with(labelled)


def _check_lists(problems: Problems, column: pa.Array, name: str) -> bool:
    """Whether a column holds lists of integers, null perhaps; says where it does not."""
    every = np.ones(len(column), bool)
    if not is_list(column.type) or not (
        pa.types.is_integer(column.type.value_type)
        or pa.types.is_boolean(column.type.value_type)
        or not len(column.flatten())
    ):
        if not pa.types.is_null(column.type):
            problems.add(every, f"hold {column.type} in `{name}`", "It needs lists of integers.")
            return False
        problems.add(every, f"have a null in `{name}`", "Drop them.")
        return False
    problems.add(column.is_null(), f"have a null in `{name}`", "Drop them.")
    inside = column.flatten()
    if inside.null_count:
        lists = _Lists(column)
        problems.add(lists.rows_with(np.asarray(inside.is_null())), f"have a null inside `{name}`", "Drop them.")
    return True


def doubled_tokens(
    rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, is_tokenised: bool = False
) -> list[str]:
    """
    Messages, one for all rows, about two tokens of the beginning at their beginning, and two of the end at their end.

    Args:
        rows (`Iterable[Sequence[int]]`): Token ids; the first hundred are looked at.
        is_tokenised (`bool`, *optional*, defaults to `False`): Whether they came tokenised.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    looked_at = begin = end = 0
    for ids in islice(rows, _LOOKED_AT):
        looked_at += 1
        begin += bos is not None and [*ids[:2]] == [bos, bos]
        end += eos is not None and eos != bos and len(ids) > 2 and [*ids[-2:]] == [eos, eos]
    messages = []
    if begin:
        remedy = (
            "Tokenise texts that begin with it with `add_special_tokens=False`."
            if is_tokenised
            else "The text writes it and the tokenizer adds another: leave it out of the text, or set "
            "`tokenizer.add_bos_token = False`."
        )
        messages.append(f"{begin} of the first {looked_at} rows begin with two `{tokenizer.bos_token}`. {remedy}")
    if end:
        remedy = (
            "Tokenise the data with one."
            if is_tokenised
            else "The tokenizer adds one to texts that end with one already: set `tokenizer.add_eos_token = False`."
        )
        messages.append(f"{end} of the first {looked_at} rows end with two `{tokenizer.eos_token}`. {remedy}")
    return messages
