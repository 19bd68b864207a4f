"""A server that takes and gives JSON: asked again while it is away or too busy, its key in no message."""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from .errors import ExbiasError


#: Seconds before a server is asked again, doubled each time up to the second. A `Retry-After` of the server's comes first.
BACK_OFF = (0.5, 8.0)
#: Answers of a server that is too busy or starting; those of one that has failed may be added.
BUSY = (429, 502, 503, 504)
FAILED = (500, *BUSY)
_CONNECT = 10.0  # seconds


class JsonServer:
    """
    A connection, a context manager; threads may share it.

    Args:
        base_url (`str`): The address that paths are appended to.
        what (`str`): What a message calls it, e.g. `"The vLLM server"`.
        key_variable (`str`): Environment variable with its key, if it has one. The key is kept in the connection alone.
        error (`type`): What is raised: an [`ExbiasError`] that takes a message.
        timeout (`float`): Seconds without an answer after which a request has failed.
        patience (`float`): Seconds for which a request that fails is sent again.
        again (`Iterable[int]`): Answers after which a request is sent again.
        hint (`Callable`): What to do, from a path and its answer (`None`: there was none).
        max_requests (`int`): Under way at a time.
    """

    def __init__(
        self,
        base_url: str,
        what: str,
        key_variable: str,
        error: type[ExbiasError],
        timeout: float,
        patience: float,
        again: Iterable[int] = BUSY,
        hint: Callable[[str, httpx.Response | None], str] = lambda path, answer: "",
        max_requests: int = 64,
    ):
        self.base_url, self.what, self.key_variable, self.error = base_url, what, key_variable, error
        self.patience, self.again, self.hint, self.max_requests = patience, frozenset(again), hint, max_requests
        self._key = os.environ.get(key_variable, "").strip()
        self._client = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT)),
            limits=httpx.Limits(max_connections=max_requests),
        )

    def __enter__(self) -> "JsonServer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def is_there(self) -> bool:
        """Whether anything answers at the address, tried once."""
        try:
            self._client.get("/", timeout=_CONNECT)
        except httpx.TransportError:
            return False
        return True

    def post(self, path: str, body: dict[str, Any], accept: Iterable[int] = ()) -> httpx.Response:
        """The answer, of 2xx or one of those in `accept`."""
        return self._ask("POST", path, body, accept)

    def post_once(self, path: str, body: dict[str, Any], timeout: float) -> None:
        """Sends a request whose answer is not needed. Raises `httpx.HTTPError`."""
        self._client.post(path, json=body, timeout=timeout)

    def get(self, path: str) -> httpx.Response:
        """The answer, of 2xx."""
        return self._ask("GET", path, None)

    def post_all(
        self, path: str, bodies: Sequence[dict[str, Any]], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, httpx.Response]]:
        """
        Place and answer of each request, as they come. After a failure, or once `stop` says so, no more are sent; the answers
        to those under way still come, and then the failure is raised.
        """
        failure: BaseException | None = None
        with ThreadPoolExecutor(self.max_requests) as pool:
            futures = {pool.submit(self.post, path, body): place for place, body in enumerate(bodies)}
            try:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    if (own := future.exception()) is None:
                        yield futures[future], future.result()
                    failure = failure or own
                    if failure is not None or stop():
                        _cancel(futures)
            finally:
                _cancel(futures)
        if failure is not None:
            raise failure

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, accept: Iterable[int] = ()) -> httpx.Response:
        deadline = time.monotonic() + self.patience
        pause = BACK_OFF[0]
        while True:
            answer, wait = None, None
            try:
                answer = self._client.request(method, path, json=body)
                if answer.is_success or answer.status_code in accept:
                    return answer
                wait = _retry_after(answer)
                problem = f"answered {answer.status_code} to {path}: {answer.text[:500]}"
            except httpx.TransportError as error:
                problem = f"could not be reached ({type(error).__name__}: {error})"
            # Not all at once: a server that is back would be too busy again.
            wait = pause * random.uniform(0.75, 1.0) if wait is None else wait
            is_final = answer is not None and answer.status_code not in self.again
            if is_final or time.monotonic() + wait > deadline:
                said = self._without_key(f"{self.what} at {self.base_url} {problem}").rstrip(".")
                raise self.error(f"{said}.{self._advice(path, answer)}")
            time.sleep(wait)
            pause = min(2 * pause, BACK_OFF[1])

    def _advice(self, path: str, answer: httpx.Response | None) -> str:
        if answer is not None and answer.status_code in (401, 403):
            return f" Put its key into the environment variable {self.key_variable}."
        return self.hint(path, answer)

    def _without_key(self, text: str) -> str:
        """A server may repeat the key in an answer."""
        return text.replace(self._key, "***") if self._key else text


def _cancel(futures: Iterable[Future]) -> None:
    for future in futures:
        future.cancel()


def _retry_after(answer: httpx.Response) -> float | None:
    """The seconds that the server asks for; `None` where it names none, or a date."""
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "")))
    except ValueError:
        return None
