"""One question to an OpenAI-compatible endpoint: what is asked again, what is a missing answer, and what ends it all."""

import asyncio
import json
import re
from typing import Any

from ...core.errors import MissingPackageError
from .requests import JudgeAnswer, JudgeRequest


# Seconds before a malformed answer is asked for again, doubled each time up to the second. (Refusals are `openai`'s.)
BACK_OFF = (0.5, 8.0)

# How servers say that one prompt is too long for the model.
_TOO_LONG = re.compile("context (length|size|window)|maximum model length")


class JudgeError(ValueError):
    """The endpoint refuses what every question would ask; the message says what to change."""


class Endpoint:
    """A connection to an endpoint, an asynchronous context manager. `openai` asks again after 408, 409, 429, 5xx,
    time-outs and broken connections; this class after useless answers."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        extra_body: dict[str, object] | None = None,
    ):
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise MissingPackageError("Judges need the package `openai`: pip install 'trl-exbias[eval]'.") from error
        self.base_url = base_url
        self.model = model
        self.max_retries = max_retries
        self._extra_body = extra_body
        self._api_key = api_key
        # The client insists on a key; what it is matters to nobody where none is needed.
        self._api = AsyncOpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout, max_retries=max_retries)
        self._token_limit = "max_tokens"

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._api.close()

    async def answer(
        self, request: JudgeRequest, temperature: float | None, max_tokens: int
    ) -> tuple[JudgeAnswer | None, str]:
        """
        The answer, or `None` and what was wrong. An answer may be without text: all tokens went into reasoning.

        Raises:
            JudgeError: for a refusal that every question would meet.
        """
        import openai

        problem = ""
        for attempt in range(self.max_retries + 1):
            try:
                reply = await self._send(request, temperature, max_tokens)
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                return None, self._without_key(error)
            except openai.APIStatusError as error:
                return None, self._refused(error)
            except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError) as error:
                problem = f"an answer that is not JSON ({self._without_key(error)})"
            else:
                answer, problem = _read(reply)
                if answer is not None:
                    return answer, ""
            if attempt < self.max_retries:
                await asyncio.sleep(min(BACK_OFF[0] * 2**attempt, BACK_OFF[1]))
        return None, problem

    async def _send(self, request: JudgeRequest, temperature: float | None, max_tokens: int) -> Any:
        import openai

        options: dict[str, Any] = (
            {"logprobs": True, "top_logprobs": request.top_logprobs} if request.top_logprobs else {}
        )
        if temperature is not None:
            options["temperature"] = temperature
        limit = self._token_limit
        try:
            return await self._api.chat.completions.create(
                model=self.model,
                messages=list(request.messages),
                extra_body=self._extra_body,
                **{limit: max_tokens},
                **options,
            )
        except openai.BadRequestError as error:
            # OpenAI's newer models know the limit by this name only, and other servers by the old one only.
            if limit == "max_tokens" and "max_completion_tokens" in str(error):
                self._token_limit = "max_completion_tokens"
                return await self._send(request, temperature, max_tokens)
            raise

    def _refused(self, error: Any) -> str:
        """What was wrong with this question; raises where it is wrong with all of them."""
        status, message = error.status_code, self._without_key(error)
        of_this_question = error.code in ("context_length_exceeded", "content_filter", "content_policy_violation")
        if of_this_question or status == 413 or (status == 400 and _TOO_LONG.search(message)):
            return message
        if status in (408, 409, 429) and error.code != "insufficient_quota":
            return message
        what = {
            401: "The key is wrong, or there is none: see `api_key_env`.",
            403: "The key does not allow it.",
            404: f"Is {self.model!r} the judge's name there, and does the address end where the API begins (often /v1)?",
            429: "The account is used up.",
        }.get(status, "What a judge does not know can be left out: `temperature=None`, G-Eval's `scoring='samples'`.")
        raise JudgeError(f"{self.base_url} refuses: {message}. {what} Answers that are there are kept.") from None

    def _without_key(self, error: Exception) -> str:
        """An error's text; a server may repeat the key in it."""
        text = str(error).strip().rstrip(".") or type(error).__name__
        return (text.replace(self._api_key, "***") if self._api_key else text)[:500]


def _read(reply: Any) -> tuple[JudgeAnswer | None, str]:
    """An answer out of a reply, which `openai` does not check; or what is wrong with it."""
    try:
        choice = reply.choices[0]
        text, logprobs = choice.message.content, getattr(choice, "logprobs", None)
        tokens = tuple(
            (token.token, {one.token: float(one.logprob) for one in token.top_logprobs or ()})
            for token in (logprobs.content if logprobs else None) or ()
        )
        usage = getattr(reply, "usage", None)
        counts = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None, "an answer of another form than a chat completion's"
    text = text.strip() if isinstance(text, str) else ""
    # vLLM reports the token that ends the turn, too, which is not part of the text.
    while tokens and not text.endswith(tokens[-1][0].strip()):
        tokens = tokens[:-1]
    return JudgeAnswer(text, choice.finish_reason, *counts, tokens), ""
