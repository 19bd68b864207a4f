"""Conversations as they come (ShareGPT's keys and roles, text in parts, nulls that Arrow fills in) to messages as templates read them."""

import json
from collections.abc import Callable
from typing import Any

from datasets import Dataset, Features, Json, List

from ..core.errors import UsageError
from .template_form import Message, reasoning_of, text_of


#: Columns of what a chat template is given besides the messages.
TOOLS, TEMPLATE_KWARGS = "tools", "chat_template_kwargs"
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_KNOWN = ("system", "developer", "user", "assistant", "tool", *_ROLES, "function_call")


def normalised(
    dataset: Dataset,
    template_kwargs: dict[str, Any] | None = None,
    adapt: Callable[[list[Message]], list[Message]] = lambda messages: messages,
    num_proc: int | None = None,
) -> Dataset:
    """
    A conversational dataset whose messages are [`message_of`]'s; any other one as it is.

    `conversations` becomes `messages`. Keys that Arrow filled with nulls are gone, which a column of JSON can keep so.

    Args:
        template_kwargs (`dict`, *optional*): Arguments of the chat template for all rows; a row's own win.
        adapt (`Callable`, *optional*): What else to do to a row's messages; see [`~trl_exbias.chat.template_form.adapted`].

    Raises:
        ValueError: for anything other than a conversation of texts; names the row.
    """
    columns = message_columns(dataset)
    if not columns or "input_ids" in dataset.column_names:
        return dataset
    names = {column: "messages" if column == "conversations" else column for column in columns}
    features = {name: feature for name, feature in dataset.features.items() if name != "conversations"}
    features |= dict.fromkeys(names.values(), List(Json()))
    if TOOLS in features:
        features[TOOLS] = List(Json())
    if TEMPLATE_KWARGS in features or template_kwargs:
        features[TEMPLATE_KWARGS] = Json()
    before = dataset.features

    def normalise(row: dict[str, Any], index: int) -> dict[str, Any]:
        row = {name: unfilled(value, before[name]) for name, value in row.items()}
        try:
            new: dict[str, Any] = {
                name: adapt([message_of(message) for message in row[column]]) for column, name in names.items()
            }
            if TOOLS in features:
                new[TOOLS] = tools_of(row)
            if TEMPLATE_KWARGS in features:
                new[TEMPLATE_KWARGS] = {**(template_kwargs or {}), **template_kwargs_of(row)}
        except ValueError as error:
            raise UsageError(f"Row {index}: {error}") from error
        return new

    return dataset.map(
        normalise,
        with_indices=True,
        features=Features(features),
        remove_columns=["conversations"] if "conversations" in dataset.column_names else None,
        num_proc=num_proc,
        desc="Reading the conversations",
    )


def message_columns(dataset: Dataset) -> list[str]:
    """The columns of a dataset that hold messages, as TRL would choose among them; empty for any other data."""
    if len(dataset) == 0:
        return []
    has = [column for column in ("prompt", "completion") if column in dataset.column_names]
    if not has:
        has = [column for column in ("messages", "conversations") if column in dataset.column_names][:1]
    first = dataset[0]
    return [column for column in has if isinstance(first[column], list)]


def message_of(raw: Message) -> Message:
    """
    A message with `role` and `content` (`None` where there is none), and no other key that is null.

    Roles of ShareGPT are mapped (a `function_call` becomes an assistant's turn with `tool_calls`); calls and text parts are
    checked.

    Raises:
        ValueError: for a role of ShareGPT's that is not known, parts other than text, calls that cannot be read.
    """
    if not isinstance(raw, dict):
        raise UsageError(f"a message must be a dictionary with `role` and `content`, got {raw!r}.")
    message = {key: value for key, value in raw.items() if value is not None}
    given = message.pop("from", None)
    role = message.setdefault("role", given)
    if "value" in message:
        message.setdefault("content", message.pop("value"))
    if not isinstance(role, str):
        raise UsageError(f"a message has no `role` (its keys: {', '.join(map(str, raw))}).")
    if given is not None and role not in _KNOWN:
        raise UsageError(f"`from: {role}` is none of the roles that are known ({', '.join(_KNOWN)}). Rename it to one.")
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(message.get("content"))}
    message["role"] = _ROLES.get(role, role)
    message.setdefault("content", None)
    if isinstance(message.get("content"), list):
        message["content"] = [_text_part(part) for part in message["content"]]
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"])
        if not message["tool_calls"]:
            del message["tool_calls"]
    return message


def conversation(row: dict[str, Any]) -> list[Message]:
    """The whole conversation of a conversational row, response included."""
    if "prompt" in row:
        messages = [*row["prompt"], *(row.get("completion") or ())]
    else:
        messages = row["messages"] if "messages" in row else row["conversations"]
    return [message_of(message) for message in messages]


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """A row's tools: from a list, or JSON text of one; `None` for null and for none at all."""
    tools = _from_json(row.get(TOOLS), TOOLS)
    if not tools:
        return None
    return [_from_json(tool, TOOLS) for tool in (tools if isinstance(tools, list) else [tools])]


def template_kwargs_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row's own arguments of the chat template; empty for null."""
    kwargs = _from_json(row.get(TEMPLATE_KWARGS), TEMPLATE_KWARGS) or {}
    if not isinstance(kwargs, dict):
        raise UsageError(f"`{TEMPLATE_KWARGS}` must be a dictionary, got {kwargs!r}.")
    return kwargs


def split_turns(dataset: Dataset) -> Dataset:
    """
    One prompt-completion row for every assistant turn of a conversation, instead of the last one alone.

    A turn that says nothing, and one that nothing precedes, is none. Other columns are repeated.
    """
    column = "prompt" if "prompt" in dataset.column_names else "messages"
    others = [name for name in dataset.column_names if name not in ("prompt", "completion", "messages")]
    features = {name: dataset.features[name] for name in others}
    features |= dict.fromkeys(("prompt", "completion"), dataset.features[column])

    def explode(batch: dict[str, list]) -> dict[str, list]:
        rows: dict[str, list] = {name: [] for name in features}
        for i, messages in enumerate(batch[column]):
            messages = [*messages, *(batch["completion"][i] if column == "prompt" else [])]
            for k, message in enumerate(messages):
                if message["role"] == "assistant" and k > 0 and not is_blank(message):
                    rows["prompt"].append(messages[:k])
                    rows["completion"].append([message])
                    for name in others:
                        rows[name].append(batch[name][i])
        return rows

    return dataset.map(
        explode,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        desc="Splitting the turns",
    )


def is_blank(message: Message) -> bool:
    """Whether a turn says nothing: no text, no reasoning, no call."""
    return not (text_of(message.get("content")).strip() or reasoning_of(message) or message.get("tool_calls"))


def unfilled(value: Any, feature: Any) -> Any:
    """A value without the keys that Arrow filled with nulls; what a column holds as JSON keeps its own."""
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: unfilled(item, feature[key]) for key, item in value.items() if item is not None}
    if isinstance(value, list) and not isinstance(feature, Json):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [unfilled(item, inner) for item in value]
    return value


def _text_part(part: Any) -> Message:
    part = {"type": "text", "text": part} if isinstance(part, str) else part
    part = {key: value for key, value in part.items() if value is not None}
    if part.setdefault("type", "text") != "text" or not isinstance(part.get("text", ""), str):
        raise UsageError(f"a message has a part of the type {part['type']!r}: only text can be rolled out.")
    return {"text": "", **part}


def _calls(calls: Any) -> list[Message]:
    calls = _from_json(calls, "tool_calls")
    return [_call(call) for call in (calls if isinstance(calls, list) else [calls])]


def _call(call: Any) -> Message:
    if not isinstance(call, dict) or "name" not in (call.get("function") or call):
        raise UsageError(f"a call of a tool must have a `name`, got {call!r}.")
    call = {key: value for key, value in call.items() if value is not None}
    if "function" not in call:
        own = {key: value for key, value in call.items() if key not in ("id", "type")}
        call = {**{key: call[key] for key in ("id",) if key in call}, "type": "function", "function": own}
    return {**call, "function": {key: value for key, value in call["function"].items() if value is not None}}


def _from_json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise UsageError(f"`{name}` is not JSON ({error}): {value[:60]!r}.") from error
