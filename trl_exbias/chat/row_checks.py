"""Which rows of a data set cannot be trained on, and why: looked for in its Arrow columns, a million rows in seconds."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..core.errors import UsageError
from .conversations import TEMPLATE_KWARGS, TOOLS, template_kwargs_of, tools_of
from .turns import KNOWN_ROLES, Turns, is_answer, is_json, is_text, read_json, turns_of


_SHOWN = 5  # rows named in a message
_BATCH = 10_000
_ONE_KIND = "Make both texts, or both lists of messages."


class Problems:
    """
    What is wrong with some rows, collected column by column and batch by batch.

    Args:
        of (`str`): The name of the checked rows in a message: `"24 training rows"`.
        numbers (`list[int]`, *optional*): What a message calls each row. Default: its place.
    """

    def __init__(self, of: str, numbers: list[int] | None = None):
        self.of, self.numbers = of, numbers
        self._found: dict[tuple[str, str], list[np.ndarray]] = {}
        self._start = 0

    def begin_batch(self, start: int) -> None:
        """Rows are numbered within a batch from here on, which begins with the data set's row `start`."""
        self._start = start

    def add(self, is_bad: Any, what: str, remedy: str) -> None:
        """Adds the rows of a batch for which `is_bad` (one truth value a row) holds."""
        rows = np.flatnonzero(np.asarray(is_bad))
        if len(rows):
            self._found.setdefault((what, remedy), []).append(rows + self._start)

    def messages(self) -> list[str]:
        """One sentence for each kind of problem, with the first of its rows, and what to do."""
        said = []
        for (what, remedy), parts in self._found.items():
            rows = np.concatenate(parts)
            first = rows[:_SHOWN] if self.numbers is None else [self.numbers[row] for row in rows[:_SHOWN]]
            shown = ", ".join(map(str, first)) + (", …" if len(rows) > _SHOWN else "")
            said.append(f"{len(rows)} of {self.of} {what} (rows {shown}). {remedy}")
        return said


def raise_problems(messages: list[str]) -> None:
    """
    Raises one error for all of some messages; none where there are none.

    Raises:
        UsageError: with the message, or a list of them.
    """
    if not messages:
        return
    several = "The data cannot be used:\n" + "\n".join(f"- {message}" for message in messages)
    error = UsageError(several if len(messages) > 1 else messages[0])
    error.problems = messages  # `exbias check` lists them one by one
    raise error


def row_problems(
    dataset: Dataset,
    form: str,
    of: str,
    text_field: str = "text",
    reads_documents: bool = False,
    is_answered: bool = True,
    numbers: list[int] | None = None,
) -> list[str]:
    """
    What is wrong with the rows of untokenised data: nulls, empty texts and conversations, turns without a role or without
    words, conversations that do not end with an answer, tools that are not JSON.

    Args:
        form (`str`): As [`~trl_exbias.chat.data_checks.dataset_form`] returns it.
        of, numbers: See [`Problems`].
        reads_documents (`bool`, *optional*, defaults to `False`): Whether text is cut into trajectories, which leaves out
            documents that are too short, empty ones too.
        is_answered (`bool`, *optional*, defaults to `True`): Whether each row must end with an answer. Otherwise a `completion`
            is not looked at.

    Returns:
        `list[str]`: Messages; none where all rows are fine.
    """
    problems = Problems(of, numbers)
    columns: list[str]
    check: Callable[[Problems, Any], None]
    if form == "text":
        columns, check = [text_field], partial(_check_text, name=text_field, may_be_empty=reads_documents)
    elif form == "messages":
        columns = ["messages" if "messages" in dataset.column_names else "conversations"]
        check = partial(_check_conversation, name=columns[0], is_answered=is_answered)
    else:
        columns, check = ["prompt", "completion"][: 1 + is_answered], _check_pair
    more = [name for name in (TOOLS, TEMPLATE_KWARGS) if name in dataset.column_names and form != "text"]
    for start, batch in batches(dataset, [*columns, *more]):
        problems.begin_batch(start)
        check(problems, batch)
        for name in more:
            _check_json(problems, batch[name], name)
    return problems.messages()


def unknown_roles(dataset: Dataset, form: str, of: str, chat_template: Any) -> list[str]:
    """Messages about turns whose role is none that is known, and that the chat template does not mention either."""
    names = {"messages": ["messages", "conversations"], "prompt-completion": ["prompt", "completion"]}.get(form, [])
    columns = [name for name in names if name in dataset.column_names]
    template, problems = str(chat_template or ""), Problems(of)
    for start, batch in batches(dataset, columns) if columns else ():
        problems.begin_batch(start)
        for name in columns:
            if _is_of_text(batch[name]):
                continue
            turns = turns_of(batch[name])
            for role in set(pc.unique(turns.roles).to_pylist()) - KNOWN_ROLES - {None}:
                if f"'{role}'" not in template and f'"{role}"' not in template:
                    problems.add(
                        turns.rows_with(pc.equal(turns.roles, role)),
                        f"have a turn of the role `{role}` in `{name}`, which is not known",
                        f"Rename it to one of {', '.join(sorted(KNOWN_ROLES))}, or take a chat template that mentions it.",
                    )
    return problems.messages()


def batches(dataset: Dataset, columns: list[str]) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Some columns, a batch of rows at a time, each with the number of its first row."""
    tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH)
    start = 0
    for table in tables:
        yield start, {name: _plain(table[name].combine_chunks()) for name in columns}
        start += table.num_rows


def _plain(column: Any) -> pa.Array:
    """A column of JSON as text where it holds nothing else."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_json(column.type):
        values = read_json(column)
        if all(value is None or isinstance(value, str) for value in values):
            return pa.array(values, pa.string())
    return column


def _is_of_text(column: pa.Array) -> bool:
    return is_text(column.type) or pa.types.is_null(column.type)


def _check_text(problems: Problems, batch: dict[str, pa.Array], name: str, may_be_empty: bool) -> None:
    column = batch[name]
    if not _is_of_text(column):
        problems.add(np.ones(len(column), bool), f"hold no text in `{name}` but {column.type}", "Turn it into text.")
    elif may_be_empty:
        problems.add(column.is_null(), f"have a null in `{name}`", "Drop them, or fill in a text.")
    else:
        problems.add(_is_blank(column), f"have no text in `{name}`", "Drop them.")


def _is_blank(column: pa.Array) -> pa.Array:
    """Which texts of a column are null, empty, or nothing but white space."""
    if pa.types.is_null(column.type):
        return pa.array([True] * len(column))
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)


def _check_pair(problems: Problems, batch: dict[str, pa.Array]) -> None:
    prompt, completion = batch["prompt"], batch.get("completion")
    empty = ("have an empty response in `completion`", "Drop them.")
    if _is_of_text(prompt):
        problems.add(
            prompt.is_null(), "have a null in `prompt`", "Fill in a prompt (an empty text is one), or drop them."
        )
        if completion is not None and _is_of_text(completion):
            problems.add(_is_blank(completion), *empty)
        elif completion is not None:
            problems.add(prompt.is_valid(), f"have text in `prompt`, but {completion.type} in `completion`", _ONE_KIND)
        return
    turns = turns_of(prompt)
    _check_kind(problems, turns, "prompt")
    problems.add(
        turns.lengths == 0, "have no message in `prompt`", "Drop them, or fill in the turns that are answered."
    )
    _check_turns(problems, turns, "prompt", False)
    if completion is None:
        return
    if _is_of_text(completion):
        problems.add(turns.lengths > 0, "have messages in `prompt`, but text in `completion`", _ONE_KIND)
        return
    answers = turns_of(completion)
    _check_kind(problems, answers, "completion")
    problems.add((answers.lengths == 0) | answers.of_last(answers.is_blank), *empty)
    _check_turns(problems, answers, "completion", True)


def _check_conversation(problems: Problems, batch: dict[str, pa.Array], name: str, is_answered: bool) -> None:
    column = batch[name]
    if _is_of_text(column) and not pa.types.is_null(column.type):
        problems.add(np.ones(len(column), bool), f"hold text in `{name}`", "It needs a list of messages.")
        return
    turns = turns_of(column)
    _check_kind(problems, turns, name)
    if not is_answered:
        problems.add(turns.lengths == 0, f"have no message in `{name}`", "Drop them.")
        _check_turns(problems, turns, name, is_answered)
        return
    is_empty = (turns.lengths == 0) | turns.of_last(turns.is_blank)
    problems.add(is_empty, f"have an empty response in `{name}`", "Drop them.")
    # A single turn that is not an answer is said to be none below.
    alone = (turns.lengths == 1) & ~is_empty & turns.of_last(is_answer(turns.roles))
    problems.add(
        alone, f"have nothing before the answer in `{name}`", "Drop them, or fill in the turn that is answered."
    )
    _check_turns(problems, turns, name, is_answered)


def _check_kind(problems: Problems, turns: Turns, name: str) -> None:
    problems.add(turns.is_no_list, f"hold something other than a list of messages in `{name}`", "Drop them.")


def _check_turns(problems: Problems, turns: Turns, name: str, is_answered: bool) -> None:
    problems.add(
        turns.rows_with(pc.is_null(turns.roles)),
        f"have a message without a role in `{name}`",
        "Fill in its `role`, or drop them.",
    )
    # What a last turn lacks is said of the response; an empty text is something said.
    silent = turns.is_null.copy()
    if is_answered:
        silent[turns.last_places()] = False
    problems.add(
        turns.rows_with(silent),
        f"have a message whose content is null in `{name}`",
        "Fill in a text (it may be empty), or drop them.",
    )
    if is_answered:
        problems.add(
            turns.of_last(pc.fill_null(pc.invert(is_answer(turns.roles)), False)),
            f"do not end with an assistant turn in `{name}`",
            "Drop the turns after the last answer.",
        )


def _check_json(problems: Problems, column: pa.Array, name: str) -> None:
    """Tools, or arguments of the template, that come as JSON text: each text is read once."""
    if not is_text(column.type):
        return
    read = tools_of if name == TOOLS else template_kwargs_of
    bad = []
    for text in pc.unique(column).to_pylist():
        try:
            read({name: text})
        except ValueError:
            bad.append(text)
    if bad:
        problems.add(
            pc.is_in(column, pa.array(bad, column.type)),
            f"have a text in `{name}` that is not JSON of {'tools' if name == TOOLS else 'a dictionary'}",
            "Write it with `json.dumps`, or leave it null.",
        )
