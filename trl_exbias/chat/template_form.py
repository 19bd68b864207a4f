"""What a chat template takes: text or parts, call arguments as a mapping or as JSON, calls with empty content or none.

Templates differ, and most say nothing when they are given the other form: they print a Python list, an escaped string,
the word "None", or nothing at all. So each is tried on a few messages, once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin


Message = dict[str, Any]

#: Whatever a template raises at messages that it does not take: its own `raise_exception`, or an expression that fails.
REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
#: A content that is not there, unlike one that is null.
_ABSENT = "absent"
_ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_SAID, _ASKED, _THOUGHT, _ARGUED = "exbiassaid", "exbiasasked", "exbiasthought", "exbiasargued"
_ARGUMENTS = {"exbiaskey": _ARGUED}
_JSON_ARGUMENTS = json.dumps(_ARGUMENTS)


@dataclass(frozen=True)
class TemplateForm:
    """
    The forms of a message that a chat template renders as what they say.

    Args:
        text (`frozenset[str]`): Roles whose content it takes as a string.
        parts (`frozenset[str]`): Roles whose content it takes as a list of `{"type": "text", "text": …}`.
        arguments (`tuple[str, ...]`): How it takes a call's arguments: `"mapping"`, `"json"` or both; none where it renders
            no calls.
        beside_calls (`tuple[str | None, ...]`): What it takes as the content of a turn that is nothing but calls: null,
            `""`, or `"absent"`.
        reasoning (`tuple[str, ...]`): Keys under which it renders the reasoning of an answer.
    """

    text: frozenset[str]
    parts: frozenset[str]
    arguments: tuple[str, ...]
    beside_calls: tuple[str | None, ...]
    reasoning: tuple[str, ...]


_forms: dict[Any, TemplateForm] = {}


def render(
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    messages: list[Message],
    chat_template: str | None = None,
    tools: list | None = None,
    **kwargs: Any,
) -> str:
    """The text of a conversation, in the form that the template takes; `kwargs` are the template's."""
    messages = adapted(messages, form_of(tokenizer, chat_template))
    return _apply(tokenizer, chat_template, messages, tools, **kwargs)


def adapted(messages: list[Message], form: TemplateForm) -> list[Message]:
    """Messages in a form that the template takes; those that have one already are left as they are."""
    return [_adapted(message, form) for message in messages]


def form_of(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, chat_template: str | None = None) -> TemplateForm:
    """What a chat template (by default the tokenizer's own) takes."""
    template = chat_template or tokenizer.chat_template
    key = (json.dumps(template, sort_keys=True), isinstance(tokenizer, ProcessorMixin))
    if key not in _forms:
        _forms[key] = _try(lambda *given, **more: _apply(tokenizer, chat_template, *given, **more))
    return _forms[key]


def text_of(content: Any) -> str:
    """The text of a message's content: a string, text parts joined, `""` for none."""
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    return content or ""


def reasoning_of(message: Message) -> str:
    """The reasoning that comes with an answer, under whichever key; `""` for none."""
    return next((text for key in _REASONING if isinstance(text := message.get(key), str) and text.strip()), "")


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    messages: list[Message],
    tools: list | None = None,
    **kwargs: Any,
) -> str:
    return tokenizer.apply_chat_template(messages, chat_template=chat_template, tools=tools, tokenize=False, **kwargs)


def _adapted(message: Message, form: TemplateForm) -> Message:
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    message = dict(message)
    reasoning = reasoning_of(message)
    if reasoning and form.reasoning and not any(message.get(key) for key in form.reasoning):
        message[form.reasoning[0]] = reasoning
    if calls:
        message["tool_calls"] = [_with_arguments(call, form) for call in calls]
    if calls and not content:
        # Null, or not there at all: Arrow knows no difference.
        given = content if isinstance(content, str) else None
        if given not in form.beside_calls:
            given = form.beside_calls[0] if form.beside_calls else ""
        message.pop("content", None)
        return message if given == _ABSENT else {**message, "content": given}
    if isinstance(content, list) and role not in form.parts:
        message["content"] = text_of(content)
    elif not isinstance(content, list) and role not in form.text and role in form.parts:
        message["content"] = [{"type": "text", "text": content or ""}]
    elif content is None:
        message["content"] = ""
    return message


def _with_arguments(call: Message, form: TemplateForm) -> Message:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, str) and form.arguments == ("mapping",):
        try:
            read = json.loads(arguments)
        except ValueError:
            return call
        # As vLLM does: such a template would print the JSON as an escaped string, or fail.
        arguments = read if isinstance(read, dict) else arguments
    elif isinstance(arguments, dict) and form.arguments == ("json",):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _try(apply: Callable[..., str]) -> TemplateForm:
    arguments, contents = _call_forms(apply)
    call = _call_turn(arguments[0] if arguments else "mapping", contents[0] if contents else "")
    text, parts = set(), set()
    for role in _ROLES:
        takes_text = _takes(apply, role, _SAID, call)
        takes_parts = _takes(apply, role, _parts(_SAID), call)
        if takes_text or not takes_parts:
            text.add(role)
        if takes_parts:
            parts.add(role)
    said = _SAID if "assistant" in text else _parts(_SAID)
    asked = {"role": "user", "content": _ASKED if "user" in text else _parts(_ASKED)}
    answer = {"role": "assistant", "content": said}
    reasoning = [key for key in _REASONING if _THOUGHT in _attempt(apply, [asked, {**answer, key: _THOUGHT}])]
    return TemplateForm(frozenset(text), frozenset(parts), arguments, contents, tuple(reasoning))


def _attempt(apply: Callable[..., str], messages: list[Message]) -> str:
    """What a template makes of messages, `""` if it refuses them."""
    try:
        return apply(messages)
    except REFUSALS:
        return ""


def _parts(text: str) -> list[Message]:
    return [{"type": "text", "text": text}]


def _takes(apply: Callable[..., str], role: str, content: Any, call: Message) -> bool:
    # The other turns are of the same form: a template that takes parts alone would not get to the role in question.
    asked = {"role": "user", "content": _ASKED if isinstance(content, str) else _parts(_ASKED)}
    turn = {"role": role, "content": content}
    messages = {
        "system": [turn, asked],
        "user": [turn],
        "assistant": [asked, turn],
        "tool": [asked, call, {**turn, "name": "exbiascall", "tool_call_id": "exbiasid1"}],
    }[role]
    rendered = _attempt(apply, messages)
    # A list that is printed as Python or as JSON has its keys in the text.
    return _SAID in rendered and "'type'" not in rendered and '"type"' not in rendered


def _call_forms(apply: Callable[..., str]) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    asked = {"role": "user", "content": _ASKED}
    arguments, contents = [], []
    for content in (None, "", _ABSENT):
        # The answer alone: what a template says of itself may hold the word "None".
        mapping, as_json = (
            _attempt(apply, [asked, _call_turn(kind, content)]).rpartition(_ASKED)[2] for kind in ("mapping", "json")
        )
        fine = []
        if "exbiascall" in mapping and _ARGUED in mapping and "None" not in mapping:
            fine.append("mapping")
        is_json_said = "exbiascall" in as_json and _JSON_ARGUMENTS in as_json and "None" not in as_json
        # A template that writes a mapping in a form of its own only lets JSON through.
        if is_json_said and (not fine or as_json == mapping):
            fine.append("json")
        arguments += fine
        contents += [content] * bool(fine)
    return tuple(dict.fromkeys(arguments)), tuple(contents)


def _call_turn(kind: str, content: str | None) -> Message:
    function = {"name": "exbiascall", "arguments": _ARGUMENTS if kind == "mapping" else _JSON_ARGUMENTS}
    call = {"id": "exbiasid1", "type": "function", "function": function}
    beside = {} if content == _ABSENT else {"content": content}
    return {"role": "assistant", **beside, "tool_calls": [call]}
