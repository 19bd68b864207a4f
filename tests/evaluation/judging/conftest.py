"""A judge's endpoint on localhost that behaves as it is told."""

import json
import threading
import time

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from trl_exbias.evaluation.judging import JudgeClient, JudgeRequest, endpoint


class Judge:
    """
    Answers chat completions over HTTP. `say` is a text, or a function of the request's body that returns a text, a list of
    tokens with alternatives, or a ready `Response`; `script` holds what the first requests get instead.
    """

    def __init__(self, server: HTTPServer):
        self.base_url = server.url_for("/v1")
        self.say = "Comparison: they are alike.\n\nPreferred: A"
        self.script, self.bodies, self.headers = [], [], []
        self.delay, self.under_way, self.most_under_way = 0.0, 0, 0
        self._lock = threading.Lock()
        server.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self._handle)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    def _handle(self, request) -> Response:
        body = json.loads(request.data)
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            said = self.script.pop(0) if self.script else self.say
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            time.sleep(self.delay)
            if callable(said) and not isinstance(said, Response):  # a `Response` is callable too
                said = said(body)
            return said if isinstance(said, Response) else completion(said)
        finally:
            with self._lock:
                self.under_way -= 1


def completion(said, text: str | None = None) -> Response:
    """A reply of the API: a text, or tokens with the log-probabilities of their alternatives."""
    tokens = [] if isinstance(said, str) else said
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {
            "role": "assistant",
            "content": text or (said if isinstance(said, str) else "".join(t for t, _ in tokens)),
        },
    }
    if tokens:
        content = [
            {
                "token": token,
                "logprob": alternatives.get(token, 0.0),
                "bytes": list(token.encode()),
                "top_logprobs": [
                    {"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in alternatives.items()
                ],
            }
            for token, alternatives in tokens
        ]
        choice["logprobs"] = {"content": content}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    reply = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [choice],
        "usage": usage,
    }
    return Response(json.dumps(reply), content_type="application/json")


def refusal(status: int, message: str = "no", code: str | None = None, headers: dict | None = None) -> Response:
    reply = json.dumps({"error": {"message": message, "type": "error", "code": code}})
    return Response(reply, status=status, content_type="application/json", headers=headers)


@pytest.fixture
def judge(httpserver, monkeypatch):
    import openai._base_client

    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.002)
    monkeypatch.setattr(endpoint, "BACK_OFF", (0.002, 0.01))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Judge(httpserver)


@pytest.fixture
def make_client(judge):
    def make(**options) -> JudgeClient:
        return JudgeClient(judge.base_url, "judge", **{"max_retries": 3, "timeout": 20.0, **options})

    return make


@pytest.fixture
def question():
    def make(text: str = "A or B?", **fields) -> JudgeRequest:
        return JudgeRequest(({"role": "user", "content": text},), "test-1", **fields)

    return make
