"""What asking would cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from .requests import JudgeRequest, cost_of


BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 8


@dataclass(frozen=True)
class Estimate:
    """
    What asking would take.

    Args:
        requests (`int`): Questions that would be sent: each once.
        prompt_tokens (`int`): An estimate at four bytes of UTF-8 a token, as English text has them; texts in other
            scripts differ.
        completion_tokens (`int`): At most: `max_tokens` a question.
        cost (`float`, *optional*): At most, given the prompt tokens; `None` without prices.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        text = f"{self.requests} requests, about {self.prompt_tokens} prompt tokens"
        text += f", at most {self.completion_tokens} completion tokens"
        return text if self.cost is None else f"{text}, cost at most about {self.cost:.2f}"


def estimate(
    requests: Sequence[JudgeRequest], prices: tuple[float, float] | None = None, max_tokens: int = 512
) -> Estimate:
    """
    Tokens and cost of questions, without asking. ([`JudgeClient.estimate`] leaves out what it has answers to.)

    Args:
        prices (`tuple[float, float]`, *optional*): For a million prompt tokens and for a million completion tokens.
        max_tokens (`int`): Tokens of a question that does not name its own.
    """
    distinct = {repr(request): request for request in requests}.values()
    prompt_tokens = sum(_tokens(message["content"]) for request in distinct for message in request.messages)
    completion_tokens = sum(max_tokens if r.max_tokens is None else r.max_tokens for r in distinct)
    return Estimate(len(distinct), prompt_tokens, completion_tokens, cost_of(prompt_tokens, completion_tokens, prices))


def _tokens(text: str) -> int:
    return TOKENS_PER_MESSAGE + -(-len(text.encode()) // BYTES_PER_TOKEN)
