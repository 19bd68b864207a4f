"""How a teacher's server is asked: its address, its key, and the body of a request."""

from collections.abc import Sequence
from typing import Any

import httpx

from ...core.errors import ExbiasError
from ...core.json_server import FAILED, JsonServer
from .served_labels import BadAnswer


#: Environment variable with the server's key.
API_KEY = "TEACHER_API_KEY"
COMPLETIONS = "/v1/completions"
_TIMEOUT = 600.0  # seconds without an answer to a request


class TeacherServerError(ExbiasError, RuntimeError):
    """The teacher's server is not there, refuses, or gives what cannot be used; says what to do."""


def connection(base_url: str, patience: float) -> JsonServer:
    """
    The server at an address.

    Args:
        patience (`float`): Seconds for which it is waited for.
    """
    return JsonServer(
        base_url,
        "The teacher's server",
        API_KEY,
        TeacherServerError,
        timeout=_TIMEOUT,
        patience=patience,
        again=FAILED,
        hint=_hint,
    )


def request_for_labels(model: str, tokens: Sequence[int], k: int) -> dict[str, Any]:
    """Asks for the k most probable tokens at each place of a prompt. One token is drawn after it: no server takes none."""
    return {
        "model": model,
        "prompt": list(tokens),
        "prompt_logprobs": k,
        "return_token_ids": True,
        "max_tokens": 1,
        "temperature": 0.0,
    }


def as_json(answer: httpx.Response) -> Any:
    """
    What an answer says.

    Raises:
        BadAnswer: if it is not JSON.
    """
    try:
        return answer.json()
    except ValueError:
        raise BadAnswer("it is not JSON") from None


def unusable(base_url: str, error: BadAnswer) -> TeacherServerError:
    """What is raised where an answer is not what was asked for."""
    return TeacherServerError(f"The answer of the teacher's server at {base_url} cannot be used: {error}.")


def _hint(path: str, answer: httpx.Response | None) -> str:
    if answer is None:
        return " Is it running there (`teacher_server_base_url`)?"
    if answer.status_code == 400 and "logprobs" in answer.text:
        return " Start it with a larger `--max-logprobs`, or lower `teacher_top_k`."
    if answer.status_code == 404:
        return " Is it the address of a `vllm serve`?"
    return ""
