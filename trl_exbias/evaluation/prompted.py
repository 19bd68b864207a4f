"""Rows of an evaluation as training has them: the prompt's tokens, the answer's after it, and both as a reader sees them."""

import json
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def prompt_and_response(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """
    A row's prompt as training has it, and the tokens of its answer after it, up to what ends it; none without an answer.
    """
    from ..chat.prompts import conversation_prompt_ids, prompt_ids, response_after_prompt
    from ..chat.stop_tokens import turn_end

    if row.get("completion"):
        ids, response = response_after_prompt(row, "prompt-completion", tokenizer)
        stops = {tokenizer.eos_token_id, *turn_end(tokenizer).ends}
        end = next((place for place, token in enumerate(response, start=1) if token in stops), len(response))
        return ids, response[:end]
    if isinstance(row["prompt"], str):
        return prompt_ids(row, tokenizer), []
    return conversation_prompt_ids(tokenizer, row["prompt"], row), []


def as_conversation(row: dict[str, Any], template_kwargs: dict[str, Any]) -> dict[str, Any]:
    """A row of plain texts as a user turn and an assistant turn."""
    from ..chat.conversations import TEMPLATE_KWARGS

    turns = {"prompt": [{"role": "user", "content": row["prompt"]}]}
    if isinstance(row.get("completion"), str):
        turns["completion"] = [{"role": "assistant", "content": row["completion"]}]
    return {**row, **turns, TEMPLATE_KWARGS: template_kwargs}


def last_turns(dataset: "Dataset") -> "Dataset":
    """Conversations as prompts and completions: the last turn, if it is an answer, is the completion. Other columns stay."""
    from datasets import Features

    features = {name: feature for name, feature in dataset.features.items() if name != "messages"}
    features |= dict.fromkeys(("prompt", "completion"), dataset.features["messages"])

    def split(row: dict[str, Any]) -> dict[str, list]:
        messages = row["messages"]
        end = len(messages) - (messages[-1]["role"] == "assistant")
        return {"prompt": messages[:end], "completion": messages[end:]}

    return dataset.map(
        split,
        remove_columns=["messages"],
        features=Features(features),
    )


def readable(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt for a judge: a single turn's text, or the turns with their roles; calls of tools as JSON."""
    from ..chat.template_form import text_of

    if isinstance(prompt, str):
        return prompt
    texts = []
    for message in prompt:
        calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()]
        texts.append("\n".join(filter(None, (text_of(message.get("content")), *calls))))
    if len(prompt) == 1:
        return texts[0]
    return "\n\n".join(f"{message['role']}: {text}" for message, text in zip(prompt, texts, strict=True))
