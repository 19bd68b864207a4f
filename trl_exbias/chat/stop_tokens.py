"""What ends a response: read off the chat template, from how it ends the turns of an assistant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..core.errors import UsageError
from ..core.upstream import common_prefix_length
from .template_form import REFUSALS, Message, render


# No text that a template would say by itself, split, trim or escape.
_ASKED, _THOUGHT, _SAID, _FIRST, _NEXT = (f"exbias{word}" for word in ("asked", "thought", "said", "first", "next"))
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "exbiascall",
            "description": "d",
            "parameters": {"type": "object", "properties": {"exbiaskey": {"type": "string", "description": "d"}}},
        },
    }
]


@dataclass(frozen=True)
class TurnEnd:
    """
    How a chat template ends an assistant's turn, in token ids.

    Args:
        ends (`frozenset[int]`): Tokens that end it: after an answer, after an answer with reasoning, after calls.
        closing (`frozenset[int]`): Other special or added tokens between what is said and its end: `</tool_call>`.
        inside (`frozenset[int]`): Special or added tokens that open a turn or stand in its middle: `<|im_start|>`, `<think>`,
            gpt-oss's `<|end|>`.
    """

    ends: frozenset[int] = frozenset()
    closing: frozenset[int] = frozenset()
    inside: frozenset[int] = frozenset()


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, generation_config: Any, chat_template: str | None, **kwargs: Any
) -> tuple[int, ...]:
    """
    The tokens that end a response: the tokenizer's EOS, the generation config's, and those of [`turn_end`].

    A chat model's turn often ends with a token (`<|im_end|>`) that is not the tokenizer's EOS: without it, every
    rollout would run to the length limit.

    Raises:
        ValueError: if there is none at all.
    """
    found = {tokenizer.eos_token_id, *turn_end(tokenizer, chat_template, **kwargs).ends}
    configured = getattr(generation_config, "eos_token_id", None)
    found.update(configured if isinstance(configured, (list, tuple)) else [configured])
    found.discard(None)
    if not found:
        raise UsageError(
            "The tokenizer has no EOS token, so a response has no end. Set `eos_token` in the config (or "
            "`tokenizer.eos_token`) to a token of its vocabulary."
        )
    return tuple(sorted(found))


def turn_end(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, **kwargs: Any) -> TurnEnd:
    """
    Finds how a turn ends by rendering some: an answer, one with reasoning, and calls.

    An end is the last special or added token that follows what is said whether or not the conversation continues (Cohere
    closes the response first, then the turn); where the two differ, the one that ends a conversation (gpt-oss's
    `<|return|>`); where nothing does, the one that opens the next turn (GLM's `<|user|>`). What also stands between two
    calls, or between reasoning and answer, does not count as an end.
    """
    if chat_template is None and tokenizer.chat_template is None:
        return TurnEnd()
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def specials(text: str) -> list[int]:
        return [t for t in tokenizer(text, add_special_tokens=False)["input_ids"] if t in special]

    ends: set[int] = set()
    closing: set[int] = set()
    inside: set[int] = set()
    for answer, following in _turns():
        parts = _rendered(tokenizer, chat_template, answer, following, kwargs)
        if parts is None:
            continue
        opening, before, last, going_on = map(specials, parts)
        inside.update(opening, before)
        end = _end(before, last, going_on)
        if end is not None:
            ends.add(end)
            closing.update(last[: last.index(end)] if end in last else last)
    return TurnEnd(frozenset(ends), frozenset(closing - ends), frozenset(inside - ends))


def unfinished_test(tokenizer: PreTrainedTokenizerBase, end: TurnEnd) -> Callable[[Sequence[int]], bool]:
    """
    A test of responses that have ended, with the token that ended them: whether that is a marker in the middle of a turn
    (gpt-oss's `<|end|>`), or stands right after one (`<think>`, or `</think>` without an answer).
    """
    middle = end.inside - end.closing

    def is_unfinished(response: Sequence[int]) -> bool:
        *said, stop = response
        last = next((token for token in reversed(said) if not _is_blank(tokenizer, token)), None)
        return stop in end.inside or last in middle

    return is_unfinished


def silence_test(tokenizer: PreTrainedTokenizerBase, end: TurnEnd) -> Callable[[Sequence[int]], bool]:
    """A test of responses: whether one ends without having said anything but the template's own markers."""
    ends = {*end.ends, tokenizer.eos_token_id}
    markers = ends | end.closing | end.inside

    def says_nothing(response: Sequence[int]) -> bool:
        said = (token for token in response if token not in markers and not _is_blank(tokenizer, token))
        return next(said, None) is None and not ends.isdisjoint(response)

    return says_nothing


def _is_blank(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return not tokenizer.decode([token]).strip()


def _turns() -> list[tuple[list[Message], Message]]:
    """Assistant's turns to render, in order of preference, each with the message that could follow it."""

    def calls(*arguments: str) -> Message:
        made = [
            {
                "id": f"exbiasid{number}",
                "type": "function",
                "function": {"name": "exbiascall", "arguments": {"exbiaskey": argument}},
            }
            for number, argument in enumerate(arguments)
        ]
        return {"role": "assistant", "content": "", "tool_calls": made}

    answer = {"role": "assistant", "content": _SAID}
    user = {"role": "user", "content": _NEXT}
    tool = {"role": "tool", "name": "exbiascall", "tool_call_id": "exbiasid0", "content": _NEXT}
    reasoning = {**answer, "reasoning_content": _THOUGHT, "thinking": _THOUGHT}
    return [([answer], user), ([reasoning], user), ([calls(_FIRST, _SAID), calls(_SAID)], tool)]


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    answers: list[Message],
    following: Message,
    kwargs: dict[str, Any],
) -> tuple[str, str, str, str] | None:
    """A turn's opening, its text up to the last that is said, what follows at the end of a conversation, and in the middle."""
    asked = {"role": "user", "content": _ASKED}

    def text(*messages: Message, **more: Any) -> str | None:
        tools = _TOOLS if any("tool_calls" in message for message in answers) else None
        try:
            return render(tokenizer, [asked, *messages], chat_template, tools, **kwargs, **more)
        except REFUSALS:
            return None

    prompt = text(add_generation_prompt=True) or ""
    for answer in answers:
        whole = text(answer)
        said = None if whole is None else next((mark for mark in (_SAID, _FIRST) if mark in whole), None)
        if whole is None or said is None:
            continue
        start = common_prefix_length(prompt, whole)
        place = whole.rindex(said)
        longer = text(answer, following) or ""
        going_on = longer[longer.rfind(said) + len(said) :].partition(_NEXT)[0] if said in longer else ""
        return prompt.rpartition(_ASKED)[2], whole[start:place], whole[place + len(said) :], going_on
    return None


def _end(before: list[int], last: list[int], going_on: list[int]) -> int | None:
    last, going_on = ([token for token in tokens if token not in before] for tokens in (last, going_on))
    shared = last[: common_prefix_length(last, going_on)]
    if shared:
        return shared[-1]
    if last:
        return last[-1]
    return going_on[0] if going_on else None
