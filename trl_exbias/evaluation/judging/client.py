"""A judge behind an OpenAI-compatible endpoint: OpenAI's, or a `vllm serve` of one's own."""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ...core.errors import UsageError
from .cache import AnswerCache
from .endpoint import Endpoint, JudgeError
from .estimate import Estimate, estimate
from .requests import JudgeAnswer, JudgeRequest, Usage, fingerprint


logger = logging.getLogger(__name__)

# A dead endpoint would otherwise be asked every question, each with all its retries.
FAILURES_IN_A_ROW = 32


class JudgeClient:
    """
    Asks a judge many questions at once, and none twice.

    Refusals for the moment (429, 5xx, time-outs, broken connections, useless answers) are asked again with
    exponential back-off, or after the time that the endpoint names in `Retry-After`. A question that fails for good
    is a missing answer, counted in `usage.failed`; it is asked again by the next run. A refusal that all questions would
    meet (a wrong key or model) ends it at once; answers that are there by then are kept.

    Args:
        base_url (`str`): E.g. `"https://api.openai.com/v1"` or `"http://localhost:8000/v1"`.
        model (`str`): As the endpoint calls it.
        api_key_env (`str`):
            Environment variable that holds the key. The key is read when questions are sent and kept nowhere. Endpoints
            over plain http are asked without one where the variable is not set.
        cache (`Path`, *optional*):
            JSONL file of answers, keyed by model, messages, sampling settings and template, not by endpoint. Without
            it, answers are remembered by this object only.
        max_concurrency (`int`): Questions under way at a time.
        timeout (`float`): Seconds to wait for an answer, at each attempt.
        max_retries (`int`): Attempts after the first one.
        temperature (`float`, *optional*): `None` leaves it to the endpoint: some models accept no other.
        max_tokens (`int`): Tokens of an answer.
        extra_body (`dict`, *optional*):
            Fields of the request that only this endpoint knows, e.g. `{"structured_outputs": {"regex": "…"}}` to hold a small
            judge on a `vllm serve` to the form of an answer.
        prompt_price, completion_price (`float`, *optional*): For a million tokens; with both, `usage.cost` is known.

    Attributes:
        usage ([`Usage`]): What was asked so far: questions, tokens, cost.

    Raises:
        ValueError: for a `base_url` that is none, numbers out of range, or one price without the other.

    Example:

    ```python
    client = JudgeClient("http://localhost:8000/v1", "HuggingFaceTB/SmolLM2-135M-Instruct", cache=Path("judge.jsonl"))
    figures = win_rate(client, [Judged("0", post, summary, reference)], task="summarization")
    ```
    """

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
        extra_body: dict[str, object] | None = None,
        prompt_price: float | None = None,
        completion_price: float | None = None,
    ):
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UsageError(
                f"`base_url` {base_url!r} is not the address of an endpoint, e.g. http://localhost:8000/v1."
            )
        if address.username or address.password:
            raise UsageError(f"`base_url` holds a password; put the key into the environment variable `{api_key_env}`.")
        if not model:
            raise UsageError("`model` is empty; give the judge's name as its endpoint calls it.")
        for name, value, least in (
            ("max_concurrency", max_concurrency, 1),
            ("max_tokens", max_tokens, 1),
            ("max_retries", max_retries, 0),
        ):
            if value < least:
                raise UsageError(f"`{name}` is {value}; it must be at least {least}.")
        if timeout <= 0:
            raise UsageError(f"`timeout` is {timeout}; it must be above 0 seconds.")
        if (prompt_price is None) != (completion_price is None):
            raise UsageError("Give both `prompt_price` and `completion_price`, for a million tokens, or neither.")
        prices = None if prompt_price is None or completion_price is None else (prompt_price, completion_price)
        self.base_url = base_url
        self.model = model
        self.api_key_env = api_key_env
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.extra_body = extra_body
        self.usage = Usage(prices=prices)
        self._cache = AnswerCache(cache)
        self._failures_in_a_row = 0

    @property
    def settings(self) -> dict[str, object]:
        """What shapes the answers, for a [`Figure`]."""
        settings = {"judge": self.model, "judge_temperature": self.temperature, "judge_max_tokens": self.max_tokens}
        return settings | ({"judge_extra_body": self.extra_body} if self.extra_body else {})

    def ask(self, requests: Sequence[JudgeRequest], description: str = "Judging") -> list[JudgeAnswer | None]:
        """
        The answer to each question, in order; `None` where there is none. Equal questions are asked once.

        Raises:
            JudgeError: where no question can be answered: a wrong key, model or parameter, or a dead endpoint.
        """
        keys = [self._key(request) for request in requests]
        waiting = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._cache}
        self.usage.cached += len(requests) - len(waiting)
        if waiting:
            failed = self.usage.failed
            _run(self._ask_all(waiting, description))
            failed = self.usage.failed - failed
            logger.info(
                f"{description}: {len(waiting) - failed} answers by {self.model}, {failed} failed, "
                f"{len(requests) - len(waiting)} were there already."
            )
            if failed:
                logger.warning(f"{description}: {failed} questions without an answer count as missing.")
        return [self._cache.get(key) for key in keys]

    def estimate(self, requests: Sequence[JudgeRequest]) -> Estimate:
        """Tokens and cost of the questions that [`ask`] would send, without sending them."""
        waiting = {key: request for request in requests if (key := self._key(request)) not in self._cache}
        return estimate(list(waiting.values()), self.usage.prices, self.max_tokens)

    def _key(self, request: JudgeRequest) -> str:
        return fingerprint(
            {
                "model": self.model,
                "messages": request.messages,
                "temperature": self._temperature(request),
                "max_tokens": self._max_tokens(request),
                "top_logprobs": request.top_logprobs,
                "sample": request.sample,
                "template": request.template,
                **({"extra_body": self.extra_body} if self.extra_body else {}),
            }
        )

    def _temperature(self, request: JudgeRequest) -> float | None:
        return self.temperature if request.temperature is None else request.temperature

    def _max_tokens(self, request: JudgeRequest) -> int:
        return self.max_tokens if request.max_tokens is None else request.max_tokens

    def _api_key(self) -> str | None:
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and self.base_url.startswith("https"):
            raise JudgeError(
                f"{self.base_url} needs a key: set the environment variable `{self.api_key_env}`, or name another one. "
                "(Endpoints over plain http, such as a local `vllm serve`, are asked without.)"
            )
        return key or None

    async def _ask_all(self, waiting: dict[str, JudgeRequest], description: str) -> None:
        from tqdm.auto import tqdm

        endpoint = Endpoint(self.base_url, self.model, self._api_key(), self.timeout, self.max_retries, self.extra_body)
        pending = iter(waiting.items())
        with tqdm(total=len(waiting), desc=description, unit="answer", leave=False) as bar:

            async def work() -> None:
                # The workers share one iterator: as many questions are under way as there are workers.
                for key, request in pending:
                    await self._ask_one(endpoint, key, request)
                    bar.update()

            async with endpoint:
                workers = [asyncio.create_task(work()) for _ in range(min(self.max_concurrency, len(waiting)))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    async def _ask_one(self, endpoint: Endpoint, key: str, request: JudgeRequest) -> None:
        self.usage.requests += 1
        answer, problem = await endpoint.answer(request, self._temperature(request), self._max_tokens(request))
        if answer is not None:
            self.usage.prompt_tokens += answer.prompt_tokens
            self.usage.completion_tokens += answer.completion_tokens
            if answer.text:
                self._failures_in_a_row = 0
                self._cache.add(key, answer, self.model, request.template)
                return
            problem = f"an answer without text (`finish_reason` {answer.finish_reason!r}; is `max_tokens` too low?)"
        self.usage.failed += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= max(FAILURES_IN_A_ROW, 2 * self.max_concurrency):
            raise JudgeError(
                f"{self.base_url} failed on {self._failures_in_a_row} questions in a row; the last time: {problem}. "
                "Answers that are there are kept."
            )


def _run(coroutine: Coroutine) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    # In a notebook a loop is running already; another one needs a thread of its own.
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
