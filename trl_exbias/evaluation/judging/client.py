"""A judge behind an OpenAI-compatible endpoint."""

from collections.abc import Sequence
from pathlib import Path

from .requests import JudgeAnswer, JudgeRequest, Usage


class JudgeClient:
    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        cache: Path | None = None,
        max_concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 5,
        temperature: float | None = 0.0,
        max_tokens: int = 512,
        prompt_price: float | None = None,
        completion_price: float | None = None,
    ):
        self.usage = Usage()

    def ask(self, requests: Sequence[JudgeRequest], description: str = "Judging") -> list[JudgeAnswer | None]:
        raise NotImplementedError
