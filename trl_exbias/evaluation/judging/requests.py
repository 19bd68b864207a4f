"""What a judge is asked and what it answers."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


Message = dict[str, str]


@dataclass(frozen=True)
class Judged:
    """
    One completion under judgement.

    Args:
        id (`str`): The prompt's id, unique in its list: it keys the figures and the order in which texts are shown.
        prompt (`str`): What was asked: the post, the question, the beginning of the story.
        completion (`str`): What the model wrote.
        reference (`str`): What it is compared with: the data's own continuation, or another model's completion.
    """

    id: str
    prompt: str
    completion: str
    reference: str


@dataclass(frozen=True)
class JudgeRequest:
    """
    One question to the judge.

    Args:
        messages (`tuple[dict[str, str], ...]`): The conversation, with `role` and `content`.
        template (`str`): Which template made it, and which version of it.
        max_tokens, temperature (*optional*): In place of the client's.
        top_logprobs (`int`, defaults to `0`): Alternatives wanted at each token of the answer.
        sample (`int`, defaults to `0`): Which of several answers to the same question.
    """

    messages: tuple[Message, ...]
    template: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_logprobs: int = 0
    sample: int = 0


@dataclass(frozen=True)
class JudgeAnswer:
    """
    What the judge wrote.

    Args:
        text (`str`): The answer. (Never empty in what a client returns.)
        finish_reason (`str`, *optional*): `"stop"`, or `"length"` where `max_tokens` cut it.
        prompt_tokens, completion_tokens (`int`): As the endpoint counts them.
        tokens (`tuple[tuple[str, dict[str, float]], ...]`):
            Each token of the answer with the log-probabilities of the likeliest tokens in its place, where they were
            asked for and the endpoint returns them; else empty.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: tuple[tuple[str, dict[str, float]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "tokens": [[token, alternatives] for token, alternatives in self.tokens]}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "JudgeAnswer":
        return cls(**{**record, "tokens": tuple((token, alternatives) for token, alternatives in record["tokens"])})


@dataclass
class Usage:
    """
    What a client has asked so far.

    Args:
        requests (`int`): Questions sent, repetitions after an error not counted.
        cached (`int`): Questions answered without sending them, because the answer was there.
        failed (`int`): Questions without an answer: a missing verdict each.
        prompt_tokens, completion_tokens (`int`): Tokens of the questions sent, as the endpoint counts them.
        cost (`float`, *optional*): The cost of those tokens, in the currency of the prices; `None` without prices.
    """

    requests: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prices: tuple[float, float] | None = field(default=None, repr=False)

    @property
    def cost(self) -> float | None:
        return cost_of(self.prompt_tokens, self.completion_tokens, self.prices)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**{k: v for k, v in self.__dict__.items() if k != "prices"}, "cost": self.cost}


def cost_of(prompt_tokens: int, completion_tokens: int, prices: tuple[float, float] | None) -> float | None:
    """Cost of tokens at prices for a million prompt and a million completion tokens."""
    if prices is None:
        return None
    return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


def fingerprint(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
