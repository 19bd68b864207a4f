"""The turns of a column of conversations, flat, as Arrow holds them: who speaks, and whether anything is said."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .conversations import _KNOWN, _ROLES
from .template_form import _REASONING, text_of


_ANSWERS = pa.array(["assistant", "function_call", *(role for role, known in _ROLES.items() if known == "assistant")])
#: Roles that templates have names for, and ShareGPT's.
KNOWN_ROLES = {*_KNOWN, "function", "ipython", "documents", "context", "critic"}


@dataclass(frozen=True)
class Turns:
    """
    The turns of some rows, one after another.

    Args:
        lengths (`np.ndarray`): Turns of each row; 0 for null.
        roles (`pa.Array`): The role of each turn; null where there is none.
        is_blank (`np.ndarray`): For each turn, whether it says nothing: no text, no reasoning, no call.
        is_null (`np.ndarray`): For each turn, whether its content is null and it has neither reasoning nor calls; never of a
            tool's.
        is_no_list (`np.ndarray`): For each row, whether it holds something other than a list of messages.
    """

    lengths: np.ndarray
    roles: pa.Array
    is_blank: np.ndarray
    is_null: np.ndarray
    is_no_list: np.ndarray

    def rows_with(self, holds: Any) -> np.ndarray:
        """For each row, whether something holds for any of its turns."""
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return np.bincount(rows[np.asarray(holds)], minlength=len(self.lengths)) > 0

    def last_places(self) -> np.ndarray:
        """Where the last turns of the rows are; rows without any are left out."""
        return (np.cumsum(self.lengths) - 1)[self.lengths > 0]

    def of_last(self, holds: Any) -> np.ndarray:
        """For each row, whether something holds for its last turn; false for a row without turns."""
        found = np.zeros(len(self.lengths), bool)
        found[self.lengths > 0] = np.asarray(holds)[self.last_places()]
        return found


def turns_of(column: pa.Array) -> Turns:
    """The turns of a column of messages: lists of structs, of JSON, or JSON of lists."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.struct({"role": pa.string()})))
    if not is_list(column.type):
        return _of_objects(read_json(column) if is_json(column.type) else column.to_pylist())
    if not pa.types.is_struct(column.type.value_type):
        return _of_objects(_objects(column))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = column.flatten()
    roles = _either(flat, "role", "from")
    content = _either(flat, "content", "value")
    calls = _field(flat, "tool_calls")
    has_more = np.zeros(len(flat), bool)
    if calls is not None:
        has_more |= ~_is_blank(calls)
    for key in _REASONING:
        if (reasoning := _field(flat, key)) is not None:
            has_more |= ~_is_blank(reasoning)
    roles = _texts(roles, len(flat))
    nothing = np.ones(len(flat), bool)
    blank = nothing if content is None else _is_blank(content)
    null = nothing if content is None else _is_null(content)
    is_tool = np.asarray(pc.fill_null(pc.is_in(roles, pa.array(["tool", "observation", "function_response"])), False))
    return Turns(lengths, roles, blank & ~has_more, null & ~has_more & ~is_tool, np.zeros(len(lengths), bool))


def is_answer(roles: pa.Array) -> pa.Array:
    """For each role, whether it is the assistant's; null for null."""
    return pc.if_else(pc.is_valid(roles), pc.is_in(roles, _ANSWERS), None)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is of texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_json(kind: pa.DataType) -> bool:
    """Whether an Arrow type is that of `datasets`' JSON."""
    return isinstance(kind, pa.BaseExtensionType) and is_text(kind.storage_type)


def read_json(column: pa.Array) -> list[Any]:
    """The values of a column of JSON."""
    return [None if text is None else json.loads(text) for text in column.storage.to_pylist()]


def _objects(column: pa.Array) -> list[Any]:
    """Lists of anything as Python has them."""
    if not is_json(column.type.value_type):
        return column.to_pylist()
    flat, lengths = read_json(column.flatten()), pc.list_value_length(column).to_pylist()
    ends = np.cumsum([length or 0 for length in lengths]).tolist()
    return [None if length is None else flat[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def _of_objects(rows: list[Any]) -> Turns:
    is_list = [isinstance(row, list) and all(isinstance(turn, dict) for turn in row) for row in rows]
    turns = [turn for row, good in zip(rows, is_list, strict=True) if good for turn in row]
    roles, blank, null = [], [], []
    for turn in turns:
        role = turn.get("role") or turn.get("from")
        content = turn.get("content", turn.get("value"))
        has_more = bool(turn.get("tool_calls")) or any(text_of(turn.get(key)).strip() for key in _REASONING)
        roles.append(role if isinstance(role, str) else None)
        blank.append(not has_more and not _text(content).strip())
        null.append(not has_more and content is None and role not in ("tool", "observation", "function_response"))
    return Turns(
        np.array([len(row) if good else 0 for row, good in zip(rows, is_list, strict=True)], np.int64),
        pa.array(roles, pa.string()),
        np.array(blank, bool),
        np.array(null, bool),
        np.array([row is not None and not good for row, good in zip(rows, is_list, strict=True)], bool),
    )


def _text(content: Any) -> str:
    """What a content says. For something that is neither text nor parts, only that it is there."""
    return text_of(content) if content is None or isinstance(content, (str, list)) else str(content)


def _field(flat: pa.Array, name: str) -> pa.Array | None:
    return pc.struct_field(flat, name) if flat.type.get_field_index(name) >= 0 else None


def _either(flat: pa.Array, name: str, other: str) -> pa.Array | None:
    """One of two fields, the first where both are there: data are of one form or the other, seldom of both."""
    first, second = _field(flat, name), _field(flat, other)
    if first is None or second is None or first.type != second.type or is_json(first.type):
        return second if first is None else first
    return pc.coalesce(first, second)


def _texts(column: pa.Array | None, length: int) -> pa.Array:
    """Roles as texts; anything else counts as no role."""
    if column is not None and is_json(column.type):
        return pa.array([value if isinstance(value, str) else None for value in read_json(column)], pa.string())
    if column is None or not is_text(column.type):
        return pa.nulls(length, pa.string())
    return column.cast(pa.string())


def _is_null(column: pa.Array) -> np.ndarray:
    null = column.is_null()
    if is_json(column.type):
        null = pc.or_(null, pc.fill_null(pc.equal(column.storage, "null"), True))
    return np.asarray(null)


def _is_blank(column: pa.Array) -> np.ndarray:
    """Whether contents, reasoning or calls are empty."""
    if pa.types.is_null(column.type):
        return np.ones(len(column), bool)
    if is_text(column.type):
        return np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    if is_list(column.type) and pa.types.is_struct(column.type.value_type):
        texts = _field(column.flatten(), "text")
        if texts is None:  # calls
            return np.asarray(pc.fill_null(pc.equal(pc.list_value_length(column), 0), True))
    values = read_json(column) if is_json(column.type) else column.to_pylist()
    return np.array([not value or not _says_something(value) for value in values], bool)


def _says_something(value: Any) -> bool:
    is_content = isinstance(value, str) or (isinstance(value, list) and all(_is_part(part) for part in value))
    return bool(text_of(value).strip()) if is_content else bool(value)


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and "text" in part)
