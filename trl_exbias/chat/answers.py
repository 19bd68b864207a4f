"""An answer as text: what it says, and its reasoning and its calls as the chat template renders them."""

import json
import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..core.upstream import common_prefix_length
from .conversations import conversation, message_of, template_kwargs_of, tools_of
from .stop_tokens import turn_end
from .template_form import REFUSALS, Message, form_of, reasoning_of, render, text_of


def reference_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """The gold answer of a row of prompt-completion or conversational data as text."""
    if isinstance(row.get("prompt"), str):
        return row["completion"].removesuffix(tokenizer.eos_token or "")  # put there by TRL
    return row_answer(row, tokenizer, chat_template)


def row_answer(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """The answer of a conversational row as text; see [`answer_text`]."""
    *messages, answer = conversation(row)
    return answer_text(tokenizer, messages, answer, chat_template, tools_of(row), **template_kwargs_of(row))


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    answer: Message,
    chat_template: str | None = None,
    tools: list | None = None,
    **kwargs: Any,
) -> str:
    """
    The text of an assistant's turn.

    For a text alone, it is that text. Reasoning and calls are as the template renders them, without what opens and ends the turn.
    Tokens that open and end turns within it become line ends (gpt-oss answers in several messages): they would end the turn
    in which the text is quoted.

    Returns:
        `str`: `""` where the template renders nothing of it.
    """
    answer, form = message_of(answer), None
    reasoning, calls = reasoning_of(answer), answer.get("tool_calls")
    if reasoning or calls:
        form = form_of(tokenizer, chat_template)
    if form is None or not ((reasoning and form.reasoning) or (calls and form.arguments)):
        return text_of(answer.get("content"))
    prompt = render(tokenizer, messages, chat_template, tools, add_generation_prompt=True, **kwargs)
    whole = render(tokenizer, [*messages, answer], chat_template, tools, **kwargs)
    rendered = whole[_begins(prompt, whole) :]
    for token in _turn_tokens(tokenizer, chat_template, json.dumps(kwargs, sort_keys=True, default=str)):
        rendered = rendered.replace(token, "\n")
    return rendered.strip()


def _begins(prompt: str, whole: str) -> int:
    """Where an answer begins: after what it has in common with the generation prompt, unless that opens its reasoning."""
    start = common_prefix_length(prompt, whole)
    if start < len(prompt) and whole[:start].endswith("<"):
        start -= 1  # of two markers, not the same one
    opened = re.search(r"<(\w+)>\s*$", whole[:start])
    return opened.start() if opened and f"</{opened[1]}>" in whole[start:] else start


@lru_cache(maxsize=64)
def _turn_tokens(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, kwargs_json: str) -> list[str]:
    """What stands around a user's turn, and what ends an assistant's."""
    kwargs = json.loads(kwargs_json)
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    special = set(inner.all_special_ids) | set(inner.added_tokens_decoder)
    try:
        frame = render(tokenizer, [{"role": "user", "content": "exbiasasked"}], chat_template, **kwargs)
    except REFUSALS:
        frame = ""
    found = special.intersection(inner(frame, add_special_tokens=False)["input_ids"])
    found |= {inner.eos_token_id, *turn_end(inner, chat_template or tokenizer.chat_template, **kwargs).ends} - {None}
    return sorted(inner.convert_ids_to_tokens(sorted(found)), key=len, reverse=True)
