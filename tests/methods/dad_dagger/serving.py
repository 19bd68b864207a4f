"""A teacher's server for tests: a real `vllm serve`, or one on the loopback that behaves as it is told."""

import contextlib
import json
import threading

import torch
from werkzeug import Response

from ...serving import vllm_serve
from ...tiny import byte_tokenizer


KEY = "the-teachers-key"


@contextlib.contextmanager
def vllm_serving(model, folder, *options):
    """`vllm serve` of a model under the name `teacher`, with a key; yields its address."""
    model.save_pretrained(folder / "teacher")
    byte_tokenizer().save_pretrained(folder / "teacher")
    with vllm_serve(folder / "teacher", folder / "log", KEY, "--served-model-name", "teacher", *options) as address:
        yield address


class TeacherServer:
    """
    Serves a model's real log-probabilities in vLLM's form. `script` holds answers that the next completions get instead (a
    `Response`, or a function of the true answer), `refuse_after` the number of completions from which on all are refused.
    """

    def __init__(self, server, model, tokenizer=None, name="teacher"):
        self.url, self.model, self.tokenizer, self.name = server.url_for("").rstrip("/"), model, tokenizer, name
        self.bodies, self.headers, self.script, self.refuse_after = [], [], [], None
        self.served = [{"id": name, "max_model_len": 256}]
        self._lock = threading.Lock()
        server.expect_request("/v1/models").respond_with_handler(lambda request: _json({"data": self.served}))
        server.expect_request("/detokenize", method="POST").respond_with_handler(self._detokenize)
        server.expect_request("/v1/completions", method="POST").respond_with_handler(self._complete)

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [tuple(body["prompt"]) for body in self.bodies]

    def _detokenize(self, request) -> Response:
        if self.tokenizer is None:
            return _json({"detail": "Not Found"}, 404)
        return _json({"prompt": self.tokenizer.decode(json.loads(request.data)["tokens"])})

    def _complete(self, request) -> Response:
        body = json.loads(request.data)
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            said = self.script.pop(0) if self.script else None
            if self.refuse_after is not None and len(self.bodies) > self.refuse_after:
                said = _json({"error": {"message": "gone"}}, 503)
            if isinstance(said, Response):
                return said
            answer = completion(self.model, body["prompt"], body["prompt_logprobs"])
        return _json(answer if said is None else said(answer))


@torch.no_grad()
def completion(model, prompt, k) -> dict:
    """As vLLM answers: at each place the k most probable tokens, and the prompt's own."""
    log_probs = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    places = [None]
    for row, token in zip(log_probs, prompt[1:], strict=False):
        top = dict.fromkeys([token, *row.topk(k).indices.tolist()])
        places.append({str(i): {"logprob": float(row[i]), "rank": int((row > row[i]).sum()) + 1} for i in top})
    return {"choices": [{"text": "", "prompt_logprobs": places, "prompt_token_ids": prompt}]}


def _json(content, status=200) -> Response:
    return Response(json.dumps(content), status=status, content_type="application/json")
